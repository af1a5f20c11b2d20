"""Figures of fine-tuning, 16 cm wide on paper: what moved in which layer, and pictures before and after."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from chromabox.io.atomic import write_whole
from chromabox.io.images import eight_bits, read_picture
from chromabox.report.handout.detector_run import LayerChange, Shown
from chromabox.report.plots import TRAIN_COLOUR, VAL_COLOUR, save_figure
from chromabox.report.why import DPI, LETTERS, WIDTH

#: Of a figure of photographs.
COLOURS = 128
#: Dark enough for white letters; classes take them in turn.
BOX_COLOURS = ("#c0392b", "#0072b2", "#00785a", "#8e44ad", "#a04000", "#1f3a93", "#7d6608", "#943126")


def draw_changes(changes: Sequence[LayerChange], frozen: int, path: Path) -> None:
    """By how much each convolution's parameters moved, as a part of their size; "0" stands where nothing moved."""
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(changes):
        still = one.layer < frozen
        if one.relative:
            axes.bar(place, one.relative, color=VAL_COLOUR if still else TRAIN_COLOUR)
        else:
            axes.text(place, 0.02, "0", transform=axes.get_xaxis_transform(), ha="center", fontsize=LETTERS)
    count = sum(one.layer < frozen for one in changes)
    if count:
        axes.axvspan(-0.5, count - 0.5, color="#000000", alpha=0.08, linewidth=0)
        middle, top = (count - 1) / 2, axes.get_xaxis_transform()
        axes.text(middle, 0.97, "frozen", transform=top, ha="center", va="top", fontsize=LETTERS)
    if any(one.relative for one in changes):
        axes.set_yscale("log")
    axes.set_xlim(-0.5, len(changes) - 0.5)
    # Of many layers every so manieth is named.
    step = -(-len(changes) // 25)
    axes.set_xticks(range(0, len(changes), step), [str(one.layer) for one in changes[::step]])
    axes.tick_params(which="both", labelsize=LETTERS)
    axes.set_xlabel("layer of the convolution", fontsize=LETTERS)
    axes.set_ylabel("change of its parameters\nas a part of them", fontsize=LETTERS)
    save_figure(figure, path, dpi=DPI)


def draw_shown(shown: Sequence[Shown], classes: Sequence[str], path: Path) -> None:
    """A row a picture: its true boxes, what was found before, and what is found after; a colour for each class."""
    shapes = [one.one.size[0] / one.one.size[1] for one in shown]
    figure = Figure(figsize=(WIDTH, WIDTH / 3 * sum(shapes) + 0.4), layout="constrained")
    rows = figure.subplots(len(shown), 3, squeeze=False, height_ratios=shapes)
    for row, one in zip(rows, shown, strict=True):
        pixels = eight_bits(read_picture(one.one.path).pixels)
        for axes in row:
            axes.imshow(pixels, interpolation="antialiased")
            axes.set_axis_off()
        for box, number in zip(one.one.boxes, one.one.classes, strict=True):
            _draw_box(row[0], box, int(number), classes[number])
        for axes, found in zip(row[1:], (one.before, one.after), strict=True):
            assert found.class_id is not None
            assert found.confidence is not None
            for box, number, score in zip(found.xyxy, found.class_id, found.confidence, strict=True):
                _draw_box(axes, box, int(number), f"{classes[number]} {score:.2f}")
    for axes, name in zip(rows[0], ("true boxes", "before", "after"), strict=True):
        axes.set_title(name, fontsize=LETTERS + 1)
    whole = io.BytesIO()
    figure.savefig(whole, dpi=DPI, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as aside, Image.open(whole) as image:
        # Photographs in all their colours would be the largest part of a write-up.
        image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT).save(aside, "PNG", optimize=True)


def _draw_box(axes: Axes, box: Float[np.ndarray, "4"], number: int, words: str) -> None:
    left, top, right, bottom = box.tolist()
    colour = BOX_COLOURS[number % len(BOX_COLOURS)]
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1))
    ground = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
    axes.text(left, top, words, color="white", fontsize=5.5, va="bottom", bbox=ground, parse_math=False, clip_on=True)
