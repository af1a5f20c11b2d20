"""How sure a difference of two nets is: from a few seeds, or from the test pictures where there is one seed only.

Whether a number goes up with the values of a sweep: on the whole, and at every step from one value to the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

CONFIDENCE_LEVEL = 0.95

#: Fewer seeds than this are said to be few.
MIN_LARGE_SAMPLE = 10


@dataclass(frozen=True)
class ConfidenceInterval:
    """By how much the second is greater than the first, and the interval that holds the true difference at 95 %."""

    value: float
    low: float
    high: float
    method: str
    """What the interval is over, for the reader."""
    caveat: str
    """What it leaves open."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> ConfidenceInterval:
    """Difference of means and Welch's t interval; at least two seeds each.

    Welch 1947, "The generalization of Student's problem when several different population variances are involved": the
    nets' spreads need not be alike, and equal seeds of two nets have nothing in common. Where no seed differs from
    another the interval is the difference itself.
    """
    value = float(np.mean(second) - np.mean(first))
    how = f"Welch's t over {len(first)} and {len(second)} seeds"
    caution = (
        "so few that it leans on a normal scatter" if min(len(first), len(second)) < MIN_LARGE_SAMPLE else "enough"
    )
    if np.ptp(first) == 0 == np.ptp(second):
        return ConfidenceInterval(value, value, value, how, caution)
    from scipy.special import stdtrit

    # The variance of each mean; Satterthwaite's degrees of freedom for their sum.
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    reach = float(stdtrit(freedom, (1 + CONFIDENCE_LEVEL) / 2)) * sum(parts) ** 0.5
    return ConfidenceInterval(value, value - reach, value + reach, how, caution)


def difference_over_images(
    first: Float[np.ndarray, " pictures"],
    second: Float[np.ndarray, " pictures"],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> ConfidenceInterval:
    """Mean difference of two nets' scores on the same pictures, and its interval over resampled sets of pictures.

    Efron 1979, the bootstrap: percentiles of the means of as many pictures drawn with replacement, paired, so that what
    is hard for both nets does not widen it. It says nothing of what another seed would have given.
    """
    each = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    drawn = _resample_counts(len(each), num_resamples, seed) @ each / len(each)
    return _percentile_interval(float(each.mean()), drawn, len(each))


def difference_between_regions(
    change: Float[np.ndarray, "pictures height width"],
    first_region: Bool[np.ndarray, "pictures height width"],
    second_region: Bool[np.ndarray, "pictures height width"],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> ConfidenceInterval:
    """By how much the mean of ``change`` is greater ``there`` than ``here``, over resampled sets of pictures.

    Not-a-number where one of the two places has no pixel.
    """
    weights = np.concatenate([np.ones((1, len(change)), np.int64), _resample_counts(len(change), num_resamples, seed)])
    with np.errstate(invalid="ignore"):  # A place without pixels has no mean.
        means = [
            (weights @ np.where(place, change, 0).sum((1, 2))) / (weights @ place.sum((1, 2)))
            for place in (first_region, second_region)
        ]
    values = means[1] - means[0]
    return _percentile_interval(float(values[0]), values[1:], len(change))


def _resample_counts(count: int, num_resamples: int, seed: int) -> Integer[np.ndarray, "draws count"]:
    """How often each of ``count`` pictures is in each of the resampled sets."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num_resamples)


def _percentile_interval(value: float, resampled: Float[np.ndarray, " draws"], count: int) -> ConfidenceInterval:
    known = resampled[np.isfinite(resampled)]
    levels = [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]
    low, high = np.quantile(known, levels).tolist() if known.size else (float("nan"), float("nan"))
    how = f"paired bootstrap over {count} test pictures, one seed each"
    return ConfidenceInterval(value, low, high, how, "which does not say what other seeds would give")


#: What is less likely than this without any trend counts as one.
SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class RankTrend:
    """How a measured number goes with the values, which ascend."""

    num_steps: int
    """From one value to the next: one fewer than values."""
    num_rises: int
    """Steps at which the mean over the seeds rises."""
    num_clear_rises: int
    """Of these, by more than chance: the rise exceeds the spreads of both ends together."""
    num_clear_falls: int
    """Steps at which it falls by as much."""
    correlation: float
    """Spearman's rank correlation of values and means, −1 to 1."""
    p_value: float | None
    """Probability of an order at least as ascending if there were no trend; None of two values."""
    num_seeds: int

    @property
    def is_rising(self) -> bool:
        """Whether it goes up on the whole by more than chance; of two values, whether the one step is clear."""
        return self.is_monotonic if self.p_value is None else self.p_value < SIGNIFICANCE_LEVEL

    @property
    def is_monotonic(self) -> bool:
        """Whether it rises at every step and by more than chance."""
        return self.num_clear_rises == self.num_steps


def rank_trend(numbers: Float[np.ndarray, "seeds values"]) -> RankTrend:
    """The trend of numbers by seed and ascending value; at least one seed and two values, all finite.

    A step is clear if the difference of the means exceeds the root of the sum of both sample variances, and never of a
    single seed. The chance is that of Page's test for ordered alternatives, which ranks the values within each seed
    (Page 1963, "Ordered hypotheses for multiple treatments"), of a single seed that of Kendall's tau.
    """
    from scipy.stats import kendalltau, page_trend_test, spearmanr

    seeds, values = numbers.shape
    means = numbers.mean(0)
    steps = np.diff(means)
    spread = np.full(values, math.inf) if seeds == 1 else numbers.std(0, ddof=1)
    limit = np.hypot(spread[:-1], spread[1:])
    # Where all means are equal there is no order to correlate with.
    correlation = 0.0 if np.ptp(means) == 0 else float(spearmanr(np.arange(values), means).statistic)
    chance = None
    if values > 2 and seeds > 1:
        chance = float(page_trend_test(numbers).pvalue)
    elif values > 2:
        found = kendalltau(np.arange(values), means, alternative="greater").pvalue
        chance = float(np.nan_to_num(found, nan=1.0))  # Equal numbers have no order; any other rises as much.
    return RankTrend(
        num_steps=len(steps),
        num_rises=int((steps > 0).sum()),
        num_clear_rises=int((steps > limit).sum()),
        num_clear_falls=int((-steps > limit).sum()),
        correlation=correlation,
        p_value=chance,
        num_seeds=seeds,
    )
