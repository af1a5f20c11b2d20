"""Recipes against the numbers of the course's tool."""

import pytest

from chromabox.detect.training.recipes import (
    course_finetune_recipe,
    default_finetune_recipe,
    make_finetune_recipe,
    scale_lr,
)
from chromabox.errors import UsageError


def test_the_course_never_leaves_its_warm_up() -> None:
    """128 pictures, 5 epochs: 40 batches, of 1000 that the warm-up takes."""
    assert course_finetune_recipe().num_warmup_batches(5, 8) == 1000
    assert course_finetune_recipe().num_warmup_batches(5, 500) == 1500


def test_ours_takes_at_most_a_tenth_of_the_run() -> None:
    assert default_finetune_recipe().num_warmup_batches(5, 8) == 4
    assert default_finetune_recipe().num_warmup_batches(100, 8) == 8


@pytest.mark.parametrize(("batch", "batches"), [(16, 4), (64, 1), (128, 1), (24, 3), (1, 64)])
def test_the_course_adds_gradients_up_to_64_pictures(batch: int, batches: int) -> None:
    assert make_finetune_recipe("course", batch_size=batch).accumulate == batches


def test_given_numbers_take_the_place_of_the_recipes() -> None:
    recipe = make_finetune_recipe("default", epochs=3, batch_size=2)
    assert (recipe.epochs, recipe.batch_size, recipe.accumulate) == (3, 2, 1)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="recipe is best: give course or default"):
        make_finetune_recipe("best")
    with pytest.raises(UsageError, match="epochs is 0"):
        make_finetune_recipe("course", epochs=0)


def test_weights_that_know_all_classes_are_trained_more_gently_by_ours_alone() -> None:
    gentle = scale_lr(default_finetune_recipe(), default_finetune_recipe().lr_scale_same_classes)
    assert gentle.lr == pytest.approx(default_finetune_recipe().lr * default_finetune_recipe().lr_scale_same_classes)
    assert gentle.adamw_lr == pytest.approx(
        default_finetune_recipe().adamw_lr * default_finetune_recipe().lr_scale_same_classes
    )
    assert course_finetune_recipe().lr_scale_same_classes == course_finetune_recipe().lr_scale_added_classes == 1
