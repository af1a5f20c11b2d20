"""Fine-tuning recipes, with the settings of the assignment's fine-tuning script as expected values."""

from dataclasses import replace

import pytest

from chromabox.detect.training.recipes import (
    FINETUNE_RECIPES,
    make_finetune_recipe,
    scale_lr,
)
from chromabox.errors import UsageError


def test_course_example_ends_within_the_warmup() -> None:
    """128 images and 5 epochs are 40 batches; the warm-up has 1000."""
    assert replace(FINETUNE_RECIPES["course"], epochs=5).num_warmup_batches(8) == 1000
    assert replace(FINETUNE_RECIPES["course"], epochs=5).num_warmup_batches(500) == 1500


def test_default_warmup_is_at_most_a_tenth_of_the_run() -> None:
    assert replace(FINETUNE_RECIPES["default"], epochs=5).num_warmup_batches(8) == 4
    assert replace(FINETUNE_RECIPES["default"], epochs=100).num_warmup_batches(8) == 8


@pytest.mark.parametrize(("batch_size", "expected"), [(16, 4), (64, 1), (128, 1), (24, 3), (1, 64)])
def test_course_accumulates_gradients_to_a_batch_size_of_64(batch_size: int, expected: int) -> None:
    assert make_finetune_recipe("course", batch_size=batch_size).accumulate == expected


def test_given_values_override_the_recipe() -> None:
    recipe = make_finetune_recipe("default", epochs=3, batch_size=2)
    assert (recipe.epochs, recipe.batch_size, recipe.accumulate) == (3, 2, 1)


@pytest.mark.parametrize("name", ["default", "course"])
def test_given_learning_rate_scales_all_learning_rates_and_applies_without_new_classes(name: str) -> None:
    recipe, original = make_finetune_recipe(name, learning_rate=1e-3), FINETUNE_RECIPES[name]
    assert recipe.lr == pytest.approx(1e-3)
    assert recipe.adamw_lr / recipe.lr == pytest.approx(original.adamw_lr / original.lr)
    assert recipe.warmup_bias_lr / recipe.lr == pytest.approx(original.warmup_bias_lr / original.lr)
    assert recipe.lr_scale_same_classes == recipe.lr_scale_added_classes == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_learning_rate_is_rejected(value: float) -> None:
    with pytest.raises(UsageError, match=f"--learning-rate is {value}: expected a number above 0"):
        make_finetune_recipe("default", learning_rate=value)


def test_invalid_values_are_rejected() -> None:
    with pytest.raises(UsageError, match="--recipe is best: expected course or default"):
        make_finetune_recipe("best")
    with pytest.raises(UsageError, match="--epochs is 0: expected at least 1"):
        make_finetune_recipe("course", epochs=0)


def test_only_the_default_recipe_reduces_learning_rates_without_new_classes() -> None:
    scaled = scale_lr(FINETUNE_RECIPES["default"], FINETUNE_RECIPES["default"].lr_scale_same_classes)
    assert scaled.lr == pytest.approx(
        FINETUNE_RECIPES["default"].lr * FINETUNE_RECIPES["default"].lr_scale_same_classes
    )
    assert scaled.adamw_lr == pytest.approx(
        FINETUNE_RECIPES["default"].adamw_lr * FINETUNE_RECIPES["default"].lr_scale_same_classes
    )
    assert FINETUNE_RECIPES["course"].lr_scale_same_classes == FINETUNE_RECIPES["course"].lr_scale_added_classes == 1
