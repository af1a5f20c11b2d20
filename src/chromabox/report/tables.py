"""Tables for the terminal."""

import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from chromabox.colour.evaluation.evaluate import Evaluation
from chromabox.report.compare import Comparison
from chromabox.report.swept import Measured, Row, Sweep


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on the terminal: names to the left, numbers to the right."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own; without a fixed one rich would fold the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    if value is None:
        return ""
    return f"{value * factor:.{digits}f}" if math.isfinite(value) else "∞"


def print_evaluation(result: Evaluation, title: str) -> None:
    """The rows of an evaluation: net, floors, ceiling."""
    columns = ["", "loss", "accuracy %", "balanced %", "PSNR dB", "ΔE2000", "colourfulness"]
    rows = [
        [
            row.name,
            _number(row.loss, 4),
            _number(row.accuracy, 2, 100.0),
            _number(row.balanced_accuracy, 2, 100.0),
            _number(row.psnr, 2),
            _number(row.delta_e, 2),
            _number(row.colourfulness, 1),
        ]
        for row in result.rows
    ]
    _table(title, columns, rows)


def print_comparison(result: Comparison) -> None:
    """A line for each net, the published numbers beside it, and where table and figure are."""
    columns = ["net", "parameters", "seeds", "accuracy %", "loss", "seconds", "published %", "published loss"]
    rows = [
        [
            line.net,
            f"{line.parameters:,}",
            line.seeds,
            f"{line.accuracy:.2f}" + ("" if line.accuracy_spread is None else f" ± {line.accuracy_spread:.2f}"),
            f"{line.loss:.4f}" + ("" if line.loss_spread is None else f" ± {line.loss_spread:.4f}"),
            f"{line.seconds:.0f}",
            line.published_accuracy,
            line.published_loss,
        ]
        for line in result.lines
    ]
    first = result.lines[0]
    _table(f"{first.data}, {first.recipe} recipe, palette {first.palette}", columns, rows)
    print(f"table: {result.table}\nfigure: {result.figure}")


def print_sweep(result: Sweep) -> None:
    """A line for each value, with equal epochs and where it was trained with equal steps; and where everything is."""
    title = f"{result.net} on {result.data}, {result.recipe} recipe, palette {result.palette}"
    _sweep_table(f"{title}: equal epochs", result, result.equal_epochs)
    if result.equal_steps:
        _sweep_table(f"{title}: equal steps", result, result.equal_steps)
    print(f"numbers: {result.folder / 'sweep.json'}\ntable: {result.table}")
    print(f"curves: {result.curves}\npictures: {result.sheet}\nruns: {result.folder}")


def _sweep_table(title: str, result: Sweep, rows: Sequence[Row]) -> None:
    columns = [result.over.replace("-", " "), "epochs", "updates", "train loss", "test loss", "accuracy %", "PSNR dB"]
    columns += ["ΔE2000", "colourfulness", "seconds"]
    shown = [("train_loss", 4, 1.0), ("test_loss", 4, 1.0), ("test_accuracy", 2, 100.0), ("psnr", 2, 1.0)]
    shown += [("delta_e", 2, 1.0), ("colourfulness", 1, 1.0), ("seconds", 1, 1.0)]
    _table(
        title,
        columns,
        [
            [str(row.value), str(row.epochs), f"{row.updates:,}"]
            + [_with_spread(row.measured[name], digits, factor) for name, digits, factor in shown]
            for row in rows
        ],
    )


def _with_spread(measured: Measured, digits: int, factor: float) -> str:
    spread = _number(measured.spread, digits, factor)
    return _number(measured.mean, digits, factor) + (f" ± {spread}" if spread else "")
