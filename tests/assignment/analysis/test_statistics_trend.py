"""Trends compared with brute force over all orders, and with Spearman's formula."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chromabox.assignment.analysis.statistics import RankTrend, rank_trend


def p_value_by_enumeration(numbers: np.ndarray) -> float:
    """Return the fraction of all orders whose Page's L, the sum of rank × position, is at least the actual one."""
    positions = np.arange(1, numbers.shape[1] + 1)
    actual = sum(positions @ (row.argsort().argsort() + 1) for row in numbers)
    sums = [
        sum(positions @ np.array(row) for row in rows) for rows in product(permutations(positions), repeat=len(numbers))
    ]
    return float(np.mean(np.array(sums) >= actual))


@pytest.mark.parametrize("seed", range(6))
def test_p_value_equals_enumeration_of_all_orders(seed: int) -> None:
    numbers = np.random.default_rng(seed).random((2, 4)) + seed * np.linspace(0, 0.2, 4)
    assert rank_trend(numbers).p_value == pytest.approx(p_value_by_enumeration(numbers))


@pytest.mark.parametrize(
    ("numbers", "p_value"), [([1, 2, 3, 4, 5], 1 / 120), ([1, 2, 3], 1 / 6), ([3, 2, 1], 1.0), ([2, 2, 2], 1.0)]
)
def test_p_value_of_a_single_seed(numbers: list[float], p_value: float) -> None:
    assert rank_trend(np.array([numbers], float)).p_value == pytest.approx(p_value)


# (numbers by seed, steps, rises, clear rises, clear falls, correlation, is rising)
TRENDS = [
    ([[1.0, 2.0, 3.0, 4.0], [1.1, 2.1, 3.1, 4.1]], 3, 3, 3, 0, 1.0, True),
    ([[4.0, 3.0, 2.0, 1.0], [4.1, 3.1, 2.1, 1.1]], 3, 0, 0, 3, -1.0, False),
    # The second step is a rise of 0.1, and both ends have a standard deviation of 0.14.
    ([[1.0, 2.0, 2.1, 4.0], [1.2, 2.2, 2.3, 4.2]], 3, 3, 2, 0, 1.0, True),
    # Spearman: 1 − 6 Σ d² / (n (n² − 1)) = 1 − 6 · 2 / 60.
    ([[1.0, 3.0, 2.0, 4.0], [1.0, 3.0, 2.0, 4.0]], 3, 2, 2, 1, 0.8, True),
    ([[1.0, 2.0], [1.1, 2.1]], 1, 1, 1, 0, 1.0, True),
    ([[1.0, 1.1], [1.2, 1.3]], 1, 1, 0, 0, 1.0, False),
    ([[1.0, 2.0]], 1, 1, 0, 0, 1.0, False),
    ([[2.0, 2.0, 2.0]], 2, 0, 0, 0, 0.0, False),
]


@pytest.mark.parametrize("case", TRENDS)
def test_trends_equal_values_by_hand(case: tuple) -> None:
    numbers, steps, rises, clear_rises, clear_falls, correlation, is_rising = case
    trend = rank_trend(np.array(numbers))
    assert (trend.num_steps, trend.num_rises, trend.num_clear_rises, trend.num_clear_falls) == (
        steps,
        rises,
        clear_rises,
        clear_falls,
    )
    assert trend.correlation == pytest.approx(correlation)
    assert trend.is_rising is is_rising
    assert trend.is_monotonic is (clear_rises == steps)
    assert trend.num_seeds == len(numbers)


@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 5)), elements=st.integers(0, 99).map(float)))
def test_negated_numbers_have_the_opposite_trend(numbers: np.ndarray) -> None:
    trend, negated = rank_trend(numbers), rank_trend(-numbers)
    assert not (trend.is_rising and negated.is_rising)
    assert (trend.num_clear_rises, trend.num_clear_falls) == (negated.num_clear_falls, negated.num_clear_rises)
    assert trend.correlation == pytest.approx(-negated.correlation)
    assert trend.num_rises + negated.num_rises <= trend.num_steps
    assert isinstance(trend, RankTrend)
