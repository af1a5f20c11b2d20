"""Results over seeds: means, standard deviations and tables; ``sweep.json`` and the figures of a sweep."""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.evaluation.evaluate import sample_grid
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.checkpoint import write_json
from chromabox.engine.logger import read_metrics
from chromabox.engine.runs import rename_keys
from chromabox.errors import UsageError
from chromabox.io.atomic import atomic_write
from chromabox.report.plots import plot_image_rows, save_figure
from chromabox.report.tables import print_grid

SweepValue = int | float

#: Format of ``sweep.json``. Format 1 had no version number and used different names; it can still be read.
SWEEP_FORMAT = 2
_FORMAT_1_NAMES = {
    "net": "model",
    "over": "parameter",
    "updates": "steps",
    "updates_per_epoch": "steps_per_epoch",
    "measured": "metrics",
}
#: Metrics of every run, with their meaning and unit.
METRICS: Mapping[str, str] = {
    "train_loss": "cross-entropy of the final model in nats per pixel, on as many training images as there are test "
    "images",
    "train_accuracy": "fraction of correct pixels on the same training images",
    "test_loss": "cross-entropy in nats per pixel on the test images",
    "test_accuracy": "fraction of correct pixels on the test images",
    "psnr": "dB, colourised test images (most likely colour of every pixel) against the ground truth",
    "delta_e": "mean CIEDE2000 of the same images",
    "colourfulness": "of the colourised test images (Hasler and Süsstrunk 2003), mean over images",
    "seconds": "training time, including the evaluation after every epoch",
    "seconds_per_epoch": "training time per epoch, including the evaluation",
}


@dataclass(frozen=True)
class SeedStats:
    """Values of one metric, one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single seed or an infinite PSNR."""
        return statistics.stdev(self.values) if len(self.values) > 1 and math.isfinite(self.mean) else None


@dataclass(frozen=True)
class SweepRow:
    """Runs with one parameter value, and their metrics."""

    value: SweepValue
    runs: tuple[Path, ...]
    """Run folder of each seed, relative to the sweep folder."""
    parameters: int
    epochs: int
    """Number of epochs; if the number of steps is fixed, the last epoch can be incomplete."""
    steps: int
    steps_per_epoch: int
    metrics: Mapping[str, SeedStats]
    """Metrics, keyed by the names in ``METRICS``."""


@dataclass(frozen=True)
class SweepResult:
    """Results of one model trained with several values of one parameter."""

    folder: Path
    model: str
    recipe: str
    data: str
    palette: str
    parameter: str
    seeds: tuple[int, ...]
    grey_psnr: float
    """PSNR of the greyscale test images in dB, the baseline without any colour."""
    truth_colourfulness: float
    """Mean colourfulness of the ground-truth test images."""
    equal_epochs: tuple[SweepRow, ...]
    """Results with the same number of epochs, in the order of the values."""
    equal_steps: tuple[SweepRow, ...] = ()
    """Results of the same values with the same number of optimizer steps; empty if both comparisons are identical."""

    @property
    def csv_path(self) -> Path:
        """Path of the table of means and standard deviations."""
        return self.folder / "sweep.csv"

    @property
    def curves_path(self) -> Path:
        """Path of the figure of loss curves."""
        return self.folder / "curves.png"

    @property
    def samples_path(self) -> Path:
        """Path of the figure of sample images."""
        return self.folder / "sheet.png"

    @property
    def table(self) -> list[dict[str, Any]]:
        """Rows of ``sweep.csv``, first for equal epochs, then for equal steps."""
        rows = [("equal epochs", row) for row in self.equal_epochs] + [("equal steps", row) for row in self.equal_steps]
        table = []
        for comparison, row in rows:
            cells: dict[str, Any] = {"comparison": comparison, self.parameter: row.value}
            cells |= {"seeds": " ".join(map(str, self.seeds)), "parameters": row.parameters}
            cells |= {"epochs": row.epochs, "updates": row.steps}
            for name in METRICS:
                cells |= {name: row.metrics[name].mean, f"{name}_spread": row.metrics[name].std}
            table.append(cells)
        return table


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV; None becomes an empty cell."""
    with atomic_write(path) as temp_path, temp_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def print_table(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str, float]]) -> None:
    """Print rows of a CSV table.

    Args:
        columns: the heading, number format and factor of every printed column. A standard deviation, in a column whose
            name ends in ``_std`` or ``_spread``, is printed after the mean.
    """

    def format_value(value: Any, spec: str, factor: float) -> str:
        if not isinstance(value, float):
            return format(value, spec)
        return format(value * factor, spec) if math.isfinite(value) else "∞"

    def format_cell(row: Mapping[str, Any], name: str) -> str:
        std = row.get(f"{name}_std", row.get(f"{name}_spread"))
        parts = [value for value in (row[name], std) if value is not None]
        return " ± ".join(format_value(value, *columns[name][1:]) for value in parts)

    headings = [heading for heading, *_ in columns.values()]
    print_grid(title, headings, [[format_cell(row, name) for name in columns] for row in rows])


def write_sweep(sweep: SweepResult) -> None:
    """Write ``sweep.csv`` and then ``sweep.json``, which marks the sweep as finished."""

    def to_json(row: SweepRow) -> dict[str, Any]:
        metrics = {}
        for name, stats in row.metrics.items():
            each = [_finite_or_none(value) for value in stats.values]
            metrics[name] = {"mean": _finite_or_none(stats.mean), "spread": stats.std, "each": each}
        return {**vars(row), "runs": [run.as_posix() for run in row.runs], "metrics": metrics}

    write_table(sweep.csv_path, sweep.table)
    rows = {name: [to_json(row) for row in getattr(sweep, name)] for name in ("equal_epochs", "equal_steps")}
    values = {name: value for name, value in vars(sweep).items() if name != "folder"}
    values["grey_psnr"] = _finite_or_none(sweep.grey_psnr)
    write_json(sweep.folder / "sweep.json", {"format": SWEEP_FORMAT, **values, **rows, "metrics": dict(METRICS)})


def _finite_or_none(value: float) -> float | None:
    """Return None for infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def read_sweep(folder: Path) -> SweepResult:
    """Read the ``sweep.json`` written by :func:`write_sweep`; raise UsageError if it is missing or invalid."""
    path = folder / "sweep.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format", 1) == 1:
            values = rename_keys(values, _FORMAT_1_NAMES)
            for name in ("equal_epochs", "equal_steps"):
                values[name] = [rename_keys(row, _FORMAT_1_NAMES) for row in values[name]]
        del values["metrics"]
        values["grey_psnr"] = math.inf if values["grey_psnr"] is None else values["grey_psnr"]
        for name in ("equal_epochs", "equal_steps"):
            for row in values[name]:
                row["runs"] = tuple(map(Path, row["runs"]))
                row["metrics"] = {
                    metric: SeedStats(tuple(math.inf if value is None else value for value in stats["each"]))
                    for metric, stats in row["metrics"].items()
                }
            values[name] = tuple(SweepRow(**row) for row in values[name])
        return SweepResult(folder=folder, **{**values, "seeds": tuple(values["seeds"])})
    except OSError as error:
        raise UsageError(f"{folder}: contains no sweep.json; use the folder of a finished sweep") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: invalid sweep result ({error}); run chromabox sweep again") from error


def plot_sweep_curves(sweep: SweepResult, path: Path) -> None:
    """Plot the loss against epochs (left) and against optimizer steps (right), with one colour per value.

    Solid lines are test losses: the mean over the seeds, with a band from minimum to maximum. Dashed lines are losses
    on the training batches. Diamonds on the right mark the final losses of the runs with equal steps. If all values
    take the same number of steps per epoch, the right panel shows the test accuracy instead.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts_differ = len({row.steps_per_epoch for row in sweep.equal_epochs}) > 1
    # From dark to light; the lightest yellows, hard to see on white, are excluded.
    num_values = len(sweep.equal_epochs)
    colours = [colormaps["viridis"](0.9 * index / max(1, num_values - 1)) for index in range(num_values)]
    for row, colour in zip(sweep.equal_epochs, colours, strict=True):
        records = [read_metrics(sweep.folder / run) for run in row.runs]
        losses, train_losses, accuracies = (
            np.array([[record[name] for record in run] for run in records])
            for name in ("test_loss", "train_loss", "test_accuracy")
        )
        epochs = np.arange(1, row.epochs + 1)
        if not counts_differ:
            _plot_band(right, epochs, 100 * accuracies, colour, str(row.value))
        for axes, positions in ((left, epochs), (right, epochs * row.steps_per_epoch))[: 1 + counts_differ]:
            _plot_band(axes, positions, losses, colour, str(row.value))
            marker = "." if row.epochs == 1 else None
            axes.plot(positions, train_losses.mean(0), "--", color=colour, linewidth=1, marker=marker)
    left.set(xlabel="epochs", ylabel="cross-entropy (nats per pixel)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if counts_differ:
        right.set(xlabel="optimizer steps", xscale="log", ylim=left.get_ylim())
        ends = sorted({row.steps for row in sweep.equal_epochs})
        right.set_xticks(ends, [f"{end:,}" for end in ends])
        right.set_xticks([], minor=True)
        for row, colour in zip(sweep.equal_steps, colours, strict=False):  # Empty if there are no such runs.
            right.plot(row.steps, row.metrics["test_loss"].mean, "D", color=colour, markeredgecolor="black", zorder=3)
        if sweep.equal_steps:
            diamond = Line2D([], [], marker="D", linestyle="", color="white", markeredgecolor="black")
            right.legend([diamond], ["equal steps"], fontsize=9)
    else:
        right.set(xlabel="epochs", ylabel="test accuracy (%)")
        right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(title=sweep.parameter.replace("-", " "), fontsize=9)
    figure.suptitle(
        f"{sweep.model}, {sweep.recipe} recipe: test loss (solid) and training loss (dashed)",
        fontsize=11,
        parse_math=False,
    )
    save_figure(figure, path, dpi=200)


def _plot_band(axes: Axes, positions: Any, series: Float[np.ndarray, "seeds epochs"], colour: Any, label: str) -> None:
    """Plot the mean over the seeds, with a band from minimum to maximum."""
    axes.fill_between(positions, series.min(0), series.max(0), color=colour, alpha=0.25, linewidth=0)
    axes.plot(positions, series.mean(0), color=colour, label=label, marker="o" if series.shape[1] == 1 else None)


def plot_sweep_samples(sweep: SweepResult, path: Path, test: LabelledImages) -> None:
    """Plot the first test images: rows of greyscale inputs and ground truth, then a row per value (first seed)."""
    rows: dict[str, Sequence[Any]] = {}
    for row in sweep.equal_epochs:
        model = load_palette_model(sweep.folder / row.runs[0])
        grey, truth, coloured = sample_grid(model.network, test, model.palette)
        rows |= {"grey": grey, "truth": truth, f"{sweep.parameter}\n{row.value}": coloured}
    plot_image_rows(rows, path, f"{sweep.model} on {sweep.data}, {sweep.recipe} recipe: first test images")


def print_sweep(result: SweepResult) -> None:
    """Print one row per value for equal epochs and, if present, for equal steps, and the paths of all files."""
    columns = {
        result.parameter: (result.parameter.replace("-", " "), "", 1.0),
        "epochs": ("epochs", "", 1.0),
        "updates": ("steps", ",", 1.0),
        "train_loss": ("train loss", ".4f", 1.0),
        "test_loss": ("test loss", ".4f", 1.0),
        "test_accuracy": ("accuracy %", ".2f", 100.0),
        "psnr": ("PSNR dB", ".2f", 1.0),
        "delta_e": ("ΔE2000", ".2f", 1.0),
        "colourfulness": ("colourfulness", ".1f", 1.0),
        "seconds": ("seconds", ".1f", 1.0),
    }
    for name in ("equal epochs", "equal steps"):
        rows = [row for row in result.table if row["comparison"] == name]
        if rows:
            title = f"{result.model} on {result.data}, {result.recipe} recipe, palette {result.palette}: {name}"
            print_table(title, rows, columns)
    print(f"numbers: {result.folder / 'sweep.json'}\ntable: {result.csv_path}")
    print(f"curves: {result.curves_path}\nsamples: {result.samples_path}\nruns: {result.folder}")
