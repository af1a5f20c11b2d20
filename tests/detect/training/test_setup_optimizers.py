"""Optimizers and learning rates of fine-tuning, against hand calculations with the course's formulas."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from chromabox.detect.training.freeze import freeze
from chromabox.detect.training.recipes import FINETUNE_RECIPES
from chromabox.detect.training.setup import build_finetune_optimizers, finetune_lr_schedule
from chromabox.engine.optim import Muon
from detector_fixtures import make_small_detector


def test_course_parameter_groups_and_weight_decay() -> None:
    model = copy.deepcopy(make_small_detector().model)
    freeze(model, 2)
    (sgd,) = build_finetune_optimizers(model, FINETUNE_RECIPES["course"])
    assert [len(group["params"]) for group in sgd.param_groups] == [4, 3, 4]
    assert [group["weight_decay"] for group in sgd.param_groups] == [5e-4, 0, 0]
    assert all(group["nesterov"] for group in sgd.param_groups)
    trained = {id(parameter) for group in sgd.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_weight_decay_scales_with_the_effective_batch_size() -> None:
    (sgd,) = build_finetune_optimizers(make_small_detector().model, replace(FINETUNE_RECIPES["course"], batch_size=24))
    assert sgd.param_groups[0]["weight_decay"] == pytest.approx(5e-4 * 24 * 3 / 64)


def test_course_learning_rates_of_the_course_example() -> None:
    """8 batches per epoch, 5 epochs and 4 batches per step are 10 steps; the warm-up has 1000 batches."""
    optimizers = build_finetune_optimizers(make_small_detector().model, FINETUNE_RECIPES["course"])
    schedule = finetune_lr_schedule(replace(FINETUNE_RECIPES["course"], epochs=5), optimizers, 8)
    kernels, _, biases = schedule(3)[0]
    # Step 3 is the second of epoch 1, after 12 batches.
    full_lr = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi / 5)) / 2)
    assert kernels["lr"] == pytest.approx(full_lr * 0.012)
    assert biases["lr"] == pytest.approx(0.1 + (full_lr - 0.1) * 0.012)
    assert kernels["momentum"] == pytest.approx(0.8 + 0.137 * 0.012)
    assert schedule(0)[0][0]["lr"] == 0


def test_course_cosine_ends_near_a_tenth_after_the_warmup() -> None:
    optimizers = build_finetune_optimizers(make_small_detector().model, FINETUNE_RECIPES["course"])
    schedule = finetune_lr_schedule(replace(FINETUNE_RECIPES["course"], epochs=100), optimizers, 100)
    kernels, _, biases = schedule(50 * 25)[0]
    assert kernels == pytest.approx({"lr": 0.0055, "momentum": 0.937})
    assert biases == pytest.approx(kernels)
    assert schedule(99 * 25)[0][0]["lr"] == pytest.approx(0.001, rel=0.01)


def test_default_schedule_has_a_short_warmup_and_a_linear_decay() -> None:
    model = copy.deepcopy(make_small_detector().model)
    freeze(model, 3)
    muon, adam = build_finetune_optimizers(model, FINETUNE_RECIPES["default"])
    assert isinstance(muon, Muon)
    assert [tuple(kernel.shape) for kernel in muon.param_groups[0]["params"]] == [(8, 8, 3, 3)] * 2
    # The kernel of the head, two BatchNorm weights, three biases.
    assert len(adam.param_groups[0]["params"]) == 6
    schedule = finetune_lr_schedule(replace(FINETUNE_RECIPES["default"], epochs=5), [muon, adam], 8)
    factors = [schedule(step)[0][0]["lr"] / FINETUNE_RECIPES["default"].lr for step in range(40)]
    assert factors[:4] == pytest.approx([(step + 0.5) / 4 * 1.0 for step in range(4)], abs=0.02)
    assert factors[4:] == pytest.approx([(39.5 - step) / 36 for step in range(4, 40)])


def test_training_the_heads_only_uses_no_muon() -> None:
    model = copy.deepcopy(make_small_detector().model)
    freeze(model, 5)
    (adam,) = build_finetune_optimizers(model, FINETUNE_RECIPES["default"])
    assert isinstance(adam, torch.optim.AdamW)
