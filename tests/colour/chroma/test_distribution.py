"""Tests of chroma distributions; expected values from SciPy's softmax and entropy and from sums over the classes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special
from scipy.stats import entropy

from chromabox.colour.chroma.distribution import (
    SAME_COLOUR_RADIUS,
    ChromaDistribution,
    log_softmax,
    merge_distributions,
    softmax,
)
from chromabox.errors import ChromaboxError, UsageError

RNG = np.random.default_rng(0)
CENTRES = np.array([[0, 0], [10, 0], [60, 0], [0, -60], [-30, 30]], np.float32)


def make_distribution(scores: np.ndarray, centres: np.ndarray = CENTRES) -> ChromaDistribution:
    """Return a distribution with the given scores [classes, height, width]."""
    log_probabilities = special.log_softmax(scores, axis=0).astype(np.float32)
    return ChromaDistribution(log_probabilities, centres, np.full(scores.shape[1:], 50, np.float32))


SCORES = RNG.normal(0, 3, (5, 4, 6))
DISTRIBUTION = make_distribution(SCORES)


def ban_second(distribution: ChromaDistribution) -> ChromaDistribution:
    """Return the distribution without the second class."""
    scores = distribution.log_probabilities.copy()
    scores[1] = -math.inf
    return replace(distribution, log_probabilities=log_softmax(scores, 0))


@settings(max_examples=100, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.floats(-1e4, 1e4, width=32) | st.just(np.float32(-math.inf)),
    ),
    st.sampled_from([0, 1, 2, -1]),
)
def test_softmax_matches_scipy(scores: np.ndarray, axis: int) -> None:
    # The softmax is undefined where all scores are −∞.
    scores[np.isneginf(scores.max(axis, keepdims=True)) & np.isneginf(scores)] = 0
    original = scores.copy()
    double = scores.astype(np.float64)
    probabilities, log_probabilities = softmax(scores, axis), log_softmax(scores, axis)
    assert probabilities.dtype == log_probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, special.softmax(double, axis=axis), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(log_probabilities, special.log_softmax(double, axis=axis), rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(np.isneginf(log_probabilities), np.isneginf(scores))
    np.testing.assert_array_equal(scores, original)


@pytest.mark.parametrize("temperature", [0.05, 0.38, 0.7, 1.0, 3.0])
def test_anneal_is_softmax_of_scores_divided_by_temperature(temperature: float) -> None:
    expected = special.softmax(SCORES / temperature, axis=0)
    np.testing.assert_allclose(DISTRIBUTION.anneal(temperature), expected, atol=1e-5)
    mean = np.einsum("khw,kc->hwc", expected, CENTRES)
    np.testing.assert_allclose(DISTRIBUTION.chroma(temperature), mean, atol=1e-3)


def test_temperature_zero_selects_most_likely_class() -> None:
    np.testing.assert_array_equal(DISTRIBUTION.chroma(0.0), CENTRES[SCORES.argmax(0)])
    assert set(np.unique(DISTRIBUTION.anneal(0.0)).tolist()) == {0.0, 1.0}


@settings(max_examples=100, deadline=None)
@given(st.floats(0, allow_infinity=False), st.booleans(), st.integers(0, 2**16))
def test_anneal_returns_probabilities_at_any_temperature(temperature: float, ban: bool, seed: int) -> None:
    distribution = make_distribution(np.random.default_rng(seed).normal(0, 20, (5, 2, 2)))
    distribution = ban_second(distribution) if ban else distribution
    probabilities = distribution.anneal(temperature)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(0), np.ones((2, 2)), rtol=1e-5)
    if ban:
        assert probabilities[1].max() == 0


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_invalid_temperature_is_rejected(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"temperature is .*: expected 0"):
        DISTRIBUTION.anneal(temperature)


@pytest.mark.parametrize(("gain", "full_confidence"), [(1.0, 0.0), (0.8, 0.0), (1.5, 0.6), (1.0, 1.0)])
def test_decoded_chroma_is_scaled_and_faded_by_its_confidence(gain: float, full_confidence: float) -> None:
    expected = np.tensordot(special.softmax(SCORES / 0.5, axis=0), CENTRES, (0, 0))
    if full_confidence:
        is_similar = np.hypot(*(CENTRES[:, None, None] - expected).transpose(3, 0, 1, 2)) <= SAME_COLOUR_RADIUS
        confidence = (special.softmax(SCORES, axis=0) * is_similar).sum(0)
        expected *= np.minimum(confidence / full_confidence, 1)[..., None]
    np.testing.assert_allclose(DISTRIBUTION.decode(0.5, gain, full_confidence), gain * expected, rtol=1e-4, atol=1e-4)


def test_confidence_is_the_probability_of_similar_colours() -> None:
    probabilities = special.softmax(SCORES, axis=0)
    near = np.zeros((4, 6, 2), np.float32)  # near the first two classes only
    np.testing.assert_allclose(DISTRIBUTION.confidence(near), probabilities[:2].sum(0), atol=1e-6)
    on_the_edge = near + np.array([60 - SAME_COLOUR_RADIUS, 0], np.float32)
    np.testing.assert_allclose(DISTRIBUTION.confidence(on_the_edge), probabilities[2], atol=1e-6)
    far = near + 100
    assert DISTRIBUTION.confidence(far).max() == 0


def test_entropy_matches_scipy() -> None:
    expected = entropy(special.softmax(SCORES, axis=0), axis=0) / math.log(5)
    np.testing.assert_allclose(DISTRIBUTION.entropy(), expected, atol=1e-5)
    assert make_distribution(np.zeros((5, 1, 1))).entropy().item() == pytest.approx(1)
    certain = np.zeros((5, 1, 1))
    certain[2] = 200
    assert make_distribution(certain).entropy().item() == pytest.approx(0, abs=1e-6)


def test_entropy_ignores_banned_class() -> None:
    expected = entropy(np.delete(special.softmax(SCORES, axis=0), 1, axis=0), axis=0) / math.log(5)
    np.testing.assert_allclose(ban_second(DISTRIBUTION).entropy(), expected, atol=1e-5)


def test_single_class_is_certain() -> None:
    single = make_distribution(np.zeros((1, 2, 3)), CENTRES[2:3])
    np.testing.assert_array_equal(single.entropy(), np.zeros((2, 3)))
    np.testing.assert_array_equal(single.confidence(single.chroma(0.7)), np.ones((2, 3)))


def test_merge_is_the_weighted_geometric_mean() -> None:
    distributions = [
        DISTRIBUTION,
        make_distribution(RNG.normal(0, 1, (5, 4, 6))),
        make_distribution(np.zeros((5, 4, 6))),
    ]
    probabilities = np.stack([np.exp(one.log_probabilities.astype(np.float64)) for one in distributions])
    certainty = 1.02 - entropy(probabilities, axis=1) / math.log(5)
    log_probabilities = (certainty[:, None] * np.log(probabilities)).sum(0) / certainty.sum(0)
    expected = special.softmax(log_probabilities, axis=0)
    merged = merge_distributions(distributions)
    np.testing.assert_allclose(np.exp(merged.log_probabilities), expected, atol=1e-5)
    assert merged.centres is DISTRIBUTION.centres
    assert merged.lightness is DISTRIBUTION.lightness


def test_merge_gives_uniform_distributions_little_weight() -> None:
    for count in (1, 2):
        merged = merge_distributions(count * [DISTRIBUTION])
        np.testing.assert_allclose(merged.log_probabilities, DISTRIBUTION.log_probabilities, rtol=1e-5, atol=1e-6)
    uniform = make_distribution(np.zeros((5, 4, 6)))
    certain = make_distribution(10 * SCORES)
    np.testing.assert_array_equal(merge_distributions([uniform, certain, uniform]).chroma(0.0), certain.chroma(0.0))


def test_merge_of_mutually_exclusive_distributions_is_defined() -> None:
    one_hot = np.full((2, 5, 1, 1), -math.inf, np.float32)
    one_hot[0, 0] = one_hot[1, 3] = 0
    distributions = [
        ChromaDistribution(log_probabilities, DISTRIBUTION.centres, np.zeros((1, 1), np.float32))
        for log_probabilities in one_hot
    ]
    merged = merge_distributions(distributions)
    np.testing.assert_allclose(np.exp(merged.log_probabilities)[:, 0, 0], [0.5, 0, 0, 0.5, 0], rtol=1e-5, atol=1e-6)


def test_merge_of_empty_list_is_rejected() -> None:
    with pytest.raises(ChromaboxError, match="expected at least one"):
        merge_distributions([])
