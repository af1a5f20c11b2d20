"""Figures of the assignment report. All are 16 cm wide on paper, so that font sizes are as given here."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from chromabox.assignment.analysis.detector_analysis import LayerWeightChange, SampleDetections
from chromabox.assignment.analysis.pixels import AccuracyByEdgeDistance, Calibration, Predictions
from chromabox.engine.logger import EpochRecord
from chromabox.io.atomic import atomic_write
from chromabox.io.images import make_grid, read_image, to_uint8
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, RGBTile, save_figure

FIGURE_WIDTH = 6.3
DPI = 200

#: Colours that colour-blind readers can distinguish (Wong 2011, Nature Methods 8, 441), in the order of the assignment.
MODEL_COLOURS: Mapping[str, str] = {"pool-upsample": "#e69f00", "conv-transpose": "#0072b2", "unet": "#009e73"}

#: Colours of the pixels predicted correctly by both models, only the first, only the second, and neither.
AGREEMENT_COLOURS = ("#dddddd", "#0072b2", "#d55e00", "#222222")
FONT_SIZE = 8

#: Grids of samples: width of the row labels in inches, and gap between images in pixels.
LABEL_WIDTH, TILE_GAP = 1.1, 2
#: Confidence bins with at most this fraction of the pixels are not plotted.
MIN_BIN_FRACTION = 0.001


def plot_all_curves(runs: Mapping[str, Sequence[Sequence[EpochRecord]]], path: Path) -> None:
    """Plot loss and accuracy against epochs: a colour per model, a thin line per seed, dashed for training."""
    figure, (left, right) = _make_panels(2, 2.6)
    for model, histories in runs.items():
        for history in histories:
            epochs = [record["epoch"] for record in history]
            marker = "." if len(history) == 1 else ""  # The line of a single epoch would be invisible.
            style: dict[str, Any] = {"color": MODEL_COLOURS[model], "linewidth": 0.8, "marker": marker}
            for axes, quantity, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
                for split, line_style in (("train", "--"), ("test", "-")):
                    axes.plot(
                        epochs, [record[f"{split}_{quantity}"] * scale for record in history], line_style, **style
                    )
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
    """Plot accuracy in bins of distance from the nearest edge, with the fraction of pixels above each bin."""
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
    """Plot the relative gradients of the layers before and after training, with one line per model."""
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
    panels[0].set_ylabel("gradient / weight")
    panels[1].legend(fontsize=FONT_SIZE - 1)
    save_figure(figure, path, DPI)


def plot_calibration(models: Mapping[str, Calibration], path: Path) -> None:
    """Plot accuracy against confidence, omitting bins with few pixels; a calibrated model is on the diagonal."""
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
    """Plot labelled rows of images; all images have the same size."""
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
    """Return images that show where both, one or neither of two models is correct, in :data:`AGREEMENT_COLOURS`."""
    colours = np.rint(255 * to_rgba_array(AGREEMENT_COLOURS)[:, :3]).astype(np.uint8)
    return np.asarray(colours[np.where(first, 0, 2) + np.where(second, 0, 1)])


def _image_grid(rows: Mapping[str, Sequence[RGBTile]], bottom_margin: float = 0.0) -> Figure:
    """Return a figure of rows of images of equal size; ``bottom_margin`` is the free height in inches below them."""
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

#: Colours of classes, used cyclically; dark enough for white text.
BOX_COLOURS = ("#c0392b", "#0072b2", "#00785a", "#8e44ad", "#a04000", "#1f3a93", "#7d6608", "#943126")


def plot_weight_changes(changes: Sequence[LayerWeightChange], num_frozen: int, path: Path) -> None:
    """Plot the relative change of the parameters of each convolution; unchanged layers are marked "0"."""
    figure = Figure(figsize=(FIGURE_WIDTH, 2.3), layout="constrained")
    axes = figure.subplots()
    for index, change in enumerate(changes):
        is_frozen = change.layer < num_frozen
        if change.relative_change:
            axes.bar(index, change.relative_change, color=VAL_COLOUR if is_frozen else TRAIN_COLOUR)
        else:
            axes.text(index, 0.02, "0", transform=axes.get_xaxis_transform(), ha="center", fontsize=FONT_SIZE)
    count = sum(change.layer < num_frozen for change in changes)
    if count:
        axes.axvspan(-0.5, count - 0.5, color="#000000", alpha=0.08, linewidth=0)
        middle, transform = (count - 1) / 2, axes.get_xaxis_transform()
        axes.text(middle, 0.97, "frozen", transform=transform, ha="center", va="top", fontsize=FONT_SIZE)
    if any(change.relative_change for change in changes):
        axes.set_yscale("log")
    axes.set_xlim(-0.5, len(changes) - 0.5)
    # At most 25 layers are labelled.
    step = -(-len(changes) // 25)
    axes.set_xticks(range(0, len(changes), step), [str(change.layer) for change in changes[::step]])
    axes.tick_params(which="both", labelsize=FONT_SIZE)
    axes.set_xlabel("layer index of the convolution", fontsize=FONT_SIZE)
    axes.set_ylabel("relative change\nof the parameters", fontsize=FONT_SIZE)
    save_figure(figure, path, DPI)


def plot_sample_detections(samples: Sequence[SampleDetections], classes: Sequence[str], path: Path) -> None:
    """Plot one row per image: ground truth, detections before and after fine-tuning; a colour for each class."""
    aspect_ratios = [sample.size[0] / sample.size[1] for sample, _, _ in samples]
    figure = Figure(figsize=(FIGURE_WIDTH, FIGURE_WIDTH / 3 * sum(aspect_ratios) + 0.4), layout="constrained")
    rows = figure.subplots(len(samples), 3, squeeze=False, height_ratios=aspect_ratios)
    for row, (sample, *results) in zip(rows, samples, strict=True):
        pixels = to_uint8(read_image(sample.path).pixels)
        for axes in row:
            axes.imshow(pixels, interpolation="antialiased")
            axes.set_axis_off()
        for box, class_id in zip(sample.boxes, sample.class_ids, strict=True):
            _draw_box(row[0], box, int(class_id), classes[class_id])
        for axes, detections in zip(row[1:], results, strict=True):
            assert detections.class_id is not None
            assert detections.confidence is not None
            boxes = zip(detections.xyxy, detections.class_id, detections.confidence, strict=True)
            for box, class_id, confidence in boxes:
                _draw_box(axes, box, int(class_id), f"{classes[class_id]} {confidence:.2f}")
    for axes, name in zip(rows[0], ("ground truth", "before", "after"), strict=True):
        axes.set_title(name, fontsize=FONT_SIZE + 1)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, Image.open(buffer) as image:
        # True-colour photographs would be the largest part of a report.
        quantised = image.convert("RGB").quantize(NUM_PNG_COLOURS, method=Image.Quantize.MEDIANCUT)
        quantised.save(temporary, "PNG", optimize=True)


def _draw_box(axes: Axes, box: Float[np.ndarray, "4"], class_id: int, label: str) -> None:
    left, top, right, bottom = box.tolist()
    colour = BOX_COLOURS[class_id % len(BOX_COLOURS)]
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1))
    background = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
    style: dict[str, Any] = {"color": "white", "fontsize": 5.5, "va": "bottom", "bbox": background}
    axes.text(left, top, label, **style, parse_math=False, clip_on=True)
