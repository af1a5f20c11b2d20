"""Validation of a dataset with one issue of each type: all are found and counted, and no file is modified."""

import json
from pathlib import Path

import pytest

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.validate import NO_COMMON_CLASS, DatasetReport, default_split, validate_dataset
from detection_fixtures import make_image, make_yolo_dataset, read_all_files

DOG = "1 0.5 0.5 0.5 0.4\n"
CAT = "0 0.4 0.4 0.5 0.4\n"


def make_invalid_dataset(folder: Path) -> Path:
    """Train: a has invalid lines, b is truncated, c has no boxes. Val: d equals c, e resembles a, f is valid."""
    lines = f"{DOG}{DOG}0 0.5 0.5 0 0.2\n1 0.9 0.5 0.4 0.2\n7 0.5 0.5 0.2 0.2\n0 0.5 0.5 1 1\n"
    make_yolo_dataset(
        folder, {"train/a": lines, "train/b": DOG, "train/c": "", "val/d": DOG, "val/e": DOG, "val/f": DOG}
    )
    images = folder / "images"
    content = (images / "train" / "b.png").read_bytes()
    (images / "train" / "b.png").write_bytes(content[: len(content) // 2])
    (images / "val" / "d.png").write_bytes((images / "train" / "c.png").read_bytes())
    make_image(images / "val" / "e.png", seed=0, size=(200, 100))
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DatasetReport:
    folder = make_invalid_dataset(tmp_path_factory.mktemp("data"))
    before = read_all_files(folder)
    validated = validate_dataset(folder)
    assert read_all_files(folder) == before
    return validated


def test_all_issues_are_found(report: DatasetReport) -> None:
    assert report.issue_counts == {
        "duplicate label": 1,
        "zero size": 1,
        "out of range": 1,
        "unknown class": 1,
        "huge box": 1,
        "damaged picture": 1,
    }
    assert not report.is_valid
    assert {issue.path.name for issue in report.issues if issue.issue_type == "damaged picture"} == {"b.png"}


def test_boxes_and_unlabelled_images_are_counted(report: DatasetReport) -> None:
    assert report.box_counts == {"train": {"cat": 1, "dog": 3}, "val": {"cat": 0, "dog": 3}}
    assert [Path(path).name for path in report.as_json()["empty"]] == ["c.png"]


def test_duplicates_across_splits_are_found(report: DatasetReport) -> None:
    pairs = {(pair.first.name, pair.second.name, pair.exact) for pair in report.leaks}
    assert pairs == {("a.png", "e.png", False), ("c.png", "d.png", True)}


def test_report_is_converted_to_json(report: DatasetReport) -> None:
    content = json.loads(json.dumps(report.as_json()))
    assert content["pictures"] == {"train": 3, "val": 3}
    assert content["twins_across_splits"] == 2
    assert len(content["faults"]) == 6
    assert content["classes"] == ["cat", "dog"]


def test_dataset_with_only_huge_boxes_is_valid(tmp_path: Path) -> None:
    report = validate_dataset(make_yolo_dataset(tmp_path, {"train/a": DOG, "val/b": "1 0.5 0.5 1 1\n"}))
    assert report.is_valid
    assert report.issue_counts == {"huge box": 1}


@pytest.mark.parametrize(
    ("train", "val", "is_valid", "problem", "warnings"),
    [
        (CAT + DOG, CAT + DOG, True, None, []),
        (DOG, CAT + DOG, True, None, ["classes without training boxes, which cannot be learnt: 1 of 2 (cat)"]),
        (
            CAT + DOG,
            DOG,
            True,
            None,
            ["classes without validation boxes, whose results are not measured: 1 of 2 (cat)"],
        ),
        (
            DOG,
            CAT,
            False,
            None,
            [
                "classes without training boxes, which cannot be learnt: 1 of 2 (cat)",
                "classes without validation boxes, whose results are not measured: 1 of 2 (dog)",
                NO_COMMON_CLASS,
            ],
        ),
        (CAT + DOG, "", False, "the images of the split val, which are used for validation, have no boxes", None),
        ("", DOG, True, "no labelled training images", None),
    ],
)
def test_classes_that_are_not_learnt_or_not_measured_are_reported(
    train: str, val: str, is_valid: bool, problem: str | None, warnings: list[str] | None, tmp_path: Path
) -> None:
    report = validate_dataset(make_yolo_dataset(tmp_path, {"train/a": train, "val/b": val}))
    assert report.is_valid is is_valid
    assert (report.training_problem or "").startswith(problem or "")
    assert (report.training_problem is None) is (problem is None)
    assert warnings is None or report.class_warnings == warnings


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1 0.5 0.5 0.2 0.2", "2 0.5 0.5 0.2 0.2"], True),
        (["2 0.5 0.5 0.2 0.2"], True),
        (["0 0.5 0.5 0.2 0.2", "2 0.5 0.5 0.2 0.2"], False),
        (["1 0.5 0.5 0.2 0.2"], False),
        (["1 0.5 0.5 0.2 0.2", "3 0.5 0.5 0.2 0.2"], False),
    ],
)
def test_classes_counted_from_1_are_reported(lines: list[str], expected: bool, tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": "\n".join(lines), "val/b": lines[0]})
    hint = "no label has class 0, and the highest class is 2, the number of classes"
    assert [issue.message.startswith(hint) for issue in validate_dataset(folder).issues].count(True) == expected


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "val", "test"), "val"),
        (("train2017", "val2017"), "val2017"),
        (("train", "test"), "test"),
        (("training", "validation", "testing"), "validation"),
        (("Train", "Test"), "Test"),
        (("train", "val1", "val2"), "val"),
        (("",), None),
    ],
)
def test_default_split_prefers_validation_over_test(splits: tuple[str, ...], expected: str | None) -> None:
    assert default_split(DetectionDataset((), ("cat",), splits)) == expected
