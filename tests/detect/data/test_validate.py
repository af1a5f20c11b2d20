"""A data set with one of everything that can be wrong: all of it found and counted, nothing touched."""

import json
from pathlib import Path

import pytest

from chromabox.detect.data.validate import DatasetReport, validate_dataset
from detection_fixtures import make_image, make_yolo_dataset, read_all_files

DOG = "1 0.5 0.5 0.5 0.4\n"


def bad_set(folder: Path) -> Path:
    """Training: a is bad in its lines, b is cut short, c is empty; validation: d is c again, e like a, f sound."""
    lines = f"{DOG}{DOG}0 0.5 0.5 0 0.2\n1 0.9 0.5 0.4 0.2\n7 0.5 0.5 0.2 0.2\n0 0.5 0.5 1 1\n"
    make_yolo_dataset(
        folder, {"train/a": lines, "train/b": DOG, "train/c": "", "val/d": DOG, "val/e": DOG, "val/f": DOG}
    )
    pictures = folder / "images"
    whole = (pictures / "train" / "b.png").read_bytes()
    (pictures / "train" / "b.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "val" / "d.png").write_bytes((pictures / "train" / "c.png").read_bytes())
    make_image(pictures / "val" / "e.png", seed=0, size=(200, 100))
    return folder


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> DatasetReport:
    folder = bad_set(tmp_path_factory.mktemp("data"))
    before = read_all_files(folder)
    found = validate_dataset(folder)
    assert read_all_files(folder) == before
    return found


def test_every_fault_is_found(check: DatasetReport) -> None:
    assert check.issue_counts == {
        "duplicate label": 1,
        "zero size": 1,
        "out of range": 1,
        "unknown class": 1,
        "huge box": 1,
        "damaged picture": 1,
    }
    assert not check.is_valid
    assert {fault.path.name for fault in check.issues if fault.issue_type == "damaged picture"} == {"b.png"}


def test_counts(check: DatasetReport) -> None:
    assert check.box_counts == {"train": {"cat": 1, "dog": 3}, "val": {"cat": 0, "dog": 3}}
    assert [path.name for path in check.unlabelled] == ["c.png"]


def test_twins_across_splits_are_found(check: DatasetReport) -> None:
    pairs = {(pair.first.name, pair.second.name, pair.exact) for pair in check.leaks}
    assert pairs == {("a.png", "e.png", False), ("c.png", "d.png", True)}


def test_everything_is_json(check: DatasetReport) -> None:
    said = json.loads(json.dumps(check.as_json()))
    assert said["pictures"] == {"train": 3, "val": 3}
    assert said["twins_across_splits"] == 2
    assert len(said["faults"]) == 6
    assert said["classes"] == ["cat", "dog"]


def test_a_sound_set_is_sound(tmp_path: Path) -> None:
    found = validate_dataset(make_yolo_dataset(tmp_path, {"train/a": DOG, "val/b": "0 0.5 0.5 1 1\n"}))
    assert found.is_valid
    assert found.issue_counts == {"huge box": 1}
