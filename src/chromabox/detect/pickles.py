"""PyTorch's ``.pt`` files read as data: tensors and plain containers, and nothing in them is ever run.

A ``.pt`` file is a zip archive of one pickle and the raw numbers of its tensors. A pickle is a program: it names
functions and calls them. Here every name is looked up in short tables of our own; whole modules, as Ultralytics saves
them, come out as :class:`Inert`, a bag of their attributes; any other name ends the reading before anything is called.
"""

import io
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chromabox.errors import ChromaboxError

#: Storages by the names that PyTorch pickles them under.
STORAGES = {
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
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORAGES.values()}
#: Packages whose classes may be named; what is made of them is only a bag of attributes.
INERT_PACKAGES = ("models.", "ultralytics.nn.", "torch.nn.modules.")
INERT_NAMES = {
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
MEMBER_LIMIT = 1 << 32


class Inert:
    """An object of a class that is not loaded: the name of its class and the attributes the file gives it."""

    class_name = ""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments = (*arguments, *keywords.items())

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    @property
    def attributes(self) -> dict[str, Any]:
        """What the object's ``__dict__`` was; empty where the file says nothing of it."""
        state = self.__dict__.get("state")
        return state if isinstance(state, dict) else {}

    @property
    def parts(self) -> dict[str, Any]:
        """Parameters, buffers and sub-modules of a module, in that order."""
        found: dict[str, Any] = {}
        for place in ("_parameters", "_buffers", "_modules"):
            inside = self.attributes.get(place)
            found |= inside if isinstance(inside, dict) else {}
        return {name: part for name, part in found.items() if part is not None}


def read_pickle(path: Path) -> Any:
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
            return _Reader(archive, path, names[0]).load()
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


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        super().__init__(io.BytesIO(_member(archive, name)), encoding="utf-8")
        self.archive, self.path, self.root = archive, path, name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The whole list of what a file may name."""
        if (module, name) in CALLABLE:
            return CALLABLE[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in INERT_NAMES or module.startswith(INERT_PACKAGES):
            return type(name, (Inert,), {"class_name": f"{module}.{name}"})
        raise ChromaboxError(
            f"{self.path}: refused: it would run {module}.{name}; only tensors, containers and PyTorch modules are read"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, as one flat tensor."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown kind of storage {kind!r}")
        if key not in self.storages:
            content = bytearray(_member(self.archive, f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) < count:
            raise ValueError(f"storage {key} holds {len(self.storages[key])} numbers of {count}")
        return self.storages[key]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MEMBER_LIMIT:
        raise ValueError(f"{name} unpacks to more than {MEMBER_LIMIT} bytes")
    return archive.read(name)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor's own copy of its numbers; PyTorch refuses sizes that reach beyond the storage."""
    if not isinstance(storage, Tensor):
        raise TypeError("a tensor without a storage")
    return storage.as_strided(size, stride, offset).clone()


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _latin_bytes(text: str, encoding: str) -> bytes:
    """Bytes as old pickles spell them."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding}")
    return text.encode("latin1")


CALLABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): _latin_bytes,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
