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
    optimizer: Literal["sgd", "muon"]
    """sgd: with Nesterov's momentum; muon: Muon for kernels, AdamW for everything else."""
    lr: float
    """Peak, of kernels."""
    adamw_lr: float
    """Peak, of biases and of what normalises."""
    final_lr_fraction: float
    """Of the peak rate, at the end of the run."""
    lr_scale_same_classes: float = 1.0
    """Factor on both rates where the weights know all classes already: what they know is then all there is to lose."""
    freeze_all_bn: bool = False
    """There, too: whether the batch normalisation of all layers stays as it is."""
    lr_scale_added_classes: float = 1.0
    """Factor on both rates where new classes are learnt beside the old ones."""
    schedule: Literal["cosine", "linear"]
    """The way from the peak to the end."""
    warmup_epochs: float = 0.0
    warmup_batches: int = 0
    """The warm-up lasts the longer of both, in batches; ``warm_up_most`` bounds it."""
    max_warmup_fraction: float | None = None
    """At most this share of the run goes up; None: however long it is."""
    warmup_bias_lr: float = 0.0
    """The rate from which biases go to their peak; all others begin at 0."""
    warmup_momentum: float | None = None
    """The momentum at the beginning of the warm-up; None: it does not change."""
    momentum: float
    weight_decay: float
    """On kernels only."""
    nominal_batch_size: int | None = None
    """Gradients are added up to about so many pictures, and weight decay is meant for it; None: every batch steps."""
    ema_decay: float = 0.0
    ema_warmup_steps: float = 0.0
    """Moving average of the whole state, as of ``Plan``; see ``average``."""
    ema_fraction: float = 0.0
    """Instead of a fixed decay the average's memory as a part of the run; 0: none."""
    update_bn_stats: bool
    """Whether the batch normalisation of frozen layers goes on counting, as in the course's tool."""
    distill: bool = False
    """Whether, when new classes are learnt beside old ones, the net that the run began with is imitated where no box is
    marked; see ``transfer.py``."""
    new_class_prior: float = 0.99
    """The highest score at which a class begins that the weights did not know; see ``transfer.py``."""
    class_pos_weight: float = 1.0
    objectness_pos_weight: float = 1.0
    """``pos_weight`` of both cross-entropies."""

    @property
    def accumulate(self) -> int:
        """Batches to one step of the optimisers."""
        return 1 if self.nominal_batch_size is None else max(round(self.nominal_batch_size / self.batch_size), 1)

    def num_warmup_batches(self, epochs: int, batches_per_epoch: int) -> float:
        """Batches of warm-up in a run of ``epochs`` of so many ``batches``."""
        wished = max(self.warmup_epochs * batches_per_epoch, float(self.warmup_batches))
        return (
            wished
            if self.max_warmup_fraction is None
            else min(wished, self.max_warmup_fraction * epochs * batches_per_epoch)
        )


def course_finetune_recipe() -> FinetuneRecipe:
    """The course's tool: in a run as short as its own example it never leaves the warm-up."""
    return FinetuneRecipe(
        name="course",
        epochs=5,
        batch_size=16,
        optimizer="sgd",
        lr=0.01,
        adamw_lr=0.01,
        final_lr_fraction=0.1,
        schedule="cosine",
        warmup_epochs=3.0,
        warmup_batches=1000,
        warmup_bias_lr=0.1,
        warmup_momentum=0.8,
        momentum=0.937,
        weight_decay=5e-4,
        nominal_batch_size=64,
        ema_decay=0.9999,
        ema_warmup_steps=2000.0,
        update_bn_stats=True,
        new_class_prior=0.99,
    )


def default_finetune_recipe() -> FinetuneRecipe:
    """Ours."""
    return FinetuneRecipe(
        name="default",
        epochs=10,
        batch_size=16,
        optimizer="muon",
        lr=0.004,
        adamw_lr=0.001,
        final_lr_fraction=0.0,
        lr_scale_same_classes=0.005,
        freeze_all_bn=True,
        lr_scale_added_classes=0.25,
        schedule="linear",
        max_warmup_fraction=0.1,
        warmup_epochs=1.0,
        momentum=0.95,
        weight_decay=0.01,
        ema_fraction=0.1,
        update_bn_stats=False,
        distill=True,
        # A lone class that begins sure learns nothing: only objectness can tell it from all that the net knows.
        new_class_prior=0.1,
    )


FINETUNE_RECIPES = {"course": course_finetune_recipe, "default": default_finetune_recipe}


def scale_lr(recipe: FinetuneRecipe, factor: float) -> FinetuneRecipe:
    """The recipe with so much of its rates."""
    rates = recipe.lr * factor, recipe.adamw_lr * factor
    return replace(recipe, lr=rates[0], adamw_lr=rates[1])


def make_finetune_recipe(name: str, *, epochs: int | None = None, batch_size: int | None = None) -> FinetuneRecipe:
    """The recipe of that name with what is given put in its place. Raises UsageError for nonsense."""
    if name not in FINETUNE_RECIPES:
        raise UsageError(f"recipe is {name}: give {' or '.join(get_args(FinetuneRecipeName))}")
    for option, value in (("epochs", epochs), ("batch", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}: give at least 1")
    recipe = FINETUNE_RECIPES[name]()
    return replace(recipe, epochs=epochs or recipe.epochs, batch_size=batch_size or recipe.batch_size)
