"""Rank correlations compared with Spearman's formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from chromabox.assignment.analysis.statistics import mean_rank_correlation


@pytest.mark.parametrize(
    ("numbers", "correlation"),
    [
        ([[1.0, 2.0, 3.0, 4.0], [1.1, 2.1, 3.1, 4.1]], 1.0),
        ([[4.0, 3.0, 2.0, 1.0], [4.1, 3.1, 2.1, 1.1]], -1.0),
        # 1 − 6 Σ d² / (n (n² − 1)) = 1 − 6 · 2 / 60.
        ([[1.0, 3.0, 2.0, 4.0], [1.0, 3.0, 2.0, 4.0]], 0.8),
        ([[1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 3.0, 4.0]], 0.9),
        ([[1.0, 2.0]], 1.0),
        ([[2.0, 2.0, 2.0]], 0.0),
    ],
)
def test_correlations_equal_values_by_hand(numbers: list[list[float]], correlation: float) -> None:
    assert mean_rank_correlation(np.array(numbers)) == pytest.approx(correlation)


@given(arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(2, 5)), elements=st.integers(0, 99).map(float)))
def test_negated_numbers_have_the_opposite_correlation(numbers: np.ndarray) -> None:
    correlation = mean_rank_correlation(numbers)
    assert -1 - 1e-12 <= correlation <= 1 + 1e-12
    assert correlation == pytest.approx(-mean_rank_correlation(-numbers))
