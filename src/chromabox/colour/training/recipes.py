"""How each net is trained: a recipe is a function that returns a frozen dataclass. Imports no torch.

``course`` is the assignment's setting to the letter. ``default`` is our best 25 epochs and ``quick`` the fastest way
to a good net; what was tried to find them, with numbers, is in ``docs/log.md``.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from chromabox.errors import UsageError

RecipeName = Literal["course", "default", "quick"]
PaletteModelName = Literal["pool-upsample", "conv-transpose", "unet", "colournet"]
PALETTE_MODELS: tuple[PaletteModelName, ...] = get_args(PaletteModelName)
ModelName = Literal[PaletteModelName, "photo"]
InitName = Literal["auto", "shipped", "yolov3-tiny", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """Everything that decides how a net is trained, apart from data, palette and seed."""

    epochs: int
    batch_size: int
    optimizer: Literal["adam", "adamw", "muon"]
    """muon: Muon for kernels, AdamW for everything else."""
    lr: float
    """Peak, of Adam or of Muon's kernels."""
    adamw_lr: float = 0.0
    """Peak of AdamW for what is not a kernel, under muon."""
    weight_decay: float = 0.0
    """On kernels only, decoupled."""
    schedule: Literal["constant", "one-cycle", "linear"] = "constant"
    """one-cycle: half a cosine up, half a cosine down; linear: straight up, straight down to 0."""
    warmup_fraction: float = 0.0
    """The part of the run that goes up."""
    shuffle: bool = True
    hflip: bool = True
    """Each picture is mirrored left to right with probability 1/2."""
    ema_fraction: float = 0.0
    """Memory of the moving average of the weights, as a part of the run; 0: no average."""
    backbone_lr: float = 0.0
    """Peak of AdamW for layers that come trained from elsewhere; 0: they are treated like all others."""
    auxiliary_fraction: float = 0.0
    """Share of each batch taken by pictures of CIFAR-10's other classes, where the data is one of its classes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


def course_recipe(model: PaletteModelName) -> TrainRecipe:
    """The assignment: Adam 1e-3, batches of 100 in file order, 25 epochs, nothing else."""
    return TrainRecipe(
        epochs=25,
        batch_size=100,
        optimizer="adam",
        lr=1e-3,
        shuffle=False,
        hflip=False,
        precision="float32",
    )


def default_recipe(model: PaletteModelName) -> TrainRecipe:
    """Our best 25 epochs; for colournet our best within a quarter of an hour or so on two cores."""
    if model == "colournet":
        return TrainRecipe(
            epochs=24,
            batch_size=128,
            optimizer="muon",
            lr=0.04,
            adamw_lr=0.006,
            weight_decay=0.03,
            schedule="linear",
            warmup_fraction=0.08,
            ema_fraction=0.04,
            auxiliary_fraction=0.8,
        )
    return TrainRecipe(
        epochs=25,
        batch_size=50,
        optimizer="muon",
        lr=0.05,
        adamw_lr=0.02,
        schedule="linear",
        warmup_fraction=0.2,
        ema_fraction=0.04,
    )


def quick_recipe(model: PaletteModelName) -> TrainRecipe:
    """The fewest epochs that reach the best published UNet with a margin."""
    if model == "colournet":
        return replace(default_recipe(model), epochs=5)
    return replace(default_recipe(model), epochs=2, batch_size=32, lr=0.1, ema_fraction=0.1)


PALETTE_RECIPES = {"course": course_recipe, "default": default_recipe, "quick": quick_recipe}


def base_photo_recipe() -> TrainRecipe:
    """The photo net: hours on one core, in batches as small as Muon likes them."""
    return TrainRecipe(
        epochs=12,
        batch_size=32,
        optimizer="muon",
        lr=0.02,
        adamw_lr=0.002,
        backbone_lr=5e-4,
        weight_decay=0.03,
        schedule="linear",
        warmup_fraction=0.02,
        ema_fraction=0.04,
    )


def make_recipe(
    name: RecipeName,
    model: PaletteModelName,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> TrainRecipe:
    """The recipe of that name for that net, with what is given put in its place. Raises UsageError for nonsense."""
    if name not in PALETTE_RECIPES:
        raise UsageError(f"recipe {name!r}: unknown; there are {', '.join(PALETTE_RECIPES)}")
    return _override(PALETTE_RECIPES[name](model), epochs, batch_size, learning_rate)


def make_photo_recipe(
    name: RecipeName,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    finetune: bool = False,
) -> TrainRecipe:
    """The photo net's recipe; ``tuning``: for a net that is trained already. Raises UsageError for nonsense."""
    recipe = base_photo_recipe() if name == "default" else replace(base_photo_recipe(), epochs=3)
    if finetune:
        # A tenth of the rates: what the net knows must survive a few pictures.
        recipe = replace(recipe, epochs=5, lr=0.002, adamw_lr=2e-4, backbone_lr=5e-5, batch_size=16)
    return _override(recipe, epochs, batch_size, learning_rate)


def _override(
    recipe: TrainRecipe, epochs: int | None, batch_size: int | None, learning_rate: float | None
) -> TrainRecipe:
    """The recipe with what is given put in its place."""
    for option, value in (("epochs", epochs), ("batch-size", batch_size), ("learning-rate", learning_rate)):
        if value is not None and not value > 0:
            raise UsageError(f"{option} is {value}: give a number above 0")
    return replace(
        recipe,
        epochs=epochs or recipe.epochs,
        batch_size=batch_size or recipe.batch_size,
        lr=learning_rate or recipe.lr,
    )


def lr_factor(recipe: TrainRecipe, progress: float) -> float:
    """The factor on the peak learning rate at ``progress`` in [0, 1) of the run."""
    if recipe.schedule == "constant":
        return 1.0
    up = progress < recipe.warmup_fraction
    part = (
        progress / recipe.warmup_fraction if up else (progress - recipe.warmup_fraction) / (1 - recipe.warmup_fraction)
    )
    if recipe.schedule == "one-cycle":
        part = (1 - math.cos(math.pi * part)) / 2
    return part if up else 1 - part
