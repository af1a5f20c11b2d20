"""Options that several commands share, and how options appear in the help."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from chromabox.engine.runtime_options import RuntimeOptions

DEFAULT_RUNTIME = RuntimeOptions()


def option(metavar: str, default: str | None = None, *, short: str | None = None, name: str | None = None) -> Any:
    """Return the annotation of an option.

    Args:
        metavar: placeholder of its value in the help, as ``PATH``.
        default: the default in words, or ``required`` with a condition; None: the help shows the default value.
        short: a second name, as ``-o``.
        name: its name, if not that of the field.
    """
    hint = None
    if default is not None:
        hint = f"({default})" if default.startswith("required") else f"(default: {default})"
    return arg(metavar=metavar, help_behavior_hint=hint, aliases=(short,) if short else None, name=name)


Integer = Annotated[int, option("N")]
Float = Annotated[float, option("X")]
OutputPath = Annotated[Path, option("PATH", short="-o")]
DataName = Annotated[str, option("NAME|FOLDER")]
PaletteName = Annotated[str, option("NAME|PATH")]
Seeds = Annotated[tuple[int, ...], option("N ...")]


def absolute_path(name: str) -> str:
    """Return the absolute path of an existing file or folder, and any other name unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def print_line(line: str) -> None:
    """Print a line at once, also into a pipe or a log file."""
    print(line, flush=True)
