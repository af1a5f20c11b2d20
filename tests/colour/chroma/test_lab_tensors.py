"""Tests of CIELab on small tensors; expected values from scikit-image, and round trips."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab

from chromabox.colour.chroma.lab import lab_to_rgb, rgb_to_lab

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
#: Greys, the corners of the RGB cube and values next to them, where the formulas change branches.
EDGES = np.stack(np.meshgrid([0, 1, 9, 10, 11, 254, 255], [0, 2, 255], [0, 3, 255], indexing="ij"), -1).astype(np.uint8)


def to_lab(images: np.ndarray) -> np.ndarray:
    """Return L*, a*, b* with the channels last, as in scikit-image."""
    return rgb_to_lab(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("images", [IMAGES, EDGES], ids=["random", "edges"])
def test_lab_matches_scikit_image(images: np.ndarray) -> None:
    # The matrices differ in the sixth decimal (IEC 61966-2-1 and scikit-image).
    np.testing.assert_allclose(to_lab(images), rgb2lab(images), atol=0.02)


def test_greys_have_no_chroma_and_white_has_lightness_100() -> None:
    greys = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(3, -1)
    lab = to_lab(greys)[0, 0]
    assert np.abs(lab[:, 1:]).max() < 0.01
    assert lab[0, 0] == pytest.approx(0, abs=1e-4)
    assert lab[255, 0] == pytest.approx(100, abs=1e-4)
    assert (np.diff(lab[:, 0]) > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=50))
def test_round_trip_restores_8_bit_values(colours: list[tuple[int, int, int]]) -> None:
    rgb = torch.tensor(colours, dtype=torch.uint8)[None, None]
    restored = (lab_to_rgb(rgb_to_lab(rgb)) * 255).round().to(torch.uint8)
    assert torch.equal(restored, rgb)


def test_lab_to_rgb_matches_scikit_image_in_gamut() -> None:
    lab = rgb2lab(IMAGES).astype(np.float32)
    result = lab_to_rgb(torch.from_numpy(lab).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(result, lab2rgb(lab), atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-128, 128), st.floats(-128, 128)), min_size=1, max_size=50))
def test_out_of_gamut_colours_are_clipped(colours: list[tuple[float, float, float]]) -> None:
    rgb = lab_to_rgb(torch.tensor(colours)[None, None].permute(0, 3, 1, 2))
    assert rgb.isfinite().all()
    assert rgb.min() >= 0
    assert rgb.max() <= 1 + 1e-6
