"""Loading and saving of detectors: model, class names and metadata.

The formats are Darknet's ``.weights``, ONNX files of plain convolutions such as the ONNX copy of YOLOv3-tiny,
Ultralytics' ``.pt``, and Chromabox's ``.safetensors`` and ``.onnx``. Only Chromabox's files contain the architecture,
variant and class names. For Darknet's files and ONNX files of plain convolutions, the architecture is read from a
``.cfg`` file or recognised by the number of values, and the class names are read from a ``.names`` file with the same
name next to the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from chromabox.detect.data.dataset import default_class_names, read_class_names
from chromabox.detect.models.architecture import (
    DARKNET,
    LAYER_TYPES,
    MAX_SIZE,
    Architecture,
    Convolution,
    Variant,
    variant_from_json,
    yolov3,
    yolov3_tiny,
)
from chromabox.detect.models.darknet import ConvolutionLayer, DarknetModel, decode_all
from chromabox.detect.weights.darknet_cfg import read_cfg
from chromabox.detect.weights.onnx_model import (
    EXPORT_FORMAT,
    PRETRAINED,
    BoxArray,
    ImageArray,
    ScoreArray,
    read_category_ids,
    resolve_weights,
)
from chromabox.detect.weights.ultralytics import read_ultralytics
from chromabox.engine.checkpoint import check_finite, load_checkpoint, read_metadata, save_checkpoint
from chromabox.engine.darknet_weights import (
    DarknetWeights,
    load_yolov3_tiny,
    pack_layers,
    read_darknet_weights,
    read_onnx_convolutions,
    read_onnx_metadata,
    write_darknet_weights,
)
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import parse_json
from chromabox.io.http import Progress

#: Architectures by name, as functions of the number of classes and the variant of the weights.
ARCHITECTURES: dict[str, Callable[[int, Variant], Architecture]] = {
    "yolov3": lambda num_classes, variant: yolov3(num_classes),
    "yolov3-tiny": lambda num_classes, variant: yolov3_tiny(num_classes, mask=variant.tiny_mask),
}
#: Maximum number of classes that is inferred from the number of values in a file.
MAX_CLASSES = 1000


@dataclass(frozen=True)
class Detector:
    """Detector run by PyTorch: model in evaluation mode, class names, default input size in pixels, and metadata."""

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

    @property
    def category_ids(self) -> tuple[int, ...]:
        """COCO category ids of the classes, or () if the dataset of the detector had none."""
        return read_category_ids(self.metadata, len(self.classes))

    def check_size(self, size: int) -> None:
        """Raise UsageError if the model cannot process square images of this side length in pixels."""
        multiple = self.architecture.max_stride
        if not multiple <= size <= MAX_SIZE or size % multiple:
            expected = f"expected a multiple of {multiple} for {self.architecture.name}, at most {MAX_SIZE}"
            raise UsageError(f"--size is {size}: {expected}")

    @torch.inference_mode()
    def predict(self, images: ImageArray) -> tuple[BoxArray, ScoreArray]:
        """Return boxes and scores before non-maximum suppression.

        Boxes are left, top, right and bottom in pixels of the input. Scores are in [0, 1].
        """
        outputs = self.model(torch.from_numpy(images).to(next(self.model.parameters()).device))
        boxes, scores = decode_all(outputs, self.architecture, self.variant, images.shape[-1])
        return boxes.cpu().numpy(), scores.cpu().numpy()

    def fused(self) -> "Detector":
        """Return a faster copy, in which each BatchNorm is fused into its convolution."""
        return replace(self, model=self.model.fuse())


def is_detector(weights: str | Path) -> bool:
    """Return whether a name, file or run folder is a detector. Large files are not read completely."""
    path = Path(weights)
    if path.is_dir():
        path = path / "best.safetensors"
    if path.suffix == ".safetensors":
        return (read_metadata(path) or {}).get("net") == "detector"
    if path.suffix == ".onnx" and path.is_file():
        try:
            return read_onnx_metadata(path).get("format") == EXPORT_FORMAT
        except ChromaboxError:
            return False  # The file is damaged.
    return path.suffix in (".weights", ".pt") or (str(weights) in PRETRAINED and not path.exists())


def load_detector(
    weights: str | Path = "yolov3-tiny",
    *,
    architecture: Architecture | str | Path | None = None,
    variant: Variant | None = None,
    classes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Detector:
    """Load a detector by name, or from a file or run folder. The suffix of a file determines its format.

    Args:
        weights: ``yolov3-tiny``, or a .safetensors, .weights, .onnx or .pt file, or a run folder.
        architecture: for .weights, and for .onnx files not exported by Chromabox: an :class:`Architecture`, ``yolov3``,
            ``yolov3-tiny`` or a .cfg file. None: the .cfg file with the same name next to the weights if there is one,
            otherwise the known architecture with the same number of values.
        variant: variant of the weights. None: the variant stored in the file, or Darknet's for .weights and for
            .onnx files not exported by Chromabox, which do not contain a variant.
        classes: class names. None: the names in the file, or in the .names file with the same name next to it; if there
            are none, COCO's names for 80 classes, otherwise ``class 0``, ``class 1``, and so on.
        progress: callback for the progress of a download.

    Raise ChromaboxError if a file is damaged, belongs to another architecture or would execute code. Raise UsageError
    if an option does not fit the file.
    """
    if str(weights) in PRETRAINED and not Path(weights).exists():
        path = download_pretrained(str(weights), progress)
        try:
            detector = _load_file(path, None, variant, classes)
        except UsageError:
            raise
        except ChromaboxError:  # The cached file is damaged.
            path.unlink(missing_ok=True)
            detector = _load_file(download_pretrained(str(weights), progress), None, variant, classes)
    else:
        detector = _load_file(resolve_weights(weights), architecture, variant, classes)
    if classes is None:
        return detector
    _check_classes(classes, detector.architecture)
    return replace(detector, classes=tuple(classes))


def save_detector(path: Path, detector: Detector) -> None:
    """Write a detector to a .safetensors file with all metadata, and a copy of the metadata to a .json file next to it.

    Raise UsageError if the path has another suffix, and ChromaboxError if a file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: unsupported suffix; expected .safetensors")
    save_checkpoint(path, {"net": detector.model.state_dict()}, detector_metadata(detector))


def detector_metadata(detector: Detector) -> dict[str, Any]:
    """Return the JSON-serialisable metadata that :func:`load_detector` requires in a checkpoint."""
    return {
        **detector.metadata,
        "net": "detector",
        "architecture": architecture_as_json(detector.architecture),
        "kind": detector.variant.as_json(),
        "classes": list(detector.classes),
        "size": detector.size,
    }


def write_darknet(path: Path, model: DarknetModel, seen: int = 0) -> None:
    """Write a Darknet weight file. ``seen`` is the number of images seen in training.

    Weights that were read from a Darknet file are written unchanged, bit for bit.

    Raise UsageError if the variant is not Darknet's, because Darknet would load the weights without an error but
    interpret them differently.
    """
    if model.variant.name != DARKNET.name:
        raise UsageError(f"{path}: Darknet does not support variant {model.variant.name}; use a .safetensors file")
    values = [tensor.detach().float().cpu().numpy().ravel() for tensor in tensors_in_file_order(model)]
    write_darknet_weights(path, DarknetWeights(np.concatenate(values), seen))


def download_pretrained(name: str, progress: Progress | None = None) -> Path:
    """Return the path of pretrained weights in the cache. Download, verify and convert them if they are missing.

    Raise UsageError if the name is unknown, and ChromaboxError if no source provides the weights or the cache cannot
    be written.
    """
    if name not in PRETRAINED:
        raise UsageError(f"{name}: unknown pretrained weights; expected {', '.join(PRETRAINED)}")
    path = resolve_weights(name)
    if path.is_file():
        return path
    file, origin = load_yolov3_tiny(progress)
    model = _load_flat_weights(yolov3_tiny(), DARKNET, file.values, origin.name)
    source = {"file": origin.name, "sha256": origin.sha256, "seen": file.images_seen}
    detector = Detector(model, default_class_names(80), model.architecture.size, {"name": name, "source": source})
    try:
        save_detector(path, detector)
    except ChromaboxError as error:
        raise ChromaboxError(f"{error}; set CHROMABOX_CACHE to another folder") from error
    return path


def architecture_as_json(architecture: Architecture) -> dict[str, Any]:
    """Return an architecture as a JSON-serialisable dictionary."""
    layers = [{"layer": type(layer).__name__, **asdict(layer)} for layer in architecture.layers]
    return {"name": architecture.name, "channels": architecture.channels, "size": architecture.size, "layers": layers}


def architecture_from_json(stored: dict[str, Any]) -> Architecture:
    """Return the architecture stored by :func:`architecture_as_json`.

    Raise KeyError, TypeError, ValueError or ChromaboxError if the values do not describe an architecture.
    """

    def as_tuple(value: Any) -> Any:
        """Convert lists to tuples recursively, since JSON has no tuples."""
        return tuple(map(as_tuple, value)) if isinstance(value, list) else value

    layers = tuple(
        LAYER_TYPES[layer["layer"]](**{name: as_tuple(value) for name, value in layer.items() if name != "layer"})
        for layer in stored["layers"]
    )
    return Architecture(stored["name"], layers, stored["channels"], stored["size"])


def _load_file(
    path: Path,
    architecture: Architecture | str | Path | None,
    variant: Variant | None,
    classes: Sequence[str] | None,
) -> Detector:
    """Load a detector from a file; see :func:`load_detector`. If ``classes`` are given, no .names file is read."""
    suffix = path.suffix.lower()
    metadata = read_onnx_metadata(path) if suffix == ".onnx" else {}
    is_exported = metadata.get("format") == EXPORT_FORMAT
    if architecture is not None and (is_exported or suffix not in (".weights", ".onnx")):
        raise UsageError(f"{path}: the file defines the architecture; omit --architecture")
    if is_exported:
        try:
            stored = parse_json(metadata["detector"])
        except (KeyError, ValueError) as error:
            raise ChromaboxError(f"{path}: the metadata is damaged ({error!r}); export the detector again") from error
        return _from_metadata(path, stored, variant, lambda known, kind: _load_onnx(path, lambda _: known, kind))
    if suffix == ".safetensors":
        state, stored = load_checkpoint(path)
        return _from_metadata(path, stored, variant, lambda known, kind: _load_state(state["net"], known, kind))
    source: dict[str, str | int] = {"file": path.name}
    if suffix in (".pt", ".pth"):
        file = read_ultralytics(path, variant)
        model = _load_layers(file.architecture, file.variant, file.layers, 0.0, path)
        return Detector(model, file.classes, 640, {"name": file.architecture.name, "source": source})

    variant = variant or DARKNET

    def resolve(num_weights: int) -> Architecture:
        return _resolve_architecture(path, architecture, num_weights, variant)

    if suffix == ".onnx":
        model = _load_onnx(path, resolve, variant)
    elif suffix == ".weights":
        weights = read_darknet_weights(path)
        model = _load_flat_weights(resolve(len(weights.values)), variant, weights.values, str(path))
        source["seen"] = weights.images_seen
    else:
        found = f"unsupported suffix {suffix or '(none)'}"
        raise UsageError(f"{path}: {found}; expected .safetensors, .weights, .onnx or .pt")
    num_classes, names_path = model.architecture.num_classes, path.with_suffix(".names")
    names = default_class_names(num_classes)
    if classes is None and names_path.is_file():
        names = _read_names(names_path, num_classes)
        source["names"] = names_path.name
    return Detector(model, names, model.architecture.size, {"name": model.architecture.name, "source": source})


def _read_names(path: Path, num_classes: int) -> tuple[str, ...]:
    """Return the class names in a Darknet .names file, one per line. Raise ChromaboxError unless they fit the model."""
    names = tuple(read_class_names(path))
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise ChromaboxError(
            f"{path}: contains {len(names)} class names, {len(set(names))} of them different; expected {num_classes} "
            "different names, one per line, as in the weights; correct or rename the file, or set --classes"
        )
    return names


def _from_metadata(
    path: Path,
    metadata: dict[str, Any],
    variant: Variant | None,
    load_model: Callable[[Architecture, Variant], DarknetModel],
) -> Detector:
    """Return the detector described by the metadata of a file. ``load_model`` returns the model with its weights."""
    try:
        if metadata.get("net") != "detector":
            raise ValueError(f"it contains {metadata.get('net', 'another kind of model')}")
        stored = variant_from_json(metadata["kind"])
        if variant is not None and variant != stored:
            raise UsageError(f"{path}: the variant of the weights is {stored.name}, not {variant.name}; omit --variant")
        model = load_model(architecture_from_json(metadata["architecture"]), stored)
        classes, size = tuple(str(name) for name in metadata["classes"]), int(metadata["size"])
        num_classes = model.architecture.num_classes
        read_category_ids(metadata, num_classes)
        if len(classes) != num_classes or len(set(classes)) != num_classes:
            raise ValueError(f"repeated or {len(classes)} class names; expected {num_classes} different names")
        if not 1 <= size <= MAX_SIZE or size % model.architecture.max_stride:
            raise ValueError(f"size is {size}; expected a multiple of {model.architecture.max_stride} up to {MAX_SIZE}")
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, ChromaboxError) as error:
        reason = " ".join(str(error).split())  # PyTorch reports mismatches on many lines.
        raise ChromaboxError(f"{path}: not a checkpoint of a detector ({reason}); use another file") from error
    return Detector(model.eval(), classes, size, metadata)


def _check_classes(classes: Sequence[str], architecture: Architecture) -> None:
    """Raise UsageError if the number of class names is wrong or names are repeated."""
    num_names, expected = len(set(classes)), architecture.num_classes
    if num_names != expected or len(classes) != expected:
        raise UsageError(
            f"classes: repeated names or wrong number of names (different names: {num_names}); expected {expected}"
        )


def _load_state(state: dict[str, Tensor], architecture: Architecture, variant: Variant) -> DarknetModel:
    """Return the model with the tensors of a checkpoint.

    Raise an error of PyTorch if the shapes differ, and ValueError if a value is not finite.
    """
    with torch.device("meta"):  # Compare the shapes before memory is allocated for the weights.
        DarknetModel(architecture, variant).load_state_dict(state, assign=True)
    model = DarknetModel.uninitialised(architecture, variant)
    model.load_state_dict(state)
    check_finite(model.state_dict())
    return model


def _load_onnx(path: Path, resolve: Callable[[int], Architecture], variant: Variant) -> DarknetModel:
    """Return the model with the convolutions of an ONNX file.

    ``resolve`` returns the architecture for their number of weights.
    """
    convolutions = read_onnx_convolutions(path)
    architecture = resolve(sum(values.size for layer in convolutions for values in layer.values()))
    return _load_layers(architecture, variant, convolutions, variant.epsilon, path)


def _load_layers(
    architecture: Architecture,
    variant: Variant,
    convolutions: Sequence[dict[str, np.ndarray]],
    epsilon: float,
    path: Path,
) -> DarknetModel:
    """Return the model with these convolutions. Raise ChromaboxError if their shapes differ from the architecture.

    ``epsilon`` is the value that has already been added to the variances of BatchNorm.
    """
    layers = [(index, layer) for index, layer in enumerate(architecture.layers) if isinstance(layer, Convolution)]
    # The total number of weights can be equal even if the layers differ.
    for number, (convolution, (index, layer)) in enumerate(zip(convolutions, layers, strict=False)):
        inputs = architecture.input_shape(index).channels // layer.groups
        for name, values in convolution.items():
            shape = (layer.filters, inputs, layer.size, layer.size) if name == "kernel" else (layer.filters,)
            if values.shape != shape:
                found = f"the shape of {name} in convolution {number} is {values.shape}"
                raise ChromaboxError(f"{path}: {found}; expected {shape} for {architecture.name}")
    return _load_flat_weights(architecture, variant, pack_layers(convolutions, epsilon), str(path))


def _resolve_architecture(
    path: Path, architecture: Architecture | str | Path | None, num_weights: int, variant: Variant
) -> Architecture:
    """Return the architecture of the weights in a file.

    ``architecture`` can be an architecture, a name or a .cfg file. None: the .cfg file next to the weights if there is
    one, otherwise the known architecture with ``num_weights`` weights.
    """
    if isinstance(architecture, Architecture):
        return architecture
    if architecture is None and path.with_suffix(".cfg").is_file():
        architecture = path.with_suffix(".cfg")
    if architecture is not None and str(architecture) not in ARCHITECTURES:
        if Path(architecture).suffix != ".cfg":
            raise UsageError(f"--architecture is {architecture}: expected {', '.join(ARCHITECTURES)} or a .cfg file")
        return read_cfg(Path(architecture))
    expected = []
    for name in ARCHITECTURES if architecture is None else [str(architecture)]:
        build = ARCHITECTURES[name]
        # The number of weights is linear in the number of classes.
        first = build(1, variant).num_weights
        more_classes, remainder = divmod(num_weights - first, build(2, variant).num_weights - first)
        if remainder == 0 and 0 <= more_classes < MAX_CLASSES:
            return build(more_classes + 1, variant)
        expected.append(f"{name} with 80 classes has {build(80, variant).num_weights:,}")
    problem = f"{num_weights:,} values match no known architecture ({'; '.join(expected)})"
    raise ChromaboxError(f"{path}: {problem}; set --architecture to the .cfg file of the weights")


def _load_flat_weights(
    architecture: Architecture, variant: Variant, weights: Float32[np.ndarray, " weights"], origin: str
) -> DarknetModel:
    """Return the model with these weights, which are in the order of a Darknet file, in evaluation mode.

    The number of weights is checked before memory is allocated for the model.
    """
    expected = architecture.num_weights
    if len(weights) != expected:
        problem = "truncated" if len(weights) < expected else "too long"
        raise ChromaboxError(
            f"{origin}: {problem} or for another architecture ({len(weights):,} values); expected {expected:,} for "
            f"{architecture.name} (classes: {architecture.num_classes})"
        )
    if not np.isfinite(weights).all():
        raise ChromaboxError(f"{origin}: contains values that are not finite; use another copy")
    model = DarknetModel.uninitialised(architecture, variant)
    tensors = tensors_in_file_order(model)
    parts = torch.from_numpy(weights.copy()).split([tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, values in zip(tensors, parts, strict=True):
            tensor.copy_(values.view_as(tensor))
    return model.eval()


def tensors_in_file_order(model: DarknetModel) -> list[Tensor]:
    """Return the tensors of a model in the order of Darknet's weight files."""
    tensors: list[Tensor | None] = []
    for layer in model.layers:
        if isinstance(layer, ConvolutionLayer):
            kernel, norm = layer.convolution, layer.norm
            tensors += [kernel.bias] if norm is None else [norm.bias, norm.weight, norm.running_mean, norm.running_var]
            tensors.append(kernel.weight)
    return cast(list[Tensor], tensors)
