"""The command ``colour``: what its summary says about images in colour and results that stay grey."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.__main__ import main
from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.weights.checkpoint import PhotoModel, model_metadata
from colour_fixtures import write_colour_model

CAT = data.chelsea()[::6, ::6].copy()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a photo model that predicts grey."""
    bins = ChromaBins(np.array([(0, 0), (20, 20)], np.float32), np.full(2, 0.5, np.float32), 20.0)
    network = PhotoNet(2, widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
    small = PhotoModel(network, bins, model_metadata("photo", {}, bins))
    write_colour_model(tmp_path / "grey.onnx", small, seed=2, scale=0.1, bias=np.array([20.0, 0.0]))
    return tmp_path / "grey.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with six images in colour, two grey images, one damaged image and one text file."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.roll(CAT, number, axis=1)).save(folder / f"colour{number}.png")
    for name in ("grey0.png", "grey1.png"):
        Image.fromarray(CAT[..., 1]).save(folder / name)
    (folder / "damaged.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("text")
    return folder


def run_colour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, list[str], str]:
    """Run the command in this process. Return its exit code, the lines of standard output, and standard error."""
    monkeypatch.setattr("sys.argv", ["chromabox", "colour", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out.splitlines(), captured.err


def test_summary_names_images_in_colour_and_grey_results_also_when_they_are_up_to_date(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first_names = ", ".join(f"{folder}/colour{number}.png" for number in range(5))
    for counts in (
        "colourised: 8, up to date: 0, failed: 1, not processed: 1",
        "colourised: 0, up to date: 8, failed: 1, not processed: 1",
    ):
        code, lines, _ = run_colour(monkeypatch, capsys, folder, "-o", folder.with_name("out"), "--model", model)
        assert code == 1
        assert (
            f"already in colour, and their colours were replaced: 6 ({first_names}, …); "
            "to leave them out, use --skip-colour"
        ) in lines
        assert (
            f"nearly grey, because the model found no likely colours: 8 ({first_names}, …); try --style vivid"
        ) in lines
        assert f"not processed: unknown kind: 1 ({folder}/notes.txt)" in lines
        assert counts in lines


@pytest.mark.parametrize(
    ("style", "advice"), [("natural", "; try --style vivid or --hints"), ("vivid", "; try --hints")]
)
def test_advice_for_a_single_grey_result(
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    style: str,
    advice: str,
) -> None:
    source, options = folder / "grey0.png", ("--style", style, "--model", model)
    _, lines, _ = run_colour(monkeypatch, capsys, source, "-o", folder.with_name("out.png"), *options)
    assert f"nearly grey, because the model found no likely colours: 1 ({source}){advice}" in lines


def test_images_in_colour_are_left_out_and_counted(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "damaged.png").unlink()
    target = folder.with_name("out")
    code, lines, err = run_colour(monkeypatch, capsys, folder, "-o", target, "--model", model, "--skip-colour")
    assert (code, err) == (0, "")
    names = ", ".join(f"{folder}/colour{number}.png" for number in range(5))
    assert f"left out, because they are already in colour: 6 ({names}, …)" in lines
    assert "colourised: 2, up to date: 0, failed: 0, left out: 6, not processed: 1" in lines  # 9 files in the folder
    assert sorted(path.name for path in target.glob("*.png")) == ["grey0.png", "grey1.png"]


def test_option_without_effect_on_videos_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first bytes of an AVI file are enough: the options are checked before the video is read.
    (tmp_path / "a.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    code, _, err = run_colour(monkeypatch, capsys, tmp_path / "a.avi", "-o", tmp_path / "b.mp4", "--skip-colour")
    assert code == 2
    assert "--skip-colour: has no effect on the given inputs; expected an image" in err
