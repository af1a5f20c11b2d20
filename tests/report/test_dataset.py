"""Output of ``chromabox data check``; validation itself is tested in tests/detect/data/test_validate.py."""

import json
import sys
from pathlib import Path

import pytest

from chromabox.errors import UsageError
from chromabox.report.dataset import MAX_LINES_PER_ISSUE, report_validation
from detection_fixtures import make_yolo_dataset, read_all_files

DOG = "1 0.5 0.5 0.5 0.4\n"


def test_valid_dataset_is_printed_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"train/a": DOG, "val/b": "", "val/c": DOG}
    assert report_validation(make_yolo_dataset(tmp_path, labels, names=("cat", "[red]dog"))).is_valid
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in printed.splitlines() if line.startswith("│")}
    assert [cell.strip() for cell in rows["images"]] == ["1", "2"]
    assert [cell.strip() for cell in rows["images without boxes"]] == ["0", "1"]
    assert [cell.strip() for cell in rows["[red]dog"]] == ["1", "1"]
    assert "cat" not in rows
    assert printed.splitlines()[-4:] == [
        "fewer than 5 boxes in a split: [red]dog",
        "classes without training boxes, which cannot be learnt: 1 of 2 (cat)",
        "names of COCO classes, which finetune takes over from weights trained on COCO (except for --new-classes): cat",
        "No problems found.",
    ]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (None, "no class names found (in a .yaml file, classes.txt or *.names): the classes are class 0, class 1, …"),
        (
            ("Mouse", "helmet"),
            "names of COCO classes, which finetune takes over from weights trained on COCO (except for --new-classes): "
            "Mouse",
        ),
    ],
)
def test_missing_names_and_names_of_coco_classes_are_told(
    names: tuple[str, ...] | None, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_validation(make_yolo_dataset(tmp_path, {"train/a": DOG, "val/b": DOG}, names))
    assert line in capsys.readouterr().out.splitlines()


def test_frequent_issues_do_not_hide_rare_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": "9 0.5 0.5 0.1 0.1\n" * 50 + "word\n", "val/b": DOG})
    report = report_validation(folder, output=tmp_path / "new" / "check.json")
    printed = capsys.readouterr().out.splitlines()
    assert sum("unknown class" in line for line in printed) == MAX_LINES_PER_ISSUE + 1
    assert "… and 30 more of “unknown class”" in printed
    assert sum("unreadable label" in line for line in printed) == 1
    assert printed[-2].startswith("Problems found. Use --repair")
    assert printed[-1] == str(tmp_path / "new" / "check.json")
    assert len(json.loads((tmp_path / "new" / "check.json").read_text())["faults"]) == len(report.issues) == 51


def test_clean_copy_is_reported_and_keeps_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_yolo_dataset(tmp_path / "data", {"train/a": DOG + DOG, "val/b": DOG})
    before = read_all_files(folder)
    report_validation(folder, clean_copy=tmp_path / "copy")
    assert read_all_files(folder) == before
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"{tmp_path / 'copy'}: images: 2, boxes: 2, changes: 1 (listed in repair.json)"
    )


def test_unwritable_output_raises(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file; expected a folder"):
        report_validation(folder, output=tmp_path / "file" / "check.json")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have only Unicode file names")
def test_file_names_that_are_not_unicode_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_yolo_dataset(tmp_path / "data", {"train/a\udcff": DOG + DOG, "val/b": DOG})
    report_validation(folder, output=tmp_path / "check.json", clean_copy=tmp_path / "copy")
    assert r"a\udcff.txt:2" in capsys.readouterr().out
    assert json.loads((tmp_path / "check.json").read_text())["faults"][0]["file"].endswith("a\\udcff.txt")
