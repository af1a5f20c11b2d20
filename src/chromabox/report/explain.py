"""Why a picture got its colours, as one figure: what the net saw, how certain it was, and what else it thought of.

What can be told of a decision: the likeliest colours at a place, the swatches used, and places worth a look.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from PIL import Image

from chromabox.colour.chroma.distribution import SAME_COLOUR_RADIUS
from chromabox.colour.chroma.lab import lab_to_linear_rgb, linear_to_srgb, max_chroma_scale, rgb_to_lab_array
from chromabox.colour.chroma.recolour import lightness
from chromabox.colour.constraints.constraints import ColourPrediction
from chromabox.errors import UsageError
from chromabox.io.images import ImageData, Pixels, to_uint8
from chromabox.report.plots import save_figure

#: Most swatches that are told apart.
MAX_SWATCHES = 12

#: Decoded chroma within one of these distances is one swatch: the first with which ``SWATCHES`` are enough.
MERGE_RADII = (5.0, 7.0, 10.0, 14.0, 20.0)

#: Colours of a palette whose chroma is nearer than this look alike at one lightness.
SIMILAR_CHROMA_RADIUS = 5.0

#: Least distance of two places, as a part of the picture's long side.
MIN_POINT_DISTANCE = 0.14

#: Part of each side at its borders in which no place is chosen.
BORDER_FRACTION = 0.05
ChromaArray = Float[np.ndarray, "colours 2"]


@dataclass(frozen=True, eq=False)
class Swatch:
    """A colour, 8-bit sRGB, and its part of the whole, 0 to 1."""

    rgb: UInt8[np.ndarray, "3"]
    fraction: float


def top_colours(prediction: ColourPrediction, position: tuple[float, float], max_colours: int = 3) -> list[Swatch]:
    """The likeliest colours at a place, at its own lightness, with their probabilities; the likeliest first.

    Chroma bins within ``NEAR`` of a likelier one are one colour with it: their probabilities are added, and what is
    shown is their mean. Of a palette only colours are joined that look alike at one lightness.

    Args:
        place: row and column as parts of height and width, in [0, 1).
        count: most colours; fewer where there are fewer.
    """
    opinion = prediction.distribution
    row, column = (int(part * side) for part, side in zip(position, opinion.lightness.shape, strict=True))
    probabilities = opinion.log_probabilities[:, row, column].double().exp().cpu().numpy()
    reach = SAME_COLOUR_RADIUS if prediction.palette is None else SIMILAR_CHROMA_RADIUS
    chroma, shares = cluster_colours(opinion.centres.double().cpu().numpy(), probabilities, reach, max_colours)
    lightness = np.full(len(chroma), opinion.lightness[row, column].item())
    colours = lab_to_rgb_uint8(lightness, chroma)
    return [Swatch(rgb, float(share)) for rgb, share in zip(colours, shares, strict=True)]


def cluster_colours(
    chroma: Float[np.ndarray, "points 2"], weights: Float[np.ndarray, " points"], radius: float, max_clusters: int
) -> tuple[ChromaArray, Float[np.ndarray, " colours"]]:
    """The heaviest of the points, each with all within its reach: their weighted mean and their weight.

    Greedy non-maximum suppression: the heaviest point takes its neighbours, then the heaviest of what is left does.
    At most ``count``; points of no weight are none.
    """
    left = np.asarray(weights, np.float64).copy()
    means: list[np.ndarray] = []
    sums: list[float] = []
    while len(sums) < max_clusters and left.max(initial=0) > 0:
        near = ((chroma - chroma[left.argmax()]) ** 2).sum(1) <= radius**2
        taken = np.where(near, left, 0)
        sums.append(float(taken.sum()))
        means.append(taken @ chroma / sums[-1])
        left[near] = 0
    order = np.argsort(sums)[::-1]
    return np.array(means).reshape(-1, 2)[order], np.array(sums)[order]


def lab_to_rgb_uint8(lightness: Float[np.ndarray, " colours"], chroma: ChromaArray) -> UInt8[np.ndarray, "colours 3"]:
    """8-bit sRGB of colours by L*, 0 to 100, and a*, b*; chroma gives way where sRGB has no such colour."""
    root = ((np.asarray(lightness) + 16) / 116).astype(np.float32)
    a, b = np.asarray(chroma, np.float32).reshape(-1, 2).T
    scale = max_chroma_scale(root, np.ascontiguousarray(a), np.ascontiguousarray(b))
    return linear_to_srgb(lab_to_linear_rgb(root, a * scale, b * scale), np.dtype(np.uint8))


def used_colours(
    prediction: ColourPrediction, coloured: UInt8[np.ndarray, "map_height map_width 3"]
) -> tuple[list[Swatch], Int64[np.ndarray, "map_height map_width"]]:
    """The colours used, each with its share of the pixels, largest first; and for every cell of the map which it has.

    Of a palette its own colours that occur; else at most ``SWATCHES`` groups of decoded chroma, at their mean
    lightness. Cells that were left grey although they might have had a colour are a swatch of their own.

    Args:
        coloured: what has become of the picture, at the size of the decision's map.
    """
    cells = prediction.chroma.reshape(-1, 2).astype(np.float64)
    lightness = rgb_to_lab_array(coloured.reshape(-1, 3))[:, 0].astype(np.float64)
    grey = _is_left_grey(cells, lightness, coloured.reshape(-1, 3))
    palette = prediction.palette
    seeds = _cluster_centres(cells[~grey]) if palette is None else rgb_to_lab_array(palette)[:, 1:].astype(np.float64)
    distance = ((cells[:, None] - seeds) ** 2).sum(-1) if len(seeds) else np.zeros((len(cells), 1))
    labels = np.where(grey, len(seeds), distance.argmin(1))
    found = []
    for number in np.unique(labels):
        here = labels == number
        if number < len(seeds) and palette is not None:
            rgb = palette[number]
        else:
            mean = np.zeros((1, 2)) if number == len(seeds) else cells[here].mean(0, keepdims=True)
            rgb = lab_to_rgb_uint8(lightness[here].mean(keepdims=True), mean)[0]
        found.append(Swatch(rgb, float(here.mean())))
    return sorted(found, key=lambda swatch: -swatch.fraction), labels.reshape(prediction.chroma.shape[:2])


def _cluster_centres(cells: Float[np.ndarray, "cells 2"]) -> ChromaArray:
    """At most ``SWATCHES`` chroma to which all cells are near."""
    rounded, counts = np.unique(np.rint(cells / 2) * 2, axis=0, return_counts=True)
    for reach in MERGE_RADII:
        seeds, _ = cluster_colours(rounded, counts.astype(np.float64), reach, MAX_SWATCHES + 1)
        if len(seeds) <= MAX_SWATCHES:
            break
    return seeds[:MAX_SWATCHES]


def _is_left_grey(
    cells: Float[np.ndarray, "cells 2"], lightness: Float[np.ndarray, " cells"], coloured: UInt8[np.ndarray, "cells 3"]
) -> Bool[np.ndarray, " cells"]:
    """Where the picture is grey though the chroma that was decided would show at this lightness."""
    shown = rgb_to_lab_array(coloured)[:, 1:]
    possible = rgb_to_lab_array(lab_to_rgb_uint8(lightness, cells))[:, 1:]
    return (np.hypot(*shown.T) < 1) & (np.hypot(*possible.T) > 5)


def select_points(
    labels: Int64[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"],
    size: tuple[int, int],
    max_points: int = 6,
) -> list[tuple[int, int]]:
    """Places worth a look: where the net is most and least certain, in the middle of large regions, then far from all.

    Args:
        labels: which colour each cell of a small map has; a region is what is connected and has one.
        confidence: of each cell.
        size: height and width of the picture in pixels.
        count: most places; fewer where they would come nearer to each other than ``APART``.

    Returns:
        Columns and rows (x, y) in pixels of the picture.
    """
    from scipy.ndimage import uniform_filter

    rows, columns = (np.arange(cells) for cells in labels.shape)
    inner = _is_inside_border(len(rows))[:, None] & _is_inside_border(len(columns))
    smooth = uniform_filter(confidence, max(1, round(0.08 * min(labels.shape))), mode="nearest")
    extremes = (np.where(inner, smooth, -1).argmax(), np.where(inner, smooth, 2).argmin())
    # Of the cells' middles, in pixels of the picture.
    y, x = ((cells + 0.5) * side / len(cells) for cells, side in zip((rows, columns), size, strict=True))
    apart = MIN_POINT_DISTANCE * max(size)
    nearest = np.where(inner, np.inf, -1.0)
    chosen: list[tuple[int, int]] = []

    def choose(cell: int) -> None:
        row, column = divmod(cell, len(columns))
        if nearest[row, column] >= apart and len(chosen) < max_points:
            chosen.append((int(x[column]), int(y[row])))
            np.minimum(nearest, np.hypot(y[:, None] - y[row], x - x[column]), out=nearest)

    for cell in (*map(int, extremes), *_region_centres(labels, inner)):
        choose(cell)
    for _ in range(max_points - len(chosen)):
        choose(int(nearest.argmax()))
    return chosen


def _is_inside_border(length: int) -> Bool[np.ndarray, " cells"]:
    """Which cells of a side are not at its borders; of a short one all."""
    border = round(BORDER_FRACTION * length)
    return (np.arange(length) >= border) & (np.arange(length) < length - border)


def _region_centres(
    labels: Int64[np.ndarray, "height width"], is_inside: Bool[np.ndarray, "height width"], max_regions: int = 6
) -> list[int]:
    """Of the largest regions the cell that is farthest from all others, as a flat index; the largest region first."""
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label

    regions = label(labels + 1, background=0, connectivity=1)
    middles = []
    for number in np.argsort(-np.bincount(regions.ravel())[1:], kind="stable")[:max_regions] + 1:
        depth = distance_transform_edt(np.pad(regions == number, 1))[1:-1, 1:-1]
        middles.append(int(np.where(is_inside, depth, 0).argmax()))
    return middles


#: Long side of the pictures in the figure, in pixels.
THUMBNAIL_SIZE = 900

#: Points in a row of the figure.
POINTS_PER_ROW = 6

#: Inches: the figure is so wide, and a row of swatches so high.
EXPLANATION_WIDTH, STRIP_HEIGHT = 14.0, 1.15
OUTLINE_COLOUR = "#333333"
Thumbnail = UInt8[np.ndarray, "_ _ 3"]


def write_explanation(picture: ImageData, coloured: ImageData, decision: ColourPrediction, target: Path) -> str:
    """Draw ``NAME.explained.png`` beside the colourised image NAME at `target`; return the figure's path as text."""
    figure = target.with_name(f"{target.stem}.explained.png")
    draw_explanation(picture, coloured, decision, figure, target.name)
    return str(figure)


def draw_explanation(
    image: ImageData,
    coloured: ImageData,
    prediction: ColourPrediction,
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
    after = make_thumbnail(coloured.pixels)
    rows, columns = prediction.chroma.shape[:2]
    used, labels = used_colours(
        prediction, np.array(Image.fromarray(after).resize((columns, rows), Image.Resampling.BOX))
    )
    if points is None:
        points = select_points(labels, prediction.confidence, (height, width))
    # A point is judged where its pixel's middle lies.
    colours = [top_colours(prediction, ((y + 0.5) / height, (x + 0.5) / width)) for x, y in points]
    figure, panels, strips = _make_axes(height / width, math.ceil(len(points) / POINTS_PER_ROW))
    figure.suptitle(_replace_missing_glyphs(title), fontsize=11, parse_math=False)
    _show_image(panels[0], _to_grey(make_thumbnail(image.pixels)), "as it was seen")
    _show_image(panels[1], after, "coloured")
    _number_points(panels[1], [((x + 0.5) / width, (y + 0.5) / height) for x, y in points], after.shape)
    _show_map(figure, panels[2], prediction.confidence, after.shape, "confidence in the colour chosen", "viridis")
    _show_map(
        figure,
        panels[3],
        prediction.distribution.entropy().cpu().numpy(),
        after.shape,
        "entropy of the choice",
        "magma",
    )
    for index, axes in enumerate(strips[:-1]):
        first = index * POINTS_PER_ROW
        _draw_point_colours(axes, colours[first : first + POINTS_PER_ROW], first)
    _draw_used_colours(strips[-1], used)
    save_figure(figure, path)


def make_thumbnail(pixels: Pixels) -> Thumbnail:
    """The pixels with a long side of ``THUMBNAIL`` at most, in 8 bits; no copy of the full size is made."""
    height, width = pixels.shape[:2]
    step = max(1, max(height, width) // (2 * THUMBNAIL_SIZE))
    thinned = to_uint8(np.ascontiguousarray(pixels[::step, ::step]))
    scale = min(1.0, THUMBNAIL_SIZE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(thinned).resize(size, Image.Resampling.BOX))


def _replace_missing_glyphs(text: str) -> str:
    """The text with "?" for what the figures' font does not have: a file may be called anything."""
    font = get_font(findfont(FontProperties()))
    return "".join(letter if font.get_char_index(ord(letter)) else "?" for letter in text)


def _to_grey(pixels: Thumbnail) -> Thumbnail:
    """The lightness alone."""
    seen = lightness(pixels)
    return lab_to_rgb_uint8(seen.ravel(), np.zeros((seen.size, 2))).reshape(pixels.shape)


def _make_axes(aspect_ratio: float, num_point_rows: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """A figure with four panels for pictures of that height by width, and below them strips: points, and the last."""
    across = 2 if aspect_ratio < 0.5 else 4
    panel = min(max(EXPLANATION_WIDTH / across * aspect_ratio, 0.8), 5.5)
    heights = [panel + 0.3] * (4 // across) + [STRIP_HEIGHT] * (num_point_rows + 1)
    figure = Figure(figsize=(EXPLANATION_WIDTH, sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights)
    panels = [figure.add_subplot(grid[index // across, index % across]) for index in range(4)]
    strips = [figure.add_subplot(grid[row, :]) for row in range(4 // across, len(heights))]
    for axes in (*panels, *strips):
        axes.set_axis_off()
    return figure, panels, strips


def _show_image(axes: Axes, pixels: Thumbnail, title: str) -> None:
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_title(title, fontsize=9)


def _show_map(figure: Figure, axes: Axes, values: np.ndarray, shape: tuple[int, ...], title: str, cmap: str) -> None:
    """A small map of values from 0 to 1, in the picture's proportions, with its colour bar."""
    extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
    image = axes.imshow(values, cmap=cmap, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    axes.set_title(f"{title} (mean {values.mean():.2f})", fontsize=9)
    # Beside the picture and as high as it, whatever its proportions.
    bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.035, 1)))
    bar.ax.tick_params(labelsize=7)


def _number_points(axes: Axes, points: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> None:
    """Numbers, from 1, at places given as parts of width and height."""
    circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black", "alpha": 0.85}
    for index, (across, down) in enumerate(points):
        x, y = across * shape[1] - 0.5, down * shape[0] - 0.5
        axes.text(x, y, str(index + 1), fontsize=7, ha="center", va="center", bbox=circle)


def _draw_point_colours(axes: Axes, colours: Sequence[Sequence[Swatch]], first: int) -> None:
    """A row of points, each with its number and its likeliest colours."""
    if first == 0:
        axes.set_title("likeliest colours at the numbered places, at their lightness", fontsize=9, loc="left")
    axes.set(xlim=(0, 4 * POINTS_PER_ROW), ylim=(0, 1.4))
    for index, three in enumerate(colours):
        left = 4.0 * index
        axes.text(left + 0.25, 0.95, str(first + index + 1), fontsize=10, weight="bold", ha="center", va="center")
        for rank, swatch in enumerate(three):
            _draw_swatch(axes, left + 0.55 + 1.05 * rank, 1.0, swatch)


def _draw_used_colours(axes: Axes, colours: Sequence[Swatch]) -> None:
    """The colours used, and how many more there are than are shown."""
    shown, rest = colours[:MAX_SWATCHES], colours[MAX_SWATCHES:]
    more = f"; {len(rest)} more have {_format_percent(sum(swatch.fraction for swatch in rest))}" if rest else ""
    axes.set_title(f"colours used, by their share of the pixels{more}", fontsize=9, loc="left")
    axes.set(xlim=(0, 2 * MAX_SWATCHES), ylim=(0, 1.4))
    for index, swatch in enumerate(shown):
        _draw_swatch(axes, 2.0 * index + 0.05, 1.85, swatch)


def _draw_swatch(axes: Axes, left: float, width: float, swatch: Swatch) -> None:
    """A rectangle in its colour and its share below."""
    axes.add_patch(
        Rectangle((left, 0.55), width, 0.85, facecolor=swatch.rgb / 255, edgecolor=OUTLINE_COLOUR, linewidth=0.4)
    )
    axes.text(
        left + width / 2,
        0.42,
        _format_percent(swatch.fraction),
        fontsize=8,
        ha="center",
        va="top",
        color=OUTLINE_COLOUR,
    )


def _format_percent(fraction: float) -> str:
    return "<1 %" if 0 < fraction < 0.005 else f"{100 * fraction:.0f} %"
