"""A sweep as figures: all its curves in one, and what each value's net makes of the same pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from chromabox.colour.data.datasets import Pictures
from chromabox.colour.evaluation.evaluate import sample_sheet
from chromabox.colour.weights.checkpoint import load_palette_net
from chromabox.engine.logger import read_metrics
from chromabox.report.plots import draw_rows, save_figure
from chromabox.report.swept import Row, Sweep

Colour = tuple[float, float, float, float]


def draw_sweep_curves(sweep: Sweep, path: Path) -> None:
    """Loss against epochs, and beside it against updates, a colour for each value.

    Solid lines are test losses, the mean over the seeds, in a band from the least to the greatest; dashed ones are
    losses on the batches that were being learnt from. Diamonds, on the right, are where the runs with equal steps
    ended. Where all values make as many updates an epoch, the right side shows the test accuracy instead.
    """
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts_differ = len({row.updates_per_epoch for row in sweep.equal_epochs}) > 1
    for row, colour in zip(sweep.equal_epochs, _colours(len(sweep.equal_epochs)), strict=True):
        epochs = np.arange(1, row.epochs + 1)
        _draw_losses(left, sweep, row, epochs, colour)
        if counts_differ:
            _draw_losses(right, sweep, row, epochs * row.updates_per_epoch, colour)
        else:
            _draw_band(right, epochs, 100 * _series(sweep, row, "test_accuracy"), colour, str(row.value))
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
    left.legend(title=sweep.over.replace("-", " "), fontsize=9)
    figure.suptitle(
        f"{sweep.net}, {sweep.recipe} recipe: test loss (solid) and training loss (dashed)",
        fontsize=11,
        parse_math=False,
    )
    save_figure(figure, path, dpi=200)


def _mark_equal_steps(axes: Axes, sweep: Sweep) -> None:
    """Doubled batches at equal distances, a tick where each value ended, and the ends of the runs with equal steps."""
    axes.set_xscale("log")
    ends = sorted({row.updates for row in sweep.equal_epochs})
    axes.set_xticks(ends, [f"{end:,}" for end in ends])
    axes.set_xticks([], minor=True)
    if sweep.equal_steps:
        for row, colour in zip(sweep.equal_steps, _colours(len(sweep.equal_steps)), strict=True):
            axes.plot(row.updates, row.measured["test_loss"].mean, "D", color=colour, markeredgecolor="black", zorder=3)
        diamond = Line2D([], [], marker="D", linestyle="", color="white", markeredgecolor="black", label="equal steps")
        axes.legend(handles=[diamond], fontsize=9)


def _draw_losses(axes: Axes, sweep: Sweep, row: Row, positions: Any, colour: Colour) -> None:
    _draw_band(axes, positions, _series(sweep, row, "test_loss"), colour, str(row.value))
    train = _series(sweep, row, "train_loss").mean(0)
    axes.plot(positions, train, "--", color=colour, linewidth=1, marker="." if len(train) == 1 else None)


def _draw_band(
    axes: Axes, positions: Any, series: Float[np.ndarray, "seeds epochs"], colour: Colour, name: str
) -> None:
    axes.fill_between(positions, series.min(0), series.max(0), color=colour, alpha=0.25, linewidth=0)
    axes.plot(positions, series.mean(0), color=colour, label=name, marker="o" if series.shape[1] == 1 else None)


def _series(sweep: Sweep, row: Row, quantity: str) -> Float[np.ndarray, "seeds epochs"]:
    """A quantity after every epoch, by seed."""
    return np.array([[record[quantity] for record in read_metrics(sweep.folder / run)] for run in row.runs])


def _colours(count: int) -> list[Colour]:
    """From dark to light, as the values go up; the lightest yellows of the map are left out."""
    chosen: Callable[[float], Colour] = colormaps["viridis"]
    return [chosen(0.9 * index / max(1, count - 1)) for index in range(count)]


def draw_sweep_sheet(sweep: Sweep, path: Path, test: Pictures) -> None:
    """Rows grey, truth, then one for each value (its first seed), of the first test pictures."""
    rows: dict[str, Sequence[Any]] = {}
    for row in sweep.equal_epochs:
        trained = load_palette_net(sweep.folder / row.runs[0])
        grey, truth, coloured = sample_sheet(trained.net, test, trained.palette)
        rows |= {"grey": grey, "truth": truth, f"{sweep.over}\n{row.value}": coloured}
    draw_rows(rows, path, f"{sweep.net} on {sweep.data}, {sweep.recipe} recipe: first test pictures")
