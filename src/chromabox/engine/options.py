"""Runtime options, optimizer, learning-rate schedule and length of a training run.

This module does not import torch, because the command line must start quickly.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from chromabox.errors import UsageError


@dataclass(frozen=True)
class RuntimeOptions:
    """Runtime options for training. For options set to auto, a short benchmark chooses the value."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass (parameters and losses are always float32)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile (requires a C++ compiler; faster on long runs)."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Use the channels-last memory layout for images and features."""
    threads: Annotated[int, arg(metavar="N")] = 0
    """Number of threads per process. 0: chosen by the benchmark."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu, cuda, cuda:N (the GPU with the number N), or auto (cuda if available)."""

    def __post_init__(self) -> None:
        """Convert the device to lower case. Raise UsageError for an unknown device or a negative number of threads."""
        object.__setattr__(self, "device", self.device.lower())
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", self.device):
            raise UsageError(f"--device is {self.device!r}: expected auto, cpu, cuda or cuda:N, such as cuda:0")
        if self.threads < 0:
            raise UsageError(f"--threads is {self.threads}: expected 0 or more")


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
