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

from chromabox.detect.weights.ultralytics import OpaqueObject, load_untrusted
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
    content = {
        "half": torch.randn(3, 4).half(),
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
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


def test_oversized_member_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.pt")
    monkeypatch.setattr("chromabox.detect.weights.ultralytics.MAX_MEMBER_BYTES", 3999)
    with pytest.raises(ChromaboxError, match=r"data/0 is too large; expected at most 3999 bytes"):
        load_untrusted(tmp_path / "a.pt")
