"""A data set with one of everything that can be wrong: all of it found and counted, nothing touched."""

import json
from pathlib import Path

import pytest

from chromabox.detect.data.validate import DetectionCheck, check_detection_set
from detection_fixtures import draw, everything_in, yolo_set

DOG = "1 0.5 0.5 0.5 0.4\n"


def bad_set(folder: Path) -> Path:
    """Training: a is bad in its lines, b is cut short, c is empty; validation: d is c again, e like a, f sound."""
    lines = f"{DOG}{DOG}0 0.5 0.5 0 0.2\n1 0.9 0.5 0.4 0.2\n7 0.5 0.5 0.2 0.2\n0 0.5 0.5 1 1\n"
    yolo_set(folder, {"train/a": lines, "train/b": DOG, "train/c": "", "val/d": DOG, "val/e": DOG, "val/f": DOG})
    pictures = folder / "images"
    whole = (pictures / "train" / "b.png").read_bytes()
    (pictures / "train" / "b.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "val" / "d.png").write_bytes((pictures / "train" / "c.png").read_bytes())
    draw(pictures / "val" / "e.png", seed=0, size=(200, 100))
    return folder


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> DetectionCheck:
    folder = bad_set(tmp_path_factory.mktemp("data"))
    before = everything_in(folder)
    found = check_detection_set(folder)
    assert everything_in(folder) == before
    return found


def test_every_fault_is_found(check: DetectionCheck) -> None:
    assert check.kinds == {
        "duplicate label": 1,
        "zero size": 1,
        "out of range": 1,
        "unknown class": 1,
        "huge box": 1,
        "damaged picture": 1,
    }
    assert not check.sound
    assert {fault.path.name for fault in check.faults if fault.kind == "damaged picture"} == {"b.png"}


def test_counts(check: DetectionCheck) -> None:
    assert check.boxes == {"train": {"cat": 1, "dog": 3}, "val": {"cat": 0, "dog": 3}}
    assert [path.name for path in check.empty] == ["c.png"]


def test_twins_across_splits_are_found(check: DetectionCheck) -> None:
    pairs = {(pair.first.name, pair.second.name, pair.exact) for pair in check.crossing}
    assert pairs == {("a.png", "e.png", False), ("c.png", "d.png", True)}


def test_everything_is_json(check: DetectionCheck) -> None:
    said = json.loads(json.dumps(check.as_json()))
    assert said["pictures"] == {"train": 3, "val": 3}
    assert said["twins_across_splits"] == 2
    assert len(said["faults"]) == 6
    assert said["classes"] == ["cat", "dog"]


def test_a_sound_set_is_sound(tmp_path: Path) -> None:
    found = check_detection_set(yolo_set(tmp_path, {"train/a": DOG, "val/b": "0 0.5 0.5 1 1\n"}))
    assert found.sound
    assert found.kinds == {"huge box": 1}
