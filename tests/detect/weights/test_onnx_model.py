"""Exported detectors run by ONNX Runtime, against PyTorch, and files that are rejected."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from chromabox.detect.inference.load import open_detector
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_6
from chromabox.detect.weights.convert import export_detector
from chromabox.detect.weights.onnx_model import DetectorModel, load_onnx_detector
from chromabox.errors import ChromaboxError, UsageError
from detector_fixtures import CLASS_NAMES, make_small_detector, random_images


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
    assert (detector.variant, detector.category_ids) == (DARKNET, ())
    with_ids = replace(make_small_detector(ULTRALYTICS_9_6), metadata={"category_ids": [90, 5, 7]})
    export_detector(with_ids, tmp_path / "other.onnx", size=96)
    other = load_onnx_detector(tmp_path / "other.onnx")
    assert (other.size, other.variant, other.category_ids) == (96, ULTRALYTICS_9_6, (90, 5, 7))
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
        ("format", None, "the format is None, not 'chromabox-detector-1'"),
        ("size", "1000000000", "the size of the input is 64, not 1000000000"),
        ("classes", "[1, null, []]", "the class names are not text"),
        ("format", "chromabox-palette", "the format is 'chromabox-palette'"),
        ("classes", None, "classes"),
        ("classes", "[", "not a detector exported by Chromabox"),
        ("classes", '["cat", "dog"]', "the number of scores per box is 3, not 2"),
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
    with pytest.raises(ChromaboxError, match=rf"a\.onnx: .*{message}.*export the detector with chromabox export"):
        load_onnx_detector(tmp_path / "a.onnx")


def test_tensors_in_other_files_are_rejected(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    assert (tmp_path / "a.bin").exists()
    for load in (load_onnx_detector, open_detector):
        with pytest.raises(ChromaboxError, match=r"a\.onnx: the model refers to tensors in other files"):
            load(tmp_path / "a.onnx")
