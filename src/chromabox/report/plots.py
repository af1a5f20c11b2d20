"""Figures as PNG files. Only the object-oriented interface of matplotlib is used, because pyplot has global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from chromabox.engine.logger import EpochRecord
from chromabox.io.atomic import atomic_write
from chromabox.io.images import can_draw

RGBTile = UInt8[np.ndarray, "height width 3"]
#: Colours that colour-blind readers can distinguish (Wong 2011, Nature Methods 8, 441).
TRAIN_COLOUR, TEST_COLOUR, VAL_COLOUR = "#0072b2", "#d55e00", "#009e73"


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, atomically. Characters that the font lacks, for example in a file name, become "�"."""
    for text in figure.findobj(Text):
        text.set_text("".join(char if char in "\n\u200b" or can_draw(char) else "\ufffd" for char in text.get_text()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temp_path:
        figure.savefig(temp_path, dpi=dpi, format="png")


def plot_curves(records: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Plot loss and accuracy against epochs for every evaluated split.

    For photo models, the PSNR gain over greyscale is plotted instead of the accuracy.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    for split, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR), ("test", TEST_COLOUR)):
        for axes, quantity, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
            name = f"{split}_{quantity}"
            if name in records[0]:
                axes.plot(epochs, [record[name] * scale for record in records], color=colour, label=split, marker=".")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats per pixel)")
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    if "val_psnr_gain" in records[0]:
        right.plot(epochs, [record["val_psnr_gain"] for record in records], color=VAL_COLOUR, label="val", marker=".")
        right.set(ylabel="PSNR gain over greyscale (dB)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, parse_math=False)  # Folder names can contain dollar signs.
    save_figure(figure, path)


def plot_image_rows(rows: Mapping[str, Sequence[RGBTile]], path: Path, title: str, *, tile_size: float = 1.0) -> None:
    """Plot labelled rows of images in one figure; each image is ``tile_size`` inches wide."""
    columns = max(len(tiles) for tiles in rows.values())
    figure = Figure(figsize=(tile_size * columns + 1.6, 1.02 * tile_size * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, tiles) in zip(axes, rows.items(), strict=True):
        for cell in row:
            cell.set_axis_off()
        for cell, tile in zip(row, tiles, strict=False):
            cell.imshow(tile, interpolation="nearest")
        row[0].text(-0.1, 0.5, name, ha="right", va="center", transform=row[0].transAxes, fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    save_figure(figure, path, dpi=150)


def plot_confusion_matrix(
    confusion: Int64[np.ndarray, "colours colours"], colours: Float32[np.ndarray, "colours 3"], path: Path, title: str
) -> None:
    """Plot the confusion matrix of palette colours, with swatches as labels.

    Rows are true colours, and columns are predicted colours. Each row is normalised to a sum of 1.
    """
    count = len(colours)
    fractions = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="magma", vmin=0, vmax=1, extent=(0, count, count, 0))
    for index, colour in enumerate(np.clip(colours * 256 / 255, 0, 1)):
        for corner in ((-1.3, index), (index, count + 0.3)):
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, linewidth=0, clip_on=False))
    axes.set(xlim=(-1.5, count), ylim=(count + 1.5, 0), xticks=[], yticks=[])
    axes.set(xlabel="predicted colour", ylabel="true colour")
    axes.set_title(title, parse_math=False)
    axes.set_frame_on(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true colour's pixels")
    save_figure(figure, path)
