"""Tests of chroma distributions; expected values from SciPy's softmax and entropy and from sums over the classes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from chromabox.colour.chroma.distribution import SAME_COLOUR_RADIUS, ChromaDistribution, merge_distributions
from chromabox.errors import ChromaboxError, UsageError

RNG = np.random.default_rng(0)
CENTRES = np.array([[0, 0], [10, 0], [60, 0], [0, -60], [-30, 30]], np.float32)


def make_distribution(scores: np.ndarray, centres: np.ndarray = CENTRES) -> ChromaDistribution:
    """Return a distribution with the given scores [classes, height, width]."""
    log_probabilities = torch.from_numpy(log_softmax(scores, axis=0).astype(np.float32))
    return ChromaDistribution(log_probabilities, torch.from_numpy(centres), torch.full(scores.shape[1:], 50.0))


SCORES = RNG.normal(0, 3, (5, 4, 6))
DISTRIBUTION = make_distribution(SCORES)
BAN_SECOND = torch.tensor([0.0, -math.inf, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("temperature", [0.05, 0.38, 0.7, 1.0, 3.0])
def test_anneal_is_softmax_of_scores_divided_by_temperature(temperature: float) -> None:
    expected = softmax(SCORES / temperature, axis=0)
    np.testing.assert_allclose(DISTRIBUTION.anneal(temperature), expected, atol=1e-5)
    mean = np.einsum("khw,kc->chw", expected, CENTRES)
    np.testing.assert_allclose(DISTRIBUTION.chroma(temperature), mean, atol=1e-3)


def test_temperature_zero_selects_most_likely_class() -> None:
    chroma = DISTRIBUTION.chroma(0.0).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(chroma, CENTRES[SCORES.argmax(0)])
    assert set(DISTRIBUTION.anneal(0.0).unique().tolist()) == {0.0, 1.0}


@settings(max_examples=100, deadline=None)
@given(st.floats(0, allow_infinity=False), st.booleans(), st.integers(0, 2**16))
def test_anneal_returns_probabilities_at_any_temperature(temperature: float, ban: bool, seed: int) -> None:
    distribution = make_distribution(np.random.default_rng(seed).normal(0, 20, (5, 2, 2)))
    distribution = distribution.reweight(BAN_SECOND) if ban else distribution
    probabilities = distribution.anneal(temperature)
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(0), torch.ones(2, 2))
    if ban:
        assert probabilities[1].max() == 0


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_invalid_temperature_is_rejected(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"temperature is .*: expected 0"):
        DISTRIBUTION.anneal(temperature)


def test_reweight_multiplies_probabilities() -> None:
    weights = RNG.random(5) + 0.1
    expected = softmax(SCORES, axis=0) * weights[:, None, None]
    result = DISTRIBUTION.reweight(torch.from_numpy(np.log(weights)).float())
    np.testing.assert_allclose(result.log_probabilities.exp(), expected / expected.sum(0), rtol=1e-4)
    torch.testing.assert_close(DISTRIBUTION.reweight(torch.zeros(5)).log_probabilities, DISTRIBUTION.log_probabilities)


def test_confidence_is_the_probability_of_similar_colours() -> None:
    probabilities = softmax(SCORES, axis=0)
    near = torch.zeros(2, 4, 6)  # near the first two classes only
    np.testing.assert_allclose(DISTRIBUTION.confidence(near), probabilities[:2].sum(0), atol=1e-6)
    on_the_edge = near + torch.tensor([60 - SAME_COLOUR_RADIUS, 0.0])[:, None, None]
    np.testing.assert_allclose(DISTRIBUTION.confidence(on_the_edge), probabilities[2], atol=1e-6)
    far = near + 100
    assert DISTRIBUTION.confidence(far).max() == 0


def test_entropy_matches_scipy() -> None:
    expected = entropy(softmax(SCORES, axis=0), axis=0) / math.log(5)
    np.testing.assert_allclose(DISTRIBUTION.entropy(), expected, atol=1e-5)
    assert make_distribution(np.zeros((5, 1, 1))).entropy().item() == pytest.approx(1)
    certain = np.zeros((5, 1, 1))
    certain[2] = 200
    assert make_distribution(certain).entropy().item() == pytest.approx(0, abs=1e-6)


def test_entropy_ignores_banned_class() -> None:
    expected = entropy(np.delete(softmax(SCORES, axis=0), 1, axis=0), axis=0) / math.log(5)
    np.testing.assert_allclose(DISTRIBUTION.reweight(BAN_SECOND).entropy(), expected, atol=1e-5)


def test_single_class_is_certain() -> None:
    single = make_distribution(np.zeros((1, 2, 3)), CENTRES[2:3])
    assert torch.equal(single.entropy(), torch.zeros(2, 3))
    assert torch.equal(single.confidence(single.chroma(0.7)), torch.ones(2, 3))


def test_merge_is_the_weighted_geometric_mean() -> None:
    distributions = [
        DISTRIBUTION,
        make_distribution(RNG.normal(0, 1, (5, 4, 6))),
        make_distribution(np.zeros((5, 4, 6))),
    ]
    probabilities = np.stack([one.log_probabilities.double().exp().numpy() for one in distributions])
    certainty = 1.02 - entropy(probabilities, axis=1) / math.log(5)
    log_probabilities = (certainty[:, None] * np.log(probabilities)).sum(0) / certainty.sum(0)
    expected = softmax(log_probabilities, axis=0)
    merged = merge_distributions(distributions)
    np.testing.assert_allclose(merged.log_probabilities.exp(), expected, atol=1e-5)
    assert merged.centres is DISTRIBUTION.centres
    assert merged.lightness is DISTRIBUTION.lightness


def test_merge_gives_uniform_distributions_little_weight() -> None:
    torch.testing.assert_close(merge_distributions([DISTRIBUTION]).log_probabilities, DISTRIBUTION.log_probabilities)
    torch.testing.assert_close(
        merge_distributions([DISTRIBUTION, DISTRIBUTION]).log_probabilities, DISTRIBUTION.log_probabilities
    )
    uniform = make_distribution(np.zeros((5, 4, 6)))
    certain = make_distribution(10 * SCORES)
    assert torch.equal(merge_distributions([uniform, certain, uniform]).chroma(0.0), certain.chroma(0.0))


def test_merge_of_mutually_exclusive_distributions_is_defined() -> None:
    impossible = torch.full((5, 1, 1), -math.inf)
    one_hot = [impossible.clone().index_fill_(0, torch.tensor([k]), 0.0) for k in (0, 3)]
    distributions = [
        ChromaDistribution(log_probabilities, DISTRIBUTION.centres, torch.zeros(1, 1)) for log_probabilities in one_hot
    ]
    merged = merge_distributions(distributions)
    torch.testing.assert_close(merged.log_probabilities.exp()[:, 0, 0], torch.tensor([0.5, 0, 0, 0.5, 0]))


def test_merge_of_empty_list_is_rejected() -> None:
    with pytest.raises(ChromaboxError, match="expected at least one"):
        merge_distributions([])
