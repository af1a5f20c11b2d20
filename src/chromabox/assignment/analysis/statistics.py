"""Confidence intervals for differences between two models, and rank correlations over the values of a sweep.

Intervals describe the variation between seeds or, if there is a single seed, the variation between test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

CONFIDENCE_LEVEL = 0.95
#: Number of resampled sets of images for the bootstrap.
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class ConfidenceInterval:
    """Difference of two values, the second minus the first, with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    method: str
    """Statistical method and sample size, as a phrase for reports."""
    caveat: str
    """Limitation of the method, as a phrase for reports."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> ConfidenceInterval:
    """Return the difference between the means with Welch's t interval. At least two seeds per model are required.

    The variances of the two models may differ. The results of two models with the same seed are treated as independent.
    Without variance between seeds, the interval has width 0.

    Source: Welch 1947, "The generalization of Student's problem when several different population variances are
    involved".
    """
    from scipy.stats import ttest_ind

    value = low = high = float(np.mean(second) - np.mean(first))
    if np.ptp(first) > 0 or np.ptp(second) > 0:
        low, high = ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE_LEVEL)
    method = f"Welch's t interval over {len(first)} and {len(second)} seeds"
    return ConfidenceInterval(value, float(low), float(high), method, "which assumes a normal distribution")


def difference_over_images(
    first: Float[np.ndarray, " images"], second: Float[np.ndarray, " images"]
) -> ConfidenceInterval:
    """Return the mean difference between two models' scores on the same images, with a paired bootstrap interval.

    The limits are percentiles of the mean differences of image sets drawn with replacement. The scores are paired, so
    that images that are difficult for both models do not widen the interval. The interval does not include the
    variation between seeds. Source: Efron 1979.
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

    The bootstrap draws images with replacement. The result is NaN if one of the regions has no pixels.
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
    """Return how often each of ``count`` images occurs in every resampled set. The random seed is fixed."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)


def _percentile_interval(value: float, resampled: Float[np.ndarray, " resamples"], count: int) -> ConfidenceInterval:
    finite = resampled[np.isfinite(resampled)]
    levels = [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]
    low, high = np.quantile(finite, levels).tolist() if finite.size else (float("nan"), float("nan"))
    method = f"paired bootstrap over {count} test images, one seed each"
    return ConfidenceInterval(value, low, high, method, "which does not include the variation between seeds")


def mean_rank_correlation(numbers: Float[np.ndarray, "seeds values"]) -> float:
    """Return Spearman's rank correlation (−1 to 1) between the numbers and their column indices, averaged over seeds.

    The result is 1 if the numbers of every seed increase strictly. A seed whose numbers are all equal contributes 0.
    """
    from scipy.stats import spearmanr

    positions = np.arange(numbers.shape[1])
    return float(np.mean([0.0 if np.ptp(row) == 0 else spearmanr(positions, row).statistic for row in numbers]))
