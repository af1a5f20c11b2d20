"""Tests of chroma bins; expected values from bilinear hat functions, SciPy and the formula of the paper."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from chromabox.colour.chroma.bins import ChromaBins, fit_bins
from chromabox.errors import ChromaboxError

RNG = np.random.default_rng(0)


def full_grid(radius: int = 4, spacing: float = 10.0) -> ChromaBins:
    """Return bins at all grid points with both coordinates at most ``radius`` steps from grey, equally frequent."""
    cells = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    frequencies = np.full(len(cells), 1 / len(cells), np.float32)
    return ChromaBins((cells * spacing).astype(np.float32), frequencies, spacing)


GRID = full_grid()


def test_fitted_bins_have_relative_frequencies() -> None:
    # A quarter of all pixels is at (20, 0), the others are half-way between (0, 0) and (0, 10).
    chroma = np.array([[20, 0], [0, 5], [0, 5], [0, 5]], np.float32)
    bins = fit_bins([chroma[:2], chroma[2:]], 10.0)
    frequencies = dict(zip(map(tuple, bins.centres.tolist()), bins.frequencies.tolist(), strict=True))
    assert frequencies == pytest.approx({(0.0, 0.0): 0.375, (0.0, 10.0): 0.375, (20.0, 0.0): 0.25})


@settings(max_examples=30, deadline=None)
@given(st.floats(5, 30), st.integers(0, 2**16))
def test_fitted_frequencies_are_the_mean_targets(spacing: float, seed: int) -> None:
    chroma = np.random.default_rng(seed).normal(0, 30, (200, 2)).clip(-128, 128).astype(np.float32)
    bins = fit_bins([chroma], spacing)
    cells = np.rint(bins.centres / spacing)
    # The bilinear weight of a pixel at a grid point is the product of two hat functions.
    hats = (1 - np.abs(chroma.astype(np.float64) / spacing - cells[:, None])).clip(0).prod(-1)
    np.testing.assert_allclose(bins.frequencies, hats.mean(1), atol=1e-5)
    assert bins.frequencies.sum() == pytest.approx(1, abs=1e-3)


def test_rare_bins_are_omitted() -> None:
    chroma = np.array([[0, 0]] * 999 + [[0, 40]] + [[20, 0]] * 1000, np.float32)
    assert [40.0] not in fit_bins([chroma], 10.0, min_fraction=1e-3).centres[:, 1:].tolist()
    assert [40.0] in fit_bins([chroma], 10.0, min_fraction=1e-4).centres[:, 1:].tolist()


@pytest.mark.parametrize(
    "chroma",
    [[], [np.zeros((5, 2), np.float32)], [np.zeros((0, 2), np.float32)]],
    ids=["none", "grey", "empty"],
)
def test_fit_bins_of_images_without_colours_fails(chroma: list[np.ndarray]) -> None:
    with pytest.raises(ChromaboxError, match="use images with several colours"):
        fit_bins(chroma, 10.0)


@pytest.mark.parametrize("radius", [1, 2.5, 4.3])
def test_grid_has_the_nearest_bin_of_every_point(radius: float) -> None:
    subset = np.hypot(*GRID.centres.T) <= radius * GRID.spacing
    bins = replace(GRID, centres=GRID.centres[subset], frequencies=GRID.frequencies[subset])
    nearest, first = bins.nearest_bin_grid
    np.testing.assert_array_equal(first * GRID.spacing, bins.centres.min(0))
    np.testing.assert_array_equal((first + nearest.shape - 1) * GRID.spacing, bins.centres.max(0))
    points = (np.argwhere(nearest >= 0) + first) * GRID.spacing
    assert len(points) == nearest.size
    distances, _ = KDTree(bins.centres).query(points)
    np.testing.assert_allclose(np.linalg.norm(points - bins.centres[nearest.ravel()], axis=1), distances)


def test_json_round_trip() -> None:
    stored = json.loads(json.dumps(GRID.as_json()))
    restored = ChromaBins.from_json(stored)
    np.testing.assert_array_equal(restored.centres, GRID.centres)
    np.testing.assert_allclose(restored.frequencies, GRID.frequencies, rtol=1e-5)
    assert restored.spacing == GRID.spacing
    assert restored.as_json() == stored


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"centres": np.array([[0, 0], [5, 0]], np.float32)}, "multiples of 10"),
        ({"centres": np.zeros((1, 2), np.float32), "frequencies": np.ones(1, np.float32)}, "two or more points"),
        ({"centres": np.array([[0, 0], [np.nan, 0]], np.float32)}, "two or more points"),
        ({"frequencies": np.array([0.5, 0], np.float32)}, "expected 2 frequencies above 0"),
        ({"frequencies": np.array([0.5, np.nan], np.float32)}, "expected 2 frequencies above 0"),
    ],
)
def test_invalid_bins_are_rejected(change: dict[str, np.ndarray], error: str) -> None:
    valid = {"centres": np.array([[0, 0], [10, 0]], np.float32), "frequencies": np.array([0.5, 0.5], np.float32)}
    with pytest.raises(ChromaboxError, match=error):
        ChromaBins(**{**valid, **change}, spacing=10.0)
