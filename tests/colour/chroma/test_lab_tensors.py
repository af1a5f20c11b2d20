"""CIELab of small tensors against scikit-image's, and there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab

from chromabox.colour.chroma.lab import lab_to_rgb, rgb_to_lab

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
#: Greys, the corners of the cube and what lies beside them, where the formulas change their branch.
EDGES = np.stack(np.meshgrid([0, 1, 9, 10, 11, 254, 255], [0, 2, 255], [0, 3, 255], indexing="ij"), -1).astype(np.uint8)


def lab_of(pictures: np.ndarray) -> np.ndarray:
    """L*, a*, b* with the channels last, as scikit-image has them."""
    return rgb_to_lab(torch.from_numpy(pictures)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("pictures", [PICTURES, EDGES], ids=["random", "edges"])
def test_lab_is_scikit_images(pictures: np.ndarray) -> None:
    # The matrices differ in their sixth decimal (IEC 61966-2-1 against scikit-image's own).
    np.testing.assert_allclose(lab_of(pictures), rgb2lab(pictures), atol=0.02)


def test_greys_have_no_chroma_and_white_is_a_hundred() -> None:
    greys = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(3, -1)
    lab = lab_of(greys)[0, 0]
    assert np.abs(lab[:, 1:]).max() < 0.01
    assert lab[0, 0] == pytest.approx(0, abs=1e-4)
    assert lab[255, 0] == pytest.approx(100, abs=1e-4)
    assert (np.diff(lab[:, 0]) > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=50))
def test_there_and_back_is_the_same_byte(colours: list[tuple[int, int, int]]) -> None:
    rgb = torch.tensor(colours, dtype=torch.uint8)[None, None]
    back = (lab_to_rgb(rgb_to_lab(rgb)) * 255).round().to(torch.uint8)
    assert torch.equal(back, rgb)


def test_the_way_back_is_scikit_images_within_the_gamut() -> None:
    lab = rgb2lab(PICTURES).astype(np.float32)
    found = lab_to_rgb(torch.from_numpy(lab).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found, lab2rgb(lab), atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-128, 128), st.floats(-128, 128)), min_size=1, max_size=50))
def test_what_srgb_does_not_have_is_clipped(colours: list[tuple[float, float, float]]) -> None:
    rgb = lab_to_rgb(torch.tensor(colours)[None, None].permute(0, 3, 1, 2))
    assert rgb.isfinite().all()
    assert rgb.min() >= 0
    assert rgb.max() <= 1 + 1e-6
