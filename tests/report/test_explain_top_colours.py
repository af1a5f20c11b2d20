"""Colours and points of explanations, on predictions built by hand with known results; CIELAB by scikit-image."""

import numpy as np
import pytest
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


def make_prediction(
    probabilities: dict[tuple[int, int], float],
    chroma: np.ndarray,
    *,
    lightness: float = 60.0,
    colours: tuple[tuple[int, int, int], ...] | None = None,
    confidence: np.ndarray | None = None,
) -> ColourPrediction:
    """Return a prediction with chroma (height, width, 2) and a uniform distribution map of half the size."""
    height, width = (max(1, side // 2) for side in chroma.shape[:2])
    fractions = np.zeros((len(CENTRES), height, width), np.float32)
    for (a, b), probability in probabilities.items():
        fractions[bin_at(a, b)] = probability
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(fractions)
    distribution = ChromaDistribution(log_probabilities, CENTRES, np.full((height, width), lightness, np.float32))
    if confidence is None:
        confidence = np.full(chroma.shape[:2], 0.5, np.float32)
    rgb = None if colours is None else np.array(colours, np.uint8)
    return ColourPrediction(chroma.astype(np.float32), None, distribution, confidence, rgb)


def uniform_chroma(*chroma: float, shape: tuple[int, int] = (8, 10)) -> np.ndarray:
    return np.broadcast_to(np.array(chroma, np.float32), (*shape, 2)).copy()


def render(lightness: float, chroma: np.ndarray) -> np.ndarray:
    """Return the 8-bit image with the given lightness and chroma, by scikit-image."""
    lab = np.concatenate([np.full((*chroma.shape[:2], 1), lightness), chroma], -1)
    return np.rint(lab2rgb(lab) * 255).astype(np.uint8)


def test_neighbouring_bins_are_merged() -> None:
    probabilities = {(0, 0): 0.2, (10, 0): 0.15, (0, 10): 0.05, (40, 0): 0.3, (40, 10): 0.1, (-20, -20): 0.2}
    swatches = top_colours(make_prediction(probabilities, uniform_chroma(0, 0)), (0.5, 0.5))
    assert [swatch.fraction for swatch in swatches] == pytest.approx([0.4, 0.4, 0.2])
    means = {(40, 2.5), (3.75, 1.25), (-20, -20)}
    lab = rgb2lab(np.array([swatch.rgb for swatch in swatches]) / 255)
    for mean in means:
        assert np.hypot(*(lab[:, 1:] - mean).T).min() < 1
    np.testing.assert_allclose(lab[:, 0], 60, atol=0.6)


def test_at_most_three_colours_most_likely_first() -> None:
    probabilities = {(0, 0): 0.1, (40, 0): 0.4, (-40, 0): 0.3, (0, 40): 0.2}
    swatches = top_colours(make_prediction(probabilities, uniform_chroma(0, 0)), (0.0, 0.0))
    assert [swatch.fraction for swatch in swatches] == pytest.approx([0.4, 0.3, 0.2])
    assert len(top_colours(make_prediction({(0, 0): 1.0}, uniform_chroma(0, 0)), (0.99, 0.99))) == 1


def test_colours_are_read_at_the_given_position() -> None:
    prediction = make_prediction({(0, 0): 1.0}, uniform_chroma(0, 0, shape=(8, 8)))
    prediction.distribution.log_probabilities[:, 3, 0] = -np.inf
    prediction.distribution.log_probabilities[bin_at(40, 0), 3, 0] = 0
    prediction.distribution.lightness[3, 0] = 30
    [here], [elsewhere] = top_colours(prediction, (0.8, 0.1)), top_colours(prediction, (0.1, 0.8))
    lab = rgb2lab(np.array([here.rgb, elsewhere.rgb]) / 255)
    np.testing.assert_allclose(lab, [[30, 40, 0], [60, 0, 0]], atol=1)


def test_palette_colours_are_merged_only_if_similar() -> None:
    probabilities = {(0, 0): 0.5, (10, 0): 0.3, (0, 10): 0.2}
    prediction = make_prediction(probabilities, uniform_chroma(0, 0), colours=(NAVY, BEIGE))
    assert [swatch.fraction for swatch in top_colours(prediction, (0.5, 0.5))] == pytest.approx([0.5, 0.3, 0.2])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50), st.floats(0, 1)), max_size=40),
    st.floats(0, 60),
    st.integers(1, 8),
)
def test_clusters_partition_the_weight(points: list[tuple[int, int, float]], radius: float, count: int) -> None:
    chroma = np.array([point[:2] for point in points], np.float64).reshape(-1, 2)
    weights = np.array([point[2] for point in points], np.float64)
    means, sums = cluster_colours(chroma, weights, radius, len(points) + 1)
    assert sums.sum() == pytest.approx(weights.sum())
    assert (np.diff(sums) <= 0).all()
    if len(sums):
        np.testing.assert_allclose(sums @ means, weights @ chroma, atol=1e-6)
    assert len(cluster_colours(chroma, weights, radius, count)[1]) == min(count, len(sums))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=30))
def test_conversion_preserves_lightness_and_limits_chroma(colours: list[tuple[float, float, float]]) -> None:
    lab = np.array(colours)
    converted = rgb2lab(lab_to_rgb_uint8(lab[:, 0], lab[:, 1:]) / 255)
    np.testing.assert_allclose(converted[:, 0], lab[:, 0], atol=1.0)
    chroma_before, chroma_after = np.hypot(*lab[:, 1:].T), np.hypot(*converted[:, 1:].T)
    assert (chroma_after <= chroma_before + 2).all()


def test_swatch_fractions_are_pixel_fractions() -> None:
    chroma = uniform_chroma(0, 0, shape=(10, 20))
    chroma[:, :5] = (40, 20)
    chroma[:2, 5:] = (-20, -30)
    chroma[5, 10] = (1.5, 1.0)  # close enough to grey for the same swatch
    swatches, labels = used_colours(make_prediction({(0, 0): 1.0}, chroma), render(60, chroma))
    assert [swatch.fraction for swatch in swatches] == pytest.approx([0.6, 0.25, 0.15])
    lab = rgb2lab(np.array([swatch.rgb for swatch in swatches]) / 255)
    np.testing.assert_allclose(lab, [[60, 0, 0], [60, 40, 20], [60, -20, -30]], atol=1)
    assert labels.shape == (10, 20)
    assert len(np.unique(labels)) == 3
    assert (labels[:, :5] == labels[0, 0]).all()


def test_many_colours_are_merged_into_few_swatches() -> None:
    random = np.random.default_rng(0)
    chroma = random.uniform(-60, 60, (30, 40, 2))
    swatches, _ = used_colours(make_prediction({(0, 0): 1.0}, chroma), render(60, chroma))
    assert 8 <= len(swatches) <= MAX_SWATCHES
    assert sum(swatch.fraction for swatch in swatches) == pytest.approx(1)
    assert [swatch.fraction for swatch in swatches] == sorted((swatch.fraction for swatch in swatches), reverse=True)


def test_swatches_of_a_palette_are_its_colours() -> None:
    lab = rgb2lab(np.array([NAVY, BEIGE, RED]) / 255)
    chroma = uniform_chroma(*lab[1, 1:])
    chroma[:2] = lab[0, 1:]
    swatches, _ = used_colours(make_prediction({(0, 0): 1.0}, chroma, colours=(NAVY, BEIGE, RED)), render(60, chroma))
    assert [(tuple(swatch.rgb), swatch.fraction) for swatch in swatches] == [(BEIGE, 0.75), (NAVY, 0.25)]


@pytest.mark.parametrize("colours", [None, (RED, NAVY)])
def test_pixels_kept_grey_are_a_separate_swatch(colours: tuple[tuple[int, int, int], ...] | None) -> None:
    chroma = uniform_chroma(*rgb2lab(np.array([[RED]]) / 255)[0, 0, 1:])
    applied = chroma.copy()
    applied[:, 4:] = 0
    swatches, labels = used_colours(make_prediction({(0, 0): 1.0}, chroma, colours=colours), render(50, applied))
    assert [swatch.fraction for swatch in swatches] == pytest.approx([0.6, 0.4])
    assert np.ptp(swatches[0].rgb.astype(int)) == 0
    assert np.ptp(swatches[1].rgb.astype(int)) > 100
    assert len(np.unique(labels)) == 2


def test_grey_image_has_one_swatch() -> None:
    for chroma, lightness in (
        (uniform_chroma(0, 0), 60),
        (uniform_chroma(30, 30), 60),
        (uniform_chroma(30, 30), 0),
        (uniform_chroma(30, 30), 100),
    ):
        swatches, _ = used_colours(make_prediction({(0, 0): 1.0}, chroma), render(lightness, 0 * chroma))
        assert [swatch.fraction for swatch in swatches] == [1.0]
        assert np.ptp(swatches[0].rgb.astype(int)) <= 1


def test_points_are_confidence_extremes_and_regions() -> None:
    labels = np.zeros((60, 80), np.int64)
    labels[:, 40:] = 1
    labels[10:22, 8:20] = 2
    confidence = np.full((60, 80), 0.5, np.float32)
    confidence[44:52, 60:68] = 0.9
    confidence[44:52, 6:14] = 0.1
    points = select_points(labels, confidence, (600, 800))
    assert 600 <= points[0][0] < 680
    assert 440 <= points[0][1] < 520
    assert 60 <= points[1][0] < 140
    assert 440 <= points[1][1] < 520
    inside = [labels[y // 10, x // 10] for x, y in points]
    assert {0, 1, 2} <= set(inside)
    assert len(points) == 6


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    st.integers(0, 8),
    st.integers(0, 2**16),
)
def test_points_are_inside_and_apart(shape: tuple[int, int], size: tuple[int, int], count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, shape)
    points = select_points(labels, random.random(shape, dtype=np.float32), size, count)
    assert min(count, 1) <= len(points) <= count
    for index, (x, y) in enumerate(points):
        assert 0 <= x < size[1]
        assert 0 <= y < size[0]
        # Points are rounded down to whole pixels.
        assert all(np.hypot(x - a, y - b) > MIN_POINT_DISTANCE * max(size) - 2 for a, b in points[:index])
