"""Opening of detectors for inference: exported files, run folders, and weights that are exported to the cache."""

import sys
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.inference.load import open_detector
from chromabox.detect.weights import convert
from chromabox.detect.weights.convert import export_darknet
from chromabox.detect.weights.load import Detector, save_detector
from chromabox.detect.weights.onnx_model import OnnxDetector, load_onnx_detector, resolve_weights
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import CLASS_NAMES, make_small_detector, random_images


def test_run_folder_uses_its_exported_file(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "export_detector", None)
    (tmp_path / "best.onnx").write_bytes(exported.read_bytes())
    save_detector(tmp_path / "best.safetensors", make_small_detector(seed=1))
    for weights in (tmp_path, str(tmp_path)):
        for size in (None, 64):
            assert open_detector(weights, size=size).path == tmp_path / "best.onnx"


def save_weights(folder: Path, name: str, detector: Detector) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_detector(folder / f"{name}.safetensors", detector)
    return folder / f"{name}.safetensors"


def test_other_weights_are_exported_once(
    exported: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_weights(tmp_path / "run", "best", make_small_detector())
    first = open_detector(path)
    assert first.path.parent == cache / "onnx"
    assert (first.classes, first.size) == (CLASS_NAMES, 64)
    images = random_images()
    for output, expected in zip(first.predict(images), load_onnx_detector(exported).predict(images), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-6, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(convert, "export_detector", None)
        assert open_detector(path).path == first.path
        assert open_detector(tmp_path / "run").path == first.path
    # Other weights and other sizes have other files.
    large = open_detector(path, size=96)
    assert (large.size, open_detector(path).size) == (96, 64)
    save_weights(tmp_path / "run", "best", make_small_detector(seed=1))
    changed = open_detector(path)
    assert len({first.path, large.path, changed.path}) == 3
    assert np.abs(changed.predict(images)[1] - first.predict(images)[1]).max() > 0.1


def test_weights_with_changed_class_names_are_exported_again(
    exported: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(detector: Detector, path: Path, *, size: int | None) -> None:
        classes.append(detector.classes)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exported.read_bytes())

    classes: list[tuple[str, ...]] = []
    monkeypatch.setattr(convert, "export_detector", copy)
    export_darknet(make_small_detector(), tmp_path / "best.weights")
    for names in ("cat\ndog\nred fox\n", "chat\nchien\nrenard\n", "chat\nchien\nrenard\n"):
        (tmp_path / "best.names").write_text(names)
        open_detector(tmp_path / "best.weights")
    assert classes == [CLASS_NAMES, ("chat", "chien", "renard")]


def test_damaged_file_in_the_cache_is_exported_again(
    exported: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(detector: Detector, path: Path, *, size: int | None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exported.read_bytes())

    monkeypatch.setattr(convert, "export_detector", copy)
    weights = save_weights(tmp_path, "net", make_small_detector())
    path = open_detector(weights).path
    for content in (b"", exported.read_bytes()[:-100]):
        path.write_bytes(content)
        assert open_detector(weights).path == path
        assert path.read_bytes() == exported.read_bytes()


def test_pretrained_weights_are_exported_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_weights(cache, "yolov3-tiny", make_small_detector())
    assert resolve_weights("yolov3-tiny") == path
    first = open_detector("yolov3-tiny")
    monkeypatch.setattr(convert, "export_detector", None)
    assert open_detector("yolov3-tiny").path == first.path


def test_invalid_size_is_rejected(tmp_path: Path, cache: Path) -> None:
    path = save_weights(tmp_path, "small", make_small_detector())
    with pytest.raises(UsageError, match="size is 65: expected a multiple of 32 for small"):
        open_detector(path, size=65)


@pytest.mark.parametrize("library", ["torch", "skimage"])
def test_weights_that_are_not_exported_need_pytorch(
    library: str, exported: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_weights(tmp_path, "small", make_small_detector())
    unavailable = [name for name in sys.modules if name.partition(".")[0] == library]
    for name in {library, *unavailable}:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("convert", "load"):
        monkeypatch.delitem(sys.modules, f"chromabox.detect.weights.{name}")
    message = rf"small\.safetensors: loading a model .* requires {library}, .* pip install 'chromabox\[train\]'"
    with pytest.raises(UsageError, match=message):
        open_detector(path)
    assert isinstance(open_detector(exported), OnnxDetector)


def test_file_that_is_not_onnx_is_rejected_without_pytorch_and_onnx(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "photo.onnx").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ChromaboxError, match=r"photo\.onnx: not an ONNX file"):
        open_detector(tmp_path / "photo.onnx")
