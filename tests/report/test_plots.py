"""Figures: complete files of the expected size that show the data and not only the axes."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from chromabox.report.plots import (
    TEST_COLOUR,
    TRAIN_COLOUR,
    VAL_COLOUR,
    plot_confusion_matrix,
    plot_curves,
    plot_image_rows,
    save_figure,
)

RNG = np.random.default_rng(4)


def read_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()  # raises for a truncated file
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_colour(image: np.ndarray, colour: str | tuple[int, int, int], min_pixels: int = 20) -> bool:
    """Return whether at least ``min_pixels`` pixels have exactly this colour."""
    rgb = tuple(bytes.fromhex(colour[1:])) if isinstance(colour, str) else colour
    return int((image == np.array(rgb)).all(-1).sum()) >= min_pixels


def make_records(*splits: str) -> list[dict[str, float]]:
    records = []
    for epoch in range(1, 6):
        record = {"epoch": float(epoch), "seconds": 1.0}
        for split in splits:
            record |= {f"{split}_loss": 3 / epoch + len(split), f"{split}_accuracy": 0.1 * epoch + 0.01 * len(split)}
        records.append(record)
    return records


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val", "test")])
def test_curves_show_every_split(tmp_path: Path, splits: tuple[str, ...]) -> None:
    plot_curves(make_records(*splits), tmp_path / "new" / "curves.png", "a title")
    figure = read_pixels(tmp_path / "new" / "curves.png")
    assert figure.shape == (432, 1080, 3)  # 3.6 × 9 inches at 120 dpi
    colours = {"train": TRAIN_COLOUR, "val": VAL_COLOUR, "test": TEST_COLOUR}
    for half in (figure[:, :540], figure[:, 540:]):
        assert {split for split, colour in colours.items() if has_colour(half, colour)} == set(splits)


def test_single_epoch_can_be_plotted(tmp_path: Path) -> None:
    plot_curves(make_records("train", "test")[:1], tmp_path / "curves.png", "one")
    assert has_colour(read_pixels(tmp_path / "curves.png"), TEST_COLOUR)


@pytest.mark.parametrize("title", ["unet, data/$images$/$x_$", "50 % of \\frac", ""])
def test_any_title_can_be_plotted(tmp_path: Path, title: str) -> None:
    tile = np.zeros((4, 4, 3), np.uint8)
    plot_curves(make_records("train"), tmp_path / "curves.png", title)
    plot_image_rows({"row": [tile]}, tmp_path / "rows.png", title)
    plot_confusion_matrix(np.eye(2, dtype=np.int64), np.zeros((2, 3), np.float32), tmp_path / "confusion.png", title)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "rows.png", "confusion.png"}


def test_rows_show_every_tile(tmp_path: Path) -> None:
    colours = RNG.integers(1, 255, (3, 4, 3), dtype=np.uint8)
    rows = {f"row {i}": [np.full((6, 6, 3), colour, np.uint8) for colour in row] for i, row in enumerate(colours)}
    rows["row 2"] = rows["row 2"][:2]  # a shorter row
    plot_image_rows(rows, tmp_path / "rows.png", "tiles", tile_size=0.5)
    figure = read_pixels(tmp_path / "rows.png")
    # Four columns and three rows of half an inch, space for the labels and the title, 150 dpi.
    assert figure.shape[1] == 150 * (4 * 0.5 + 1.6)
    assert abs(figure.shape[0] - 150 * (1.02 * 3 * 0.5 + 0.5)) <= 1
    for i, row in enumerate(colours):
        for j, colour in enumerate(row):
            assert has_colour(figure, tuple(colour.tolist()), 500) is (i < 2 or j < 2)


def test_confusion_matrix_shows_palette_and_fractions(tmp_path: Path) -> None:
    colours = np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.7]], np.float32)
    for name, confusion in (("good", np.diag([5, 900, 0])), ("bad", np.ones((3, 3), int))):
        plot_confusion_matrix(confusion.astype(np.int64), colours, tmp_path / f"{name}.png", name)
    good, bad = read_pixels(tmp_path / "good.png"), read_pixels(tmp_path / "bad.png")
    assert good.shape == bad.shape == (864, 960, 3)
    for colour in colours:
        rgb = tuple(np.rint(np.clip(colour * 256 / 255, 0, 1) * 255).astype(int).tolist())
        assert has_colour(good, rgb, 1000)
    # The ends of the colour map: fractions 0 and 1. Rows of rare colours are normalised too.
    zero, one = (colormaps["magma"](fraction, bytes=True)[:3] for fraction in (0.0, 1.0))
    assert has_colour(good, zero, 5000)
    assert has_colour(good, one, 5000)
    assert not has_colour(bad, zero, 5000)
    assert not has_colour(bad, one, 5000)


def test_failed_write_keeps_the_existing_figure(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    save_figure(Figure(figsize=(1, 1)), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="positive"):
        save_figure(Figure(figsize=(1, 1)), path, dpi=0)
    assert path.read_bytes() == before
