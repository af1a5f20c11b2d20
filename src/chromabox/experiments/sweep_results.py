"""Results of several seeds (means, standard deviations, tables), and the files and figures of a sweep."""

import csv
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
from chromabox.errors import UsageError, escape_unprintable
from chromabox.io.atomic import atomic_write, parse_json
from chromabox.report.plots import plot_image_rows, save_figure
from chromabox.report.tables import format_number, print_grid

SweepValue = int | float

#: Format of ``sweep.json``. Format 1, which had no version number and used different names, can still be read.
SWEEP_FORMAT = 2
_FORMAT_1_NAMES = {"net": "model", "over": "parameter", "updates": "steps", "measured": "metrics"}
_FORMAT_1_NAMES |= {"updates_per_epoch": "steps_per_epoch"}
#: Metrics of every run, with their meaning and unit.
METRICS: Mapping[str, str] = {
    "train_loss": "cross-entropy of the final model in nats per pixel, for as many training as test images",
    "train_accuracy": "fraction of correct pixels on the same training images",
    "test_loss": "cross-entropy in nats per pixel on the test images",
    "test_accuracy": "fraction of correct pixels on the test images",
    "psnr": "PSNR in dB of the colourised test images (most likely colour of every pixel)",
    "delta_e": "mean CIEDE2000 colour difference of the same images",
    "colourfulness": "mean colourfulness (Hasler and Süsstrunk 2003) of the same images",
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
        """Sample standard deviation over the seeds, or None for a single seed or an infinite PSNR."""
        return statistics.stdev(self.values) if len(self.values) > 1 and math.isfinite(self.mean) else None


@dataclass(frozen=True)
class SweepRow:
    """Runs with one value of the hyperparameter, and their metrics."""

    value: SweepValue
    runs: tuple[Path, ...]
    """Run folder of each seed, relative to the sweep folder."""
    parameters: int
    epochs: int
    """Number of epochs. If the number of steps is fixed, the last epoch can be incomplete."""
    steps: int
    steps_per_epoch: int
    metrics: Mapping[str, SeedStats]
    """Metrics, keyed by the names in ``METRICS``."""


@dataclass(frozen=True)
class SweepResult:
    """Results of one model trained with several values of one hyperparameter."""

    folder: Path
    model: str
    recipe: str
    data: str
    palette: str
    parameter: str
    seeds: tuple[int, ...]
    grey_psnr: float
    """PSNR of the greyscale test images in dB, as a baseline."""
    truth_colourfulness: float
    """Mean colourfulness of the ground-truth test images."""
    equal_epochs: tuple[SweepRow, ...]
    """Results with the same number of epochs, in the order of the values."""
    equal_steps: tuple[SweepRow, ...] = ()
    """Results with the same number of optimizer steps. Empty if every value takes the same number of steps anyway."""

    @property
    def curves_path(self) -> Path:
        """Path of the figure of loss curves."""
        return self.folder / "curves.png"

    @property
    def samples_path(self) -> Path:
        """Path of the figure of sample images."""
        return self.folder / "sheet.png"


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file. All rows must have the same keys. None becomes an empty cell."""
    with atomic_write(path) as temp_path, temp_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def format_mean(mean: float, std: float | None, digits: int, factor: float = 1.0) -> str:
    """Format ``mean ± std``, both multiplied by ``factor``. If ``std`` is None, format only the mean."""
    return " ± ".join(format_number(value, digits, factor) for value in (mean, std) if value is not None)


def write_sweep(sweep: SweepResult) -> None:
    """Write ``sweep.csv`` and then ``sweep.json``, which marks the sweep as finished."""
    table = []
    for comparison, rows in (("equal epochs", sweep.equal_epochs), ("equal steps", sweep.equal_steps)):
        for row in rows:
            cells: dict[str, Any] = {"comparison": comparison, sweep.parameter: row.value}
            cells |= {"seeds": " ".join(map(str, sweep.seeds)), "parameters": row.parameters}
            cells |= {"epochs": row.epochs, "updates": row.steps}
            for name in METRICS:
                cells |= {name: row.metrics[name].mean, f"{name}_spread": row.metrics[name].std}
            table.append(cells)
    write_table(sweep.folder / "sweep.csv", table)

    def to_json(row: SweepRow) -> dict[str, Any]:
        metrics = {}
        for name, stats in row.metrics.items():
            each = [_finite_or_none(value) for value in stats.values]
            metrics[name] = {"mean": _finite_or_none(stats.mean), "spread": stats.std, "each": each}
        return {**vars(row), "runs": [run.as_posix() for run in row.runs], "metrics": metrics}

    values = {"format": SWEEP_FORMAT, **vars(sweep), "grey_psnr": _finite_or_none(sweep.grey_psnr)}
    del values["folder"]
    values |= {name: [to_json(row) for row in values[name]] for name in ("equal_epochs", "equal_steps")}
    write_json(sweep.folder / "sweep.json", {**values, "metrics": dict(METRICS)})


def _finite_or_none(value: float) -> float | None:
    """Return None for infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else None


def read_sweep(folder: Path) -> SweepResult:
    """Read the ``sweep.json`` written by :func:`write_sweep`. Raise UsageError if it is missing or invalid."""
    path = folder / "sweep.json"
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
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

    Solid lines are mean test losses over the seeds, with a band from minimum to maximum. Dashed lines are losses on the
    training batches. Diamonds in the right panel mark the final losses of the runs with equal steps. If all values take
    the same number of steps per epoch, the right panel shows the test accuracy against epochs instead.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts_differ = len({row.steps_per_epoch for row in sweep.equal_epochs}) > 1
    # The colours run from dark to light, without the lightest yellows, which are hard to see on white.
    num_values = len(sweep.equal_epochs)
    colours = [colormaps["viridis"](0.9 * index / max(1, num_values - 1)) for index in range(num_values)]
    for row, colour in zip(sweep.equal_epochs, colours, strict=True):
        records = [read_metrics(sweep.folder / run, row.epochs) for run in row.runs]
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
        for row, colour in zip(sweep.equal_steps, colours, strict=False):  # ``equal_steps`` can be empty.
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
    """Plot the first test images in rows: greyscale inputs, ground truth, and one row per value (first seed)."""
    rows: dict[str, Sequence[Any]] = {}
    for row in sweep.equal_epochs:
        model = load_palette_model(sweep.folder / row.runs[0])
        grey, truth, coloured = sample_grid(model.network, test, model.palette)
        rows |= {"grey": grey, "truth": truth, f"{sweep.parameter}\n{row.value}": coloured}
    plot_image_rows(rows, path, f"{sweep.model} on {sweep.data}, {sweep.recipe} recipe: first test images")


def print_sweep(result: SweepResult) -> None:
    """Print a table for equal epochs, a table for equal steps if there are such runs, and the paths of all files."""
    # Heading, number of digits and factor of every printed metric.
    columns = {
        "train_loss": ("train loss", 4, 1.0),
        "test_loss": ("test loss", 4, 1.0),
        "test_accuracy": ("accuracy %", 2, 100.0),
        "psnr": ("PSNR dB", 2, 1.0),
        "delta_e": ("ΔE2000", 2, 1.0),
        "colourfulness": ("colourfulness", 1, 1.0),
        "seconds": ("seconds", 1, 1.0),
    }
    headings = [result.parameter.replace("-", " "), "epochs", "steps", *(heading for heading, *_ in columns.values())]
    for comparison, rows in (("equal epochs", result.equal_epochs), ("equal steps", result.equal_steps)):
        title = f"{result.model} on {result.data}, {result.recipe} recipe, palette {result.palette}: {comparison}"
        cells = []
        for row in rows:
            metrics = ((row.metrics[name], digits, factor) for name, (_, digits, factor) in columns.items())
            means = [format_mean(stats.mean, stats.std, digits, factor) for stats, digits, factor in metrics]
            cells.append([str(row.value), str(row.epochs), f"{row.steps:,}", *means])
        if cells:
            print_grid(title, headings, cells)
    folder = result.folder
    paths = {"numbers": folder / "sweep.json", "table": folder / "sweep.csv", "curves": result.curves_path}
    for name, path in {**paths, "samples": result.samples_path, "runs": folder}.items():
        print(escape_unprintable(f"{name}: {path}"))
