"""Bootstrap confidence intervals of AP: detections are matched once, and images are resampled.

Tests verify that the AP of a resampled set equals the AP that faster-coco-eval computes for the same images. The
intervals therefore apply to the reported values.
"""

from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

from chromabox.detect.evaluation.metrics import RECALL_THRESHOLDS, Matches

#: Number of resampled sets that are evaluated at a time. A small number limits memory use.
_RESAMPLES_PER_CHUNK = 100


def bootstrap_ap(
    matches: Matches, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Float64[np.ndarray, " samples"]]:
    """Compute ``ap`` and ``ap50`` of ``num_resamples`` sets of images, drawn with replacement (Efron 1979).

    Each set has the original number of images. The values are NaN for a set without boxes. Equal seeds give equal sets,
    so that two detectors evaluated on the same images can be compared sample by sample.
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
    """Return ``ap`` and ``ap50``: means over the classes with ground truth in a sample, or NaN without such classes."""
    has_truth = np.isfinite(tables[:, 0])
    num_classes = np.where(has_truth.any(axis=1), has_truth.sum(axis=1), np.nan)
    per_class = {"ap": tables.mean(axis=1), "ap50": tables[:, 0]}
    return {name: np.where(has_truth, values, 0.0).sum(axis=1) / num_classes for name, values in per_class.items()}


def bias_corrected_interval(samples: Float64[np.ndarray, " samples"], estimate: float) -> tuple[float, float]:
    """Compute the bias-corrected 95 % confidence interval of an estimate from its bootstrap samples.

    The correction is necessary because the AP of resampled sets is biased upwards: they contain fewer distinct images
    and fewer of the rare classes. NaN samples are ignored. The interval is NaN if all samples are NaN.
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
    before: Matches, after: Matches, *, num_resamples: int = 1000
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Compute the differences ``after`` − ``before`` in ``ap`` and ``ap50``, with their 95 % confidence intervals.

    Both detectors must be evaluated on the same images in the same order. The resampled sets are the same
    for both detectors. The varying difficulty of the images, which affects both detectors, therefore does not widen the
    intervals.
    """
    all_images = np.ones((1, len(before.num_truths)), np.int64)
    estimates = [_mean_ap(weighted_average_precision(matches, all_images)) for matches in (before, after)]
    samples = [bootstrap_ap(matches, num_resamples=num_resamples) for matches in (before, after)]
    differences = {}
    for name in ("ap", "ap50"):
        value = float((estimates[1][name] - estimates[0][name])[0])
        differences[name] = value, bias_corrected_interval(samples[1][name] - samples[0][name], value)
    return differences


def weighted_average_precision(
    matches: Matches, weights: Int64[np.ndarray, "samples images"]
) -> Float64[np.ndarray, "samples thresholds classes"]:
    """Compute COCO's AP for each set of images. ``weights`` is the number of times that an image occurs in a set.

    The AP of a class without ground truth is NaN. Otherwise, AP is the mean, over 101 recall thresholds, of the maximum
    precision at recalls not below the threshold.
    Source: COCO's evaluation code.
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
            # For each matched detection, the number of recall thresholds that this detection is the first to reach.
            num_new = np.diff(np.searchsorted(RECALL_THRESHOLDS, recall, side="right"), axis=1, prepend=0)
            ap = (envelope * num_new).sum(axis=1) / len(RECALL_THRESHOLDS)
            table[:, level, class_id] = np.where(num_truths > 0, ap, np.nan)
    return table
