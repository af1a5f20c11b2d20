"""Options that several commands share, and how options appear in the help."""

import logging
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from chromabox.engine.options import RuntimeOptions

log = logging.getLogger(__name__)

DEFAULT_RUNTIME = RuntimeOptions()


def option(metavar: str, default: str | None = None, *, short: str | None = None, name: str | None = None) -> Any:
    """Return the annotation of an option.

    Args:
        metavar: the placeholder of the value in the help, such as ``PATH``.
        default: the default in words, or ``required`` with a condition. None shows the default value itself.
        short: a second name, such as ``-o``.
        name: the name of the option, if it differs from the name of the field.
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


def log_lines(*lines: object) -> None:
    """Log several lines. Each line is a record, because line breaks inside a record are escaped."""
    for line in lines:
        log.info(line)


def absolute_path(name: str) -> str:
    """Return the absolute path of an existing file or folder, and any other name unchanged."""
    return str(Path(name).resolve()) if Path(name).exists() else name
