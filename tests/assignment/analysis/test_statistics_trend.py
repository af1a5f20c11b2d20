"""Trends against brute force: all orders that chance could have made, and Spearman's formula."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chromabox.assignment.analysis.statistics import RankTrend, rank_trend


def chance_by_hand(numbers: np.ndarray) -> float:
    """Page's L, the sum of rank × place, of every order of every seed: the share of orders with as much or more."""
    places = np.arange(1, numbers.shape[1] + 1)
    found = sum(places @ (row.argsort().argsort() + 1) for row in numbers)
    sums = [sum(places @ np.array(row) for row in rows) for rows in product(permutations(places), repeat=len(numbers))]
    return float(np.mean(np.array(sums) >= found))


@pytest.mark.parametrize("seed", range(6))
def test_the_chance_is_the_share_of_orders_that_rise_as_much(seed: int) -> None:
    numbers = np.random.default_rng(seed).random((2, 4)) + seed * np.linspace(0, 0.2, 4)
    assert rank_trend(numbers).p_value == pytest.approx(chance_by_hand(numbers))


@pytest.mark.parametrize(
    ("numbers", "chance"), [([1, 2, 3, 4, 5], 1 / 120), ([1, 2, 3], 1 / 6), ([3, 2, 1], 1.0), ([2, 2, 2], 1.0)]
)
def test_of_a_single_seed_a_perfect_order_is_one_of_all(numbers: list[float], chance: float) -> None:
    assert rank_trend(np.array([numbers], float)).p_value == pytest.approx(chance)


# (numbers by seed, steps, up, clearly up, clearly down, correlation, rises)
TRENDS = [
    ([[1.0, 2.0, 3.0, 4.0], [1.1, 2.1, 3.1, 4.1]], 3, 3, 3, 0, 1.0, True),
    ([[4.0, 3.0, 2.0, 1.0], [4.1, 3.1, 2.1, 1.1]], 3, 0, 0, 3, -1.0, False),
    # The second step is 0.1 up and both ends have a spread of 0.14.
    ([[1.0, 2.0, 2.1, 4.0], [1.2, 2.2, 2.3, 4.2]], 3, 3, 2, 0, 1.0, True),
    # Spearman: 1 − 6 Σ d² / (n (n² − 1)) = 1 − 6 · 2 / 60.
    ([[1.0, 3.0, 2.0, 4.0], [1.0, 3.0, 2.0, 4.0]], 3, 2, 2, 1, 0.8, True),
    ([[1.0, 2.0], [1.1, 2.1]], 1, 1, 1, 0, 1.0, True),
    ([[1.0, 1.1], [1.2, 1.3]], 1, 1, 0, 0, 1.0, False),
    ([[1.0, 2.0]], 1, 1, 0, 0, 1.0, False),
    ([[2.0, 2.0, 2.0]], 2, 0, 0, 0, 0.0, False),
]


@pytest.mark.parametrize("case", TRENDS)
def test_trends_by_hand(case: tuple) -> None:
    numbers, steps, up, clearly_up, clearly_down, correlation, rises = case
    found = rank_trend(np.array(numbers))
    assert (found.num_steps, found.num_rises, found.num_clear_rises, found.num_clear_falls) == (
        steps,
        up,
        clearly_up,
        clearly_down,
    )
    assert found.correlation == pytest.approx(correlation)
    assert found.is_rising is rises
    assert found.is_monotonic is (clearly_up == steps)
    assert found.num_seeds == len(numbers)


@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 5)), elements=st.integers(0, 99).map(float)))
def test_what_rises_does_not_fall(numbers: np.ndarray) -> None:
    there, back = rank_trend(numbers), rank_trend(-numbers)
    assert not (there.is_rising and back.is_rising)
    assert (there.num_clear_rises, there.num_clear_falls) == (back.num_clear_falls, back.num_clear_rises)
    assert there.correlation == pytest.approx(-back.correlation)
    assert there.num_rises + back.num_rises <= there.num_steps
    assert isinstance(there, RankTrend)
