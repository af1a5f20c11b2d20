"""What a detector is worth on labelled pictures: COCO's AP with its interval, the course's AP, curves, confusions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from chromabox.detect.data.dataset import DetectionSet, in_classes_of, legible
from chromabox.detect.data.duplicates import find_twins, fingerprints
from chromabox.detect.data.validate import FEW_BOXES
from chromabox.detect.evaluation.bootstrap import interval, resample
from chromabox.detect.evaluation.metrics import (
    AveragePrecision,
    Curves,
    Matches,
    Predicted,
    coco_average_precision,
    confusion,
    course_average_precision,
    curves,
    match_coco,
    match_course,
)
from chromabox.detect.inference.predict import Detector, detect_files, trained_of
from chromabox.engine.logger import progress
from chromabox.errors import ChromaboxError

#: What is found with less certainty does not count; AP reads the whole range of scores, so it is low.
LEAST_CONFIDENCE = 0.005


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """All measures of one detector on one set of pictures; fractions in [0, 1]."""

    classes: tuple[str, ...]
    pictures: int
    boxes: Int64[np.ndarray, " classes"]
    """True boxes of each class."""
    coco: AveragePrecision
    ap_interval: tuple[float, float]
    """95 %, over pictures."""
    ap50_interval: tuple[float, float]
    course: AveragePrecision
    curves: Curves
    confusion: Int64[np.ndarray, "truth prediction"]
    """The last row and column is "nothing"."""
    matches: Matches
    """For `paired_difference` with another detector on the same pictures."""
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything but the curves and the matches, as JSON values of full precision; None where nothing is to find.

        ``course`` is the course's variant; ``best`` is the confidence with the greatest F1 and what is reached there.
        """
        confidence, precision, recall, f1 = self.curves.best
        return {
            "ap": _number(self.coco.ap),
            "ap50": _number(self.coco.ap50),
            "ap_interval": [_number(end) for end in self.ap_interval],
            "ap50_interval": [_number(end) for end in self.ap50_interval],
            "course": {"ap": _number(self.course.ap), "ap50": _number(self.course.ap50)},
            "best": {"confidence": confidence, "precision": precision, "recall": recall, "f1": f1},
            "pictures": self.pictures,
            "boxes": int(self.boxes.sum()),
            "per_class": {self.classes[index]: self._of_class(index) for index in np.flatnonzero(self.boxes).tolist()},
            "confusion": self.confusion.tolist(),
            "warnings": [legible(warning) for warning in self.warnings],
        }

    def _of_class(self, index: int) -> dict[str, float | int | None]:
        return {
            "ap": _number(self.coco.per_class[index]),
            "ap50": _number(self.coco.table[0, index]),
            "course_ap": _number(self.course.per_class[index]),
            "course_ap50": _number(self.course.table[0, index]),
            "boxes": int(self.boxes[index]),
        }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def evaluate_detector(
    detector: Detector,
    data: DetectionSet,
    *,
    size: int | None = None,
    confidence: float = LEAST_CONFIDENCE,
    iou: float = 0.45,
    draws: int = 1000,
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
    trained = trained_of(detector)
    own, unknown = in_classes_of(data, trained.classes)
    if unknown:
        left = sum(len(one.boxes) for one in data.pictures) - sum(len(one.boxes) for one in own.pictures)
        unknown = (f"the net does not know {', '.join(unknown)}: {left} boxes are left out of account",)
    predicted: list[Predicted] = []
    failed: list[str] = []
    found = detect_files(
        [one.path for one in own.pictures], detector, confidence=confidence, iou=iou, classes=None, size=size
    )
    with progress("detecting", len(own.pictures), unit="pictures", show=show_progress) as tick:
        for result in found:
            tick()
            failed += [] if result.error is None else [f"{result.error}; counted as nothing found"]
            predicted.append(_predicted(result.detections))
    evaluation = evaluate_predictions(predicted, own, draws=draws, seed=seed)
    return replace(evaluation, warnings=(*unknown, *failed, *evaluation.warnings))


def _predicted(detections: Any) -> Predicted:
    """supervision's detections, or None for a file that could not be read, in float64."""
    if detections is None or len(detections) == 0:
        return Predicted(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    return Predicted(
        detections.xyxy.astype(np.float64),
        detections.confidence.astype(np.float64),
        detections.class_id.astype(np.int64),
    )


def evaluate_predictions(
    predicted: Sequence[Predicted], data: DetectionSet, *, draws: int = 1000, seed: int = 0
) -> DetectionEvaluation:
    """Measure what was found in each picture of a set, in its order and its classes.

    Raises ChromaboxError where there is no box to find.
    """
    truth, classes = data.pictures, len(data.classes)
    matches = match_coco(predicted, truth, classes)
    boxes = matches.truths.sum(axis=0)
    if not boxes.any():
        raise ChromaboxError(
            "the pictures have no boxes to be found; labelled pictures are needed to measure a detector"
        )
    coco = coco_average_precision(predicted, truth, classes)
    drawn = resample(matches, draws=draws, seed=seed)
    return DetectionEvaluation(
        classes=data.classes,
        pictures=len(truth),
        boxes=boxes,
        coco=coco,
        ap_interval=interval(drawn.ap, coco.ap),
        ap50_interval=interval(drawn.ap50, coco.ap50),
        course=course_average_precision(match_course(predicted, truth, classes)),
        curves=curves(matches),
        confusion=confusion(predicted, truth, classes),
        matches=matches,
        warnings=tuple(_thin(boxes)),
    )


def _thin(boxes: Int64[np.ndarray, " classes"]) -> list[str]:
    thin = int(((boxes > 0) & (boxes < FEW_BOXES)).sum())
    known = int((boxes > 0).sum())
    return [f"{thin} of {known} classes have under {FEW_BOXES} boxes: their own figures are chance"] if thin else []


def held_out_split(data: DetectionSet) -> str | None:
    """The split to measure on if none is named: validation, else test, else None for everything."""
    for word in ("val", "test"):
        own = [name for name in data.splits if name.startswith(word)]
        if own:
            return own[0]
    return None


def shared_pictures(data: DetectionSet, split: str, *, limit: int = 5000) -> list[tuple[Path, Path]]:
    """Pairs of a picture inside of `split` and one outside that are the same or nearly.

    Empty without a look where the set has more than `limit` pictures, which would take minutes: `chromabox data check`
    looks at any number.
    """
    splits = {one.path: one.split for one in data.pictures}
    if len(data.splits) < 2 or len(splits) > limit:
        return []
    twins = find_twins(fingerprints(list(splits))[0])
    pairs = [(pair.first, pair.second) for pair in twins]
    crossing = [pair for pair in pairs if (splits[pair[0]] == split) != (splits[pair[1]] == split)]
    return [(first, second) if splits[first] == split else (second, first) for first, second in crossing]
