"""What a detector is worth on labelled pictures: COCO's AP with its interval, the course's AP, curves, confusions."""

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
from chromabox.detect.inference.predict import AnyDetector, detect_files, unwrap_detector
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError

#: What is found with less certainty does not count; AP reads the whole range of scores, so it is low.
MIN_EVAL_CONFIDENCE = 0.005


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """All measures of one detector on one set of pictures; fractions in [0, 1]."""

    classes: tuple[str, ...]
    num_images: int
    box_counts: Int64[np.ndarray, " classes"]
    """True boxes of each class."""
    coco: AveragePrecision
    ap_interval: tuple[float, float]
    """95 %, over pictures."""
    ap50_interval: tuple[float, float]
    course: AveragePrecision
    pr_curves: PrecisionRecallCurves
    confusion_matrix: Int64[np.ndarray, "truth prediction"]
    """The last row and column is "nothing"."""
    matches: Matches
    """For `paired_difference` with another detector on the same pictures."""
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything but the curves and the matches, as JSON values of full precision; None where nothing is to find.

        ``course`` is the course's variant; ``best`` is the confidence with the greatest F1 and what is reached there.
        """
        confidence, precision, recall, f1 = self.pr_curves.best_f1
        return {
            "ap": _finite_or_none(self.coco.ap),
            "ap50": _finite_or_none(self.coco.ap50),
            "ap_interval": [_finite_or_none(end) for end in self.ap_interval],
            "ap50_interval": [_finite_or_none(end) for end in self.ap50_interval],
            "course": {"ap": _finite_or_none(self.course.ap), "ap50": _finite_or_none(self.course.ap50)},
            "best": {"confidence": confidence, "precision": precision, "recall": recall, "f1": f1},
            "pictures": self.num_images,
            "boxes": int(self.box_counts.sum()),
            "per_class": {
                self.classes[index]: self._class_metrics(index) for index in np.flatnonzero(self.box_counts).tolist()
            },
            "confusion": self.confusion_matrix.tolist(),
            "warnings": [utf8_safe(warning) for warning in self.warnings],
        }

    def _class_metrics(self, index: int) -> dict[str, float | int | None]:
        return {
            "ap": _finite_or_none(self.coco.per_class[index]),
            "ap50": _finite_or_none(self.coco.table[0, index]),
            "course_ap": _finite_or_none(self.course.per_class[index]),
            "course_ap50": _finite_or_none(self.course.table[0, index]),
            "boxes": int(self.box_counts[index]),
        }


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def evaluate_detector(
    detector: AnyDetector,
    data: DetectionDataset,
    *,
    size: int | None = None,
    confidence: float = MIN_EVAL_CONFIDENCE,
    iou: float = 0.45,
    num_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool = False,
) -> DetectionEvaluation:
    """Measure a detector on all pictures of a set.

    Args:
        detector: as loaded or made ready.
        data: its classes are matched to the net's by name, see `in_classes_of`.
        size: side of the net's square; the detector's own if None.
        confidence: the least that counts.
        iou: overlap above which the less sure of two boxes of a class goes.
        draws: resampled sets for the intervals.
        seed: of the resampling.

    Raises ChromaboxError where the net knows none of the classes, or no box is left to find.
    """
    trained = unwrap_detector(detector)
    own, unknown = remap_classes(data, trained.classes)
    if unknown:
        left = sum(len(one.boxes) for one in data.samples) - sum(len(one.boxes) for one in own.samples)
        unknown = (f"the net does not know {', '.join(unknown)}: {left} boxes are left out of account",)
    predicted: list[ImagePredictions] = []
    failed: list[str] = []
    found = detect_files(
        [one.path for one in own.samples], detector, confidence=confidence, iou=iou, classes=None, size=size
    )
    with progress_bar("detecting", len(own.samples), unit="pictures", show=show_progress) as tick:
        for result in found:
            tick()
            failed += [] if result.error is None else [f"{result.error}; counted as nothing found"]
            predicted.append(_to_predictions(result.detections))
    evaluation = evaluate_predictions(predicted, own, num_resamples=num_resamples, seed=seed)
    return replace(evaluation, warnings=(*unknown, *failed, *evaluation.warnings))


def _to_predictions(detections: Any) -> ImagePredictions:
    """supervision's detections, or None for a file that could not be read, in float64."""
    if detections is None or len(detections) == 0:
        return ImagePredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    return ImagePredictions(
        detections.xyxy.astype(np.float64),
        detections.confidence.astype(np.float64),
        detections.class_id.astype(np.int64),
    )


def evaluate_predictions(
    predictions: Sequence[ImagePredictions], data: DetectionDataset, *, num_resamples: int = 1000, seed: int = 0
) -> DetectionEvaluation:
    """Measure what was found in each picture of a set, in its order and its classes.

    Raises ChromaboxError where there is no box to find.
    """
    truth, classes = data.samples, len(data.classes)
    matches = match_coco(predictions, truth, classes)
    boxes = matches.num_truths.sum(axis=0)
    if not boxes.any():
        raise ChromaboxError(
            "the pictures have no boxes to be found; labelled pictures are needed to measure a detector"
        )
    coco = coco_average_precision(predictions, truth, classes)
    drawn = bootstrap_ap(matches, num_resamples=num_resamples, seed=seed)
    return DetectionEvaluation(
        classes=data.classes,
        num_images=len(truth),
        box_counts=boxes,
        coco=coco,
        ap_interval=bias_corrected_interval(drawn.ap, coco.ap),
        ap50_interval=bias_corrected_interval(drawn.ap50, coco.ap50),
        course=course_average_precision(match_course(predictions, truth, classes)),
        pr_curves=precision_recall_curves(matches),
        confusion_matrix=detection_confusion_matrix(predictions, truth, classes),
        matches=matches,
        warnings=tuple(_warn_rare_classes(boxes)),
    )


def _warn_rare_classes(box_counts: Int64[np.ndarray, " classes"]) -> list[str]:
    thin = int(((box_counts > 0) & (box_counts < MIN_BOXES_PER_CLASS)).sum())
    known = int((box_counts > 0).sum())
    return (
        [f"{thin} of {known} classes have under {MIN_BOXES_PER_CLASS} boxes: their own figures are chance"]
        if thin
        else []
    )


def default_split(data: DetectionDataset) -> str | None:
    """The split to measure on if none is named: validation, else test, else None for everything."""
    for word in ("val", "test"):
        own = [name for name in data.splits if name.startswith(word)]
        if own:
            return own[0]
    return None


def find_leaks(data: DetectionDataset, split: str, *, max_images: int = 5000) -> list[tuple[Path, Path]]:
    """Pairs of a picture inside of `split` and one outside that are the same or nearly.

    Empty without a look where the set has more than `limit` pictures, which would take minutes: `chromabox data check`
    looks at any number.
    """
    splits = {one.path: one.split for one in data.samples}
    if len(data.splits) < 2 or len(splits) > max_images:
        return []
    twins = find_duplicates(fingerprints(list(splits))[0])
    pairs = [(pair.first, pair.second) for pair in twins]
    crossing = [pair for pair in pairs if (splits[pair[0]] == split) != (splits[pair[1]] == split)]
    return [(first, second) if splits[first] == split else (second, first) for first, second in crossing]
