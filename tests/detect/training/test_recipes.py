"""Recipes against the numbers of the course's tool."""

import pytest

from chromabox.detect.training.recipes import course, default, finetune_recipe, gentler
from chromabox.errors import UsageError


def test_the_course_never_leaves_its_warm_up() -> None:
    """128 pictures, 5 epochs: 40 batches, of 1000 that the warm-up takes."""
    assert course().warm_up(5, 8) == 1000
    assert course().warm_up(5, 500) == 1500


def test_ours_takes_at_most_a_tenth_of_the_run() -> None:
    assert default().warm_up(5, 8) == 4
    assert default().warm_up(100, 8) == 8


@pytest.mark.parametrize(("batch", "batches"), [(16, 4), (64, 1), (128, 1), (24, 3), (1, 64)])
def test_the_course_adds_gradients_up_to_64_pictures(batch: int, batches: int) -> None:
    assert finetune_recipe("course", batch_size=batch).accumulate == batches


def test_given_numbers_take_the_place_of_the_recipes() -> None:
    recipe = finetune_recipe("default", epochs=3, batch_size=2)
    assert (recipe.epochs, recipe.batch_size, recipe.accumulate) == (3, 2, 1)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="recipe is best: give course or default"):
        finetune_recipe("best")
    with pytest.raises(UsageError, match="epochs is 0"):
        finetune_recipe("course", epochs=0)


def test_weights_that_know_all_classes_are_trained_more_gently_by_ours_alone() -> None:
    gentle = gentler(default(), default().gentle)
    assert gentle.learning_rate == pytest.approx(default().learning_rate * default().gentle)
    assert gentle.other_learning_rate == pytest.approx(default().other_learning_rate * default().gentle)
    assert course().gentle == course().gentle_beside == 1
