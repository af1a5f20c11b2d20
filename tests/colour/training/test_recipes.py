"""The recipes against the assignment's text, and the schedules against PyTorch's OneCycleLR and numpy's interp."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from chromabox.colour.training.recipes import PALETTE_MODELS, PALETTE_RECIPES, TrainRecipe, lr_factor, make_recipe
from chromabox.errors import UsageError


def recipe(**settings: object) -> TrainRecipe:
    return TrainRecipe(**{"epochs": 4, "batch_size": 8, "optimizer": "adam", "lr": 0.1, **settings})


@pytest.mark.parametrize("net", PALETTE_MODELS)
def test_course_is_the_assignment_to_the_letter(net: str) -> None:
    course = make_recipe("course", net)
    expected = {
        "epochs": 25,
        "batch_size": 100,
        "optimizer": "adam",
        "lr": 0.001,
        "weight_decay": 0.0,
        "schedule": "constant",
        "shuffle": False,
        "hflip": False,
        "ema_fraction": 0.0,
        "precision": "float32",
    }
    assert {name: value for name, value in asdict(course).items() if name in expected} == expected
    assert {lr_factor(course, progress) for progress in (0.0, 0.3, 0.999)} == {1.0}


@pytest.mark.parametrize("net", PALETTE_MODELS)
@pytest.mark.parametrize("name", PALETTE_RECIPES)
def test_every_recipe_can_be_trained(name: str, net: str) -> None:
    found = make_recipe(name, net)
    assert found.epochs >= 1
    assert found.batch_size >= 1
    assert found.lr > 0
    assert 0 <= found.warmup_fraction < 1
    factors = [lr_factor(found, progress) for progress in np.linspace(0.001, 0.999, 999)]
    assert 0.99 < max(factors) <= 1
    assert min(factors) > 0
    if found.optimizer == "muon":
        assert found.adamw_lr > 0


@pytest.mark.parametrize("steps_up", [1, 30, 60])
def test_one_cycle_is_pytorchs(steps_up: int) -> None:
    # OneCycleLR's peak lies at step pct_start · total − 1 of total − 1.
    total = 101
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 1.0, total_steps=total, pct_start=(steps_up + 1) / total, div_factor=1e9, final_div_factor=1e9
    )
    ours = recipe(schedule="one-cycle", warmup_fraction=steps_up / (total - 1))
    for step in range(total - 1):
        found = lr_factor(ours, step / (total - 1))
        assert found == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-6)
        optimiser.step()
        scheduler.step()


@pytest.mark.parametrize("warm_up", [0.0, 0.2, 0.9])
def test_linear_is_numpys_interpolation(warm_up: float) -> None:
    ours = recipe(schedule="linear", warmup_fraction=warm_up)
    knots = ([0, warm_up, 1], [0, 1, 0]) if warm_up else ([0, 1], [1, 0])
    for progress in np.linspace(0, 0.999, 300):
        assert lr_factor(ours, progress) == pytest.approx(np.interp(progress, *knots), abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "one-cycle", "linear"])
def test_schedules_without_warm_up_begin_at_the_peak(schedule: str) -> None:
    assert lr_factor(recipe(schedule=schedule), 0.0) == 1


def test_given_values_take_the_recipes_place() -> None:
    plain = make_recipe("course", "unet")
    given = make_recipe("course", "unet", epochs=3, batch_size=7, learning_rate=0.5)
    assert (given.epochs, given.batch_size, given.lr) == (3, 7, 0.5)
    changed = {"epochs", "batch_size", "lr"}
    assert {k for k in asdict(plain) if asdict(plain)[k] != asdict(given)[k]} == changed
    assert make_recipe("course", "unet", epochs=None) == plain


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("course", {"epochs": 0}, "epochs is 0"),
        ("course", {"epochs": -1}, "epochs is -1"),
        ("default", {"batch_size": 0}, "batch-size is 0"),
        ("quick", {"learning_rate": 0.0}, "learning-rate is 0.0"),
        ("quick", {"learning_rate": -1.0}, "learning-rate is -1.0"),
        ("quick", {"learning_rate": math.nan}, "learning-rate is nan"),
    ],
)
def test_nonsense_is_refused(name: str, given: dict, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        make_recipe(name, "unet", **given)
