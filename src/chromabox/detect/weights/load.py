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

from chromabox.detect.data.dataset import default_class_names
from chromabox.detect.models.architecture import LAYER_TYPES, Architecture, Layer, yolov3, yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, ConvolutionLayer, DarknetModel, Variant, variant_from_json
from chromabox.detect.weights.darknet_cfg import read_cfg
from chromabox.detect.weights.ultralytics import read_ultralytics
from chromabox.engine.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.darknet_weights import (
    DarknetWeights,
    load_yolov3_tiny,
    pack_layers,
    read_darknet_weights,
    read_onnx_convolutions,
    read_onnx_metadata,
    write_darknet_weights,
)
from chromabox.io.fetch import cache_folder
from chromabox.io.http import Progress

#: Weights that can be named instead of a file, and fetched.
PRETRAINED = ("yolov3-tiny",)
#: Nets known by name, for a count of classes and a kind of weights.
ARCHITECTURES: dict[str, Callable[[int, Variant], Architecture]] = {
    "yolov3": lambda classes, kind: yolov3(classes),
    "yolov3-tiny": lambda classes, kind: yolov3_tiny(classes, mask=kind.tiny_mask),
}
#: What the metadata of our own ONNX files give as ``format``; ``detector`` is then what a checkpoint says.
EXPORT_FORMAT = "chromabox-detector-1"
#: The most classes a net is taken to have when only the count of numbers says how many.
MAX_CLASSES = 1000


@dataclass(frozen=True)
class Detector:
    """A net in evaluation mode, the names of its classes, the side it is usually shown, and its history."""

    model: DarknetModel
    classes: tuple[str, ...]
    size: int
    metadata: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @property
    def variant(self) -> Variant:
        return self.model.variant


def is_detector(weights: str | Path) -> bool:
    """Whether a name, file or run folder stands for a detector, as far as can be told without reading all of it."""
    path = Path(weights)
    if path.is_dir():
        path = path / "best.safetensors"
    if path.suffix == ".safetensors":
        return (read_metadata(path) or {}).get("net") == "detector"
    if path.suffix == ".onnx" and path.is_file():
        return _is_exported(path)
    return path.suffix in (".weights", ".pt") or (str(weights) in PRETRAINED and not path.exists())


def load_detector(
    weights: str | Path = "yolov3-tiny",
    *,
    architecture: Architecture | str | Path | None = None,
    variant: Variant | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Detector:
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
    if str(weights) in PRETRAINED and not Path(weights).exists():
        trained = _load_pretrained(str(weights), variant, progress)
        return trained if classes is None else _with_class_names(trained, classes)
    path = _resolve_path(Path(weights))
    suffix = path.suffix.lower()
    if architecture is not None and suffix not in (".weights", ".onnx"):
        raise UsageError(f"{path}: says its architecture itself; leave the architecture out")
    if suffix == ".safetensors":
        trained = _load_safetensors(path, variant)
    elif suffix == ".weights":
        trained = _load_darknet(path, architecture, variant or DARKNET)
    elif suffix == ".onnx":
        trained = _load_onnx(path, architecture, variant)
    elif suffix in (".pt", ".pth"):
        trained = _load_ultralytics(path, variant)
    else:
        raise UsageError(
            f"{path}: weights are .safetensors, .weights, .onnx or .pt files, not {suffix or 'without suffix'}"
        )
    return trained if classes is None else _with_class_names(trained, classes)


def save_detector(path: Path, detector: Detector) -> None:
    """Write our own form: a .safetensors that says all there is to know, and the same for people as .json beside it.

    Raises UsageError if the path has another suffix.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: our own weights are written to a .safetensors file")
    save_checkpoint(path, {"net": detector.model.state_dict()}, detector_metadata(detector))


def detector_metadata(detector: Detector) -> dict[str, Any]:
    """What a checkpoint must say so that :func:`load_detector` can build the net again, as JSON values."""
    return {
        **detector.metadata,
        "net": "detector",
        "architecture": architecture_as_json(detector.architecture),
        "kind": detector.variant.as_json(),
        "classes": list(detector.classes),
        "size": detector.size,
    }


def write_darknet(path: Path, model: DarknetModel, seen: int = 0) -> None:
    """Write darknet's own file of a net, bit for bit what was read; ``seen`` counts the pictures of its training.

    Raises UsageError for a net whose kind darknet does not know: it would read the numbers and misunderstand them.
    """
    if model.variant.name != DARKNET.name:
        raise UsageError(f"{path}: darknet cannot run weights of kind {model.variant.name}; write a .safetensors file")
    numbers = [tensor.detach().float().cpu().numpy().ravel() for tensor in _tensors_in_file_order(model)]
    write_darknet_weights(path, DarknetWeights(np.concatenate(numbers), seen))


def download_pretrained(name: str, progress: Progress | None = None) -> Path:
    """Our own form of published weights in the cache; fetched, verified and converted where it is not there yet.

    Raises UsageError for a name that is not published, ChromaboxError where no source has the weights.
    """
    if name not in PRETRAINED:
        raise UsageError(
            f"{name}: no published weights have that name; those that can be fetched: {', '.join(PRETRAINED)}"
        )
    path = cache_folder() / f"{name}.safetensors"
    if path.is_file():
        return path
    file, origin = load_yolov3_tiny(progress)
    net = _load_flat_weights(DarknetModel.uninitialised(yolov3_tiny(), DARKNET), file.values, origin.name)
    source = {"file": origin.name, "sha256": origin.sha256, "seen": file.images_seen}
    trained = Detector(net, default_class_names(80), net.architecture.size, {"name": name, "source": source})
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
    built = tuple(_layer_from_json(described) for described in stored["layers"])
    return Architecture(stored["name"], built, stored["channels"], stored["size"])


def _layer_from_json(stored: dict[str, Any]) -> Layer:
    settings = {name: _as_tuple(value) for name, value in stored.items() if name != "layer"}
    return LAYER_TYPES[stored["layer"]](**settings)


def _as_tuple(value: Any) -> Any:
    """JSON knows lists but no tuples."""
    return tuple(_as_tuple(part) for part in value) if isinstance(value, list) else value


def _is_exported(path: Path) -> bool:
    """Whether an ONNX file is a detector of ours; a damaged one is none."""
    try:
        return read_onnx_metadata(path).get("format") == EXPORT_FORMAT
    except ChromaboxError:
        return False


def _resolve_path(path: Path) -> Path:
    """The file itself, or the best checkpoint of a run's folder."""
    if path.is_dir():
        path = path / "best.safetensors"
    if not path.is_file():
        names = ", ".join(PRETRAINED)
        raise UsageError(
            f"{path}: there are no such weights; give a file, or one of the names that are fetched: {names}"
        )
    return path


def _load_pretrained(name: str, variant: Variant | None, progress: Progress | None) -> Detector:
    """From the cache; a damaged file there is made anew."""
    path = download_pretrained(name, progress)
    try:
        return _load_safetensors(path, variant)
    except UsageError:
        raise
    except ChromaboxError:
        path.unlink(missing_ok=True)
        return _load_safetensors(download_pretrained(name, progress), variant)


def _load_safetensors(path: Path, variant: Variant | None) -> Detector:
    state, description = load_checkpoint(path)
    return _from_metadata(path, description, variant, lambda net: net.load_state_dict(state["net"]))


def _from_metadata(
    path: Path, metadata: dict[str, Any], variant: Variant | None, load_weights: Callable[[DarknetModel], object]
) -> Detector:
    """The detector that a file of ours says it holds; ``fill`` puts the numbers into the net."""
    try:
        if metadata.get("net") != "detector":
            raise ValueError(f"it holds {metadata.get('net', 'something else')}")
        stored = variant_from_json(metadata["kind"])
        if variant is not None and variant != stored:
            raise UsageError(f"{path}: its weights are of kind {stored.name}, not {variant.name}; leave the kind out")
        net = DarknetModel.uninitialised(architecture_from_json(metadata["architecture"]), stored)
        load_weights(net)
        classes = tuple(str(name) for name in metadata["classes"])
        trained = Detector(net.eval(), classes, int(metadata["size"]), metadata)
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ChromaboxError) as error:
        reason = " ".join(str(error).split())  # PyTorch lists what does not fit in many lines.
        raise ChromaboxError(f"{path}: not a checkpoint of a detector ({reason}); give one of a detector") from error
    return _with_class_names(trained, trained.classes)


def _load_darknet(path: Path, architecture: Architecture | str | Path | None, variant: Variant) -> Detector:
    file = read_darknet_weights(path)
    built = _resolve_architecture(path, architecture, len(file.values), variant)
    net = _load_flat_weights(DarknetModel.uninitialised(built, variant), file.values, str(path))
    source = {"file": path.name, "seen": file.images_seen}
    return Detector(net, default_class_names(built.num_classes), built.size, {"name": built.name, "source": source})


def _load_onnx(path: Path, architecture: Architecture | str | Path | None, variant: Variant | None) -> Detector:
    """Our own, which say what they are, and others'."""
    metadata = read_onnx_metadata(path)
    given = read_onnx_convolutions(path)
    if metadata.get("format") == EXPORT_FORMAT:
        if architecture is not None:
            raise UsageError(f"{path}: says its architecture itself; leave the architecture out")
        try:
            description = json.loads(metadata["detector"])
        except (KeyError, ValueError) as error:
            raise ChromaboxError(f"{path}: its metadata is damaged ({error!r}); export the detector again") from error
        return _from_metadata(path, description, variant, lambda net: _fill_convolutions(net, given, path))
    variant = variant or DARKNET
    built = _resolve_architecture(
        path, architecture, sum(values.size for layer in given for values in layer.values()), variant
    )
    net = DarknetModel.uninitialised(built, variant)
    _fill_convolutions(net, given, path)
    return Detector(
        net, default_class_names(built.num_classes), built.size, {"name": built.name, "source": {"file": path.name}}
    )


def _fill_convolutions(model: DarknetModel, convolutions: Sequence[dict[str, np.ndarray]], path: Path) -> None:
    """Put an ONNX file's convolutions into a net."""
    # The count may agree by chance where the layers do not.
    shapes = [tuple(layer.convolution.weight.shape) for layer in _conv_layers(model)]
    for index, (layer, shape) in enumerate(zip(convolutions, shapes, strict=False)):
        if layer["kernel"].shape != shape:
            name = model.architecture.name
            raise ChromaboxError(f"{path}: convolution {index} is {layer['kernel'].shape}; {name} needs {shape}")
    _load_flat_weights(model, pack_layers(convolutions, model.variant.epsilon), str(path))


def _load_ultralytics(path: Path, variant: Variant | None) -> Detector:
    file = read_ultralytics(path, variant)
    numbers = pack_layers(file.layers, 0.0)
    net = _load_flat_weights(DarknetModel.uninitialised(file.architecture, file.variant), numbers, str(path))
    described = {"name": file.architecture.name, "source": {"file": path.name}}
    return Detector(net, file.classes, 640, described)


def _resolve_architecture(
    path: Path, architecture: Architecture | str | Path | None, num_weights: int, variant: Variant
) -> Architecture:
    """The net that was asked for, or described beside the weights, or known by the count of its numbers."""
    if isinstance(architecture, Architecture):
        return architecture
    if architecture is None:
        beside = path.with_suffix(".cfg")
        return (
            read_cfg(beside) if beside.is_file() else _architecture_from_size(path, num_weights, variant, ARCHITECTURES)
        )
    if str(architecture) in ARCHITECTURES:
        return _architecture_from_size(
            path, num_weights, variant, {str(architecture): ARCHITECTURES[str(architecture)]}
        )
    if Path(architecture).suffix != ".cfg":
        raise UsageError(f"architecture is {architecture}: give {', '.join(ARCHITECTURES)} or a .cfg file")
    return read_cfg(Path(architecture))


def _architecture_from_size(
    path: Path, num_weights: int, variant: Variant, known: dict[str, Callable[[int, Variant], Architecture]]
) -> Architecture:
    """The known net that has so many numbers, for whatever count of classes: every class adds the same."""
    needs = []
    for build in known.values():
        first = build(1, variant).num_weights
        classes, rest = divmod(num_weights - first, build(2, variant).num_weights - first)
        if rest == 0 and 0 <= classes < MAX_CLASSES:
            return build(classes + 1, variant)
        usual = build(80, variant)
        needs.append(f"{usual.name} with 80 classes needs {usual.num_weights:,}")
    raise ChromaboxError(
        f"{path}: its {num_weights:,} numbers are of no net known by count ({'; '.join(needs)}); name the .cfg it belongs to"
    )


def _load_flat_weights(model: DarknetModel, weights: Float32[np.ndarray, " numbers"], origin: str) -> DarknetModel:
    """The net with darknet's numbers in it, in evaluation mode; ChromaboxError if there are more or fewer."""
    needed = model.architecture.num_weights
    if len(weights) != needed:
        what = "cut short" if len(weights) < needed else "too long"
        raise ChromaboxError(
            f"{origin}: {what} or of another net: it holds {len(weights):,} numbers; {model.architecture.name} with "
            f"{model.architecture.num_classes} classes needs {needed:,}"
        )
    if not np.isfinite(weights).all():
        raise ChromaboxError(f"{origin}: holds numbers that are not finite; take another copy")
    at = 0
    with torch.no_grad():
        for tensor in _tensors_in_file_order(model):
            part = weights[at : at + tensor.numel()]
            tensor.copy_(torch.from_numpy(part.copy()).view_as(tensor))
            at += tensor.numel()
    return model.eval()


def _conv_layers(model: DarknetModel) -> list[ConvolutionLayer]:
    return [layer for layer in model.layers if isinstance(layer, ConvolutionLayer)]


def _tensors_in_file_order(model: DarknetModel) -> list[Tensor]:
    """The tensors of a net in the order of darknet's file."""
    tensors: list[Tensor | None] = []
    for layer in _conv_layers(model):
        norm: nn.BatchNorm2d | None = layer.norm
        tensors += [layer.convolution.bias] if norm is None else [norm.bias, norm.weight]
        tensors += [] if norm is None else [norm.running_mean, norm.running_var]
        tensors.append(layer.convolution.weight)
    return cast(list[Tensor], tensors)


def _with_class_names(detector: Detector, classes: Sequence[str]) -> Detector:
    """The same with other names of classes; UsageError if they are not as many, or not all different."""
    if len(classes) != detector.architecture.num_classes or len(set(classes)) != len(classes):
        raise UsageError(
            f"classes: {len(set(classes))} different names are given; the weights know {detector.architecture.num_classes}"
        )
    return Detector(detector.model, tuple(classes), detector.size, detector.metadata)
