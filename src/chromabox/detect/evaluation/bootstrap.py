"""How sure a measured AP is: the same AP of resampled sets of pictures, from matches that were made once.

The AP of a set in which each picture has a weight equals faster-coco-eval's of the same set (tests hold it), so the
intervals belong to the printed numbers.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

from chromabox.detect.evaluation.metrics import RECALL_THRESHOLDS, Matches

#: Resampled sets that are counted at once, which bounds memory.
_RESAMPLES_PER_CHUNK = 100


@dataclass(frozen=True)
class BootstrapSamples:
    """AP and AP50 of sets of pictures drawn anew from the same pictures; not-a-number for a draw without boxes."""

    ap: Float64[np.ndarray, " draws"]
    ap50: Float64[np.ndarray, " draws"]


@dataclass(frozen=True)
class PairedDifference:
    """A difference of two detectors, and its 95 % interval over pictures."""

    value: float
    interval: tuple[float, float]


def bootstrap_ap(matches: Matches, *, num_resamples: int = 1000, seed: int = 0) -> BootstrapSamples:
    """AP of `draws` sets, each of as many pictures as there are, drawn with replacement (Efron 1979, the bootstrap).

    Equal seeds draw equal sets, so the difference of two detectors on the same pictures may be taken draw by draw.
    """
    pictures = len(matches.num_truths)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=num_resamples)
    parts = [
        weighted_average_precision(matches, weights[at : at + _RESAMPLES_PER_CHUNK])
        for at in range(0, num_resamples, _RESAMPLES_PER_CHUNK)
    ]
    return _mean_ap(np.concatenate(parts))


def _mean_ap(tables: Float64[np.ndarray, "draws thresholds classes"]) -> BootstrapSamples:
    """The means over the classes that have true boxes in a draw; not-a-number where none has."""
    known = np.isfinite(tables[:, 0])
    # A draw of pictures without any box has no AP.
    classes = np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    ap, ap50 = (np.where(known, values, 0.0).sum(axis=1) / classes for values in (tables.mean(axis=1), tables[:, 0]))
    return BootstrapSamples(ap, ap50)


def bias_corrected_interval(samples: Float64[np.ndarray, " draws"], estimate: float) -> tuple[float, float]:
    """The 95 % interval of what was `measured`, from the same quantity of resampled sets, corrected for their bias.

    AP of resampled sets lies above that of the set itself (fewer different pictures, fewer classes with rare boxes).
    Draws that are not-a-number are left out; where all are, so is the interval.
    Source: Efron 1987, Better bootstrap confidence intervals, the bias-corrected interval (without acceleration).
    """
    samples = samples[np.isfinite(samples)]
    if not samples.size:
        return float("nan"), float("nan")
    normal = NormalDist()
    below = float(((samples < estimate).mean() + (samples <= estimate).mean()) / 2)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(samples)), 1 - 0.5 / len(samples)))
    levels = [normal.cdf(2 * bias + normal.inv_cdf(share)) for share in (0.025, 0.975)]
    low, high = np.quantile(samples, levels).tolist()
    return low, high


def paired_difference(
    before: Matches, after: Matches, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, PairedDifference]:
    """By how much ``ap`` and ``ap50`` of the second detector are greater, on the same pictures in the same order.

    Both are resampled in the same way, so what is common to them (easy and hard pictures) does not widen the interval.
    """
    everything = np.ones((1, len(before.num_truths)), np.int64)
    measured = [_mean_ap(weighted_average_precision(matches, everything)) for matches in (before, after)]
    drawn = [bootstrap_ap(matches, num_resamples=num_resamples, seed=seed) for matches in (before, after)]
    found = {}
    for name in ("ap", "ap50"):
        value = float((getattr(measured[1], name) - getattr(measured[0], name))[0])
        found[name] = PairedDifference(
            value, bias_corrected_interval(getattr(drawn[1], name) - getattr(drawn[0], name), value)
        )
    return found


def weighted_average_precision(
    matches: Matches, weights: Int64[np.ndarray, "draws pictures"]
) -> Float64[np.ndarray, "draws thresholds classes"]:
    """COCO's AP of sets that hold each picture so many times; not-a-number where a class has no true box.

    Source: COCO's evaluation code: at each of 101 recalls the greatest precision at that recall or a higher one.
    """
    table = np.full((len(weights), len(matches.is_match), matches.num_truths.shape[1]), np.nan)
    for category in np.flatnonzero(matches.num_truths.sum(axis=0)).tolist():
        own = matches.class_ids == category
        total = (weights @ matches.num_truths[:, category]).astype(np.float64)
        times = weights[:, matches.image_ids[own]]
        everything = times.cumsum(axis=1)
        for level in range(len(matches.is_match)):
            right, counts = matches.is_match[level, own], matches.is_counted[level, own]
            found = everything if counts.all() else (times * counts).cumsum(axis=1)
            hits = times[:, right].cumsum(axis=1)
            table[:, level, category] = _interpolated_ap(hits, found[:, right], total)
    return table


def _interpolated_ap(
    true_positives: Int64[np.ndarray, "draws right"],
    detections: Int64[np.ndarray, "draws right"],
    num_truths: Float64[np.ndarray, " draws"],
) -> Float64[np.ndarray, " draws"]:
    """Mean of the precision read at the 101 recalls; `hits` right ones among the surest `found`, at each right one."""
    if true_positives.shape[1] == 0:
        return np.where(num_truths > 0, 0.0, np.nan)
    precision = np.divide(true_positives, detections, out=np.zeros(true_positives.shape), where=detections > 0)
    ceiling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = true_positives / np.maximum(num_truths, 1.0)[:, None]
    # How many of the 101 recalls are reached by each right one, and by it first.
    reached = np.searchsorted(RECALL_THRESHOLDS, recall, side="right")
    first = np.diff(reached, axis=1, prepend=0)
    return np.where(num_truths > 0, (ceiling * first).sum(axis=1) / len(RECALL_THRESHOLDS), np.nan)
