"""What the old net says and how far another is from it, against the same written out in loops, a place at a time."""

import copy
import math

import numpy as np
import pytest
import torch

from chromabox.detect.models.darknet import DARKNET, ULTRALYTICS_9_6, DarknetModel, Variant
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.transfer import Teacher, TeacherOutput, replace_heads
from detector_fixtures import make_small_detector

SIZE = 64
#: Picture, class, centre, sides: one of the new class, alone in the first of two pictures.
TARGETS = torch.tensor([[0, 3, 0.25, 0.25, 0.9, 0.9]])
#: Old classes; the new one follows them.
OLD = 3

KINDS = pytest.mark.parametrize("kind", [DARKNET, ULTRALYTICS_9_6], ids=lambda kind: kind.decode)


def learning(kind: Variant) -> tuple[DarknetModel, Teacher]:
    """A net with a fourth class, and beside it what it was."""
    trained = replace_heads(make_small_detector(kind), ["newt"], keep_old_classes=True)
    loss = DetectionLoss(trained.architecture, kind, OLD + 1, size=SIZE, recipe="default")
    return copy.deepcopy(trained.model).train(), Teacher(trained.model, OLD, loss)


def views() -> torch.Tensor:
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def box_of(t: list[float], anchor: tuple[float, float], row: int, column: int, kind: Variant) -> tuple[float, ...]:
    """Corners in pixels by the formulas of the kind, stride 32."""
    if kind.decode == "exp":
        x, y = sigmoid(t[0]) + column, sigmoid(t[1]) + row
        wide, high = math.exp(t[2]) * anchor[0], math.exp(t[3]) * anchor[1]
    else:
        x, y = 2 * sigmoid(t[0]) - 0.5 + column, 2 * sigmoid(t[1]) - 0.5 + row
        wide, high = (2 * sigmoid(t[2])) ** 2 * anchor[0], (2 * sigmoid(t[3])) ** 2 * anchor[1]
    return 32 * x - wide / 2, 32 * y - high / 2, 32 * x + wide / 2, 32 * y + high / 2


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@KINDS
def test_it_is_as_sure_as_its_objectness_where_nothing_is_marked(kind: Variant) -> None:
    net, old = learning(kind)
    opinion = old.predict({-1: views()}, 0, TARGETS)
    (head,), (sure,) = opinion.heads, opinion.objectness
    torch.testing.assert_close(head, old.model(views())[0])
    anchors = net.architecture.yolo_layers[0].head_anchors
    marked = (16 - 0.45 * 64, 16 - 0.45 * 64, 16 + 0.45 * 64, 16 + 0.45 * 64)
    (learnt,) = old.loss.assign([head], TARGETS)
    places = set(
        zip(*(part.tolist() for part in (learnt.image, learnt.anchor, learnt.row, learnt.column)), strict=True)
    )
    silent = 0
    for picture, anchor, row, column in np.ndindex(*sure.shape):
        t = head[picture, anchor, :, row, column].tolist()
        over = picture == 0 and overlap(box_of(t, anchors[anchor], row, column, kind), marked) > 0.5
        hidden = over or (picture, anchor, row, column) in places
        silent += hidden
        assert sure[picture, anchor, row, column].item() == pytest.approx(0 if hidden else sigmoid(t[4]), abs=1e-6)
    assert 0 < silent < sure[0].numel()
    assert places


def slow_distances(output: torch.Tensor, opinion: TeacherOutput, kind: Variant) -> dict[str, float]:
    (head,), (sure,) = opinion.heads, opinion.objectness
    box = category = total = 0.0
    for picture, anchor, row, column in np.ndindex(*sure.shape):
        weight = sure[picture, anchor, row, column].item()
        if weight <= 0.01:
            continue
        mine, wanted = (numbers[picture, anchor, :, row, column].tolist() for numbers in (output, head))
        total += weight
        box += weight * sum((one - other) ** 2 / 2 for one, other in zip(mine[:4], wanted[:4], strict=True))
        for index, (one, other) in enumerate(zip(mine[5:], wanted[5:], strict=True)):
            p, q = sigmoid(other) if index < OLD else 0.0, sigmoid(one)
            # Kullback-Leibler divergence of two coins.
            category += weight * (1 - p) * math.log((1 - p) / (1 - q)) + (weight * p * math.log(p / q) if p else 0)
    if kind.decode == "exp":
        return {"old_box": box / len(head), "old_class": category / len(head)}
    # One head: the means count three times 0.05, and three times 0.5 · 4/80.
    return {"old_box": 0.15 * box / total, "old_class": 1.5 * 4 / 80 * category / total / (OLD + 1)}


@KINDS
def test_distances_are_those_of_the_loops(kind: Variant) -> None:
    _, old = learning(kind)
    opinion = old.predict({-1: views()}, 0, TARGETS)
    outputs = [
        head + 0.5 * torch.randn(head.shape, generator=torch.Generator().manual_seed(2)) for head in opinion.heads
    ]
    found = {name: value.item() for name, value in old.distillation_loss(outputs, opinion).items()}
    assert found == pytest.approx(slow_distances(outputs[0], opinion, kind), rel=1e-5)
    assert all(value > 0 for value in found.values())


@KINDS
def test_who_says_the_same_is_not_far_but_for_new_classes(kind: Variant) -> None:
    _, old = learning(kind)
    opinion = old.predict({-1: views()}, 0, TARGETS)
    outputs = [head.clone() for head in opinion.heads]
    outputs[0][:, :, 5 + OLD] = -40
    found = old.distillation_loss(outputs, opinion)
    assert found["old_box"].item() == 0
    assert found["old_class"].item() == pytest.approx(0, abs=1e-6)
    outputs[0][:, :, 5 + OLD] = 1
    assert old.distillation_loss(outputs, opinion)["old_class"].item() > 0.01


@KINDS
def test_background_is_to_be_as_sure_as_the_old_net(kind: Variant) -> None:
    """Where nothing is marked, the slope of objectness is σ(t) less the old net's: none for who says the same."""
    _, old = learning(kind)
    opinion = old.predict({-1: views()}, 0, torch.zeros(0, 6))
    outputs = [head.clone().requires_grad_() for head in opinion.heads]
    old.loss(outputs, torch.zeros(0, 6), opinion.objectness)["objectness"].backward()
    torch.testing.assert_close(outputs[0].grad[:, :, 4], torch.zeros_like(opinion.objectness[0]), rtol=0, atol=1e-7)
    alone = [head.clone().requires_grad_() for head in opinion.heads]
    old.loss(alone, torch.zeros(0, 6))["objectness"].backward()
    assert (alone[0].grad[:, :, 4] > 0).all()


def test_what_is_marked_is_learnt_as_without_the_old_net() -> None:
    _, old = learning(DARKNET)
    opinion = old.predict({-1: views()}, 0, TARGETS)
    with_it, without = old.loss(opinion.heads, TARGETS, opinion.objectness), old.loss(opinion.heads, TARGETS)
    assert with_it["box"] == without["box"]
    assert with_it["class"] == without["class"]
    assert with_it["objectness"] != without["objectness"]


def test_the_old_net_is_not_taught() -> None:
    net, old = learning(DARKNET)
    opinion = old.predict({-1: views()}, 0, TARGETS)
    sum(old.distillation_loss(net(views()), opinion).values()).backward()
    assert net.layers[5].convolution.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in old.model.parameters())
