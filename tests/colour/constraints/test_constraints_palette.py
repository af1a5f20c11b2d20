"""Tests of palette projections; expected values from the formulas in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from chromabox.colour.chroma.distribution import ChromaDistribution
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.constraints.constraints import PALETTE_CHROMA_SIGMA, PALETTE_LIGHTNESS_SIGMA, build_projection
from chromabox.errors import UsageError

RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
PALETTE = np.array([RED, GREEN, BLUE, BLACK, WHITE], np.uint8)


def make_distribution(
    points: list[tuple[float, float]], probabilities: list[float], lightness: float
) -> ChromaDistribution:
    """Return a distribution at one position."""
    with np.errstate(divide="ignore"):  # log 0 = −∞
        log_probabilities = np.log(np.array(probabilities, np.float32))[:, None, None]
    return ChromaDistribution(log_probabilities, np.array(points, np.float32), np.full((1, 1), lightness, np.float32))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12))
def test_scores_match_the_formula(seed: int, bins: int, colours: int) -> None:
    random = np.random.default_rng(seed)
    logits = 3 * random.standard_normal((bins, 2, 3))
    centres = random.uniform(-80, 80, (bins, 2)).astype(np.float32)
    light = random.uniform(0, 100, (2, 3)).astype(np.float32)
    distribution = ChromaDistribution(log_softmax(logits, 0).astype(np.float32), centres, light)
    classes = build_projection(random.integers(0, 256, (colours, 3), np.uint8), (), (), ())
    lab = classes.lab.astype(np.float64)
    kernel = np.exp(-((centres[:, None] - lab[:, 1:]) ** 2).sum(-1) / (2 * PALETTE_CHROMA_SIGMA**2)) + 1e-300
    kernel /= kernel.sum(1, keepdims=True)
    num_similar = np.exp(-((lab[:, None, 1:] - lab[:, 1:]) ** 2).sum(-1) / (2 * PALETTE_CHROMA_SIGMA**2)).sum(1)
    probabilities = softmax(logits, 0)
    probability = np.maximum(np.einsum("khw,kc->chw", probabilities, kernel), 1e-30) * num_similar[:, None, None]
    expected = probability * np.exp(-((light - lab[:, 0, None, None]) ** 2) / (2 * PALETTE_LIGHTNESS_SIGMA**2))
    result = classes.project(distribution)
    far = kernel.max(1).min() < 1e-200  # exp underflows here, but not in the implementation
    if not far:
        np.testing.assert_allclose(np.exp(result.log_probabilities), expected / expected.sum(0), atol=1e-5)
    np.testing.assert_allclose(np.exp(result.log_probabilities).sum(0), 1, atol=1e-5)


def test_similar_colours_do_not_lose_by_splitting_their_probability() -> None:
    browns = np.array([(120, 80, 40), (122, 82, 42), (118, 78, 38), (120, 40, 160)], np.uint8)
    classes = build_projection(browns, (), (), ())
    brown, violet = rgb_to_lab(browns)[[0, 3]]
    distribution = make_distribution(
        [tuple(brown[1:].tolist()), tuple(violet[1:].tolist())], [0.55, 0.45], float(brown[0])
    )
    best = classes.rgb[int(classes.project(distribution).log_probabilities.argmax())]
    assert tuple(best) != (120, 40, 160)


def test_colour_with_nearest_lightness_is_selected_among_equal_chroma() -> None:
    classes = build_projection(PALETTE, (), (), ())
    for lightness, expected in ((10.0, BLACK), (95.0, WHITE)):
        best = classes.project(
            make_distribution([(0.0, 0.0), (80.0, 67.0)], [0.9, 0.1], lightness)
        ).log_probabilities.argmax()
        assert tuple(classes.rgb[int(best)]) == expected


def test_certain_prediction_far_from_the_palette_selects_the_nearest_colour() -> None:
    distribution = make_distribution([(0.0, 110.0), (-110.0, 0.0)], [1.0, 0.0], 50.0)
    projected = build_projection(PALETTE, (GREEN, BLUE), (), ()).project(distribution)
    assert np.isfinite(projected.log_probabilities).all()
    assert (
        tuple(build_projection(PALETTE, (GREEN, BLUE), (), ()).rgb[int(projected.log_probabilities.argmax())]) == GREEN
    )


def test_constraints_apply_to_the_nearest_colours() -> None:
    classes = build_projection(PALETTE, (), ((250, 10, 5),), (((10, 120, 10), (20, 0, 240)),))
    index = {tuple(colour): number for number, colour in enumerate(classes.rgb.tolist())}
    assert [name for name in index if not classes.allowed[index[name]]] == [RED]
    assert classes.replaced_by[index[GREEN]] == index[BLUE]
    restricted = build_projection(PALETTE, ((240, 10, 10), (0, 0, 250), (0, 0, 240)), (), ())
    assert {tuple(colour) for colour in restricted.rgb.tolist()} == {RED, BLUE}


def test_replacement_of_a_colour_that_is_not_allowed_has_no_effect() -> None:
    classes = build_projection(PALETTE, (RED, BLUE), (), ((GREEN, BLUE),))
    assert (classes.replaced_by == np.arange(2)).all()


@pytest.mark.parametrize(
    ("allow", "ban", "replace", "message"),
    [
        ((RED, BLUE), (RED, BLUE), (), "^ban: all allowed colours are banned"),
        ((), (RED, GREEN, BLUE, BLACK, WHITE), (), "^ban: all palette colours are banned"),
        (
            (),
            (),
            (((250, 0, 0), (255, 9, 9)),),
            "^replace #fa0000=#ff0909: #ff0000 is the palette colour nearest to both; use other colours",
        ),
        (
            (),
            (BLUE,),
            ((RED, BLUE),),
            "^replace #ff0000=#0000ff: #0000ff is banned, replaced or not among the allowed colours",
        ),
        (
            (RED, GREEN),
            (),
            ((RED, BLUE),),
            "^replace #ff0000=#0000ff: #0000ff is banned, replaced or not among the allowed colours",
        ),
        (
            (),
            (),
            ((RED, BLUE), (BLUE, GREEN)),
            "^replace #ff0000=#0000ff: #0000ff is banned, replaced or not among the allowed colours",
        ),
        ((), (), ((RED, BLUE), (RED, GREEN)), "^replace #ff0000=#008000: #ff0000 has two different replacements"),
    ],
)
def test_contradictory_constraints_are_rejected(allow: tuple, ban: tuple, replace: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_projection(PALETTE, allow, ban, replace)
