"""`verify`, `colour --quality`, and what `colour` lists as not contained in the outputs."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.__main__ import main
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import PaletteModel, model_metadata
from colour_fixtures import write_colour_model

Result = tuple[int, str, str]


@pytest.fixture
def chromabox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["chromabox", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights."""
    settings = {"num_filters": 4, "num_colours": 24}
    palette = load_palette("cifar24")
    small = PaletteModel(build_model("unet", **settings), palette, model_metadata("unet", settings, palette))
    return write_colour_model(tmp_path_factory.mktemp("model") / "small.onnx", small, seed=1, scale=8).path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    image = Image.fromarray(np.add.outer(np.arange(24), np.arange(32)).astype(np.uint8) * 4)
    image.save(tmp_path / "in" / "a.jpg", dpi=(300, 300), comment=b"scanned", quality=98)
    image.save(tmp_path / "in" / "b.tif", compression="jpeg")
    image.save(tmp_path / "in" / "c.tif", compression="jpeg")
    return tmp_path


def test_what_is_not_carried_is_listed_once(chromabox: Callable[..., Result], folder: Path, model: Path) -> None:
    command = ("colour", folder / "in", "-o", folder / "out", "--model", model)
    code, out, err = chromabox(*command)
    assert (code, err) == (0, "")
    line = "not contained in the outputs: TIFF compression jpeg (Deflate is used instead) (2)"
    assert out.splitlines()[-2] == line
    # Images that are up to date are listed, too.
    assert chromabox(*command)[1].splitlines()[-2] == line


def test_verify_of_a_colourised_image(chromabox: Callable[..., Result], folder: Path, model: Path) -> None:
    options = ("--ban", "red", "--model", model)
    assert chromabox("colour", folder / "in" / "a.jpg", "-o", folder / "b.png", *options)[0] == 0
    code, out, err = chromabox("verify", folder / "in" / "a.jpg", folder / "b.png")
    assert (code, err) == (0, "")
    assert out.startswith("difference of L*: mean 0.")
    assert "the lightness is that of the original: the mean is at most 0.5\n" in out
    assert "compositeWithTrainedAlgorithmicMedia" in out
    assert '"ban": ["red"]' in out
    assert chromabox("verify", folder / "in" / "a.jpg", folder / "b.png", "--tolerance", "0")[0] == 1


def test_verify_of_a_darker_image(chromabox: Callable[..., Result], tmp_path: Path) -> None:
    Image.new("L", (9, 9), 119).save(tmp_path / "a.png")  # L* 50.03
    Image.new("RGB", (9, 9), (0, 0, 0)).save(tmp_path / "b.png")
    code, out, err = chromabox("verify", tmp_path / "a.png", tmp_path / "b.png")
    assert (code, err) == (1, "")
    assert out.count("mean 50.034, maximum 50.034") == 10
    assert "the lightness differs from that of the original: the mean is more than 0.5\n" in out
    assert out.endswith("b.png does not state how it was made\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("verify", "a.png", "b.png"), 1, "b.png and a.png have 3 × 4 and 4 × 3 pixels"),
        (("verify", "a.png", "nowhere.png"), 1, "nowhere.png does not exist"),
        (("verify", "a.png", "a.png", "--tolerance", "-1"), 2, "--tolerance is -1.0: expected 0 to 100"),
        (("verify", "a.png", "a.png", "--tolerance", "nan"), 2, "--tolerance is nan: expected 0 to 100"),
        (("colour", "a.png", "-o", "c.jpg", "--quality", "0"), 2, "--quality is 0: expected 1 to 100"),
        (("colour", "a.png", "-o", "c.jpg", "--quality", "101"), 2, "--quality is 101: expected 1 to 100"),
        (
            ("colour", "a.png", "-o", "c.png", "--quality", "90"),
            2,
            "--quality: has no effect on the given inputs; expected a JPEG",
        ),
        (
            ("colour", "empty.mp4", "-o", "c.mp4", "--quality", "90"),
            2,
            "--quality: has no effect on the given inputs; expected a JPEG",
        ),
    ],
)
def test_invalid_use_gives_one_line(
    chromabox: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 3)).save("a.png")
    Image.new("L", (3, 4)).save("b.png")
    (tmp_path / "empty.mp4").touch()
    result, out, err = chromabox(*arguments)
    assert (result, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
