"""How sure a difference of two nets is: from a few seeds, or from the test pictures where there is one seed only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """By how much the second is greater than the first, and the interval that holds the true difference at 95 %."""

    value: float
    low: float
    high: float
    how: str
    """What the interval is over, for the reader."""

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
    if np.ptp(first) == 0 == np.ptp(second):
        return Difference(value, value, value, how)
    from scipy.stats import ttest_ind

    interval = ttest_ind(second, first, equal_var=False).confidence_interval(LEVEL)
    return Difference(value, float(interval.low), float(interval.high), how)


def over_pictures(
    first: Float[np.ndarray, " pictures"], second: Float[np.ndarray, " pictures"], *, draws: int = 2000, seed: int = 0
) -> Difference:
    """Mean difference of two nets' scores on the same pictures, and its interval over resampled sets of pictures.

    Efron 1979, the bootstrap: percentiles of the means of as many pictures drawn with replacement, paired, so that what
    is hard for both nets does not widen it. It says nothing of what another seed would have given.
    """
    each = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), size=draws)
    low, high = np.quantile(weights @ each / len(each), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Difference(float(each.mean()), low, high, f"paired bootstrap over {len(each)} test pictures, one seed each")
