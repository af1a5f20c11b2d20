"""Detection metrics: matching, average precision (COCO's and the course's), precision-recall curves, confusion matrix.

Detections are matched to ground-truth boxes at every IoU threshold, by COCO's rule or by the course's rule. Bootstrap
AP, the course's AP and the precision-recall curves are computed from these matches. The reported COCO AP is computed by
faster-coco-eval.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool, Float64, Int64

from chromabox.detect.boxes import box_area, intersection_area, iou, xyxy_to_xywh
from chromabox.detect.data.dataset import Float64Boxes, Sample

#: COCO's IoU thresholds: 0.5, 0.55, …, 0.95.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)

#: Recall thresholds at which COCO samples the precision: 0, 0.01, …, 1.
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)

#: Maximum number of detections per class and image. The detections with the highest scores are used.
MAX_DETECTIONS = 100

#: Confidence threshold and IoU threshold of the confusion matrix.
CONFUSION_CONFIDENCE, CONFUSION_IOU = 0.25, 0.5


@dataclass(frozen=True)
class ImagePredictions:
    """Detections in one image: boxes (left, top, right, bottom) in pixels, scores in [0, 1], and class indices."""

    boxes: Float64Boxes
    scores: Float64[np.ndarray, " boxes"]
    class_ids: Int64[np.ndarray, " boxes"]

    def select(self, index: np.ndarray) -> "ImagePredictions":
        """Return the detections selected by an array of indices or a mask."""
        return ImagePredictions(self.boxes[index], self.scores[index], self.class_ids[index])


@dataclass(frozen=True)
class Matches:
    """Detections of all images in decreasing order of score, and whether they match a ground-truth box."""

    image_ids: Int64[np.ndarray, " detections"]
    """Image index of each detection."""
    class_ids: Int64[np.ndarray, " detections"]
    scores: Float64[np.ndarray, " detections"]
    is_match: Bool[np.ndarray, "thresholds detections"]
    """Whether a detection is a true positive at an IoU threshold."""
    is_counted: Bool[np.ndarray, "thresholds detections"]
    """False for an unmatched detection inside a crowd, which is neither a true positive nor a false positive."""
    num_truths: Int64[np.ndarray, "images classes"]
    """Number of ground-truth boxes of each class in each image, without crowd boxes."""


def match_coco(predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int) -> Matches:
    """Match detections by COCO's rule, separately for each image, class and IoU threshold.

    In decreasing order of score, each detection is matched to the unmatched ground-truth box with the highest IoU, if
    this IoU reaches the threshold. A detection without a match is not counted if the fraction of its area that lies in
    a crowd reaches the threshold.
    Source: COCO's evaluation code, as in pycocotools.
    """
    parts = []
    for index, (prediction, sample) in enumerate(zip(predictions, ground_truth, strict=True)):
        for class_id in np.unique(prediction.class_ids).tolist():
            detections = prediction.select(prediction.class_ids == class_id)
            detections = detections.select(np.argsort(-detections.scores, kind="stable")[:MAX_DETECTIONS])
            of_class = sample.class_ids == class_id
            is_match = _match_boxes(iou(detections.boxes, sample.boxes[of_class & ~sample.is_crowd]))
            in_crowd = intersection_area(detections.boxes, sample.boxes[of_class & sample.is_crowd])
            area = box_area(detections.boxes)[:, None]
            in_crowd = np.divide(in_crowd, area, out=np.zeros_like(in_crowd), where=area > 0)
            is_counted = is_match | (in_crowd.max(axis=1, initial=0.0) < IOU_THRESHOLDS[:, None])
            image_ids = np.full(len(detections.scores), index)
            parts.append((image_ids, detections.class_ids, detections.scores, is_match, is_counted))
    return _concat_matches(parts, ground_truth, num_classes)


def _match_boxes(overlaps: Float64[np.ndarray, "detections truths"]) -> Bool[np.ndarray, "10 detections"]:
    """Return whether detections, given in decreasing order of score, are matched at each IoU threshold."""
    num_detections, num_truths = overlaps.shape
    is_match = np.zeros((len(IOU_THRESHOLDS), num_detections), bool)
    is_free = np.ones((len(IOU_THRESHOLDS), num_truths), bool)
    levels = np.arange(len(IOU_THRESHOLDS))
    # Most detections do not reach the lowest threshold and are skipped.
    for index in np.flatnonzero(overlaps.max(axis=1, initial=0.0) >= IOU_THRESHOLDS[0]):
        free_overlaps = np.where(is_free, overlaps[index], -1.0)
        # If several boxes have the same overlap, COCO's code selects the last one.
        best = num_truths - 1 - free_overlaps[:, ::-1].argmax(axis=1)
        matched = free_overlaps[levels, best] >= IOU_THRESHOLDS
        is_match[matched, index] = True
        is_free[levels[matched], best[matched]] = False
    return is_match


def match_course(predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int) -> Matches:
    """Match detections by the course's rule: one matching for all thresholds, in decreasing order of IoU.

    In each image, pairs of a detection and a ground-truth box of the same class with an IoU of at least 0.5 are visited
    in decreasing order of IoU, regardless of scores. If neither has been matched, they are matched to each other. The
    detection is then a true positive at every threshold up to the IoU of the pair. Crowds are ignored, since
    the course's labels contain no crowd boxes.
    """
    parts = []
    for index, (prediction, sample) in enumerate(zip(predictions, ground_truth, strict=True)):
        truth = sample.without_crowds
        same_class = prediction.class_ids[:, None] == truth.class_ids[None, :]
        overlaps = np.where(same_class, iou(prediction.boxes, truth.boxes), 0.0)
        is_match = np.zeros((len(IOU_THRESHOLDS), len(prediction.scores)), bool)
        for detection, index_of_truth in greedy_pairs(overlaps, IOU_THRESHOLDS[0]):
            is_match[:, detection] = overlaps[detection, index_of_truth] >= IOU_THRESHOLDS
        image_ids = np.full(len(prediction.scores), index)
        parts.append((image_ids, prediction.class_ids, prediction.scores, is_match, np.ones_like(is_match)))
    return _concat_matches(parts, ground_truth, num_classes)


def greedy_pairs(overlaps: Float64[np.ndarray, "rows columns"], min_overlap: float) -> list[tuple[int, int]]:
    """Return pairs (row, column) with an overlap of at least ``min_overlap``, in decreasing order of overlap.

    Each row and each column is used at most once.
    """
    pairs, free = [], overlaps.copy()
    while free.max(initial=-1.0) >= min_overlap:
        row, column = divmod(int(free.argmax()), free.shape[1])
        pairs.append((row, column))
        free[row] = free[:, column] = -1.0
    return pairs


def _concat_matches(
    parts: Sequence[tuple[np.ndarray, ...]], ground_truth: Sequence[Sample], num_classes: int
) -> Matches:
    """Return the detections of all images in decreasing order of score, and in image order for equal scores."""
    no_ids, no_matches = np.zeros(0, np.int64), np.zeros((len(IOU_THRESHOLDS), 0), bool)
    columns = zip((no_ids, no_ids, np.zeros(0), no_matches, no_matches), *parts, strict=True)
    image_ids, class_ids, scores, is_match, is_counted = (np.concatenate(column, axis=-1) for column in columns)
    order = np.argsort(-scores, kind="stable")
    num_truths = _count_truths(ground_truth, num_classes)
    is_match, is_counted = is_match[:, order], is_counted[:, order]
    return Matches(image_ids[order], class_ids[order], scores[order], is_match, is_counted, num_truths)


def _count_truths(ground_truth: Sequence[Sample], num_classes: int) -> Int64[np.ndarray, "images classes"]:
    counts = [np.bincount(sample.without_crowds.class_ids, minlength=num_classes) for sample in ground_truth]
    return np.array(counts, np.int64).reshape(len(ground_truth), num_classes)


@dataclass(frozen=True)
class AveragePrecision:
    """AP of each class at each IoU threshold, in [0, 1]. The AP of a class without ground truth is NaN."""

    table: Float64[np.ndarray, "thresholds classes"]

    @property
    def ap(self) -> float:
        """Mean AP over the IoU thresholds 0.5 to 0.95 and over the classes with ground truth."""
        return _nanmean(self.table)

    @property
    def ap50(self) -> float:
        """Mean AP over the classes with ground truth at the IoU threshold 0.5."""
        return _nanmean(self.table[0])

    @property
    def per_class(self) -> Float64[np.ndarray, " classes"]:
        """AP of each class, averaged over the IoU thresholds."""
        return self.table.mean(axis=0)


def _nanmean(values: Float64[np.ndarray, "..."]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def coco_average_precision(
    predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int
) -> AveragePrecision:
    """Compute COCO's AP with faster-coco-eval: all box areas, at most 100 detections per class and image."""
    annotations = [
        {"image_id": image_id, "category_id": class_id, "bbox": box, "area": box[2] * box[3], "iscrowd": int(is_crowd)}
        for image_id, sample in enumerate(ground_truth, 1)
        for box, class_id, is_crowd in zip(
            xyxy_to_xywh(sample.boxes).tolist(), sample.class_ids.tolist(), sample.is_crowd.tolist(), strict=True
        )
    ]
    parts = [np.zeros((0, 7))]
    for image_id, prediction in enumerate(predictions, 1):
        image_ids = np.full(len(prediction.scores), image_id)
        columns = (image_ids, xyxy_to_xywh(prediction.boxes), prediction.scores, prediction.class_ids)
        parts.append(np.column_stack(columns))
    results = np.concatenate(parts)
    if not len(results) or not annotations:  # Old versions of the library cannot load an empty list.
        has_truth = _count_truths(ground_truth, num_classes).any(axis=0)
        return AveragePrecision(np.where(has_truth, np.zeros((len(IOU_THRESHOLDS), 1)), np.nan))
    coco = COCO(
        {
            "info": {},
            "images": [{"id": image_id} for image_id in range(1, len(ground_truth) + 1)],
            "categories": [{"id": index, "name": str(index)} for index in range(num_classes)],
            "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        }
    )
    evaluator = COCOeval_faster(coco, coco.loadRes(results), iouType="bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]  # all areas, 100 detections
    return AveragePrecision(np.where(precision.max(axis=1) > -1, precision.mean(axis=1), np.nan))


def course_average_precision(matches: Matches) -> AveragePrecision:
    """Compute the course's AP from the matches of :func:`match_course`.

    The precision at each recall is replaced by the maximum precision at this or any higher recall, and interpolated
    linearly between detections. The curve begins with precision 1 at recall 0 and ends with precision 0 at recall 1. AP
    is the area under the curve by the trapezoidal rule at the recalls 0, 0.01, …, 1.
    """
    table = np.full((len(matches.is_match), matches.num_truths.shape[1]), np.nan)
    num_truths = matches.num_truths.sum(axis=0)
    for class_id in np.flatnonzero(num_truths).tolist():
        is_match = matches.is_match[:, matches.class_ids == class_id]
        true_positives = is_match.cumsum(axis=1)
        precision = true_positives / np.arange(1, is_match.shape[1] + 1)
        recall = true_positives / num_truths[class_id]
        for level in range(len(is_match)):
            recalls = np.concatenate([[0.0], recall[level], [1.0]])
            precisions = np.concatenate([[1.0], precision[level], [0.0]])
            envelope = np.maximum.accumulate(precisions[::-1])[::-1]
            sampled = np.interp(RECALL_THRESHOLDS, recalls, envelope)
            ap = ((sampled[1:] + sampled[:-1]) / 2).mean()
            table[level, class_id] = ap if is_match.shape[1] else 0.0
    return AveragePrecision(table)


@dataclass(frozen=True)
class PrecisionRecallCurves:
    """Precision, recall and F1 at the IoU threshold 0.5, as functions of the confidence threshold."""

    confidence: Float64[np.ndarray, " thresholds"]
    precision: Float64[np.ndarray, "classes thresholds"]
    recall: Float64[np.ndarray, "classes thresholds"]
    f1: Float64[np.ndarray, "classes thresholds"]
    precision_envelope: Float64[np.ndarray, "classes 101"]
    """Maximum precision at recalls of at least 0, 0.01, …, 1."""
    class_ids: Int64[np.ndarray, " classes"]
    """Class index of each row. Only classes with ground truth have a row."""

    @property
    def best_f1(self) -> tuple[float, float, float, float]:
        """Confidence with the highest F1 (mean over classes), and mean precision, recall and F1 at this confidence."""
        f1 = self.f1.mean(axis=0)
        best = int(f1.argmax())
        precision, recall = self.precision[:, best].mean(), self.recall[:, best].mean()
        return float(self.confidence[best]), float(precision), float(recall), float(f1[best])


def precision_recall_curves(matches: Matches, *, num_thresholds: int = 1001) -> PrecisionRecallCurves:
    """Compute the curves of each class with ground truth. The precision is 1 at thresholds without detections."""
    confidence = np.linspace(0.0, 1.0, num_thresholds)
    num_truths = matches.num_truths.sum(axis=0)
    class_ids = np.flatnonzero(num_truths)
    precisions, recalls, envelopes = [], [], []
    for class_id in class_ids.tolist():
        selected = (matches.class_ids == class_id) & matches.is_counted[0]
        is_match, scores = matches.is_match[0, selected], matches.scores[selected]
        true_positives = np.concatenate([[0], is_match.cumsum()])
        num_kept = np.searchsorted(-scores, -confidence, side="right")
        precisions.append(np.where(num_kept > 0, true_positives[num_kept] / np.maximum(num_kept, 1), 1.0))
        recalls.append(true_positives[num_kept] / num_truths[class_id])
        precision_by_rank = true_positives[1:] / np.arange(1, len(true_positives))
        best_from_rank = np.append(np.maximum.accumulate(precision_by_rank[::-1])[::-1], 0.0)
        envelopes.append(best_from_rank[np.searchsorted(true_positives[1:] / num_truths[class_id], RECALL_THRESHOLDS)])
    precision, recall = (np.array(rows, np.float64).reshape(-1, num_thresholds) for rows in (precisions, recalls))
    envelope = np.array(envelopes, np.float64).reshape(-1, len(RECALL_THRESHOLDS))
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(precision), where=total > 0)
    return PrecisionRecallCurves(confidence, precision, recall, f1, envelope, class_ids)


def detection_confusion_matrix(
    predictions: Sequence[ImagePredictions], ground_truth: Sequence[Sample], num_classes: int
) -> Int64[np.ndarray, "truth prediction"]:
    """Compute the confusion matrix.

    Rows are ground truth, and columns are predictions. The last row and the last column are the background.

    In each image, detections with a score of at least 0.25 are matched to ground-truth boxes with an IoU of at least
    0.5, in decreasing order of IoU and regardless of class. Unmatched ground-truth boxes are counted as missed
    (last column). Unmatched detections are false positives (last row).
    """
    table = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for prediction, sample in zip(predictions, ground_truth, strict=True):
        detections = prediction.select(prediction.scores >= CONFUSION_CONFIDENCE)
        truth = sample.without_crowds
        pairs = greedy_pairs(iou(detections.boxes, truth.boxes), CONFUSION_IOU)
        matched, matched_truth = np.array(pairs, np.int64).reshape(-1, 2).T
        np.add.at(table, (truth.class_ids[matched_truth], detections.class_ids[matched]), 1)
        table[:-1, -1] += np.bincount(np.delete(truth.class_ids, matched_truth), minlength=num_classes)
        table[-1, :-1] += np.bincount(np.delete(detections.class_ids, matched), minlength=num_classes)
    return table
