"""Where the heads are to learn which boxes: each true box is given to anchors and cells, by the rule of the kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from chromabox.detect.models.architecture import Architecture, Yolo

#: Rows of picture index, class, and centre, width and height as parts of the picture's sides.
Targets = Float[Tensor, "boxes 6"]

#: An anchor is given boxes whose sides are neither this many times longer nor shorter than its own.
MAX_ANCHOR_RATIO = 4.0


@dataclass(frozen=True)
class Assignments:
    """The places on one head that learn a box: for each the picture, anchor, row and column, and the row of targets."""

    image: Int64[Tensor, " places"]
    anchor: Int64[Tensor, " places"]
    row: Int64[Tensor, " places"]
    column: Int64[Tensor, " places"]
    target: Int64[Tensor, " places"]


def assign_neighbours(targets: Targets, anchors: Float[Tensor, "anchors 2"], rows: int, columns: int) -> Assignments:
    """The rule of decode "sigmoid2": all anchors of about the box's size, at its cell and up to two neighbours.

    The neighbours are those nearest to the box's centre, left or right and above or below, where the head has them.
    ``anchors``: width and height in cells.
    """
    sides = targets.new_tensor([columns, rows])
    ratio = (targets[:, 4:] * sides)[:, None] / anchors
    truth, anchor = (torch.maximum(ratio, 1 / ratio).amax(-1) < MAX_ANCHOR_RATIO).nonzero(as_tuple=True)
    centre = targets[truth, 2:4] * sides
    fraction = centre % 1
    before = (fraction < 0.5) & (centre > 1)
    behind = (fraction > 0.5) & (centre < sides - 1)
    steps: tuple[tuple[Bool[Tensor, " places"], int, int], ...] = (
        (torch.ones_like(truth, dtype=torch.bool), 0, 0),
        (before[:, 0], -1, 0),
        (behind[:, 0], 1, 0),
        (before[:, 1], 0, -1),
        (behind[:, 1], 0, 1),
    )
    chosen = torch.cat([taken.nonzero()[:, 0] for taken, _, _ in steps])
    moved = torch.cat([targets.new_tensor([[x, y]]).expand(int(taken.sum()), 2) for taken, x, y in steps])
    column, row = _clamp_to_cells(centre[chosen] + moved, rows, columns)
    truth = truth[chosen]
    return Assignments(targets[truth, 0].long(), anchor[chosen], row, column, truth)


def assign_best_anchor(
    targets: Targets, architecture: Architecture, sizes: Sequence[tuple[int, int]]
) -> list[Assignments]:
    """The rule of decode "exp": of all heads' anchors the one of most alike shape, at the box's cell alone.

    An anchor that two heads share learns on both. Anchors of no head (YOLOv3-tiny has one) are passed over, so that
    every box is learnt somewhere. ``sizes``: rows and columns of each head.
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
    truth, anchor = (best[:, None] == mask).nonzero(as_tuple=True)
    column, row = _clamp_to_cells(targets[truth, 2:4] * targets.new_tensor([columns, rows]), rows, columns)
    return Assignments(targets[truth, 0].long(), anchor, row, column, truth)


def _clamp_to_cells(
    centre: Float[Tensor, "places 2"], rows: int, columns: int
) -> tuple[Int64[Tensor, " places"], Int64[Tensor, " places"]]:
    """Column and row; a centre on the right or lower edge belongs to the last ones."""
    cell = centre.floor().long()
    return cell[:, 0].clamp(0, columns - 1), cell[:, 1].clamp(0, rows - 1)


def shape_iou(sizes1: Float[Tensor, "some 2"], sizes2: Float[Tensor, "others 2"]) -> Float[Tensor, "some others"]:
    """Intersection over union of boxes (width, height) that have one centre."""
    shared = torch.minimum(sizes1[:, None], sizes2).prod(-1)
    return shared / (sizes1.prod(1)[:, None] + sizes2.prod(1) - shared)
