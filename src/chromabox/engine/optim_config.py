"""Optimizer, learning-rate schedule and length of a training run. The module does not import torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Hyperparameters that the recipes of all models share."""

    epochs: int
    batch_size: int
    optimizer: Literal["adam", "sgd", "muon"]
    """sgd: with Nesterov momentum; muon: Muon for convolution kernels, AdamW for all other parameters."""
    lr: float
    """Peak learning rate of all parameters; under sgd and muon, of the convolution kernels."""
    adamw_lr: float = 0.0
    """Peak learning rate of the other parameters under sgd and muon."""
    weight_decay: float = 0.0
    """Weight decay of convolution kernels; decoupled under muon."""
    momentum: float = 0.95
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """linear: up to the peak in the warm-up and down to 0 at the end; cosine: the schedule of the course's detector."""
    warmup_fraction: float = 0.0
    """Fraction of the run in which a linear schedule increases the learning rate."""
    ema_fraction: float = 0.0
    """Time constant of the exponential moving average of the weights, as a fraction of the run; 0: no average."""


def lr_factor(config: OptimConfig, progress: float) -> float:
    """Return the factor of the peak learning rate at ``progress``, the completed fraction of the run in [0, 1)."""
    if config.schedule == "constant":
        return 1.0
    warmup = config.warmup_fraction
    return progress / warmup if progress < warmup else 1 - (progress - warmup) / (1 - warmup)
