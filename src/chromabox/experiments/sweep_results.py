"""Results of a sweep: metrics of every value's runs, ``sweep.json``, ``sweep.csv``, tables and figures."""

import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
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
from chromabox.report.tables import _format_number, _print_table

SweepValue = int | float

#: Format of ``sweep.json``. Format 1 had no version number and used other names; it can still be read.
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

    def as_json(self) -> dict[str, Any]:
        """Return mean, standard deviation and all values; infinity, which JSON cannot represent, becomes None."""
        return {
            "mean": _inf_to_none(self.mean),
            "spread": self.std,
            "each": [_inf_to_none(value) for value in self.values],
        }


@dataclass(frozen=True)
class SweepRow:
    """Runs of one parameter value and their metrics."""

    value: SweepValue
    runs: tuple[Path, ...]
    """Run folder of each seed, relative to the sweep folder."""
    parameters: int
    epochs: int
    """Number of epochs; if the number of steps is fixed, the last epoch can be incomplete."""
    steps: int
    steps_per_epoch: int
    metrics: Mapping[str, SeedStats]
    """Metrics by the names in ``METRICS``."""


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


def write_sweep(sweep: SweepResult) -> None:
    """Write ``sweep.csv`` and then ``sweep.json``, which marks the sweep as finished."""
    _write_table(sweep)
    rows = {name: [_row_to_json(row) for row in getattr(sweep, name)] for name in ("equal_epochs", "equal_steps")}
    values = {name: value for name, value in vars(sweep).items() if name != "folder"}
    values["grey_psnr"] = _inf_to_none(sweep.grey_psnr)
    write_json(sweep.folder / "sweep.json", {"format": SWEEP_FORMAT, **values, **rows, "metrics": dict(METRICS)})


def read_sweep(folder: Path) -> SweepResult:
    """Read the ``sweep.json`` of :func:`write_sweep`; raise UsageError if it is missing or invalid."""
    path = folder / "sweep.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format", 1) == 1:
            values = rename_keys(values, _FORMAT_1_NAMES)
            for name in ("equal_epochs", "equal_steps"):
                values[name] = [rename_keys(row, _FORMAT_1_NAMES) for row in values[name]]
        del values["metrics"]
        values["grey_psnr"] = _none_to_inf(values["grey_psnr"])
        for name in ("equal_epochs", "equal_steps"):
            values[name] = tuple(_row_from_json(row) for row in values[name])
        return SweepResult(folder=folder, **{**values, "seeds": tuple(values["seeds"])})
    except OSError as error:
        raise UsageError(f"{folder}: contains no sweep.json; use the folder of a finished sweep") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: invalid sweep result ({error}); run chromabox sweep again") from error


def _inf_to_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _none_to_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _row_to_json(row: SweepRow) -> dict[str, Any]:
    metrics = {name: stats.as_json() for name, stats in row.metrics.items()}
    return {**vars(row), "runs": [run.as_posix() for run in row.runs], "metrics": metrics}


def _row_from_json(values: dict[str, Any]) -> SweepRow:
    metrics = {
        name: SeedStats(tuple(_none_to_inf(value) for value in stats["each"]))
        for name, stats in values["metrics"].items()
    }
    return SweepRow(**{**values, "runs": tuple(Path(run) for run in values["runs"]), "metrics": metrics})


def _write_table(sweep: SweepResult) -> None:
    """Write one row per value, first for equal epochs, then for equal steps."""
    names = [f"{name}{end}" for name in METRICS for end in ("", "_spread")]
    header = ["comparison", sweep.parameter, "seeds", "parameters", "epochs", "updates", *names]
    with atomic_write(sweep.csv_path) as temp_path, temp_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for comparison, rows in (("equal epochs", sweep.equal_epochs), ("equal steps", sweep.equal_steps)):
            for row in rows:
                cells = [number for name in METRICS for number in _mean_and_std(row.metrics[name])]
                seeds = " ".join(map(str, sweep.seeds))
                writer.writerow([comparison, row.value, seeds, row.parameters, row.epochs, row.steps, *cells])


def _mean_and_std(stats: SeedStats) -> tuple[float, float | str]:
    return stats.mean, "" if stats.std is None else stats.std


RGBA = tuple[float, float, float, float]


def plot_sweep_curves(sweep: SweepResult, path: Path) -> None:
    """Plot the loss against epochs (left) and against optimizer steps (right), with one colour per value.

    Solid lines are test losses: the mean over the seeds, in a band from minimum to maximum. Dashed lines are losses on
    the training batches. Diamonds on the right mark the final losses of the runs with equal steps. If all values take
    the same number of steps per epoch, the right side shows the test accuracy instead.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts_differ = len({row.steps_per_epoch for row in sweep.equal_epochs}) > 1
    for row, colour in zip(sweep.equal_epochs, _line_colours(len(sweep.equal_epochs)), strict=True):
        epochs = np.arange(1, row.epochs + 1)
        _plot_losses(left, sweep, row, epochs, colour)
        if counts_differ:
            _plot_losses(right, sweep, row, epochs * row.steps_per_epoch, colour)
        else:
            _plot_band(right, epochs, 100 * _read_series(sweep, row, "test_accuracy"), colour, str(row.value))
    left.set(xlabel="epochs", ylabel="cross-entropy (nats per pixel)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if counts_differ:
        _mark_equal_steps(right, sweep)
        right.set(xlabel="optimizer steps", ylim=left.get_ylim())
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


def _mark_equal_steps(axes: Axes, sweep: SweepResult) -> None:
    """Use a logarithmic axis with a tick at each final step count, and mark the ends of the runs with equal steps."""
    axes.set_xscale("log")
    ends = sorted({row.steps for row in sweep.equal_epochs})
    axes.set_xticks(ends, [f"{end:,}" for end in ends])
    axes.set_xticks([], minor=True)
    if sweep.equal_steps:
        for row, colour in zip(sweep.equal_steps, _line_colours(len(sweep.equal_steps)), strict=True):
            axes.plot(row.steps, row.metrics["test_loss"].mean, "D", color=colour, markeredgecolor="black", zorder=3)
        diamond = Line2D([], [], marker="D", linestyle="", color="white", markeredgecolor="black", label="equal steps")
        axes.legend(handles=[diamond], fontsize=9)


def _plot_losses(axes: Axes, sweep: SweepResult, row: SweepRow, positions: Any, colour: RGBA) -> None:
    _plot_band(axes, positions, _read_series(sweep, row, "test_loss"), colour, str(row.value))
    train = _read_series(sweep, row, "train_loss").mean(0)
    axes.plot(positions, train, "--", color=colour, linewidth=1, marker="." if len(train) == 1 else None)


def _plot_band(axes: Axes, positions: Any, series: Float[np.ndarray, "seeds epochs"], colour: RGBA, label: str) -> None:
    axes.fill_between(positions, series.min(0), series.max(0), color=colour, alpha=0.25, linewidth=0)
    axes.plot(positions, series.mean(0), color=colour, label=label, marker="o" if series.shape[1] == 1 else None)


def _read_series(sweep: SweepResult, row: SweepRow, metric: str) -> Float[np.ndarray, "seeds epochs"]:
    """Return a metric after every epoch, one row per seed."""
    return np.array([[record[metric] for record in read_metrics(sweep.folder / run)] for run in row.runs])


def _line_colours(count: int) -> list[RGBA]:
    """Return colours from dark to light; the lightest yellows, hard to see on white, are excluded."""
    colormap: Callable[[float], RGBA] = colormaps["viridis"]
    return [colormap(0.9 * index / max(1, count - 1)) for index in range(count)]


def plot_sweep_samples(sweep: SweepResult, path: Path, test: LabelledImages) -> None:
    """Plot the first test images: rows of greyscale inputs, ground truth, and one row per value (its first seed)."""
    rows: dict[str, Sequence[Any]] = {}
    for row in sweep.equal_epochs:
        model = load_palette_model(sweep.folder / row.runs[0])
        grey, truth, coloured = sample_grid(model.network, test, model.palette)
        rows |= {"grey": grey, "truth": truth, f"{sweep.parameter}\n{row.value}": coloured}
    plot_image_rows(rows, path, f"{sweep.model} on {sweep.data}, {sweep.recipe} recipe: first test images")


def print_sweep(result: SweepResult) -> None:
    """Print one row per value for equal epochs and, if present, for equal steps, and the paths of all files."""
    title = f"{result.model} on {result.data}, {result.recipe} recipe, palette {result.palette}"
    _print_sweep_table(f"{title}: equal epochs", result, result.equal_epochs)
    if result.equal_steps:
        _print_sweep_table(f"{title}: equal steps", result, result.equal_steps)
    print(f"numbers: {result.folder / 'sweep.json'}\ntable: {result.csv_path}")
    print(f"curves: {result.curves_path}\nsamples: {result.samples_path}\nruns: {result.folder}")


def _print_sweep_table(title: str, result: SweepResult, rows: Sequence[SweepRow]) -> None:
    columns = [
        result.parameter.replace("-", " "),
        "epochs",
        "steps",
        "train loss",
        "test loss",
        "accuracy %",
        "PSNR dB",
    ]
    columns += ["ΔE2000", "colourfulness", "seconds"]
    metrics = [("train_loss", 4, 1.0), ("test_loss", 4, 1.0), ("test_accuracy", 2, 100.0), ("psnr", 2, 1.0)]
    metrics += [("delta_e", 2, 1.0), ("colourfulness", 1, 1.0), ("seconds", 1, 1.0)]
    _print_table(
        title,
        columns,
        [
            [str(row.value), str(row.epochs), f"{row.steps:,}"]
            + [_format_with_std(row.metrics[name], digits, factor) for name, digits, factor in metrics]
            for row in rows
        ],
    )


def _format_with_std(stats: SeedStats, digits: int, factor: float) -> str:
    std = _format_number(stats.std, digits, factor)
    return _format_number(stats.mean, digits, factor) + (f" ± {std}" if std else "")
