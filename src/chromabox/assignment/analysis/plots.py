"""Figures of the assignment report. Because they are printed 16 cm wide, all font sizes are the printed sizes."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from chromabox.assignment.analysis.detector_analysis import LayerWeightChange, SampleDetections
from chromabox.assignment.analysis.pixels import AccuracyByEdgeDistance, Calibration, Predictions
from chromabox.detect.inference.outputs import drawable_name
from chromabox.engine.logger import EpochRecord
from chromabox.io.atomic import atomic_write
from chromabox.io.images import make_grid, read_image, to_uint8
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, RGBTile, save_figure

FIGURE_WIDTH = 6.3
DPI = 200

#: Colours of the models in the assignment's order. Colour-blind readers can distinguish them (Wong 2011, Nature Methods
#: 8, 441).
MODEL_COLOURS: Mapping[str, str] = {"pool-upsample": "#e69f00", "conv-transpose": "#0072b2", "unet": "#009e73"}

#: Colours of the pixels that are predicted correctly by both models, only the first, only the second, or neither.
AGREEMENT_COLOURS = ("#dddddd", "#0072b2", "#d55e00", "#222222")
FONT_SIZE = 8

#: Width of the row labels of image grids in inches, and gap between images in pixels.
LABEL_WIDTH, TILE_GAP = 1.1, 2
#: Confidence bins with at most this fraction of the pixels are not plotted.
MIN_BIN_FRACTION = 0.001


def plot_all_curves(runs: Mapping[str, Sequence[Sequence[EpochRecord]]], path: Path) -> None:
    """Plot loss and accuracy against epochs, with one colour per model and a thin line per seed.

    Lines are dashed for training images and solid for test images.
    """
    figure, (left, right) = _make_panels(2, 2.6)
    for model, history in ((model, history) for model, histories in runs.items() for history in histories):
        epochs = [record["epoch"] for record in history]
        marker = "." if len(history) == 1 else ""  # The line of a single epoch would be invisible.
        style: dict[str, Any] = {"color": MODEL_COLOURS[model], "linewidth": 0.8, "marker": marker}
        for axes, quantity, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
            for split, line in (("train", "--"), ("test", "-")):
                axes.plot(epochs, [record[f"{split}_{quantity}"] * scale for record in history], line, **style)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats per pixel)")
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    models = [Line2D([], [], color=MODEL_COLOURS[model], label=model) for model in runs]
    train = Line2D([], [], color="black", linestyle="--", label="training images")
    test = Line2D([], [], color="black", linestyle="-", label="test images")
    left.legend(handles=[*models, train, test], fontsize=FONT_SIZE - 1)
    save_figure(figure, path, DPI)


def plot_accuracy_by_edge_distance(
    models: Mapping[str, AccuracyByEdgeDistance], bounds: Sequence[int | float], path: Path
) -> None:
    """Plot accuracy in bins of distance from the nearest edge, with the fraction of all pixels above each bin."""
    figure, (axes,) = _make_panels(1, 2.6)
    names = [f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}" for low, high in pairwise(bounds)]
    names[0] = "on an edge"
    for model, result in models.items():
        axes.plot(names, 100 * result.accuracy, marker="o", markersize=4, color=MODEL_COLOURS[model], label=model)
    above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": FONT_SIZE - 1}
    for index, fraction in enumerate(next(iter(models.values())).fraction):
        axes.annotate(f"{100 * fraction:.0f} %", (index, 1.02), **above)
    axes.set(xlabel="distance from the nearest edge (pixels); above: fraction of all pixels", ylabel="accuracy (%)")
    axes.legend(fontsize=FONT_SIZE)
    save_figure(figure, path, DPI)


def plot_gradients(
    start: Mapping[str, Mapping[str, float]], end: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Plot the relative gradients of all layers before and after training, with one line per model."""
    figure, panels = _make_panels(2, 2.4, sharey=True)
    for axes, models, title in zip(panels, (start, end), ("before training", "after training"), strict=True):
        for model, layers in models.items():
            style: dict[str, Any] = {"marker": "o", "markersize": 4, "color": MODEL_COLOURS[model], "label": model}
            axes.plot(list(layers), list(layers.values()), **style)
        axes.set_title(title, fontsize=FONT_SIZE + 1)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("gradient norm / weight norm")
    panels[1].legend(fontsize=FONT_SIZE - 1)
    save_figure(figure, path, DPI)


def plot_calibration(models: Mapping[str, Calibration], path: Path) -> None:
    """Plot accuracy against confidence for all bins with enough pixels. A calibrated model lies on the diagonal."""
    figure, (axes,) = _make_panels(1, 2.8)
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8, linestyle=":")
    for model, calibration in models.items():
        shown = calibration.fraction > MIN_BIN_FRACTION
        confidence, accuracy = (100 * values[shown] for values in (calibration.confidence, calibration.accuracy))
        axes.plot(confidence, accuracy, marker="o", markersize=3, color=MODEL_COLOURS[model], label=model)
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
    axes.legend(fontsize=FONT_SIZE)
    save_figure(figure, path, DPI)


def plot_samples(rows: Mapping[str, Sequence[RGBTile]], path: Path) -> None:
    """Plot labelled rows of images of equal size."""
    save_figure(_image_grid(rows), path, DPI)


def plot_agreement(
    rows: Mapping[str, Sequence[RGBTile]], names: tuple[str, str], first: Predictions, second: Predictions, path: Path
) -> None:
    """Plot rows of images and, below them, maps of the pixels that each of two models predicts correctly."""
    count = len(next(iter(rows.values())))
    maps = agreement_map(first.is_correct[:count], second.is_correct[:count])
    figure = _image_grid({**rows, "correct": list(maps)}, bottom_margin=0.3)
    labels = ("both", f"only {names[0]}", f"only {names[1]}", "neither")
    handles = [Patch(color=colour, label=label) for colour, label in zip(AGREEMENT_COLOURS, labels, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=FONT_SIZE, frameon=False)
    save_figure(figure, path, DPI)


def agreement_map(
    first: Bool[np.ndarray, "*images height width"], second: Bool[np.ndarray, "*images height width"]
) -> UInt8[np.ndarray, "*images height width 3"]:
    """Return maps that show where both models, only the first, only the second, or neither is correct.

    The colours of the maps are :data:`AGREEMENT_COLOURS`.
    """
    colours = np.rint(255 * to_rgba_array(AGREEMENT_COLOURS)[:, :3]).astype(np.uint8)
    return np.asarray(colours[np.where(first, 0, 2) + np.where(second, 0, 1)])


def _image_grid(rows: Mapping[str, Sequence[RGBTile]], bottom_margin: float = 0.0) -> Figure:
    """Return a figure of labelled rows of images, with a margin of ``bottom_margin`` inches below the images."""
    grid = make_grid(list(rows.values()), gap=TILE_GAP)[TILE_GAP:, TILE_GAP:]
    grid_height = (FIGURE_WIDTH - LABEL_WIDTH) * grid.shape[0] / grid.shape[1]
    figure = Figure(figsize=(FIGURE_WIDTH, grid_height + bottom_margin + 0.05), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid, interpolation="nearest")
    row_height = grid.shape[0] // len(rows)
    centres = [index * row_height + (row_height - TILE_GAP) / 2 for index in range(len(rows))]
    axes.set_yticks(centres, list(rows), fontsize=FONT_SIZE)
    axes.set_xticks([])
    axes.set_anchor("E")
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    return figure


def _make_panels(count: int, height: float, *, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(FIGURE_WIDTH, height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0])
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=FONT_SIZE)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_fontsize(FONT_SIZE + 1)
    return figure, panels


#: Number of palette colours in PNG files of photographs.
NUM_PNG_COLOURS = 128

#: Colours of classes, used cyclically. They are dark enough for white text.
BOX_COLOURS = ("#c0392b", "#0072b2", "#00785a", "#8e44ad", "#a04000", "#1f3a93", "#7d6608", "#943126")


def plot_weight_changes(changes: Sequence[LayerWeightChange], num_frozen: int, path: Path) -> None:
    """Plot the relative change in the parameters of every convolution. Unchanged convolutions are marked "0"."""
    figure, (axes,) = _make_panels(1, 2.3)
    axes.grid(visible=False)
    transform = axes.get_xaxis_transform()
    for change in changes:
        if change.relative_change:
            colour = VAL_COLOUR if change.layer < num_frozen else TRAIN_COLOUR
            axes.bar(change.layer, change.relative_change, color=colour)
            axes.set_yscale("log")
        else:
            axes.text(change.layer, 0.02, "0", transform=transform, ha="center", fontsize=FONT_SIZE)
    if num_frozen:
        axes.axvspan(-0.5, num_frozen - 0.5, color="#000000", alpha=0.08, linewidth=0)
        middle = (num_frozen - 1) / 2
        axes.text(middle, 0.97, "frozen", transform=transform, ha="center", va="top", fontsize=FONT_SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlim=(-0.5, changes[-1].layer + 0.5), xlabel="layer index of the convolution")
    axes.set_ylabel("relative change\nof the parameters")
    save_figure(figure, path, DPI)


def plot_sample_detections(samples: Sequence[SampleDetections], classes: Sequence[str], path: Path) -> None:
    """Plot one row per image, with the ground-truth boxes and the detections before and after fine-tuning."""
    aspect_ratios = [sample.size[0] / sample.size[1] for sample, _, _ in samples]
    figure = Figure(figsize=(FIGURE_WIDTH, FIGURE_WIDTH / 3 * sum(aspect_ratios) + 0.4), layout="constrained")
    rows = figure.subplots(len(samples), 3, squeeze=False, height_ratios=aspect_ratios)
    for row, (sample, *results) in zip(rows, samples, strict=True):
        pixels = to_uint8(read_image(sample.path).pixels)
        columns = [list(zip(sample.boxes, sample.class_ids, [""] * len(sample.boxes), strict=True))]
        for detections in results:
            assert detections.class_id is not None
            assert detections.confidence is not None
            scores = [f" {confidence:.2f}" for confidence in detections.confidence]
            columns.append(list(zip(detections.xyxy, detections.class_id, scores, strict=True)))
        for axes, boxes in zip(row, columns, strict=True):
            axes.imshow(pixels, interpolation="antialiased")
            axes.set_axis_off()
            for (left, top, right, bottom), class_id, score in boxes:
                colour = BOX_COLOURS[class_id % len(BOX_COLOURS)]
                edges = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1)
                axes.add_patch(edges)
                background = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
                style: dict[str, Any] = {"color": "white", "fontsize": 5.5, "va": "bottom", "bbox": background}
                axes.text(
                    left,
                    top,
                    f"{drawable_name(classes[class_id], int(class_id))}{score}",
                    **style,
                    parse_math=False,
                    clip_on=True,
                )
    for axes, name in zip(rows[0], ("ground truth", "before", "after"), strict=True):
        axes.set_title(name, fontsize=FONT_SIZE + 1)
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=DPI, format="png")
    # True-colour photographs would take up most of the file size of a report.
    quantised = Image.open(drawing).convert("RGB").quantize(NUM_PNG_COLOURS, method=Image.Quantize.MEDIANCUT)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temp_path:
        quantised.save(temp_path, format="PNG", optimize=True)
