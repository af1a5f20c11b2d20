"""Boxes: their formats, how much they overlap, which of many remain, and the way into the net's square and back.

A box is four numbers in pixels from the picture's upper left corner; pixel centres lie at halves. Three formats:

* ``xyxy``: left, top, right, bottom. Everything here takes and gives this one unless its name says otherwise.
* ``xywh``: left, top, width, height (COCO's JSON).
* ``cxcywh``: centre, width, height (YOLO's text files, there divided by the picture's width and height).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8, UInt16

from chromabox.detect.models.darknet import Variant
from chromabox.errors import UsageError

Boxes = Float[np.ndarray, "boxes 4"]
Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]

#: Boxes that are compared with each other, and with how many later ones, at once: matrices that fit into the
#: processor's cache.
_BLOCK_SIZE = 256
_CHUNK_SIZE = 512


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def xywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Left, top, right, bottom, from left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Centre, width, height."""
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Left, top, right, bottom, from centre, width, height."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def box_area(boxes: Boxes) -> Float[np.ndarray, " boxes"]:
    """Width times height; 0 for a box whose right lies left of its left, or whose bottom lies above its top."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def iou(boxes1: Float[np.ndarray, "some 4"], boxes2: Float[np.ndarray, "others 4"]) -> Float[np.ndarray, "some others"]:
    """Intersection over union of every one with every other, 0 to 1; 0 where both are empty."""
    shared = _intersection_area(boxes1, boxes2)
    union = np.add.outer(box_area(boxes1), box_area(boxes2)) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _intersection_area(
    boxes1: Float[np.ndarray, "some 4"], boxes2: Float[np.ndarray, "others 4"]
) -> Float[np.ndarray, "some others"]:
    wide, high = (_overlap_lengths(boxes1, boxes2, axis) for axis in (0, 1))
    wide *= high
    return wide


def _overlap_lengths(
    boxes1: Float[np.ndarray, "some 4"], boxes2: Float[np.ndarray, "others 4"], axis: int
) -> Float[np.ndarray, "some others"]:
    """How long two boxes overlap across (axis 0) or down (1)."""
    # Copied out of their rows, neighbours in a loop lie beside each other: that alone is worth a factor of four.
    begins, ends = (np.ascontiguousarray(boxes2[:, place]) for place in (axis, axis + 2))
    sides = np.minimum(boxes1[:, axis + 2, None], ends)
    sides -= np.maximum(boxes1[:, axis, None], begins)
    return np.maximum(sides, 0, out=sides)


def nms(
    boxes: Boxes,
    scores: Float[np.ndarray, " boxes"],
    class_ids: Int64[np.ndarray, " boxes"],
    iou_threshold: float = 0.45,
) -> Int64[np.ndarray, " kept"]:
    """Non-maximum suppression, class by class: indices of the boxes that remain, the highest score first.

    A box goes if one of its class with a higher score (of equal ones: that stands earlier) remains and overlaps it by
    more than ``iou``, 0 to 1. Computed in float32.
    """
    if not 0 <= iou_threshold <= 1:
        raise UsageError(f"iou is {iou_threshold}: give a number from 0 to 1")
    by_score = np.argsort(-scores, kind="stable")
    order = by_score[np.argsort(class_ids[by_score], kind="stable")]
    ordered = boxes[order].astype(np.float32)
    ends = np.flatnonzero(np.diff(class_ids[order], append=-1)) + 1
    keep = np.zeros(len(order), bool)
    for begin, end in zip((0, *ends), ends, strict=False):
        keep[begin:end] = _greedy_nms(ordered[begin:end], iou_threshold)
    kept = order[keep]
    return kept[np.argsort(-scores[kept], kind="stable")]


def _greedy_nms(boxes: Float32[np.ndarray, "boxes 4"], threshold: float) -> Bool[np.ndarray, " boxes"]:
    """Which boxes of one class remain, given in the order of their scores.

    Block by block: those still there are compared with each other, those of them that remain with all later ones.
    """
    keep = np.ones(len(boxes), bool)
    for begin in range(0, len(boxes), _BLOCK_SIZE):
        block = begin + np.flatnonzero(keep[begin : begin + _BLOCK_SIZE])
        overlaps = _exceeds_iou(boxes[block], boxes[block], threshold)
        keep[block] = _suppress_within_block(overlaps)
        block = block[keep[block]]
        later = begin + _BLOCK_SIZE + np.flatnonzero(keep[begin + _BLOCK_SIZE :])
        for part in np.split(later, range(_CHUNK_SIZE, len(later), _CHUNK_SIZE)):
            keep[part] = ~_exceeds_iou(boxes[block], boxes[part], threshold).any(axis=0)
    return keep


def _exceeds_iou(
    boxes1: Float32[np.ndarray, "some 4"], boxes2: Float32[np.ndarray, "others 4"], threshold: float
) -> Bool[np.ndarray, "some others"]:
    """Whether intersection over union exceeds ``threshold``: s / (a + b − s) > t where s > t (a + b) / (1 + t)."""
    share = np.float32(threshold / (1 + threshold))
    return _intersection_area(boxes1, boxes2) > np.add.outer(box_area(boxes1) * share, box_area(boxes2) * share)


def _suppress_within_block(overlaps: Bool[np.ndarray, "boxes boxes"]) -> Bool[np.ndarray, " boxes"]:
    """Which remain of boxes in the order of their scores: one after another strikes out those it overlaps.

    A row of the matrix is one whole number, whose bits are its columns: striking out is one "or".
    """
    rows = np.packbits(overlaps, axis=1, bitorder="little")
    width = rows.shape[1]
    data = rows.tobytes()
    gone = 0
    keep = np.ones(len(overlaps), bool)
    # A box that overlaps itself alone stays and strikes out nothing.
    for index in np.flatnonzero(overlaps.sum(axis=1) > 1).tolist():
        if gone >> index & 1:
            keep[index] = False
        else:
            gone |= int.from_bytes(data[index * width : (index + 1) * width], "little")
    return keep


@dataclass(frozen=True)
class Letterbox:
    """How a picture is laid into a net's square: shrunk or enlarged to whole pixels, centred, grey around.

    Args:
        picture: height and width of the picture.
        side: of the square.
        inner: height and width of the picture inside of it.
        top, left: where it begins there.
        grey: in [0, 1], of what is around.
        sampling: ``corners``: the outermost pixels' centres fall on each other, as darknet resizes; ``edges``: the
            pictures' edges do, as OpenCV and most others resize. Both bilinear, without smoothing.
    """

    image_size: tuple[int, int]
    canvas_size: int
    inner_size: tuple[int, int]
    top: int
    left: int
    fill: float
    sampling: Literal["corners", "edges"]

    def apply_boxes(self, boxes: Boxes) -> Boxes:
        """Boxes of the picture, as they lie in the square."""
        return boxes * self._scale + self._offset

    def invert_boxes(self, boxes: Boxes) -> Boxes:
        """Boxes in the square, as they lie in the picture; the inverse of :meth:`boxes_in`. Nothing is cut off."""
        return (boxes - self._offset) / self._scale

    def apply_image(self, pixels: Pixels) -> Float32[np.ndarray, "3 side side"]:
        """The picture laid into the square: RGB in [0, 1]."""
        height, width = self.inner_size
        square = np.full((3, self.canvas_size, self.canvas_size), self.fill, np.float32)
        rows, columns = slice(self.top, self.top + height), slice(self.left, self.left + width)
        square[:, rows, columns] = resize_bilinear(pixels, self.inner_size, self.sampling)
        return square

    @property
    def _scale(self) -> Float[np.ndarray, "4"]:
        y, x = (inner / outer for inner, outer in zip(self.inner_size, self.image_size, strict=True))
        return np.array([x, y, x, y])

    @property
    def _offset(self) -> Float[np.ndarray, "4"]:
        return np.array([self.left, self.top, self.left, self.top], np.float64)


def darknet_letterbox(image_size: tuple[int, int], canvas_size: int, *, fill: float = 0.5) -> Letterbox:
    """Darknet's way: the longer side fills the square, the shorter one and the offset are rounded down."""
    height, width = image_size
    longer = max(height, width)
    inner = max(height * canvas_size // longer, 1), max(width * canvas_size // longer, 1)
    return Letterbox(
        image_size, canvas_size, inner, (canvas_size - inner[0]) // 2, (canvas_size - inner[1]) // 2, fill, "corners"
    )


def ultralytics_letterbox(image_size: tuple[int, int], canvas_size: int, *, fill: float = 114 / 255) -> Letterbox:
    """Ultralytics' way: sides are rounded to the nearest, of an odd remainder the larger half lies right and below."""
    height, width = image_size
    longer = max(height, width)
    inner = max(round(height * canvas_size / longer), 1), max(round(width * canvas_size / longer), 1)
    return Letterbox(
        image_size, canvas_size, inner, (canvas_size - inner[0]) // 2, (canvas_size - inner[1]) // 2, fill, "edges"
    )


def resize_bilinear(
    pixels: Pixels, size: tuple[int, int], sampling: Literal["corners", "edges"]
) -> Float32[np.ndarray, "3 new_height new_width"]:
    """Bilinear and without smoothing, in [0, 1]: of each new pixel only its four neighbours are read."""
    (top, bottom, down), (left, right, across) = (
        _bilinear_weights(old, new, sampling) for old, new in zip(pixels.shape[:2], size, strict=True)
    )
    # First down, for whole rows, then across; plane by plane, since long runs of numbers are what processors are good
    # at. The values' own scale goes into the first weights.
    unit = np.float32(1 / np.iinfo(pixels.dtype).max)
    lower = (down * unit)[:, None]
    rows = pixels[top].transpose(2, 0, 1) * (unit - lower)
    rows += pixels[bottom].transpose(2, 0, 1) * lower
    here, there = rows.take(left, axis=2), rows.take(right, axis=2)
    there -= here
    there *= across
    here += there
    return here


def _bilinear_weights(
    old_size: int, new_size: int, sampling: Literal["corners", "edges"]
) -> tuple[Int64[np.ndarray, " new"], Int64[np.ndarray, " new"], Float32[np.ndarray, " new"]]:
    """Of every new pixel on one side the old one before it, the one behind it, and the share of the latter."""
    if sampling == "corners":
        # A single pixel shows the last one, as darknet's does.
        place = np.full(1, old_size - 1.0) if new_size == 1 else np.arange(new_size) * ((old_size - 1) / (new_size - 1))
    else:
        place = np.clip((np.arange(new_size) + 0.5) * (old_size / new_size) - 0.5, 0, old_size - 1)
    before = np.minimum(np.floor(place).astype(np.int64), old_size - 1)
    return before, np.minimum(before + 1, old_size - 1), (place - before).astype(np.float32)


def letterbox_for(image_size: tuple[int, ...], canvas_size: int, variant: Variant) -> Letterbox:
    """The way into the square that a kind of weights was trained with; ``picture`` is height and width."""
    make = darknet_letterbox if variant.decode == "exp" else ultralytics_letterbox
    return make((image_size[0], image_size[1]), canvas_size, fill=variant.letterbox_grey)
