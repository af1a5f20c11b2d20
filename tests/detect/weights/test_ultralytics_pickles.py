"""Reading of PyTorch files without executing code: saved content is restored, and unsafe content is rejected."""

import importlib
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chromabox.detect.models.architecture import ULTRALYTICS_9_6
from chromabox.detect.weights.ultralytics import OpaqueObject, load_untrusted, read_ultralytics
from chromabox.errors import ChromaboxError


class Call:
    """Object that is pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def write_marker(path: str) -> None:
    Path(path).write_text("code was run")


def test_tensors_and_containers_are_restored(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    with_attribute = torch.nn.Parameter(torch.randn(2))
    with_attribute.note = "a"  # type: ignore[attr-defined]
    content = {
        "half": torch.randn(3, 4).half(),
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "parameter with an attribute": with_attribute,
        "whole": torch.tensor(7),
        "brain": torch.randn(5).bfloat16(),
        "empty": torch.empty(0, 3),
        "ordered": OrderedDict(a=torch.ones(2), b=[1, 2.5, None, True, "ä", b"x", (1, 2)]),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "set": {1, 2},
    }
    torch.save(content, tmp_path / "a.pt")
    loaded = load_untrusted(tmp_path / "a.pt")
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert loaded[name].dtype == value.dtype
            torch.testing.assert_close(loaded[name], value.data, rtol=0, atol=0)
    assert loaded["ordered"]["b"] == content["ordered"]["b"]  # type: ignore[index]
    assert (loaded["size"], loaded["dtype"], loaded["set"]) == ((1, 2), torch.float16, {1, 2})


def test_modules_are_read_as_opaque_objects(tmp_path: Path) -> None:
    original = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3), torch.nn.SiLU()
    )
    torch.save({"model": original, "best_fitness": np.float64(0.5), "array": np.arange(3)}, tmp_path / "a.pt")
    model = load_untrusted(tmp_path / "a.pt")["model"]
    assert isinstance(model, OpaqueObject)
    assert not isinstance(model, torch.nn.Module)
    assert model.class_name == "torch.nn.modules.container.Sequential"
    assert list(model.children) == ["0", "1", "2"]
    assert list(model.children["1"].children) == [
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
    assert model.children["1"].attributes["eps"] == 1e-3
    torch.testing.assert_close(model.children["0"].children["weight"], original[0].weight.data)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "open", "getattr", "own", "storage", "import"])
def test_file_that_would_execute_code_is_rejected(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "mark"
    calls: dict[str, tuple[Any, ...]] = {
        "system": (os.system, f"touch {marker}"),
        "eval": (eval, f"open({str(marker)!r}, 'w')"),
        "open": (open, str(marker), "w"),
        "getattr": (getattr, "text", "upper"),
        "own": (write_marker, str(marker)),
        "storage": (torch.storage._load_from_bytes, b"anything"),
        "import": (importlib.import_module, "antigravity"),
    }
    torch.save({"model": Call(*calls[name])}, tmp_path / "a.pt", pickle_protocol=protocol)
    unsafe = r"unsafe file .loading it would execute \S+.; expected tensors"
    message = unsafe if protocol == 2 else "unsupported pickle protocol 4"
    with pytest.raises(ChromaboxError, match=rf"a\.pt: {message}"):
        load_untrusted(tmp_path / "a.pt")
    assert not marker.exists()


def test_unsafe_file_executes_code_in_torch_load(tmp_path: Path) -> None:
    """Control: the file of the test above is indeed unsafe."""
    torch.save({"model": Call(write_marker, str(tmp_path / "mark"))}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a .pt file of PyTorch 1.6 or later"),
        (b"PK\x03\x04 and then nothing", "not a .pt file"),
        (pickle.dumps({"a": 1}), "not a .pt file"),
    ],
)
def test_file_that_is_not_a_zip_archive_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ChromaboxError, match=rf"a\.pt: {message}"):
        load_untrusted(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a/other": b""}, r"0 files named data\.pkl"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, r"2 files named data\.pkl"),
        ({"a/data.pkl": b""}, "damaged PyTorch file"),
        ({"a/data.pkl": b"\x80\x02}q\x00(X\x01"}, "damaged PyTorch file"),
        ({"a/data.pkl": b"\x80\x02."}, "damaged PyTorch file"),
        ({"a/data.pkl": b"\x80\x02(X\x01\x00\x00\x00atQ."}, "damaged PyTorch file"),  # a storage id with one element
    ],
)
def test_invalid_archive_is_rejected(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(ChromaboxError, match=rf"a\.pt: .*{message}"):
        load_untrusted(write_archive(tmp_path / "a.pt", {"a/version": b"3\n", **members}))


def test_missing_file_and_missing_storage_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"none\.pt: cannot be read \(No such file"):
        load_untrusted(tmp_path / "none.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    short = {name: content[:4] if "/data/" in name else content for name, content in members.items()}
    with pytest.raises(ChromaboxError, match=r"damaged PyTorch file .*does not match expected size"):
        load_untrusted(write_archive(tmp_path / "short.pt", short))
    without = {name: content for name, content in members.items() if "/data/" not in name}
    with pytest.raises(ChromaboxError, match="damaged PyTorch file"):
        load_untrusted(write_archive(tmp_path / "without.pt", without))


#: A dictionary whose key is a tuple of 100,000 nested tuples, and one whose key contains 2^40 elements. Computing the
#: hash of the first exceeds the stack of the process, and computing the hash of the second takes hours.
NESTED_KEY = b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."
DOUBLED_KEY = b"\x80\x02})" + b"q\x01h\x01\x86" * 40 + b"Ns."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (NESTED_KEY, "a tuple has more than 2000 elements"),
        (DOUBLED_KEY, "a tuple has more than 2000 elements"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", r"would execute builtins\.bytearray"),
        (b"\x80\x02(i__main__\nf\n.", r"would execute __main__\.f"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02\x8c\x02os\x8c\x06system\x93.", "the instruction STACK_GLOBAL"),
        (b"\x80\x02" + b"N0" * (1 << 20) + b"N.", r"data\.pkl has 2,097,156 bytes; expected at most 2,097,152"),
    ],
)
def test_pickle_that_requires_much_time_or_memory_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = write_archive(tmp_path / "a.pt", {"a/data.pkl": content, "a/version": b"3\n"})
    with pytest.raises(ChromaboxError, match=rf"a\.pt: .*{message}"):
        load_untrusted(path)


def test_large_tuple_and_all_instructions_of_the_protocol_are_read(tmp_path: Path) -> None:
    content = {"names": tuple(map(str, range(1000))), ("a", (1, 2)): [{1}, -1, 2**70, 1.5, "ü" * 300, b"\xff", [[]]]}
    torch.save(content, tmp_path / "a.pt")
    assert load_untrusted(tmp_path / "a.pt") == content


def test_compressed_contents_are_limited(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as archive,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    with pytest.raises(
        ChromaboxError, match=r"b\.pt: the uncompressed contents have 400,\d+ bytes; .* at most 10 times"
    ):
        load_untrusted(tmp_path / "b.pt")


#: A module that contains itself, a module whose names would have 2^30 combinations, and 50,000 nested dictionaries.
MODULE = b"ctorch.nn.modules.container\nSequential\n)\x81"
MODULES = b"}X\x08\x00\x00\x00_modules}"
CYCLE = b"\x80\x02" + MODULE + b"q\x01" + MODULES + b"X\x01\x00\x00\x00ah\x01ssb."
DOUBLED = b"\x80\x02N" + b"q\x01}(X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01u" * 30 + b"."
NESTED = b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 50_000 + b"N" + b"s" * 50_000 + b"."
#: A tensor of 10^9 values, all of which are the same two bytes of the file.
REPEATED = (
    b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nHalfStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00J\x00\xca\x9a;\x85K\x00\x85\x89ccollections\nOrderedDict\n)RtRs."
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CYCLE, "does not contain the variant|numbers of convolutions"),
        (DOUBLED, "does not contain the variant|numbers of convolutions"),
        (NESTED, "the name a.* has more than 200 characters"),
        (REPEATED, "the tensors have 1,000,000,000 values; expected at most 134,217,728"),
    ],
)
def test_modules_of_unlimited_size_are_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    members = {"a/data.pkl": content, "a/version": b"3\n", "a/byteorder": b"little", "a/data/0": b"\0\0"}
    with pytest.raises(ChromaboxError, match=rf"a\.pt: .*({message})"):
        read_ultralytics(write_archive(tmp_path / "a.pt", members), ULTRALYTICS_9_6)
