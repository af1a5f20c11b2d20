"""How sure a difference of two nets is: from a few seeds, or from the test pictures where there is one seed only.

Whether a number goes up with the values of a sweep: on the whole, and at every step from one value to the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

LEVEL = 0.95

#: Fewer seeds than this are said to be few.
MANY = 10


@dataclass(frozen=True)
class Difference:
    """By how much the second is greater than the first, and the interval that holds the true difference at 95 %."""

    value: float
    low: float
    high: float
    how: str
    """What the interval is over, for the reader."""
    caution: str
    """What it leaves open."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Difference of means and Welch's t interval; at least two seeds each.

    Welch 1947, "The generalization of Student's problem when several different population variances are involved": the
    nets' spreads need not be alike, and equal seeds of two nets have nothing in common. Where no seed differs from
    another the interval is the difference itself.
    """
    value = float(np.mean(second) - np.mean(first))
    how = f"Welch's t over {len(first)} and {len(second)} seeds"
    caution = "so few that it leans on a normal scatter" if min(len(first), len(second)) < MANY else "enough"
    if np.ptp(first) == 0 == np.ptp(second):
        return Difference(value, value, value, how, caution)
    from scipy.special import stdtrit

    # The variance of each mean; Satterthwaite's degrees of freedom for their sum.
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * sum(parts) ** 0.5
    return Difference(value, value - reach, value + reach, how, caution)


def over_pictures(
    first: Float[np.ndarray, " pictures"], second: Float[np.ndarray, " pictures"], *, draws: int = 2000, seed: int = 0
) -> Difference:
    """Mean difference of two nets' scores on the same pictures, and its interval over resampled sets of pictures.

    Efron 1979, the bootstrap: percentiles of the means of as many pictures drawn with replacement, paired, so that what
    is hard for both nets does not widen it. It says nothing of what another seed would have given.
    """
    each = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    drawn = _draws(len(each), draws, seed) @ each / len(each)
    return _between_percentiles(float(each.mean()), drawn, len(each))


def over_places(
    change: Float[np.ndarray, "pictures height width"],
    here: Bool[np.ndarray, "pictures height width"],
    there: Bool[np.ndarray, "pictures height width"],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """By how much the mean of ``change`` is greater ``there`` than ``here``, over resampled sets of pictures.

    Not-a-number where one of the two places has no pixel.
    """
    weights = np.concatenate([np.ones((1, len(change)), np.int64), _draws(len(change), draws, seed)])
    with np.errstate(invalid="ignore"):  # A place without pixels has no mean.
        means = [
            (weights @ np.where(place, change, 0).sum((1, 2))) / (weights @ place.sum((1, 2)))
            for place in (here, there)
        ]
    values = means[1] - means[0]
    return _between_percentiles(float(values[0]), values[1:], len(change))


def _draws(count: int, draws: int, seed: int) -> Integer[np.ndarray, "draws count"]:
    """How often each of ``count`` pictures is in each of the resampled sets."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def _between_percentiles(value: float, drawn: Float[np.ndarray, " draws"], count: int) -> Difference:
    known = drawn[np.isfinite(drawn)]
    levels = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(known, levels).tolist() if known.size else (float("nan"), float("nan"))
    how = f"paired bootstrap over {count} test pictures, one seed each"
    return Difference(value, low, high, how, "which does not say what other seeds would give")


#: What is less likely than this without any trend counts as one.
SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class Trend:
    """How a measured number goes with the values, which ascend."""

    steps: int
    """From one value to the next: one fewer than values."""
    up: int
    """Steps at which the mean over the seeds rises."""
    clearly_up: int
    """Of these, by more than chance: the rise exceeds the spreads of both ends together."""
    clearly_down: int
    """Steps at which it falls by as much."""
    correlation: float
    """Spearman's rank correlation of values and means, −1 to 1."""
    chance: float | None
    """Probability of an order at least as ascending if there were no trend; None of two values."""
    seeds: int

    @property
    def rises(self) -> bool:
        """Whether it goes up on the whole by more than chance; of two values, whether the one step is clear."""
        return self.is_clear if self.chance is None else self.chance < SIGNIFICANCE_LEVEL

    @property
    def is_clear(self) -> bool:
        """Whether it rises at every step and by more than chance."""
        return self.clearly_up == self.steps


def trend_of(numbers: Float[np.ndarray, "seeds values"]) -> Trend:
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
    return Trend(
        steps=len(steps),
        up=int((steps > 0).sum()),
        clearly_up=int((steps > limit).sum()),
        clearly_down=int((-steps > limit).sum()),
        correlation=correlation,
        chance=chance,
        seeds=seeds,
    )
