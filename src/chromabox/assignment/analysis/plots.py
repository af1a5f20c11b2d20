"""Figures that show why one net beats another: curves, edges, gradients, who is right, calibration, pictures.

All are 16 cm wide, so that on paper letters have the size they are given here.

Figures of fine-tuning, 16 cm wide on paper: what moved in which layer, and pictures before and after.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from chromabox.assignment.analysis.detector_analysis import LayerWeightChange, SampleDetections
from chromabox.assignment.analysis.predictions import AccuracyByEdgeDistance, Calibration, Predictions
from chromabox.engine.logger import EpochRecord
from chromabox.io.atomic import atomic_write
from chromabox.io.images import read_image, to_uint8
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, RGBTile, save_figure

FIGURE_WIDTH = 6.3
DPI = 200

#: Colours that stay apart for colour-blind eyes (Wong 2011, Nature Methods 8, 441), in the order of the assignment.
MODEL_COLOURS: Mapping[str, str] = {"pool-upsample": "#e69f00", "conv-transpose": "#0072b2", "unet": "#009e73"}

#: Who is right about a pixel: both, only the first, only the second, neither.
AGREEMENT_COLOURS = ("#dddddd", "#0072b2", "#d55e00", "#222222")
FONT_SIZE = 8

#: Of a sheet: inches for the rows' names, and pixels between the pictures.
LABEL_WIDTH, TILE_GAP = 1.1, 2

#: A band of confidence with no more than this part of the pixels says nothing.
MIN_BIN_FRACTION = 0.001
History = Sequence[EpochRecord]


def plot_all_curves(runs: Mapping[str, Sequence[History]], path: Path) -> None:
    """Loss and accuracy against epochs: a colour for each net, a thin line for each seed, training dashed."""
    figure, (left, right) = _make_panels(2, 2.6)
    for net, histories in runs.items():
        for history in histories:
            for axes, quantity, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
                for split, dashes in (("train", "--"), ("test", "-")):
                    values = [record[f"{split}_{quantity}"] * scale for record in history]
                    epochs = [record["epoch"] for record in history]
                    axes.plot(epochs, values, dashes, color=MODEL_COLOURS[net], linewidth=0.8, marker=_marker(history))
    left.set(xlabel="epoch", ylabel="cross-entropy (nats a pixel)")
    right.set(xlabel="epoch", ylabel="pixels right (%)")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    nets = [Line2D([], [], color=MODEL_COLOURS[net], label=net) for net in runs]
    train = Line2D([], [], color="black", linestyle="--", label="training pictures")
    test = Line2D([], [], color="black", linestyle="-", label="test pictures")
    left.legend(handles=[*nets, train, test], fontsize=FONT_SIZE - 1)
    _save(figure, path)


def _marker(history: History) -> str:
    """A line of one epoch needs a mark to be seen."""
    return "." if len(history) == 1 else ""


def plot_accuracy_by_edge_distance(
    models: Mapping[str, AccuracyByEdgeDistance], bounds: Sequence[int | float], path: Path
) -> None:
    """Accuracy of nets in bands of distance from the nearest edge, above it how many pixels each band has."""
    figure, (axes,) = _make_panels(1, 2.6)
    names = [_bin_label(low, high) for low, high in pairwise(bounds)]
    for net, found in models.items():
        axes.plot(names, 100 * found.accuracy, marker="o", markersize=4, color=MODEL_COLOURS[net], label=net)
    for place, share in enumerate(next(iter(models.values())).fraction):
        axes.annotate(
            f"{100 * share:.0f} %",
            (place, 1.02),
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=FONT_SIZE - 1,
        )
    axes.set(xlabel="distance from the nearest edge (pixels); above: share of all pixels", ylabel="pixels right (%)")
    axes.legend(fontsize=FONT_SIZE)
    _save(figure, path)


def _bin_label(low: int | float, high: int | float) -> str:
    if low == 0 and high == 1:
        return "on an edge"
    return f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"


def plot_gradients(
    start: Mapping[str, Mapping[str, float]], end: Mapping[str, Mapping[str, float]], path: Path
) -> None:
    """Relative gradients of the layers, a line for each net, where training started and where it ended."""
    figure, panels = _make_panels(2, 2.4, sharey=True)
    for axes, nets, title in zip(panels, (start, end), ("at the start of training", "after training"), strict=True):
        for net, layers in nets.items():
            axes.plot(
                list(layers), list(layers.values()), marker="o", markersize=4, color=MODEL_COLOURS[net], label=net
            )
        axes.set_title(title, fontsize=FONT_SIZE + 1)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("gradient / weight")
    panels[1].legend(fontsize=FONT_SIZE - 1)
    _save(figure, path)


def plot_calibration(models: Mapping[str, Calibration], path: Path) -> None:
    """Accuracy against confidence, without bands of few pixels; on the diagonal both agree."""
    figure, (axes,) = _make_panels(1, 2.8)
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8, linestyle=":")
    for net, found in models.items():
        many = found.fraction > MIN_BIN_FRACTION
        confidence, accuracy = (100 * values[many] for values in (found.confidence, found.accuracy))
        axes.plot(confidence, accuracy, marker="o", markersize=3, color=MODEL_COLOURS[net], label=net)
    axes.set(xlabel="probability of the answer (%)", ylabel="answers right (%)", xlim=(0, 100), ylim=(0, 100))
    axes.legend(fontsize=FONT_SIZE)
    _save(figure, path)


def plot_samples(rows: Mapping[str, Sequence[RGBTile]], path: Path) -> None:
    """A labelled row of pictures each; all pictures are of one size."""
    _save(_image_grid(rows), path)


def plot_agreement(
    rows: Mapping[str, Sequence[RGBTile]], names: tuple[str, str], first: Predictions, second: Predictions, path: Path
) -> None:
    """Rows of pictures and below them, for the same pictures, who of two nets is right where."""
    count = len(next(iter(rows.values())))
    maps = [
        agreement_map(one, two) for one, two in zip(first.is_correct[:count], second.is_correct[:count], strict=True)
    ]
    figure = _image_grid({**rows, "who is right": maps}, bottom_margin=0.3)
    labels = ("both", f"only {names[0]}", f"only {names[1]}", "neither")
    handles = [Patch(color=colour, label=label) for colour, label in zip(AGREEMENT_COLOURS, labels, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=FONT_SIZE, frameon=False)
    _save(figure, path)


def agreement_map(
    first: Bool[np.ndarray, "height width"], second: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The map of one picture in ``WHO_COLOURS``."""
    colours = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in AGREEMENT_COLOURS]
    which = np.where(first, np.where(second, 0, 1), np.where(second, 2, 3))
    picture: UInt8[np.ndarray, "height width 3"] = np.array(colours, np.uint8)[which]
    return picture


def _image_grid(rows: Mapping[str, Sequence[RGBTile]], bottom_margin: float = 0.0) -> Figure:
    """Rows of pictures, all of one size, as one large picture; ``foot``: inches left free below them."""
    columns = max(len(tiles) for tiles in rows.values())
    height, width, _ = next(iter(rows.values()))[0].shape
    sheet = np.full((len(rows) * (height + TILE_GAP), columns * (width + TILE_GAP), 3), 255, np.uint8)
    for row, tiles in enumerate(rows.values()):
        for column, tile in enumerate(tiles):
            top, left = row * (height + TILE_GAP), column * (width + TILE_GAP)
            sheet[top : top + height, left : left + width] = tile
    wide = FIGURE_WIDTH - LABEL_WIDTH
    figure = Figure(
        figsize=(FIGURE_WIDTH, wide * sheet.shape[0] / sheet.shape[1] + bottom_margin + 0.05), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_yticks(
        [row * (height + TILE_GAP) + height / 2 for row in range(len(rows))], list(rows), fontsize=FONT_SIZE
    )
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


def _save(figure: Figure, path: Path) -> None:
    save_figure(figure, path, dpi=DPI)


#: Of a figure of photographs.
NUM_PNG_COLOURS = 128

#: Dark enough for white letters; classes take them in turn.
BOX_COLOURS = ("#c0392b", "#0072b2", "#00785a", "#8e44ad", "#a04000", "#1f3a93", "#7d6608", "#943126")


def plot_weight_changes(changes: Sequence[LayerWeightChange], num_frozen: int, path: Path) -> None:
    """By how much each convolution's parameters moved, as a part of their size; "0" stands where nothing moved."""
    figure = Figure(figsize=(FIGURE_WIDTH, 2.3), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(changes):
        still = one.layer < num_frozen
        if one.relative_change:
            axes.bar(place, one.relative_change, color=VAL_COLOUR if still else TRAIN_COLOUR)
        else:
            axes.text(place, 0.02, "0", transform=axes.get_xaxis_transform(), ha="center", fontsize=FONT_SIZE)
    count = sum(one.layer < num_frozen for one in changes)
    if count:
        axes.axvspan(-0.5, count - 0.5, color="#000000", alpha=0.08, linewidth=0)
        middle, top = (count - 1) / 2, axes.get_xaxis_transform()
        axes.text(middle, 0.97, "frozen", transform=top, ha="center", va="top", fontsize=FONT_SIZE)
    if any(one.relative_change for one in changes):
        axes.set_yscale("log")
    axes.set_xlim(-0.5, len(changes) - 0.5)
    # Of many layers every so manieth is named.
    step = -(-len(changes) // 25)
    axes.set_xticks(range(0, len(changes), step), [str(one.layer) for one in changes[::step]])
    axes.tick_params(which="both", labelsize=FONT_SIZE)
    axes.set_xlabel("layer of the convolution", fontsize=FONT_SIZE)
    axes.set_ylabel("change of its parameters\nas a part of them", fontsize=FONT_SIZE)
    save_figure(figure, path, dpi=DPI)


def plot_sample_detections(samples: Sequence[SampleDetections], classes: Sequence[str], path: Path) -> None:
    """A row a picture: its true boxes, what was found before, and what is found after; a colour for each class."""
    shapes = [one.sample.size[0] / one.sample.size[1] for one in samples]
    figure = Figure(figsize=(FIGURE_WIDTH, FIGURE_WIDTH / 3 * sum(shapes) + 0.4), layout="constrained")
    rows = figure.subplots(len(samples), 3, squeeze=False, height_ratios=shapes)
    for row, one in zip(rows, samples, strict=True):
        pixels = to_uint8(read_image(one.sample.path).pixels)
        for axes in row:
            axes.imshow(pixels, interpolation="antialiased")
            axes.set_axis_off()
        for box, number in zip(one.sample.boxes, one.sample.class_ids, strict=True):
            _draw_box(row[0], box, int(number), classes[number])
        for axes, found in zip(row[1:], (one.before, one.after), strict=True):
            assert found.class_id is not None
            assert found.confidence is not None
            for box, number, score in zip(found.xyxy, found.class_id, found.confidence, strict=True):
                _draw_box(axes, box, int(number), f"{classes[number]} {score:.2f}")
    for axes, name in zip(rows[0], ("true boxes", "before", "after"), strict=True):
        axes.set_title(name, fontsize=FONT_SIZE + 1)
    whole = io.BytesIO()
    figure.savefig(whole, dpi=DPI, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside, Image.open(whole) as image:
        # Photographs in all their colours would be the largest part of a write-up.
        image.convert("RGB").quantize(NUM_PNG_COLOURS, method=Image.Quantize.MEDIANCUT).save(
            aside, "PNG", optimize=True
        )


def _draw_box(axes: Axes, box: Float[np.ndarray, "4"], class_id: int, label: str) -> None:
    left, top, right, bottom = box.tolist()
    colour = BOX_COLOURS[class_id % len(BOX_COLOURS)]
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1))
    ground = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
    axes.text(left, top, label, color="white", fontsize=5.5, va="bottom", bbox=ground, parse_math=False, clip_on=True)
