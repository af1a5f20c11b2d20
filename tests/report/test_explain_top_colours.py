"""What is told of a decision, on decisions built by hand whose answers can be counted; CIELab by scikit-image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab

from chromabox.colour.chroma.distribution import ChromaDistribution
from chromabox.colour.constraints.constraints import ColourPrediction
from chromabox.report.explain import (
    MAX_SWATCHES,
    MIN_POINT_DISTANCE,
    cluster_colours,
    lab_to_rgb_uint8,
    select_points,
    top_colours,
    used_colours,
)

CENTRES = np.array([[a, b] for a in range(-40, 50, 10) for b in range(-40, 50, 10)], np.float32)
NAVY, BEIGE, RED = (0, 0, 128), (245, 245, 220), (255, 0, 0)


def bin_at(a: int, b: int) -> int:
    return int(np.flatnonzero(((a, b) == CENTRES).all(1))[0])


def decision_of(
    probabilities: dict[tuple[int, int], float],
    chroma: np.ndarray,
    *,
    lightness: float = 60.0,
    colours: tuple[tuple[int, int, int], ...] | None = None,
    confidence: np.ndarray | None = None,
) -> ColourPrediction:
    """A decision on a map [height, width, 2] whose opinion is the same everywhere, on a map of half the size."""
    height, width = (max(1, side // 2) for side in chroma.shape[:2])
    shares = np.zeros((len(CENTRES), height, width), np.float32)
    for (a, b), share in probabilities.items():
        shares[bin_at(a, b)] = share
    with np.errstate(divide="ignore"):
        logarithms = torch.from_numpy(np.log(shares))
    opinion = ChromaDistribution(logarithms, torch.from_numpy(CENTRES), torch.full((height, width), lightness))
    if confidence is None:
        confidence = np.full(chroma.shape[:2], 0.5, np.float32)
    rgb = None if colours is None else np.array(colours, np.uint8)
    return ColourPrediction(chroma.astype(np.float32), None, opinion, confidence, rgb)


def flat(*chroma: float, shape: tuple[int, int] = (8, 10)) -> np.ndarray:
    return np.broadcast_to(np.array(chroma, np.float32), (*shape, 2)).copy()


def painted(lightness: float, chroma: np.ndarray) -> np.ndarray:
    """The 8-bit picture with that lightness and chroma, by scikit-image."""
    lab = np.concatenate([np.full((*chroma.shape[:2], 1), lightness), chroma], -1)
    return np.rint(lab2rgb(lab) * 255).astype(np.uint8)


def test_neighbouring_bins_are_one_colour() -> None:
    shares = {(0, 0): 0.2, (10, 0): 0.15, (0, 10): 0.05, (40, 0): 0.3, (40, 10): 0.1, (-20, -20): 0.2}
    found = top_colours(decision_of(shares, flat(0, 0)), (0.5, 0.5))
    assert [swatch.fraction for swatch in found] == pytest.approx([0.4, 0.4, 0.2])
    means = {(40, 2.5), (3.75, 1.25), (-20, -20)}
    lab = rgb2lab(np.array([swatch.rgb for swatch in found]) / 255)
    for mean in means:
        assert np.hypot(*(lab[:, 1:] - mean).T).min() < 1
    np.testing.assert_allclose(lab[:, 0], 60, atol=0.6)


def test_only_three_and_the_likeliest_first_and_none_that_cannot_be() -> None:
    shares = {(0, 0): 0.1, (40, 0): 0.4, (-40, 0): 0.3, (0, 40): 0.2}
    found = top_colours(decision_of(shares, flat(0, 0)), (0.0, 0.0))
    assert [swatch.fraction for swatch in found] == pytest.approx([0.4, 0.3, 0.2])
    assert len(top_colours(decision_of({(0, 0): 1.0}, flat(0, 0)), (0.99, 0.99))) == 1


def test_a_place_is_looked_up_where_it_is() -> None:
    decision = decision_of({(0, 0): 1.0}, flat(0, 0, shape=(8, 8)))
    decision.distribution.log_probabilities[:, 3, 0] = -np.inf
    decision.distribution.log_probabilities[bin_at(40, 0), 3, 0] = 0
    decision.distribution.lightness[3, 0] = 30
    [here], [elsewhere] = top_colours(decision, (0.8, 0.1)), top_colours(decision, (0.1, 0.8))
    lab = rgb2lab(np.array([here.rgb, elsewhere.rgb]) / 255)
    np.testing.assert_allclose(lab, [[30, 40, 0], [60, 0, 0]], atol=1)


def test_a_palettes_colours_are_joined_only_where_they_look_alike() -> None:
    shares = {(0, 0): 0.5, (10, 0): 0.3, (0, 10): 0.2}
    decision = decision_of(shares, flat(0, 0), colours=(NAVY, BEIGE))
    assert [swatch.fraction for swatch in top_colours(decision, (0.5, 0.5))] == pytest.approx([0.5, 0.3, 0.2])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.floats(0, 1)), max_size=40),
    st.floats(0, 60),
    st.integers(1, 8),
)
def test_groups_share_all_weight_and_keep_apart(points: list[tuple[int, int, float]], reach: float, count: int) -> None:
    chroma = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    weights = np.array([point[2] for point in points], np.float64)
    everything, sums = cluster_colours(chroma, weights, reach, len(points) + 1)
    assert sums.sum() == pytest.approx(weights.sum())
    assert (np.diff(sums) <= 0).all()
    if len(sums):
        np.testing.assert_allclose(sums @ everything, weights @ chroma, atol=1e-6)
    assert len(cluster_colours(chroma, weights, reach, count)[1]) == min(count, len(sums))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=30))
def test_colours_keep_lightness_and_hue(colours: list[tuple[float, float, float]]) -> None:
    lab = np.array(colours)
    found = rgb2lab(lab_to_rgb_uint8(lab[:, 0], lab[:, 1:]) / 255)
    np.testing.assert_allclose(found[:, 0], lab[:, 0], atol=1.0)
    asked, kept = np.hypot(*lab[:, 1:].T), np.hypot(*found[:, 1:].T)
    assert (kept <= asked + 2).all()


def test_swatches_have_the_shares_of_the_pixels() -> None:
    chroma = flat(0, 0, shape=(10, 20))
    chroma[:, :5] = (40, 20)
    chroma[:2, 5:] = (-20, -30)
    chroma[5, 10] = (1.5, 1.0)  # so near to grey that it is the same swatch
    found, labels = used_colours(decision_of({(0, 0): 1.0}, chroma), painted(60, chroma))
    assert [swatch.fraction for swatch in found] == pytest.approx([0.6, 0.25, 0.15])
    lab = rgb2lab(np.array([swatch.rgb for swatch in found]) / 255)
    np.testing.assert_allclose(lab, [[60, 0, 0], [60, 40, 20], [60, -20, -30]], atol=1)
    assert labels.shape == (10, 20)
    assert len(np.unique(labels)) == 3
    assert (labels[:, :5] == labels[0, 0]).all()


def test_many_colours_make_few_swatches() -> None:
    random = np.random.default_rng(0)
    chroma = random.uniform(-60, 60, (30, 40, 2))
    found, _ = used_colours(decision_of({(0, 0): 1.0}, chroma), painted(60, chroma))
    assert 8 <= len(found) <= MAX_SWATCHES
    assert sum(swatch.fraction for swatch in found) == pytest.approx(1)
    assert [swatch.fraction for swatch in found] == sorted((swatch.fraction for swatch in found), reverse=True)


def test_of_a_palette_its_own_colours_are_shown() -> None:
    lab = rgb2lab(np.array([NAVY, BEIGE, RED]) / 255)
    chroma = flat(*lab[1, 1:])
    chroma[:2] = lab[0, 1:]
    found, _ = used_colours(decision_of({(0, 0): 1.0}, chroma, colours=(NAVY, BEIGE, RED)), painted(60, chroma))
    assert [(tuple(swatch.rgb), swatch.fraction) for swatch in found] == [(BEIGE, 0.75), (NAVY, 0.25)]


@pytest.mark.parametrize("colours", [None, (RED, NAVY)])
def test_what_was_left_grey_is_a_swatch_of_its_own(colours: tuple[tuple[int, int, int], ...] | None) -> None:
    chroma = flat(*rgb2lab(np.array([[RED]]) / 255)[0, 0, 1:])
    shown = chroma.copy()
    shown[:, 4:] = 0
    found, labels = used_colours(decision_of({(0, 0): 1.0}, chroma, colours=colours), painted(50, shown))
    assert [swatch.fraction for swatch in found] == pytest.approx([0.6, 0.4])
    assert np.ptp(found[0].rgb.astype(int)) == 0
    assert np.ptp(found[1].rgb.astype(int)) > 100
    assert len(np.unique(labels)) == 2


def test_a_wholly_grey_picture_has_one_swatch() -> None:
    for chroma, lightness in ((flat(0, 0), 60), (flat(30, 30), 60), (flat(30, 30), 0), (flat(30, 30), 100)):
        found, _ = used_colours(decision_of({(0, 0): 1.0}, chroma), painted(lightness, 0 * chroma))
        assert [swatch.fraction for swatch in found] == [1.0]
        assert np.ptp(found[0].rgb.astype(int)) <= 1


def test_places_are_the_surest_the_least_sure_and_the_regions() -> None:
    labels = np.zeros((60, 80), np.int64)
    labels[:, 40:] = 1
    labels[10:22, 8:20] = 2
    confidence = np.full((60, 80), 0.5, np.float32)
    confidence[44:52, 60:68] = 0.9
    confidence[44:52, 6:14] = 0.1
    found = select_points(labels, confidence, (600, 800))
    assert 600 <= found[0][0] < 680
    assert 440 <= found[0][1] < 520
    assert 60 <= found[1][0] < 140
    assert 440 <= found[1][1] < 520
    inside = [labels[y // 10, x // 10] for x, y in found]
    assert {0, 1, 2} <= set(inside)
    assert len(found) == 6


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(0, 8),
    st.integers(0, 2**16),
)
def test_places_lie_inside_and_apart(shape: tuple[int, int], size: tuple[int, int], count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, shape)
    found = select_points(labels, random.random(shape, dtype=np.float32), size, count)
    assert min(count, 1) <= len(found) <= count
    for index, (x, y) in enumerate(found):
        assert 0 <= x < size[1]
        assert 0 <= y < size[0]
        # Places are rounded down to whole pixels.
        assert all(np.hypot(x - a, y - b) > MIN_POINT_DISTANCE * max(size) - 2 for a, b in found[:index])
