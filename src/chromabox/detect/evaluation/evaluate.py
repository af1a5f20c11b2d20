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

from chromabox.detect.data.dataset import (
    DetectionDataset,
    remap_classes,
    uses_class_numbers,
    utf8_safe,
)
from chromabox.detect.data.duplicates import find_duplicates, fingerprints
from chromabox.detect.data.validate import MIN_BOXES_PER_CLASS
from chromabox.detect.evaluation import metrics
from chromabox.detect.evaluation.bootstrap import bias_corrected_interval, bootstrap_ap
from chromabox.detect.inference.predict import InferenceOptions, detect_files
from chromabox.detect.weights.onnx_model import DetectorModel
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError

#: Default confidence threshold for evaluation. It is low because AP depends on the whole range of scores.
MIN_EVAL_CONFIDENCE = 0.005
_NO_BOXES = "the images have no ground-truth boxes of the model's classes: expected a labelled dataset"


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """All metrics of a detector on a set of images. Fractions are in [0, 1]."""

    classes: tuple[str, ...]
    num_images: int
    box_counts: Int64[np.ndarray, " classes"]
    """Number of ground-truth boxes of each class."""
    coco: metrics.AveragePrecision
    ap_interval: tuple[float, float]
    """95 % confidence interval of ``coco.ap``, computed by resampling the images."""
    ap50_interval: tuple[float, float]
    course: metrics.AveragePrecision
    """AP as defined in the course."""
    pr_curves: metrics.PrecisionRecallCurves
    confusion_matrix: Int64[np.ndarray, "truth prediction"]
    """Rows are ground truth and columns are predictions. The last row and the last column are the background."""
    matches: metrics.Matches
    """Input of ``paired_difference``, which compares two detectors on the same images."""
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return all metrics as JSON values, without the curves and the matches. NaN becomes None.

        ``course`` contains the course's AP. ``best`` contains the confidence with the highest F1, and precision, recall
        and F1 at this confidence.
        """

        def finite(value: float) -> float | None:
            return float(value) if math.isfinite(value) else None

        coco, course = self.coco, self.course
        return {
            "ap": finite(coco.ap),
            "ap50": finite(coco.ap50),
            "ap_interval": [finite(end) for end in self.ap_interval],
            "ap50_interval": [finite(end) for end in self.ap50_interval],
            "course": {"ap": finite(course.ap), "ap50": finite(course.ap50)},
            "best": dict(zip(("confidence", "precision", "recall", "f1"), self.pr_curves.best_f1, strict=True)),
            "pictures": self.num_images,
            "boxes": int(self.box_counts.sum()),
            "per_class": {
                self.classes[index]: {
                    "ap": finite(coco.per_class[index]),
                    "ap50": finite(coco.table[0, index]),
                    "course_ap": finite(course.per_class[index]),
                    "course_ap50": finite(course.table[0, index]),
                    "boxes": int(self.box_counts[index]),
                }
                for index in np.flatnonzero(self.box_counts).tolist()
            },
            "confusion": self.confusion_matrix.tolist(),
            "warnings": [utf8_safe(warning) for warning in self.warnings],
        }


def evaluate_detector(
    detector: DetectorModel,
    data: DetectionDataset,
    *,
    size: int | None = None,
    confidence: float = MIN_EVAL_CONFIDENCE,
    iou: float = 0.45,
    num_resamples: int = 1000,
    show_progress: bool = False,
) -> DetectionEvaluation:
    """Evaluate a detector on all images of a dataset.

    Args:
        detector: the detector.
        data: labelled images. Their classes are matched to the classes of the detector by name; see
            :func:`~chromabox.detect.data.dataset.remap_classes`.
        size: side length of the square network input in pixels; None for the detector's default.
        confidence: confidence threshold in [0, 1].
        iou: IoU threshold of non-maximum suppression in [0, 1].
        num_resamples: number of bootstrap samples for the confidence intervals.
        show_progress: whether to show a progress bar.

    Raise ChromaboxError if the detector has none of the dataset's classes, or if the images have no ground-truth boxes.
    """
    remapped, unknown = remap_classes(data, detector.classes)
    if not any((~sample.is_crowd).any() for sample in remapped.samples):
        raise ChromaboxError(_NO_BOXES)  # Raised before detection, which can take long.
    warnings: list[str] = []
    if uses_class_numbers(data, detector.classes):
        warnings.append("the dataset has no class names; its class numbers are used as those of the model")
    if unknown:
        num_boxes, num_known = (sum(len(sample.boxes) for sample in each.samples) for each in (data, remapped))
        names = ", ".join(unknown)
        warnings.append(f"classes missing from the model: {names}; number of boxes ignored: {num_boxes - num_known}")
    predictions: list[metrics.ImagePredictions] = []
    options = InferenceOptions.for_detector(detector, confidence, iou, None, size)
    results = detect_files([sample.path for sample in remapped.samples], detector, options)
    with progress_bar("detecting", len(remapped.samples), unit="images", show=show_progress) as tick:
        for result in results:
            tick()
            if isinstance(result, str):
                warnings.append(f"{result}; evaluated as an image without detections")
                predictions.append(metrics.ImagePredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)))
            else:
                boxes, scores = result.xyxy.astype(np.float64), result.confidence.astype(np.float64)
                predictions.append(metrics.ImagePredictions(boxes, scores, result.class_id))
    evaluation = evaluate_predictions(predictions, remapped, num_resamples=num_resamples)
    return replace(evaluation, warnings=(*warnings, *evaluation.warnings))


def evaluate_predictions(
    predictions: Sequence[metrics.ImagePredictions], data: DetectionDataset, *, num_resamples: int = 1000
) -> DetectionEvaluation:
    """Evaluate predictions, one for each image of the dataset in the same order, with the dataset's class indices.

    Raise ChromaboxError if the images have no ground-truth boxes.
    """
    truth, num_classes = data.samples, len(data.classes)
    matches = metrics.match_coco(predictions, truth, num_classes)
    box_counts = matches.num_truths.sum(axis=0)
    num_occurring, num_rare = int((box_counts > 0).sum()), int((box_counts[box_counts > 0] < MIN_BOXES_PER_CLASS).sum())
    if not num_occurring:
        raise ChromaboxError(_NO_BOXES)
    fewer = f"AP is not reliable for classes with fewer than {MIN_BOXES_PER_CLASS} boxes"
    coco = metrics.coco_average_precision(predictions, truth, num_classes)
    bootstrap = bootstrap_ap(matches, num_resamples=num_resamples)
    return DetectionEvaluation(
        classes=data.classes,
        num_images=len(truth),
        box_counts=box_counts,
        coco=coco,
        ap_interval=bias_corrected_interval(bootstrap["ap"], coco.ap),
        ap50_interval=bias_corrected_interval(bootstrap["ap50"], coco.ap50),
        course=metrics.course_average_precision(metrics.match_course(predictions, truth, num_classes)),
        pr_curves=metrics.precision_recall_curves(matches),
        confusion_matrix=metrics.detection_confusion_matrix(predictions, truth, num_classes),
        matches=matches,
        warnings=(f"{fewer}: {num_rare} of {num_occurring} classes",) if num_rare else (),
    )


def find_leaks(data: DetectionDataset, split: str, *, max_images: int = 5000) -> list[tuple[Path, Path]]:
    """Return pairs of duplicates or near-duplicates. Only the first image of each pair is in ``split``.

    The result is empty for a dataset with more than ``max_images`` images, because the check would take minutes.
    ``chromabox data check`` has no such limit.
    """
    paths = list(dict.fromkeys(sample.path for sample in data.samples))
    if len(data.splits) < 2 or len(paths) > max_images:
        return []
    chosen = {sample.path for sample in data.split(split).samples}
    pairs = [(pair.first, pair.second) for pair in find_duplicates(fingerprints(paths)[0])]
    leaks = [(first, second) for first, second in pairs if (first in chosen) != (second in chosen)]
    return [(first, second) if first in chosen else (second, first) for first, second in leaks]
