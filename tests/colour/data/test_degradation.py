"""Tests of random degradations on lightness from a photograph of scikit-image."""

import numpy as np
import pytest
from skimage.color import rgb2lab
from skimage.data import coffee

from chromabox.colour.data.degradation import _add_border, _grain, degrade

LIGHTNESS = (rgb2lab(coffee()[:192, :256])[..., 0] / 100).astype(np.float32)


@pytest.mark.parametrize("seed", range(40))
def test_degraded_lightness_is_valid_and_resembles_the_original(seed: int) -> None:
    degraded = degrade(LIGHTNESS, np.random.default_rng(seed))
    assert (degraded.shape, degraded.dtype) == (LIGHTNESS.shape, np.float32)
    assert 0 <= degraded.min() <= degraded.max() <= 1
    assert np.corrcoef(degraded[12:-12, 16:-16].ravel(), LIGHTNESS[12:-12, 16:-16].ravel())[0, 1] > 0.8


def test_degradation_is_reproducible_and_does_not_change_its_input() -> None:
    before = LIGHTNESS.copy()
    first, second, other = (degrade(LIGHTNESS, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(LIGHTNESS, before)


def test_grain_has_the_documented_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    deviations = np.array([_grain((200, 200), rng).std() for _ in range(60)])
    assert 0.0095 < deviations.min() < deviations.max() < 0.061


def test_border_covers_at_most_6_percent_of_each_side() -> None:
    for seed in range(20):
        bordered = _add_border(LIGHTNESS, np.random.default_rng(seed))
        changed = bordered != LIGHTNESS
        assert not changed[12:-12, 16:-16].any()
        values = np.unique(bordered[changed])
        assert len(values) <= 1
