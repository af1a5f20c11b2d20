"""What a sweep found: for every value its runs and what they reached; as ``sweep.json`` and as a table.

A sweep as figures: all its curves in one, and what each value's net makes of the same pictures.
"""

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

#: Format of ``sweep.json``. Format 1 had no number and used other names, which are still read.
SWEEP_FORMAT = 2
_FORMAT_1_NAMES = {
    "net": "model",
    "over": "parameter",
    "updates": "steps",
    "updates_per_epoch": "steps_per_epoch",
    "measured": "metrics",
}
#: What is measured of every run, and in which unit.
METRICS: Mapping[str, str] = {
    "train_loss": "cross-entropy of the finished net in nats a pixel, on as many training pictures as there are test "
    "pictures",
    "train_accuracy": "share of their pixels whose colour is right",
    "test_loss": "cross-entropy in nats a pixel, on the test pictures",
    "test_accuracy": "share of their pixels whose colour is right",
    "psnr": "dB, coloured test pictures (the likeliest colour of every pixel) against the true ones",
    "delta_e": "mean CIEDE2000 of the same",
    "colourfulness": "of the coloured test pictures, Hasler and Süsstrunk 2003, mean over pictures",
    "seconds": "training with what is measured after every epoch",
    "seconds_per_epoch": "the same for one pass over the training pictures",
}


@dataclass(frozen=True)
class SeedStats:
    """One quantity, by seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None of a single one, and where a PSNR is infinite."""
        return statistics.stdev(self.values) if len(self.values) > 1 and math.isfinite(self.mean) else None

    def as_json(self) -> dict[str, Any]:
        """Mean, spread and the numbers themselves; what is infinite, which JSON has not, becomes null."""
        return {
            "mean": _inf_to_none(self.mean),
            "spread": self.std,
            "each": [_inf_to_none(value) for value in self.values],
        }


@dataclass(frozen=True)
class SweepRow:
    """One value's runs."""

    value: SweepValue
    runs: tuple[Path, ...]
    """The folder of each seed's run, relative to the sweep's."""
    parameters: int
    epochs: int
    """The last of which may have been cut short, where the updates are given."""
    steps: int
    steps_per_epoch: int
    metrics: Mapping[str, SeedStats]
    """By the names in ``MEASURED``."""


@dataclass(frozen=True)
class SweepResult:
    """One net trained with several values of one quantity."""

    folder: Path
    model: str
    recipe: str
    data: str
    palette: str
    parameter: str
    seeds: tuple[int, ...]
    grey_psnr: float
    """PSNR of the grey test pictures in dB: what no colour at all reaches."""
    truth_colourfulness: float
    """Of the true test pictures, the mean."""
    equal_epochs: tuple[SweepRow, ...]
    """In the order of the values."""
    equal_steps: tuple[SweepRow, ...] = ()
    """The same values, every one with as many updates; empty where that is the same comparison."""

    @property
    def csv_path(self) -> Path:
        """All means and spreads as csv."""
        return self.folder / "sweep.csv"

    @property
    def curves_path(self) -> Path:
        """The losses as a figure."""
        return self.folder / "curves.png"

    @property
    def samples_path(self) -> Path:
        """Sample pictures."""
        return self.folder / "sheet.png"


def write_sweep(sweep: SweepResult) -> None:
    """Write ``sweep.csv`` and, last of all, ``sweep.json``, by which a finished sweep is known."""
    _write_table(sweep)
    rows = {name: [_row_to_json(row) for row in getattr(sweep, name)] for name in ("equal_epochs", "equal_steps")}
    values = {name: value for name, value in vars(sweep).items() if name != "folder"}
    values["grey_psnr"] = _inf_to_none(sweep.grey_psnr)
    write_json(sweep.folder / "sweep.json", {"format": SWEEP_FORMAT, **values, **rows, "metrics": dict(METRICS)})


def read_sweep(folder: Path) -> SweepResult:
    """What :func:`write_sweep` wrote; UsageError if the folder holds no such file or a broken one."""
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
        raise UsageError(f"{folder}: holds no sweep.json; give the folder of a sweep that finished") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not the result of a sweep ({error}); chromabox sweep writes it anew") from error


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
    """A line for each value, first with equal epochs, then with equal steps."""
    names = [f"{name}{end}" for name in METRICS for end in ("", "_spread")]
    head = ["comparison", sweep.parameter, "seeds", "parameters", "epochs", "updates", *names]
    with atomic_write(sweep.csv_path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for kind, rows in (("equal epochs", sweep.equal_epochs), ("equal steps", sweep.equal_steps)):
            for row in rows:
                cells = [number for name in METRICS for number in _mean_and_std(row.metrics[name])]
                seeds = " ".join(map(str, sweep.seeds))
                writer.writerow([kind, row.value, seeds, row.parameters, row.epochs, row.steps, *cells])


def _mean_and_std(stats: SeedStats) -> tuple[float, float | str]:
    return stats.mean, "" if stats.std is None else stats.std


RGBA = tuple[float, float, float, float]


def plot_sweep_curves(sweep: SweepResult, path: Path) -> None:
    """Loss against epochs, and beside it against updates, a colour for each value.

    Solid lines are test losses, the mean over the seeds, in a band from the least to the greatest; dashed ones are
    losses on the batches that were being learnt from. Diamonds, on the right, are where the runs with equal steps
    ended. Where all values make as many updates an epoch, the right side shows the test accuracy instead.
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
    left.set(xlabel="epochs", ylabel="cross-entropy (nats a pixel)")
    left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if counts_differ:
        _mark_equal_steps(right, sweep)
        right.set(xlabel="updates", ylim=left.get_ylim())
    else:
        right.set(xlabel="epochs", ylabel="test pixels right (%)")
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
    """Doubled batches at equal distances, a tick where each value ended, and the ends of the runs with equal steps."""
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
    """A quantity after every epoch, by seed."""
    return np.array([[record[metric] for record in read_metrics(sweep.folder / run)] for run in row.runs])


def _line_colours(count: int) -> list[RGBA]:
    """From dark to light, as the values go up; the lightest yellows of the map are left out."""
    chosen: Callable[[float], RGBA] = colormaps["viridis"]
    return [chosen(0.9 * index / max(1, count - 1)) for index in range(count)]


def plot_sweep_samples(sweep: SweepResult, path: Path, test: LabelledImages) -> None:
    """Rows grey, truth, then one for each value (its first seed), of the first test pictures."""
    rows: dict[str, Sequence[Any]] = {}
    for row in sweep.equal_epochs:
        trained = load_palette_model(sweep.folder / row.runs[0])
        grey, truth, coloured = sample_grid(trained.network, test, trained.palette)
        rows |= {"grey": grey, "truth": truth, f"{sweep.parameter}\n{row.value}": coloured}
    plot_image_rows(rows, path, f"{sweep.model} on {sweep.data}, {sweep.recipe} recipe: first test pictures")


def print_sweep(result: SweepResult) -> None:
    """A line for each value, with equal epochs and where it was trained with equal steps; and where everything is."""
    title = f"{result.model} on {result.data}, {result.recipe} recipe, palette {result.palette}"
    _print_sweep_table(f"{title}: equal epochs", result, result.equal_epochs)
    if result.equal_steps:
        _print_sweep_table(f"{title}: equal steps", result, result.equal_steps)
    print(f"numbers: {result.folder / 'sweep.json'}\ntable: {result.csv_path}")
    print(f"curves: {result.curves_path}\npictures: {result.samples_path}\nruns: {result.folder}")


def _print_sweep_table(title: str, result: SweepResult, rows: Sequence[SweepRow]) -> None:
    columns = [
        result.parameter.replace("-", " "),
        "epochs",
        "updates",
        "train loss",
        "test loss",
        "accuracy %",
        "PSNR dB",
    ]
    columns += ["ΔE2000", "colourfulness", "seconds"]
    shown = [("train_loss", 4, 1.0), ("test_loss", 4, 1.0), ("test_accuracy", 2, 100.0), ("psnr", 2, 1.0)]
    shown += [("delta_e", 2, 1.0), ("colourfulness", 1, 1.0), ("seconds", 1, 1.0)]
    _print_table(
        title,
        columns,
        [
            [str(row.value), str(row.epochs), f"{row.steps:,}"]
            + [_format_with_std(row.metrics[name], digits, factor) for name, digits, factor in shown]
            for row in rows
        ],
    )


def _format_with_std(stats: SeedStats, digits: int, factor: float) -> str:
    spread = _format_number(stats.std, digits, factor)
    return _format_number(stats.mean, digits, factor) + (f" ± {spread}" if spread else "")
