"""Why a picture got its colours, as one figure: what the net saw, how certain it was, and what else it thought of."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image

from chromabox.colour.chroma.recolour import lightness
from chromabox.colour.constraints.constraints import Decision
from chromabox.errors import UsageError
from chromabox.io.images import Picture, Pixels, eight_bits
from chromabox.report.plots import save_figure
from chromabox.report.reasons import SWATCHES, Swatch, likeliest, places, rgb_of, swatches

#: Long side of the pictures in the figure, in pixels.
THUMBNAIL = 900
#: Points in a row of the figure.
POINTS_IN_A_ROW = 6
#: Inches: the figure is so wide, and a row of swatches so high.
WIDTH, STRIP = 14.0, 1.15
INK = "#333333"

Thumbnail = UInt8[np.ndarray, "_ _ 3"]


def draw_explanation(
    picture: Picture,
    coloured: Picture,
    decision: Decision,
    path: Path,
    title: str,
    points: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Draw as PNG: grey, coloured, confidence, entropy, the three likeliest colours at some points, the colours used.

    Confidence is the probability that the net gives to the colour chosen and its like, entropy how open the choice was
    (0: certain, 1: no idea).

    Args:
        picture: before.
        coloured: after, of the same size.
        decision: what was decided on the way.
        title: above everything; the file's name, say.
        points: columns and rows (x, y) in pixels of the picture; about six are found if None.

    Raises UsageError for a point outside the picture, ChromaboxError if the file cannot be written.
    """
    height, width = coloured.pixels.shape[:2]
    for x, y in points or ():
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"point ({x}, {y}): lies outside the picture of {width} × {height} pixels")
    after = thumbnail(coloured.pixels)
    rows, columns = decision.chroma.shape[:2]
    used, labels = swatches(decision, np.array(Image.fromarray(after).resize((columns, rows), Image.Resampling.BOX)))
    if points is None:
        points = places(labels, decision.confidence, (height, width))
    # A point is judged where its pixel's middle lies.
    colours = [likeliest(decision, ((y + 0.5) / height, (x + 0.5) / width)) for x, y in points]
    figure, panels, strips = _laid_out(height / width, math.ceil(len(points) / POINTS_IN_A_ROW))
    figure.suptitle(_printable(title), fontsize=11, parse_math=False)
    _show(panels[0], _grey(thumbnail(picture.pixels)), "as it was seen")
    _show(panels[1], after, "coloured")
    _number(panels[1], [((x + 0.5) / width, (y + 0.5) / height) for x, y in points], after.shape)
    _map(figure, panels[2], decision.confidence, after.shape, "confidence in the colour chosen", "viridis")
    _map(figure, panels[3], decision.opinion.entropy().cpu().numpy(), after.shape, "entropy of the choice", "magma")
    for index, axes in enumerate(strips[:-1]):
        first = index * POINTS_IN_A_ROW
        _points(axes, colours[first : first + POINTS_IN_A_ROW], first)
    _used(strips[-1], used)
    save_figure(figure, path)


def thumbnail(pixels: Pixels) -> Thumbnail:
    """The pixels with a long side of ``THUMBNAIL`` at most, in 8 bits; no copy of the full size is made."""
    height, width = pixels.shape[:2]
    step = max(1, max(height, width) // (2 * THUMBNAIL))
    thinned = eight_bits(np.ascontiguousarray(pixels[::step, ::step]))
    scale = min(1.0, THUMBNAIL / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(thinned).resize(size, Image.Resampling.BOX))


def _printable(text: str) -> str:
    """The text with "?" for what the figures' font does not have: a file may be called anything."""
    font = get_font(findfont(FontProperties()))
    return "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in text)


def _grey(pixels: Thumbnail) -> Thumbnail:
    """The lightness alone."""
    seen = lightness(pixels)
    return rgb_of(seen.ravel(), np.zeros((seen.size, 2))).reshape(pixels.shape)


def _laid_out(proportion: float, rows_of_points: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with four panels for pictures of that height by width, and below them strips: points, and the last."""
    across = 2 if proportion < 0.5 else 4
    panel = min(max(WIDTH / across * proportion, 0.8), 5.5)
    heights = [panel + 0.3] * (4 // across) + [STRIP] * (rows_of_points + 1)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
    panels = [figure.add_subplot(grid[index // across, index % across]) for index in range(4)]
    strips = [figure.add_subplot(grid[row, :]) for row in range(4 // across, len(heights))]
    for axes in (*panels, *strips):
        axes.set_axis_off()
    return figure, panels, strips


def _show(axes: Axes, pixels: Thumbnail, name: str) -> None:
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_title(name, fontsize=9)


def _map(figure: Figure, axes: Axes, values: np.ndarray, shape: tuple[int, ...], name: str, colours: str) -> None:
    """A small map of values from 0 to 1, in the picture's proportions, with its colour bar."""
    extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
    image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    axes.set_title(f"{name} (mean {values.mean():.2f})", fontsize=9)
    # Beside the picture and as high as it, whatever its proportions.
    bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.035, 1)))
    bar.ax.tick_params(labelsize=7)


def _number(axes: Axes, points: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> None:
    """Numbers, from 1, at places given as parts of width and height."""
    circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black", "alpha": 0.85}
    for index, (across, down) in enumerate(points):
        x, y = across * shape[1] - 0.5, down * shape[0] - 0.5
        axes.text(x, y, str(index + 1), fontsize=7, ha="center", va="center", bbox=circle)


def _points(axes: Axes, colours: Sequence[Sequence[Swatch]], first: int) -> None:
    """A row of points, each with its number and its likeliest colours."""
    if first == 0:
        axes.set_title("likeliest colours at the numbered places, at their lightness", fontsize=9, loc="left")
    axes.set(xlim=(0, 4 * POINTS_IN_A_ROW), ylim=(0, 1.4))
    for index, three in enumerate(colours):
        left = 4.0 * index
        axes.text(left + 0.25, 0.95, str(first + index + 1), fontsize=10, weight="bold", ha="center", va="center")
        for rank, swatch in enumerate(three):
            _swatch(axes, left + 0.55 + 1.05 * rank, 1.0, swatch)


def _used(axes: Axes, used: Sequence[Swatch]) -> None:
    """The colours used, and how many more there are than are shown."""
    shown, rest = used[:SWATCHES], used[SWATCHES:]
    more = f"; {len(rest)} more have {_percent(sum(swatch.share for swatch in rest))}" if rest else ""
    axes.set_title(f"colours used, by their share of the pixels{more}", fontsize=9, loc="left")
    axes.set(xlim=(0, 2 * SWATCHES), ylim=(0, 1.4))
    for index, swatch in enumerate(shown):
        _swatch(axes, 2.0 * index + 0.05, 1.85, swatch)


def _swatch(axes: Axes, left: float, width: float, swatch: Swatch) -> None:
    """A rectangle in its colour and its share below."""
    axes.add_patch(Rectangle((left, 0.55), width, 0.85, facecolor=swatch.rgb / 255, edgecolor=INK, linewidth=0.4))
    axes.text(left + width / 2, 0.42, _percent(swatch.share), fontsize=8, ha="center", va="top", color=INK)


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"
