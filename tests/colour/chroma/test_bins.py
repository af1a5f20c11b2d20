"""Tests of chroma bins: the mean of soft targets is the chroma.

Expected values come from bilinear hat functions, SciPy's Gaussian filter and the paper's formula.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from chromabox.colour.chroma.bins import ChromaBins, fit_bins
from chromabox.errors import ChromaboxError

RNG = np.random.default_rng(0)


def full_grid(radius: int = 4, spacing: float = 10.0) -> ChromaBins:
    """Return bins at all grid points with both coordinates at most ``radius`` steps from grey, equally frequent."""
    cells = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    frequencies = np.full(len(cells), 1 / len(cells), np.float32)
    return ChromaBins((cells * spacing).astype(np.float32), frequencies, spacing)


GRID = full_grid()
CHROMA = st.lists(st.tuples(*[st.floats(-40, 40, width=32)] * 2), min_size=1, max_size=40)


def to_tensor(chroma: list[tuple[float, float]]) -> torch.Tensor:
    """Return a chroma tensor [1, 2, 1, count]."""
    return torch.tensor(chroma, dtype=torch.float32).T[None, :, None]


@settings(max_examples=100, deadline=None)
@given(CHROMA)
def test_mean_under_targets_is_the_chroma(chroma: list[tuple[float, float]]) -> None:
    expected = to_tensor(chroma)
    bins, weights = GRID.soft_encode(expected)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    probabilities = torch.zeros(1, len(GRID), *expected.shape[2:]).scatter_add_(1, bins, weights)
    torch.testing.assert_close(GRID.decode_mean(probabilities), expected, atol=2e-3, rtol=0)
    # Only the corners of the cell that contains the chroma have weight.
    centres = torch.from_numpy(GRID.centres)[bins].movedim(-1, 1)
    far = (centres - expected[:, :, None]).abs().amax(1) > GRID.spacing * 1.001
    assert (weights[far] < 1e-3).all()


def test_target_of_grid_point_is_that_bin() -> None:
    inner = np.abs(GRID.centres).max(1) < 40
    bins, weights = GRID.soft_encode(to_tensor(GRID.centres[inner].tolist()))
    heaviest = bins.gather(1, weights.argmax(1, keepdim=True)).flatten().numpy()
    assert heaviest.tolist() == np.flatnonzero(inner).tolist()
    assert weights.amax(1).min() == 1


@pytest.mark.parametrize("chroma", [(200.0, 0.0), (41.0, -41.0), (-90.0, 300.0), (0.0, -40.0)])
def test_chroma_outside_bins_moves_to_nearest_bin(chroma: tuple[float, float]) -> None:
    bins, weights = GRID.soft_encode(to_tensor([chroma]))
    mean = (torch.from_numpy(GRID.centres)[bins[0, :, 0, 0]] * weights[0, :, 0, 0, None]).sum(0)
    np.testing.assert_allclose(mean, np.clip(chroma, -40, 40), atol=2e-3)


def test_missing_grid_points_map_to_nearest_bin() -> None:
    subset = np.hypot(*GRID.centres.T) <= 25
    bins = ChromaBins(GRID.centres[subset], GRID.frequencies[subset], GRID.spacing)
    indices, weights = bins.soft_encode(to_tensor([(40.0, 0.0), (0.0, -40.0), (20.0, 10.0)]))
    assert indices.max() < len(bins)
    mean = (torch.from_numpy(bins.centres)[indices[0, :, 0]] * weights[0, :, 0, :, None]).sum(0)
    np.testing.assert_allclose(mean, [[20, 0], [0, -20], [20, 10]], atol=2e-3)


def test_bins_on_a_line_are_valid() -> None:
    line = ChromaBins(np.array([[0, -10], [0, 0], [0, 10]], np.float32), np.full(3, 0.3, np.float32), 10.0)
    bins, weights = line.soft_encode(to_tensor([(0.0, 5.0), (7.0, -5.0)]))
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 1, 2))
    mean = (torch.from_numpy(line.centres)[bins[0, :, 0]] * weights[0, :, 0, :, None]).sum(0)
    np.testing.assert_allclose(mean, [[0, 5], [0, -5]], atol=2e-3)


def test_fitted_bins_have_relative_frequencies() -> None:
    # A quarter of all pixels is at (20, 0), the others are half-way between (0, 0) and (0, 10).
    chroma = torch.tensor([[20.0, 0.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0]]).T
    bins = fit_bins([chroma[:, :2], chroma[:, 2:]], 10.0)
    frequencies = dict(zip(map(tuple, bins.centres.tolist()), bins.frequencies.tolist(), strict=True))
    assert frequencies == pytest.approx({(0.0, 0.0): 0.375, (0.0, 10.0): 0.375, (20.0, 0.0): 0.25})


@settings(max_examples=30, deadline=None)
@given(st.floats(5, 30), st.integers(0, 2**16))
def test_fitted_frequencies_are_the_mean_targets(spacing: float, seed: int) -> None:
    chroma = torch.from_numpy(np.random.default_rng(seed).normal(0, 30, (2, 200)).clip(-128, 128).astype(np.float32))
    bins = fit_bins([chroma], spacing)
    cells = np.rint(bins.centres / spacing)
    # The bilinear weight of a pixel at a grid point is the product of two hat functions.
    hats = (1 - np.abs(chroma.double().numpy().T[None] / spacing - cells[:, None])).clip(0).prod(-1)
    np.testing.assert_allclose(bins.frequencies, hats.mean(1), atol=1e-5)
    assert bins.frequencies.sum() == pytest.approx(1, abs=1e-3)


def test_rare_bins_are_omitted() -> None:
    chroma = torch.tensor([[0.0, 0.0]] * 999 + [[0.0, 40.0]] + [[20.0, 0.0]] * 1000).T
    assert [40.0] not in fit_bins([chroma], 10.0, min_fraction=1e-3).centres[:, 1:].tolist()
    assert [40.0] in fit_bins([chroma], 10.0, min_fraction=1e-4).centres[:, 1:].tolist()


@pytest.mark.parametrize("chroma", [[], [torch.zeros(2, 5)], [torch.zeros(2, 0)]], ids=["none", "grey", "empty"])
def test_fit_bins_of_images_without_colours_fails(chroma: list[torch.Tensor]) -> None:
    with pytest.raises(ChromaboxError, match="use images with several colours"):
        fit_bins(chroma, 10.0)


def test_rebalancing_weights_match_paper() -> None:
    # On a wide grid, the paper's smoothing equals SciPy's Gaussian filter, whose kernel also sums to 1.
    spacing, radius = 2.5, 12
    counts = np.zeros((2 * radius + 1, 2 * radius + 1))
    counts[radius - 3 : radius + 4, radius - 3 : radius + 4] = RNG.random((7, 7)) ** 4 + 1e-3
    fractions = (counts + 1e-9) / (counts + 1e-9).sum()
    bins = replace(full_grid(radius, spacing), frequencies=fractions.ravel().astype(np.float32))
    smooth = gaussian_filter(fractions, 5 / spacing, mode="constant", truncate=8).ravel()
    weights = 1 / (0.5 * smooth + 0.5 / len(bins))
    weights /= (weights * smooth).sum()
    log_weights = bins.rebalancing_weights(1.0)
    inner = np.abs(bins.centres).max(1) < 15  # at the border the filter loses weight that the paper's kernel preserves
    np.testing.assert_allclose(log_weights.numpy()[inner], np.log(weights)[inner], atol=0.02)
    torch.testing.assert_close(bins.rebalancing_weights(0.5), log_weights / 2)
    assert torch.equal(bins.rebalancing_weights(0.0), torch.zeros(len(bins)))


def test_rebalancing_weights_of_rare_bins_are_higher() -> None:
    frequencies = np.exp(-(GRID.centres**2).sum(1) / 200).astype(np.float32) + 1e-6
    weights = replace(GRID, frequencies=frequencies).rebalancing_weights(1.0)
    assert weights.argmin() == np.hypot(*GRID.centres.T).argmin()
    assert weights[0] > weights[len(GRID) // 2]


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
