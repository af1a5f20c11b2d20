"""Tables printed to the terminal."""

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.errors import ChromaboxError, escape_unprintable

if TYPE_CHECKING:
    from chromabox.colour.evaluation.evaluate import Evaluation

#: Displayed names of rows, where they differ from the keys in evaluation.json.
DISPLAY_NAMES = {
    "net": "model",
    "net, annealed mean": "model, annealed mean",
    "grey value's colour": "grey lookup table",
    "grey": "greyscale",
    "palette oracle": "palette upper bound",
    "truth": "ground truth",
}
#: Pattern of cells that contain only numbers, ranges and sizes.
NUMERIC = re.compile(r"[\d.,±–×→∞+\- ]*")


def printable(text: str) -> Text:
    """Return text without markup, with escapes for unprintable characters. File names can contain such characters."""
    return Text(escape_unprintable(text))


def make_console() -> Console:
    """Return a console for standard output that does not wrap tables at 80 columns if there is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=200)


def print_grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table. Numeric columns are right-aligned and not wrapped. An empty row becomes a horizontal rule."""
    table = Table(title=printable(title))
    for index, column in enumerate(columns):
        is_numeric = all(NUMERIC.fullmatch(str(row[index])) for row in rows if row)
        is_right = is_numeric and index > 0
        table.add_column(column, justify="right" if is_right else "left", no_wrap=is_numeric, overflow="fold")
    for row in rows:
        if row:
            table.add_row(*(cell if isinstance(cell, Text) else printable(cell) for cell in row))
        else:
            table.add_section()
    make_console().print(table)


def save_results(path: Path, results: object) -> None:
    """Write results as JSON and print the path; create the folder if necessary.

    Raise ChromaboxError if the file cannot be written.
    """
    from chromabox.engine.checkpoint import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path}: cannot be written ({reason}); use another path") from error
    print(escape_unprintable(str(path)))


def format_number(value: float | None, digits: int, factor: float = 1.0) -> str:
    """Format ``value * factor``. Return an empty string for None and "∞" for a value that is not finite."""
    if value is None:
        return ""
    return f"{value * factor:.{digits}f}" if math.isfinite(value) else "∞"


def print_colour_evaluation(result: "Evaluation", title: str) -> None:
    """Print the scores of the model, the baselines and the upper bound."""
    columns = ["", "loss", "accuracy %", "balanced %", "PSNR dB", "ΔE2000", "colourfulness"]
    rows = [
        [
            DISPLAY_NAMES.get(row.name, row.name),
            format_number(row.loss, 4),
            *(format_number(value, 2, 100.0) for value in (row.accuracy, row.balanced_accuracy)),
            *(format_number(value, 2) for value in (row.psnr, row.delta_e)),
            format_number(row.colourfulness, 1),
        ]
        for row in result.rows
    ]
    print_grid(title, columns, rows)
