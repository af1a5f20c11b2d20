"""What a head's raw numbers mean: boxes in the net's square and a score for every class (Redmon and Farhadi 2018)."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from chromabox.detect.kinds import Kind
from chromabox.detect.layers import Architecture

#: Heads of one net differ in rows and columns, and may in their anchors.
Head = Float[Tensor, "batch _ numbers _ _"]


def decode(
    outputs: Sequence[Head], architecture: Architecture, kind: Kind, size: int
) -> tuple[Float[Tensor, "batch boxes 4"], Float[Tensor, "batch boxes classes"]]:
    """Boxes (left, top, right, bottom, in pixels of the net's square) and scores σ(objectness)·σ(class), all of them.

    Boxes stand head by head, in a head anchor by anchor, in an anchor row by row. ``size``: height of the square.
    """
    boxes, scores = [], []
    for output, yolo in zip(outputs, architecture.yolos, strict=True):
        numbers = output.float().movedim(2, -1)
        anchors = numbers.new_tensor(yolo.own_anchors)[:, None, None]
        cells = _cells(output.shape[-2], output.shape[-1], output.device)
        boxes.append(_corners(numbers[..., :4], cells, anchors, size / output.shape[-2], kind.decode).flatten(1, 3))
        scores.append((numbers[..., 4:5].sigmoid() * numbers[..., 5:].sigmoid()).flatten(1, 3))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def candidates(
    outputs: Sequence[Head], architecture: Architecture, kind: Kind, size: int, confidence: float
) -> list[tuple[Float[Tensor, "found 4"], Float[Tensor, " found"], Int64[Tensor, " found"]]]:
    """Of each picture every pair of box and class with a score above ``confidence``: boxes, scores, classes.

    The same numbers as :func:`decode`; only boxes whose objectness alone exceeds the threshold are looked at, since no
    score is higher, and those are few.
    """
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in outputs[0]]
    for output, yolo in zip(outputs, architecture.yolos, strict=True):
        objectness = output[:, :, 4].float().sigmoid()
        picture, anchor, row, column = torch.nonzero(objectness > confidence, as_tuple=True)
        numbers = output[picture, anchor, :, row, column].float()
        scores = objectness[picture, anchor, row, column, None] * numbers[:, 5:].sigmoid()
        place, category = torch.nonzero(scores > confidence, as_tuple=True)
        anchors = numbers.new_tensor(yolo.own_anchors)[anchor]
        cells = torch.stack([column, row], -1)
        boxes = _corners(numbers[:, :4], cells, anchors, size / output.shape[-2], kind.decode)
        for index, several in enumerate(found):
            own = picture[place] == index
            several.append((boxes[place[own]], scores[place[own], category[own]], category[own]))
    return [tuple(torch.cat(parts) for parts in zip(*several, strict=True)) for several in found]  # type: ignore[misc]


def _cells(rows: int, columns: int, device: torch.device) -> Int64[Tensor, "{rows} {columns} 2"]:
    """Column and row of every cell."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([column, row], -1)


def _corners(
    numbers: Float[Tensor, "*places 4"],
    cells: Int64[Tensor, "... 2"],
    anchors: Float[Tensor, "... 2"],
    stride: float,
    meaning: Literal["exp", "sigmoid2"],
) -> Float[Tensor, "*places 4"]:
    """Left, top, right, bottom from the four numbers t of boxes in ``cells`` (column, row)."""
    if meaning == "exp":
        centre = (numbers[..., :2].sigmoid() + cells) * stride
        sides = numbers[..., 2:].exp() * anchors
    else:
        centre = (2 * numbers[..., :2].sigmoid() - 0.5 + cells) * stride
        sides = (2 * numbers[..., 2:].sigmoid()).square() * anchors
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)
