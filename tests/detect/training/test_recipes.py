"""Fine-tuning recipes, with the settings of the assignment's fine-tuning script as expected values."""

from dataclasses import replace

import pytest

from chromabox.detect.training.recipes import (
    course_finetune_recipe,
    default_finetune_recipe,
    make_finetune_recipe,
    scale_lr,
)
from chromabox.errors import UsageError


def test_course_example_ends_within_the_warmup() -> None:
    """128 images and 5 epochs are 40 batches; the warm-up has 1000."""
    assert replace(course_finetune_recipe(), epochs=5).num_warmup_batches(8) == 1000
    assert replace(course_finetune_recipe(), epochs=5).num_warmup_batches(500) == 1500


def test_default_warmup_is_at_most_a_tenth_of_the_run() -> None:
    assert replace(default_finetune_recipe(), epochs=5).num_warmup_batches(8) == 4
    assert replace(default_finetune_recipe(), epochs=100).num_warmup_batches(8) == 8


@pytest.mark.parametrize(("batch_size", "expected"), [(16, 4), (64, 1), (128, 1), (24, 3), (1, 64)])
def test_course_accumulates_gradients_to_a_batch_size_of_64(batch_size: int, expected: int) -> None:
    assert make_finetune_recipe("course", batch_size=batch_size).accumulate == expected


def test_given_values_override_the_recipe() -> None:
    recipe = make_finetune_recipe("default", epochs=3, batch_size=2)
    assert (recipe.epochs, recipe.batch_size, recipe.accumulate) == (3, 2, 1)


def test_invalid_values_are_rejected() -> None:
    with pytest.raises(UsageError, match="--recipe is best: expected course or default"):
        make_finetune_recipe("best")
    with pytest.raises(UsageError, match="--epochs is 0: expected at least 1"):
        make_finetune_recipe("course", epochs=0)


def test_only_the_default_recipe_reduces_learning_rates_without_new_classes() -> None:
    scaled = scale_lr(default_finetune_recipe(), default_finetune_recipe().lr_scale_same_classes)
    assert scaled.lr == pytest.approx(default_finetune_recipe().lr * default_finetune_recipe().lr_scale_same_classes)
    assert scaled.adamw_lr == pytest.approx(
        default_finetune_recipe().adamw_lr * default_finetune_recipe().lr_scale_same_classes
    )
    assert course_finetune_recipe().lr_scale_same_classes == course_finetune_recipe().lr_scale_added_classes == 1
