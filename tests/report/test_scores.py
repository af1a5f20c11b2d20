"""The scorecard's files read back by the standard library, and its table."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.colour.evaluation.image_scores import FileScores, ScoreReport, score_folders, score_image
from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.scores import print_scores, report_scores, write_scores

CAT = np.ascontiguousarray(data.chelsea()[40:100, 60:140])
PALE = (CAT // 2 + CAT.mean(-1, keepdims=True) / 2).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two originals, one coloured anew and one left as it was, and one that cannot be read."""
    originals, coloured = tmp_path / "in", tmp_path / "out"
    for folder, rgb in ((originals, CAT), (coloured, PALE)):
        folder.mkdir()
        Image.fromarray(rgb).save(folder / "pale.png")
        Image.fromarray(CAT).save(folder / "same.png")
        Image.fromarray(CAT).save(folder / "torn.png")
    (coloured / "torn.png").write_bytes(b"torn")
    return originals, coloured


def test_everything_is_reported(tmp_path: Path, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    card = report_scores(*folders, tmp_path / "new" / "scores")
    said, complained = capsys.readouterr()
    expected = score_image(CAT, PALE)
    line = next(line for line in said.splitlines() if "pale.png" in line)
    for number in (
        f"{expected.psnr:.2f}",
        f"{expected.psnr_gain:.2f}",
        f"{expected.ssim:.4f}",
        f"{expected.delta_e:.2f}",
    ):
        assert number in line
    assert "∞" in next(line for line in said.splitlines() if "same.png" in line)
    assert f"{expected.grey_psnr:.2f}" in next(line for line in said.splitlines() if "grey instead" in line)
    assert "scores.csv" in said
    assert [line for line in complained.splitlines() if "torn.png" in line and "not scored" in line]
    assert [failure.file.name for failure in card.failed] == ["torn.png"]

    def forbid(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "new" / "scores" / "scores.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=forbid)
    assert found.keys() == {"mean", "files", "failed"}
    pale, same = found["files"]
    assert pale["psnr"] == expected.psnr
    assert pale["original"] == pale["coloured"] == "pale.png"
    assert (pale["width"], pale["height"]) == (80, 60)
    assert same["psnr"] is None
    assert found["mean"]["psnr"] == expected.psnr
    assert found["mean"]["delta_e"] == pytest.approx(expected.delta_e / 2)
    assert found["failed"] == [{"file": "torn.png", "error": card.failed[0].error}]

    with (tmp_path / "new" / "scores" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["coloured"] for row in rows] == ["pale.png", "same.png"]
    assert rows[0].keys() == pale.keys()
    assert float(rows[0]["delta_e_reduction"]) == expected.delta_e_reduction
    assert rows[1]["psnr"] == ""
    assert {path.name for path in (tmp_path / "new" / "scores").iterdir()} == {"scores.csv", "scores.json"}


def test_without_a_folder_nothing_is_written(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    before = set(tmp_path.rglob("*"))
    report_scores(*folders)
    assert set(tmp_path.rglob("*")) == before


def test_long_tables_are_cut_and_empty_ones_are_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    one = FileScores(Path("a.png"), Path("a.png"), 80, 60, score_image(CAT, PALE))
    print_scores(ScoreReport([one] * 45, []), "many")
    said = capsys.readouterr().out
    assert said.count("a.png") == 40
    assert "and 5 more files" in said
    assert "mean of 45" in said
    print_scores(ScoreReport([], []), "none")
    assert "mean" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a name be other than UTF-8")
def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup, and a name that is not UTF-8 keeps its bytes in both files."""
    name = os.fsdecode(b"[bold]\xff.png")
    card = ScoreReport([FileScores(Path(name), Path(name), 80, 60, score_image(CAT, PALE))], [])
    print_scores(card, "[red] against [b]")
    said = capsys.readouterr().out
    assert "[bold]?.png" in said
    assert "[red] against [b]" in said
    table, whole = write_scores(card, tmp_path)
    assert json.loads(whole.read_text(encoding="utf-8"))["files"][0]["original"] == name
    assert b"[bold]\xff.png" in table.read_bytes()


def test_a_folder_that_cannot_be_made(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChromaboxError, match="scores cannot be written there"):
        write_scores(score_folders(*folders), tmp_path / "file" / "scores")
    with pytest.raises(UsageError, match="does not exist"):
        report_scores(tmp_path / "nowhere", folders[1])
