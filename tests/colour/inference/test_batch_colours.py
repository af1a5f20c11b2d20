"""Batches with images that are in colour already, and with results that stay grey; small models with a known answer."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.inference.batch import (
    BLACK_AND_WHITE,
    IN_COLOUR,
    NEARLY_GREY,
    colourise_batch,
    make_file_coloriser,
)
from chromabox.colour.inference.predict import ColouriseOptions
from chromabox.colour.models.photonet import PhotoNet
from chromabox.colour.weights.checkpoint import PhotoModel, model_metadata
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.io.manifest import MANIFEST_NAME
from colour_fixtures import write_colour_model

CAT = data.chelsea()[::4, ::4].copy()
GREY = CAT[..., 1].copy()


def make_model(path: Path, answer: tuple[int, int]) -> ColourModel:
    """Return a photo model that is nearly certain of the same chroma everywhere."""
    cells = [(0, 0), (20, 0), (0, 20), (20, 20)]
    bins = ChromaBins(np.array(cells, np.float32), np.full(len(cells), 0.25, np.float32), 20.0)
    network = PhotoNet(len(cells), widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1))
    bias = 20.0 * (bins.centres == answer).all(1)
    model = PhotoModel(network, bins, model_metadata("photo", {}, bins))
    return write_colour_model(path, model, seed=2, scale=0.1, bias=bias)


@pytest.fixture(scope="module")
def grey_model(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    return make_model(tmp_path_factory.mktemp("model") / "grey.onnx", (0, 0))


@pytest.fixture(scope="module")
def brown_model(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    return make_model(tmp_path_factory.mktemp("model") / "brown.onnx", (20, 20))


def write_pages(path: Path, *pages: np.ndarray) -> Path:
    images = [Image.fromarray(page) for page in pages]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


@pytest.mark.parametrize(
    ("pages", "observed"),
    [
        ((GREY,), []),
        ((CAT,), [IN_COLOUR]),
        ((GREY, CAT, CAT), [IN_COLOUR]),
        ((np.repeat(GREY[..., None], 3, axis=-1),), []),
    ],
)
def test_images_in_colour_are_observed(
    tmp_path: Path, brown_model: ColourModel, pages: tuple[np.ndarray, ...], observed: list[str]
) -> None:
    source = write_pages(tmp_path / "in.tif", *pages)
    facts = make_file_coloriser(brown_model, ColouriseOptions())(source, tmp_path / "out.tif")
    assert facts is not None
    assert facts["observed"] == observed


def test_results_that_stay_grey_are_observed(tmp_path: Path, grey_model: ColourModel) -> None:
    source = write_pages(tmp_path / "in.tif", GREY, CAT)
    facts = make_file_coloriser(grey_model, ColouriseOptions())(source, tmp_path / "out.tif")
    assert facts is not None
    assert facts["observed"] == [IN_COLOUR, NEARLY_GREY]


def test_black_and_white_scan_cannot_be_colourised(tmp_path: Path, brown_model: ColourModel) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(GREY).convert("1").save(source)
    facts = make_file_coloriser(brown_model, ColouriseOptions())(source, tmp_path / "out.png")
    assert facts is not None
    assert facts["observed"] == [BLACK_AND_WHITE]


@pytest.mark.parametrize("pages", [(CAT,), (GREY, CAT), (GREY, GREY, CAT)])
def test_file_with_a_page_in_colour_is_left_out(
    tmp_path: Path, brown_model: ColourModel, pages: tuple[np.ndarray, ...]
) -> None:
    source = write_pages(tmp_path / "in.tif", *pages)
    before = source.read_bytes()
    colourise = make_file_coloriser(brown_model, ColouriseOptions(), skip_colour=True)
    assert colourise(source, tmp_path / "out.tif") is None
    assert [path.name for path in tmp_path.iterdir()] == ["in.tif"]
    assert source.read_bytes() == before


def test_files_left_out_do_not_count_as_done(tmp_path: Path, brown_model: ColourModel) -> None:
    pairs = [(write_pages(tmp_path / f"{name}.png", page), tmp_path / f"out-{name}.png") for name, page in
             (("colour", CAT), ("grey", GREY))]  # fmt: skip
    colourise = make_file_coloriser(brown_model, ColouriseOptions(), skip_colour=True)
    for is_second_run in (False, True):
        first, second = colourise_batch(pairs, colourise, settings={}, manifest_path=tmp_path / MANIFEST_NAME)
        assert (first.left_out, first.skipped, first.error) == (True, False, None)
        assert (second.left_out, second.skipped, second.error) == (False, is_second_run, None)
    assert "out-colour.png" not in (tmp_path / MANIFEST_NAME).read_text()
