"""The explanation figure: complete file, size independent of the image, expected content."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from skimage.data import coffee

from chromabox.colour.chroma.distribution import ChromaDistribution
from chromabox.colour.constraints.constraints import ColourConstraints, ColourPrediction
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import ColouriseOptions, apply_prediction, predict_colours
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.errors import UsageError
from chromabox.io.images import ImageData
from chromabox.report.explain import THUMBNAIL_SIZE, draw_explanation, make_thumbnail

CUP = coffee()[::2, ::2]


@pytest.fixture(scope="module")
def model() -> ColourModel:
    """The bundled photo model."""
    return open_model()


def draw(
    pixels: np.ndarray,
    model: ColourModel,
    path: Path,
    constraints: ColourConstraints | None = None,
    title: str = "cup.jpg",
    points: list[tuple[int, int]] | None = None,
) -> np.ndarray:
    """Draw the explanation and return the pixels of the figure."""
    image = ImageData(pixels)
    prediction = predict_colours(pixels, model, ColouriseOptions(constraints=constraints or ColourConstraints()))
    draw_explanation(image, apply_prediction(image, prediction), prediction, path, title, points)
    return read(path)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()  # raises for a truncated file
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def colour_fraction(figure: np.ndarray, rgb: tuple[int, int, int], tolerance: int = 2) -> float:
    """Return the fraction of pixels with this colour."""
    return float((np.abs(figure.astype(int) - rgb).max(-1) <= tolerance).mean())


def make_prediction(confidence: float) -> tuple[ImageData, ImageData, ColourPrediction]:
    """Return a grey image, its version with a red left and a blue right half, and a matching prediction."""
    centres = np.array([[0, 0], [60, 40], [20, -60]], np.float32)
    log_probabilities = np.broadcast_to(np.log(np.array([0.5, 0.3, 0.2], np.float32))[:, None, None], (3, 6, 8)).copy()
    distribution = ChromaDistribution(log_probabilities, centres, np.full((6, 8), 50, np.float32))
    chroma = np.zeros((6, 8, 2), np.float32)
    chroma[:, :4], chroma[:, 4:] = centres[1], centres[2]
    grey = np.full((120, 160, 3), 119, np.uint8)  # L* = 50
    after = grey.copy()
    after[:, :80], after[:, 80:] = (205, 46, 59), (95, 110, 220)
    prediction = ColourPrediction(chroma, None, distribution, np.full((6, 8), confidence, np.float32), None)
    return ImageData(grey), ImageData(after), prediction


def test_figure_shows_the_prediction(tmp_path: Path) -> None:
    before, after, prediction = make_prediction(0.75)
    draw_explanation(before, after, prediction, tmp_path / "deep" / "explained.png", "a title")
    figure = read(tmp_path / "deep" / "explained.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["explained.png"]
    panel = 0.5 * colour_fraction(figure, (205, 46, 59))
    assert panel > 0.01
    assert colour_fraction(figure, (95, 110, 220)) > panel
    assert (
        colour_fraction(figure, (119, 119, 119)) > 2 * panel
    )  # the grey image, and the most likely colour of each point
    map_colours = [tuple(round(255 * part) for part in colormaps["viridis"](0.75)[:3])]
    entropy = -(np.array([0.5, 0.3, 0.2]) @ np.log([0.5, 0.3, 0.2])) / np.log(3)
    map_colours.append(tuple(round(255 * part) for part in colormaps["magma"](entropy)[:3]))
    assert all(colour_fraction(figure, colour, 4) > 2 * panel for colour in map_colours)


def test_points_are_numbered(tmp_path: Path) -> None:
    before, after, prediction = make_prediction(0.5)
    draw_explanation(before, after, prediction, tmp_path / "without.png", "t", [])
    draw_explanation(before, after, prediction, tmp_path / "one.png", "t", [(40, 60)])
    draw_explanation(before, after, prediction, tmp_path / "other.png", "t", [(120, 60)])
    draw_explanation(before, after, prediction, tmp_path / "many.png", "t", [(10 * n, 10) for n in range(13)])
    without, one, other, many = (read(tmp_path / f"{name}.png") for name in ("without", "one", "other", "many"))
    assert one.shape == other.shape
    assert without.shape[0] < one.shape[0]  # no strip for points
    assert many.shape[0] - one.shape[0] == pytest.approx(2 * (one.shape[0] - without.shape[0]), abs=2)
    rows, columns = np.nonzero((one != other).any(-1))
    # Only the numbers in the colourised image differ; the strips below are identical.
    assert np.ptp(rows) < 40
    assert np.ptp(columns) == pytest.approx(80 / 160 * panel_width(one), abs=40)


def panel_width(figure: np.ndarray) -> int:
    """Return the width of the colourised image in pixels, from its first red to its last blue pixel."""
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
    ids=["tall", "panorama", "16 bit", "pixel", "uniform"],
)
def test_any_image_can_be_explained(tmp_path: Path, model: ColourModel, pixels: np.ndarray) -> None:
    figure = draw(pixels, model, tmp_path / "explained.png")
    height, width, _ = figure.shape
    assert width == 14 * 120
    assert 400 < height < 2000


@pytest.mark.parametrize(
    "constraints",
    [
        ColourConstraints(allowed=((0, 0, 128),)),
        ColourConstraints(allowed=((0, 0, 128), (245, 245, 220))),
        ColourConstraints(min_confidence=1.0),
    ],
    ids=["one colour", "two colours", "grey"],
)
def test_explanation_with_constraints(tmp_path: Path, model: ColourModel, constraints: ColourConstraints) -> None:
    figure = draw(CUP, model, tmp_path / "explained.png", constraints, title="dollars $x_1$ and 雪")
    assert figure.shape[1] == 14 * 120
    navy = colour_fraction(figure, (0, 0, 128))
    assert (navy > 0.002) == bool(constraints.allowed)


@pytest.mark.parametrize("point", [(-1, 0), (0, -1), (300, 0), (0, 200)])
def test_points_outside_the_image_are_rejected(tmp_path: Path, model: ColourModel, point: tuple[int, int]) -> None:
    assert CUP.shape[:2] == (200, 300)
    with pytest.raises(UsageError, match=r"outside the image of 300 × 200 pixels"):
        draw(CUP, model, tmp_path / "explained.png", points=[(0, 0), point])
    assert not (tmp_path / "explained.png").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_thumbnails_need_no_full_size_copy(dtype: type) -> None:
    row = np.zeros((1, 16_000, 3), dtype)
    row[:, 8000:] = np.iinfo(dtype).max
    pixels = np.broadcast_to(row, (12_000, 16_000, 3))  # a copy would take more than half a gigabyte
    tracemalloc.start()
    thumbnail = make_thumbnail(pixels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert thumbnail.shape == (round(THUMBNAIL_SIZE * 3 / 4), THUMBNAIL_SIZE, 3)
    assert thumbnail.dtype == np.uint8
    assert (thumbnail[:, 440].max(), thumbnail[:, 460].min()) == (0, 255)
    assert peak < 50_000_000
    assert make_thumbnail(CUP).shape == CUP.shape
