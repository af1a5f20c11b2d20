"""Recipes, compared with the text of the assignment; schedules, compared with numpy.interp."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from chromabox.colour.training.recipes import PALETTE_MODELS, PALETTE_RECIPES, TrainRecipe, make_recipe
from chromabox.engine.options import lr_factor
from chromabox.errors import UsageError


def make_train_recipe(**settings: object) -> TrainRecipe:
    return TrainRecipe(**{"epochs": 4, "batch_size": 8, "optimizer": "adam", "lr": 0.1, **settings})


@pytest.mark.parametrize("model", PALETTE_MODELS)
def test_course_recipe_has_the_settings_of_the_assignment(model: str) -> None:
    course = make_recipe("course", model)
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


@pytest.mark.parametrize("model", PALETTE_MODELS)
@pytest.mark.parametrize("name", PALETTE_RECIPES)
def test_every_recipe_has_valid_settings(name: str, model: str) -> None:
    recipe = make_recipe(name, model)
    assert recipe.epochs >= 1
    assert recipe.batch_size >= 1
    assert recipe.lr > 0
    assert 0 <= recipe.warmup_fraction < 1
    factors = [lr_factor(recipe, progress) for progress in np.linspace(0.001, 0.999, 999)]
    assert 0.99 < max(factors) <= 1
    assert min(factors) > 0
    if recipe.optimizer == "muon":
        assert recipe.adamw_lr > 0


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.2, 0.9])
def test_linear_schedule_matches_numpy_interp(warmup_fraction: float) -> None:
    recipe = make_train_recipe(schedule="linear", warmup_fraction=warmup_fraction)
    knots = ([0, warmup_fraction, 1], [0, 1, 0]) if warmup_fraction else ([0, 1], [1, 0])
    for progress in np.linspace(0, 0.999, 300):
        assert lr_factor(recipe, progress) == pytest.approx(np.interp(progress, *knots), abs=1e-12)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_schedules_without_warmup_start_at_the_peak(schedule: str) -> None:
    assert lr_factor(make_train_recipe(schedule=schedule), 0.0) == 1


def test_overrides_replace_values_of_the_recipe() -> None:
    course = make_recipe("course", "unet")
    overridden = make_recipe("course", "unet", epochs=3, batch_size=7, learning_rate=0.5)
    assert (overridden.epochs, overridden.batch_size, overridden.lr) == (3, 7, 0.5)
    changed = {"epochs", "batch_size", "lr"}
    assert {name for name in asdict(course) if asdict(course)[name] != asdict(overridden)[name]} == changed
    assert make_recipe("course", "unet", epochs=None) == course


@pytest.mark.parametrize(
    ("name", "overrides", "error"),
    [
        ("course", {"epochs": 0}, "--epochs is 0"),
        ("course", {"epochs": -1}, "--epochs is -1"),
        ("default", {"batch_size": 0}, "--batch-size is 0"),
        ("quick", {"learning_rate": 0.0}, "--learning-rate is 0.0"),
        ("quick", {"learning_rate": -1.0}, "--learning-rate is -1.0"),
        ("quick", {"learning_rate": math.nan}, "--learning-rate is nan"),
    ],
)
def test_override_that_is_not_positive_is_rejected(name: str, overrides: dict, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        make_recipe(name, "unet", **overrides)
