"""Confidence intervals compared with SciPy's t test and with a bootstrap written as a loop."""

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
def test_interval_over_seeds_equals_scipy(second: list[float]) -> None:
    first = [53.6, 53.8, 53.7]
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    result = difference_over_seeds(first, second)
    value = np.mean(second) - np.mean(first)
    assert (result.value, result.low, result.high) == pytest.approx((value, interval.low, interval.high))
    assert result.excludes_zero == (not interval.low <= 0 <= interval.high)
    assert f"3 and {len(second)} seeds" in result.method


def test_seeds_without_variance_have_an_interval_of_width_zero() -> None:
    result = difference_over_seeds([1.0, 1.0], [3.0, 3.0])
    assert (result.value, result.low, result.high) == (2, 2, 2)
    assert not difference_over_seeds([1.0, 1.0], [1.0, 1.0]).excludes_zero
    assert not difference_over_seeds([1.0, 3.0], [2.0, 4.0]).excludes_zero


def test_interval_over_images_equals_a_bootstrap_loop() -> None:
    first = RANDOM.normal(0.5, 0.1, 80)
    second = first + RANDOM.normal(0.02, 0.05, 80)
    result = difference_over_images(first, second)
    means = [np.mean((second - first)[RANDOM.integers(0, 80, 80)]) for _ in range(4000)]
    assert result.value == pytest.approx(np.mean(second - first))
    # Two estimates of the same percentiles, each from thousands of resamples.
    assert (result.low, result.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=1e-3)
    assert difference_over_images(first, second) == result


def test_variation_common_to_both_models_does_not_widen_the_interval() -> None:
    scores = RANDOM.normal(0, 10, 50)
    result = difference_over_images(scores, scores + 1)
    assert (result.low, result.high) == (pytest.approx(1), pytest.approx(1))


def test_interval_between_regions_equals_a_bootstrap_loop() -> None:
    change = RANDOM.normal(0, 1, (60, 6, 6))
    near = RANDOM.random(change.shape) < 0.3
    change[near] += 0.5
    result = difference_between_regions(change, ~near, near)
    assert result.value == pytest.approx(change[near].mean() - change[~near].mean())
    differences = []
    for _ in range(3000):
        sample = RANDOM.integers(0, 60, 60)
        differences.append(change[sample][near[sample]].mean() - change[sample][~near[sample]].mean())
    assert (result.low, result.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=8e-3)


def test_region_without_pixels_gives_nan() -> None:
    change = np.ones((3, 2, 2))
    result = difference_between_regions(change, np.ones(change.shape, bool), np.zeros(change.shape, bool))
    assert np.isnan([result.value, result.low, result.high]).all()
    assert not result.excludes_zero
