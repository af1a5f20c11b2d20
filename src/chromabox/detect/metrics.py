"""How good detections are: average precision by COCO's definition and by the course's, with intervals, and curves.

COCO's own numbers come from faster-coco-eval. What it does not offer, intervals by resampling pictures, reads the
matches of `detect/matching.py`, whose AP is the same number (a test holds it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Float64, Int64

from chromabox.detect.boxes import iou
from chromabox.detect.labelled import Labelled
from chromabox.detect.matching import THRESHOLDS, Matches, Predicted, pairs_by_overlap

#: The recalls at which COCO reads precision.
RECALLS = np.linspace(0.0, 1.0, 101)
#: Resampled sets that are counted at once, which bounds memory.
_AT_ONCE = 100


@dataclass(frozen=True)
class AveragePrecision:
    """AP of each class at each threshold of overlap, in [0, 1]; not-a-number for a class without true boxes."""

    table: Float64[np.ndarray, "thresholds classes"]

    @property
    def ap(self) -> float:
        """Mean over thresholds 0.5 to 0.95 and over classes with true boxes."""
        return _mean(self.table)

    @property
    def ap50(self) -> float:
        """Mean over classes with true boxes at overlap 0.5."""
        return _mean(self.table[0])

    @property
    def per_class(self) -> Float64[np.ndarray, " classes"]:
        """Mean over thresholds of each class."""
        return self.table.mean(axis=0)


def _mean(values: Float64[np.ndarray, "..."]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def coco_average_precision(found: Sequence[Predicted], truth: Sequence[Labelled], classes: int) -> AveragePrecision:
    """COCO's definition by faster-coco-eval: all areas, at most 100 detections of a class in a picture."""
    labels: list[dict[str, object]] = [
        {**_annotation(index, box, category), "area": _area(box), "iscrowd": int(crowd)}
        for index, one in enumerate(truth)
        for box, category, crowd in zip(one.boxes, one.classes, one.is_crowd, strict=True)
    ]
    said = {
        "info": {},
        "images": [{"id": index + 1, "height": one.size[0], "width": one.size[1]} for index, one in enumerate(truth)],
        "categories": [{"id": index, "name": str(index)} for index in range(classes)],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(labels, 1)],
    }
    results = [
        {**_annotation(index, box, category), "score": float(score)}
        for index, here in enumerate(found)
        for box, category, score in zip(here.boxes, here.classes, here.scores, strict=True)
    ]
    # Without any detection the library has nothing to load.
    table = np.where(_truth_counts(truth, classes) > 0, np.zeros((len(THRESHOLDS), 1)), np.nan)
    if results and labels:
        reference = COCO(said)
        judge = COCOeval_faster(reference, reference.loadRes(results), iouType="bbox")
        judge.evaluate()
        judge.accumulate()
        precision = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]  # all areas, 100 detections
        table = np.where(precision.max(axis=1) > -1, precision.mean(axis=1), np.nan)
    return AveragePrecision(table)


def _annotation(index: int, box: Float64[np.ndarray, "4"], category: np.int64) -> dict[str, object]:
    left, top, right, bottom = box.tolist()
    return {"image_id": index + 1, "category_id": int(category), "bbox": [left, top, right - left, bottom - top]}


def _area(box: Float64[np.ndarray, "4"]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _truth_counts(truth: Sequence[Labelled], classes: int) -> Int64[np.ndarray, " classes"]:
    labels = [one.classes[~one.is_crowd] for one in truth]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=classes)


def course_average_precision(matches: Matches) -> AveragePrecision:
    """The course's variant, from `match_course`: the area below precision made monotone, over 101 recalls.

    Precision runs on straight lines between the detections, from 1 at recall 0 to 0 at recall 1; the area is taken by
    trapezoids over recalls 0, 0.01, … 1.
    """
    table = np.full((len(matches.right), matches.truths.shape[1]), np.nan)
    total = matches.truths.sum(axis=0)
    for category in np.flatnonzero(total).tolist():
        right = matches.right[:, matches.category == category]
        hits = right.cumsum(axis=1)
        precision = hits / np.arange(1, right.shape[1] + 1)
        recall = hits / total[category]
        for level in range(len(right)):
            table[level, category] = _trapezoid(recall[level], precision[level]) if right.shape[1] else 0.0
    return AveragePrecision(table)


def _trapezoid(recall: Float64[np.ndarray, " found"], precision: Float64[np.ndarray, " found"]) -> float:
    along = np.concatenate([[0.0], recall, [1.0]])
    height = np.maximum.accumulate(np.concatenate([[1.0], precision, [0.0]])[::-1])[::-1]
    read = np.interp(RECALLS, along, height)
    return float(((read[1:] + read[:-1]) / 2).mean())


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


@dataclass(frozen=True)
class Curves:
    """Precision, recall and F1 at overlap 0.5 if only detections of at least each confidence are kept."""

    confidence: Float64[np.ndarray, " steps"]
    precision: Float64[np.ndarray, "classes steps"]
    recall: Float64[np.ndarray, "classes steps"]
    f1: Float64[np.ndarray, "classes steps"]
    ceiling: Float64[np.ndarray, "classes 101"]
    """The greatest precision at each of the recalls 0, 0.01, … 1, or at a higher one."""
    categories: Int64[np.ndarray, " classes"]
    """The classes with true boxes, to which the rows belong."""

    @property
    def best(self) -> tuple[float, float, float, float]:
        """Confidence with the greatest F1, mean over classes, and precision, recall and F1 there."""
        f1 = self.f1.mean(axis=0)
        at = int(f1.argmax())
        means = (self.precision[:, at].mean(), self.recall[:, at].mean(), f1[at])
        return float(self.confidence[at]), float(means[0]), float(means[1]), float(means[2])


def curves(matches: Matches, *, steps: int = 1001) -> Curves:
    """Curves of each class with true boxes. Without any detection left, precision is taken to be 1."""
    confidence = np.linspace(0.0, 1.0, steps)
    total = matches.truths.sum(axis=0)
    categories = np.flatnonzero(total)
    precision, recall, ceiling = [], [], []
    for category in categories.tolist():
        own = (matches.category == category) & matches.counts[0]
        right, scores = matches.right[0, own], matches.scores[own]
        hits = np.concatenate([[0], right.cumsum()])
        kept = np.searchsorted(-scores, -confidence, side="right")
        precision.append(np.where(kept > 0, hits[kept] / np.maximum(kept, 1), 1.0))
        recall.append(hits[kept] / total[category])
        ceiling.append(_ceiling(hits[1:] / np.arange(1, len(hits)), hits[1:] / total[category]))
    p, r, c = (np.array(rows, np.float64) for rows in (precision, recall, ceiling))
    p, r, c = p.reshape(-1, steps), r.reshape(-1, steps), c.reshape(-1, len(RECALLS))
    f1 = np.divide(2 * p * r, p + r, out=np.zeros_like(p), where=p + r > 0)
    return Curves(confidence, p, r, f1, c, categories)


def _ceiling(
    precision: Float64[np.ndarray, " found"], recall: Float64[np.ndarray, " found"]
) -> Float64[np.ndarray, "101"]:
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return highest[np.searchsorted(recall, RECALLS, side="left")]


def confusion(
    found: Sequence[Predicted],
    truth: Sequence[Labelled],
    classes: int,
    *,
    confidence: float = 0.25,
    overlap: float = 0.5,
) -> Int64[np.ndarray, "truth prediction"]:
    """What was taken for what: rows truth, columns prediction, the last row and column "nothing".

    In each picture detections of at least `confidence` and true boxes that overlap enough are paired, whatever their
    classes, the greatest overlap first; the rest of the truth was missed, the rest of the detections found nothing.
    """
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for here, one in zip(found, truth, strict=True):
        sure = here.take(here.scores >= confidence)
        boxes, labels = one.boxes[~one.is_crowd], one.classes[~one.is_crowd]
        pairs = pairs_by_overlap(iou(sure.boxes, boxes), overlap)
        own, other = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
        np.add.at(table, (labels[other], sure.classes[own]), 1)
        table[:classes, classes] += np.bincount(np.delete(labels, other), minlength=classes)
        table[classes, :classes] += np.bincount(np.delete(sure.classes, own), minlength=classes)
    return table
