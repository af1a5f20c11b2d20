"""Safe reading of the ``.pt`` files of Ultralytics' YOLOv3, versions 9.0 and later.

The files contain pickled modules in Darknet's order, except that the convolutions of the heads come last, from fine to
coarse. Anchors are in grid cells. The variant of the weights is inferred from the activation modules. Files with a
plain dictionary of tensors contain no such modules; for these files, the variant must be given.

No code in a file is executed. A ``.pt`` file is a zip archive with one pickle and the raw data of its tensors. A pickle
is a program that names functions and calls them. PyTorch's restricted unpickler calls only the functions on its own
list, which create tensors and containers. In addition, the names in ``OPAQUE_NAMES`` are allowed. Classes and functions
with these names are not imported; their objects are read as :class:`OpaqueObject`, which contains only attributes. Any
other name raises an error before anything is called.
"""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chromabox.detect.data.dataset import default_class_names
from chromabox.detect.models.architecture import (
    ULTRALYTICS_9_0,
    ULTRALYTICS_9_6,
    Architecture,
    Convolution,
    Variant,
    yolov3,
    yolov3_tiny,
)
from chromabox.errors import ChromaboxError, UsageError

#: Prefixes of the names of classes and functions that are read as :class:`OpaqueObject`.
OPAQUE_NAMES = (
    *("models.", "ultralytics.nn.", "torch.nn.modules.", "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray."),
    *("numpy._core.multiarray.", "datetime.datetime", "pathlib.", "argparse.Namespace"),
)
#: Maximum uncompressed size of an archive member in bytes, about 100 times the largest YOLOv3 tensor in float64.
MAX_MEMBER_BYTES = 1 << 32


class OpaqueObject:
    """Object of a class that is not imported: the class name, and the attributes stored in the file."""

    class_name = ""
    attributes: Mapping[str, Any] = MappingProxyType({})
    """The ``__dict__`` of the pickled object; empty if the file does not contain one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore the constructor arguments, which are read from the file."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    @property
    def children(self) -> dict[str, Any]:
        """Parameters, buffers and submodules of a module, in that order."""
        parts = [self.attributes.get(key) for key in ("_parameters", "_buffers", "_modules")]
        children = [item for part in parts if isinstance(part, dict) for item in part.items()]
        return {name: child for name, child in children if child is not None}


def load_untrusted(path: Path) -> Any:
    """Return the content of a ``.pt`` file: tensors, containers, numbers, strings and ``OpaqueObject`` instances.

    Raise ChromaboxError if the file cannot be read, is not a PyTorch file, or would execute code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                found = f"it contains {len(names)} files named data.pkl, not 1"
                raise ChromaboxError(f"{path}: not a PyTorch file ({found}); expected a file written by torch.save")
            for member in archive.infolist():
                if member.file_size > MAX_MEMBER_BYTES:
                    raise ChromaboxError(
                        f"{path}: {member.filename} is too large; expected at most {MAX_MEMBER_BYTES} bytes"
                    )
            protocol = archive.read(names[0])[1:2]
            if protocol > b"\x02":
                expected = "expected 2, the default of torch.save"
                raise ChromaboxError(f"{path}: unsupported pickle protocol {protocol[0]}; {expected}")
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        for name in names:
            if not name.startswith(OPAQUE_NAMES):
                expected = "expected tensors, containers and modules"
                raise ChromaboxError(f"{path}: unsafe file (loading it would execute {name}); {expected}")
        opaque: list[Any] = [(type(name, (OpaqueObject,), {"class_name": name}), name) for name in names]
        with torch.serialization.safe_globals(opaque):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ChromaboxError:
        raise
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror or error}); expected a .pt file") from error
    except zipfile.BadZipFile as error:
        problem = f"not a .pt file of PyTorch 1.6 or later, or truncated ({error})"
        raise ChromaboxError(f"{path}: {problem}; save it again with torch.save") from error
    except Exception as error:  # A broken pickle can raise any exception.
        # PyTorch's message ends with advice that would be dangerous to follow for a file of unknown origin.
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split("\n\n")[0].split())
        problem = f"damaged PyTorch file ({reason or type(error).__name__})"
        raise ChromaboxError(f"{path}: {problem}; use another copy") from error


#: State-dict keys of a convolution with BatchNorm, and Darknet's names of these tensors.
STATE_KEYS = {
    "bn.bias": "bias",
    "bn.weight": "weight",
    "bn.running_mean": "mean",
    "bn.running_var": "variance",
    "conv.weight": "kernel",
}

ACTIVATION_VARIANTS = {
    "torch.nn.modules.activation.SiLU": ULTRALYTICS_9_6,
    "torch.nn.modules.activation.LeakyReLU": ULTRALYTICS_9_0,
}

#: Convolutions. Each is a dictionary of arrays by tensor name.
Layers = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class UltralyticsFile:
    """Contents of a ``.pt`` file: architecture, variant, class names, and convolutions in Darknet's order."""

    architecture: Architecture
    variant: Variant
    classes: tuple[str, ...]
    layers: Layers


def read_ultralytics(path: Path, variant: Variant | None = None) -> UltralyticsFile:
    """Read a ``.pt`` file of YOLOv3 or YOLOv3-tiny. ``variant`` is required only if the file contains no modules.

    Raise ChromaboxError if the file is not a YOLOv3 detector or would execute code. Raise UsageError if the variant is
    missing or differs from the variant of the modules.
    """
    model = load_untrusted(path)
    if isinstance(model, Mapping):
        # Prefer the moving average of the weights to the trained weights.
        entries = (model.get(name) for name in ("ema", "model", "state_dict"))
        model = next((entry for entry in entries if isinstance(entry, OpaqueObject | Mapping)), model)
    try:
        blocks, heads, anchors = _collect_layers(dict(_iter_tensors(model)))
        inferred = _infer_variant(model)
        if inferred is not None and variant is not None and inferred != variant:
            problem = f"the variant of the modules is {inferred.name}, not {variant.name}"
            raise UsageError(f"{path}: {problem}; omit --variant")
        variant = inferred or variant
        if variant is None:
            options = "--variant ultralytics-9.0 (leaky ReLU) or --variant ultralytics-9.6 (SiLU)"
            raise UsageError(f"{path}: the file does not contain the variant of the weights; use {options}")
        architecture = _build_architecture(blocks, heads, anchors, variant)
        names = model.attributes.get("names") if isinstance(model, OpaqueObject) else None
        if isinstance(names, dict):
            names = [names[index] for index in sorted(names)]
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            names = default_class_names(architecture.num_classes)
        if len(names) != architecture.num_classes:
            raise ValueError(f"the number of class names is {len(names)}; expected {architecture.num_classes}")
        # Darknet's order: the heads are between the other convolutions and are ordered from coarse to fine.
        remaining_blocks, remaining_heads = iter(blocks), iter(reversed(heads))
        convolutions = [layer for layer in architecture.layers if isinstance(layer, Convolution)]
        layers = [next(remaining_blocks if layer.batch_normalise else remaining_heads) for layer in convolutions]
        return UltralyticsFile(architecture, variant, tuple(names), layers)
    except ValueError as error:
        raise ChromaboxError(f"{path}: {error}") from error


def _iter_tensors(model: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the dotted name and the value of each tensor, in the order of the modules."""
    children = model.children if isinstance(model, OpaqueObject) else model if isinstance(model, Mapping) else {}
    for key, child in children.items():
        full_name = f"{name}.{key}" if name else str(key)
        if isinstance(child, Tensor):
            yield full_name, child
        else:
            yield from _iter_tensors(child, full_name)


def _collect_layers(state: dict[str, Tensor]) -> tuple[Layers, Layers, Tensor | None]:
    """Return the convolutions with BatchNorm, the convolutions of the heads, and the anchors in grid cells, if any.

    The convolutions are in file order. Raise ValueError if a tensor does not belong to YOLOv3 or is missing.
    """
    blocks: dict[str, dict[str, np.ndarray]] = {}
    heads: dict[str, dict[str, np.ndarray]] = {}
    anchors = None
    for name, tensor in state.items():
        try:
            array = tensor.detach().float().numpy()
        except (RuntimeError, TypeError) as error:  # A sparse or quantised tensor, or one too large for memory.
            raise ValueError(f"{name} is not a plain tensor ({str(error).splitlines()[0]})") from error
        parts = name.split(".")
        module, key = ".".join(parts[:-2]), ".".join(parts[-2:])
        if key in STATE_KEYS:
            blocks.setdefault(module, {})[STATE_KEYS[key]] = array
        elif parts[-3:-2] == ["m"] and parts[-1] in ("weight", "bias"):
            heads.setdefault(".".join(parts[:-1]), {})["kernel" if parts[-1] == "weight" else "bias"] = array
        elif parts[-1] == "anchors":
            anchors = tensor.detach().float()
        elif parts[-1] not in ("num_batches_tracked", "anchor_grid"):
            raise ValueError(
                f"the file contains the tensor {name}, which YOLOv3 does not have; expected a YOLOv3 .pt file"
            )
    for name, block in (blocks | heads).items():
        missing = {"kernel", "bias", *(STATE_KEYS.values() if name in blocks else ())} - block.keys()
        if missing:
            raise ValueError(f"{name} has no {', '.join(sorted(missing))}; use another copy of the file")
    return list(blocks.values()), list(heads.values()), anchors


def _infer_variant(module: Any) -> Variant | None:
    """Return the variant that uses the first known activation in a module, or None if no activation is known."""
    if not isinstance(module, OpaqueObject):
        return None
    if module.class_name in ACTIVATION_VARIANTS:
        return ACTIVATION_VARIANTS[module.class_name]
    return next(filter(None, map(_infer_variant, module.children.values())), None)


def _build_architecture(blocks: Layers, heads: Layers, anchors: Tensor | None, variant: Variant) -> Architecture:
    """Return YOLOv3 or YOLOv3-tiny, depending on the number of convolutions.

    The architecture has the number of classes and the anchors of the file.
    """
    known = {(72, 3): ((8, 16, 32), yolov3), (11, 2): ((16, 32), yolov3_tiny)}
    if (len(blocks), len(heads)) not in known:
        found = f"the numbers of convolutions and heads in the file are {len(blocks)} and {len(heads)}"
        raise ValueError(f"{found}; expected 72 and 3 (YOLOv3) or 11 and 2 (YOLOv3-tiny)")
    strides, build = known[len(blocks), len(heads)]
    filters = len(heads[0]["bias"])
    if filters % 3 or filters < 18:
        raise ValueError(f"the number of outputs of a head is {filters}; expected 3 × (5 + number of classes)")
    options: dict[str, Any] = {}
    if anchors is not None:
        if anchors.shape != (len(heads), 3, 2):
            raise ValueError(f"the shape of the anchors is {tuple(anchors.shape)}; expected ({len(heads)}, 3, 2)")
        pixels = anchors * anchors.new_tensor(strides)[:, None, None]
        options["anchors"] = tuple((width, height) for width, height in pixels.double().flatten(0, 1).tolist())
    if build is yolov3_tiny:
        options["mask"] = variant.tiny_mask
    return build(filters // 3 - 5, **options)
