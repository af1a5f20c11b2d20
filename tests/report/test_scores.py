"""Score files, read back by the standard library, and the printed table."""

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
from colour_fixtures import write_feature_network

CAT = np.ascontiguousarray(data.chelsea()[40:100, 60:140])
PALE = (CAT // 2 + CAT.mean(-1, keepdims=True) / 2).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three originals: one colourised, one unchanged, and one whose colourised file is corrupt."""
    originals, coloured = tmp_path / "in", tmp_path / "out"
    for folder, rgb in ((originals, CAT), (coloured, PALE)):
        folder.mkdir()
        Image.fromarray(rgb).save(folder / "pale.png")
        Image.fromarray(CAT).save(folder / "same.png")
        Image.fromarray(CAT).save(folder / "corrupt.png")
    (coloured / "corrupt.png").write_bytes(b"corrupt")
    return originals, coloured


def test_files_that_are_not_or_partly_scored_are_named(
    tmp_path: Path, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    originals, coloured = folders
    for folder in folders:
        Image.fromarray(CAT).save(folder / "pages.tif", save_all=True, append_images=[Image.fromarray(PALE)])
    (originals / "notes.txt").write_text("text")
    (originals / "film.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    report_scores(originals, coloured)
    lines = capsys.readouterr().out.splitlines()
    for folder in folders:
        assert f"{folder / 'pages.tif'} has 2 frames or pages; only the first is compared" in lines
    assert f"not processed: unknown kind: 1 ({originals / 'notes.txt'})" in lines
    assert f"not processed: video: 1 ({originals / 'film.avi'})" in lines


def test_note_on_an_fid_of_few_images(
    tmp_path: Path, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Heusel et al. 2017 (reference implementation): use at least as many images as features, here 3."""
    network = write_feature_network(tmp_path / "means.onnx")
    report_scores(*folders, fid_network=network)
    out = capsys.readouterr().out
    assert "FID over 2 images" in out
    assert "With fewer images than features (3), the FID is too large; compare it only with FIDs of 2 images." in out
    for folder in folders:
        Image.fromarray(PALE if folder == folders[1] else CAT).save(folder / "more.png")
    report_scores(*folders, fid_network=network)
    out = capsys.readouterr().out
    assert "FID over 3 images" in out
    assert "fewer images" not in out
    report_scores(folders[0] / "pale.png", folders[1] / "pale.png", fid_network=network)
    assert "no FID: expected two or more images that can be scored, found 1" in capsys.readouterr().out


def test_report_scores_prints_and_writes_everything(
    tmp_path: Path, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_scores(*folders, tmp_path / "new" / "scores")
    printed, errors = capsys.readouterr()
    expected = score_image(CAT, PALE)
    line = next(line for line in printed.splitlines() if "pale.png" in line)
    for number in (
        f"{expected.psnr:.2f}",
        f"{expected.psnr_gain:.2f}",
        f"{expected.ssim:.4f}",
        f"{expected.delta_e:.2f}",
    ):
        assert number in line
    assert "∞" in next(line for line in printed.splitlines() if "same.png" in line)
    assert f"{expected.grey_psnr:.2f}" in next(line for line in printed.splitlines() if "greyscale baseline" in line)
    assert "scores.csv" in printed
    assert [line for line in errors.splitlines() if "corrupt.png" in line and "not scored" in line]
    assert [file.name for file in report.failed] == ["corrupt.png"]

    def forbid(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "new" / "scores" / "scores.json").read_text(encoding="utf-8")
    written = json.loads(text, parse_constant=forbid)
    assert written.keys() == {"mean", "summary", "files", "failed"}
    pale, same = written["files"]
    assert pale["psnr"] == expected.psnr
    assert pale["original"] == pale["coloured"] == "pale.png"
    assert (pale["width"], pale["height"]) == (80, 60)
    assert same["psnr"] is None
    assert written["mean"]["psnr"] == expected.psnr
    assert written["mean"]["delta_e"] == pytest.approx(expected.delta_e / 2)
    assert written["failed"] == [{"file": "corrupt.png", "error": report.failed[Path("corrupt.png")]}]

    with (tmp_path / "new" / "scores" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["coloured"] for row in rows] == ["pale.png", "same.png"]
    assert rows[0].keys() == pale.keys()
    assert float(rows[0]["delta_e_reduction"]) == expected.delta_e_reduction
    assert rows[1]["psnr"] == ""
    assert {path.name for path in (tmp_path / "new" / "scores").iterdir()} == {"scores.csv", "scores.json"}


def test_nothing_is_written_without_a_folder(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    before = set(tmp_path.rglob("*"))
    report_scores(*folders)
    assert set(tmp_path.rglob("*")) == before


def test_long_tables_are_cut_and_empty_reports_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    file_scores = FileScores(Path("a.png"), Path("a.png"), 80, 60, score_image(CAT, PALE))
    print_scores(ScoreReport([file_scores] * 45, {}), "many")
    printed = capsys.readouterr().out
    assert printed.count("a.png") == 40
    assert "more files: 5" in printed
    assert "mean over files (45)" in printed
    print_scores(ScoreReport([], {}), "none")
    assert "mean" not in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_unusual_file_names_are_preserved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are not markup, and the bytes of a name that is not UTF-8 are preserved in both files."""
    name = os.fsdecode(b"[bold]\xff.png")
    report = ScoreReport([FileScores(Path(name), Path(name), 80, 60, score_image(CAT, PALE))], {})
    print_scores(report, "[red] compared with [b]")
    printed = capsys.readouterr().out
    assert r"[bold]\xff.png" in printed
    assert "[red] compared with [b]" in printed
    csv_path, json_path = write_scores(report, tmp_path)
    assert json.loads(json_path.read_text(encoding="utf-8"))["files"][0]["original"] == name
    assert b"[bold]\xff.png" in csv_path.read_bytes()


def test_unwritable_folder_raises(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChromaboxError, match="scores cannot be written"):
        write_scores(score_folders(*folders), tmp_path / "file" / "scores")
    with pytest.raises(UsageError, match="does not exist"):
        report_scores(tmp_path / "missing", folders[1])
