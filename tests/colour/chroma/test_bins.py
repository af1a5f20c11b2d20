"""Chroma bins: soft targets whose mean is the chroma, against scipy's bilinear weights and the paper's formula."""

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


def full_grid(reach: int = 4, spacing: float = 10.0) -> ChromaBins:
    """Every grid point with both coordinates at most ``reach`` steps from grey, equally frequent."""
    cells = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    frequencies = np.full(len(cells), 1 / len(cells), np.float32)
    return ChromaBins((cells * spacing).astype(np.float32), frequencies, spacing)


GRID = full_grid()
CHROMA = st.lists(st.tuples(*[st.floats(-40, 40, width=32)] * 2), min_size=1, max_size=40)


def places(chroma: list[tuple[float, float]]) -> torch.Tensor:
    """Chroma [1, 2, 1, count]."""
    return torch.tensor(chroma, dtype=torch.float32).T[None, :, None]


@settings(max_examples=100, deadline=None)
@given(CHROMA)
def test_the_mean_under_the_targets_is_the_chroma(chroma: list[tuple[float, float]]) -> None:
    wanted = places(chroma)
    bins, weights = GRID.soft_encode(wanted)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    probabilities = torch.zeros(1, len(GRID), *wanted.shape[2:]).scatter_add_(1, bins, weights)
    torch.testing.assert_close(GRID.decode_mean(probabilities), wanted, atol=2e-3, rtol=0)
    # Only the corners of the chroma's own cell take part.
    centres = torch.from_numpy(GRID.centres)[bins].movedim(-1, 1)
    far = (centres - wanted[:, :, None]).abs().amax(1) > GRID.spacing * 1.001
    assert (weights[far] < 1e-3).all()


def test_on_a_grid_point_the_target_is_that_bin() -> None:
    inner = np.abs(GRID.centres).max(1) < 40
    bins, weights = GRID.soft_encode(places(GRID.centres[inner].tolist()))
    heaviest = bins.gather(1, weights.argmax(1, keepdim=True)).flatten().numpy()
    assert heaviest.tolist() == np.flatnonzero(inner).tolist()
    assert weights.amax(1).min() == 1


@pytest.mark.parametrize("chroma", [(200.0, 0.0), (41.0, -41.0), (-90.0, 300.0), (0.0, -40.0)])
def test_chroma_beyond_the_bins_goes_to_the_nearest(chroma: tuple[float, float]) -> None:
    bins, weights = GRID.soft_encode(places([chroma]))
    mean = (torch.from_numpy(GRID.centres)[bins[0, :, 0, 0]] * weights[0, :, 0, 0, None]).sum(0)
    np.testing.assert_allclose(mean, np.clip(chroma, -40, 40), atol=2e-3)


def test_missing_grid_points_are_answered_by_the_nearest_bin() -> None:
    kept = np.hypot(*GRID.centres.T) <= 25
    bins = ChromaBins(GRID.centres[kept], GRID.frequencies[kept], GRID.spacing)
    found, weights = bins.soft_encode(places([(40.0, 0.0), (0.0, -40.0), (20.0, 10.0)]))
    assert found.max() < len(bins)
    mean = (torch.from_numpy(bins.centres)[found[0, :, 0]] * weights[0, :, 0, :, None]).sum(0)
    np.testing.assert_allclose(mean, [[20, 0], [0, -20], [20, 10]], atol=2e-3)


def test_bins_in_a_line_are_bins_too() -> None:
    line = ChromaBins(np.array([[0, -10], [0, 0], [0, 10]], np.float32), np.full(3, 0.3, np.float32), 10.0)
    bins, weights = line.soft_encode(places([(0.0, 5.0), (7.0, -5.0)]))
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 1, 2))
    mean = (torch.from_numpy(line.centres)[bins[0, :, 0]] * weights[0, :, 0, :, None]).sum(0)
    np.testing.assert_allclose(mean, [[0, 5], [0, -5]], atol=2e-3)


def test_fitted_bins_are_those_that_are_used_and_know_how_often() -> None:
    # A quarter of all pixels at (20, 0), the others half-way between (0, 0) and (0, 10).
    chroma = torch.tensor([[20.0, 0.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0]]).T
    bins = fit_bins([chroma[:, :2], chroma[:, 2:]], 10.0)
    found = dict(zip(map(tuple, bins.centres.tolist()), bins.frequencies.tolist(), strict=True))
    assert found == pytest.approx({(0.0, 0.0): 0.375, (0.0, 10.0): 0.375, (20.0, 0.0): 0.25})


@settings(max_examples=30, deadline=None)
@given(st.floats(5, 30), st.integers(0, 2**16))
def test_fitted_frequencies_are_the_mean_targets(spacing: float, seed: int) -> None:
    chroma = torch.from_numpy(np.random.default_rng(seed).normal(0, 30, (2, 200)).clip(-128, 128).astype(np.float32))
    bins = fit_bins([chroma], spacing)
    cells = np.rint(bins.centres / spacing)
    # The bilinear weight of a pixel at a grid point is the product of two hats.
    hats = (1 - np.abs(chroma.double().numpy().T[None] / spacing - cells[:, None])).clip(0).prod(-1)
    np.testing.assert_allclose(bins.frequencies, hats.mean(1), atol=1e-5)
    assert bins.frequencies.sum() == pytest.approx(1, abs=1e-3)


def test_rare_bins_are_left_out() -> None:
    chroma = torch.tensor([[0.0, 0.0]] * 999 + [[0.0, 40.0]] + [[20.0, 0.0]] * 1000).T
    assert [40.0] not in fit_bins([chroma], 10.0, min_fraction=1e-3).centres[:, 1:].tolist()
    assert [40.0] in fit_bins([chroma], 10.0, min_fraction=1e-4).centres[:, 1:].tolist()


@pytest.mark.parametrize("chroma", [[], [torch.zeros(2, 5)], [torch.zeros(2, 0)]], ids=["none", "grey", "empty"])
def test_pictures_without_colours_have_no_bins(chroma: list[torch.Tensor]) -> None:
    with pytest.raises(ChromaboxError, match="pictures in several colours are needed"):
        fit_bins(chroma, 10.0)


def test_rarity_is_the_papers_weight() -> None:
    # On a grid that is wide enough the paper's smoothing is scipy's Gaussian filter, whose kernel sums to 1 as well.
    spacing, reach = 2.5, 12
    counts = np.zeros((2 * reach + 1, 2 * reach + 1))
    counts[reach - 3 : reach + 4, reach - 3 : reach + 4] = RNG.random((7, 7)) ** 4 + 1e-3
    shares = (counts + 1e-9) / (counts + 1e-9).sum()
    bins = replace(full_grid(reach, spacing), frequencies=shares.ravel().astype(np.float32))
    smooth = gaussian_filter(shares, 5 / spacing, mode="constant", truncate=8).ravel()
    weights = 1 / (0.5 * smooth + 0.5 / len(bins))
    weights /= (weights * smooth).sum()
    found = bins.rebalancing_weights(1.0)
    inner = np.abs(bins.centres).max(1) < 15  # the filter loses at the border what the paper's kernel keeps
    np.testing.assert_allclose(found.numpy()[inner], np.log(weights)[inner], atol=0.02)
    torch.testing.assert_close(bins.rebalancing_weights(0.5), found / 2)
    assert torch.equal(bins.rebalancing_weights(0.0), torch.zeros(len(bins)))


def test_rarer_bins_weigh_more() -> None:
    frequencies = np.exp(-(GRID.centres**2).sum(1) / 200).astype(np.float32) + 1e-6
    weights = replace(GRID, frequencies=frequencies).rebalancing_weights(1.0)
    assert weights.argmin() == np.hypot(*GRID.centres.T).argmin()
    assert weights[0] > weights[len(GRID) // 2]


def test_the_description_comes_back_through_json() -> None:
    stored = json.loads(json.dumps(GRID.as_json()))
    again = ChromaBins.from_json(stored)
    np.testing.assert_array_equal(again.centres, GRID.centres)
    np.testing.assert_allclose(again.frequencies, GRID.frequencies, rtol=1e-5)
    assert again.spacing == GRID.spacing
    assert again.as_json() == stored


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"centres": np.array([[0, 0], [5, 0]], np.float32)}, "multiples of 10"),
        ({"centres": np.zeros((1, 2), np.float32), "frequencies": np.ones(1, np.float32)}, "two or more points"),
        ({"centres": np.array([[0, 0], [np.nan, 0]], np.float32)}, "two or more points"),
        ({"frequencies": np.array([0.5, 0], np.float32)}, "need 2 frequencies above 0"),
        ({"frequencies": np.array([0.5, np.nan], np.float32)}, "need 2 frequencies above 0"),
    ],
)
def test_what_are_no_bins_is_refused(change: dict[str, np.ndarray], error: str) -> None:
    given = {"centres": np.array([[0, 0], [10, 0]], np.float32), "frequencies": np.array([0.5, 0.5], np.float32)}
    with pytest.raises(ChromaboxError, match=error):
        ChromaBins(**{**given, **change}, spacing=10.0)
