"""How a detector is fine-tuned: a recipe is a function that returns a frozen dataclass. Imports no torch.

``course`` is the setting of the course's tool to the letter. ``default`` is ours: what is frozen stands really still,
the warm-up is short, and the rates are small enough not to hurt a net that is trained already.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from chromabox.errors import UsageError

FinetuneRecipeName = Literal["course", "default"]


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """Everything that decides how a detector is trained, apart from data, freezing and seed."""

    name: FinetuneRecipeName
    """Also by what rule views are drawn and the loss is put together."""
    epochs: int
    batch_size: int
    optimiser: Literal["sgd", "muon"]
    """sgd: with Nesterov's momentum; muon: Muon for kernels, AdamW for everything else."""
    learning_rate: float
    """Peak, of kernels."""
    other_learning_rate: float
    """Peak, of biases and of what normalises."""
    final_share: float
    """Of the peak rate, at the end of the run."""
    gentle: float = 1.0
    """Factor on both rates where the weights know all classes already: what they know is then all there is to lose."""
    still_normalisation: bool = False
    """There, too: whether the batch normalisation of all layers stays as it is."""
    gentle_beside: float = 1.0
    """Factor on both rates where new classes are learnt beside the old ones."""
    schedule: Literal["cosine", "linear"]
    """The way from the peak to the end."""
    warm_up_epochs: float = 0.0
    warm_up_batches: int = 0
    """The warm-up lasts the longer of both, in batches; ``warm_up_most`` bounds it."""
    warm_up_most: float | None = None
    """At most this share of the run goes up; None: however long it is."""
    warm_up_bias_rate: float = 0.0
    """The rate from which biases go to their peak; all others begin at 0."""
    warm_up_momentum: float | None = None
    """The momentum at the beginning of the warm-up; None: it does not change."""
    momentum: float
    weight_decay: float
    """On kernels only."""
    nominal_batch: int | None = None
    """Gradients are added up to about so many pictures, and weight decay is meant for it; None: every batch steps."""
    average_decay: float = 0.0
    average_ramp: float = 0.0
    """Moving average of the whole state, as of ``Plan``; see ``average``."""
    average: float = 0.0
    """Instead of a fixed decay the average's memory as a part of the run; 0: none."""
    moving_statistics: bool
    """Whether the batch normalisation of frozen layers goes on counting, as in the course's tool."""
    old_net: bool = False
    """Whether, when new classes are learnt beside old ones, the net that the run began with is imitated where no box is
    marked; see ``transfer.py``."""
    surest_new: float = 0.99
    """The highest score at which a class begins that the weights did not know; see ``transfer.py``."""
    class_weight: float = 1.0
    objectness_weight: float = 1.0
    """``pos_weight`` of both cross-entropies."""

    @property
    def accumulate(self) -> int:
        """Batches to one step of the optimisers."""
        return 1 if self.nominal_batch is None else max(round(self.nominal_batch / self.batch_size), 1)

    def warm_up(self, epochs: int, batches: int) -> float:
        """Batches of warm-up in a run of ``epochs`` of so many ``batches``."""
        wished = max(self.warm_up_epochs * batches, float(self.warm_up_batches))
        return wished if self.warm_up_most is None else min(wished, self.warm_up_most * epochs * batches)


def course() -> FinetuneRecipe:
    """The course's tool: in a run as short as its own example it never leaves the warm-up."""
    return FinetuneRecipe(
        name="course",
        epochs=5,
        batch_size=16,
        optimiser="sgd",
        learning_rate=0.01,
        other_learning_rate=0.01,
        final_share=0.1,
        schedule="cosine",
        warm_up_epochs=3.0,
        warm_up_batches=1000,
        warm_up_bias_rate=0.1,
        warm_up_momentum=0.8,
        momentum=0.937,
        weight_decay=5e-4,
        nominal_batch=64,
        average_decay=0.9999,
        average_ramp=2000.0,
        moving_statistics=True,
        surest_new=0.99,
    )


def default() -> FinetuneRecipe:
    """Ours."""
    return FinetuneRecipe(
        name="default",
        epochs=10,
        batch_size=16,
        optimiser="muon",
        learning_rate=0.004,
        other_learning_rate=0.001,
        final_share=0.0,
        gentle=0.005,
        still_normalisation=True,
        gentle_beside=0.25,
        schedule="linear",
        warm_up_most=0.1,
        warm_up_epochs=1.0,
        momentum=0.95,
        weight_decay=0.01,
        average=0.1,
        moving_statistics=False,
        old_net=True,
        # A lone class that begins sure learns nothing: only objectness can tell it from all that the net knows.
        surest_new=0.1,
    )


RECIPES = {"course": course, "default": default}


def gentler(recipe: FinetuneRecipe, factor: float) -> FinetuneRecipe:
    """The recipe with so much of its rates."""
    rates = recipe.learning_rate * factor, recipe.other_learning_rate * factor
    return replace(recipe, learning_rate=rates[0], other_learning_rate=rates[1])


def finetune_recipe(name: str, *, epochs: int | None = None, batch_size: int | None = None) -> FinetuneRecipe:
    """The recipe of that name with what is given put in its place. Raises UsageError for nonsense."""
    if name not in RECIPES:
        raise UsageError(f"recipe is {name}: give {' or '.join(get_args(FinetuneRecipeName))}")
    for option, value in (("epochs", epochs), ("batch", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}: give at least 1")
    recipe = RECIPES[name]()
    return replace(recipe, epochs=epochs or recipe.epochs, batch_size=batch_size or recipe.batch_size)
