"""Safe reading of the ``.pt`` files of Ultralytics' YOLOv3, versions 9.0 and later.

The files contain pickled modules. Their order is Darknet's with two exceptions: the convolutions of the heads come
last, from fine to coarse, and anchors are in units of cells. The variant of the weights is inferred from the activation
modules. A plain dictionary of tensors does not contain them; its variant must be given.

No code in a file is executed. A ``.pt`` file is a zip archive of one pickle and the raw data of its tensors. A pickle
is a program that names functions and calls them. Here, each name is looked up in short tables of allowed names. Modules
become :class:`OpaqueObject`, which contains only their attributes. Any other name raises an error before anything is
called.
"""

import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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

#: Dtypes of storages by the names in PyTorch's pickles.
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGE_DTYPES.values()}

#: Packages whose classes are allowed; their objects are read as :class:`OpaqueObject`.
OPAQUE_PACKAGES = ("models.", "ultralytics.nn.", "torch.nn.modules.")
OPAQUE_NAMES = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("torch", "device"),
    ("datetime", "datetime"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("argparse", "Namespace"),
}

#: Maximum uncompressed size of a member in bytes; the largest tensor of YOLOv3 in float64 is a hundredth of it.
MAX_MEMBER_BYTES = 1 << 32


class OpaqueObject:
    """Object of a class that is not imported: the class name, and the attributes stored in the file."""

    class_name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = (*args, *kwargs.items())

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    @property
    def attributes(self) -> dict[str, Any]:
        """The ``__dict__`` of the pickled object; empty if the file does not contain it."""
        state = self.__dict__.get("state")
        return state if isinstance(state, dict) else {}

    @property
    def children(self) -> dict[str, Any]:
        """Parameters, buffers and submodules of a module, in that order."""
        children: dict[str, Any] = {}
        for key in ("_parameters", "_buffers", "_modules"):
            values = self.attributes.get(key)
            children |= values if isinstance(values, dict) else {}
        return {name: child for name, child in children.items() if child is not None}


def load_untrusted(path: Path) -> Any:
    """Read a ``.pt`` file as tensors, containers, numbers, strings and :class:`OpaqueObject` objects.

    Raise ChromaboxError if the file cannot be read, is not a PyTorch file, or would execute code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise ChromaboxError(
                    f"{path}: not a PyTorch file ({len(names)} data.pkl, expected 1); save it with torch.save"
                )
            return _SafeUnpickler(archive, path, names[0]).load()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror or error}); expected a .pt file") from error
    except zipfile.BadZipFile as error:
        raise ChromaboxError(
            f"{path}: not a .pt file of PyTorch 1.6 or later, or truncated ({error}); save it again with torch.save"
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ChromaboxError(f"{path}: corrupt PyTorch file ({' '.join(str(error).split())})") from error
    except (AttributeError, RuntimeError, MemoryError, zlib.error, OverflowError) as error:
        raise ChromaboxError(f"{path}: corrupt PyTorch file ({' '.join(str(error).split())})") from error


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        super().__init__(io.BytesIO(_read_member(archive, name)), encoding="utf-8")
        self.archive, self.path, self.root = archive, path, name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of an allowed name. Raise ChromaboxError for any other name."""
        if (module, name) in ALLOWED_CALLABLES:
            return ALLOWED_CALLABLES[module, name]
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in OPAQUE_NAMES or module.startswith(OPAQUE_PACKAGES):
            return type(name, (OpaqueObject,), {"class_name": f"{module}.{name}"})
        raise ChromaboxError(
            f"{self.path}: unsafe file, it would execute {module}.{name}; expected tensors, containers and modules"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the values of a storage as a flat tensor."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown storage type {kind!r}")
        if key not in self.storages:
            content = bytearray(_read_member(self.archive, f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) < count:
            raise ValueError(f"storage {key} has {len(self.storages[key])} values, expected {count}")
        return self.storages[key]


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name} is larger than {MAX_MEMBER_BYTES} bytes")
    return archive.read(name)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a tensor as a copy of its part of the storage; PyTorch rejects sizes beyond the storage."""
    if not isinstance(storage, Tensor):
        raise TypeError("tensor without a storage")
    return storage.as_strided(size, stride, offset).clone()


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Return bytes, which old pickle protocols store as Latin-1 text."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return text.encode("latin1")


ALLOWED_CALLABLES: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _encode_latin1,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}

#: Keys of the state of a convolution, with Darknet's names.
STATE_KEYS = {
    "bn.bias": "bias",
    "bn.weight": "weight",
    "bn.running_mean": "mean",
    "bn.running_var": "variance",
    "conv.weight": "kernel",
}


@dataclass(frozen=True)
class UltralyticsFile:
    """Architecture, variant, class names, and the convolutions in Darknet's order."""

    architecture: Architecture
    variant: Variant
    classes: tuple[str, ...]
    layers: list[dict[str, np.ndarray]]


def read_ultralytics(path: Path, variant: Variant | None = None) -> UltralyticsFile:
    """Read a ``.pt`` file of YOLOv3 or YOLOv3-tiny. ``variant`` is required only if the file does not contain it.

    Raise ChromaboxError if the file is not a YOLOv3 detector or would execute code, and UsageError if the variant is
    missing or differs from that of the file.
    """
    content = load_untrusted(path)
    model = _find_model(content)
    state = dict(_iter_tensors(model))
    blocks, heads, anchors = _collect_layers(path, state)
    inferred = _infer_variant(model)
    if inferred is None and variant is None:
        raise UsageError(
            f"{path}: unknown variant; use --variant ultralytics-9.0 (leaky ReLU) or --variant ultralytics-9.6 (SiLU)"
        )
    if inferred is not None and variant is not None and inferred != variant:
        raise UsageError(f"{path}: the variant of the modules is {inferred.name}, not {variant.name}; omit --variant")
    resolved = inferred or variant or ULTRALYTICS_9_0
    architecture = _build_architecture(path, blocks, heads, anchors, resolved)
    layers = _darknet_order(path, architecture, blocks, heads)
    return UltralyticsFile(architecture, resolved, _class_names(path, model, architecture), layers)


def _find_model(content: Any) -> Any:
    """Return the EMA weights if present, otherwise the trained weights, otherwise the content itself."""
    if isinstance(content, Mapping):
        for name in ("ema", "model", "state_dict"):
            if isinstance(content.get(name), OpaqueObject | Mapping):
                return content[name]
    return content


def _iter_tensors(model: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors with their dotted names, in the order of the modules."""
    children = model.children if isinstance(model, OpaqueObject) else model if isinstance(model, Mapping) else {}
    for key, child in children.items():
        full_name = f"{name}.{key}" if name else str(key)
        if isinstance(child, Tensor):
            yield full_name, child
        else:
            yield from _iter_tensors(child, full_name)


def _collect_layers(
    path: Path, state: dict[str, Tensor]
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], Tensor | None]:
    """Return the convolutions with BatchNorm and those of heads, in file order, and the anchors in cells if present.

    Raise ChromaboxError if a tensor is unexpected or missing.
    """
    blocks: dict[str, dict[str, np.ndarray]] = {}
    heads: dict[str, dict[str, np.ndarray]] = {}
    anchors = None
    for name, tensor in state.items():
        values = tensor.float().numpy()
        module, key = ".".join(name.split(".")[:-2]), ".".join(name.split(".")[-2:])
        if key in STATE_KEYS:
            blocks.setdefault(module, {})[STATE_KEYS[key]] = values
        elif name.split(".")[-3:-2] == ["m"] and name.split(".")[-1] in ("weight", "bias"):
            head = heads.setdefault(".".join(name.split(".")[:-1]), {})
            head["kernel" if name.endswith("weight") else "bias"] = values
        elif name.split(".")[-1] == "anchors":
            anchors = tensor.float()
        elif name.split(".")[-1] not in ("num_batches_tracked", "anchor_grid"):
            raise ChromaboxError(f"{path}: contains {name}, which YOLOv3 does not have; expected a YOLOv3 .pt file")
    for name, block in (blocks | heads).items():
        missing = {"kernel", "bias", *(STATE_KEYS.values() if name in blocks else ())} - block.keys()
        if missing:
            raise ChromaboxError(f"{path}: {name} has no {', '.join(sorted(missing))}; the file is incomplete")
    if not blocks or not heads:
        raise ChromaboxError(f"{path}: contains no detector ({len(blocks)} convolutions, {len(heads)} heads)")
    return list(blocks.values()), list(heads.values()), anchors


def _infer_variant(model: Any) -> Variant | None:
    """Infer the variant from the activation modules in the file; None if there is none or another activation."""
    if not isinstance(model, OpaqueObject):
        return None
    for module in _iter_modules(model):
        if module.class_name == "torch.nn.modules.activation.SiLU":
            return ULTRALYTICS_9_6
        if module.class_name == "torch.nn.modules.activation.LeakyReLU":
            return ULTRALYTICS_9_0
    return None


def _iter_modules(model: OpaqueObject) -> Iterator[OpaqueObject]:
    yield model
    for child in model.children.values():
        if isinstance(child, OpaqueObject):
            yield from _iter_modules(child)


def _build_architecture(
    path: Path,
    blocks: list[dict[str, np.ndarray]],
    heads: list[dict[str, np.ndarray]],
    anchors: Tensor | None,
    variant: Variant,
) -> Architecture:
    """Return YOLOv3 or YOLOv3-tiny, by the number of convolutions, with the number of classes and anchors of the file.

    Raise ChromaboxError if the file is neither.
    """
    known = {(72, 3): ((8, 16, 32), yolov3), (11, 2): ((16, 32), yolov3_tiny)}
    if (len(blocks), len(heads)) not in known:
        raise ChromaboxError(
            f"{path}: {len(blocks)} convolutions and {len(heads)} heads; expected YOLOv3 (72, 3) or YOLOv3-tiny (11, 2)"
        )
    strides, build = known[len(blocks), len(heads)]
    filters = len(heads[0]["bias"])
    if filters % 3 or filters < 18:
        raise ChromaboxError(f"{path}: a head has {filters} outputs; expected 3 × (5 + classes)")
    options: dict[str, Any] = {}
    if anchors is not None:
        if anchors.shape != (len(heads), 3, 2):
            raise ChromaboxError(f"{path}: anchors of shape {tuple(anchors.shape)}; expected ({len(heads)}, 3, 2)")
        pixels = anchors * anchors.new_tensor(strides)[:, None, None]
        options["anchors"] = tuple((width, height) for width, height in pixels.double().flatten(0, 1).tolist())
    if build is yolov3_tiny:
        options["mask"] = variant.tiny_mask
    return build(filters // 3 - 5, **options)


def _darknet_order(
    path: Path, architecture: Architecture, blocks: list[dict[str, np.ndarray]], heads: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Return all convolutions in Darknet's order.

    Darknet's heads run from coarse to fine, Ultralytics' from fine to coarse.

    Raise ChromaboxError if a shape is wrong.
    """
    remaining_blocks, remaining_heads = iter(blocks), iter(reversed(heads))
    layers = []
    for index, layer in enumerate(architecture.layers):
        if not isinstance(layer, Convolution):
            continue
        state = next(remaining_blocks if layer.batch_normalise else remaining_heads)
        shape = (layer.filters, architecture.input_shape(index).channels, layer.size, layer.size)
        if state["kernel"].shape != shape:
            raise ChromaboxError(
                f"{path}: layer {index} is {state['kernel'].shape}; expected {shape} for {architecture.name}"
            )
        if any(values.shape != shape[:1] for name, values in state.items() if name != "kernel"):
            raise ChromaboxError(
                f"{path}: layer {index} has vectors of the wrong length; expected {layer.filters} values"
            )
        layers.append(state)
    return layers


def _class_names(path: Path, model: Any, architecture: Architecture) -> tuple[str, ...]:
    names = model.attributes.get("names") if isinstance(model, OpaqueObject) else None
    if isinstance(names, dict):
        names = [names[index] for index in sorted(names)]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return default_class_names(architecture.num_classes)
    if len(names) != architecture.num_classes:
        raise ChromaboxError(
            f"{path}: {len(names)} class names for {architecture.num_classes} classes; expected equal numbers"
        )
    return tuple(names)
