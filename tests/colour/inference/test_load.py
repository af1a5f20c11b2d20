"""Opening of checkpoints, run folders and exported files for inference, with and without PyTorch."""

import os
import sys
from pathlib import Path

import pytest
import torch

from chromabox.colour.inference.load import open_model
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights import export
from chromabox.colour.weights.checkpoint import model_metadata
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.errors import UsageError
from import_fixtures import NOT_FOR_INFERENCE, run_without


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    settings = {"num_filters": 4, "num_colours": 24}
    torch.manual_seed(0)
    metadata = model_metadata("unet", settings, load_palette("horse24"))
    save_checkpoint(path, {"net": build_model("unet", **settings).state_dict()}, metadata)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ONNX file that is written when the checkpoint is first opened."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHROMABOX_CACHE", str(cache))
        path = open_model(checkpoint).path
    assert path.parent == cache / "onnx"
    return path


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch, exported: Path) -> list[Path]:
    """Replace the export by a copy of the exported file; return the list of the paths that are written."""
    written: list[Path] = []

    def copy(model: object, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exported.read_bytes())
        written.append(path)

    monkeypatch.setattr(export, "export_onnx", copy)
    return written


def test_checkpoint_is_exported_to_the_cache_folder_once(
    checkpoint: Path, without_export: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path))
    model = open_model(checkpoint)
    assert without_export == [model.path]
    assert model.path.parent == tmp_path / "onnx"
    assert model.metadata["settings"] == {"num_filters": 4, "num_colours": 24}
    later = checkpoint.stat().st_mtime_ns + 10**12
    copy = tmp_path / checkpoint.name
    copy.write_bytes(checkpoint.read_bytes())
    os.utime(copy, ns=(later, later))
    # A copy has the same content: the date does not matter.
    assert open_model(copy).path == model.path
    assert len(without_export) == 1


@pytest.mark.parametrize("is_run", [False, True])
def test_damaged_exported_file_is_exported_again(
    checkpoint: Path, without_export: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_run: bool
) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    if is_run:
        (tmp_path / "best.safetensors").write_bytes(checkpoint.read_bytes())
    path = tmp_path if is_run else checkpoint
    exported = open_model(path).path
    content = exported.read_bytes()
    for damaged in (b"", content[:-100]):
        exported.write_bytes(damaged)
        assert open_model(path).path == exported
        assert exported.read_bytes() == content
    assert without_export == [exported] * 3
    with pytest.raises(UsageError, match="--device is 'tpu'"):
        open_model(path, device="tpu")
    assert len(without_export) == 3


def test_run_folder_is_exported_once_and_again_after_a_change(
    checkpoint: Path, without_export: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "best.safetensors").write_bytes(checkpoint.read_bytes())
    assert open_model(tmp_path).path == tmp_path / "best.onnx"
    assert open_model(tmp_path).path == tmp_path / "best.onnx"
    assert without_export == [tmp_path / "best.onnx"]
    later = (tmp_path / "best.onnx").stat().st_mtime_ns + 10**9
    os.utime(tmp_path / "best.safetensors", ns=(later, later))
    open_model(tmp_path)
    assert len(without_export) == 2


def test_exported_run_folder_opens_without_pytorch(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(checkpoint.read_bytes())
    (tmp_path / "best.onnx").write_bytes(exported.read_bytes())
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "best.onnx").write_bytes(exported.read_bytes())
    program = (
        "from pathlib import Path\n"
        "from chromabox.colour.inference.load import open_model\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    print(open_model(path).path)\n"
    )
    done = run_without(NOT_FOR_INFERENCE, program, tmp_path, tmp_path / "only")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "best.onnx"), str(tmp_path / "only" / "best.onnx")]


def test_checkpoint_without_pytorch_is_rejected_with_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path))
    for name in ("checkpoint", "export"):
        monkeypatch.delitem(sys.modules, f"chromabox.colour.weights.{name}")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError) as raised:
        open_model(checkpoint)
    assert str(raised.value) == (
        f"{checkpoint}: loading a checkpoint that is not an exported .onnx file requires torch, which is not "
        "installed; "
        "install it with pip install 'chromabox[train]'"
    )
    assert list(tmp_path.iterdir()) == []


def test_missing_paths_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such run folder or checkpoint"):
        open_model(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match=r"contains no best\.safetensors"):
        open_model(tmp_path)
