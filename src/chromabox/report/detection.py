"""A detector's measures on the terminal, in ``evaluation.json``, and drawn: ``curves.png`` and ``confusion.png``."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from chromabox.detect.data.dataset import utf8_safe
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.evaluation.evaluate import DetectionEvaluation, default_split, evaluate_detector, find_leaks
from chromabox.detect.inference.runtime import optimize_for_inference
from chromabox.detect.models.darknet import get_variant
from chromabox.detect.weights.load import load_detector
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError
from chromabox.report.dataset import printable
from chromabox.report.plots import TEST_COLOUR, TRAIN_COLOUR, save_figure

#: Classes up to which each has a curve and a line of its own in legends.
MAX_NAMED_CURVES = 10
#: Pictures up to which the split is compared with the others for shared pictures.
MAX_LEAK_CHECK_IMAGES = 5000


def evaluate_detector_file(
    weights: Path | str,
    data: Path | str,
    folder: Path,
    *,
    split: str | None = None,
    size: int | None = None,
    variant: str | None = None,
    architecture: Path | str | None = None,
) -> DetectionEvaluation:
    """Measure a detector on a split of the data, print the table, and write evaluation.json and both figures.

    Without a split the validation pictures are taken, else the test pictures, else all. `size` is the net's own if
    None; `kind` and `architecture` are for `load_detector`. Raises what loading weights and data and measuring raise,
    and ChromaboxError where `folder` cannot be written.
    """
    trained = load_detector(
        weights, variant=None if variant is None else get_variant(variant), architecture=architecture
    )
    whole = load_detection_dataset(data)
    chosen = split or default_split(whole)
    part = whole if chosen is None else whole.split(chosen)
    side = size or trained.size
    result = evaluate_detector(optimize_for_inference(trained), part, size=side, show_progress=True)
    shared = find_leaks(whole, chosen, max_images=MAX_LEAK_CHECK_IMAGES) if chosen else []
    told = [f"{first} is the same picture as {second}, or nearly, of another split" for first, second in shared]
    spoilt = len([fault for fault in part.issues if fault.issue_type != "huge box"])
    told += [f"the data has {spoilt} faults; chromabox data check {data} tells them"] if spoilt else []
    result = replace(result, warnings=(*told, *result.warnings))
    title = f"{weights} at {side} on {data}" + (f", {chosen}" if chosen else "")
    print_evaluation(result, title)
    for warning in result.warnings:
        print(f"chromabox: {warning}", file=sys.stderr)
    about = {"weights": utf8_safe(weights), "data": utf8_safe(data), "split": chosen, "size": side}
    for path in write_evaluation(result, folder, about, title):
        print(path)
    return result


def write_evaluation(
    result: DetectionEvaluation, folder: Path, metadata: dict[str, Any], title: str
) -> tuple[Path, Path, Path]:
    """Write ``evaluation.json`` (`about` first), ``curves.png`` and ``confusion.png``; a missing folder is made."""
    table, lines, matrix = (folder / name for name in ("evaluation.json", "curves.png", "confusion.png"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(table, {**metadata, **result.as_json()})
        plot_pr_curves(result, lines, title)
        plot_confusion(result, matrix, title)
    except OSError as error:
        raise ChromaboxError(f"{folder}: cannot be written to ({error.strerror}); give another folder") from error
    return table, lines, matrix


def print_evaluation(result: DetectionEvaluation, title: str) -> None:
    """A line for all classes and one for each class that has boxes, in per cent."""
    table = Table(title=printable(title))
    table.add_column("", overflow="fold")
    for heading in ("boxes", "AP %", "95 %", "AP50 %", "95 %", "course AP %", "course AP50 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    coco, course = result.coco, result.course
    rows = [coco.ap, coco.ap50, course.ap, course.ap50]
    ap, ap50, course_ap, course_ap50 = (_percent(value) for value in rows)
    spans = [f"{100 * low:.1f}–{100 * high:.1f}" for low, high in (result.ap_interval, result.ap50_interval)]
    table.add_row("all", str(int(result.box_counts.sum())), ap, spans[0], ap50, spans[1], course_ap, course_ap50)
    table.add_section()
    for index in np.flatnonzero(result.box_counts).tolist():
        values = (coco.per_class[index], coco.table[0, index], course.per_class[index], course.table[0, index])
        ap, ap50, course_ap, course_ap50 = (_percent(value) for value in values)
        table.add_row(
            printable(result.classes[index]), str(result.box_counts[index]), ap, "", ap50, "", course_ap, course_ap50
        )
    confidence, precision, recall, f1 = result.pr_curves.best_f1
    table.caption = (
        f"{result.num_images} pictures; greatest F1 {f1:.3f} at confidence {confidence:.2f} "
        f"(precision {precision:.3f}, recall {recall:.3f})"
    )
    # A pipe has no width of its own; without a fixed one rich would fold the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else ""


def plot_pr_curves(result: DetectionEvaluation, path: Path, title: str) -> None:
    """Precision, recall and F1 against confidence, and precision against recall: of each class, and their mean."""
    curves = result.pr_curves
    recalls = np.linspace(0, 1, curves.precision_envelope.shape[1])
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    names = [result.classes[index] for index in curves.class_ids]
    _plot_class_lines(axes[0], curves.confidence, curves.precision, names)
    _plot_class_lines(axes[1], curves.confidence, curves.recall, names)
    _plot_class_lines(axes[2], curves.confidence, curves.f1, names)
    _plot_class_lines(axes[3], recalls, curves.precision_envelope, names)
    for place, (across, up) in zip(
        axes,
        (("confidence", "precision"), ("confidence", "recall"), ("confidence", "F1"), ("recall", "precision")),
        strict=True,
    ):
        place.set(xlabel=across, ylabel=up, xlim=(0, 1), ylim=(0, 1.01))
        place.grid(alpha=0.3)
    best = curves.best_f1[0]
    axes[2].axvline(best, color=TEST_COLOUR, linewidth=1, label=f"greatest at {best:.2f}")
    axes[2].legend(fontsize=8)
    axes[3].legend(fontsize=8)
    figure.suptitle(f"{title} (overlap 0.5)", parse_math=False)
    save_figure(figure, path)


def _plot_class_lines(axes: Axes, x: np.ndarray, lines: np.ndarray, names: list[str]) -> None:
    for name, line in zip(names, lines, strict=True):
        if len(names) <= MAX_NAMED_CURVES:
            # A name that begins with "_" would be hidden from the legend.
            axes.plot(x, line, linewidth=0.8, label=f"\u200b{name}")
        else:
            axes.plot(x, line, linewidth=0.8, alpha=0.35, color="0.6")
    axes.plot(x, lines.mean(axis=0), color=TRAIN_COLOUR, linewidth=2.2, label=f"mean of {len(names)} classes")


def plot_confusion(result: DetectionEvaluation, path: Path, title: str) -> None:
    """What each class was taken for: rows truth, columns prediction, each row as shares; only classes that occur."""
    table = result.confusion_matrix
    occurs = np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))
    nothing = len(table) - 1
    shown = [*(index for index in occurs.tolist() if index != nothing), nothing]
    names = [*(result.classes[index] for index in shown[:-1]), "nothing"]
    part = table[np.ix_(shown, shown)]
    shares = part / np.maximum(part.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.17 * len(shown) + 3)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="magma", vmin=0, vmax=1)
    size = 9 if len(shown) <= 20 else 6
    ticks = range(len(shown))
    axes.set_xticks(ticks, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    if len(shown) <= 20:
        for row, column in np.argwhere(part).tolist():
            tone = "black" if shares[row, column] > 0.6 else "white"
            axes.text(column, row, str(part[row, column]), ha="center", va="center", color=tone, fontsize=8)
    axes.set(xlabel="found (confidence from 0.25)", ylabel="truth")
    axes.set_title(title, parse_math=False, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the row")
    save_figure(figure, path)
