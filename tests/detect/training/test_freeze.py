"""Freezing: what stands still, through batch normalisation too; work against PyTorch's own count of operations."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chromabox.detect.models.architecture import yolov3, yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, DarknetModel
from chromabox.detect.training.freeze import (
    freeze,
    layer_flops,
    num_backbone_layers,
    num_layers_to_freeze,
    trainable_head_parameters,
)
from chromabox.errors import UsageError
from detector_fixtures import make_small_detector


def _state(net: DarknetModel, until: int) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items() if int(name.split(".")[1]) < until}


def _train_a_step(net: DarknetModel) -> None:
    net.train()
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    sum(head.square().mean() for head in net(torch.rand(2, 3, 64, 64))).backward()
    optimiser.step()


def test_frozen_layers_stay_as_they_are_through_training_mode_and_steps() -> None:
    net = copy.deepcopy(make_small_detector().model)
    before, rest = _state(net, 3), net.layers[4].norm.running_mean.clone()
    frozen = freeze(net, 3)
    _train_a_step(net)
    after = _state(net, 3)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not parameter.requires_grad for layer in net.layers[:3] for parameter in layer.parameters())
    assert [layer.norm.training for layer in net.layers[:5]] == [False, False, False, True, True]
    assert all(parameter.grad is None for layer in net.layers[:3] for parameter in layer.parameters())
    assert not torch.equal(rest, net.layers[4].norm.running_mean)
    assert frozen.num_layers == 3


def test_with_moving_statistics_only_parameters_stand_still() -> None:
    net = copy.deepcopy(make_small_detector().model)
    mean, weight = net.layers[0].norm.running_mean.clone(), net.layers[0].norm.weight.clone()
    freeze(net, 3, update_bn_stats=True)
    _train_a_step(net)
    assert not torch.equal(mean, net.layers[0].norm.running_mean)
    assert torch.equal(weight, net.layers[0].norm.weight)


def test_all_normalisation_may_stand_still_while_kernels_learn() -> None:
    net = copy.deepcopy(make_small_detector().model)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    frozen = freeze(net, 2, freeze_all_bn=True)
    _train_a_step(net)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("convolution" in name and int(name.split(".")[1]) >= 2 for name in moved)
    # Layers 2 to 4 have 8 · 8 kernels of 3 × 3 each, the head 16 rows of 8 weights and a bias.
    assert frozen.total_parameters - frozen.frozen_parameters == 3 * 8 * 8 * 9 + 16 * 9
    assert "of their batch normalisation stay as they are, as does the others'" in str(frozen)


def test_a_frozen_net_has_the_same_state_and_outputs() -> None:
    net = copy.deepcopy(make_small_detector().model)
    images = torch.rand(1, 3, 64, 64)
    expected, names = net(images)[0], list(net.state_dict())
    freeze(net, 5)
    net.eval()
    assert torch.equal(net(images)[0], expected)
    assert list(net.state_dict()) == names
    fresh = DarknetModel(net.architecture, net.variant)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(images)[0], expected)


def test_freezing_less_afterwards_gives_gradients_back() -> None:
    net = copy.deepcopy(make_small_detector().model)
    freeze(net, 5)
    assert freeze(net, "none", update_bn_stats=True).frozen_parameters == 0
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_work_is_what_pytorch_counts() -> None:
    net = DarknetModel(yolov3_tiny(), DARKNET).eval()
    counter = FlopCounterMode(display=False)
    with counter:
        net(torch.zeros(1, 3, 64, 64))
    assert 2 * 64 * 64 * sum(layer_flops(net.architecture)) == counter.get_total_flops()
    prefix = FlopCounterMode(display=False)
    with prefix:
        net.forward_features(torch.zeros(1, 3, 64, 64), 10)
    share = prefix.get_total_flops() / counter.get_total_flops()
    assert freeze(net, 10).flops_fraction == pytest.approx(share)


def test_parameters_are_counted() -> None:
    net = make_small_detector().model
    frozen = freeze(copy.deepcopy(net), 1)
    assert frozen.frozen_parameters == 3 * 8 * 9 + 2 * 8
    assert frozen.total_parameters == sum(parameter.numel() for parameter in net.parameters())
    assert "the first 1 layers, 232 of" in str(frozen)
    assert frozen.as_json()["parameters"] == 232


def test_backbones_end_where_the_first_head_begins() -> None:
    assert num_backbone_layers(yolov3_tiny()) == 13
    assert num_backbone_layers(yolov3()) == 75  # Darknet-53: 52 convolutions and 23 shortcuts


@pytest.mark.parametrize(("until", "depth"), [(0, 0), ("none", 0), ("10", 10), (22, 22), ("backbone", 13)])
def test_depth_by_number_and_name(until: int | str, depth: int) -> None:
    assert num_layers_to_freeze(yolov3_tiny(), until) == depth


@pytest.mark.parametrize("until", [-1, 23, "24"])
def test_something_must_be_left_to_train(until: int | str) -> None:
    with pytest.raises(UsageError, match="at most the first 22 can be frozen"):
        num_layers_to_freeze(yolov3_tiny(), until)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="freeze is neck: give a number of layers, auto, or none or backbone"):
        num_layers_to_freeze(yolov3_tiny(), "neck")


def test_the_heads_last_convolutions() -> None:
    net = DarknetModel(yolov3_tiny(2), DARKNET)
    freeze(net, 16)
    assert [tuple(parameter.shape) for parameter in trainable_head_parameters(net)] == [(21, 256, 1, 1), (21,)]
