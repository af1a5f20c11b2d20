"""Freezing: parameters and BatchNorm statistics after a training step; FLOPs against PyTorch's FlopCounterMode."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chromabox.detect.models.architecture import DARKNET, yolov3, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.freeze import (
    freeze,
    layer_flops,
    num_backbone_layers,
    num_layers_to_freeze,
)
from chromabox.errors import UsageError
from detector_fixtures import make_small_detector


def _copy_state(model: DarknetModel, num_layers: int) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if int(name.split(".")[1]) < num_layers}


def _train_step(model: DarknetModel) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(head.square().mean() for head in model(torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()


def test_frozen_layers_do_not_change_in_a_training_step() -> None:
    model = copy.deepcopy(make_small_detector().model)
    before, trained_mean = _copy_state(model, 3), model.layers[4].norm.running_mean.clone()
    report = freeze(model, 3)
    _train_step(model)
    after = _copy_state(model, 3)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(not parameter.requires_grad for layer in model.layers[:3] for parameter in layer.parameters())
    assert [layer.norm.training for layer in model.layers[:5]] == [False, False, False, True, True]
    assert all(parameter.grad is None for layer in model.layers[:3] for parameter in layer.parameters())
    assert not torch.equal(trained_mean, model.layers[4].norm.running_mean)
    assert report.num_layers == 3


def test_update_bn_stats_freezes_parameters_only() -> None:
    model = copy.deepcopy(make_small_detector().model)
    mean, weight = model.layers[0].norm.running_mean.clone(), model.layers[0].norm.weight.clone()
    freeze(model, 3, update_bn_stats=True)
    _train_step(model)
    assert not torch.equal(mean, model.layers[0].norm.running_mean)
    assert torch.equal(weight, model.layers[0].norm.weight)


def test_freeze_all_bn_trains_kernels_only() -> None:
    model = copy.deepcopy(make_small_detector().model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = freeze(model, 2, freeze_all_bn=True)
    _train_step(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("convolution" in name and int(name.split(".")[1]) >= 2 for name in changed)
    # Layers 2 to 4 have 8 · 8 kernels of 3 × 3 each; the head has 16 rows of 8 weights and one bias.
    assert report.total_parameters - report.frozen_parameters == 3 * 8 * 8 * 9 + 16 * 9
    assert "BatchNorm statistics of these layers are frozen, and BatchNorm is frozen in all other layers" in str(report)


def test_frozen_model_has_the_same_state_dict_and_outputs() -> None:
    model = copy.deepcopy(make_small_detector().model)
    images = torch.rand(1, 3, 64, 64)
    expected, names = model(images)[0], list(model.state_dict())
    freeze(model, 5)
    model.eval()
    assert torch.equal(model(images)[0], expected)
    assert list(model.state_dict()) == names
    unfrozen = DarknetModel(model.architecture, model.variant)
    unfrozen.load_state_dict(model.state_dict())
    assert torch.equal(unfrozen.eval()(images)[0], expected)


def test_freezing_fewer_layers_restores_gradients() -> None:
    model = copy.deepcopy(make_small_detector().model)
    freeze(model, 5)
    assert freeze(model, "none", update_bn_stats=True).frozen_parameters == 0
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_layer_flops_equal_pytorchs_count() -> None:
    model = DarknetModel(yolov3_tiny(), DARKNET).eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.zeros(1, 3, 64, 64))
    assert 2 * 64 * 64 * sum(layer_flops(model.architecture)) == counter.get_total_flops()
    frozen_counter = FlopCounterMode(display=False)
    with frozen_counter:
        model.forward_features(torch.zeros(1, 3, 64, 64), 10)
    expected = frozen_counter.get_total_flops() / counter.get_total_flops()
    assert freeze(model, 10).flops_fraction == pytest.approx(expected)


def test_report_counts_parameters() -> None:
    model = make_small_detector().model
    report = freeze(copy.deepcopy(model), 1)
    assert report.frozen_parameters == 3 * 8 * 9 + 2 * 8
    assert report.total_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert "frozen layers: 1, with 232 of" in str(report)
    assert report.as_json()["parameters"] == 232


def test_backbone_ends_before_the_first_head() -> None:
    assert num_backbone_layers(yolov3_tiny()) == 13
    assert num_backbone_layers(yolov3()) == 75  # Darknet-53: 52 convolutions and 23 shortcuts


@pytest.mark.parametrize(("num_frozen", "expected"), [(0, 0), ("none", 0), ("10", 10), (22, 22), ("backbone", 13)])
def test_number_of_layers_is_given_as_number_or_name(num_frozen: int | str, expected: int) -> None:
    assert num_layers_to_freeze(yolov3_tiny(), num_frozen) == expected


@pytest.mark.parametrize("num_frozen", [-1, 23, "24"])
def test_freezing_all_convolutions_is_rejected(num_frozen: int | str) -> None:
    with pytest.raises(UsageError, match="expected 0 to 22 of the 24 layers of yolov3-tiny"):
        num_layers_to_freeze(yolov3_tiny(), num_frozen)


def test_unknown_name_is_rejected() -> None:
    with pytest.raises(UsageError, match="--freeze is neck: expected a number of layers, auto, none or backbone"):
        num_layers_to_freeze(yolov3_tiny(), "neck")
