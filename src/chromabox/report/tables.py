"""Tables printed to the terminal."""

import math
import sys

from rich.console import Console
from rich.table import Table

from chromabox.colour.evaluation.evaluate import Evaluation

#: Displayed names of rows, where they differ from the keys in evaluation.json.
DISPLAY_NAMES = {
    "net": "model",
    "net, annealed mean": "model, annealed mean",
    "grey value's colour": "grey lookup table",
    "palette oracle": "palette upper bound",
}


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table with the first column left-aligned and the others right-aligned."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width; rich would wrap the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def _format_number(value: float | None, digits: int, factor: float = 1.0) -> str:
    """Format ``value * factor``; None becomes an empty string, a non-finite value becomes "∞"."""
    if value is None:
        return ""
    return f"{value * factor:.{digits}f}" if math.isfinite(value) else "∞"


def print_colour_evaluation(result: Evaluation, title: str) -> None:
    """Print the rows of an evaluation: model, baselines and upper bound."""
    columns = ["", "loss", "accuracy %", "balanced %", "PSNR dB", "ΔE2000", "colourfulness"]
    rows = [
        [
            DISPLAY_NAMES.get(row.name, row.name),
            _format_number(row.loss, 4),
            _format_number(row.accuracy, 2, 100.0),
            _format_number(row.balanced_accuracy, 2, 100.0),
            _format_number(row.psnr, 2),
            _format_number(row.delta_e, 2),
            _format_number(row.colourfulness, 1),
        ]
        for row in result.rows
    ]
    _print_table(title, columns, rows)
