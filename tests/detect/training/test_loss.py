"""Each term of the detection loss against a plain Python implementation that loops over positions and classes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.models.architecture import (
    DARKNET,
    ULTRALYTICS_9_6,
    Architecture,
    Convolution,
    Route,
    Variant,
    Yolo,
    yolov3,
)
from chromabox.detect.models.darknet import decode_all
from chromabox.detect.training.loss import DetectionLoss, ciou
from chromabox.errors import UsageError

SIZE = 64
#: Image, class, centre, size: one box near an edge, two in one cell, one that matches no anchor; image 1 has no box.
TARGETS = torch.tensor(
    [
        [0, 1, 0.31, 0.52, 0.40, 0.30],
        [0, 0, 0.33, 0.55, 0.35, 0.35],
        [0, 2, 0.99, 0.02, 0.10, 0.12],
        [2, 1, 0.50, 0.25, 0.90, 0.80],
        [2, 2, 0.74, 0.76, 0.003, 0.004],
    ],
    dtype=torch.float64,
)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(logit: float, target: float, pos_weight: float) -> float:
    """Binary cross-entropy of a logit, with its positive part multiplied by ``pos_weight``."""
    return -(pos_weight * target * math.log(sigmoid(logit)) + (1 - target) * math.log(1 - sigmoid(logit)))


def corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def loop_iou(box1: list[float], box2: list[float]) -> float:
    a, b = corners(box1), corners(box2)
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    return intersection / (box1[2] * box1[3] + box2[2] * box2[3] - intersection)


def loop_ciou(box1: list[float], box2: list[float]) -> float:
    """Zheng et al. 2020, equations 8 to 11."""
    a, b = corners(box1), corners(box2)
    iou = loop_iou(box1, box2)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance = (box1[0] - box2[0]) ** 2 + (box1[1] - box2[1]) ** 2
    v = 4 / math.pi**2 * (math.atan(box2[2] / box2[3]) - math.atan(box1[2] / box1[3])) ** 2
    alpha = v / (1 - iou + v) if v else 0.0
    return iou - distance / diagonal - alpha * v


def loop_sigmoid2_loss(
    outputs: list[torch.Tensor], targets: torch.Tensor, architecture: Architecture, cls_pw: float, obj_pw: float
) -> dict[str, float]:
    """The course's loss by its specification, in loops."""
    box_sum = objectness_sum = class_sum = 0.0
    order = {stride: rank for rank, stride in enumerate(sorted(architecture.strides))}
    for output, yolo, stride in zip(outputs, architecture.yolo_layers, architecture.strides, strict=True):
        batch, anchors, _, rows, columns = output.shape
        objectness_target = np.zeros((batch, anchors, rows, columns))
        distances, classes = [], []
        for image, class_id, *fractions in targets.tolist():
            x, y = fractions[0] * columns, fractions[1] * rows
            width, height = fractions[2] * columns, fractions[3] * rows
            for anchor, (anchor_width, anchor_height) in enumerate(yolo.head_anchors):
                w, h = anchor_width / stride, anchor_height / stride
                if max(width / w, w / width, height / h, h / height) >= 4:
                    continue
                cells = [(min(int(x), columns - 1), min(int(y), rows - 1))]
                if x % 1 < 0.5 and x > 1:
                    cells.append((int(x) - 1, int(y)))
                elif x % 1 > 0.5 and x < columns - 1:
                    cells.append((int(x) + 1, int(y)))
                if y % 1 < 0.5 and y > 1:
                    cells.append((int(x), int(y) - 1))
                elif y % 1 > 0.5 and y < rows - 1:
                    cells.append((int(x), int(y) + 1))
                for column, row in cells:
                    t = output[int(image), anchor, :, row, column].tolist()
                    predicted_box = [
                        2 * sigmoid(t[0]) - 0.5 + column,
                        2 * sigmoid(t[1]) - 0.5 + row,
                        (2 * sigmoid(t[2])) ** 2 * w,
                        (2 * sigmoid(t[3])) ** 2 * h,
                    ]
                    ciou = loop_ciou(predicted_box, [x, y, width, height])
                    distances.append(1 - ciou)
                    position = int(image), anchor, row, column
                    objectness_target[position] = max(objectness_target[position], ciou)
                    classes += [
                        cross_entropy(t[5 + index], float(index == class_id), cls_pw)
                        for index in range(architecture.num_classes)
                    ]
        logits = output[:, :, 4].numpy()
        errors = [
            cross_entropy(logit, target, obj_pw)
            for logit, target in zip(logits.ravel(), objectness_target.ravel(), strict=True)
        ]
        objectness_sum += np.mean(errors) * (4.0, 1.0, 0.4)[order[stride]]
        if distances:
            box_sum += np.mean(distances)
            class_sum += np.mean(classes)
    factor = 3 / len(outputs) * len(outputs[0])
    return {
        "box": 0.05 * factor * box_sum,
        "objectness": factor * (SIZE / 640) ** 2 * objectness_sum,
        "class": 0.5 * architecture.num_classes / 80 * factor * class_sum if architecture.num_classes > 1 else 0.0,
    }


def loop_exp_loss(
    outputs: list[torch.Tensor], targets: torch.Tensor, architecture: Architecture, cls_pw: float, obj_pw: float
) -> dict[str, float]:
    """The loss of YOLOv3 by its specification, in loops."""
    terms = {"box": 0.0, "objectness": 0.0, "class": 0.0}
    used = sorted({index for yolo in architecture.yolo_layers for index in yolo.mask})
    anchors = architecture.yolo_layers[0].anchors
    for output, yolo in zip(outputs, architecture.yolo_layers, strict=True):
        batch, _, _, rows, columns = output.shape
        positive = set()
        for image, class_id, x, y, width, height in targets.tolist():

            def shape_iou(index: int, width: float = width, height: float = height) -> float:
                return loop_iou([0, 0, width * SIZE, height * SIZE], [0, 0, *anchors[index]])

            best = max(used, key=shape_iou)
            if best not in yolo.mask:
                continue
            anchor = yolo.mask.index(best)
            column, row = min(int(x * columns), columns - 1), min(int(y * rows), rows - 1)
            t = output[int(image), anchor, :, row, column].tolist()
            positive.add((int(image), anchor, row, column))
            errors = cross_entropy(t[0], x * columns - column, 1) + cross_entropy(t[1], y * rows - row, 1)
            errors += (t[2] - math.log(width * SIZE / anchors[best][0])) ** 2 / 2
            errors += (t[3] - math.log(height * SIZE / anchors[best][1])) ** 2 / 2
            terms["box"] += errors * (2 - width * height)
            terms["class"] += sum(
                cross_entropy(t[5 + index], float(index == class_id), cls_pw)
                for index in range(architecture.num_classes)
            )
        for image, anchor, row, column in np.ndindex(batch, len(yolo.mask), rows, columns):
            t = output[image, anchor, :, row, column].tolist()
            predicted_box = [
                (sigmoid(t[0]) + column) / columns,
                (sigmoid(t[1]) + row) / rows,
                math.exp(t[2]) * yolo.head_anchors[anchor][0] / SIZE,
                math.exp(t[3]) * yolo.head_anchors[anchor][1] / SIZE,
            ]
            truths = [list(target[2:]) for target in targets.tolist() if target[0] == image]
            if (image, anchor, row, column) in positive:
                terms["objectness"] += cross_entropy(t[4], 1, obj_pw)
            elif max((loop_iou(predicted_box, truth) for truth in truths), default=0.0) <= 0.7:
                terms["objectness"] += cross_entropy(t[4], 0, obj_pw)
    return {name: value / len(outputs[0]) for name, value in terms.items()}


LOOP_LOSSES = {"exp": loop_exp_loss, "sigmoid2": loop_sigmoid2_loss}
ANCHORS = ((6.0, 7.0), (12.0, 10.0), (24.0, 20.0), (22.0, 30.0), (50.0, 40.0))


def two_heads(num_classes: int) -> Architecture:
    """Return an architecture with heads at strides 32 and 16 that share an anchor; two anchors are not used."""
    last = Convolution(2 * (5 + num_classes), 1, batch_normalise=False, activation="linear")
    layers = (
        *(Convolution(4, 3, 2) for _ in range(5)),
        *(last, Yolo((2, 4), ANCHORS, num_classes)),
        *(Route((3,)), last, Yolo((1, 2), ANCHORS, num_classes)),
    )
    return Architecture("two", layers, size=SIZE)


def random_outputs(architecture: Architecture, seed: int = 0, batch: int = 3) -> list[torch.Tensor]:
    """Return random raw outputs of every head in float64."""
    generator = torch.Generator().manual_seed(seed)
    outputs = []
    for yolo, stride in zip(architecture.yolo_layers, architecture.strides, strict=True):
        shape = (batch, len(yolo.mask), 5 + architecture.num_classes, SIZE // stride, SIZE // stride)
        outputs.append(torch.randn(shape, generator=generator).double())
    return outputs


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_6], ids=lambda variant: variant.decode)
@pytest.mark.parametrize("architecture", [two_heads(3), replace(yolov3(3), size=SIZE)], ids=["two heads", "yolov3"])
@pytest.mark.parametrize(("cls_pw", "obj_pw"), [(1.0, 1.0), (3.0, 0.5)])
def test_every_term_equals_the_loops(
    variant: Variant, architecture: Architecture, cls_pw: float, obj_pw: float
) -> None:
    outputs = random_outputs(architecture)
    loss = DetectionLoss(architecture, variant, 3, cls_pw=cls_pw, obj_pw=obj_pw, size=SIZE)
    terms = loss(outputs, TARGETS)
    expected = LOOP_LOSSES[variant.decode](outputs, TARGETS, architecture, cls_pw, obj_pw)
    assert {name: value.item() for name, value in terms.items() if name != "loss"} == pytest.approx(expected, rel=1e-6)
    assert terms["loss"].item() == pytest.approx(sum(expected.values()), rel=1e-6)
    assert expected["class"] > 0


def test_gradients_of_the_darknet_loss_equal_finite_differences() -> None:
    architecture = two_heads(3)
    loss = DetectionLoss(architecture, DARKNET, 3, cls_pw=2.0, obj_pw=0.5, size=SIZE)
    outputs = [output.requires_grad_() for output in random_outputs(architecture)]
    assert torch.autograd.gradcheck(lambda *heads: loss(heads, TARGETS)["loss"], outputs, fast_mode=True)


def test_gradients_of_objectness_and_classes_equal_finite_differences() -> None:
    architecture = two_heads(3)
    loss = DetectionLoss(architecture, ULTRALYTICS_9_6, 3, cls_pw=2.0, obj_pw=0.5, size=SIZE)
    outputs = random_outputs(architecture)

    def score_terms(*scores: torch.Tensor) -> torch.Tensor:
        heads = [torch.cat([head[:, :, :4], score], 2) for head, score in zip(outputs, scores, strict=True)]
        terms = loss(heads, TARGETS)
        return terms["objectness"] + terms["class"]

    scores = [output[:, :, 4:].clone().requires_grad_() for output in outputs]
    assert torch.autograd.gradcheck(score_terms, scores, fast_mode=True)


def test_objectness_term_has_no_gradient_with_respect_to_boxes() -> None:
    architecture = two_heads(3)
    outputs = [output.requires_grad_() for output in random_outputs(architecture)]
    DetectionLoss(architecture, ULTRALYTICS_9_6, 3, size=SIZE)(outputs, TARGETS)["objectness"].backward()
    assert all((output.grad[:, :, :4] == 0).all() for output in outputs)
    assert all((output.grad[:, :, 4] != 0).all() for output in outputs)


SIDES = st.floats(0.2, 5.0)
BOXES = st.tuples(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), SIDES, SIDES)


@given(BOXES, BOXES)
@settings(max_examples=100, deadline=None)
def test_ciou_equals_the_paper(box1: tuple[float, ...], box2: tuple[float, ...]) -> None:
    value = ciou(torch.tensor([box1], dtype=torch.float64), torch.tensor([box2], dtype=torch.float64))
    assert value.item() == pytest.approx(loop_ciou(list(box1), list(box2)), abs=1e-6)


def test_gradient_of_ciou_treats_alpha_as_constant() -> None:
    predicted = torch.tensor([[0.3, 0.2, 1.5, 0.8]], dtype=torch.float64, requires_grad=True)
    truth = [0.0, 0.1, 1.0, 1.2]
    ciou(predicted, torch.tensor([truth], dtype=torch.float64)).sum().backward()

    def angle(box: list[float]) -> float:
        return math.atan(box[2] / box[3])

    def ciou_with_alpha(box: list[float], alpha: float) -> float:
        """CIoU with a given alpha: the CIoU plus its last term, minus this term with the given alpha."""
        v = 4 / math.pi**2 * (angle(truth) - angle(box)) ** 2
        true_alpha = v / (1 - loop_iou(box, truth) + v)
        return loop_ciou(box, truth) + (true_alpha - alpha) * v

    values = predicted.tolist()[0]
    v = 4 / math.pi**2 * (angle(truth) - angle(values)) ** 2
    alpha = v / (1 - loop_iou(values, truth) + v)
    for index in range(4):
        up, down = ([value + step * (at == index) for at, value in enumerate(values)] for step in (1e-6, -1e-6))
        gradient = (ciou_with_alpha(up, alpha) - ciou_with_alpha(down, alpha)) / 2e-6
        assert predicted.grad[0, index].item() == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_6], ids=lambda variant: variant.decode)
def test_images_without_boxes_train_only_background(variant: Variant) -> None:
    architecture = two_heads(3)
    outputs = [output.requires_grad_() for output in random_outputs(architecture)]
    terms = DetectionLoss(architecture, variant, 3, size=SIZE)(outputs, torch.zeros(0, 6))
    terms["loss"].backward()
    expected = LOOP_LOSSES[variant.decode](random_outputs(architecture), torch.zeros(0, 6), architecture, 1.0, 1.0)
    assert terms["objectness"].item() == pytest.approx(expected["objectness"], rel=1e-6)
    assert terms["box"].item() == terms["class"].item() == 0
    assert all((output.grad[:, :, 4] > 0).all() for output in outputs)
    assert all((output.grad[:, :, 5:] == 0).all() for output in outputs)


def test_single_class_is_trained_except_with_the_course_recipe() -> None:
    architecture, targets = two_heads(1), TARGETS * torch.tensor([1, 0, 1, 1, 1, 1])
    outputs = random_outputs(architecture)
    course = DetectionLoss(architecture, ULTRALYTICS_9_6, 1, size=SIZE)(outputs, targets)
    default = DetectionLoss(architecture, ULTRALYTICS_9_6, 1, size=SIZE, recipe="default")(outputs, targets)
    assert course["class"].item() == 0
    assert default["class"].item() > 0
    # The course's loss is multiplied by the batch size, 3.
    assert course["box"].item() == pytest.approx(3 * default["box"].item())
    darknet = DetectionLoss(architecture, DARKNET, 1, size=SIZE)(outputs, targets)
    expected = loop_exp_loss(outputs, targets, architecture, 1.0, 1.0)
    assert darknet["class"].item() == pytest.approx(expected["class"], rel=1e-6)


def test_background_with_high_iou_is_ignored() -> None:
    """The anchor (50, 40) is the best; the other anchor of the head decodes to nearly the same box."""
    architecture = two_heads(3)
    outputs = [torch.zeros_like(output) for output in random_outputs(architecture)]
    targets = torch.tensor([[0, 0, 0.25, 0.25, 50 / 64, 40 / 64]])
    outputs[0][0, 0, 2, 0, 0], outputs[0][0, 0, 3, 0, 0] = math.log(50 / 24), math.log(40 / 20)
    outputs[0].requires_grad_()
    DetectionLoss(architecture, DARKNET, 3, size=SIZE)(outputs, targets)["objectness"].backward()
    gradients = outputs[0].grad[0, :, 4, 0, 0] * 3
    assert gradients.tolist() == pytest.approx([0.0, sigmoid(0) - 1])


def test_minimising_the_loss_gives_the_ground_truth_box() -> None:
    """After optimising the raw outputs directly, the decoded box with the highest score is the ground-truth box."""
    for variant in (DARKNET, ULTRALYTICS_9_6):
        architecture = two_heads(3)
        outputs = [output.float().requires_grad_() for output in random_outputs(architecture, batch=1)]
        loss = DetectionLoss(architecture, variant, 3, size=SIZE)
        optimizer = torch.optim.Adam(outputs, lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            loss(outputs, TARGETS[3:4] * torch.tensor([0, 1, 1, 1, 1, 1]))["loss"].backward()
            optimizer.step()
        boxes, scores = decode_all(outputs, architecture, variant, SIZE)
        best, class_id = divmod(int(scores[0].argmax()), 3)
        assert class_id == 1
        truth = torch.tensor([0.05, -0.15, 0.95, 0.65]) * SIZE
        torch.testing.assert_close(boxes[0, best].detach(), truth, rtol=0, atol=1.0)


@pytest.mark.parametrize("variant", [DARKNET, ULTRALYTICS_9_6], ids=lambda variant: variant.decode)
def test_centre_on_the_edge_belongs_to_the_last_cell(variant: Variant) -> None:
    architecture = two_heads(3)
    outputs = [output.requires_grad_() for output in random_outputs(architecture, batch=1)]
    targets = torch.tensor([[0, 0, 1.0, 1.0, 22 / 64, 30 / 64]])
    DetectionLoss(architecture, variant, 3, size=SIZE)(outputs, targets)["class"].backward()
    coarse, fine = (output.grad[0, :, 5].abs().sum(0) for output in outputs)
    assert coarse[-1, -1] + fine[-1, -1] > 0
    assert fine[:2].sum() == fine[:, :2].sum() == 0


def test_bfloat16_outputs_give_a_float32_loss() -> None:
    architecture = two_heads(3)
    outputs = [output.bfloat16() for output in random_outputs(architecture)]
    terms = DetectionLoss(architecture, ULTRALYTICS_9_6, 3, size=SIZE)(outputs, TARGETS.float())
    assert terms["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, "num_classes is 4: expected 3, the number of classes of the model"),
        ({"cls_pw": 0.0}, "cls_pw is 0.0"),
        ({"obj_pw": -1.0}, "obj_pw is -1.0"),
    ],
)
def test_options_that_do_not_match_the_model_are_rejected(options: dict, message: str) -> None:
    valid = {"architecture": two_heads(3), "variant": DARKNET, "num_classes": 3, "size": SIZE}
    with pytest.raises(UsageError, match=message):
        DetectionLoss(**{**valid, **options})
