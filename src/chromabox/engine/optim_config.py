"""Optimizer, learning-rate schedule and length of a training run. This module does not import torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Hyperparameters that the recipes of all models share."""

    epochs: int
    batch_size: int
    optimizer: Literal["adam", "sgd", "muon"]
    """sgd: SGD with Nesterov momentum; muon: Muon for convolution kernels and AdamW for all other parameters."""
    lr: float
    """Peak learning rate of the convolution kernels. With ``adam``, it is also used for all other parameters."""
    adamw_lr: float = 0.0
    """With ``sgd`` and ``muon``: peak learning rate of all other parameters."""
    weight_decay: float = 0.0
    """Weight decay of the convolution kernels. With ``muon``, the weight decay is decoupled."""
    momentum: float = 0.95
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """linear: linear increase to the peak, then linear decrease to 0; cosine: the schedule of the course's detector."""
    warmup_fraction: float = 0.0
    """Fraction of the run in which the linear schedule increases the learning rate."""
    ema_fraction: float = 0.0
    """Time constant of the exponential moving average of the weights, as a fraction of the run. 0 disables
    averaging."""


def lr_factor(config: OptimConfig, progress: float) -> float:
    """Return the factor to apply to the peak learning rate.

    ``progress`` in [0, 1) is the completed fraction of the run.
    """
    if config.schedule == "constant":
        return 1.0
    warmup = config.warmup_fraction
    return progress / warmup if progress < warmup else 1 - (progress - warmup) / (1 - warmup)
