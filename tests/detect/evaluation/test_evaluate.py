"""Evaluation put together: classes by name, files that fail, warnings, JSON; the measures have tests of their own."""

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
    default_split,
    evaluate_detector,
    evaluate_predictions,
    find_leaks,
)
from chromabox.detect.evaluation.metrics import ImagePredictions
from chromabox.detect.inference.predict import FileResult
from chromabox.detect.models.architecture import yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, DarknetModel
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
def trained() -> Detector:
    """A net of other classes in another order; what it finds is put in its place by the tests."""
    return Detector(DarknetModel(yolov3_tiny(3), DARKNET).eval(), ("bird", "dog", "cat"), 416, {})


def finds(monkeypatch: pytest.MonkeyPatch, found: dict[str, Detections | str]) -> list[dict[str, object]]:
    """Puts answers, by the file's name, in the net's place; a text is the reason why the file could not be read."""
    asked: list[dict[str, object]] = []

    def answer(paths: Sequence[Path], detector: object, **options: object) -> Iterator[FileResult]:
        asked.append(options)
        for path in paths:
            told = found[path.stem]
            yield FileResult(path, error=told) if isinstance(told, str) else FileResult(path, detections=told)

    monkeypatch.setattr(evaluate, "detect_files", answer)
    return asked


def detections(boxes: list[tuple[float, ...]], scores: list[float], classes: list[int]) -> Detections:
    return Detections(np.array(boxes, np.float32), confidence=np.array(scores, np.float32), class_id=np.array(classes))


def test_everything_right(monkeypatch: pytest.MonkeyPatch, data: DetectionDataset, trained: Detector) -> None:
    right = detections([DOG_BOX, CAT_BOX], [0.9, 0.8], [1, 2])
    asked = finds(monkeypatch, {"b": right, "c": Detections.empty()})
    result = evaluate_detector(trained, data.split("val"), size=416, num_resamples=50)
    assert asked == [{"confidence": 0.005, "iou": 0.45, "classes": None, "size": 416}]
    said = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert (said["ap"], said["ap50"], said["ap_interval"]) == (1, 1, [1, 1])
    assert said["course"]["ap50"] == pytest.approx(0.995)
    assert (said["pictures"], said["boxes"]) == (2, 2)
    assert set(said["per_class"]) == {"dog", "cat"}
    assert said["per_class"]["dog"] == {
        "ap": 1,
        "ap50": 1,
        "course_ap": pytest.approx(0.995),
        "course_ap50": pytest.approx(0.995),
        "boxes": 1,
    }
    assert said["warnings"] == ["2 of 2 classes have under 5 boxes: their own figures are chance"]


def test_classes_the_net_does_not_know_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {"val/b": DOG + CAT, "train/a": ""}), "val")
    net = Detector(DarknetModel(yolov3_tiny(1), DARKNET).eval(), ("dog",), 416, {})
    finds(monkeypatch, {"b": detections([DOG_BOX], [0.9], [0])})
    result = evaluate_detector(net, data, num_resamples=20)
    assert result.coco.ap == 1
    assert result.warnings[0] == "the net does not know cat: 1 boxes are left out of account"


def test_files_that_fail_count_as_nothing_found(
    monkeypatch: pytest.MonkeyPatch, data: DetectionDataset, trained: Detector
) -> None:
    finds(monkeypatch, {"b": "b.png is cut short", "c": detections([DOG_BOX], [0.9], [1])})
    result = evaluate_detector(trained, data.split("val"), num_resamples=20)
    assert result.coco.ap == 0
    assert result.warnings[0] == "b.png is cut short; counted as nothing found"


def test_no_box_to_find_gives_one_sentence(data: DetectionDataset) -> None:
    empty = DetectionDataset(data.samples[2:], data.classes, ("val",))
    nothing = [ImagePredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))]
    with pytest.raises(ChromaboxError, match="the pictures have no boxes to be found"):
        evaluate_predictions(nothing, empty)


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (("train", "val", "test"), "val"),
        (("train2017", "val2017"), "val2017"),
        (("train", "test"), "test"),
        (("",), None),
    ],
)
def test_the_split_held_out(splits: tuple[str, ...], chosen: str | None) -> None:
    assert default_split(DetectionDataset((), ("cat",), splits)) == chosen


def test_shared_pictures_are_found_up_to_a_limit(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": DOG, "train/b": DOG, "val/c": DOG, "val/d": DOG})
    pictures = folder / "images"
    (pictures / "val" / "d.png").write_bytes((pictures / "train" / "a.png").read_bytes())
    (pictures / "train" / "b.png").write_bytes((pictures / "train" / "a.png").read_bytes())
    data = load_detection_dataset(folder)
    pairs = find_leaks(data, "val")
    assert [(first.name, second.name) for first, second in pairs] == [("d.png", "a.png"), ("d.png", "b.png")]
    assert find_leaks(data, "val", max_images=3) == []
