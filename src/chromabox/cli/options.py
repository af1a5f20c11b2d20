"""What the verbs share: options that mean the same everywhere, and how they speak."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError

DEFAULT_RUNTIME = RuntimeOptions()
OutputPath = Annotated[Path, arg(aliases=("-o",))]
OptionalOutputPath = Annotated[Path | None, arg(aliases=("-o",))]


def absolute_path(name: str) -> str:
    """A path that is right from any folder, since a run may be resumed from another one; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def require_new_run(folder: Path) -> None:
    """UsageError if a run was begun in the folder: it is gone on with by name, never written over."""
    if (folder / "last.safetensors").exists():
        raise UsageError(f"{folder}: holds a run already; go on with --resume {folder}, or give another folder with -o")


def print_line(line: str) -> None:
    """Print at once, also into a pipe or a log file."""
    print(line, flush=True)
