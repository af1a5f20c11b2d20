"""Confidence intervals for differences between two models, and rank correlations over the values of a sweep.

Intervals are computed over seeds, or over the test images if there is a single seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

CONFIDENCE_LEVEL = 0.95
#: Number of sets of images for the bootstrap.
NUM_RESAMPLES = 2000
#: Minimum number of seeds per model for a sample not to be called small.
MIN_LARGE_SAMPLE = 10


@dataclass(frozen=True)
class ConfidenceInterval:
    """Second value minus the first, with the 95 % confidence interval of the true difference."""

    value: float
    low: float
    high: float
    method: str
    caveat: str
    """Method with its sample, and its limitation, as phrases for reports."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.low > 0 or self.high < 0


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> ConfidenceInterval:
    """Return the difference of the means with Welch's t interval; requires at least two seeds per model.

    Source: Welch 1947, "The generalization of Student's problem when several different population variances are
    involved". The variances of the two models may differ, and equal seeds of two models are treated as independent.
    Without variance between seeds, the interval is the difference itself.
    """
    value = float(np.mean(second) - np.mean(first))
    method = f"Welch's t over {len(first)} and {len(second)} seeds"
    is_small = min(len(first), len(second)) < MIN_LARGE_SAMPLE
    caveat = "few seeds: the interval assumes a normal distribution" if is_small else "enough seeds"
    if np.ptp(first) == 0 == np.ptp(second):
        return ConfidenceInterval(value, value, value, method, caveat)
    from scipy.stats import ttest_ind

    interval = ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE_LEVEL)
    return ConfidenceInterval(value, float(interval.low), float(interval.high), method, caveat)


def difference_over_images(
    first: Float[np.ndarray, " images"], second: Float[np.ndarray, " images"]
) -> ConfidenceInterval:
    """Return the mean difference of two models' scores on the same images, with a paired bootstrap interval.

    Source: Efron 1979. The limits are percentiles of the means over resampled sets of the same number of images, drawn
    with replacement. The differences are paired, so that images that are difficult for both models do not widen the
    interval. It does not include the variation between seeds.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    count = len(differences)
    resampled = _resample_counts(count) @ differences / count
    return _percentile_interval(float(differences.mean()), resampled, count)


def difference_between_regions(
    change: Float[np.ndarray, "images height width"],
    first_region: Bool[np.ndarray, "images height width"],
    second_region: Bool[np.ndarray, "images height width"],
) -> ConfidenceInterval:
    """Return the mean of ``change`` in the second region minus that in the first, with a bootstrap interval.

    Images are resampled. The result is NaN if one of the regions has no pixels.
    """
    weights = np.concatenate([np.ones((1, len(change)), np.int64), _resample_counts(len(change))])
    with np.errstate(invalid="ignore"):  # A region without pixels has no mean.
        means = [
            (weights @ np.where(region, change, 0).sum((1, 2))) / (weights @ region.sum((1, 2)))
            for region in (first_region, second_region)
        ]
    values = means[1] - means[0]
    return _percentile_interval(float(values[0]), values[1:], len(change))


def _resample_counts(count: int) -> Integer[np.ndarray, "resamples count"]:
    """Return how often each of ``count`` images occurs in each of the resampled sets, which are always the same."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)


def _percentile_interval(value: float, resampled: Float[np.ndarray, " resamples"], count: int) -> ConfidenceInterval:
    finite = resampled[np.isfinite(resampled)]
    levels = [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]
    low, high = np.quantile(finite, levels).tolist() if finite.size else (float("nan"), float("nan"))
    method = f"paired bootstrap over {count} test images, one seed each"
    return ConfidenceInterval(value, low, high, method, "which does not include the variation between seeds")


def mean_rank_correlation(numbers: Float[np.ndarray, "seeds values"]) -> float:
    """Return Spearman's rank correlation between numbers and their positions along an ascending parameter, −1 to 1.

    It is computed for each seed and averaged: 1 if the numbers of every seed increase strictly. Equal numbers have no
    order, so the correlation for a seed whose numbers are all equal is 0.
    """
    from scipy.stats import spearmanr

    positions = np.arange(numbers.shape[1])
    return float(np.mean([0.0 if np.ptp(row) == 0 else spearmanr(positions, row).statistic for row in numbers]))
