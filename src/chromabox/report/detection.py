"""Detector evaluation: printed table, ``evaluation.json``, ``curves.png`` and ``confusion.png``."""

import errno
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from chromabox.detect.data.dataset import NOTES, DetectionDataset, utf8_safe
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import default_split
from chromabox.detect.evaluation.evaluate import DetectionEvaluation, evaluate_detector, find_leaks
from chromabox.detect.inference.outputs import describe_numbered_classes, drawable_name
from chromabox.detect.models.architecture import get_variant
from chromabox.detect.training.run_images import find_trained_images
from chromabox.detect.weights.load import load_detector
from chromabox.engine.autotune import num_threads
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError, escape_unprintable
from chromabox.report.plots import TEST_COLOUR, TRAIN_COLOUR, save_figure
from chromabox.report.tables import print_grid

#: Maximum number of classes whose curves are named in legends.
MAX_NAMED_CURVES = 10


def evaluate_detector_file(
    weights: Path | str,
    data: Path | str,
    folder: Path,
    *,
    split: str | None = None,
    size: int | None = None,
    variant: str | None = None,
    architecture: Path | str | None = None,
    device: str = "cpu",
) -> DetectionEvaluation:
    """Evaluate a detector on a split of a dataset. Print a table, and write ``evaluation.json`` and two figures.

    If `split` is None, the validation split is used, else the test split, else all images. `size` defaults to the input
    size of the detector. `variant` and `architecture` are passed to `load_detector`. `device` is a PyTorch device. If
    `weights` is a fine-tuning run or a file in its folder, also report which of the images the run was trained on.

    Raise the errors of loading and of evaluation, and ChromaboxError if `folder` cannot be written.
    """
    stored_variant = None if variant is None else get_variant(variant)
    detector = load_detector(weights, variant=stored_variant, architecture=architecture)
    dataset = load_detection_dataset(data)
    split_name = split or default_split(dataset)
    evaluated = dataset if split_name is None else dataset.split(split_name)
    input_size = size or detector.size
    trained = _find_trained_images(Path(weights), evaluated)
    make_folder(folder)
    detector = detector.fused()
    detector.model.to(device)
    with num_threads(1):  # Images are processed in parallel instead.
        result = evaluate_detector(detector, evaluated, size=input_size, show_progress=True)
    leaks = find_leaks(dataset, split_name) if split_name else []
    warnings = [f"{first} is identical or nearly identical to {second} in another split" for first, second in leaks]
    num_issues = len([issue for issue in evaluated.issues if issue.issue_type not in NOTES])
    warnings += (
        [f"number of issues in the dataset: {num_issues}; run chromabox data check {data}"] if num_issues else []
    )
    warnings += describe_numbered_classes(result.classes)
    if trained:
        count = f"images with which the run was trained: {len(trained)} of {len(evaluated.samples)}"
        warnings.append(f"{count} (for example {trained[0]}); the results are optimistic")
    result = replace(result, warnings=(*warnings, *result.warnings))
    title = f"{weights} at {input_size} pixels on {data}" + (f", {split_name}" if split_name else "")
    print_evaluation(result, title)
    for warning in result.warnings:
        print(f"chromabox: {escape_unprintable(warning)}", file=sys.stderr)
    metadata: dict[str, Any] = {
        "weights": utf8_safe(weights),
        "data": utf8_safe(data),
        "split": split_name,
        "size": input_size,
    }
    if trained is not None:
        metadata["trained_on"] = [utf8_safe(path) for path in trained]
        print(f"images with which the run was trained: {len(trained)} of {len(evaluated.samples)}")
    for path in write_evaluation(result, folder, metadata, title):
        print(escape_unprintable(str(path)))
    return result


def write_evaluation(
    result: DetectionEvaluation, folder: Path, metadata: dict[str, Any], title: str
) -> tuple[Path, Path, Path]:
    """Write ``curves.png``, ``confusion.png`` and ``evaluation.json``, which begins with `metadata`, into `folder`."""
    paths = folder / "evaluation.json", folder / "curves.png", folder / "confusion.png"
    make_folder(folder)
    try:
        write_json(paths[0], {**metadata, **result.as_json()})
        plot_pr_curves(result, paths[1], title)
        plot_confusion(result, paths[2], title)
    except OSError as error:
        raise ChromaboxError(f"{folder}: cannot be written to ({error.strerror}); use another folder") from error
    return paths


def make_folder(folder: Path) -> None:
    """Create a folder for results if necessary. Raise ChromaboxError if it cannot be created or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ChromaboxError(f"{folder}: cannot be written to ({error.strerror}); use another folder") from error


def _find_trained_images(weights: Path, data: DetectionDataset) -> list[Path] | None:
    """Return the images of a dataset with which the weights were trained, or None if the weights belong to no run."""
    path = (weights if weights.is_dir() else weights.parent) / "splits.json"
    is_run = path.is_file() and path.with_name("config.json").is_file()
    return find_trained_images(path, data) if is_run else None


def print_evaluation(result: DetectionEvaluation, title: str) -> None:
    """Print AP and AP50 in percent, for all classes together and for each class with ground-truth boxes."""

    def make_row(name: str, num_boxes: int, intervals: Sequence[str], *values: float) -> list[str]:
        ap, ap50, *course_values = (f"{100 * value:.1f}" if math.isfinite(value) else "" for value in values)
        return [name, str(num_boxes), ap, intervals[0], ap50, intervals[1], *course_values]

    coco, course = result.coco, result.course
    intervals = [f"{100 * low:.1f}–{100 * high:.1f}" for low, high in (result.ap_interval, result.ap50_interval)]
    num_boxes = result.box_counts.tolist()
    rows = [make_row("all", sum(num_boxes), intervals, coco.ap, coco.ap50, course.ap, course.ap50), []]
    for index in np.flatnonzero(result.box_counts).tolist():
        values = (coco.per_class[index], coco.table[0, index], course.per_class[index], course.table[0, index])
        rows.append(make_row(result.classes[index], num_boxes[index], ("", ""), *values))
    print_grid(title, ["", "boxes", "AP %", "95 %", "AP50 %", "95 %", "course AP %", "course AP50 %"], rows)
    confidence, precision, recall, f1 = result.pr_curves.best_f1
    print(
        f"number of images: {result.num_images}; best F1 {f1:.3f} at confidence {confidence:.2f} "
        f"(precision {precision:.3f}, recall {recall:.3f})"
    )


def plot_pr_curves(result: DetectionEvaluation, path: Path, title: str) -> None:
    """Plot precision, recall and F1 against confidence, and precision against recall, for each class and their mean."""
    curves = result.pr_curves
    recalls = np.linspace(0, 1, curves.precision_envelope.shape[1])
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    names = [drawable_name(result.classes[index], index) for index in map(int, curves.class_ids)]
    panels = (
        ("confidence", "precision", curves.confidence, curves.precision),
        ("confidence", "recall", curves.confidence, curves.recall),
        ("confidence", "F1", curves.confidence, curves.f1),
        ("recall", "precision", recalls, curves.precision_envelope),
    )
    for panel, (x_label, y_label, x, lines) in zip(axes, panels, strict=True):
        for name, line in zip(names, lines, strict=True):
            if len(names) <= MAX_NAMED_CURVES:
                # matplotlib omits labels that begin with "_" from legends.
                panel.plot(x, line, linewidth=0.8, label=f"\u200b{name}")
            else:
                panel.plot(x, line, linewidth=0.8, alpha=0.35, color="0.6")
        panel.plot(x, lines.mean(axis=0), color=TRAIN_COLOUR, linewidth=2.2, label=f"mean over classes ({len(names)})")
        panel.set(xlabel=x_label, ylabel=y_label, xlim=(0, 1), ylim=(0, 1.01))
        panel.grid(alpha=0.3)
    best = curves.best_f1[0]
    axes[2].axvline(best, color=TEST_COLOUR, linewidth=1, label=f"best at {best:.2f}")
    for panel in axes[2:]:
        for text in panel.legend(fontsize=8).get_texts():
            text.set_parse_math(False)  # Class names can contain dollar signs.
    figure.suptitle(f"{title} (IoU 0.5)", parse_math=False)
    save_figure(figure, path)


def plot_confusion(result: DetectionEvaluation, path: Path, title: str) -> None:
    """Plot the row-normalised confusion matrix (rows: ground truth) of the classes that occur."""
    table = result.confusion_matrix
    present = np.flatnonzero(table.sum(axis=0) + table.sum(axis=1))
    background = len(table) - 1
    shown = [*(index for index in present.tolist() if index != background), background]
    names = [*(drawable_name(result.classes[index], index) for index in shown[:-1]), "background"]
    counts = table[np.ix_(shown, shown)]
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.17 * len(shown) + 3)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="magma", vmin=0, vmax=1)
    size = 9 if len(shown) <= 20 else 6
    ticks = range(len(shown))
    axes.set_xticks(ticks, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    if len(shown) <= 20:
        for row, column in np.argwhere(counts).tolist():
            colour = "black" if fractions[row, column] > 0.6 else "white"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted (confidence at least 0.25)", ylabel="ground truth")
    axes.set_title(title, parse_math=False, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the row")
    save_figure(figure, path)
