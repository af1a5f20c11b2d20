"""The ``.pt`` files of Ultralytics' YOLOv3, versions 9.0 and later, as darknet's layers.

The files hold whole modules, whose order is darknet's but for two things: the heads' convolutions come last, finest
first, and anchors are counted in cells. What kind of weights they are stands in the modules: the activation of the
first convolution. A plain dictionary of tensors does not say, and its kind must be given.

PyTorch's ``.pt`` files read as data: tensors and plain containers, and nothing in them is ever run.

A ``.pt`` file is a zip archive of one pickle and the raw numbers of its tensors. A pickle is a program: it names
functions and calls them. Here every name is looked up in short tables of our own; whole modules, as Ultralytics saves
them, come out as :class:`Inert`, a bag of their attributes; any other name ends the reading before anything is called.
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
from chromabox.detect.models.architecture import Architecture, Convolution, yolov3, yolov3_tiny
from chromabox.detect.models.darknet import ULTRALYTICS_9_0, ULTRALYTICS_9_6, Variant
from chromabox.errors import ChromaboxError, UsageError

#: Storages by the names that PyTorch pickles them under.
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

#: Packages whose classes may be named; what is made of them is only a bag of attributes.
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

#: The most bytes that one member may unpack to; YOLOv3's greatest tensor in float64 is a hundredth of it.
MAX_MEMBER_BYTES = 1 << 32


class OpaqueObject:
    """An object of a class that is not loaded: the name of its class and the attributes the file gives it."""

    class_name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.arguments = (*args, *kwargs.items())

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    @property
    def attributes(self) -> dict[str, Any]:
        """What the object's ``__dict__`` was; empty where the file says nothing of it."""
        state = self.__dict__.get("state")
        return state if isinstance(state, dict) else {}

    @property
    def children(self) -> dict[str, Any]:
        """Parameters, buffers and sub-modules of a module, in that order."""
        found: dict[str, Any] = {}
        for place in ("_parameters", "_buffers", "_modules"):
            inside = self.attributes.get(place)
            found |= inside if isinstance(inside, dict) else {}
        return {name: part for name, part in found.items() if part is not None}


def load_untrusted(path: Path) -> Any:
    """What a ``.pt`` file holds, as tensors, containers, numbers, strings and :class:`Inert` objects.

    Raises ChromaboxError for a file that cannot be read, is none, or names anything that would have to be run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(names) != 1:
                raise ChromaboxError(
                    f"{path}: not a PyTorch file (it holds {len(names)} data.pkl); save it with torch.save"
                )
            return _SafeUnpickler(archive, path, names[0]).load()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror or error}); a .pt file is needed") from error
    except zipfile.BadZipFile as error:
        raise ChromaboxError(
            f"{path}: not a .pt file of PyTorch 1.6 or later, or cut short ({error}); save it again with torch.save"
        ) from error
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ChromaboxError(f"{path}: broken PyTorch file ({' '.join(str(error).split())})") from error
    except (AttributeError, RuntimeError, MemoryError, zlib.error, OverflowError) as error:
        raise ChromaboxError(f"{path}: broken PyTorch file ({' '.join(str(error).split())})") from error


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        super().__init__(io.BytesIO(_read_member(archive, name)), encoding="utf-8")
        self.archive, self.path, self.root = archive, path, name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The whole list of what a file may name."""
        if (module, name) in ALLOWED_CALLABLES:
            return ALLOWED_CALLABLES[module, name]
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in OPAQUE_NAMES or module.startswith(OPAQUE_PACKAGES):
            return type(name, (OpaqueObject,), {"class_name": f"{module}.{name}"})
        raise ChromaboxError(
            f"{self.path}: refused: it would run {module}.{name}; only tensors, containers and PyTorch modules are read"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, as one flat tensor."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown kind of storage {kind!r}")
        if key not in self.storages:
            content = bytearray(_read_member(self.archive, f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) < count:
            raise ValueError(f"storage {key} holds {len(self.storages[key])} numbers of {count}")
        return self.storages[key]


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name} unpacks to more than {MAX_MEMBER_BYTES} bytes")
    return archive.read(name)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor's own copy of its numbers; PyTorch refuses sizes that reach beyond the storage."""
    if not isinstance(storage, Tensor):
        raise TypeError("a tensor without a storage")
    return storage.as_strided(size, stride, offset).clone()


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Bytes as old pickles spell them."""
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

#: Of a convolution's state, with what darknet calls it.
STATE_KEYS = {
    "bn.bias": "bias",
    "bn.weight": "weight",
    "bn.running_mean": "mean",
    "bn.running_var": "variance",
    "conv.weight": "kernel",
}


@dataclass(frozen=True)
class UltralyticsFile:
    """Architecture, kind, names of classes, and the convolutions in darknet's order."""

    architecture: Architecture
    variant: Variant
    classes: tuple[str, ...]
    layers: list[dict[str, np.ndarray]]


def read_ultralytics(path: Path, variant: Variant | None = None) -> UltralyticsFile:
    """Read a ``.pt`` file of YOLOv3 or YOLOv3-tiny; ``kind`` is only asked for where the file does not say it.

    Raises ChromaboxError for a file that is none or would run code, UsageError where the kind is needed or is not the
    file's own.
    """
    content = load_untrusted(path)
    model = _find_model(content)
    state = dict(_iter_tensors(model))
    blocks, heads, anchors = _collect_layers(path, state)
    said = _infer_variant(model)
    if said is None and variant is None:
        raise UsageError(f"{path}: does not say its kind; say kind ultralytics-9.0 (leaky) or ultralytics-9.6 (SiLU)")
    if said is not None and variant is not None and said != variant:
        raise UsageError(f"{path}: its modules are of kind {said.name}, not {variant.name}; leave the kind out")
    meant = said or variant or ULTRALYTICS_9_0
    architecture = _build_architecture(path, blocks, heads, anchors, meant)
    layers = _darknet_order(path, architecture, blocks, heads)
    return UltralyticsFile(architecture, meant, _class_names(path, model, architecture), layers)


def _find_model(content: Any) -> Any:
    """The averaged weights if there are any, else the trained ones, else the content itself."""
    if isinstance(content, Mapping):
        for name in ("ema", "model", "state_dict"):
            if isinstance(content.get(name), OpaqueObject | Mapping):
                return content[name]
    return content


def _iter_tensors(model: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors with their dotted names, in the order of the modules."""
    parts = model.children if isinstance(model, OpaqueObject) else model if isinstance(model, Mapping) else {}
    for key, part in parts.items():
        dotted = f"{name}.{key}" if name else str(key)
        if isinstance(part, Tensor):
            yield dotted, part
        else:
            yield from _iter_tensors(part, dotted)


def _collect_layers(
    path: Path, state: dict[str, Tensor]
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]], Tensor | None]:
    """Normalised convolutions and head convolutions, each in file order, and the anchors in cells where given."""
    blocks: dict[str, dict[str, np.ndarray]] = {}
    heads: dict[str, dict[str, np.ndarray]] = {}
    anchors = None
    for name, tensor in state.items():
        values = tensor.float().numpy()
        owner, part = ".".join(name.split(".")[:-2]), ".".join(name.split(".")[-2:])
        if part in STATE_KEYS:
            blocks.setdefault(owner, {})[STATE_KEYS[part]] = values
        elif name.split(".")[-3:-2] == ["m"] and name.split(".")[-1] in ("weight", "bias"):
            head = heads.setdefault(".".join(name.split(".")[:-1]), {})
            head["kernel" if name.endswith("weight") else "bias"] = values
        elif name.split(".")[-1] == "anchors":
            anchors = tensor.float()
        elif name.split(".")[-1] not in ("num_batches_tracked", "anchor_grid"):
            raise ChromaboxError(f"{path}: holds {name}, which YOLOv3 does not have; a YOLOv3 .pt file is needed")
    for name, block in (blocks | heads).items():
        missing = {"kernel", "bias", *(STATE_KEYS.values() if name in blocks else ())} - block.keys()
        if missing:
            raise ChromaboxError(f"{path}: {name} lacks its {', '.join(sorted(missing))}; the file is not whole")
    if not blocks or not heads:
        raise ChromaboxError(f"{path}: holds no detector ({len(blocks)} convolutions, {len(heads)} heads)")
    return list(blocks.values()), list(heads.values()), anchors


def _infer_variant(model: Any) -> Variant | None:
    """By the activation modules that the file names; None if it names none or another."""
    if not isinstance(model, OpaqueObject):
        return None
    for part in _iter_modules(model):
        if part.class_name == "torch.nn.modules.activation.SiLU":
            return ULTRALYTICS_9_6
        if part.class_name == "torch.nn.modules.activation.LeakyReLU":
            return ULTRALYTICS_9_0
    return None


def _iter_modules(model: OpaqueObject) -> Iterator[OpaqueObject]:
    yield model
    for part in model.children.values():
        if isinstance(part, OpaqueObject):
            yield from _iter_modules(part)


def _build_architecture(
    path: Path,
    blocks: list[dict[str, np.ndarray]],
    heads: list[dict[str, np.ndarray]],
    anchors: Tensor | None,
    variant: Variant,
) -> Architecture:
    """YOLOv3 or YOLOv3-tiny, by the count of convolutions, with the file's own classes and anchors."""
    known = {(72, 3): ((8, 16, 32), yolov3), (11, 2): ((16, 32), yolov3_tiny)}
    if (len(blocks), len(heads)) not in known:
        raise ChromaboxError(
            f"{path}: {len(blocks)} convolutions and {len(heads)} heads are neither YOLOv3 (72, 3) "
            "nor YOLOv3-tiny (11, 2)"
        )
    strides, build = known[len(blocks), len(heads)]
    filters = len(heads[0]["bias"])
    if filters % 3 or filters < 18:
        raise ChromaboxError(f"{path}: a head has {filters} outputs; three anchors of 5 + classes each are needed")
    settings: dict[str, Any] = {}
    if anchors is not None:
        if anchors.shape != (len(heads), 3, 2):
            raise ChromaboxError(f"{path}: its anchors are {tuple(anchors.shape)}; ({len(heads)}, 3, 2) is needed")
        pixels = anchors * anchors.new_tensor(strides)[:, None, None]
        settings["anchors"] = tuple((width, height) for width, height in pixels.double().flatten(0, 1).tolist())
    if build is yolov3_tiny:
        settings["mask"] = variant.tiny_mask
    return build(filters // 3 - 5, **settings)


def _darknet_order(
    path: Path, architecture: Architecture, blocks: list[dict[str, np.ndarray]], heads: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """Both kinds of convolution in darknet's order: its heads run from coarse to fine, Ultralytics' from fine."""
    normalised, plain = iter(blocks), iter(reversed(heads))
    layers = []
    for index, layer in enumerate(architecture.layers):
        if not isinstance(layer, Convolution):
            continue
        given = next(normalised if layer.batch_normalise else plain)
        shape = (layer.filters, architecture.input_shape(index).channels, layer.size, layer.size)
        if given["kernel"].shape != shape:
            raise ChromaboxError(f"{path}: layer {index} is {given['kernel'].shape}; {architecture.name} needs {shape}")
        if any(values.shape != shape[:1] for name, values in given.items() if name != "kernel"):
            raise ChromaboxError(f"{path}: the vectors of layer {index} do not all have {layer.filters} numbers")
        layers.append(given)
    return layers


def _class_names(path: Path, model: Any, architecture: Architecture) -> tuple[str, ...]:
    names = model.attributes.get("names") if isinstance(model, OpaqueObject) else None
    if isinstance(names, dict):
        names = [names[index] for index in sorted(names)]
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return default_class_names(architecture.num_classes)
    if len(names) != architecture.num_classes:
        raise ChromaboxError(
            f"{path}: names {len(names)} classes and scores {architecture.num_classes}; they must agree"
        )
    return tuple(names)
