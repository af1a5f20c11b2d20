"""The shipped net on photographs that scikit-image ships, which it was never trained on; judged by colour/score.py."""

from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from chromabox.colour.evaluation.image_scores import ImageScores, score_image
from chromabox.colour.inference.predict import ColouriseOptions, colourise_image
from chromabox.colour.weights.checkpoint import load_model
from chromabox.io.images import ImageData

FOLDER = Path(skimage.__file__).parent / "data"
NAMES = [name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg") if (FOLDER / name).is_file()]
if not NAMES:
    pytest.skip("SCIKIT-IMAGE SHIPS NO PHOTOGRAPHS ANY MORE, SO THE SHIPPED NET IS NOT JUDGED", allow_module_level=True)


def photograph(name: str) -> np.ndarray:
    return np.asarray(Image.open(FOLDER / name).convert("RGB"))


def scores(wishes: ColouriseOptions) -> list[ImageScores]:
    trained = load_model()
    originals = [photograph(name) for name in NAMES]
    return [score_image(one, colourise_image(ImageData(one), trained, wishes).pixels) for one in originals]


def test_natural_colours_are_nearer_to_the_truth_than_grey() -> None:
    found = scores(ColouriseOptions())
    assert np.mean([one.psnr - one.grey_psnr for one in found]) >= 1.2
    assert 1 - np.mean([one.delta_e for one in found]) / np.mean([one.grey_delta_e for one in found]) >= 0.15
    assert max(one.delta_lightness for one in found) <= 0.3


def test_vivid_colours_are_more_colourful_and_not_far_worse_than_grey() -> None:
    plain, vivid = scores(ColouriseOptions()), scores(ColouriseOptions(style="vivid"))
    for one, other in zip(plain, vivid, strict=True):
        assert other.colourfulness > one.colourfulness
    assert np.mean([one.psnr - one.grey_psnr for one in vivid]) >= -0.5


def test_thumbnails_get_the_colours_of_scans() -> None:
    """200 and 3000 pixels wide; ΔE2000 by scikit-image, both brought to the smaller size, mean over the pictures."""
    trained, differences = load_model(), []
    for whole in (Image.fromarray(photograph(name)) for name in NAMES):
        small = (200, round(200 * whole.height / whole.width))
        seen = []
        for size in (small, (3000, round(3000 * whole.height / whole.width))):
            picture = ImageData(np.asarray(whole.resize(size, Image.Resampling.LANCZOS)))
            coloured = Image.fromarray(colourise_image(picture, trained).pixels)
            seen.append(rgb2lab(np.asarray(coloured.resize(small, Image.Resampling.LANCZOS))))
        differences.append(deltaE_ciede2000(*seen).mean())
    assert np.mean(differences) <= 3
