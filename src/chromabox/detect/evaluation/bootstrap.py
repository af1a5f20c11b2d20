"""Bootstrap confidence intervals of AP: detections are matched once, and images are resampled.

The AP of a weighted set of images equals that of faster-coco-eval for the same set (this is tested), so the intervals
apply to the reported values.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

from chromabox.detect.evaluation.metrics import RECALL_THRESHOLDS, Matches

#: Number of resampled sets evaluated together; limits memory use.
_RESAMPLES_PER_CHUNK = 100


@dataclass(frozen=True)
class PairedDifference:
    """Difference between two detectors, and its 95 % confidence interval over images."""

    value: float
    interval: tuple[float, float]


def bootstrap_ap(
    matches: Matches, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Float64[np.ndarray, " samples"]]:
    """Compute ``ap`` and ``ap50`` of ``num_resamples`` sets of images, drawn with replacement (Efron 1979).

    The sets have the original size. The result is NaN for a set without boxes.

    The same seed draws the same sets. Two detectors on the same images can therefore be compared sample by sample.
    """
    num_images = len(matches.num_truths)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)
    tables = [
        weighted_average_precision(matches, weights[start : start + _RESAMPLES_PER_CHUNK])
        for start in range(0, num_resamples, _RESAMPLES_PER_CHUNK)
    ]
    return _mean_ap(np.concatenate(tables))


def _mean_ap(tables: Float64[np.ndarray, "samples thresholds classes"]) -> dict[str, Float64[np.ndarray, " samples"]]:
    """Return ``ap`` and ``ap50``: means over the classes with ground truth in a sample; NaN if it has none."""
    has_truth = np.isfinite(tables[:, 0])
    num_classes = np.where(has_truth.any(axis=1), has_truth.sum(axis=1), np.nan)
    per_class = {"ap": tables.mean(axis=1), "ap50": tables[:, 0]}
    return {name: np.where(has_truth, values, 0.0).sum(axis=1) / num_classes for name, values in per_class.items()}


def bias_corrected_interval(samples: Float64[np.ndarray, " samples"], estimate: float) -> tuple[float, float]:
    """Compute the bias-corrected 95 % confidence interval of an estimate from its bootstrap samples.

    The correction matters because the AP of resampled sets is biased upwards: they have fewer distinct images and fewer
    of the rare classes. NaN samples are ignored; if all samples are NaN, so is the interval.
    Source: Efron 1987, Better bootstrap confidence intervals (bias-corrected, without acceleration).
    """
    samples = samples[np.isfinite(samples)]
    if not samples.size:
        return float("nan"), float("nan")
    normal = NormalDist()
    below = float(((samples < estimate).mean() + (samples <= estimate).mean()) / 2)
    bias = normal.inv_cdf(min(max(below, 0.5 / len(samples)), 1 - 0.5 / len(samples)))
    quantiles = [normal.cdf(2 * bias + normal.inv_cdf(level)) for level in (0.025, 0.975)]
    low, high = np.quantile(samples, quantiles).tolist()
    return low, high


def paired_difference(
    before: Matches, after: Matches, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, PairedDifference]:
    """Compute the differences ``after`` − ``before`` in ``ap`` and ``ap50``, on the same images in the same order.

    Both detectors are evaluated on the same resampled sets. Effects common to both (easy and hard images) therefore do
    not widen the interval.
    """
    all_images = np.ones((1, len(before.num_truths)), np.int64)
    estimates = [_mean_ap(weighted_average_precision(matches, all_images)) for matches in (before, after)]
    samples = [bootstrap_ap(matches, num_resamples=num_resamples, seed=seed) for matches in (before, after)]
    differences = {}
    for name in ("ap", "ap50"):
        value = float((estimates[1][name] - estimates[0][name])[0])
        interval = bias_corrected_interval(samples[1][name] - samples[0][name], value)
        differences[name] = PairedDifference(value, interval)
    return differences


def weighted_average_precision(
    matches: Matches, weights: Int64[np.ndarray, "samples images"]
) -> Float64[np.ndarray, "samples thresholds classes"]:
    """Compute COCO's AP of sets that contain each image ``weights`` times; NaN for a class without ground truth.

    Source: COCO's evaluation code. AP is the mean, over 101 recalls, of the maximum precision at that or a higher
    recall.
    """
    table = np.full((len(weights), len(matches.is_match), matches.num_truths.shape[1]), np.nan)
    for class_id in np.flatnonzero(matches.num_truths.sum(axis=0)).tolist():
        of_class = matches.class_ids == class_id
        num_truths = (weights @ matches.num_truths[:, class_id]).astype(np.float64)
        detection_weights = weights[:, matches.image_ids[of_class]]
        cumulative = detection_weights.cumsum(axis=1)
        for level in range(len(matches.is_match)):
            is_match, is_counted = matches.is_match[level, of_class], matches.is_counted[level, of_class]
            detections = cumulative if is_counted.all() else (detection_weights * is_counted).cumsum(axis=1)
            true_positives = detection_weights[:, is_match].cumsum(axis=1)
            num_counted = detections[:, is_match]
            precision = np.zeros(true_positives.shape)
            np.divide(true_positives, num_counted, out=precision, where=num_counted > 0)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = true_positives / np.maximum(num_truths, 1.0)[:, None]
            # The number of the 101 recalls that each matched detection is the first to reach.
            num_new = np.diff(np.searchsorted(RECALL_THRESHOLDS, recall, side="right"), axis=1, prepend=0)
            ap = (envelope * num_new).sum(axis=1) / len(RECALL_THRESHOLDS)
            table[:, level, class_id] = np.where(num_truths > 0, ap, np.nan)
    return table
