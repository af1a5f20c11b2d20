"""Teacher predictions and distillation loss against a plain Python implementation that loops over positions."""

import copy
import math

import numpy as np
import pytest
import torch

from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_6, Variant
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.transfer import Teacher, TeacherOutput, replace_heads
from detector_fixtures import make_small_detector

SIZE = 64
#: Image, class, centre, size: one box of the new class in the first of two images.
TARGETS = torch.tensor([[0, 3, 0.25, 0.25, 0.9, 0.9]])
#: Number of old classes; the new one follows them.
NUM_OLD_CLASSES = 3

for_each_variant = pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_6], ids=lambda variant: variant.decode)


def make_student_and_teacher(variant: Variant) -> tuple[DarknetModel, Teacher]:
    """Return a model with a fourth class and its teacher."""
    detector = replace_heads(make_small_detector(variant), ["newt"], keep_old_classes=True)
    loss = DetectionLoss(detector.architecture, variant, NUM_OLD_CLASSES + 1, size=SIZE, recipe="default")
    return copy.deepcopy(detector.model).train(), Teacher(detector.model, NUM_OLD_CLASSES, loss)


def make_images() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def decode_box(
    t: list[float], anchor: tuple[float, float], row: int, column: int, variant: Variant
) -> tuple[float, ...]:
    """Decode a box to corners in pixels by the formulas of the variant, with stride 32."""
    if variant.decode == "exp":
        x, y = sigmoid(t[0]) + column, sigmoid(t[1]) + row
        width, height = math.exp(t[2]) * anchor[0], math.exp(t[3]) * anchor[1]
    else:
        x, y = 2 * sigmoid(t[0]) - 0.5 + column, 2 * sigmoid(t[1]) - 0.5 + row
        width, height = (2 * sigmoid(t[2])) ** 2 * anchor[0], (2 * sigmoid(t[3])) ** 2 * anchor[1]
    return 32 * x - width / 2, 32 * y - height / 2, 32 * x + width / 2, 32 * y + height / 2


def loop_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    intersection = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return intersection / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection)


@for_each_variant
def test_teacher_objectness_is_zero_at_labelled_boxes_only(variant: Variant) -> None:
    student, teacher = make_student_and_teacher(variant)
    teacher_output = teacher.predict({-1: make_images()}, 0, TARGETS)
    (head,), (objectness,) = teacher_output.heads, teacher_output.objectness
    torch.testing.assert_close(head, teacher.model(make_images())[0])
    anchors = student.architecture.yolo_layers[0].head_anchors
    labelled_box = (16 - 0.45 * 64, 16 - 0.45 * 64, 16 + 0.45 * 64, 16 + 0.45 * 64)
    (assigned,) = teacher.loss.assign([head], TARGETS)
    indices = (assigned.image, assigned.anchor, assigned.row, assigned.column)
    assigned_positions = set(zip(*(index.tolist() for index in indices), strict=True))
    num_masked = 0
    for image, anchor, row, column in np.ndindex(*objectness.shape):
        t = head[image, anchor, :, row, column].tolist()
        box = decode_box(t, anchors[anchor], row, column, variant)
        overlaps = image == 0 and loop_iou(box, labelled_box) > 0.5
        is_masked = overlaps or (image, anchor, row, column) in assigned_positions
        num_masked += is_masked
        expected = 0 if is_masked else sigmoid(t[4])
        assert objectness[image, anchor, row, column].item() == pytest.approx(expected, abs=1e-6)
    assert 0 < num_masked < objectness[0].numel()
    assert assigned_positions


def loop_distillation_loss(output: torch.Tensor, teacher_output: TeacherOutput, variant: Variant) -> dict[str, float]:
    (head,), (objectness,) = teacher_output.heads, teacher_output.objectness
    box = category = total = 0.0
    for image, anchor, row, column in np.ndindex(*objectness.shape):
        weight = objectness[image, anchor, row, column].item()
        if weight <= 0.01:
            continue
        student_raw, teacher_raw = (raw[image, anchor, :, row, column].tolist() for raw in (output, head))
        total += weight
        box += weight * sum((s - t) ** 2 / 2 for s, t in zip(student_raw[:4], teacher_raw[:4], strict=True))
        for index, (s, t) in enumerate(zip(student_raw[5:], teacher_raw[5:], strict=True)):
            p, q = sigmoid(t) if index < NUM_OLD_CLASSES else 0.0, sigmoid(s)
            # Kullback-Leibler divergence of two Bernoulli distributions.
            category += weight * (1 - p) * math.log((1 - p) / (1 - q)) + (weight * p * math.log(p / q) if p else 0)
    if variant.decode == "exp":
        return {"old_box": box / len(head), "old_class": category / len(head)}
    # With one head, the weights of the means are 3 · 0.05 and 3 · 0.5 · 4/80.
    return {"old_box": 0.15 * box / total, "old_class": 1.5 * 4 / 80 * category / total / (NUM_OLD_CLASSES + 1)}


@for_each_variant
def test_distillation_loss_equals_the_loops(variant: Variant) -> None:
    _, teacher = make_student_and_teacher(variant)
    teacher_output = teacher.predict({-1: make_images()}, 0, TARGETS)
    outputs = [
        head + 0.5 * torch.randn(head.shape, generator=torch.Generator().manual_seed(2))
        for head in teacher_output.heads
    ]
    loss = {name: value.item() for name, value in teacher.distillation_loss(outputs, teacher_output).items()}
    assert loss == pytest.approx(loop_distillation_loss(outputs[0], teacher_output, variant), rel=1e-5)
    assert all(value > 0 for value in loss.values())


@for_each_variant
def test_distillation_loss_of_equal_outputs_is_zero_except_for_new_classes(variant: Variant) -> None:
    _, teacher = make_student_and_teacher(variant)
    teacher_output = teacher.predict({-1: make_images()}, 0, TARGETS)
    outputs = [head.clone() for head in teacher_output.heads]
    outputs[0][:, :, 5 + NUM_OLD_CLASSES] = -40
    loss = teacher.distillation_loss(outputs, teacher_output)
    assert loss["old_box"].item() == 0
    assert loss["old_class"].item() == pytest.approx(0, abs=1e-6)
    outputs[0][:, :, 5 + NUM_OLD_CLASSES] = 1
    assert teacher.distillation_loss(outputs, teacher_output)["old_class"].item() > 0.01


@for_each_variant
def test_objectness_target_of_background_is_that_of_the_teacher(variant: Variant) -> None:
    """Without labels, the gradient of objectness is σ(t) minus the teacher's objectness: 0 for equal outputs."""
    _, teacher = make_student_and_teacher(variant)
    teacher_output = teacher.predict({-1: make_images()}, 0, torch.zeros(0, 6))
    outputs = [head.clone().requires_grad_() for head in teacher_output.heads]
    teacher.loss(outputs, torch.zeros(0, 6), teacher_output.objectness)["objectness"].backward()
    torch.testing.assert_close(
        outputs[0].grad[:, :, 4], torch.zeros_like(teacher_output.objectness[0]), rtol=0, atol=1e-7
    )
    without_teacher = [head.clone().requires_grad_() for head in teacher_output.heads]
    teacher.loss(without_teacher, torch.zeros(0, 6))["objectness"].backward()
    assert (without_teacher[0].grad[:, :, 4] > 0).all()


def test_labelled_boxes_have_the_same_loss_with_and_without_teacher() -> None:
    _, teacher = make_student_and_teacher(DARKNET)
    teacher_output = teacher.predict({-1: make_images()}, 0, TARGETS)
    with_teacher = teacher.loss(teacher_output.heads, TARGETS, teacher_output.objectness)
    without = teacher.loss(teacher_output.heads, TARGETS)
    assert with_teacher["box"] == without["box"]
    assert with_teacher["class"] == without["class"]
    assert with_teacher["objectness"] != without["objectness"]


def test_teacher_is_not_trained() -> None:
    student, teacher = make_student_and_teacher(DARKNET)
    teacher_output = teacher.predict({-1: make_images()}, 0, TARGETS)
    sum(teacher.distillation_loss(student(make_images()), teacher_output).values()).backward()
    assert student.layers[5].convolution.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
