"""What the verbs share: options that mean the same everywhere, and how they speak."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from chromabox.engine.options import ExecutionOptions

EXECUTION = ExecutionOptions()
Output = Annotated[Path, arg(aliases=("-o",))]
OptionalOutput = Annotated[Path | None, arg(aliases=("-o",))]


def lasting(name: str) -> str:
    """A path that is right from any folder, since a run may be resumed from another one; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def print_line(line: str) -> None:
    """Print at once, also into a pipe or a log file."""
    print(line, flush=True)
