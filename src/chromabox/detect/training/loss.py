"""What a detector is trained to make small: box, objectness and class terms, by the rules of its weights' kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.models.architecture import Architecture
from chromabox.detect.models.darknet import Variant, decode_all
from chromabox.detect.training.assigner import Assignments, Targets, assign_best_anchor, assign_neighbours
from chromabox.errors import UsageError

#: Heads of one net differ in rows and columns, and may in their anchors.
HeadOutput = Float[Tensor, "batch _ numbers _ _"]
#: Of each of a head's places one number.
ObjectnessMap = Float[Tensor, "batch _ _ _"]

#: Shares of the terms for decode "sigmoid2", of a net of three heads, 80 classes and pictures of 640 pixels.
BOX_WEIGHT, OBJECTNESS_WEIGHT, CLASS_WEIGHT = 0.05, 1.0, 0.5
#: What the objectness of each head counts, the finest first: it has most cells, and nearly all are background.
HEAD_BALANCE = (4.0, 1.0, 0.4)
#: Overlap with a true box above which a background cell of decode "exp" is not told to be background.
IGNORE_IOU = 0.7


@dataclass(frozen=True)
class DetectionLoss:
    """The loss of a detector's raw numbers against true boxes.

    Called with the heads' numbers in file order and targets [boxes, 6] (picture index, class, and centre, width and
    height as parts of the square's sides), it gives ``box``, ``objectness`` and ``class``, each as it counts, and their
    sum ``loss``. It is computed in float32, or in the numbers' own precision if that is higher. ``known`` may give the
    objectness of each head that is known from elsewhere, 0 to 1: so sure is background to be, instead of 0.

    Args:
        architecture, kind: of the net.
        classes: how many the net scores.
        cls_pw, obj_pw: weight of positives in the class and objectness terms.
        size: side in pixels of the square that the net is shown.
        recipe: with decode "sigmoid2", ``course``: the mean times the pictures of the batch, and a single class is not
            learnt; ``default``: the mean, and a single class is learnt like any other. "exp" knows one way.

    Raises UsageError for options that do not fit the net.
    """

    architecture: Architecture
    variant: Variant
    num_classes: int
    cls_pw: float = field(default=1.0, kw_only=True)
    obj_pw: float = field(default=1.0, kw_only=True)
    size: int = field(kw_only=True)
    recipe: Literal["course", "default"] = field(default="course", kw_only=True)

    def __post_init__(self) -> None:
        if self.num_classes != self.architecture.num_classes:
            raise UsageError(f"classes is {self.num_classes}: the net scores {self.architecture.num_classes}")
        if not (self.cls_pw > 0 and self.obj_pw > 0):
            raise UsageError(f"cls_pw is {self.cls_pw} and obj_pw {self.obj_pw}: weights above 0 are right")
        if self.variant.decode == "sigmoid2" and len(self.architecture.yolo_layers) > len(HEAD_BALANCE):
            heads = len(self.architecture.yolo_layers)
            raise UsageError(f"{self.architecture.name}: has {heads} heads; at most {len(HEAD_BALANCE)} can be trained")

    def __call__(
        self, outputs: Sequence[HeadOutput], targets: Targets, teacher_objectness: Sequence[ObjectnessMap] | None = None
    ) -> dict[str, Tensor]:
        precise = [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
        targets = targets.to(precise[0])
        goals = [torch.zeros_like(output[:, :, 4]) for output in precise]
        if teacher_objectness is not None:
            goals = [goal + own for goal, own in zip(goals, teacher_objectness, strict=True)]
        take = self._darknet_loss if self.variant.decode == "exp" else self._ultralytics_loss
        terms = take(precise, targets, goals)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def assign(self, outputs: Sequence[HeadOutput], targets: Targets) -> list[Assignments]:
        """Where each head learns which of the true boxes."""
        sizes = [(output.shape[-2], output.shape[-1]) for output in outputs]
        if self.variant.decode == "exp":
            return assign_best_anchor(targets, self.architecture, sizes)
        heads = zip(self.architecture.yolo_layers, self.architecture.strides, sizes, strict=True)
        return [
            assign_neighbours(targets, targets.new_tensor(yolo.head_anchors) / stride, *size)
            for yolo, stride, size in heads
        ]

    def loss_weights(self, batch_size: int) -> dict[str, float]:
        """What the sum of the heads' terms counts. Of decode "exp" terms are sums over places, of "sigmoid2" means."""
        if self.variant.decode == "exp":
            return dict.fromkeys(("box", "objectness", "class"), 1 / batch_size)
        share = 3 / len(self.architecture.yolo_layers) * (batch_size if self.recipe == "course" else 1)
        return {
            "box": BOX_WEIGHT * share,
            "objectness": OBJECTNESS_WEIGHT * share * (self.size / 640) ** 2,
            "class": CLASS_WEIGHT * share * self.num_classes / 80,
        }

    def _ultralytics_loss(
        self, outputs: Sequence[HeadOutput], targets: Targets, objectness_targets: Sequence[ObjectnessMap]
    ) -> dict[str, Tensor]:
        """Box 1 − CIoU, objectness towards the overlap that the box has reached, independent classes; all are means."""
        box, objectness, category = (outputs[0].new_zeros(()) for _ in range(3))
        strides = self.architecture.strides
        for index, places in enumerate(self.assign(outputs, targets)):
            anchors = targets.new_tensor(self.architecture.yolo_layers[index].head_anchors) / strides[index]
            own = self._ultralytics_head_loss(outputs[index], anchors, places, targets, objectness_targets[index])
            box = box + own[0]
            objectness = objectness + HEAD_BALANCE[sorted(strides).index(strides[index])] * own[1]
            category = category + own[2]
        terms = {"box": box, "objectness": objectness, "class": category}
        return {name: share * terms[name] for name, share in self.loss_weights(len(outputs[0])).items()}

    def _ultralytics_head_loss(
        self,
        output: HeadOutput,
        anchors: Float[Tensor, "anchors 2"],
        assignments: Assignments,
        targets: Targets,
        objectness_target: ObjectnessMap,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = output.shape[-2:]
        box = category = output.new_zeros(())
        if len(assignments.target):
            chosen, wanted = _gather(output, assignments), targets[assignments.target]
            sides = (2 * chosen[:, 2:4].sigmoid()).square() * anchors[assignments.anchor]
            own = torch.cat([2 * chosen[:, :2].sigmoid() - 0.5, sides], 1)
            overlaps = ciou(own, _to_cell_units(wanted, assignments, rows, columns))
            box = (1 - overlaps).mean()
            # Of several boxes at one place the best counts, whatever the order in which they come.
            objectness_target.view(-1).scatter_reduce_(
                0, _flat_indices(assignments, objectness_target), overlaps.detach().clamp(0), "amax"
            )
            if self.num_classes > 1 or self.recipe == "default":
                category = self.class_loss(chosen, wanted).mean()
        return box, self.objectness_loss(output, objectness_target).mean(), category

    def _darknet_loss(
        self, outputs: Sequence[HeadOutput], targets: Targets, objectness_targets: Sequence[ObjectnessMap]
    ) -> dict[str, Tensor]:
        """YOLOv3's own (Redmon and Farhadi 2018, section 2): sums over boxes and cells, divided by the pictures.

        Of the squared error of width and height half is taken, whose slope is the difference that darknet descends by.
        """
        box, objectness, category = (outputs[0].new_zeros(()) for _ in range(3))
        ignored = ignore_mask(outputs, targets, self.architecture, self.variant, IGNORE_IOU)
        for index, (output, places) in enumerate(zip(outputs, self.assign(outputs, targets), strict=True)):
            chosen, wanted = _gather(output, places), targets[places.target]
            inside = _to_cell_units(wanted, places, output.shape[-2], output.shape[-1])
            stride, anchors = self.architecture.strides[index], self.architecture.yolo_layers[index].head_anchors
            sides = (inside[:, 2:] * stride / inside.new_tensor(anchors)[places.anchor]).log()
            errors = F.binary_cross_entropy_with_logits(chosen[:, :2], inside[:, :2].clamp(0, 1), reduction="none")
            errors = errors + (chosen[:, 2:4] - sides).square() / 2
            box = box + (errors * (2 - wanted[:, 4:5] * wanted[:, 5:6])).sum()
            category = category + self.class_loss(chosen, wanted).sum()
            learnt = (places.image, places.anchor, places.row, places.column)
            objectness_targets[index][learnt], ignored[index][learnt] = 1, False
            objectness = objectness + self.objectness_loss(output, objectness_targets[index])[~ignored[index]].sum()
        pictures = len(outputs[0])
        return {"box": box / pictures, "objectness": objectness / pictures, "class": category / pictures}

    def class_loss(
        self, predicted: Float[Tensor, "places numbers"], matched_targets: Targets
    ) -> Float[Tensor, "places _"]:
        """Binary cross-entropy of every class at every place, its positives counted ``cls_pw``-fold."""
        goal = F.one_hot(matched_targets[:, 1].long(), self.num_classes).to(predicted)
        weight = predicted.new_tensor(self.cls_pw)
        return F.binary_cross_entropy_with_logits(predicted[:, 5:], goal, reduction="none", pos_weight=weight)

    def objectness_loss(
        self, output: HeadOutput, objectness_target: Float[Tensor, "batch anchors rows columns"]
    ) -> Tensor:
        weight = output.new_tensor(self.obj_pw)
        return F.binary_cross_entropy_with_logits(
            output[:, :, 4], objectness_target, reduction="none", pos_weight=weight
        )


def ciou(boxes1: Float[Tensor, "boxes 4"], boxes2: Float[Tensor, "boxes 4"]) -> Float[Tensor, " boxes"]:
    """CIoU of pairs of boxes (centre, width, height), above −1.5 and up to 1 (Zheng et al. 2020, equations 8 to 11).

    Overlap, less the distance of the centres in squared diagonals of the box around both, less how the shapes differ.
    """
    low, high = (boxes1[:, :2] - boxes1[:, 2:] / 2, boxes1[:, :2] + boxes1[:, 2:] / 2)
    other_low, other_high = (boxes2[:, :2] - boxes2[:, 2:] / 2, boxes2[:, :2] + boxes2[:, 2:] / 2)
    shared = (torch.minimum(high, other_high) - torch.maximum(low, other_low)).clamp(0).prod(1)
    tiny = 1e-9
    iou = shared / (boxes1[:, 2:].prod(1) + boxes2[:, 2:].prod(1) - shared + tiny)
    diagonal = (torch.maximum(high, other_high) - torch.minimum(low, other_low)).square().sum(1)
    distance = (boxes1[:, :2] - boxes2[:, :2]).square().sum(1)
    angles = torch.atan2(boxes1[:, 2], boxes1[:, 3]) - torch.atan2(boxes2[:, 2], boxes2[:, 3])
    shape = 4 / math.pi**2 * angles.square()
    with torch.no_grad():
        trade = shape / (1 - iou + shape + tiny)
    return iou - distance / (diagonal + tiny) - trade * shape


@torch.no_grad()
def ignore_mask(
    outputs: Sequence[HeadOutput], targets: Targets, architecture: Architecture, variant: Variant, min_iou: float
) -> list[Bool[Tensor, "batch anchors _ _"]]:
    """Where each head's box overlaps a true box of its picture by more than ``least``."""
    height, width = (outputs[0].shape[side] * architecture.strides[0] for side in (-2, -1))
    boxes, _ = decode_all([output[:, :, :5] for output in outputs], architecture, variant, height)
    corners = torch.cat([targets[:, 2:4] - targets[:, 4:] / 2, targets[:, 2:4] + targets[:, 4:] / 2], 1)
    corners = corners.to(boxes) * boxes.new_tensor([width, height, width, height])
    found = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for picture in targets[:, 0].long().unique().tolist():
        found[picture] = _overlaps_any(boxes[picture], corners[targets[:, 0] == picture], min_iou)
    shapes = [output[:, :, 4].shape for output in outputs]
    parts = found.split([math.prod(shape[1:]) for shape in shapes], 1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _overlaps_any(
    boxes: Float[Tensor, "some 4"], ground_truth: Float[Tensor, "others 4"], min_iou: float
) -> Bool[Tensor, " some"]:
    """Whether a box (left, top, right, bottom) overlaps any of the others by more than ``least``.

    Intersection over union s / (a + b − s) exceeds t where s exceeds t (a + b) / (1 + t).
    """
    left, top, right, bottom = boxes.T[..., None]
    x0, y0, x1, y1 = ground_truth.T
    wide = torch.minimum(right, x1).sub_(torch.maximum(left, x0)).clamp_(0)
    high = torch.minimum(bottom, y1).sub_(torch.maximum(top, y0)).clamp_(0)
    areas = ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0)).mul_(min_iou / (1 + min_iou))
    return (wide.mul_(high) > areas).any(1)


def _gather(output: HeadOutput, assignments: Assignments) -> Float[Tensor, "places numbers"]:
    """The numbers of those places. Moving them last for the whole head first would double the time of its slopes."""
    return output[assignments.image, assignments.anchor, :, assignments.row, assignments.column]


def _flat_indices(
    assignments: Assignments, objectness_target: Float[Tensor, "batch anchors rows columns"]
) -> Int64[Tensor, " places"]:
    """The places as indices into the flattened ``goal``."""
    _, anchors, rows, columns = objectness_target.shape
    return ((assignments.image * anchors + assignments.anchor) * rows + assignments.row) * columns + assignments.column


def _to_cell_units(
    matched_targets: Targets, assignments: Assignments, rows: int, columns: int
) -> Float[Tensor, "places 4"]:
    """The true boxes counted in cells, their centres from the upper left corner of the cell that learns them."""
    boxes = matched_targets[:, 2:] * matched_targets.new_tensor([columns, rows, columns, rows])
    return boxes - torch.stack([assignments.column, assignments.row, *[torch.zeros_like(assignments.row)] * 2], 1)
