"""Evaluation of a detector on labelled images.

The metrics are COCO's AP with its confidence interval, the course's AP, precision-recall curves and the confusion
matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from chromabox.detect.data.dataset import DetectionDataset, remap_classes, utf8_safe
from chromabox.detect.data.duplicates import find_duplicates, fingerprints
from chromabox.detect.data.validate import MIN_BOXES_PER_CLASS
from chromabox.detect.evaluation.bootstrap import bias_corrected_interval, bootstrap_ap
from chromabox.detect.evaluation.metrics import (
    AveragePrecision,
    ImagePredictions,
    Matches,
    PrecisionRecallCurves,
    coco_average_precision,
    course_average_precision,
    detection_confusion_matrix,
    match_coco,
    match_course,
    precision_recall_curves,
)
from chromabox.detect.inference.predict import detect_files
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError

#: Confidence threshold for evaluation. It is low, since AP depends on the whole range of scores.
MIN_EVAL_CONFIDENCE = 0.005


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """All metrics of one detector on one set of images; fractions are in [0, 1]."""

    classes: tuple[str, ...]
    num_images: int
    box_counts: Int64[np.ndarray, " classes"]
    """Number of ground-truth boxes of each class."""
    coco: AveragePrecision
    ap_interval: tuple[float, float]
    """95 % confidence interval over images."""
    ap50_interval: tuple[float, float]
    course: AveragePrecision
    pr_curves: PrecisionRecallCurves
    confusion_matrix: Int64[np.ndarray, "truth prediction"]
    """The last row and column are the background."""
    matches: Matches
    """Input of ``paired_difference`` for comparison with another detector on the same images."""
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return everything except the curves and the matches as JSON values; NaN becomes None.

        ``course`` is the course's variant of AP. ``best`` contains the confidence with the highest F1, and precision,
        recall and F1 at this confidence.
        """
        best = dict(zip(("confidence", "precision", "recall", "f1"), self.pr_curves.best_f1, strict=True))
        coco, course = self.coco, self.course
        per_class = {
            self.classes[index]: {
                "ap": _finite_or_none(coco.per_class[index]),
                "ap50": _finite_or_none(coco.table[0, index]),
                "course_ap": _finite_or_none(course.per_class[index]),
                "course_ap50": _finite_or_none(course.table[0, index]),
                "boxes": int(self.box_counts[index]),
            }
            for index in np.flatnonzero(self.box_counts).tolist()
        }
        return {
            "ap": _finite_or_none(coco.ap),
            "ap50": _finite_or_none(coco.ap50),
            "ap_interval": [_finite_or_none(end) for end in self.ap_interval],
            "ap50_interval": [_finite_or_none(end) for end in self.ap50_interval],
            "course": {"ap": _finite_or_none(course.ap), "ap50": _finite_or_none(course.ap50)},
            "best": best,
            "pictures": self.num_images,
            "boxes": int(self.box_counts.sum()),
            "per_class": per_class,
            "confusion": self.confusion_matrix.tolist(),
            "warnings": [utf8_safe(warning) for warning in self.warnings],
        }


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def evaluate_detector(
    detector: DetectorModel,
    data: DetectionDataset,
    *,
    size: int | None = None,
    confidence: float = MIN_EVAL_CONFIDENCE,
    iou: float = 0.45,
    num_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool = False,
) -> DetectionEvaluation:
    """Evaluate a detector on all images of a dataset.

    Args:
        detector: the detector.
        data: labelled images; its classes are matched to those of the detector by name, see ``remap_classes``.
        size: side length of the square network input in pixels; None for the detector's default.
        confidence: confidence threshold in [0, 1].
        iou: IoU threshold of non-maximum suppression in [0, 1].
        num_resamples: number of bootstrap samples for the confidence intervals.
        seed: random seed of the bootstrap.
        show_progress: whether to show a progress bar.

    Raise ChromaboxError if the detector has none of the dataset's classes, or if there is no ground-truth box.
    """
    remapped, unknown = remap_classes(data, detector.classes)
    warnings: list[str] = []
    if unknown:
        num_ignored = sum(len(sample.boxes) for sample in data.samples)
        num_ignored -= sum(len(sample.boxes) for sample in remapped.samples)
        warnings.append(f"classes missing from the model: {', '.join(unknown)}; {num_ignored} boxes are ignored")
    predictions: list[ImagePredictions] = []
    results = detect_files(
        [sample.path for sample in remapped.samples], detector, confidence=confidence, iou=iou, classes=None, size=size
    )
    with progress_bar("detecting", len(remapped.samples), unit="images", show=show_progress) as tick:
        for result in results:
            tick()
            if result.error is not None:
                warnings.append(f"{result.error}; evaluated as an image without detections")
                predictions.append(ImagePredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)))
            elif result.detections is not None:
                found = result.detections
                boxes, scores = found.xyxy.astype(np.float64), found.confidence.astype(np.float64)
                predictions.append(ImagePredictions(boxes, scores, found.class_id))
    evaluation = evaluate_predictions(predictions, remapped, num_resamples=num_resamples, seed=seed)
    return replace(evaluation, warnings=(*warnings, *evaluation.warnings))


def evaluate_predictions(
    predictions: Sequence[ImagePredictions], data: DetectionDataset, *, num_resamples: int = 1000, seed: int = 0
) -> DetectionEvaluation:
    """Evaluate the predictions for each image of a dataset, given in its order and with its class indices.

    Raise ChromaboxError if there is no ground-truth box.
    """
    truth, num_classes = data.samples, len(data.classes)
    matches = match_coco(predictions, truth, num_classes)
    box_counts = matches.num_truths.sum(axis=0)
    if not box_counts.any():
        raise ChromaboxError("the images have no ground-truth boxes: expected a labelled dataset")
    occurring = box_counts[box_counts > 0]
    num_rare, warnings = int((occurring < MIN_BOXES_PER_CLASS).sum()), []
    if num_rare:
        fewer = f"fewer than {MIN_BOXES_PER_CLASS} boxes: their AP is not reliable"
        warnings.append(f"{num_rare} of {len(occurring)} classes have {fewer}")
    coco = coco_average_precision(predictions, truth, num_classes)
    bootstrap = bootstrap_ap(matches, num_resamples=num_resamples, seed=seed)
    return DetectionEvaluation(
        classes=data.classes,
        num_images=len(truth),
        box_counts=box_counts,
        coco=coco,
        ap_interval=bias_corrected_interval(bootstrap["ap"], coco.ap),
        ap50_interval=bias_corrected_interval(bootstrap["ap50"], coco.ap50),
        course=course_average_precision(match_course(predictions, truth, num_classes)),
        pr_curves=precision_recall_curves(matches),
        confusion_matrix=detection_confusion_matrix(predictions, truth, num_classes),
        matches=matches,
        warnings=tuple(warnings),
    )


def default_split(data: DetectionDataset) -> str | None:
    """Return the default split for evaluation: validation, else test, else None for the whole dataset."""
    names = [name for prefix in ("val", "test") for name in data.splits if name.startswith(prefix)]
    return names[0] if names else None


def find_leaks(data: DetectionDataset, split: str, *, max_images: int = 5000) -> list[tuple[Path, Path]]:
    """Return pairs of duplicates or near-duplicates with the first image inside and the second outside ``split``.

    A dataset with more than ``max_images`` images is not checked, since that would take minutes; the result is
    then empty. ``chromabox data check`` has no limit.
    """
    splits = {sample.path: sample.split for sample in data.samples}
    if len(data.splits) < 2 or len(splits) > max_images:
        return []
    duplicates = find_duplicates(fingerprints(list(splits))[0])
    leaks = [pair for pair in duplicates if (splits[pair.first] == split) != (splits[pair.second] == split)]
    return [(pair.first, pair.second) if splits[pair.first] == split else (pair.second, pair.first) for pair in leaks]
