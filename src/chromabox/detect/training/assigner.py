"""Assignment of ground-truth boxes to anchors and cells of the detection heads. The rule depends on the variant."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from chromabox.detect.models.architecture import Architecture

#: Ground-truth boxes. Each row: image index, class, and centre, width and height as fractions of the input size.
Targets = Float[Tensor, "boxes 6"]

#: An anchor matches boxes whose width and height differ from its own by less than this factor.
MAX_ANCHOR_RATIO = 4.0


@dataclass(frozen=True)
class Assignments:
    """Positions of a head with assigned ground-truth boxes; ``target`` is the index of the box of each position."""

    image: Int64[Tensor, " positions"]
    anchor: Int64[Tensor, " positions"]
    row: Int64[Tensor, " positions"]
    column: Int64[Tensor, " positions"]
    target: Int64[Tensor, " positions"]

    @property
    def position(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index that selects the positions in a tensor [batch, anchors, rows, columns]."""
        return self.image, self.anchor, self.row, self.column


def assign_neighbours(targets: Targets, anchors: Float[Tensor, "anchors 2"], rows: int, columns: int) -> Assignments:
    """Assign boxes by the rule for decode "sigmoid2": to all anchors of similar size, in up to three cells.

    One cell contains the centre of the box. The others are the horizontal and the vertical neighbour nearest to the
    centre, unless they are outside the grid. ``anchors`` contains the widths and heights of the anchors in cells.
    """
    grid_size = targets.new_tensor([columns, rows])
    ratio = (targets[:, 4:] * grid_size)[:, None] / anchors
    target, anchor = (torch.maximum(ratio, 1 / ratio).amax(-1) < MAX_ANCHOR_RATIO).nonzero(as_tuple=True)
    centre = targets[target, 2:4] * grid_size
    fraction = centre % 1
    before = (fraction < 0.5) & (centre > 1)
    after = (fraction > 0.5) & (centre < grid_size - 1)
    masks = torch.stack([torch.ones_like(before[:, 0]), before[:, 0], after[:, 0], before[:, 1], after[:, 1]])
    step, index = masks.nonzero(as_tuple=True)
    offset = targets.new_tensor([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])[step]
    column, row = _clamp_to_cells(centre[index] + offset, rows, columns)
    target = target[index]
    return Assignments(targets[target, 0].long(), anchor[index], row, column, target)


def assign_best_anchor(
    targets: Targets, architecture: Architecture, sizes: Sequence[tuple[int, int]]
) -> list[Assignments]:
    """Assign boxes by the rule for decode "exp": to the anchor with the highest shape IoU of all heads, in one cell.

    The shape IoU is the IoU of boxes with a common centre. The cell contains the centre of the ground-truth box. An
    anchor shared by two heads is assigned in both heads. Anchors that no head uses (YOLOv3-tiny has one) are excluded,
    so that every box is assigned. ``sizes`` contains the numbers of rows and columns of each head.
    """
    used = sorted({index for yolo in architecture.yolo_layers for index in yolo.mask})
    (rows, columns), stride = sizes[0], architecture.strides[0]
    shapes = targets.new_tensor([architecture.yolo_layers[0].anchors[index] for index in used])
    boxes = targets[:, 4:] * targets.new_tensor([columns * stride, rows * stride])
    intersection = torch.minimum(boxes[:, None], shapes).prod(-1)
    overlaps = intersection / (boxes.prod(1)[:, None] + shapes.prod(1) - intersection)
    best = torch.tensor(used, device=targets.device)[overlaps.argmax(1)]
    heads = []
    for yolo, (rows, columns) in zip(architecture.yolo_layers, sizes, strict=True):
        mask = torch.tensor(yolo.mask, device=targets.device)
        target, anchor = (best[:, None] == mask).nonzero(as_tuple=True)
        column, row = _clamp_to_cells(targets[target, 2:4] * targets.new_tensor([columns, rows]), rows, columns)
        heads.append(Assignments(targets[target, 0].long(), anchor, row, column, target))
    return heads


def _clamp_to_cells(
    centre: Float[Tensor, "positions 2"], rows: int, columns: int
) -> tuple[Int64[Tensor, " positions"], Int64[Tensor, " positions"]]:
    """Return the column and row of the cell of each centre.

    A centre on the right or lower edge of the image belongs to the last column or row.
    """
    cell = centre.floor().long()
    return cell[:, 0].clamp(0, columns - 1), cell[:, 1].clamp(0, rows - 1)
