"""Detector weights of every origin, read into one thing: a net, the names of its classes, and where it comes from.

Origins: darknet's ``.weights`` (with a ``.cfg``, or of a net known by its count of numbers), the ONNX copy of
YOLOv3-tiny, Ultralytics' ``.pt``, and our own ``.safetensors`` and ``.onnx``, which state architecture, kind and
classes.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from chromabox.detect.data.dataset import class_names
from chromabox.detect.models.architecture import LAYERS, Architecture, Layer, yolov3, yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, ConvolutionLayer, DetectorNet, Kind, kind_from_json
from chromabox.detect.weights.darknet_cfg import read_cfg
from chromabox.detect.weights.ultralytics import read_ultralytics
from chromabox.engine.checkpoint import load_checkpoint, read_description, save_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.darknet_weights import (
    DarknetFile,
    as_darknet,
    read_darknet_file,
    read_onnx_convolutions,
    read_onnx_metadata,
    write_darknet_file,
    yolov3_tiny_file,
)
from chromabox.io.fetch import cache_folder
from chromabox.io.http import Progress

#: Weights that can be named instead of a file, and fetched.
PUBLISHED = ("yolov3-tiny",)
#: Nets known by name, for a count of classes and a kind of weights.
KNOWN: dict[str, Callable[[int, Kind], Architecture]] = {
    "yolov3": lambda classes, kind: yolov3(classes),
    "yolov3-tiny": lambda classes, kind: yolov3_tiny(classes, mask=kind.tiny_mask),
}
#: What the metadata of our own ONNX files give as ``format``; ``detector`` is then what a checkpoint says.
EXPORTED = "chromabox-detector-1"
#: The most classes a net is taken to have when only the count of numbers says how many.
MOST_CLASSES = 1000


@dataclass(frozen=True)
class TrainedDetector:
    """A net in evaluation mode, the names of its classes, the side it is usually shown, and its history."""

    net: DetectorNet
    classes: tuple[str, ...]
    size: int
    description: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return self.net.architecture

    @property
    def kind(self) -> Kind:
        return self.net.kind


def is_detector(weights: str | Path) -> bool:
    """Whether a name, file or run folder stands for a detector, as far as can be told without reading all of it."""
    path = Path(weights)
    if path.is_dir():
        path = path / "best.safetensors"
    if path.suffix == ".safetensors":
        return (read_description(path) or {}).get("net") == "detector"
    if path.suffix == ".onnx" and path.is_file():
        return _says_exported(path)
    return path.suffix in (".weights", ".pt") or (str(weights) in PUBLISHED and not path.exists())


def load_detector(
    weights: str | Path = "yolov3-tiny",
    *,
    architecture: Architecture | str | Path | None = None,
    kind: Kind | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> TrainedDetector:
    """Load weights by name or from a file, whose suffix says what it is.

    Args:
        weights: ``yolov3-tiny``, or a .safetensors, .weights, .onnx or .pt file, or the folder of a run.
        architecture: for .weights and others' .onnx: the net, ``yolov3``, ``yolov3-tiny`` or a .cfg file; None: a .cfg
            file of the same name beside the weights, else the net known by its count of numbers.
        kind: what the numbers mean; None: what the file says, or darknet's for .weights and others' .onnx, which cannot
            say.
        classes: names; None: the file's own, or COCO's for 80 classes.

    Raises ChromaboxError for a file that is broken, of another net, or would run code; UsageError for an option that
    does not fit the file.
    """
    if str(weights) in PUBLISHED and not Path(weights).exists():
        trained = _load_published(str(weights), kind, progress)
        return trained if classes is None else _renamed(trained, classes)
    path = _existing(Path(weights))
    suffix = path.suffix.lower()
    if architecture is not None and suffix not in (".weights", ".onnx"):
        raise UsageError(f"{path}: says its architecture itself; leave the architecture out")
    if suffix == ".safetensors":
        trained = _load_own(path, kind)
    elif suffix == ".weights":
        trained = _load_darknet(path, architecture, kind or DARKNET)
    elif suffix == ".onnx":
        trained = _load_onnx(path, architecture, kind)
    elif suffix in (".pt", ".pth"):
        trained = _load_ultralytics(path, kind)
    else:
        raise UsageError(
            f"{path}: weights are .safetensors, .weights, .onnx or .pt files, not {suffix or 'without suffix'}"
        )
    return trained if classes is None else _renamed(trained, classes)


def save_detector(path: Path, trained: TrainedDetector) -> None:
    """Write our own form: a .safetensors that says all there is to know, and the same for people as .json beside it.

    Raises UsageError if the path has another suffix.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: our own weights are written to a .safetensors file")
    save_checkpoint(path, {"net": trained.net.state_dict()}, describe_detector(trained))


def describe_detector(trained: TrainedDetector) -> dict[str, Any]:
    """What a checkpoint must say so that :func:`load_detector` can build the net again, as JSON values."""
    return {
        **trained.description,
        "net": "detector",
        "architecture": architecture_as_json(trained.architecture),
        "kind": trained.kind.as_json(),
        "classes": list(trained.classes),
        "size": trained.size,
    }


def write_darknet(path: Path, net: DetectorNet, seen: int = 0) -> None:
    """Write darknet's own file of a net, bit for bit what was read; ``seen`` counts the pictures of its training.

    Raises UsageError for a net whose kind darknet does not know: it would read the numbers and misunderstand them.
    """
    if net.kind.name != DARKNET.name:
        raise UsageError(f"{path}: darknet cannot run weights of kind {net.kind.name}; write a .safetensors file")
    numbers = [tensor.detach().float().cpu().numpy().ravel() for tensor in _in_file_order(net)]
    write_darknet_file(path, DarknetFile(np.concatenate(numbers), seen))


def fetch_detector(name: str, progress: Progress | None = None) -> Path:
    """Our own form of published weights in the cache; fetched, verified and converted where it is not there yet.

    Raises UsageError for a name that is not published, ChromaboxError where no source has the weights.
    """
    if name not in PUBLISHED:
        raise UsageError(
            f"{name}: no published weights have that name; those that can be fetched: {', '.join(PUBLISHED)}"
        )
    path = cache_folder() / f"{name}.safetensors"
    if path.is_file():
        return path
    file, origin = yolov3_tiny_file(progress)
    net = _filled(DetectorNet.blank(yolov3_tiny(), DARKNET), file.numbers, origin.name)
    source = {"file": origin.name, "sha256": origin.sha256, "seen": file.seen}
    trained = TrainedDetector(net, class_names(80), net.architecture.size, {"name": name, "source": source})
    try:
        save_detector(path, trained)
    except OSError as error:
        remedy = "choose a folder that can be written, for instance through CHROMABOX_CACHE"
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
    return path


def architecture_as_json(architecture: Architecture) -> dict[str, Any]:
    """An architecture as JSON values."""
    described = [{"layer": type(layer).__name__, **asdict(layer)} for layer in architecture.layers]
    return {
        "name": architecture.name,
        "channels": architecture.channels,
        "size": architecture.size,
        "layers": described,
    }


def architecture_from_json(stored: dict[str, Any]) -> Architecture:
    """The inverse. Raises KeyError, TypeError, ValueError or ChromaboxError for anything else."""
    built = tuple(_layer(described) for described in stored["layers"])
    return Architecture(stored["name"], built, stored["channels"], stored["size"])


def _layer(described: dict[str, Any]) -> Layer:
    settings = {name: _as_tuple(value) for name, value in described.items() if name != "layer"}
    return LAYERS[described["layer"]](**settings)


def _as_tuple(value: Any) -> Any:
    """JSON knows lists but no tuples."""
    return tuple(_as_tuple(part) for part in value) if isinstance(value, list) else value


def _says_exported(path: Path) -> bool:
    """Whether an ONNX file is a detector of ours; a damaged one is none."""
    try:
        return read_onnx_metadata(path).get("format") == EXPORTED
    except ChromaboxError:
        return False


def _existing(path: Path) -> Path:
    """The file itself, or the best checkpoint of a run's folder."""
    if path.is_dir():
        path = path / "best.safetensors"
    if not path.is_file():
        names = ", ".join(PUBLISHED)
        raise UsageError(
            f"{path}: there are no such weights; give a file, or one of the names that are fetched: {names}"
        )
    return path


def _load_published(name: str, kind: Kind | None, progress: Progress | None) -> TrainedDetector:
    """From the cache; a damaged file there is made anew."""
    path = fetch_detector(name, progress)
    try:
        return _load_own(path, kind)
    except UsageError:
        raise
    except ChromaboxError:
        path.unlink(missing_ok=True)
        return _load_own(fetch_detector(name, progress), kind)


def _load_own(path: Path, kind: Kind | None) -> TrainedDetector:
    state, description = load_checkpoint(path)
    return _from_description(path, description, kind, lambda net: net.load_state_dict(state["net"]))


def _from_description(
    path: Path, description: dict[str, Any], kind: Kind | None, fill: Callable[[DetectorNet], object]
) -> TrainedDetector:
    """The detector that a file of ours says it holds; ``fill`` puts the numbers into the net."""
    try:
        if description.get("net") != "detector":
            raise ValueError(f"it holds {description.get('net', 'something else')}")
        stored = kind_from_json(description["kind"])
        if kind is not None and kind != stored:
            raise UsageError(f"{path}: its weights are of kind {stored.name}, not {kind.name}; leave the kind out")
        net = DetectorNet.blank(architecture_from_json(description["architecture"]), stored)
        fill(net)
        classes = tuple(str(name) for name in description["classes"])
        trained = TrainedDetector(net.eval(), classes, int(description["size"]), description)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ChromaboxError) as error:
        reason = " ".join(str(error).split())  # PyTorch lists what does not fit in many lines.
        raise ChromaboxError(f"{path}: not a checkpoint of a detector ({reason}); give one of a detector") from error
    return _renamed(trained, trained.classes)


def _load_darknet(path: Path, architecture: Architecture | str | Path | None, kind: Kind) -> TrainedDetector:
    file = read_darknet_file(path)
    built = _architecture(path, architecture, len(file.numbers), kind)
    net = _filled(DetectorNet.blank(built, kind), file.numbers, str(path))
    source = {"file": path.name, "seen": file.seen}
    return TrainedDetector(net, class_names(built.classes), built.size, {"name": built.name, "source": source})


def _load_onnx(path: Path, architecture: Architecture | str | Path | None, kind: Kind | None) -> TrainedDetector:
    """Our own, which say what they are, and others'."""
    metadata = read_onnx_metadata(path)
    given = read_onnx_convolutions(path)
    if metadata.get("format") == EXPORTED:
        if architecture is not None:
            raise UsageError(f"{path}: says its architecture itself; leave the architecture out")
        try:
            description = json.loads(metadata["detector"])
        except (KeyError, ValueError) as error:
            raise ChromaboxError(f"{path}: its metadata is damaged ({error!r}); export the detector again") from error
        return _from_description(path, description, kind, lambda net: _fill_convolutions(net, given, path))
    kind = kind or DARKNET
    built = _architecture(path, architecture, sum(values.size for layer in given for values in layer.values()), kind)
    net = DetectorNet.blank(built, kind)
    _fill_convolutions(net, given, path)
    return TrainedDetector(
        net, class_names(built.classes), built.size, {"name": built.name, "source": {"file": path.name}}
    )


def _fill_convolutions(net: DetectorNet, given: Sequence[dict[str, np.ndarray]], path: Path) -> None:
    """Put an ONNX file's convolutions into a net."""
    # The count may agree by chance where the layers do not.
    shapes = [tuple(layer.convolution.weight.shape) for layer in _convolutions(net)]
    for index, (layer, shape) in enumerate(zip(given, shapes, strict=False)):
        if layer["kernel"].shape != shape:
            name = net.architecture.name
            raise ChromaboxError(f"{path}: convolution {index} is {layer['kernel'].shape}; {name} needs {shape}")
    _filled(net, as_darknet(given, net.kind.epsilon), str(path))


def _load_ultralytics(path: Path, kind: Kind | None) -> TrainedDetector:
    file = read_ultralytics(path, kind)
    numbers = as_darknet(file.layers, 0.0)
    net = _filled(DetectorNet.blank(file.architecture, file.kind), numbers, str(path))
    described = {"name": file.architecture.name, "source": {"file": path.name}}
    return TrainedDetector(net, file.classes, 640, described)


def _architecture(path: Path, architecture: Architecture | str | Path | None, count: int, kind: Kind) -> Architecture:
    """The net that was asked for, or described beside the weights, or known by the count of its numbers."""
    if isinstance(architecture, Architecture):
        return architecture
    if architecture is None:
        beside = path.with_suffix(".cfg")
        return read_cfg(beside) if beside.is_file() else _by_count(path, count, kind, KNOWN)
    if str(architecture) in KNOWN:
        return _by_count(path, count, kind, {str(architecture): KNOWN[str(architecture)]})
    if Path(architecture).suffix != ".cfg":
        raise UsageError(f"architecture is {architecture}: give {', '.join(KNOWN)} or a .cfg file")
    return read_cfg(Path(architecture))


def _by_count(
    path: Path, count: int, kind: Kind, known: dict[str, Callable[[int, Kind], Architecture]]
) -> Architecture:
    """The known net that has so many numbers, for whatever count of classes: every class adds the same."""
    needs = []
    for build in known.values():
        first = build(1, kind).numbers
        classes, rest = divmod(count - first, build(2, kind).numbers - first)
        if rest == 0 and 0 <= classes < MOST_CLASSES:
            return build(classes + 1, kind)
        usual = build(80, kind)
        needs.append(f"{usual.name} with 80 classes needs {usual.numbers:,}")
    raise ChromaboxError(
        f"{path}: its {count:,} numbers are of no net known by count ({'; '.join(needs)}); name the .cfg it belongs to"
    )


def _filled(net: DetectorNet, numbers: Float32[np.ndarray, " numbers"], origin: str) -> DetectorNet:
    """The net with darknet's numbers in it, in evaluation mode; ChromaboxError if there are more or fewer."""
    needed = net.architecture.numbers
    if len(numbers) != needed:
        what = "cut short" if len(numbers) < needed else "too long"
        raise ChromaboxError(
            f"{origin}: {what} or of another net: it holds {len(numbers):,} numbers; {net.architecture.name} with "
            f"{net.architecture.classes} classes needs {needed:,}"
        )
    if not np.isfinite(numbers).all():
        raise ChromaboxError(f"{origin}: holds numbers that are not finite; take another copy")
    at = 0
    with torch.no_grad():
        for tensor in _in_file_order(net):
            part = numbers[at : at + tensor.numel()]
            tensor.copy_(torch.from_numpy(part.copy()).view_as(tensor))
            at += tensor.numel()
    return net.eval()


def _convolutions(net: DetectorNet) -> list[ConvolutionLayer]:
    return [layer for layer in net.layers if isinstance(layer, ConvolutionLayer)]


def _in_file_order(net: DetectorNet) -> list[Tensor]:
    """The tensors of a net in the order of darknet's file."""
    tensors: list[Tensor | None] = []
    for layer in _convolutions(net):
        norm: nn.BatchNorm2d | None = layer.norm
        tensors += [layer.convolution.bias] if norm is None else [norm.bias, norm.weight]
        tensors += [] if norm is None else [norm.running_mean, norm.running_var]
        tensors.append(layer.convolution.weight)
    return cast(list[Tensor], tensors)


def _renamed(trained: TrainedDetector, classes: Sequence[str]) -> TrainedDetector:
    """The same with other names of classes; UsageError if they are not as many, or not all different."""
    if len(classes) != trained.architecture.classes or len(set(classes)) != len(classes):
        raise UsageError(
            f"classes: {len(set(classes))} different names are given; the weights know {trained.architecture.classes}"
        )
    return TrainedDetector(trained.net, tuple(classes), trained.size, trained.description)
