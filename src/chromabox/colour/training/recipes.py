"""How each net is trained: a recipe is a function that returns a frozen dataclass. Imports no torch.

``course`` is the assignment's setting to the letter. ``default`` is our best 25 epochs and ``quick`` the fastest way
to a good net; what was tried to find them, with numbers, is in ``docs/log.md``.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from chromabox.errors import UsageError

RecipeName = Literal["course", "default", "quick"]
NetName = Literal["pool-upsample", "conv-transpose", "unet", "colournet"]
NETS_IN_ORDER: tuple[NetName, ...] = get_args(NetName)
TrainableName = Literal[NetName, "photo"]
Start = Literal["auto", "shipped", "yolov3-tiny", "none"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a net is trained, apart from data, palette and seed."""

    epochs: int
    batch_size: int
    optimiser: Literal["adam", "adamw", "muon"]
    """muon: Muon for kernels, AdamW for everything else."""
    learning_rate: float
    """Peak, of Adam or of Muon's kernels."""
    other_learning_rate: float = 0.0
    """Peak of AdamW for what is not a kernel, under muon."""
    weight_decay: float = 0.0
    """On kernels only, decoupled."""
    schedule: Literal["constant", "one-cycle", "linear"] = "constant"
    """one-cycle: half a cosine up, half a cosine down; linear: straight up, straight down to 0."""
    warm_up: float = 0.0
    """The part of the run that goes up."""
    shuffle: bool = True
    mirror: bool = True
    """Each picture is mirrored left to right with probability 1/2."""
    average: float = 0.0
    """Memory of the moving average of the weights, as a part of the run; 0: no average."""
    gentle_learning_rate: float = 0.0
    """Peak of AdamW for layers that come trained from elsewhere; 0: they are treated like all others."""
    companions: float = 0.0
    """Share of each batch taken by pictures of CIFAR-10's other classes, where the data is one of its classes."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


def course(net: NetName) -> Recipe:
    """The assignment: Adam 1e-3, batches of 100 in file order, 25 epochs, nothing else."""
    return Recipe(
        epochs=25,
        batch_size=100,
        optimiser="adam",
        learning_rate=1e-3,
        shuffle=False,
        mirror=False,
        precision="float32",
    )


def default(net: NetName) -> Recipe:
    """Our best 25 epochs; for colournet our best within a quarter of an hour or so on two cores."""
    if net == "colournet":
        return Recipe(
            epochs=24,
            batch_size=128,
            optimiser="muon",
            learning_rate=0.04,
            other_learning_rate=0.006,
            weight_decay=0.03,
            schedule="linear",
            warm_up=0.08,
            average=0.04,
            companions=0.8,
        )
    return Recipe(
        epochs=25,
        batch_size=50,
        optimiser="muon",
        learning_rate=0.05,
        other_learning_rate=0.02,
        schedule="linear",
        warm_up=0.2,
        average=0.04,
    )


def quick(net: NetName) -> Recipe:
    """The fewest epochs that reach the best published UNet with a margin."""
    if net == "colournet":
        return replace(default(net), epochs=5)
    return replace(default(net), epochs=2, batch_size=32, learning_rate=0.1, average=0.1)


RECIPES = {"course": course, "default": default, "quick": quick}


def photo() -> Recipe:
    """The photo net: hours on one core, in batches as small as Muon likes them."""
    return Recipe(
        epochs=12,
        batch_size=32,
        optimiser="muon",
        learning_rate=0.02,
        other_learning_rate=0.002,
        gentle_learning_rate=5e-4,
        weight_decay=0.03,
        schedule="linear",
        warm_up=0.02,
        average=0.04,
    )


def recipe_for(
    name: RecipeName,
    net: NetName,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
) -> Recipe:
    """The recipe of that name for that net, with what is given put in its place. Raises UsageError for nonsense."""
    if name not in RECIPES:
        raise UsageError(f"recipe {name!r}: unknown; there are {', '.join(RECIPES)}")
    return _changed(RECIPES[name](net), epochs, batch_size, learning_rate)


def photo_recipe(
    name: RecipeName,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    tuning: bool = False,
) -> Recipe:
    """The photo net's recipe; ``tuning``: for a net that is trained already. Raises UsageError for nonsense."""
    recipe = photo() if name == "default" else replace(photo(), epochs=3)
    if tuning:
        # A tenth of the rates: what the net knows must survive a few pictures.
        recipe = replace(
            recipe, epochs=5, learning_rate=0.002, other_learning_rate=2e-4, gentle_learning_rate=5e-5, batch_size=16
        )
    return _changed(recipe, epochs, batch_size, learning_rate)


def _changed(recipe: Recipe, epochs: int | None, batch_size: int | None, learning_rate: float | None) -> Recipe:
    """The recipe with what is given put in its place."""
    for option, value in (("epochs", epochs), ("batch-size", batch_size), ("learning-rate", learning_rate)):
        if value is not None and not value > 0:
            raise UsageError(f"{option} is {value}: give a number above 0")
    return replace(
        recipe,
        epochs=epochs or recipe.epochs,
        batch_size=batch_size or recipe.batch_size,
        learning_rate=learning_rate or recipe.learning_rate,
    )


def schedule_factor(recipe: Recipe, progress: float) -> float:
    """The factor on the peak learning rate at ``progress`` in [0, 1) of the run."""
    if recipe.schedule == "constant":
        return 1.0
    up = progress < recipe.warm_up
    part = progress / recipe.warm_up if up else (progress - recipe.warm_up) / (1 - recipe.warm_up)
    if recipe.schedule == "one-cycle":
        part = (1 - math.cos(math.pi * part)) / 2
    return part if up else 1 - part
