"""Gradients of layers against finite differences and plain Python; where training started against a real run."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from chromabox.assignment.analysis.gradients import initial_model, layer_gradients, relative_weight_change
from chromabox.colour.models import build_model
from chromabox.colour.training.loss import pixel_cross_entropy
from chromabox.colour.training.recipes import make_recipe
from chromabox.colour.training.train import TrainConfig, load_inputs, train
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.runtime_options import RuntimeOptions


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random grey pictures with random labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(3, 1, 8, 8, generator=generator), torch.randint(0, 5, (3, 8, 8), generator=generator).byte())
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["pool-upsample", "conv-transpose", "unet"])
def test_layers_are_named_from_input_to_output(name: str) -> None:
    net = build_model(name, num_filters=2, num_colours=5)
    found = layer_gradients(net, batches(1))
    assert list(found) == ["block1", "block2", "block3", "block4", "last"]
    assert list(relative_weight_change(net, net).values()) == [0.0] * 5


def test_a_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1)).double()
    [(grey, labels)] = batches(1)
    grey = grey.double()
    weight = net[0].weight
    differences = []
    with torch.no_grad():
        for place in np.ndindex(*weight.shape):
            losses = []
            for step in (1e-3, -1e-3):
                moved_net = copy.deepcopy(net)
                moved_net[0].weight[place] += step
                losses.append(pixel_cross_entropy(moved_net(grey), labels).item())
            differences.append((losses[0] - losses[1]) / 2e-3)
    # The loss is taken in float32, which bounds what differences of it can tell.
    [found] = layer_gradients(net, [(grey, labels)]).values()
    assert found.gradient_norm == pytest.approx(np.linalg.norm(differences), rel=1e-2)
    assert found.weight_norm == pytest.approx(np.linalg.norm(weight.detach().numpy()))
    assert found.relative_norm == pytest.approx(found.gradient_norm / found.weight_norm)


def test_several_batches_give_the_root_mean_square_and_leave_the_net() -> None:
    torch.manual_seed(0)
    net = build_model("unet", num_filters=2, num_colours=5).eval()
    before = copy.deepcopy(net.state_dict())
    several = batches(3)
    single = [layer_gradients(net, [batch])["block2"].gradient_norm for batch in several]
    assert layer_gradients(net, several)["block2"].gradient_norm == pytest.approx(np.sqrt(np.mean(np.square(single))))
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_moved_is_a_part_of_the_start() -> None:
    start = build_model("unet", num_filters=2, num_colours=5)
    end = copy.deepcopy(start)
    with torch.no_grad():
        end.block1[0].weight.mul_(3)
        end.last.weight.neg_()
    assert relative_weight_change(start, end) == pytest.approx(
        {"block1": 2, "block2": 0, "block3": 0, "block4": 0, "last": 2}
    )


def test_the_start_is_where_a_run_began(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    # Adam moves each weight by at most about the learning rate a step: here by nothing.
    recipe = make_recipe("course", "unet", epochs=1, learning_rate=1e-12, batch_size=2)
    config = TrainConfig(
        model="unet", recipe_name="course", recipe=recipe, data=str(tmp_path), palette="horse24", seed=5,
        model_args={"num_filters": 2},
    )  # fmt: skip
    options = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")
    train(config, tmp_path / "run", options=options, log=lambda line: None)
    state, _ = load_checkpoint(tmp_path / "run" / "last.safetensors")
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    start = initial_model(config, load_inputs(config).palette)
    assert torch.equal(torch.rand(1), expected)
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(state["net"][name], parameter.detach(), rtol=0, atol=1e-9)
