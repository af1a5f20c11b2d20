"""Whether a number goes up with the values of a sweep: on the whole, and at every step from one value to the next."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

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
