"""Intervals against SciPy's t test and a bootstrap written as a loop."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from chromabox.assignment.analysis.statistics import (
    difference_between_regions,
    difference_over_images,
    difference_over_seeds,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("second", [[58.2, 58.5, 58.35, 58.0], [53.0, 54.9]])
def test_welchs_interval_is_scipys(second: list[float]) -> None:
    first = [53.6, 53.8, 53.7]
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    found = difference_over_seeds(first, second)
    value = np.mean(second) - np.mean(first)
    assert (found.value, found.low, found.high) == pytest.approx((value, interval.low, interval.high))
    assert found.excludes_zero == (not interval.low <= 0 <= interval.high)
    assert f"3 and {len(second)} seeds" in found.method


def test_seeds_without_spread_leave_no_doubt() -> None:
    found = difference_over_seeds([1.0, 1.0], [3.0, 3.0])
    assert (found.value, found.low, found.high) == (2, 2, 2)
    assert not difference_over_seeds([1.0, 1.0], [1.0, 1.0]).excludes_zero
    assert not difference_over_seeds([1.0, 3.0], [2.0, 4.0]).excludes_zero


def test_the_bootstrap_is_that_of_a_loop() -> None:
    first = RANDOM.normal(0.5, 0.1, 80)
    second = first + RANDOM.normal(0.02, 0.05, 80)
    found = difference_over_images(first, second)
    means = [np.mean((second - first)[RANDOM.integers(0, 80, 80)]) for _ in range(4000)]
    assert found.value == pytest.approx(np.mean(second - first))
    # Two estimates of the same percentiles, each from thousands of draws.
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-3)
    assert difference_over_images(first, second) == found


def test_what_is_hard_for_both_nets_does_not_widen_the_interval() -> None:
    hard = RANDOM.normal(0, 10, 50)
    found = difference_over_images(hard, hard + 1)
    assert (found.low, found.high) == (pytest.approx(1), pytest.approx(1))


def test_a_change_at_two_places_is_that_of_a_loop() -> None:
    change = RANDOM.normal(0, 1, (60, 6, 6))
    near = RANDOM.random(change.shape) < 0.3
    change[near] += 0.5
    found = difference_between_regions(change, ~near, near)
    assert found.value == pytest.approx(change[near].mean() - change[~near].mean())
    differences = []
    for _ in range(3000):
        drawn = RANDOM.integers(0, 60, 60)
        differences.append(change[drawn][near[drawn]].mean() - change[drawn][~near[drawn]].mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=8e-3)


def test_a_place_without_pixels_has_no_mean() -> None:
    change = np.ones((3, 2, 2))
    found = difference_between_regions(change, np.ones(change.shape, bool), np.zeros(change.shape, bool))
    assert np.isnan([found.value, found.low, found.high]).all()
    assert not found.excludes_zero
