"""Tests of the bundled model on photographs of scikit-image, which are not in its training set."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from chromabox.colour.evaluation.image_scores import ImageScores, score_image
from chromabox.colour.inference.load import open_model
from chromabox.colour.inference.predict import ColouriseOptions, StyleName, colourise_image
from chromabox.io.images import ImageData

FOLDER = Path(skimage.__file__).parent / "data"
NAMES = [name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg") if (FOLDER / name).is_file()]
if not NAMES:
    pytest.skip(
        "SCIKIT-IMAGE CONTAINS NO PHOTOGRAPHS, SO THE BUNDLED MODEL IS NOT TESTED ON THEM", allow_module_level=True
    )


def load_photograph(name: str) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / name).convert("RGB"))


@cache
def score_photographs(style: StyleName) -> list[ImageScores]:
    model, options = open_model(), ColouriseOptions(style=style)
    originals = [load_photograph(name) for name in NAMES]
    return [
        score_image(original, colourise_image(ImageData(original), model, options).pixels) for original in originals
    ]


def test_natural_colours_are_closer_to_the_truth_than_greyscale() -> None:
    results = score_photographs("natural")
    assert np.mean([score.psnr - score.grey_psnr for score in results]) >= 1.2
    assert (
        1 - np.mean([score.delta_e for score in results]) / np.mean([score.grey_delta_e for score in results]) >= 0.15
    )
    assert max(score.delta_lightness for score in results) <= 0.3


def test_vivid_colours_are_more_colourful_and_at_most_slightly_worse() -> None:
    natural, vivid = score_photographs("natural"), score_photographs("vivid")
    for natural_score, vivid_score in zip(natural, vivid, strict=True):
        assert vivid_score.colourfulness > natural_score.colourfulness
    assert np.mean([score.psnr - score.grey_psnr for score in vivid]) >= -0.5


def test_colours_do_not_depend_on_the_image_size() -> None:
    """Widths of 200 and 3000 pixels, compared at the smaller size: mean ΔE2000 by scikit-image."""
    model, differences = open_model(), []
    for original in (Image.fromarray(load_photograph(name)) for name in NAMES):
        small = (200, round(200 * original.height / original.width))
        lab_images = []
        for size in (small, (3000, round(3000 * original.height / original.width))):
            image = ImageData(np.asarray(original.resize(size, Image.Resampling.LANCZOS)))
            colourised = Image.fromarray(colourise_image(image, model).pixels)
            lab_images.append(rgb2lab(np.asarray(colourised.resize(small, Image.Resampling.LANCZOS))))
        differences.append(deltaE_ciede2000(*lab_images).mean())
    assert np.mean(differences) <= 3
