"""Rates of fine-tuning: the course's from its formulas, worked out by hand."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from chromabox.detect.training.freeze import freeze
from chromabox.detect.training.recipes import course_finetune_recipe, default_finetune_recipe
from chromabox.detect.training.setup import build_finetune_optimizers, finetune_lr_schedule
from chromabox.engine.optim import Muon
from detector_fixtures import make_small_detector


def test_the_course_s_groups_and_decay() -> None:
    net = copy.deepcopy(make_small_detector().model)
    freeze(net, 2)
    (sgd,) = build_finetune_optimizers(net, course_finetune_recipe())
    assert [len(group["params"]) for group in sgd.param_groups] == [4, 3, 4]
    assert [group["weight_decay"] for group in sgd.param_groups] == [5e-4, 0, 0]
    assert all(group["nesterov"] for group in sgd.param_groups)
    trained = {id(parameter) for group in sgd.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in net.parameters() if parameter.requires_grad}


def test_decay_goes_with_the_pictures_of_an_update() -> None:
    (sgd,) = build_finetune_optimizers(make_small_detector().model, replace(course_finetune_recipe(), batch_size=24))
    assert sgd.param_groups[0]["weight_decay"] == pytest.approx(5e-4 * 24 * 3 / 64)


def test_the_course_s_rates_in_its_own_example() -> None:
    """8 batches an epoch, 5 epochs, 4 batches an update: 10 updates, the warm-up would take 1000 batches."""
    optimisers = build_finetune_optimizers(make_small_detector().model, course_finetune_recipe())
    schedule = finetune_lr_schedule(course_finetune_recipe(), optimisers, 5, 8)
    kernels, _, biases = schedule(3)[0]
    # Update 3 is the second of epoch 1: 12 batches are done.
    full = 0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi / 5)) / 2)
    assert kernels["lr"] == pytest.approx(full * 0.012)
    assert biases["lr"] == pytest.approx(0.1 + (full - 0.1) * 0.012)
    assert kernels["momentum"] == pytest.approx(0.8 + 0.137 * 0.012)
    assert schedule(0)[0][0]["lr"] == 0


def test_after_the_warm_up_the_course_s_cosine_ends_near_a_tenth() -> None:
    optimisers = build_finetune_optimizers(make_small_detector().model, course_finetune_recipe())
    schedule = finetune_lr_schedule(course_finetune_recipe(), optimisers, 100, 100)
    kernels, _, biases = schedule(50 * 25)[0]
    assert kernels == pytest.approx({"lr": 0.0055, "momentum": 0.937})
    assert biases == pytest.approx(kernels)
    assert schedule(99 * 25)[0][0]["lr"] == pytest.approx(0.001, rel=0.01)


def test_ours_goes_up_quickly_and_straight_down() -> None:
    net = copy.deepcopy(make_small_detector().model)
    freeze(net, 3)
    muon, adam = build_finetune_optimizers(net, default_finetune_recipe())
    assert isinstance(muon, Muon)
    assert [tuple(kernel.shape) for kernel in muon.param_groups[0]["params"]] == [(8, 8, 3, 3)] * 2
    # The head's kernel, two weights of normalisation, three biases.
    assert len(adam.param_groups[0]["params"]) == 6
    schedule = finetune_lr_schedule(default_finetune_recipe(), [muon, adam], 5, 8)
    factors = [schedule(update)[0][0]["lr"] / default_finetune_recipe().lr for update in range(40)]
    assert factors[:4] == pytest.approx([(update + 0.5) / 4 * 1.0 for update in range(4)], abs=0.02)
    assert factors[4:] == pytest.approx([(39.5 - update) / 36 for update in range(4, 40)])


def test_with_all_but_the_heads_frozen_there_is_nothing_for_muon() -> None:
    net = copy.deepcopy(make_small_detector().model)
    freeze(net, 5)
    (adam,) = build_finetune_optimizers(net, default_finetune_recipe())
    assert isinstance(adam, torch.optim.AdamW)
