"""Detection loss: box, objectness and class terms, as defined by the weight variant of the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from chromabox.detect.models.architecture import Architecture, Variant
from chromabox.detect.models.darknet import HeadOutput, decode_all
from chromabox.detect.training.assigner import Assignments, Targets, assign_best_anchor, assign_neighbours
from chromabox.errors import UsageError

#: One value per image, anchor, row and column of a head.
ObjectnessMap = Float[Tensor, "batch _ _ _"]

#: Weights of the loss terms for decode "sigmoid2", with three heads, 80 classes and images of 640 × 640 pixels.
BOX_WEIGHT, OBJECTNESS_WEIGHT, CLASS_WEIGHT = 0.05, 1.0, 0.5
#: Weights of the heads' objectness terms, finest head first. Finer heads have more cells, mostly background.
HEAD_BALANCE = (4.0, 1.0, 0.4)
#: IoU with a ground-truth box above which the objectness term for decode "exp" ignores a background prediction.
IGNORE_IOU = 0.7


@dataclass(frozen=True)
class DetectionLoss:
    """Loss of a detector's raw outputs with respect to the ground truth.

    The loss is called with the raw outputs of all heads in the order of the architecture, each of shape [batch,
    anchors, 5 + classes, rows, columns], and with targets [boxes, 6] (image index, class, and centre, width and height
    as fractions of the input size). The optional ``teacher_objectness`` contains the objectness targets of the
    background, in [0, 1], for each head [batch, anchors, rows, columns]; the default is 0.

    The result contains the weighted terms ``box``, ``objectness`` and ``class``, and their sum ``loss``. They are
    computed in float32, or in the precision of the outputs if that is higher.

    Args:
        architecture: architecture of the model.
        variant: weight variant of the model. Its ``decode`` selects the loss: Darknet's for ``exp``,
            Ultralytics' for ``sigmoid2``.
        num_classes: number of classes of the model.
        cls_pw: weight of positive samples in the class term (``pos_weight``), above 0.
        obj_pw: weight of positive samples in the objectness term (``pos_weight``), above 0.
        size: side length of the square network input in pixels.
        recipe: only used with decode ``sigmoid2``. ``course``: the terms, which are means, are multiplied by the batch
            size, and the class term is 0 for a model with a single class. ``default``: the terms are means, and the
            class term is always used.

    Raise UsageError if an argument is invalid or does not match the model.
    """

    architecture: Architecture
    variant: Variant
    num_classes: int
    cls_pw: float = field(default=1.0, kw_only=True)
    obj_pw: float = field(default=1.0, kw_only=True)
    size: int = field(kw_only=True)
    recipe: Literal["course", "default"] = field(default="course", kw_only=True)

    def __post_init__(self) -> None:
        expected, heads = self.architecture.num_classes, len(self.architecture.yolo_layers)
        if self.num_classes != expected:
            raise UsageError(
                f"num_classes is {self.num_classes}: expected {expected}, the number of classes of the model"
            )
        if not (self.cls_pw > 0 and self.obj_pw > 0):
            raise UsageError(f"cls_pw is {self.cls_pw} and obj_pw is {self.obj_pw}: expected weights above 0")
        if self.variant.decode == "sigmoid2" and heads > len(HEAD_BALANCE):
            raise UsageError(f"{self.architecture.name} has {heads} heads: expected at most {len(HEAD_BALANCE)}")

    def __call__(
        self, outputs: Sequence[HeadOutput], targets: Targets, teacher_objectness: Sequence[ObjectnessMap] | None = None
    ) -> dict[str, Tensor]:
        outputs = [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]
        targets = targets.to(outputs[0])
        if teacher_objectness is None:
            objectness_targets = [torch.zeros_like(output[:, :, 4]) for output in outputs]
        else:
            objectness_targets = [teacher.to(targets, copy=True) for teacher in teacher_objectness]
        compute = self._darknet_loss if self.variant.decode == "exp" else self._ultralytics_loss
        terms = compute(outputs, targets, objectness_targets)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def assign(self, outputs: Sequence[HeadOutput], targets: Targets) -> list[Assignments]:
        """Assign ground-truth boxes to the anchors and cells of each head."""
        sizes = [(output.shape[-2], output.shape[-1]) for output in outputs]
        if self.variant.decode == "exp":
            return assign_best_anchor(targets, self.architecture, sizes)
        return [
            assign_neighbours(targets, targets.new_tensor(yolo.head_anchors) / stride, *size)
            for yolo, stride, size in zip(self.architecture.yolo_layers, self.architecture.strides, sizes, strict=True)
        ]

    def loss_weights(self, batch_size: int) -> dict[str, float]:
        """Return the weight of each term.

        The terms of decode "exp" are sums over positions, which are divided by the batch size. The terms of decode
        "sigmoid2" are means.
        """
        if self.variant.decode == "exp":
            return dict.fromkeys(("box", "objectness", "class"), 1 / batch_size)
        factor = 3 / len(self.architecture.yolo_layers) * (batch_size if self.recipe == "course" else 1)
        return {
            "box": BOX_WEIGHT * factor,
            "objectness": OBJECTNESS_WEIGHT * factor * (self.size / 640) ** 2,
            "class": CLASS_WEIGHT * factor * self.num_classes / 80,
        }

    def _ultralytics_loss(
        self, outputs: Sequence[HeadOutput], targets: Targets, objectness_targets: Sequence[ObjectnessMap]
    ) -> dict[str, Tensor]:
        """Compute the terms for decode "sigmoid2", which are means.

        The box term is 1 − CIoU. The objectness term has the CIoU as target. The class term treats the classes as
        independent.
        """
        box, objectness, category = (outputs[0].new_zeros(()) for _ in range(3))
        strides = self.architecture.strides
        for index, (output, assignments) in enumerate(zip(outputs, self.assign(outputs, targets), strict=True)):
            target, stride = objectness_targets[index], strides[index]
            if len(assignments.target):
                anchors = targets.new_tensor(self.architecture.yolo_layers[index].head_anchors) / stride
                predicted, matched_targets = _gather(output, assignments), targets[assignments.target]
                sizes = (2 * predicted[:, 2:4].sigmoid()).square() * anchors[assignments.anchor]
                boxes = torch.cat([2 * predicted[:, :2].sigmoid() - 0.5, sizes], 1)
                overlaps = ciou(boxes, _to_cell_units(matched_targets, assignments, *output.shape[-2:]))
                box = box + (1 - overlaps).mean()
                # If several boxes share a position, the highest CIoU is the target, in any order of the boxes.
                positions = torch.arange(target.numel(), device=target.device).view_as(target)[assignments.position]
                target.view(-1).scatter_reduce_(0, positions, overlaps.detach().clamp(0), "amax")
                if self.num_classes > 1 or self.recipe == "default":
                    category = category + self.class_loss(predicted, matched_targets).mean()
            balance = HEAD_BALANCE[sorted(strides).index(stride)]
            objectness = objectness + balance * self.objectness_loss(output, target).mean()
        terms = {"box": box, "objectness": objectness, "class": category}
        return {name: weight * terms[name] for name, weight in self.loss_weights(len(outputs[0])).items()}

    def _darknet_loss(
        self, outputs: Sequence[HeadOutput], targets: Targets, objectness_targets: Sequence[ObjectnessMap]
    ) -> dict[str, Tensor]:
        """Compute the terms of YOLOv3 (Redmon and Farhadi 2018, section 2): sums, divided by the batch size.

        The squared errors of width and height are multiplied by 1/2, so that their gradients are the plain differences,
        as in Darknet.
        """
        box, objectness, category = (outputs[0].new_zeros(()) for _ in range(3))
        ignored = ignore_mask(outputs, targets, self.architecture, self.variant, IGNORE_IOU)
        for index, (output, assignments) in enumerate(zip(outputs, self.assign(outputs, targets), strict=True)):
            predicted, matched_targets = _gather(output, assignments), targets[assignments.target]
            boxes = _to_cell_units(matched_targets, assignments, *output.shape[-2:])
            stride, anchors = self.architecture.strides[index], self.architecture.yolo_layers[index].head_anchors
            log_sizes = (boxes[:, 2:] * stride / boxes.new_tensor(anchors)[assignments.anchor]).log()
            errors = F.binary_cross_entropy_with_logits(predicted[:, :2], boxes[:, :2].clamp(0, 1), reduction="none")
            errors = errors + (predicted[:, 2:4] - log_sizes).square() / 2
            # Small boxes are weighted up to twice as much as large ones.
            box = box + (errors * (2 - matched_targets[:, 4:5] * matched_targets[:, 5:6])).sum()
            category = category + self.class_loss(predicted, matched_targets).sum()
            objectness_targets[index][assignments.position], ignored[index][assignments.position] = 1, False
            objectness = objectness + self.objectness_loss(output, objectness_targets[index])[~ignored[index]].sum()
        terms = {"box": box, "objectness": objectness, "class": category}
        return {name: term / len(outputs[0]) for name, term in terms.items()}

    def class_loss(
        self, predicted: Float[Tensor, "positions outputs"], matched_targets: Targets
    ) -> Float[Tensor, "positions _"]:
        """Compute the binary cross-entropy of every class at every assigned position.

        Args:
            predicted: raw outputs [positions, 5 + classes]; the class logits start at column 5.
            matched_targets: the ground-truth box of each position [positions, 6]; column 1 is the class.

        Returns:
            The unreduced loss [positions, classes], with positives weighted by ``cls_pw``.
        """
        one_hot = F.one_hot(matched_targets[:, 1].long(), self.num_classes).to(predicted)
        pos_weight = predicted.new_tensor(self.cls_pw)
        return F.binary_cross_entropy_with_logits(predicted[:, 5:], one_hot, reduction="none", pos_weight=pos_weight)

    def objectness_loss(self, output: HeadOutput, objectness_target: ObjectnessMap) -> Tensor:
        """Compute the unreduced binary cross-entropy of objectness at every position of a head.

        The targets are in [0, 1]; positives are weighted by ``obj_pw``.
        """
        logits, pos_weight = output[:, :, 4], output.new_tensor(self.obj_pw)
        return F.binary_cross_entropy_with_logits(logits, objectness_target, reduction="none", pos_weight=pos_weight)


def ciou(boxes1: Float[Tensor, "boxes 4"], boxes2: Float[Tensor, "boxes 4"]) -> Float[Tensor, " boxes"]:
    """Compute the complete IoU of pairs of boxes (centre, width, height), in (−1.5, 1].

    CIoU is the IoU minus two penalties: the squared distance of the centres divided by the squared diagonal of the
    enclosing box, and a penalty for different aspect ratios. Source: Zheng et al. 2020, equations 8 to 11.
    """
    low1, high1 = boxes1[:, :2] - boxes1[:, 2:] / 2, boxes1[:, :2] + boxes1[:, 2:] / 2
    low2, high2 = boxes2[:, :2] - boxes2[:, 2:] / 2, boxes2[:, :2] + boxes2[:, 2:] / 2
    intersection = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(0).prod(1)
    eps = 1e-9
    iou = intersection / (boxes1[:, 2:].prod(1) + boxes2[:, 2:].prod(1) - intersection + eps)
    diagonal = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).square().sum(1)
    distance = (boxes1[:, :2] - boxes2[:, :2]).square().sum(1)
    angles = torch.atan2(boxes1[:, 2], boxes1[:, 3]) - torch.atan2(boxes2[:, 2], boxes2[:, 3])
    v = 4 / math.pi**2 * angles.square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return iou - distance / (diagonal + eps) - alpha * v


@torch.no_grad()
def ignore_mask(
    outputs: Sequence[HeadOutput], targets: Targets, architecture: Architecture, variant: Variant, min_iou: float
) -> list[Bool[Tensor, "batch anchors _ _"]]:
    """Return, for each head, a mask of the predicted boxes whose IoU with a ground-truth box exceeds ``min_iou``.

    For boxes with areas a and b and an intersection of area s, the IoU is s / (a + b − s). The IoU exceeds t if and
    only if s exceeds t (a + b) / (1 + t). This comparison avoids a division.
    """
    height, width = (outputs[0].shape[side] * architecture.strides[0] for side in (-2, -1))
    boxes, _ = decode_all([output[:, :, :5] for output in outputs], architecture, variant, height)
    ground_truth = torch.cat([targets[:, 2:4] - targets[:, 4:] / 2, targets[:, 2:4] + targets[:, 4:] / 2], 1)
    ground_truth = ground_truth.to(boxes) * boxes.new_tensor([width, height, width, height])
    mask = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for image in targets[:, 0].long().unique().tolist():
        left, top, right, bottom = boxes[image].T[..., None]
        x0, y0, x1, y1 = ground_truth[targets[:, 0] == image].T
        widths = torch.minimum(right, x1).sub_(torch.maximum(left, x0)).clamp_(0)
        heights = torch.minimum(bottom, y1).sub_(torch.maximum(top, y0)).clamp_(0)
        areas = ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0)).mul_(min_iou / (1 + min_iou))
        mask[image] = (widths.mul_(heights) > areas).any(1)
    shapes = [output[:, :, 4].shape for output in outputs]
    parts = mask.split([shape[1:].numel() for shape in shapes], 1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _gather(output: HeadOutput, assignments: Assignments) -> Float[Tensor, "positions outputs"]:
    """Return the raw outputs at the assigned positions [positions, 5 + classes].

    The strided tensor is indexed directly: compared with moving the outputs to the last dimension first, this halves
    the time of the backward pass.
    """
    return output[assignments.image, assignments.anchor, :, assignments.row, assignments.column]


def _to_cell_units(
    matched_targets: Targets, assignments: Assignments, rows: int, columns: int
) -> Float[Tensor, "positions 4"]:
    """Return ground-truth boxes in cells, with centres relative to the upper left corner of the assigned cell."""
    boxes = matched_targets[:, 2:] * matched_targets.new_tensor([columns, rows, columns, rows])
    return boxes - F.pad(torch.stack([assignments.column, assignments.row], 1), (0, 2))
