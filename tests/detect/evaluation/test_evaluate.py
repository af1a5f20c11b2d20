"""Evaluation as a whole: class names, unreadable files, warnings and JSON; the metrics have separate tests."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.detections import Detections
from chromabox.detect.evaluation import evaluate
from chromabox.detect.evaluation.evaluate import (
    evaluate_detector,
    evaluate_predictions,
    find_leaks,
)
from chromabox.detect.evaluation.metrics import ImagePredictions
from chromabox.detect.inference.predict import InferenceOptions
from chromabox.detect.models.architecture import DARKNET, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights.load import Detector
from chromabox.errors import ChromaboxError
from detection_fixtures import make_yolo_dataset

#: 100 × 50 pixels: a dog at (25, 15)–(75, 35), a cat at (0, 0)–(20, 10).
DOG, CAT = "1 0.5 0.5 0.5 0.4\n", "0 0.1 0.1 0.2 0.2\n"
DOG_BOX, CAT_BOX = (25.0, 15.0, 75.0, 35.0), (0.0, 0.0, 20.0, 10.0)


@pytest.fixture
def data(tmp_path: Path) -> DetectionDataset:
    return load_detection_dataset(make_yolo_dataset(tmp_path, {"train/a": DOG, "val/b": DOG + CAT, "val/c": ""}))


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A detector with other classes in a different order; the tests replace its predictions."""
    return Detector(DarknetModel(yolov3_tiny(3), DARKNET).eval(), ("bird", "dog", "cat"), 416, {})


def replace_predictions(
    monkeypatch: pytest.MonkeyPatch, results: dict[str, Detections | str]
) -> list[InferenceOptions]:
    """Replace the detector by fixed results for each file name (a string is an error); return the options of calls."""
    calls: list[InferenceOptions] = []

    def detect_files(paths: Sequence[Path], detector: object, options: InferenceOptions) -> Iterator[Detections | str]:
        calls.append(options)
        yield from (results[path.stem] for path in paths)

    monkeypatch.setattr(evaluate, "detect_files", detect_files)
    return calls


def make_detections(boxes: list[tuple[float, ...]], scores: list[float], classes: list[int]) -> Detections:
    class_id = np.array(classes, np.int64)
    names = np.array(["bird", "dog", "cat"])[class_id]
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), class_id, names)


def test_perfect_predictions_give_full_metrics(
    monkeypatch: pytest.MonkeyPatch, data: DetectionDataset, detector: Detector
) -> None:
    perfect = make_detections([DOG_BOX, CAT_BOX], [0.9, 0.8], [1, 2])
    calls = replace_predictions(monkeypatch, {"b": perfect, "c": make_detections([], [], [])})
    result = evaluate_detector(detector, data.split("val"), size=416, num_resamples=50)
    assert calls == [InferenceOptions(confidence=0.005, iou=0.45, class_ids=None, size=416)]
    summary = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert (summary["ap"], summary["ap50"], summary["ap_interval"]) == (1, 1, [1, 1])
    assert summary["course"]["ap50"] == pytest.approx(0.995)
    assert (summary["pictures"], summary["boxes"]) == (2, 2)
    assert set(summary["per_class"]) == {"dog", "cat"}
    assert summary["per_class"]["dog"] == {
        "ap": 1,
        "ap50": 1,
        "course_ap": pytest.approx(0.995),
        "course_ap50": pytest.approx(0.995),
        "boxes": 1,
    }
    assert summary["warnings"] == ["AP is not reliable for classes with fewer than 5 boxes: 2 of 2 classes"]


def test_classes_missing_from_the_model_give_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {"val/b": DOG + CAT, "train/a": ""}), "val")
    detector = Detector(DarknetModel(yolov3_tiny(1), DARKNET).eval(), ("dog",), 416, {})
    replace_predictions(monkeypatch, {"b": make_detections([DOG_BOX], [0.9], [0])})
    result = evaluate_detector(detector, data, num_resamples=20)
    assert result.coco.ap == 1
    assert result.warnings[0] == "classes missing from the model: cat; number of boxes ignored: 1"


def test_numbers_of_classes_without_names_are_told(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replace_predictions(monkeypatch, {"a": make_detections([], [], [])})
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {"val/a": DOG}, names=None))
    warnings = evaluate_detector(detector, data).warnings
    assert warnings[0] == "the dataset has no class names; its class numbers are used as those of the model"


def test_unreadable_file_is_evaluated_without_detections(
    monkeypatch: pytest.MonkeyPatch, data: DetectionDataset, detector: Detector
) -> None:
    replace_predictions(monkeypatch, {"b": "b.png is truncated", "c": make_detections([DOG_BOX], [0.9], [1])})
    result = evaluate_detector(detector, data.split("val"), num_resamples=20)
    assert result.coco.ap == 0
    assert result.warnings[0] == "b.png is truncated; evaluated as an image without detections"


def test_dataset_without_ground_truth_is_rejected(data: DetectionDataset) -> None:
    empty = DetectionDataset(data.samples[2:], data.classes, ("val",))
    no_predictions = [ImagePredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))]
    with pytest.raises(ChromaboxError, match="the images have no ground-truth boxes"):
        evaluate_predictions(no_predictions, empty)


def test_duplicates_across_splits_are_found_up_to_the_image_limit(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": DOG, "train/b": DOG, "val/c": DOG, "val/d": DOG})
    images = folder / "images"
    (images / "val" / "d.png").write_bytes((images / "train" / "a.png").read_bytes())
    (images / "train" / "b.png").write_bytes((images / "train" / "a.png").read_bytes())
    data = load_detection_dataset(folder)
    pairs = find_leaks(data, "val")
    assert [(first.name, second.name) for first, second in pairs] == [("d.png", "a.png"), ("d.png", "b.png")]
    assert find_leaks(data, "val", max_images=3) == []
