"""Figures: numbers and pictures in, one PNG out. matplotlib's object interface only, so no global state."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from matplotlib.figure import Figure

from chromabox.engine.logger import EpochRecord
from chromabox.io.atomic import atomic_write

RGBTile = UInt8[np.ndarray, "height width 3"]
#: Colours that stay apart for colour-blind eyes (Wong 2011, Nature Methods 8, 441).
TRAIN_COLOUR, TEST_COLOUR, VAL_COLOUR = "#0072b2", "#d55e00", "#009e73"


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=dpi, format="png")


def plot_curves(records: Sequence[EpochRecord], path: Path, title: str) -> None:
    """Loss and accuracy (of a photo net: PSNR over grey) against epochs, for every split that was measured."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    for split, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR), ("test", TEST_COLOUR)):
        for axes, quantity, scale in ((left, "loss", 1.0), (right, "accuracy", 100.0)):
            name = f"{split}_{quantity}"
            if name in records[0]:
                axes.plot(epochs, [record[name] * scale for record in records], color=colour, label=split, marker=".")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats a pixel)")
    right.set(xlabel="epoch", ylabel="pixels right (%)")
    if "val_psnr_gain" in records[0]:  # A photo net is judged by its pictures.
        right.plot(epochs, [record["val_psnr_gain"] for record in records], color=VAL_COLOUR, label="val", marker=".")
        right.set(ylabel="PSNR over grey (dB)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, parse_math=False)  # A folder's name may hold dollar signs.
    save_figure(figure, path)


def plot_image_rows(rows: Mapping[str, Sequence[RGBTile]], path: Path, title: str, *, tile_size: float = 1.0) -> None:
    """One figure with a labelled row of pictures each, all of one size: ``tile`` inches."""
    columns = max(len(tiles) for tiles in rows.values())
    figure = Figure(figsize=(tile_size * columns + 1.6, 1.02 * tile_size * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, tiles) in zip(axes, rows.items(), strict=True):
        for cell in row:
            cell.set_axis_off()
        for cell, picture in zip(row, tiles, strict=False):
            cell.imshow(picture, interpolation="nearest")
        row[0].text(-0.1, 0.5, name, ha="right", va="center", transform=row[0].transAxes, fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    save_figure(figure, path, dpi=150)


def plot_confusion_matrix(
    confusion: Int64[np.ndarray, "colours colours"], colours: Float32[np.ndarray, "colours 3"], path: Path, title: str
) -> None:
    """Where each true colour's pixels went: rows truth, columns prediction, each row adding to one, by swatch."""
    count = len(colours)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="magma", vmin=0, vmax=1, extent=(0, count, count, 0))
    for index, colour in enumerate(colours):
        for corner in ((-1.3, float(index)), (float(index), count + 0.3)):
            axes.add_patch(_swatch_patch(corner, colour))
    axes.set(xlim=(-1.5, count), ylim=(count + 1.5, 0), xticks=[], yticks=[])
    axes.set(xlabel="predicted colour", ylabel="true colour")
    axes.set_title(title, parse_math=False)
    axes.set_frame_on(False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true colour's pixels")
    save_figure(figure, path)


def _swatch_patch(corner: tuple[float, float], colour: Float32[np.ndarray, "3"]):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, facecolor=tuple(np.clip(colour * 256 / 255, 0, 1)), linewidth=0, clip_on=False)
