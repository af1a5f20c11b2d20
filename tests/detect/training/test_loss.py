"""Each term of the loss against the same written out in plain Python, a place, an anchor and a class at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.models.architecture import Architecture, Convolution, Route, Yolo, yolov3
from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_6, Variant, decode_all
from chromabox.detect.training.loss import DetectionLoss, ciou
from chromabox.errors import UsageError

SIZE = 64
#: Picture, class, centre, sides: one near an edge, two in one cell, one that no anchor fits, one picture without any.
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


def entropy(number: float, goal: float, weight: float) -> float:
    """Binary cross-entropy of a raw number, its positive part counted ``weight``-fold."""
    return -(weight * goal * math.log(sigmoid(number)) + (1 - goal) * math.log(1 - sigmoid(number)))


def corners(box: list[float]) -> tuple[float, float, float, float]:
    x, y, wide, high = box
    return x - wide / 2, y - high / 2, x + wide / 2, y + high / 2


def overlap(one: list[float], other: list[float]) -> float:
    a, b = corners(one), corners(other)
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(high, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def slow_ciou(one: list[float], other: list[float]) -> float:
    """Zheng et al. 2020, equations 8 to 11."""
    a, b = corners(one), corners(other)
    iou = overlap(one, other)
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    distance = (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2
    shape = 4 / math.pi**2 * (math.atan(other[2] / other[3]) - math.atan(one[2] / one[3])) ** 2
    trade = shape / (1 - iou + shape) if shape else 0.0
    return iou - distance / diagonal - trade * shape


def slow_sigmoid2(
    outputs: list[torch.Tensor], targets: torch.Tensor, net: Architecture, cls_pw: float, obj_pw: float
) -> dict[str, float]:
    """The course's loss by the specification, in loops."""
    box_sum = objectness_sum = class_sum = 0.0
    order = {stride: place for place, stride in enumerate(sorted(net.strides))}
    for output, yolo, stride in zip(outputs, net.yolo_layers, net.strides, strict=True):
        batch, anchors, _, rows, columns = output.shape
        goal = np.zeros((batch, anchors, rows, columns))
        distances, classes = [], []
        for picture, category, *fractions in targets.tolist():
            x, y = fractions[0] * columns, fractions[1] * rows
            wide, high = fractions[2] * columns, fractions[3] * rows
            for anchor, (anchor_wide, anchor_high) in enumerate(yolo.head_anchors):
                w, h = anchor_wide / stride, anchor_high / stride
                if max(wide / w, w / wide, high / h, h / high) >= 4:
                    continue
                own = [(min(int(x), columns - 1), min(int(y), rows - 1))]
                if x % 1 < 0.5 and x > 1:
                    own.append((int(x) - 1, int(y)))
                elif x % 1 > 0.5 and x < columns - 1:
                    own.append((int(x) + 1, int(y)))
                if y % 1 < 0.5 and y > 1:
                    own.append((int(x), int(y) - 1))
                elif y % 1 > 0.5 and y < rows - 1:
                    own.append((int(x), int(y) + 1))
                for column, row in own:
                    t = output[int(picture), anchor, :, row, column].tolist()
                    found = [
                        2 * sigmoid(t[0]) - 0.5 + column,
                        2 * sigmoid(t[1]) - 0.5 + row,
                        (2 * sigmoid(t[2])) ** 2 * w,
                        (2 * sigmoid(t[3])) ** 2 * h,
                    ]
                    ciou = slow_ciou(found, [x, y, wide, high])
                    distances.append(1 - ciou)
                    place = int(picture), anchor, row, column
                    goal[place] = max(goal[place], ciou)
                    classes += [
                        entropy(t[5 + index], float(index == category), cls_pw) for index in range(net.num_classes)
                    ]
        cells = output[:, :, 4].numpy()
        errors = [entropy(number, target, obj_pw) for number, target in zip(cells.ravel(), goal.ravel(), strict=True)]
        objectness_sum += np.mean(errors) * (4.0, 1.0, 0.4)[order[stride]]
        if distances:
            box_sum += np.mean(distances)
            class_sum += np.mean(classes)
    factor = 3 / len(outputs) * len(outputs[0])
    return {
        "box": 0.05 * factor * box_sum,
        "objectness": factor * (SIZE / 640) ** 2 * objectness_sum,
        "class": 0.5 * net.num_classes / 80 * factor * class_sum if net.num_classes > 1 else 0.0,
    }


def slow_exp(
    outputs: list[torch.Tensor], targets: torch.Tensor, net: Architecture, cls_pw: float, obj_pw: float
) -> dict[str, float]:
    """YOLOv3's own loss by the specification, in loops."""
    terms = {"box": 0.0, "objectness": 0.0, "class": 0.0}
    used = sorted({index for yolo in net.yolo_layers for index in yolo.mask})
    anchors = net.yolo_layers[0].anchors
    for output, yolo in zip(outputs, net.yolo_layers, strict=True):
        batch, _, _, rows, columns = output.shape
        positive = set()
        for picture, category, x, y, wide, high in targets.tolist():

            def alike(index: int, wide: float = wide, high: float = high) -> float:
                return overlap([0, 0, wide * SIZE, high * SIZE], [0, 0, *anchors[index]])

            best = max(used, key=alike)
            if best not in yolo.mask:
                continue
            anchor = yolo.mask.index(best)
            column, row = min(int(x * columns), columns - 1), min(int(y * rows), rows - 1)
            t = output[int(picture), anchor, :, row, column].tolist()
            positive.add((int(picture), anchor, row, column))
            errors = entropy(t[0], x * columns - column, 1) + entropy(t[1], y * rows - row, 1)
            errors += (t[2] - math.log(wide * SIZE / anchors[best][0])) ** 2 / 2
            errors += (t[3] - math.log(high * SIZE / anchors[best][1])) ** 2 / 2
            terms["box"] += errors * (2 - wide * high)
            terms["class"] += sum(
                entropy(t[5 + index], float(index == category), cls_pw) for index in range(net.num_classes)
            )
        for picture, anchor, row, column in np.ndindex(batch, len(yolo.mask), rows, columns):
            t = output[picture, anchor, :, row, column].tolist()
            found = [
                (sigmoid(t[0]) + column) / columns,
                (sigmoid(t[1]) + row) / rows,
                math.exp(t[2]) * yolo.head_anchors[anchor][0] / SIZE,
                math.exp(t[3]) * yolo.head_anchors[anchor][1] / SIZE,
            ]
            truths = [list(one[2:]) for one in targets.tolist() if one[0] == picture]
            if (picture, anchor, row, column) in positive:
                terms["objectness"] += entropy(t[4], 1, obj_pw)
            elif max((overlap(found, one) for one in truths), default=0.0) <= 0.7:
                terms["objectness"] += entropy(t[4], 0, obj_pw)
    return {name: value / len(outputs[0]) for name, value in terms.items()}


SLOW = {"exp": slow_exp, "sigmoid2": slow_sigmoid2}
ANCHORS = ((6.0, 7.0), (12.0, 10.0), (24.0, 20.0), (22.0, 30.0), (50.0, 40.0))


def two_heads(classes: int) -> Architecture:
    """Heads at strides 32 and 16 that share an anchor; two anchors are of neither."""
    last = Convolution(2 * (5 + classes), 1, batch_normalise=False, activation="linear")
    layers = (
        *(Convolution(4, 3, 2) for _ in range(5)),
        *(last, Yolo((2, 4), ANCHORS, classes)),
        *(Route((3,)), last, Yolo((1, 2), ANCHORS, classes)),
    )
    return Architecture("two", layers, size=SIZE)


def raw(net: Architecture, seed: int = 0, batch: int = 3) -> list[torch.Tensor]:
    """Random numbers of every head, float64."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, len(yolo.mask), 5 + net.num_classes, SIZE // stride, SIZE // stride, generator=draw).double()
        for yolo, stride in zip(net.yolo_layers, net.strides, strict=True)
    ]


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_6], ids=lambda kind: kind.decode)
@pytest.mark.parametrize("net", [two_heads(3), replace(yolov3(3), size=SIZE)], ids=["two heads", "yolov3"])
@pytest.mark.parametrize(("cls_pw", "obj_pw"), [(1.0, 1.0), (3.0, 0.5)])
def test_every_term_is_that_of_the_loops(kind: Variant, net: Architecture, cls_pw: float, obj_pw: float) -> None:
    outputs = raw(net)
    loss = DetectionLoss(net, kind, 3, cls_pw=cls_pw, obj_pw=obj_pw, size=SIZE)
    ours = loss(outputs, TARGETS)
    slow = SLOW[kind.decode](outputs, TARGETS, net, cls_pw, obj_pw)
    assert {name: value.item() for name, value in ours.items() if name != "loss"} == pytest.approx(slow, rel=1e-6)
    assert ours["loss"].item() == pytest.approx(sum(slow.values()), rel=1e-6)
    assert slow["class"] > 0


def test_slopes_of_the_darknet_loss_are_those_of_small_differences() -> None:
    net = two_heads(3)
    loss = DetectionLoss(net, DARKNET, 3, cls_pw=2.0, obj_pw=0.5, size=SIZE)
    outputs = [output.requires_grad_() for output in raw(net)]
    assert torch.autograd.gradcheck(lambda *heads: loss(heads, TARGETS)["loss"], outputs, fast_mode=True)


def test_slopes_of_objectness_and_classes_are_those_of_small_differences() -> None:
    net = two_heads(3)
    loss = DetectionLoss(net, ULTRALYTICS_9_6, 3, cls_pw=2.0, obj_pw=0.5, size=SIZE)
    outputs = raw(net)

    def of_scores(*scores: torch.Tensor) -> torch.Tensor:
        heads = [torch.cat([head[:, :, :4], own], 2) for head, own in zip(outputs, scores, strict=True)]
        terms = loss(heads, TARGETS)
        return terms["objectness"] + terms["class"]

    scores = [output[:, :, 4:].clone().requires_grad_() for output in outputs]
    assert torch.autograd.gradcheck(of_scores, scores, fast_mode=True)


def test_objectness_is_not_reached_by_moving_boxes() -> None:
    net = two_heads(3)
    outputs = [output.requires_grad_() for output in raw(net)]
    DetectionLoss(net, ULTRALYTICS_9_6, 3, size=SIZE)(outputs, TARGETS)["objectness"].backward()
    assert all((output.grad[:, :, :4] == 0).all() for output in outputs)
    assert all((output.grad[:, :, 4] != 0).all() for output in outputs)


SIDES = st.floats(0.2, 5.0)
BOXES = st.tuples(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), SIDES, SIDES)


@given(BOXES, BOXES)
@settings(max_examples=100, deadline=None)
def test_complete_iou_is_that_of_the_paper(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    ours = ciou(torch.tensor([one], dtype=torch.float64), torch.tensor([other], dtype=torch.float64))
    assert ours.item() == pytest.approx(slow_ciou(list(one), list(other)), abs=1e-6)


def test_the_slope_of_complete_iou_takes_its_trade_off_as_given() -> None:
    box = torch.tensor([[0.3, 0.2, 1.5, 0.8]], dtype=torch.float64, requires_grad=True)
    wanted = [0.0, 0.1, 1.0, 1.2]
    ciou(box, torch.tensor([wanted], dtype=torch.float64)).sum().backward()

    def angle(box: list[float]) -> float:
        return math.atan(box[2] / box[3])

    def held(box: list[float], trade: float) -> float:
        """CIoU with a given trade-off: what it is without its last term, less that times the trade-off."""
        shape = 4 / math.pi**2 * (angle(wanted) - angle(box)) ** 2
        own = shape / (1 - overlap(box, wanted) + shape)
        return slow_ciou(box, wanted) + (own - trade) * shape

    here = box.tolist()[0]
    shape = 4 / math.pi**2 * (angle(wanted) - angle(here)) ** 2
    trade = shape / (1 - overlap(here, wanted) + shape)
    for index in range(4):
        up, down = ([value + step * (place == index) for place, value in enumerate(here)] for step in (1e-6, -1e-6))
        slope = (held(up, trade) - held(down, trade)) / 2e-6
        assert box.grad[0, index].item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_6], ids=lambda kind: kind.decode)
def test_pictures_without_boxes_teach_background_only(kind: Variant) -> None:
    net = two_heads(3)
    outputs = [output.requires_grad_() for output in raw(net)]
    terms = DetectionLoss(net, kind, 3, size=SIZE)(outputs, torch.zeros(0, 6))
    terms["loss"].backward()
    slow = SLOW[kind.decode](raw(net), torch.zeros(0, 6), net, 1.0, 1.0)
    assert terms["objectness"].item() == pytest.approx(slow["objectness"], rel=1e-6)
    assert terms["box"].item() == terms["class"].item() == 0
    assert all((output.grad[:, :, 4] > 0).all() for output in outputs)
    assert all((output.grad[:, :, 5:] == 0).all() for output in outputs)


def test_a_single_class_is_learnt_by_all_but_the_course() -> None:
    net, targets = two_heads(1), TARGETS * torch.tensor([1, 0, 1, 1, 1, 1])
    outputs = raw(net)
    course = DetectionLoss(net, ULTRALYTICS_9_6, 1, size=SIZE)(outputs, targets)
    default = DetectionLoss(net, ULTRALYTICS_9_6, 1, size=SIZE, recipe="default")(outputs, targets)
    assert course["class"].item() == 0
    assert default["class"].item() > 0
    # The course's is the sum over the three pictures of the batch.
    assert course["box"].item() == pytest.approx(3 * default["box"].item())
    darknet = DetectionLoss(net, DARKNET, 1, size=SIZE)(outputs, targets)
    assert darknet["class"].item() == pytest.approx(slow_exp(outputs, targets, net, 1.0, 1.0)["class"], rel=1e-6)


def test_background_that_overlaps_a_true_box_well_is_left_alone() -> None:
    """The anchor (50, 40) is best; the other anchor of the head is brought to nearly the same box by its numbers."""
    net = two_heads(3)
    outputs = [torch.zeros_like(output) for output in raw(net)]
    targets = torch.tensor([[0, 0, 0.25, 0.25, 50 / 64, 40 / 64]])
    outputs[0][0, 0, 2, 0, 0], outputs[0][0, 0, 3, 0, 0] = math.log(50 / 24), math.log(40 / 20)
    outputs[0].requires_grad_()
    DetectionLoss(net, DARKNET, 3, size=SIZE)(outputs, targets)["objectness"].backward()
    slopes = outputs[0].grad[0, :, 4, 0, 0] * 3
    assert slopes.tolist() == pytest.approx([0.0, sigmoid(0) - 1])


def test_learning_its_loss_puts_the_boxes_where_they_belong() -> None:
    """Raw numbers descended by themselves: decoded, the surest box is the true one."""
    for kind in (DARKNET, ULTRALYTICS_9_6):
        net = two_heads(3)
        outputs = [output.float().requires_grad_() for output in raw(net, batch=1)]
        loss = DetectionLoss(net, kind, 3, size=SIZE)
        steps = torch.optim.Adam(outputs, lr=0.1)
        for _ in range(200):
            steps.zero_grad()
            loss(outputs, TARGETS[3:4] * torch.tensor([0, 1, 1, 1, 1, 1]))["loss"].backward()
            steps.step()
        boxes, scores = decode_all(outputs, net, kind, SIZE)
        best, category = divmod(int(scores[0].argmax()), 3)
        assert category == 1
        truth = torch.tensor([0.05, -0.15, 0.95, 0.65]) * SIZE
        torch.testing.assert_close(boxes[0, best].detach(), truth, rtol=0, atol=1.0)


@pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_6], ids=lambda kind: kind.decode)
def test_a_centre_on_the_edge_belongs_to_the_last_cell(kind: Variant) -> None:
    net = two_heads(3)
    outputs = [output.requires_grad_() for output in raw(net, batch=1)]
    targets = torch.tensor([[0, 0, 1.0, 1.0, 22 / 64, 30 / 64]])
    DetectionLoss(net, kind, 3, size=SIZE)(outputs, targets)["class"].backward()
    coarse, fine = (output.grad[0, :, 5].abs().sum(0) for output in outputs)
    assert coarse[-1, -1] + fine[-1, -1] > 0
    assert fine[:2].sum() == fine[:, :2].sum() == 0


def test_half_precision_is_computed_in_single() -> None:
    net = two_heads(3)
    outputs = [output.bfloat16() for output in raw(net)]
    terms = DetectionLoss(net, ULTRALYTICS_9_6, 3, size=SIZE)(outputs, TARGETS.float())
    assert terms["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 4}, "classes is 4: the net scores 3"),
        ({"cls_pw": 0.0}, "cls_pw is 0.0"),
        ({"obj_pw": -1.0}, "obj_pw -1.0"),
    ],
)
def test_options_that_fit_no_net(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DetectionLoss(**{"architecture": two_heads(3), "kind": DARKNET, "classes": 3, "size": SIZE, **options})
