"""PyTorch files read without running them: what torch.save wrote comes back, what would be run is refused."""

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


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def ran(path: str) -> None:
    Path(path).write_text("code was run")


def test_tensors_and_containers_come_back(tmp_path: Path) -> None:
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
    found = load_untrusted(tmp_path / "a.pt")
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            torch.testing.assert_close(found[name], value.data, rtol=0, atol=0)
    assert found["ordered"]["b"] == content["ordered"]["b"]  # type: ignore[index]
    assert (found["size"], found["dtype"], found["set"]) == ((1, 2), torch.float16, {1, 2})


def test_modules_are_bags_of_their_attributes(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.BatchNorm2d(4, eps=1e-3), torch.nn.SiLU())
    torch.save({"model": net, "best_fitness": np.float64(0.5), "array": np.arange(3)}, tmp_path / "a.pt")
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
    torch.testing.assert_close(model.children["0"].children["weight"], net[0].weight.data)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "open", "getattr", "own", "storage", "import"])
def test_what_would_run_code_is_refused_and_not_run(tmp_path: Path, name: str, protocol: int) -> None:
    mark = tmp_path / "mark"
    calls: dict[str, tuple[Any, ...]] = {
        "system": (os.system, f"touch {mark}"),
        "eval": (eval, f"open({str(mark)!r}, 'w')"),
        "open": (open, str(mark), "w"),
        "getattr": (getattr, "text", "upper"),
        "own": (ran, str(mark)),
        "storage": (torch.storage._load_from_bytes, b"anything"),
        "import": (importlib.import_module, "antigravity"),
    }
    torch.save({"model": Runs(*calls[name])}, tmp_path / "a.pt", pickle_protocol=protocol)
    with pytest.raises(ChromaboxError, match=r"a\.pt: refused: it would run \S+; only tensors"):
        load_untrusted(tmp_path / "a.pt")
    assert not mark.exists()


def test_the_same_file_does_run_code_elsewhere(tmp_path: Path) -> None:
    """The control: that the attack of the test above is one."""
    torch.save({"model": Runs(ran, str(tmp_path / "mark"))}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a .pt file of PyTorch 1.6 or later"),
        (b"PK\x03\x04 and then nothing", "not a .pt file"),
        (pickle.dumps({"a": 1}), "not a .pt file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ChromaboxError, match=rf"a\.pt: {sentence}"):
        load_untrusted(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({"a/other": b""}, r"holds 0 data\.pkl"),
        ({"a/data.pkl": b"", "b/data.pkl": b""}, r"holds 2 data\.pkl"),
        ({"a/data.pkl": b""}, "broken PyTorch file"),
        ({"a/data.pkl": b"\x80\x02}q\x00(X\x01"}, "broken PyTorch file"),
        ({"a/data.pkl": b"\x80\x02."}, "broken PyTorch file"),
        ({"a/data.pkl": b"\x80\x02(X\x01\x00\x00\x00atQ."}, "broken PyTorch file"),  # a storage of one word
    ],
)
def test_archives_that_are_none(tmp_path: Path, members: dict[str, bytes], sentence: str) -> None:
    with pytest.raises(ChromaboxError, match=rf"a\.pt: .*{sentence}"):
        load_untrusted(archive_of(tmp_path / "a.pt", members))


def test_a_missing_file_and_a_missing_storage(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match=r"none\.pt: cannot be read \(No such file"):
        load_untrusted(tmp_path / "none.pt")
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    short = {name: content[:4] if "/data/" in name else content for name, content in kept.items()}
    with pytest.raises(ChromaboxError, match="holds 1 numbers of 3"):
        load_untrusted(archive_of(tmp_path / "short.pt", short))
    without = {name: content for name, content in kept.items() if "/data/" not in name}
    with pytest.raises(ChromaboxError, match="broken PyTorch file"):
        load_untrusted(archive_of(tmp_path / "without.pt", without))
