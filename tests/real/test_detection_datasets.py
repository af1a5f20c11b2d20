"""COCO128 and the raccoons: read with the counts that their owners state, and the detector's AP on the former.

Counts: Ultralytics' COCO128 (128 training pictures, 2 of them without labels, 929 boxes) and 128 pictures of val2017
beside it (898 boxes); the raccoons' own tables (173 and 44 boxes).
"""

from pathlib import Path

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset
from chromabox.detect.evaluation.evaluate import evaluate_detector
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.weights.load import load_detector
from chromabox.errors import ChromaboxError


@pytest.fixture(params=["coco128", "raccoon"])
def known_set(request: pytest.FixtureRequest) -> str:
    return there(request.param)


def there(name: str) -> str:
    try:
        load_detection_dataset(name)
    except ChromaboxError as error:
        pytest.skip(f"{name.upper()} CANNOT BE REACHED, SO NOTHING OF IT IS TESTED: {error}")
    return name


COUNTS = {
    "coco128": {"train2017": (128, 126, 929), "val2017": (128, 128, 898)},
    "raccoon": {"train": (160, 160, 173), "test": (40, 40, 44)},
}


def test_counts_are_as_stated(known_set: str) -> None:
    """Pictures, those with boxes, and boxes of each split."""
    data = load_detection_dataset(known_set)
    found = {}
    for split in data.splits:
        counts = [len(one.boxes) for one in data.split(split).samples]
        found[split] = (len(counts), sum(count > 0 for count in counts), sum(counts))
    assert found == COUNTS[known_set]
    assert [fault for fault in data.issues if fault.issue_type != "huge box"] == []


def test_the_raccoons_are_partly_the_same() -> None:
    """Pairs seen by eye: equal files, one picture at two sizes, one with words on it, two photographs of one scene."""
    check = validate_dataset(there("raccoon"))
    pairs = {
        tuple(sorted(int(path.stem.split("-")[1]) for path in (one.first, one.second))) for one in check.duplicates
    }
    assert pairs == {(11, 116), (83, 120), (21, 45), (50, 52), (50, 74), (52, 74), (51, 85), (65, 98), (186, 199)}
    assert [Path(one.first).stem for one in check.leaks] == ["raccoon-186"]


def test_yolov3_tiny_reaches_its_ap_on_pictures_it_has_not_seen() -> None:
    """Published for all of val2017 at 416: AP50 33.0; on these 128 another implementation measured 43.1."""
    data = load_detection_dataset(there("coco128"), "val2017")
    try:
        trained = load_detector("yolov3-tiny")
    except ChromaboxError as error:
        pytest.skip(f"THE REAL YOLOV3-TINY WEIGHTS CANNOT BE REACHED, SO ITS AP IS NOT TESTED: {error}")
    result = evaluate_detector(optimize_for_inference(trained), data, size=416, num_resamples=100)
    assert result.coco.ap50 >= 0.42
    assert result.coco.ap >= 0.22
    assert result.ap50_interval[0] < result.coco.ap50 < result.ap50_interval[1]
