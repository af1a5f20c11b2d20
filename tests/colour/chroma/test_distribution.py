"""Opinions against scipy's softmax, entropy and plain sums over the classes."""

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


def opinion_of(scores: np.ndarray, centres: np.ndarray = CENTRES) -> ChromaDistribution:
    """An opinion with the given scores [classes, height, width]."""
    logarithms = torch.from_numpy(log_softmax(scores, axis=0).astype(np.float32))
    return ChromaDistribution(logarithms, torch.from_numpy(centres), torch.full(scores.shape[1:], 50.0))


SCORES = RNG.normal(0, 3, (5, 4, 6))
OPINION = opinion_of(SCORES)
FORBIDDEN = torch.tensor([0.0, -math.inf, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("temperature", [0.05, 0.38, 0.7, 1.0, 3.0])
def test_annealing_is_a_softmax_of_the_scores_divided(temperature: float) -> None:
    expected = softmax(SCORES / temperature, axis=0)
    np.testing.assert_allclose(OPINION.anneal(temperature), expected, atol=1e-5)
    mean = np.einsum("khw,kc->chw", expected, CENTRES)
    np.testing.assert_allclose(OPINION.chroma(temperature), mean, atol=1e-3)


def test_temperature_zero_is_the_likeliest_class_and_nothing_else() -> None:
    chroma = OPINION.chroma(0.0).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(chroma, CENTRES[SCORES.argmax(0)])
    assert set(OPINION.anneal(0.0).unique().tolist()) == {0.0, 1.0}


@settings(max_examples=100, deadline=None)
@given(st.floats(0, allow_infinity=False), st.booleans(), st.integers(0, 2**16))
def test_every_temperature_gives_probabilities(temperature: float, forbid: bool, seed: int) -> None:
    opinion = opinion_of(np.random.default_rng(seed).normal(0, 20, (5, 2, 2)))
    opinion = opinion.reweight(FORBIDDEN) if forbid else opinion
    probabilities = opinion.anneal(temperature)
    assert probabilities.min() >= 0
    torch.testing.assert_close(probabilities.sum(0), torch.ones(2, 2))
    if forbid:
        assert probabilities[1].max() == 0


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
def test_other_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature is"):
        OPINION.anneal(temperature)


def test_weights_multiply_probabilities() -> None:
    weights = RNG.random(5) + 0.1
    expected = softmax(SCORES, axis=0) * weights[:, None, None]
    found = OPINION.reweight(torch.from_numpy(np.log(weights)).float())
    np.testing.assert_allclose(found.log_probabilities.exp(), expected / expected.sum(0), rtol=1e-4)
    torch.testing.assert_close(OPINION.reweight(torch.zeros(5)).log_probabilities, OPINION.log_probabilities)


def test_confidence_is_the_probability_of_what_is_near() -> None:
    probabilities = softmax(SCORES, axis=0)
    here = torch.zeros(2, 4, 6)  # near the first two classes only
    np.testing.assert_allclose(OPINION.confidence(here), probabilities[:2].sum(0), atol=1e-6)
    on_the_rim = here + torch.tensor([60 - SAME_COLOUR_RADIUS, 0.0])[:, None, None]
    np.testing.assert_allclose(OPINION.confidence(on_the_rim), probabilities[2], atol=1e-6)
    nowhere = here + 100
    assert OPINION.confidence(nowhere).max() == 0


def test_entropy_is_scipys() -> None:
    expected = entropy(softmax(SCORES, axis=0), axis=0) / math.log(5)
    np.testing.assert_allclose(OPINION.entropy(), expected, atol=1e-5)
    assert opinion_of(np.zeros((5, 1, 1))).entropy().item() == pytest.approx(1)
    sure = np.zeros((5, 1, 1))
    sure[2] = 200
    assert opinion_of(sure).entropy().item() == pytest.approx(0, abs=1e-6)


def test_a_forbidden_class_takes_no_part_in_entropy() -> None:
    expected = entropy(np.delete(softmax(SCORES, axis=0), 1, axis=0), axis=0) / math.log(5)
    np.testing.assert_allclose(OPINION.reweight(FORBIDDEN).entropy(), expected, atol=1e-5)


def test_with_a_single_class_everything_is_certain() -> None:
    single = opinion_of(np.zeros((1, 2, 3)), CENTRES[2:3])
    assert torch.equal(single.entropy(), torch.zeros(2, 3))
    assert torch.equal(single.confidence(single.chroma(0.7)), torch.ones(2, 3))


def test_merging_is_the_weighted_geometric_mean() -> None:
    others = [OPINION, opinion_of(RNG.normal(0, 1, (5, 4, 6))), opinion_of(np.zeros((5, 4, 6)))]
    probabilities = np.stack([opinion.log_probabilities.double().exp().numpy() for opinion in others])
    certainty = 1.02 - entropy(probabilities, axis=1) / math.log(5)
    logarithms = (certainty[:, None] * np.log(probabilities)).sum(0) / certainty.sum(0)
    expected = softmax(logarithms, axis=0)
    found = merge_distributions(others)
    np.testing.assert_allclose(found.log_probabilities.exp(), expected, atol=1e-5)
    assert found.centres is OPINION.centres
    assert found.lightness is OPINION.lightness


def test_merging_with_oneself_changes_nothing_and_ignorance_weighs_little() -> None:
    torch.testing.assert_close(merge_distributions([OPINION]).log_probabilities, OPINION.log_probabilities)
    torch.testing.assert_close(merge_distributions([OPINION, OPINION]).log_probabilities, OPINION.log_probabilities)
    ignorant = opinion_of(np.zeros((5, 4, 6)))
    sure = opinion_of(10 * SCORES)
    assert torch.equal(merge_distributions([ignorant, sure, ignorant]).chroma(0.0), sure.chroma(0.0))


def test_looks_that_exclude_each_other_still_make_an_opinion() -> None:
    never = torch.full((5, 1, 1), -math.inf)
    certain = [never.clone().index_fill_(0, torch.tensor([k]), 0.0) for k in (0, 3)]
    sure = [ChromaDistribution(logarithms, OPINION.centres, torch.zeros(1, 1)) for logarithms in certain]
    merged = merge_distributions(sure)
    torch.testing.assert_close(merged.log_probabilities.exp()[:, 0, 0], torch.tensor([0.5, 0, 0, 0.5, 0]))


def test_merging_nothing_is_refused() -> None:
    with pytest.raises(ChromaboxError, match="at least one opinion"):
        merge_distributions([])
