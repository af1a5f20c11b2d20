"""Training recipes: functions that return the hyperparameters of each model as a frozen dataclass.

``course`` has the exact settings of the assignment. ``default`` is the best recipe with 25 epochs. ``quick`` is the
fastest recipe for a good model. ``docs/log.md`` describes the experiments from which the recipes were chosen. This
module does not import torch.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from chromabox.engine.options import OptimConfig
from chromabox.errors import UsageError

RecipeName = Literal["course", "default", "quick"]
PaletteModelName = Literal["pool-upsample", "conv-transpose", "unet", "colournet"]
PALETTE_MODELS: tuple[PaletteModelName, ...] = get_args(PaletteModelName)
ModelName = Literal[PaletteModelName, "photo"]
InitName = Literal["auto", "shipped", "efficientnet-lite0", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(OptimConfig):
    """Hyperparameters of a training run, apart from data, palette and seed."""

    shuffle: bool = True
    hflip: bool = True
    """Flip each image horizontally with probability 1/2."""
    backbone_lr: float = 0.0
    """Peak learning rate of AdamW for pretrained layers. With 0, these layers are optimised like all other layers."""
    auxiliary_fraction: float = 0.0
    """Fraction of each batch taken from the CIFAR-10 classes that are not in the training data."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


def course_recipe(model: PaletteModelName) -> TrainRecipe:
    """Return the assignment's settings.

    The optimizer is Adam with a constant learning rate of 1e-3. The model is trained for 25 epochs on batches of 100
    images, in file order and without flips.
    """
    recipe = TrainRecipe(epochs=25, batch_size=100, optimizer="adam", lr=1e-3)
    return replace(recipe, shuffle=False, hflip=False, precision="float32")


def default_recipe(model: PaletteModelName) -> TrainRecipe:
    """Return the best recipe with 25 epochs or, for ``colournet``, for 15 minutes of training on two cores."""
    if model == "colournet":
        recipe = _muon_recipe(epochs=24, batch_size=128, lr=0.04, adamw_lr=0.006, warmup_fraction=0.08)
        return replace(recipe, weight_decay=0.03, auxiliary_fraction=0.8)
    return _muon_recipe(epochs=25, batch_size=50, lr=0.05, adamw_lr=0.02, warmup_fraction=0.2)


def quick_recipe(model: PaletteModelName) -> TrainRecipe:
    """Return the recipe with the fewest epochs whose models clearly surpass the best published UNet."""
    if model == "colournet":
        return replace(default_recipe(model), epochs=5)
    return replace(default_recipe(model), epochs=2, batch_size=32, lr=0.1, ema_fraction=0.1)


PALETTE_RECIPES = {"course": course_recipe, "default": default_recipe, "quick": quick_recipe}


def _muon_recipe(**settings: Any) -> TrainRecipe:
    return TrainRecipe(optimizer="muon", schedule="linear", ema_fraction=0.04, **settings)


def make_recipe(
    name: RecipeName,
    model: PaletteModelName,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> TrainRecipe:
    """Return the named recipe for a model, with the given overrides.

    Raise UsageError if the name is unknown or an override is not positive.
    """
    if name not in PALETTE_RECIPES:
        raise UsageError(f"unknown recipe {name!r}: expected one of {', '.join(PALETTE_RECIPES)}")
    return _override(PALETTE_RECIPES[name](model), epochs, batch_size, learning_rate)


def make_photo_recipe(
    name: RecipeName,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    finetune: bool = False,
) -> TrainRecipe:
    """Return the recipe for the photo model, with the given overrides. Training takes hours on one core.

    ``finetune`` selects the recipe for a model that is already trained. Raise UsageError if an override is not
    positive.
    """
    recipe = _muon_recipe(epochs=12, batch_size=32, lr=0.02, adamw_lr=0.002, warmup_fraction=0.02)
    recipe = replace(recipe, epochs=12 if name == "default" else 3, weight_decay=0.03, backbone_lr=5e-4)
    if finetune:
        # Learning rates that are ten times lower preserve most of the initial model if there are only a few images.
        recipe = replace(recipe, epochs=5, lr=0.002, adamw_lr=2e-4, backbone_lr=5e-5, batch_size=16)
    return _override(recipe, epochs, batch_size, learning_rate)


def _override(
    recipe: TrainRecipe, epochs: int | None, batch_size: int | None, learning_rate: float | None
) -> TrainRecipe:
    """Return the recipe after applying all overrides that are not None. Raise UsageError if one is not positive."""
    for option, value in (("--epochs", epochs), ("--batch-size", batch_size), ("--learning-rate", learning_rate)):
        if value is not None and not value > 0:
            raise UsageError(f"{option} is {value}: expected a number above 0")
    return replace(
        recipe,
        epochs=epochs or recipe.epochs,
        batch_size=batch_size or recipe.batch_size,
        lr=learning_rate or recipe.lr,
    )
