"""Gradients of layers compared with finite differences; initial weights compared with those of a run."""

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
from chromabox.engine.options import RuntimeOptions


def make_batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of random greyscale images with random labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(3, 1, 8, 8, generator=generator), torch.randint(0, 5, (3, 8, 8), generator=generator).byte())
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["pool-upsample", "conv-transpose", "unet"])
def test_layers_are_named_from_input_to_output(name: str) -> None:
    model = build_model(name, num_filters=2, num_colours=5)
    gradients = layer_gradients(model, make_batches(1))
    assert list(gradients) == ["block1", "block2", "block3", "block4", "last"]
    assert list(relative_weight_change(model, model).values()) == [0.0] * 5


def test_gradient_norm_equals_finite_differences() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1)).double()
    [(grey, labels)] = make_batches(1)
    grey = grey.double()
    weight = model[0].weight
    differences = []
    with torch.no_grad():
        for index in np.ndindex(*weight.shape):
            losses = []
            for step in (1e-3, -1e-3):
                changed = copy.deepcopy(model)
                changed[0].weight[index] += step
                losses.append(pixel_cross_entropy(changed(grey), labels).item())
            differences.append((losses[0] - losses[1]) / 2e-3)
    # The loss is computed in float32, which limits the precision of the differences.
    [gradient] = layer_gradients(model, [(grey, labels)]).values()
    assert gradient.gradient_norm == pytest.approx(np.linalg.norm(differences), rel=1e-2)
    assert gradient.weight_norm == pytest.approx(np.linalg.norm(weight.detach().numpy()))
    assert gradient.relative_norm == pytest.approx(gradient.gradient_norm / gradient.weight_norm)


def test_several_batches_give_the_root_mean_square_and_do_not_modify_the_model() -> None:
    torch.manual_seed(0)
    model = build_model("unet", num_filters=2, num_colours=5).eval()
    before = copy.deepcopy(model.state_dict())
    batches = make_batches(3)
    single = [layer_gradients(model, [batch])["block2"].gradient_norm for batch in batches]
    assert layer_gradients(model, batches)["block2"].gradient_norm == pytest.approx(np.sqrt(np.mean(np.square(single))))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weight_change_is_relative_to_the_initial_norm() -> None:
    start = build_model("unet", num_filters=2, num_colours=5)
    end = copy.deepcopy(start)
    with torch.no_grad():
        end.block1[0].weight.mul_(3)
        end.last.weight.neg_()
    assert relative_weight_change(start, end) == pytest.approx(
        {"block1": 2, "block2": 0, "block3": 0, "block4": 0, "last": 2}
    )


def test_initial_model_has_the_initial_weights_of_a_run(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    # Adam changes each weight by at most about the learning rate per step, which is negligible here.
    recipe = make_recipe("course", "unet", epochs=1, learning_rate=1e-12, batch_size=2)
    config = TrainConfig(
        model="unet", recipe_name="course", recipe=recipe, data=str(tmp_path), palette="horse24", seed=5,
        model_args={"num_filters": 2},
    )  # fmt: skip
    options = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")
    train(config, tmp_path / "run", options=options)
    state, _ = load_checkpoint(tmp_path / "run" / "last.safetensors")
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    start = initial_model(config, load_inputs(config).palette)
    assert torch.equal(torch.rand(1), expected)
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(state["net"][name], parameter.detach(), rtol=0, atol=1e-9)
