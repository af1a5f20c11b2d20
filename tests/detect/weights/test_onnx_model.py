"""Exported detectors run by ONNX Runtime, against PyTorch; selection of weights, and their export to the cache."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from chromabox.detect.inference.load import open_detector
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_6
from chromabox.detect.weights import convert
from chromabox.detect.weights.convert import export_detector
from chromabox.detect.weights.load import Detector, save_detector
from chromabox.detect.weights.onnx_model import DetectorModel, OnnxDetector, load_onnx_detector, resolve_weights
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import CLASS_NAMES, make_small_detector


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_detector(make_small_detector(), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache folder."""
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_images(count: int = 3, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, size, size), np.float32)


def test_outputs_are_those_of_pytorch(exported: Path) -> None:
    detector, expected_detector = load_onnx_detector(exported), make_small_detector()
    assert isinstance(detector, DetectorModel)
    assert isinstance(expected_detector, DetectorModel)
    for count in (1, 3):
        images = random_images(count)
        boxes, scores = detector.predict(images)
        expected_boxes, expected_scores = expected_detector.predict(images)
        assert (boxes.dtype, scores.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(boxes, expected_boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
        assert scores.std() > 0.1  # Otherwise any model would pass.


def test_metadata_are_read(exported: Path, tmp_path: Path) -> None:
    detector = load_onnx_detector(exported)
    assert (detector.path, detector.classes, detector.size) == (exported, CLASS_NAMES, 64)
    assert detector.variant == DARKNET
    export_detector(make_small_detector(ULTRALYTICS_9_6), tmp_path / "other.onnx", size=96)
    other = load_onnx_detector(tmp_path / "other.onnx")
    assert (other.size, other.variant) == (96, ULTRALYTICS_9_6)
    assert other.predict(random_images(1, 96))[0].shape == (1, 2 * 3 * 3, 4)


def test_threads_and_device_are_those_of_the_session(exported: Path) -> None:
    detector = load_onnx_detector(exported, threads=1, device="cpu")
    assert detector.session.get_session_options().intra_op_num_threads == 1
    assert detector.session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(UsageError, match="--device is 'tpu'"):
        open_detector(exported, device="tpu")


def test_other_size_than_that_of_the_file_is_rejected(exported: Path) -> None:
    message = r"size is 96: .*small\.onnx was exported for 64 pixels; use 64, or export the weights with --size 96"
    with pytest.raises(UsageError, match=message):
        load_onnx_detector(exported).check_size(96)
    with pytest.raises(UsageError, match=message):
        open_detector(exported, size=96)
    assert open_detector(exported, size=64).size == 64


def test_missing_file_is_rejected(tmp_path: Path, cache: Path) -> None:
    for load in (load_onnx_detector, open_detector):
        with pytest.raises(UsageError, match=r"none\.onnx: no such file"):
            load(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match=r"none\.pt: weights do not exist; expected .* yolov3-tiny"):
        open_detector(tmp_path / "none.pt")
    with pytest.raises(UsageError, match=r"best\.safetensors: weights do not exist"):
        open_detector(tmp_path)


def test_damaged_file_is_rejected(exported: Path, tmp_path: Path, cache: Path) -> None:
    content = exported.read_bytes()
    path = tmp_path / "damaged.onnx"
    for damaged in (b"", b"something else", content[: len(content) // 2], content[100:]):
        path.write_bytes(damaged)
        for load in (load_onnx_detector, open_detector):
            with pytest.raises(ChromaboxError, match=r"damaged\.onnx: "):
                load(path)
    assert not list(cache.rglob("*.onnx"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", None, "the format is None, expected 'chromabox-detector-1'"),
        ("format", "chromabox-palette", "the format is 'chromabox-palette'"),
        ("classes", None, "classes"),
        ("classes", "[", "not a detector exported by Chromabox"),
        ("classes", '["cat", "dog"]', "3 scores for 2 classes"),
        ("size", "large", "invalid literal"),
        ("detector", "{}", "kind"),
        ("detector", "[]", "not a detector exported by Chromabox"),
    ],
)
def test_other_metadata_are_rejected(key: str, value: str | None, message: str, exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    metadata = {entry.key: entry.value for entry in model.metadata_props} | {key: value}
    onnx.helper.set_model_props(model, {name: text for name, text in metadata.items() if text is not None})
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ChromaboxError, match=rf"a\.onnx: .*{message}.*use chromabox export"):
        load_onnx_detector(tmp_path / "a.onnx")


def test_tensors_in_other_files_are_rejected(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    assert (tmp_path / "a.bin").exists()
    for load in (load_onnx_detector, open_detector):
        with pytest.raises(ChromaboxError, match=r"a\.onnx: the model refers to tensors in other files"):
            load(tmp_path / "a.onnx")


def test_run_folder_uses_its_exported_file(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "export_detector", None)
    (tmp_path / "best.onnx").write_bytes(exported.read_bytes())
    save_detector(tmp_path / "best.safetensors", make_small_detector(seed=1))
    for weights in (tmp_path, str(tmp_path)):
        assert open_detector(weights).path == tmp_path / "best.onnx"


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
    message = rf"small\.safetensors: {library} is required .*; install it with pip install 'chromabox\[train\]'"
    with pytest.raises(UsageError, match=message):
        open_detector(path)
    assert isinstance(open_detector(exported), OnnxDetector)
