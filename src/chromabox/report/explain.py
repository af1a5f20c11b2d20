"""Explanation of a colourised image as one figure: input, confidence, entropy and alternative colours.

The module also finds the most likely colours at a position and the colours used in an image, and selects informative
points.
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
from chromabox.colour.chroma.lab import lab_to_linear_rgb, linear_to_srgb, max_chroma_scale, rgb_to_lab
from chromabox.colour.chroma.recolour import lightness
from chromabox.colour.constraints.constraints import ColourPrediction
from chromabox.errors import UsageError
from chromabox.io.images import ImageData, Pixels, to_uint8
from chromabox.report.plots import save_figure

#: Maximum number of distinct swatches.
MAX_SWATCHES = 12

#: Radii in chroma space for merging decoded colours into swatches: the first that gives at most ``MAX_SWATCHES`` is
#: used.
MERGE_RADII = (5.0, 7.0, 10.0, 14.0, 20.0)

#: Chroma distance below which two palette colours look alike at the same lightness.
SIMILAR_CHROMA_RADIUS = 5.0

#: Minimum distance between two points, as a fraction of the image's long side.
MIN_POINT_DISTANCE = 0.14

#: Width of the border in which no point is selected, as a fraction of the side length.
BORDER_FRACTION = 0.05
ChromaArray = Float[np.ndarray, "colours 2"]


@dataclass(frozen=True, eq=False)
class Swatch:
    """An 8-bit sRGB colour and its fraction of the total, 0 to 1."""

    rgb: UInt8[np.ndarray, "3"]
    fraction: float


def top_colours(prediction: ColourPrediction, position: tuple[float, float], max_colours: int = 3) -> list[Swatch]:
    """Return the most likely colours at a position, at its lightness, with their probabilities in descending order.

    Chroma bins within ``SAME_COLOUR_RADIUS`` of a more likely bin are merged with it: their probabilities are added,
    and the colour is their mean. Palette colours are merged only if they look alike at the same lightness.

    Args:
        position: row and column as fractions of height and width, in [0, 1).
        max_colours: maximum number of colours; the result can have fewer.
    """
    distribution = prediction.distribution
    row, column = (int(part * side) for part, side in zip(position, distribution.lightness.shape, strict=True))
    probabilities = np.exp(distribution.log_probabilities[:, row, column].astype(np.float64))
    radius = SAME_COLOUR_RADIUS if prediction.palette is None else SIMILAR_CHROMA_RADIUS
    chroma, fractions = cluster_colours(distribution.centres.astype(np.float64), probabilities, radius, max_colours)
    lightness = np.full(len(chroma), float(distribution.lightness[row, column]))
    colours = lab_to_rgb_uint8(lightness, chroma)
    return [Swatch(rgb, float(fraction)) for rgb, fraction in zip(colours, fractions, strict=True)]


def cluster_colours(
    chroma: Float[np.ndarray, "points 2"], weights: Float[np.ndarray, " points"], radius: float, max_clusters: int
) -> tuple[ChromaArray, Float[np.ndarray, " colours"]]:
    """Cluster weighted points; return the weighted mean and the total weight of each cluster, heaviest first.

    The clustering is greedy, like non-maximum suppression: the heaviest point absorbs all points within ``radius``,
    then the heaviest remaining point does. At most ``max_clusters`` clusters are returned; points of weight 0 are
    ignored.
    """
    remaining = np.asarray(weights, np.float64).copy()
    means: list[np.ndarray] = []
    sums: list[float] = []
    while len(sums) < max_clusters and remaining.max(initial=0) > 0:
        near = ((chroma - chroma[remaining.argmax()]) ** 2).sum(1) <= radius**2
        absorbed = np.where(near, remaining, 0)
        sums.append(float(absorbed.sum()))
        means.append(absorbed @ chroma / sums[-1])
        remaining[near] = 0
    order = np.argsort(sums)[::-1]
    return np.array(means).reshape(-1, 2)[order], np.array(sums)[order]


def lab_to_rgb_uint8(lightness: Float[np.ndarray, " colours"], chroma: ChromaArray) -> UInt8[np.ndarray, "colours 3"]:
    """Convert L* (0 to 100) and a*, b* to 8-bit sRGB; chroma is reduced for colours outside the sRGB gamut."""
    root = ((np.asarray(lightness) + 16) / 116).astype(np.float32)
    a, b = np.asarray(chroma, np.float32).reshape(-1, 2).T
    scale = max_chroma_scale(root, np.ascontiguousarray(a), np.ascontiguousarray(b))
    return linear_to_srgb(lab_to_linear_rgb(root, a * scale, b * scale), np.dtype(np.uint8))


def used_colours(
    prediction: ColourPrediction, coloured: UInt8[np.ndarray, "map_height map_width 3"]
) -> tuple[list[Swatch], Int64[np.ndarray, "map_height map_width"]]:
    """Return the colours used with their fractions of the pixels, largest first, and the colour label of every cell.

    With a palette, these are the palette colours that occur; otherwise at most ``MAX_SWATCHES`` clusters of decoded
    chroma, at their mean lightness. Cells that were kept grey although a colour was predicted form a separate swatch.

    Args:
        coloured: the colourised image, at the size of the prediction's map.
    """
    cells = prediction.chroma.reshape(-1, 2).astype(np.float64)
    lightness = rgb_to_lab(coloured.reshape(-1, 3))[:, 0].astype(np.float64)
    grey = _is_left_grey(cells, lightness, coloured.reshape(-1, 3))
    palette = prediction.palette
    seeds = _cluster_centres(cells[~grey]) if palette is None else rgb_to_lab(palette)[:, 1:].astype(np.float64)
    distance = ((cells[:, None] - seeds) ** 2).sum(-1) if len(seeds) else np.zeros((len(cells), 1))
    labels = np.where(grey, len(seeds), distance.argmin(1))
    swatches = []
    for number in np.unique(labels):
        mask = labels == number
        if number < len(seeds) and palette is not None:
            rgb = palette[number]
        else:
            mean = np.zeros((1, 2)) if number == len(seeds) else cells[mask].mean(0, keepdims=True)
            rgb = lab_to_rgb_uint8(lightness[mask].mean(keepdims=True), mean)[0]
        swatches.append(Swatch(rgb, float(mask.mean())))
    return sorted(swatches, key=lambda swatch: -swatch.fraction), labels.reshape(prediction.chroma.shape[:2])


def _cluster_centres(cells: Float[np.ndarray, "cells 2"]) -> ChromaArray:
    """Return at most ``MAX_SWATCHES`` chroma values that represent the cells."""
    rounded, counts = np.unique(np.rint(cells / 2) * 2, axis=0, return_counts=True)
    for radius in MERGE_RADII:
        seeds, _ = cluster_colours(rounded, counts.astype(np.float64), radius, MAX_SWATCHES + 1)
        if len(seeds) <= MAX_SWATCHES:
            break
    return seeds[:MAX_SWATCHES]


def _is_left_grey(
    cells: Float[np.ndarray, "cells 2"], lightness: Float[np.ndarray, " cells"], coloured: UInt8[np.ndarray, "cells 3"]
) -> Bool[np.ndarray, " cells"]:
    """Return where the image is grey although the predicted chroma would be visible at this lightness."""
    actual = rgb_to_lab(coloured)[:, 1:]
    predicted = rgb_to_lab(lab_to_rgb_uint8(lightness, cells))[:, 1:]
    return (np.hypot(*actual.T) < 1) & (np.hypot(*predicted.T) > 5)


def select_points(
    labels: Int64[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"],
    size: tuple[int, int],
    max_points: int = 6,
) -> list[tuple[int, int]]:
    """Select points: highest and lowest confidence, centres of large regions, then positions far from all others.

    Args:
        labels: colour label of each cell of a small map; a region is a connected component with one label.
        confidence: confidence of each cell.
        size: height and width of the image in pixels.
        max_points: maximum number of points; fewer if they would be closer to each other than ``MIN_POINT_DISTANCE``.

    Returns:
        Columns and rows (x, y) in image pixels.
    """
    from scipy.ndimage import uniform_filter

    rows, columns = (np.arange(cells) for cells in labels.shape)
    inner = _is_inside_border(len(rows))[:, None] & _is_inside_border(len(columns))
    smoothed = uniform_filter(confidence, max(1, round(0.08 * min(labels.shape))), mode="nearest")
    extremes = (np.where(inner, smoothed, -1).argmax(), np.where(inner, smoothed, 2).argmin())
    # Centres of the cells in image pixels.
    y, x = ((cells + 0.5) * side / len(cells) for cells, side in zip((rows, columns), size, strict=True))
    min_distance = MIN_POINT_DISTANCE * max(size)
    nearest = np.where(inner, np.inf, -1.0)
    selected: list[tuple[int, int]] = []

    def select(cell: int) -> None:
        row, column = divmod(cell, len(columns))
        if nearest[row, column] >= min_distance and len(selected) < max_points:
            selected.append((int(x[column]), int(y[row])))
            np.minimum(nearest, np.hypot(y[:, None] - y[row], x - x[column]), out=nearest)

    for cell in (*map(int, extremes), *_region_centres(labels, inner)):
        select(cell)
    for _ in range(max_points - len(selected)):
        select(int(nearest.argmax()))
    return selected


def _is_inside_border(length: int) -> Bool[np.ndarray, " cells"]:
    """Return which cells along a side are not in the border; all of them if the side is short."""
    border = round(BORDER_FRACTION * length)
    return (np.arange(length) >= border) & (np.arange(length) < length - border)


def _region_centres(
    labels: Int64[np.ndarray, "height width"], is_inside: Bool[np.ndarray, "height width"], max_regions: int = 6
) -> list[int]:
    """Return, for each of the largest regions, the flat index of its innermost cell, largest region first."""
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label

    regions = label(labels + 1, background=0, connectivity=1)
    centres = []
    for number in np.argsort(-np.bincount(regions.ravel())[1:], kind="stable")[:max_regions] + 1:
        depth = distance_transform_edt(np.pad(regions == number, 1))[1:-1, 1:-1]
        centres.append(int(np.where(is_inside, depth, 0).argmax()))
    return centres


#: Maximum long side of the images in the figure, in pixels.
THUMBNAIL_SIZE = 900

#: Number of points per row of the figure.
POINTS_PER_ROW = 6

#: Width of the figure and height of a row of swatches, in inches.
EXPLANATION_WIDTH, STRIP_HEIGHT = 14.0, 1.15
OUTLINE_COLOUR = "#333333"
Thumbnail = UInt8[np.ndarray, "_ _ 3"]


def write_explanation(image: ImageData, coloured: ImageData, prediction: ColourPrediction, target: Path) -> str:
    """Draw ``NAME.explained.png`` next to the colourised image NAME at `target`; return the figure's path as text."""
    figure = target.with_name(f"{target.stem}.explained.png")
    draw_explanation(image, coloured, prediction, figure, target.name)
    return str(figure)


def draw_explanation(
    image: ImageData,
    coloured: ImageData,
    prediction: ColourPrediction,
    path: Path,
    title: str,
    points: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Draw a PNG of input, result, confidence, entropy, the three most likely colours per point, and the colours used.

    Confidence is the predicted probability of the selected colour and similar ones. Entropy is normalised (0: certain,
    1: uniform).

    Args:
        image: the input image.
        coloured: the colourised image, of the same size.
        prediction: the prediction from which the image was colourised.
        path: the PNG file to write.
        title: title of the figure, for example the file name.
        points: columns and rows (x, y) in image pixels; None selects up to six points.

    Raise UsageError for a point outside the image, ChromaboxError if the file cannot be written.
    """
    height, width = coloured.pixels.shape[:2]
    for x, y in points or ():
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"point ({x}, {y}): outside the image of {width} × {height} pixels")
    after = make_thumbnail(coloured.pixels)
    rows, columns = prediction.chroma.shape[:2]
    used, labels = used_colours(
        prediction, np.array(Image.fromarray(after).resize((columns, rows), Image.Resampling.BOX))
    )
    if points is None:
        points = select_points(labels, prediction.confidence, (height, width))
    # Evaluate at the centre of the pixel.
    colours = [top_colours(prediction, ((y + 0.5) / height, (x + 0.5) / width)) for x, y in points]
    figure, panels, strips = _make_axes(height / width, math.ceil(len(points) / POINTS_PER_ROW))
    figure.suptitle(_replace_missing_glyphs(title), fontsize=11, parse_math=False)
    _show_image(panels[0], _to_grey(make_thumbnail(image.pixels)), "input")
    _show_image(panels[1], after, "colourised")
    _number_points(panels[1], [((x + 0.5) / width, (y + 0.5) / height) for x, y in points], after.shape)
    _show_map(figure, panels[2], prediction.confidence, after.shape, "confidence in the selected colour", "viridis")
    _show_map(
        figure,
        panels[3],
        prediction.distribution.entropy(),
        after.shape,
        "entropy of the prediction",
        "magma",
    )
    for index, axes in enumerate(strips[:-1]):
        first = index * POINTS_PER_ROW
        _draw_point_colours(axes, colours[first : first + POINTS_PER_ROW], first)
    _draw_used_colours(strips[-1], used)
    save_figure(figure, path)


def make_thumbnail(pixels: Pixels) -> Thumbnail:
    """Return 8-bit pixels, resized to a long side of at most ``THUMBNAIL_SIZE``, without a full-size copy."""
    height, width = pixels.shape[:2]
    step = max(1, max(height, width) // (2 * THUMBNAIL_SIZE))
    subsampled = to_uint8(np.ascontiguousarray(pixels[::step, ::step]))
    scale = min(1.0, THUMBNAIL_SIZE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(subsampled).resize(size, Image.Resampling.BOX))


def _replace_missing_glyphs(text: str) -> str:
    """Return the text with "?" for characters that the figures' font lacks; file names can contain any character."""
    font = get_font(findfont(FontProperties()))
    return "".join(char if font.get_char_index(ord(char)) else "?" for char in text)


def _to_grey(pixels: Thumbnail) -> Thumbnail:
    """Return the image with its lightness and no chroma."""
    values = lightness(pixels)
    return lab_to_rgb_uint8(values.ravel(), np.zeros((values.size, 2))).reshape(pixels.shape)


def _make_axes(aspect_ratio: float, num_point_rows: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure, four panels for images of the given aspect ratio (height / width), and strips for swatches."""
    columns = 2 if aspect_ratio < 0.5 else 4
    panel_height = min(max(EXPLANATION_WIDTH / columns * aspect_ratio, 0.8), 5.5)
    heights = [panel_height + 0.3] * (4 // columns) + [STRIP_HEIGHT] * (num_point_rows + 1)
    figure = Figure(figsize=(EXPLANATION_WIDTH, sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    panels = [figure.add_subplot(grid[index // columns, index % columns]) for index in range(4)]
    strips = [figure.add_subplot(grid[row, :]) for row in range(4 // columns, len(heights))]
    for axes in (*panels, *strips):
        axes.set_axis_off()
    return figure, panels, strips


def _show_image(axes: Axes, pixels: Thumbnail, title: str) -> None:
    axes.imshow(pixels, interpolation="antialiased")
    axes.set_title(title, fontsize=9)


def _show_map(figure: Figure, axes: Axes, values: np.ndarray, shape: tuple[int, ...], title: str, cmap: str) -> None:
    """Show a map of values from 0 to 1, in the image's aspect ratio, with a colour bar."""
    extent = (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)
    image = axes.imshow(values, cmap=cmap, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
    axes.set_title(f"{title} (mean {values.mean():.2f})", fontsize=9)
    # Inset axes keep the bar as tall as the image at every aspect ratio.
    bar = figure.colorbar(image, cax=axes.inset_axes((1.02, 0, 0.035, 1)))
    bar.ax.tick_params(labelsize=7)


def _number_points(axes: Axes, points: Sequence[tuple[float, float]], shape: tuple[int, ...]) -> None:
    """Draw numbers, starting at 1, at points given as fractions of width and height."""
    circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black", "alpha": 0.85}
    for index, (x_fraction, y_fraction) in enumerate(points):
        x, y = x_fraction * shape[1] - 0.5, y_fraction * shape[0] - 0.5
        axes.text(x, y, str(index + 1), fontsize=7, ha="center", va="center", bbox=circle)


def _draw_point_colours(axes: Axes, colours: Sequence[Sequence[Swatch]], first: int) -> None:
    """Draw a row of points, each with its number and its most likely colours."""
    if first == 0:
        axes.set_title("most likely colours at the numbered points, at their lightness", fontsize=9, loc="left")
    axes.set(xlim=(0, 4 * POINTS_PER_ROW), ylim=(0, 1.4))
    for index, swatches in enumerate(colours):
        left = 4.0 * index
        axes.text(left + 0.25, 0.95, str(first + index + 1), fontsize=10, weight="bold", ha="center", va="center")
        for rank, swatch in enumerate(swatches):
            _draw_swatch(axes, left + 0.55 + 1.05 * rank, 1.0, swatch)


def _draw_used_colours(axes: Axes, colours: Sequence[Swatch]) -> None:
    """Draw the colours used; the title states the number and fraction of those not shown."""
    shown, rest = colours[:MAX_SWATCHES], colours[MAX_SWATCHES:]
    more = f"; {len(rest)} more cover {_format_percent(sum(swatch.fraction for swatch in rest))}" if rest else ""
    axes.set_title(f"colours used, by fraction of pixels{more}", fontsize=9, loc="left")
    axes.set(xlim=(0, 2 * MAX_SWATCHES), ylim=(0, 1.4))
    for index, swatch in enumerate(shown):
        _draw_swatch(axes, 2.0 * index + 0.05, 1.85, swatch)


def _draw_swatch(axes: Axes, left: float, width: float, swatch: Swatch) -> None:
    """Draw a rectangle in the swatch's colour with its fraction below."""
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
