"""Which detections are right: each matched to a true box, once, for every threshold of overlap.

Everything later (AP on resampled pictures, curves of precision and recall) reads the matches, so boxes are compared
only once. Two rules: COCO's, and the variant of the course.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from chromabox.detect.boxes import areas, iou
from chromabox.detect.labelled import Labelled

#: COCO's thresholds of overlap, 0.5 to 0.95.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
#: Detections of a class that COCO counts in one picture, the surest first.
MOST_IN_PICTURE = 100

Boxes = Float64[np.ndarray, "boxes 4"]


@dataclass(frozen=True)
class Predicted:
    """What a detector found in one picture: boxes in its pixels (left, top, right, bottom), scores in [0, 1]."""

    boxes: Boxes
    scores: Float64[np.ndarray, " boxes"]
    classes: Int64[np.ndarray, " boxes"]

    def take(self, which: np.ndarray) -> "Predicted":
        """Those detections, by index or mask."""
        return Predicted(self.boxes[which], self.scores[which], self.classes[which])


@dataclass(frozen=True)
class Matches:
    """All detections that count, of all pictures, the surest first, and the number of true boxes.

    `picture` and `category` are indices. `right` says at each threshold whether the detection has a true box of its
    own. `truths` are the true boxes to find, of each picture and class; crowds are none.
    """

    picture: Int64[np.ndarray, " found"]
    category: Int64[np.ndarray, " found"]
    scores: Float64[np.ndarray, " found"]
    right: Bool[np.ndarray, "thresholds found"]
    counts: Bool[np.ndarray, "thresholds found"]
    """False where the detection lies on a crowd and is neither right nor wrong."""
    truths: Int64[np.ndarray, "pictures classes"]


def shares_inside(
    boxes: Float64[np.ndarray, "boxes 4"], others: Float64[np.ndarray, "others 4"]
) -> Float64[np.ndarray, "boxes others"]:
    """The share of each box's own area that lies in each of the others: COCO's overlap with crowds."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    own = np.broadcast_to(areas(boxes)[:, None], shared.shape)
    return np.divide(shared, own, out=np.zeros_like(shared), where=own > 0)


def match_coco(found: Sequence[Predicted], truth: Sequence[Labelled], classes: int) -> Matches:
    """COCO's rule, for each picture, class and threshold apart: the surest detection chooses first.

    It takes the free true box that it overlaps most, if by the threshold at least; else it may lie on a crowd (by the
    share of its own area), and then does not count. Source: COCO's evaluation code, as pycocotools has it.
    """
    parts = []
    for index, (here, one) in enumerate(zip(found, truth, strict=True)):
        for category in np.unique(here.classes).tolist():
            own = here.take(here.classes == category)
            own = own.take(np.argsort(-own.scores, kind="stable")[:MOST_IN_PICTURE])
            same = one.classes == category
            right, counts = _match(own.boxes, one.boxes[same & ~one.is_crowd], one.boxes[same & one.is_crowd])
            parts.append((np.full(len(own.scores), index), own.classes, own.scores, right, counts))
    return _joined(parts, _truths(truth, classes))


def _match(
    found: Float64[np.ndarray, "found 4"],
    truth: Float64[np.ndarray, "truth 4"],
    crowds: Float64[np.ndarray, "crowds 4"],
) -> tuple[Bool[np.ndarray, "10 found"], Bool[np.ndarray, "10 found"]]:
    """For detections in falling order of score: whether each is right, and whether it counts, at each threshold."""
    right = np.zeros((len(THRESHOLDS), len(found)), bool)
    shares = iou(found, truth)
    free = np.ones((len(THRESHOLDS), len(truth)), bool)
    levels = np.arange(len(THRESHOLDS))
    # Most detections overlap nothing by half; they need no turn.
    for index in np.flatnonzero(shares.max(axis=1, initial=0.0) >= THRESHOLDS[0]) if len(truth) else []:
        offers = np.where(free, shares[index], -1.0)
        # Among equal overlaps COCO's code takes the last.
        best = len(truth) - 1 - offers[:, ::-1].argmax(axis=1)
        taken = offers[levels, best] >= THRESHOLDS
        right[taken, index] = True
        free[levels[taken], best[taken]] = False
    on_crowd = shares_inside(found, crowds).max(axis=1, initial=0.0)
    return right, right | (on_crowd[None, :] < THRESHOLDS[:, None])


def match_course(found: Sequence[Predicted], truth: Sequence[Labelled], classes: int) -> Matches:
    """The course's variant: one matching for all thresholds, the greatest overlap first, whatever the scores.

    In each picture the pairs of a detection and a true box of one class that overlap by at least 0.5 are gone through
    from the greatest overlap down; a pair of which neither has a partner yet is a match, right at every threshold up
    to its overlap. Crowds, which its labels do not have, are left out of account.
    """
    parts = []
    for index, (here, one) in enumerate(zip(found, truth, strict=True)):
        boxes, categories = one.boxes[~one.is_crowd], one.classes[~one.is_crowd]
        shares = np.where(here.classes[:, None] == categories[None, :], iou(here.boxes, boxes), 0.0)
        right = np.zeros((len(THRESHOLDS), len(here.scores)), bool)
        for own, other in pairs_by_overlap(shares, THRESHOLDS[0]):
            right[:, own] = shares[own, other] >= THRESHOLDS
        parts.append((np.full(len(here.scores), index), here.classes, here.scores, right, np.ones_like(right)))
    return _joined(parts, _truths(truth, classes))


def pairs_by_overlap(shares: Float64[np.ndarray, "found truth"], least: float) -> list[tuple[int, int]]:
    """Pairs of row and column, each in one pair at most, from the greatest share down to the least allowed."""
    rows, columns = np.nonzero(shares >= least)
    order = np.argsort(-shares[rows, columns], kind="stable")
    pairs: list[tuple[int, int]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used[0] and column not in used[1]:
            pairs.append((row, column))
            used[0].add(row)
            used[1].add(column)
    return pairs


def _truths(truth: Sequence[Labelled], classes: int) -> Int64[np.ndarray, "pictures classes"]:
    counts = [np.bincount(one.classes[~one.is_crowd], minlength=classes) for one in truth]
    return np.array(counts, np.int64).reshape(len(truth), classes)


def _joined(parts: Sequence[tuple[np.ndarray, ...]], truths: Int64[np.ndarray, "pictures classes"]) -> Matches:
    """The parts of all pictures in falling order of score; equal scores in the order of the pictures, as COCO's."""
    if not parts:
        none, nothing = np.zeros(0, np.int64), np.zeros((len(THRESHOLDS), 0), bool)
        return Matches(none, none, np.zeros(0), nothing, nothing, truths)
    picture, category, scores, right, counts = (np.concatenate(column, axis=-1) for column in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(picture[order], category[order], scores[order], right[:, order], counts[:, order], truths)
