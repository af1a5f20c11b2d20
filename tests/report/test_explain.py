"""The figure of an explanation: whole, of a size that does not grow with the picture, and showing what it should."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from skimage.data import coffee

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.chroma.distribution import ChromaDistribution
from chromabox.colour.constraints.constraints import ColourConstraints, ColourPrediction
from chromabox.colour.inference.predict import ColouriseOptions, apply_prediction, predict_colours
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.weights.checkpoint import PhotoModel
from chromabox.errors import UsageError
from chromabox.io.images import ImageData
from chromabox.report.explain import THUMBNAIL_SIZE, draw_explanation, make_thumbnail

CUP = coffee()[::2, ::2]


@pytest.fixture(scope="module")
def net() -> PhotoModel:
    """A small photo net with random weights and strong opinions."""
    torch.manual_seed(2)
    cells = [(a, b) for a in range(-40, 50, 20) for b in range(-40, 60, 20)]
    bins = ChromaBins(np.array(cells, np.float32), np.full(len(cells), 1 / len(cells), np.float32), 20.0)
    photo_net = PhotoNet(len(cells), widths=(8, 8, 8), blocks=(1, 1, 1)).eval()
    with torch.no_grad():
        photo_net.head[-1].weight.mul_(20)
    return PhotoModel(photo_net, bins, {"net": "photo"})


def draw(
    pixels: np.ndarray,
    trained: PhotoModel,
    path: Path,
    control: ColourConstraints | None = None,
    title: str = "cup.jpg",
    points: list[tuple[int, int]] | None = None,
) -> np.ndarray:
    """The figure's pixels."""
    picture = ImageData(pixels)
    decision = predict_colours(pixels, trained, ColouriseOptions(constraints=control or ColourConstraints()))
    draw_explanation(picture, apply_prediction(picture, decision), decision, path, title, points)
    return read(path)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()  # raises for a file that is cut short
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def share_of(figure: np.ndarray, rgb: tuple[int, int, int], tolerance: int = 2) -> float:
    """The part of the figure that has this colour."""
    return float((np.abs(figure.astype(int) - rgb).max(-1) <= tolerance).mean())


def by_hand(confidence: float) -> tuple[ImageData, ImageData, ColourPrediction]:
    """A grey picture that became red on its left and blue on its right, and what was decided of it."""
    centres = np.array([[0, 0], [60, 40], [20, -60]], np.float32)
    logarithms = torch.log(torch.tensor([0.5, 0.3, 0.2]))[:, None, None].expand(3, 6, 8).contiguous()
    opinion = ChromaDistribution(logarithms, torch.from_numpy(centres), torch.full((6, 8), 50.0))
    chroma = np.zeros((6, 8, 2), np.float32)
    chroma[:, :4], chroma[:, 4:] = centres[1], centres[2]
    grey = np.full((120, 160, 3), 119, np.uint8)  # L* = 50
    after = grey.copy()
    after[:, :80], after[:, 80:] = (205, 46, 59), (95, 110, 220)
    decision = ColourPrediction(chroma, None, opinion, np.full((6, 8), confidence, np.float32), None)
    return ImageData(grey), ImageData(after), decision


def test_the_figure_shows_what_was_decided(tmp_path: Path) -> None:
    before, after, decision = by_hand(0.75)
    draw_explanation(before, after, decision, tmp_path / "deep" / "why.png", "a title")
    figure = read(tmp_path / "deep" / "why.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["why.png"]
    panel = 0.5 * share_of(figure, (205, 46, 59))
    assert panel > 0.01
    assert share_of(figure, (95, 110, 220)) > panel
    assert share_of(figure, (119, 119, 119)) > 2 * panel  # the grey picture, and the likeliest colour of each point
    maps = [tuple(round(255 * part) for part in colormaps["viridis"](0.75)[:3])]
    entropy = -(np.array([0.5, 0.3, 0.2]) @ np.log([0.5, 0.3, 0.2])) / np.log(3)
    maps.append(tuple(round(255 * part) for part in colormaps["magma"](entropy)[:3]))
    assert all(share_of(figure, colour, 4) > 2 * panel for colour in maps)


def test_a_number_stands_at_every_point(tmp_path: Path) -> None:
    before, after, decision = by_hand(0.5)
    draw_explanation(before, after, decision, tmp_path / "without.png", "t", [])
    draw_explanation(before, after, decision, tmp_path / "one.png", "t", [(40, 60)])
    draw_explanation(before, after, decision, tmp_path / "other.png", "t", [(120, 60)])
    draw_explanation(before, after, decision, tmp_path / "many.png", "t", [(10 * n, 10) for n in range(13)])
    without, one, other, many = (read(tmp_path / f"{name}.png") for name in ("without", "one", "other", "many"))
    assert one.shape == other.shape
    assert without.shape[0] < one.shape[0]  # no strip for points
    assert many.shape[0] - one.shape[0] == pytest.approx(2 * (one.shape[0] - without.shape[0]), abs=2)
    rows, columns = np.nonzero((one != other).any(-1))
    # Two places of one row differ in the coloured picture: the numbers; what stands below is the same.
    assert np.ptp(rows) < 40
    assert np.ptp(columns) == pytest.approx(80 / 160 * panel_width(one), abs=40)


def panel_width(figure: np.ndarray) -> int:
    """Pixels across the coloured picture, from its first red to its last blue ones."""
    row = figure[figure.shape[0] // 4]
    red = np.flatnonzero(np.abs(row.astype(int) - (205, 46, 59)).max(-1) <= 2)
    blue = np.flatnonzero(np.abs(row.astype(int) - (95, 110, 220)).max(-1) <= 2)
    return int(blue.max() - red.min())


@pytest.mark.parametrize(
    "pixels",
    [
        np.ascontiguousarray(CUP[:, :90]),
        np.ascontiguousarray(CUP[:50]),
        CUP.astype(np.uint16) * 257,
        CUP[:1, :1],
        np.full((40, 60, 3), 128, np.uint8),
    ],
    ids=["tall", "panorama", "sixteen", "pixel", "flat"],
)
def test_every_picture_has_a_figure(tmp_path: Path, net: PhotoModel, pixels: np.ndarray) -> None:
    figure = draw(pixels, net, tmp_path / "why.png")
    height, width, _ = figure.shape
    assert width == 14 * 120
    assert 400 < height < 2000


@pytest.mark.parametrize(
    "control",
    [
        ColourConstraints(allowed=((0, 0, 128),)),
        ColourConstraints(allowed=((0, 0, 128), (245, 245, 220))),
        ColourConstraints(min_confidence=1.0),
    ],
    ids=["one colour", "two colours", "grey"],
)
def test_controlled_colours_have_one_too(tmp_path: Path, net: PhotoModel, control: ColourConstraints) -> None:
    figure = draw(CUP, net, tmp_path / "why.png", control, title="dollars $x_1$ and 雪")
    assert figure.shape[1] == 14 * 120
    navy = share_of(figure, (0, 0, 128))
    assert (navy > 0.002) == bool(control.allowed)


@pytest.mark.parametrize("point", [(-1, 0), (0, -1), (300, 0), (0, 200)])
def test_points_outside_are_refused(tmp_path: Path, net: PhotoModel, point: tuple[int, int]) -> None:
    assert CUP.shape[:2] == (200, 300)
    with pytest.raises(UsageError, match=r"lies outside the picture of 300 × 200 pixels"):
        draw(CUP, net, tmp_path / "why.png", points=[(0, 0), point])
    assert not (tmp_path / "why.png").exists()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_thumbnails_are_small_and_need_no_copy_of_the_picture(kind: type) -> None:
    row = np.zeros((1, 16_000, 3), kind)
    row[:, 8000:] = np.iinfo(kind).max
    pixels = np.broadcast_to(row, (12_000, 16_000, 3))  # half a gigabyte and more, if it were copied
    tracemalloc.start()
    small = make_thumbnail(pixels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert small.shape == (round(THUMBNAIL_SIZE * 3 / 4), THUMBNAIL_SIZE, 3)
    assert small.dtype == np.uint8
    assert (small[:, 440].max(), small[:, 460].min()) == (0, 255)
    assert peak < 50_000_000
    assert make_thumbnail(CUP).shape == CUP.shape
