"""Assignment of ground-truth boxes to anchors and cells of the detection heads, by the weight variant's rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from chromabox.detect.models.architecture import Architecture, Yolo

#: Rows of image index, class, and centre, width and height as fractions of the input size.
Targets = Float[Tensor, "boxes 6"]

#: An anchor matches boxes whose width and height differ from its own by less than this factor.
MAX_ANCHOR_RATIO = 4.0


@dataclass(frozen=True)
class Assignments:
    """Positive positions of one head: image, anchor, row and column of each, and the index of its target."""

    image: Int64[Tensor, " positions"]
    anchor: Int64[Tensor, " positions"]
    row: Int64[Tensor, " positions"]
    column: Int64[Tensor, " positions"]
    target: Int64[Tensor, " positions"]


def assign_neighbours(targets: Targets, anchors: Float[Tensor, "anchors 2"], rows: int, columns: int) -> Assignments:
    """Assign boxes by the rule of decode "sigmoid2": to all anchors of similar size, in up to three cells.

    The cells are the one that contains the centre of the box, and the horizontal and vertical neighbours nearest to
    the centre, unless they lie outside the head's grid. ``anchors`` contains widths and heights in cells.
    """
    grid_size = targets.new_tensor([columns, rows])
    ratio = (targets[:, 4:] * grid_size)[:, None] / anchors
    target, anchor = (torch.maximum(ratio, 1 / ratio).amax(-1) < MAX_ANCHOR_RATIO).nonzero(as_tuple=True)
    centre = targets[target, 2:4] * grid_size
    fraction = centre % 1
    before = (fraction < 0.5) & (centre > 1)
    after = (fraction > 0.5) & (centre < grid_size - 1)
    steps: tuple[tuple[Bool[Tensor, " positions"], int, int], ...] = (
        (torch.ones_like(target, dtype=torch.bool), 0, 0),
        (before[:, 0], -1, 0),
        (after[:, 0], 1, 0),
        (before[:, 1], 0, -1),
        (after[:, 1], 0, 1),
    )
    index = torch.cat([mask.nonzero()[:, 0] for mask, _, _ in steps])
    offset = torch.cat([targets.new_tensor([[x, y]]).expand(int(mask.sum()), 2) for mask, x, y in steps])
    column, row = _clamp_to_cells(centre[index] + offset, rows, columns)
    target = target[index]
    return Assignments(targets[target, 0].long(), anchor[index], row, column, target)


def assign_best_anchor(
    targets: Targets, architecture: Architecture, sizes: Sequence[tuple[int, int]]
) -> list[Assignments]:
    """Assign boxes by the rule of decode "exp": to the anchor with the highest shape IoU across all heads, in one cell.

    The cell is the one that contains the centre of the box. An anchor shared by two heads is assigned in both. Anchors
    that no head uses (YOLOv3-tiny has one) are excluded, so that every box is assigned. ``sizes`` contains the numbers
    of rows and columns of each head.
    """
    used = sorted({index for yolo in architecture.yolo_layers for index in yolo.mask})
    (rows, columns), stride = sizes[0], architecture.strides[0]
    shapes = targets.new_tensor([architecture.yolo_layers[0].anchors[index] for index in used])
    overlaps = shape_iou(targets[:, 4:] * targets.new_tensor([columns * stride, rows * stride]), shapes)
    best = torch.tensor(used, device=targets.device)[overlaps.argmax(1)]
    return [
        _assignments_for_head(targets, yolo, best, *size)
        for yolo, size in zip(architecture.yolo_layers, sizes, strict=True)
    ]


def _assignments_for_head(
    targets: Targets, yolo: Yolo, best: Int64[Tensor, " boxes"], rows: int, columns: int
) -> Assignments:
    mask = torch.tensor(yolo.mask, device=targets.device)
    target, anchor = (best[:, None] == mask).nonzero(as_tuple=True)
    column, row = _clamp_to_cells(targets[target, 2:4] * targets.new_tensor([columns, rows]), rows, columns)
    return Assignments(targets[target, 0].long(), anchor, row, column, target)


def _clamp_to_cells(
    centre: Float[Tensor, "positions 2"], rows: int, columns: int
) -> tuple[Int64[Tensor, " positions"], Int64[Tensor, " positions"]]:
    """Return column and row; a centre on the right or lower edge of the image belongs to the last cell."""
    cell = centre.floor().long()
    return cell[:, 0].clamp(0, columns - 1), cell[:, 1].clamp(0, rows - 1)


def shape_iou(sizes1: Float[Tensor, "boxes1 2"], sizes2: Float[Tensor, "boxes2 2"]) -> Float[Tensor, "boxes1 boxes2"]:
    """Compute the pairwise IoU of boxes (width, height) with a common centre."""
    intersection = torch.minimum(sizes1[:, None], sizes2).prod(-1)
    return intersection / (sizes1.prod(1)[:, None] + sizes2.prod(1) - intersection)
