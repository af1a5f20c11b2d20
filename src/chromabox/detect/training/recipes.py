"""Fine-tuning recipes. This module does not import torch.

``course`` has the exact settings of the assignment's fine-tuning script. ``default`` has a short warm-up and low
learning rates, which preserve a trained model, and also freezes BatchNorm statistics.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from chromabox.engine.options import OptimConfig
from chromabox.errors import UsageError

FinetuneRecipeName = Literal["course", "default"]


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(OptimConfig):
    """Hyperparameters of fine-tuning, excluding the data, the number of frozen layers and the seed."""

    name: FinetuneRecipeName
    """Name of the recipe, which also selects the augmentation and the reduction of the loss."""
    final_lr_fraction: float = 0.0
    """Learning rate at the end of a cosine schedule, as a fraction of the peak."""
    lr_scale_same_classes: float = 1.0
    """Factor for both learning rates if the original model already has all classes of the dataset."""
    freeze_all_bn: bool = False
    """Whether to freeze BatchNorm in all layers if the dataset has no new class."""
    lr_scale_added_classes: float = 1.0
    """Factor for both learning rates if new classes are added to the original classes."""
    warmup_epochs: float = 0.0
    warmup_batches: int = 0
    """Length of the warm-up in epochs and in batches. The longer one applies, limited by ``max_warmup_fraction``."""
    max_warmup_fraction: float | None = None
    """Maximum length of the warm-up as a fraction of the run; None: no limit."""
    warmup_bias_lr: float = 0.0
    """Learning rate of biases at the start of the warm-up; all other learning rates start at 0."""
    warmup_momentum: float | None = None
    """Momentum at the start of the warm-up; None: constant momentum."""
    nominal_batch_size: int | None = None
    """Batch size to which gradients are approximately accumulated. The weight decay refers to this batch size. None: no
    accumulation."""
    ema_decay: float = 0.0
    ema_warmup_steps: float = 0.0
    """Decay and warm-up steps of the exponential moving average, instead of ``ema_fraction``; see ``TrainSchedule``.
    A decay of 0 means that ``ema_fraction`` is used."""
    update_bn_stats: bool
    """Whether the BatchNorm statistics of frozen layers are updated, as in the assignment's fine-tuning script."""
    distill: bool = False
    """Whether to distil the initial model outside labelled boxes if new classes are added to the original classes; see
    ``transfer.py``."""
    new_class_prior: float = 0.99
    """Maximum initial score of a new class; see ``transfer.replace_heads``."""
    class_pos_weight: float = 1.0
    objectness_pos_weight: float = 1.0
    """``pos_weight`` of the class term and of the objectness term."""

    @property
    def accumulate(self) -> int:
        """Number of batches per optimizer step."""
        return 1 if self.nominal_batch_size is None else max(round(self.nominal_batch_size / self.batch_size), 1)

    def num_warmup_batches(self, batches_per_epoch: int) -> float:
        """Return the length of the warm-up in batches."""
        num_batches = max(self.warmup_epochs * batches_per_epoch, float(self.warmup_batches))
        if self.max_warmup_fraction is None:
            return num_batches
        return min(num_batches, self.max_warmup_fraction * self.epochs * batches_per_epoch)


FINETUNE_RECIPES = {
    # A run as short as the assignment's example ends within the warm-up.
    "course": FinetuneRecipe(
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
    ),
    "default": FinetuneRecipe(
        name="default",
        epochs=10,
        batch_size=16,
        optimizer="muon",
        lr=0.004,
        adamw_lr=0.001,
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
        # With a high initial score, a single new class would not learn: only objectness could separate it from
        # objects of the original classes.
        new_class_prior=0.1,
    ),
}


def scale_lr(recipe: FinetuneRecipe, factor: float) -> FinetuneRecipe:
    """Return the recipe with both learning rates multiplied by ``factor``."""
    return replace(recipe, lr=recipe.lr * factor, adamw_lr=recipe.adamw_lr * factor)


def make_finetune_recipe(
    name: str, *, epochs: int | None = None, batch_size: int | None = None, learning_rate: float | None = None
) -> FinetuneRecipe:
    """Return the recipe ``name``. Arguments that are not None replace the values of the recipe.

    ``learning_rate`` is the peak learning rate of the convolution kernels, which is then the same with and without new
    classes. The other learning rates are changed by the same factor.

    Raise UsageError for an invalid value.
    """
    if name not in FINETUNE_RECIPES:
        raise UsageError(f"--recipe is {name}: expected {' or '.join(get_args(FinetuneRecipeName))}")
    for option, value in (("--epochs", epochs), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is {value}: expected at least 1")
    recipe = FINETUNE_RECIPES[name]
    if learning_rate is not None:
        if not 0 < learning_rate < math.inf:
            raise UsageError(f"--learning-rate is {learning_rate}: expected a number above 0")
        factor = learning_rate / recipe.lr
        recipe = replace(
            scale_lr(recipe, factor),
            warmup_bias_lr=recipe.warmup_bias_lr * factor,
            lr_scale_same_classes=1.0,
            lr_scale_added_classes=1.0,
        )
    return replace(recipe, epochs=epochs or recipe.epochs, batch_size=batch_size or recipe.batch_size)
