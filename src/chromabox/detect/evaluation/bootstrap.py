"""How sure a measured AP is: the same AP of resampled sets of pictures, from matches that were made once.

The AP of a set in which each picture has a weight equals faster-coco-eval's of the same set (tests hold it), so the
intervals belong to the printed numbers.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

from chromabox.detect.evaluation.metrics import RECALLS, Matches

#: Resampled sets that are counted at once, which bounds memory.
_AT_ONCE = 100


@dataclass(frozen=True)
class Resampled:
    """AP and AP50 of sets of pictures drawn anew from the same pictures; not-a-number for a draw without boxes."""

    ap: Float64[np.ndarray, " draws"]
    ap50: Float64[np.ndarray, " draws"]


@dataclass(frozen=True)
class Difference:
    """A difference of two detectors, and its 95 % interval over pictures."""

    value: float
    interval: tuple[float, float]


def resample(matches: Matches, *, draws: int = 1000, seed: int = 0) -> Resampled:
    """AP of `draws` sets, each of as many pictures as there are, drawn with replacement (Efron 1979, the bootstrap).

    Equal seeds draw equal sets, so the difference of two detectors on the same pictures may be taken draw by draw.
    """
    pictures = len(matches.truths)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=draws)
    parts = [weighted_average_precision(matches, weights[at : at + _AT_ONCE]) for at in range(0, draws, _AT_ONCE)]
    return _means(np.concatenate(parts))


def _means(tables: Float64[np.ndarray, "draws thresholds classes"]) -> Resampled:
    """The means over the classes that have true boxes in a draw; not-a-number where none has."""
    known = np.isfinite(tables[:, 0])
    # A draw of pictures without any box has no AP.
    classes = np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    ap, ap50 = (np.where(known, values, 0.0).sum(axis=1) / classes for values in (tables.mean(axis=1), tables[:, 0]))
    return Resampled(ap, ap50)


def interval(draws: Float64[np.ndarray, " draws"], measured: float) -> tuple[float, float]:
    """The 95 % interval of what was `measured`, from the same quantity of resampled sets, corrected for their bias.

    AP of resampled sets lies above that of the set itself (fewer different pictures, fewer classes with rare boxes).
    Draws that are not-a-number are left out; where all are, so is the interval.
    Source: Efron 1987, Better bootstrap confidence intervals, the bias-corrected interval (without acceleration).
    """
    draws = draws[np.isfinite(draws)]
    if not draws.size:
        return float("nan"), float("nan")
    normal = NormalDist()
    below = float(((draws < measured).mean() + (draws <= measured).mean()) / 2)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(draws)), 1 - 0.5 / len(draws)))
    levels = [normal.cdf(2 * bias + normal.inv_cdf(share)) for share in (0.025, 0.975)]
    low, high = np.quantile(draws, levels).tolist()
    return low, high


def paired_difference(before: Matches, after: Matches, *, draws: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """By how much ``ap`` and ``ap50`` of the second detector are greater, on the same pictures in the same order.

    Both are resampled in the same way, so what is common to them (easy and hard pictures) does not widen the interval.
    """
    everything = np.ones((1, len(before.truths)), np.int64)
    measured = [_means(weighted_average_precision(matches, everything)) for matches in (before, after)]
    drawn = [resample(matches, draws=draws, seed=seed) for matches in (before, after)]
    found = {}
    for name in ("ap", "ap50"):
        value = float((getattr(measured[1], name) - getattr(measured[0], name))[0])
        found[name] = Difference(value, interval(getattr(drawn[1], name) - getattr(drawn[0], name), value))
    return found


def weighted_average_precision(
    matches: Matches, weights: Int64[np.ndarray, "draws pictures"]
) -> Float64[np.ndarray, "draws thresholds classes"]:
    """COCO's AP of sets that hold each picture so many times; not-a-number where a class has no true box.

    Source: COCO's evaluation code: at each of 101 recalls the greatest precision at that recall or a higher one.
    """
    table = np.full((len(weights), len(matches.right), matches.truths.shape[1]), np.nan)
    for category in np.flatnonzero(matches.truths.sum(axis=0)).tolist():
        own = matches.category == category
        total = (weights @ matches.truths[:, category]).astype(np.float64)
        times = weights[:, matches.picture[own]]
        everything = times.cumsum(axis=1)
        for level in range(len(matches.right)):
            right, counts = matches.right[level, own], matches.counts[level, own]
            found = everything if counts.all() else (times * counts).cumsum(axis=1)
            hits = times[:, right].cumsum(axis=1)
            table[:, level, category] = _read_precision(hits, found[:, right], total)
    return table


def _read_precision(
    hits: Int64[np.ndarray, "draws right"],
    found: Int64[np.ndarray, "draws right"],
    total: Float64[np.ndarray, " draws"],
) -> Float64[np.ndarray, " draws"]:
    """Mean of the precision read at the 101 recalls; `hits` right ones among the surest `found`, at each right one."""
    if hits.shape[1] == 0:
        return np.where(total > 0, 0.0, np.nan)
    precision = np.divide(hits, found, out=np.zeros(hits.shape), where=found > 0)
    ceiling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(total, 1.0)[:, None]
    # How many of the 101 recalls are reached by each right one, and by it first.
    reached = np.searchsorted(RECALLS, recall, side="right")
    first = np.diff(reached, axis=1, prepend=0)
    return np.where(total > 0, (ceiling * first).sum(axis=1) / len(RECALLS), np.nan)
