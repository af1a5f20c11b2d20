"""Runtime options of training. This module does not import torch, because the command line must start quickly."""

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
    """cpu, cuda, or auto (cuda if available)."""

    def __post_init__(self) -> None:
        """Raise UsageError for a negative number of threads."""
        if self.threads < 0:
            raise UsageError(f"--threads is {self.threads}: expected 0 or more")
