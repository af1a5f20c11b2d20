"""Box formats, IoU, non-maximum suppression and letterboxing.

A bounding box consists of four numbers in pixels, measured from the upper left corner of the image. Pixel centres have
half-integer coordinates. There are three formats:

* ``xyxy``: left, top, right, bottom. All functions use this format unless their name says otherwise.
* ``xywh``: left, top, width, height (COCO JSON).
* ``cxcywh``: centre x, centre y, width, height (YOLO text files, as fractions of the image width and height).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from chromabox.detect.models.architecture import Variant
from chromabox.errors import UsageError
from chromabox.io.images import Pixels as Pixels

Boxes = Float[np.ndarray, "boxes 4"]

#: Number of boxes in a block, and number of later boxes with which a block is compared at a time. The matrices of IoUs
#: then fit in the CPU cache.
_BLOCK_SIZE, _CHUNK_SIZE = 256, 512


def xyxy_to_xywh(boxes: Boxes) -> Boxes:
    """Convert left, top, right, bottom to left, top, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Convert left, top, right, bottom to centre x, centre y, width, height."""
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def box_area(boxes: Boxes) -> Float[np.ndarray, " boxes"]:
    """Return the area of each box. The area is 0 if right is less than left or bottom is less than top."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def iou(
    boxes1: Float[np.ndarray, "boxes1 4"], boxes2: Float[np.ndarray, "boxes2 4"]
) -> Float[np.ndarray, "boxes1 boxes2"]:
    """Return the intersection over union of all pairs of boxes, in [0, 1]. It is 0 if neither box has an area."""
    intersection = intersection_area(boxes1, boxes2)
    union = np.add.outer(box_area(boxes1), box_area(boxes2)) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def intersection_area(
    boxes1: Float[np.ndarray, "boxes1 4"], boxes2: Float[np.ndarray, "boxes2 4"]
) -> Float[np.ndarray, "boxes1 boxes2"]:
    """Return the area of the intersection of each pair of boxes."""
    # Contiguous copies of the columns make the inner loops four times as fast.
    columns = np.ascontiguousarray(boxes2.T)
    lengths = []
    for axis in (0, 1):
        overlap = np.minimum(boxes1[:, axis + 2, None], columns[axis + 2])
        overlap -= np.maximum(boxes1[:, axis, None], columns[axis])
        lengths.append(np.maximum(overlap, 0, out=overlap))
    lengths[0] *= lengths[1]
    return lengths[0]


def nms(
    boxes: Boxes,
    scores: Float[np.ndarray, " boxes"],
    class_ids: Int64[np.ndarray, " boxes"],
    iou_threshold: float = 0.45,
) -> Int64[np.ndarray, " kept"]:
    """Apply non-maximum suppression per class; return the indices of the kept boxes in decreasing order of score.

    A box is removed if its IoU with a kept box of the same class and a higher score exceeds ``iou_threshold``, which is
    in [0, 1]. Among boxes with equal scores, the box with the lower index is kept. IoUs are computed in float32.

    Raise UsageError if the threshold is out of range.
    """
    if not 0 <= iou_threshold <= 1:
        raise UsageError(f"iou is {iou_threshold}: expected a number from 0 to 1")
    order = np.lexsort((-scores, class_ids))
    sorted_boxes = boxes[order].astype(np.float32)
    ends = np.flatnonzero(np.diff(class_ids[order], append=-1)) + 1
    keep = np.zeros(len(order), bool)
    for start, end in zip((0, *ends), ends, strict=False):
        keep[start:end] = _greedy_nms(sorted_boxes[start:end], iou_threshold)
    kept = order[keep]
    return kept[np.argsort(-scores[kept], kind="stable")]


def _greedy_nms(boxes: Float32[np.ndarray, "boxes 4"], threshold: float) -> Bool[np.ndarray, " boxes"]:
    """Return which boxes of one class, given in decreasing order of score, are kept.

    The boxes are processed in blocks. The boxes of a block that have not been removed are compared with each other. The
    kept boxes are then compared with all later boxes.
    """
    keep = np.ones(len(boxes), bool)
    for start in range(0, len(boxes), _BLOCK_SIZE):
        block = start + np.flatnonzero(keep[start : start + _BLOCK_SIZE])
        overlaps = np.triu(_exceeds_iou(boxes[block], boxes[block], threshold), 1)
        # A box is kept if no earlier kept box overlaps it. The iteration converges to the unique solution.
        is_kept, previous = np.ones(len(block), bool), np.zeros(len(block), bool)
        while (is_kept != previous).any():
            previous = is_kept.copy()
            is_kept[:] = ~overlaps[previous].any(axis=0)
        keep[block] = is_kept
        later = start + _BLOCK_SIZE + np.flatnonzero(keep[start + _BLOCK_SIZE :])
        for chunk in np.split(later, range(_CHUNK_SIZE, len(later), _CHUNK_SIZE)):
            keep[chunk] = ~_exceeds_iou(boxes[block[is_kept]], boxes[chunk], threshold).any(axis=0)
    return keep


def _exceeds_iou(
    boxes1: Float32[np.ndarray, "boxes1 4"], boxes2: Float32[np.ndarray, "boxes2 4"], threshold: float
) -> Bool[np.ndarray, "boxes1 boxes2"]:
    """Return whether the IoU of each pair of boxes exceeds ``threshold``.

    For areas a and b and an intersection s, s / (a + b − s) > t is equivalent to s > t (a + b) / (1 + t).
    """
    factor = np.float32(threshold / (1 + threshold))
    return intersection_area(boxes1, boxes2) > np.add.outer(box_area(boxes1) * factor, box_area(boxes2) * factor)


@dataclass(frozen=True)
class Letterbox:
    """Placement of an image in the square input of a model: resized, centred and padded with grey.

    Args:
        image_size: height and width of the image in pixels.
        canvas_size: side length of the square in pixels.
        inner_size: height and width of the resized image inside the square, in pixels.
        fill: grey value of the padding, in [0, 1].
        sampling: alignment of the image with the resized image. With ``corners``, the centres of the corner pixels are
            aligned, as in Darknet. With ``edges``, the edges of the images are aligned, as in OpenCV and most other
            libraries. The interpolation is bilinear without antialiasing in both cases.
    """

    image_size: tuple[int, int]
    canvas_size: int
    inner_size: tuple[int, int]
    fill: float
    sampling: Literal["corners", "edges"]

    @property
    def top(self) -> int:
        """First row of the resized image in the square. If the padding is odd, the extra row is at the bottom."""
        return (self.canvas_size - self.inner_size[0]) // 2

    @property
    def left(self) -> int:
        """First column of the resized image in the square. If the padding is odd, the extra column is on the right."""
        return (self.canvas_size - self.inner_size[1]) // 2

    def apply_boxes(self, boxes: Boxes) -> Boxes:
        """Convert boxes from image coordinates to coordinates in the square."""
        scale, offset = self._scale_and_offset
        return boxes * scale + offset

    def invert_boxes(self, boxes: Boxes) -> Boxes:
        """Convert boxes from coordinates in the square to image coordinates. The boxes are not clipped to the image."""
        scale, offset = self._scale_and_offset
        return (boxes - offset) / scale

    def apply_image(self, pixels: Pixels) -> Float32[np.ndarray, "3 side side"]:
        """Return the letterboxed image: RGB in [0, 1]."""
        height, width = self.inner_size
        canvas = np.full((3, self.canvas_size, self.canvas_size), self.fill, np.float32)
        rows, columns = slice(self.top, self.top + height), slice(self.left, self.left + width)
        canvas[:, rows, columns] = resize_bilinear(pixels, self.inner_size, self.sampling)
        return canvas

    @property
    def _scale_and_offset(self) -> tuple[Float[np.ndarray, "4"], Float[np.ndarray, "4"]]:
        y, x = (inner / outer for inner, outer in zip(self.inner_size, self.image_size, strict=True))
        return np.array([x, y, x, y]), np.tile([float(self.left), float(self.top)], 2)


def letterbox_for(image_size: tuple[int, ...], canvas_size: int, variant: Variant) -> Letterbox:
    """Return the letterbox with which weights of a variant were trained. ``image_size`` is height and width.

    The longer side fills the square. The length of the shorter side is rounded down as in Darknet, or to the nearest
    integer as in Ultralytics.
    """
    longer_side = max(image_size)
    if variant.decode == "exp":
        height, width = (max(side * canvas_size // longer_side, 1) for side in image_size)
    else:
        height, width = (max(round(side * canvas_size / longer_side), 1) for side in image_size)
    sampling: Literal["corners", "edges"] = "corners" if variant.decode == "exp" else "edges"
    fill = variant.letterbox_grey
    return Letterbox((image_size[0], image_size[1]), canvas_size, (height, width), fill, sampling)


def resize_bilinear(
    pixels: Pixels, size: tuple[int, int], sampling: Literal["corners", "edges"]
) -> Float32[np.ndarray, "3 new_height new_width"]:
    """Resize an image to ``size`` (height, width) without antialiasing; return RGB in [0, 1].

    Each output pixel is interpolated from the four nearest input pixels. ``sampling`` is described in
    :class:`Letterbox`.
    """
    (top, bottom, row_weights), (left, right, column_weights) = (
        _bilinear_weights(old, new, sampling) for old, new in zip(pixels.shape[:2], size, strict=True)
    )
    # Rows are interpolated before columns, and each channel separately, because NumPy is fast on long contiguous rows.
    # The vertical weights include the scaling to [0, 1].
    unit = np.float32(1 / np.iinfo(pixels.dtype).max)
    bottom_weights = (row_weights * unit)[:, None]
    rows = pixels[top].transpose(2, 0, 1) * (unit - bottom_weights)
    rows += pixels[bottom].transpose(2, 0, 1) * bottom_weights
    resized, neighbours = rows.take(left, axis=2), rows.take(right, axis=2)
    neighbours -= resized
    neighbours *= column_weights
    resized += neighbours
    return resized


def _bilinear_weights(
    old_size: int, new_size: int, sampling: Literal["corners", "edges"]
) -> tuple[Int64[np.ndarray, " new"], Int64[np.ndarray, " new"], Float32[np.ndarray, " new"]]:
    """Return the two nearest input pixels of each output pixel along one axis, and the weight of the second."""
    position = np.clip((np.arange(new_size) + 0.5) * (old_size / new_size) - 0.5, 0, old_size - 1)
    if sampling == "corners" and new_size > 1:
        position = np.arange(new_size) * ((old_size - 1) / (new_size - 1))
    elif sampling == "corners":  # As in Darknet, a single output pixel has the value of the last input pixel.
        position = np.full(1, old_size - 1.0)
    first = np.minimum(np.floor(position).astype(np.int64), old_size - 1)
    return first, np.minimum(first + 1, old_size - 1), (position - first).astype(np.float32)
