"""What the user may fix of how a net is run. Imports no torch, so that the command line can show it at once."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RuntimeOptions:
    """How training runs on this machine; whatever is ``auto`` is chosen by a short measured probe."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the net (parameters and losses stay float32)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile (needs a C++ compiler; pays on long runs)."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory layout of pictures inside the net."""
    threads: int = 0
    """Threads of one process; 0: the probe chooses."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
