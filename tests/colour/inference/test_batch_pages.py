"""Batches with files of several pages, with the bundled model; outputs are read by Pillow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.colour.inference.batch import make_file_coloriser
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import ColouriseOptions
from chromabox.colour.weights.onnx_model import ColourModel
from chromabox.errors import ChromaboxError
from chromabox.io.images import Pages, read_image

GRADIENT = np.add.outer(np.arange(24, dtype=np.uint8) * 4, np.arange(32, dtype=np.uint8) * 3)


@pytest.fixture(scope="module")
def model() -> ColourModel:
    return open_model(None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    frames = [Image.fromarray(values) for values in (GRADIENT, GRADIENT[::-1].copy(), 255 - GRADIENT)]
    frames[0].save(tmp_path / "in.tif", save_all=True, append_images=frames[1:])
    return tmp_path / "in.tif"


def test_all_pages_are_colourised_into_one_file(model: ColourModel, source: Path) -> None:
    target = source.with_name("out.tif")
    result = make_file_coloriser(model, ColouriseOptions())(source, target)
    assert [result[name] for name in ("notes", "changes", "omitted")] == [[], [], []]
    with Image.open(target) as image:
        assert image.n_frames == 3
        means = []
        for frame in range(3):
            image.seek(frame)
            means.append(np.asarray(image.convert("L"), float).mean())
    assert means == pytest.approx([GRADIENT.mean(), GRADIENT.mean(), 255 - GRADIENT.mean()], abs=6)


@pytest.mark.parametrize(("pages", "note"), [("first", "the first"), (3, "page 3")])
def test_selected_page_is_colourised(model: ColourModel, source: Path, pages: Pages, note: str) -> None:
    target = source.with_name("out.jpg")
    result = make_file_coloriser(model, ColouriseOptions(), pages=pages)(source, target)
    assert result["notes"] == [f"{source} has 3 frames or pages; only {note} was colourised"]
    mean = GRADIENT.mean() if pages == "first" else 255 - GRADIENT.mean()
    assert read_image(target).pixels.mean() == pytest.approx(mean, abs=12)


def test_several_pages_in_a_format_for_one_are_rejected(model: ColourModel, source: Path) -> None:
    target = source.with_name("out.jpg")
    with pytest.raises(
        ChromaboxError, match=r"in\.tif has 3 frames or pages, and .*out\.jpg can hold one: expected an"
    ):
        make_file_coloriser(model, ColouriseOptions())(source, target)
    assert not target.exists()


def test_hints_for_several_pages_are_rejected(model: ColourModel, source: Path) -> None:
    options = ColouriseOptions(hints=source)
    with pytest.raises(ChromaboxError, match="hints apply to one; add --pages first"):
        make_file_coloriser(model, options)(source, source.with_name("out.tif"))
