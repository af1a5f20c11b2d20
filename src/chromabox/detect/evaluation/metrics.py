"""How good detections are: average precision by COCO's definition and by the course's, curves and confusions.

COCO's own numbers come from faster-coco-eval; the rest reads the matches of `detect/matching.py`.

Which detections are right: each matched to a true box, once, for every threshold of overlap.

Everything later (AP on resampled pictures, curves of precision and recall) reads the matches, so boxes are compared
only once. Two rules: COCO's, and the variant of the course.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool, Float64, Int64

from chromabox.detect.boxes import box_area, iou
from chromabox.detect.data.dataset import Sample

#: COCO's thresholds of overlap, 0.5 to 0.95.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)

#: Detections of a class that COCO counts in one picture, the surest first.
MAX_DETECTIONS = 100
Float64Boxes = Float64[np.ndarray, "boxes 4"]


@dataclass(frozen=True)
class ImagePredictions:
    """What a detector found in one picture: boxes in its pixels (left, top, right, bottom), scores in [0, 1]."""

    boxes: Float64Boxes
    scores: Float64[np.ndarray, " boxes"]
    class_ids: Int64[np.ndarray, " boxes"]

    def select(self, index: np.ndarray) -> "ImagePredictions":
        """Those detections, by index or mask."""
        return ImagePredictions(self.boxes[index], self.scores[index], self.class_ids[index])


@dataclass(frozen=True)
class Matches:
    """All detections that count, of all pictures, the surest first, and the number of true boxes.

    `picture` and `category` are indices. `right` says at each threshold whether the detection has a true box of its
    own. `truths` are the true boxes to find, of each picture and class; crowds are none.
    """

    image_ids: Int64[np.ndarray, " found"]
    class_ids: Int64[np.ndarray, " found"]
    scores: Float64[np.ndarray, " found"]
    is_match: Bool[np.ndarray, "thresholds found"]
    is_counted: Bool[np.ndarray, "thresholds found"]
    """False where the detection lies on a crowd and is neither right nor wrong."""
    num_truths: Int64[np.ndarray, "pictures classes"]


def crowd_overlap(
    boxes: Float64[np.ndarray, "boxes 4"], crowds: Float64[np.ndarray, "others 4"]
) -> Float64[np.ndarray, "boxes others"]:
    """The share of each box's own area that lies in each of the others: COCO's overlap with crowds."""
    low = np.maximum(boxes[:, None, :2], crowds[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], crowds[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    own = np.broadcast_to(box_area(boxes)[:, None], shared.shape)
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def match_coco(predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int) -> Matches:
    """COCO's rule, for each picture, class and threshold apart: the surest detection chooses first.

    It takes the free true box that it overlaps most, if by the threshold at least; else it may lie on a crowd (by the
    share of its own area), and then does not count. Source: COCO's evaluation code, as pycocotools has it.
    """
    parts = []
    for index, (here, one) in enumerate(zip(predictions, ground_truth, strict=True)):
        for category in np.unique(here.class_ids).tolist():
            own = here.select(here.class_ids == category)
            own = own.select(np.argsort(-own.scores, kind="stable")[:MAX_DETECTIONS])
            same = one.class_ids == category
            right, counts = _match_boxes(own.boxes, one.boxes[same & ~one.is_crowd], one.boxes[same & one.is_crowd])
            parts.append((np.full(len(own.scores), index), own.class_ids, own.scores, right, counts))
    return _concat_matches(parts, _count_truths(ground_truth, num_classes))


def _match_boxes(
    predicted_boxes: Float64[np.ndarray, "found 4"],
    truth_boxes: Float64[np.ndarray, "truth 4"],
    crowd_boxes: Float64[np.ndarray, "crowds 4"],
) -> tuple[Bool[np.ndarray, "10 found"], Bool[np.ndarray, "10 found"]]:
    """For detections in falling order of score: whether each is right, and whether it counts, at each threshold."""
    right = np.zeros((len(IOU_THRESHOLDS), len(predicted_boxes)), bool)
    shares = iou(predicted_boxes, truth_boxes)
    free = np.ones((len(IOU_THRESHOLDS), len(truth_boxes)), bool)
    levels = np.arange(len(IOU_THRESHOLDS))
    # Most detections overlap nothing by half; they need no turn.
    for index in np.flatnonzero(shares.max(axis=1, initial=0.0) >= IOU_THRESHOLDS[0]) if len(truth_boxes) else []:
        offers = np.where(free, shares[index], -1.0)
        # Among equal overlaps COCO's code takes the last.
        best = len(truth_boxes) - 1 - offers[:, ::-1].argmax(axis=1)
        taken = offers[levels, best] >= IOU_THRESHOLDS
        right[taken, index] = True
        free[levels[taken], best[taken]] = False
    on_crowd = crowd_overlap(predicted_boxes, crowd_boxes).max(axis=1, initial=0.0)
    return right, right | (on_crowd[None, :] < IOU_THRESHOLDS[:, None])


def match_course(predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int) -> Matches:
    """The course's variant: one matching for all thresholds, the greatest overlap first, whatever the scores.

    In each picture the pairs of a detection and a true box of one class that overlap by at least 0.5 are gone through
    from the greatest overlap down; a pair of which neither has a partner yet is a match, right at every threshold up
    to its overlap. Crowds, which its labels do not have, are left out of account.
    """
    parts = []
    for index, (here, one) in enumerate(zip(predictions, ground_truth, strict=True)):
        boxes, categories = one.boxes[~one.is_crowd], one.class_ids[~one.is_crowd]
        shares = np.where(here.class_ids[:, None] == categories[None, :], iou(here.boxes, boxes), 0.0)
        right = np.zeros((len(IOU_THRESHOLDS), len(here.scores)), bool)
        for own, other in greedy_pairs(shares, IOU_THRESHOLDS[0]):
            right[:, own] = shares[own, other] >= IOU_THRESHOLDS
        parts.append((np.full(len(here.scores), index), here.class_ids, here.scores, right, np.ones_like(right)))
    return _concat_matches(parts, _count_truths(ground_truth, num_classes))


def greedy_pairs(overlaps: Float64[np.ndarray, "found truth"], min_overlap: float) -> list[tuple[int, int]]:
    """Pairs of row and column, each in one pair at most, from the greatest share down to the least allowed."""
    rows, columns = np.nonzero(overlaps >= min_overlap)
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used[0] and column not in used[1]:
            pairs.append((row, column))
            used[0].add(row)
            used[1].add(column)
    return pairs


def _count_truths(ground_truth: Sequence[Sample], num_classes: int) -> Int64[np.ndarray, "pictures classes"]:
    counts = [np.bincount(one.class_ids[~one.is_crowd], minlength=num_classes) for one in ground_truth]
    return np.array(counts, np.int64).reshape(len(ground_truth), num_classes)


def _concat_matches(
    parts: Sequence[tuple[np.ndarray, ...]], num_truths: Int64[np.ndarray, "pictures classes"]
) -> Matches:
    """The parts of all pictures in falling order of score; equal scores in the order of the pictures, as COCO's."""
    if not parts:
        none, nothing = np.zeros(0, np.int64), np.zeros((len(IOU_THRESHOLDS), 0), bool)
        return Matches(none, none, np.zeros(0), nothing, nothing, num_truths)
    picture, category, scores, right, counts = (np.concatenate(column, axis=-1) for column in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(picture[order], category[order], scores[order], right[:, order], counts[:, order], num_truths)


#: The recalls at which COCO reads precision.
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class AveragePrecision:
    """AP of each class at each threshold of overlap, in [0, 1]; not-a-number for a class without true boxes."""

    table: Float64[np.ndarray, "thresholds classes"]

    @property
    def ap(self) -> float:
        """Mean over thresholds 0.5 to 0.95 and over classes with true boxes."""
        return _nanmean(self.table)

    @property
    def ap50(self) -> float:
        """Mean over classes with true boxes at overlap 0.5."""
        return _nanmean(self.table[0])

    @property
    def per_class(self) -> Float64[np.ndarray, " classes"]:
        """Mean over thresholds of each class."""
        return self.table.mean(axis=0)


def _nanmean(values: Float64[np.ndarray, "..."]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def coco_average_precision(
    predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int
) -> AveragePrecision:
    """COCO's definition by faster-coco-eval: all areas, at most 100 detections of a class in a picture."""
    labels: list[dict[str, object]] = [
        {**_coco_annotation(index, box, category), "area": _area(box), "iscrowd": int(crowd)}
        for index, one in enumerate(ground_truth)
        for box, category, crowd in zip(one.boxes, one.class_ids, one.is_crowd, strict=True)
    ]
    said = {
        "info": {},
        "images": [
            {"id": index + 1, "height": one.size[0], "width": one.size[1]} for index, one in enumerate(ground_truth)
        ],
        "categories": [{"id": index, "name": str(index)} for index in range(num_classes)],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(labels, 1)],
    }
    results = [
        {**_coco_annotation(index, box, category), "score": float(score)}
        for index, here in enumerate(predictions)
        for box, category, score in zip(here.boxes, here.class_ids, here.scores, strict=True)
    ]
    # Without any detection the library has nothing to load.
    table = np.where(_truths_per_class(ground_truth, num_classes) > 0, np.zeros((len(IOU_THRESHOLDS), 1)), np.nan)
    if results and labels:
        reference = COCO(said)
        judge = COCOeval_faster(reference, reference.loadRes(results), iouType="bbox")
        judge.evaluate()
        judge.accumulate()
        precision = np.asarray(judge.eval["precision"])[:, :, :, 0, -1]  # all areas, 100 detections
        table = np.where(precision.max(axis=1) > -1, precision.mean(axis=1), np.nan)
    return AveragePrecision(table)


def _coco_annotation(image_index: int, box: Float64[np.ndarray, "4"], class_id: np.int64) -> dict[str, object]:
    left, top, right, bottom = box.tolist()
    return {"image_id": image_index + 1, "category_id": int(class_id), "bbox": [left, top, right - left, bottom - top]}


def _area(box: Float64[np.ndarray, "4"]) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _truths_per_class(ground_truth: Sequence[Sample], num_classes: int) -> Int64[np.ndarray, " classes"]:
    labels = [one.class_ids[~one.is_crowd] for one in ground_truth]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=num_classes)


def course_average_precision(matches: Matches) -> AveragePrecision:
    """The course's variant, from `match_course`: the area below precision made monotone, over 101 recalls.

    Precision runs on straight lines between the detections, from 1 at recall 0 to 0 at recall 1; the area is taken by
    trapezoids over recalls 0, 0.01, … 1.
    """
    table = np.full((len(matches.is_match), matches.num_truths.shape[1]), np.nan)
    total = matches.num_truths.sum(axis=0)
    for category in np.flatnonzero(total).tolist():
        right = matches.is_match[:, matches.class_ids == category]
        hits = right.cumsum(axis=1)
        precision = hits / np.arange(1, right.shape[1] + 1)
        recall = hits / total[category]
        for level in range(len(right)):
            table[level, category] = _trapezoid_ap(recall[level], precision[level]) if right.shape[1] else 0.0
    return AveragePrecision(table)


def _trapezoid_ap(recall: Float64[np.ndarray, " found"], precision: Float64[np.ndarray, " found"]) -> float:
    along = np.concatenate([[0.0], recall, [1.0]])
    height = np.maximum.accumulate(np.concatenate([[1.0], precision, [0.0]])[::-1])[::-1]
    read = np.interp(RECALL_THRESHOLDS, along, height)
    return float(((read[1:] + read[:-1]) / 2).mean())


@dataclass(frozen=True)
class PrecisionRecallCurves:
    """Precision, recall and F1 at overlap 0.5 if only detections of at least each confidence are kept."""

    confidence: Float64[np.ndarray, " steps"]
    precision: Float64[np.ndarray, "classes steps"]
    recall: Float64[np.ndarray, "classes steps"]
    f1: Float64[np.ndarray, "classes steps"]
    precision_envelope: Float64[np.ndarray, "classes 101"]
    """The greatest precision at each of the recalls 0, 0.01, … 1, or at a higher one."""
    class_ids: Int64[np.ndarray, " classes"]
    """The classes with true boxes, to which the rows belong."""

    @property
    def best_f1(self) -> tuple[float, float, float, float]:
        """Confidence with the greatest F1, mean over classes, and precision, recall and F1 there."""
        f1 = self.f1.mean(axis=0)
        at = int(f1.argmax())
        means = (self.precision[:, at].mean(), self.recall[:, at].mean(), f1[at])
        return float(self.confidence[at]), float(means[0]), float(means[1]), float(means[2])


def precision_recall_curves(matches: Matches, *, num_thresholds: int = 1001) -> PrecisionRecallCurves:
    """Curves of each class with true boxes. Without any detection left, precision is taken to be 1."""
    confidence = np.linspace(0.0, 1.0, num_thresholds)
    total = matches.num_truths.sum(axis=0)
    categories = np.flatnonzero(total)
    precision, recall, ceiling = [], [], []
    for category in categories.tolist():
        own = (matches.class_ids == category) & matches.is_counted[0]
        right, scores = matches.is_match[0, own], matches.scores[own]
        hits = np.concatenate([[0], right.cumsum()])
        kept = np.searchsorted(-scores, -confidence, side="right")
        precision.append(np.where(kept > 0, hits[kept] / np.maximum(kept, 1), 1.0))
        recall.append(hits[kept] / total[category])
        ceiling.append(_precision_envelope(hits[1:] / np.arange(1, len(hits)), hits[1:] / total[category]))
    p, r, c = (np.array(rows, np.float64) for rows in (precision, recall, ceiling))
    p, r, c = p.reshape(-1, num_thresholds), r.reshape(-1, num_thresholds), c.reshape(-1, len(RECALL_THRESHOLDS))
    f1 = np.divide(2 * p * r, p + r, out=np.zeros_like(p), where=p + r > 0)
    return PrecisionRecallCurves(confidence, p, r, f1, c, categories)


def _precision_envelope(
    precision: Float64[np.ndarray, " found"], recall: Float64[np.ndarray, " found"]
) -> Float64[np.ndarray, "101"]:
    highest = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return highest[np.searchsorted(recall, RECALL_THRESHOLDS, side="left")]


def detection_confusion_matrix(
    predictions: Sequence[ImagePredictions],
    ground_truth: Sequence[Sample],
    num_classes: int,
    *,
    confidence: float = 0.25,
    iou_threshold: float = 0.5,
) -> Int64[np.ndarray, "truth prediction"]:
    """What was taken for what: rows truth, columns prediction, the last row and column "nothing".

    In each picture detections of at least `confidence` and true boxes that overlap enough are paired, whatever their
    classes, the greatest overlap first; the rest of the truth was missed, the rest of the detections found nothing.
    """
    table = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for here, one in zip(predictions, ground_truth, strict=True):
        sure = here.select(here.scores >= confidence)
        boxes, labels = one.boxes[~one.is_crowd], one.class_ids[~one.is_crowd]
        pairs = greedy_pairs(iou(sure.boxes, boxes), iou_threshold)
        own, other = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
        np.add.at(table, (labels[other], sure.class_ids[own]), 1)
        table[:num_classes, num_classes] += np.bincount(np.delete(labels, other), minlength=num_classes)
        table[num_classes, :num_classes] += np.bincount(np.delete(sure.class_ids, own), minlength=num_classes)
    return table
