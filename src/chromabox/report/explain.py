"""Explanation of a colourised image in one figure: input, result, confidence, entropy and most likely colours."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8
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
#: Radii in chroma space within which colours are merged; the first that gives at most ``MAX_SWATCHES`` colours is used.
MERGE_RADII = (5.0, 7.0, 10.0, 14.0, 20.0)
#: Chroma distance below which two palette colours look alike at the same lightness.
SIMILAR_CHROMA_RADIUS = 5.0
#: Minimum distance between two points, as a fraction of the image's long side.
MIN_POINT_DISTANCE = 0.14
#: Width of the border in which no point is selected, as a fraction of the side length of the image.
BORDER_FRACTION = 0.05
ChromaArray = Float[np.ndarray, "colours 2"]


@dataclass(frozen=True, eq=False)
class Swatch:
    """An 8-bit sRGB colour and its probability or fraction of the pixels (0 to 1)."""

    rgb: UInt8[np.ndarray, "3"]
    fraction: float


def top_colours(prediction: ColourPrediction, position: tuple[float, float], max_colours: int = 3) -> list[Swatch]:
    """Return the most likely colours at a position with their probabilities, most likely first.

    All colours have the lightness of that position. Chroma bins within ``SAME_COLOUR_RADIUS`` of a more likely bin are
    merged with it: their probabilities are added, and the colour is their mean. Palette colours are merged only within
    ``SIMILAR_CHROMA_RADIUS``.

    Args:
        prediction: predicted distributions of the chroma.
        position: row and column as fractions of the height and the width, in [0, 1).
        max_colours: maximum number of colours; fewer are returned if fewer have a probability above 0.
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
    """Cluster weighted points. Return the weighted mean and the total weight of each cluster, heaviest first.

    The clustering is greedy, like non-maximum suppression: the heaviest point and all points within ``radius`` of it
    form a cluster, then the heaviest remaining point forms the next cluster. Points of weight 0 are ignored. At most
    ``max_clusters`` clusters are formed.
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
    """Convert L* (0 to 100), a* and b* to 8-bit sRGB. The chroma of colours outside the sRGB gamut is reduced."""
    root = ((np.asarray(lightness) + 16) / 116).astype(np.float32)
    a, b = np.asarray(chroma, np.float32).reshape(-1, 2).T
    scale = max_chroma_scale(root, np.ascontiguousarray(a), np.ascontiguousarray(b))
    return linear_to_srgb(lab_to_linear_rgb(root, a * scale, b * scale), np.dtype(np.uint8))


def used_colours(
    prediction: ColourPrediction, coloured: UInt8[np.ndarray, "map_height map_width 3"]
) -> tuple[list[Swatch], Int64[np.ndarray, "map_height map_width"]]:
    """Return the colours of an image with their fractions of the pixels, largest first, and the label of every cell.

    A cell is an element of the map of predicted chroma. If the prediction has a palette, the colours are the palette
    colours that occur. Otherwise, they are at most ``MAX_SWATCHES`` clusters of the predicted chroma, at their mean
    lightness. Cells that were kept grey although a colour was predicted form a separate swatch.

    Args:
        prediction: prediction from which the image was colourised.
        coloured: the colourised image, resized to the size of the map of predicted chroma.
    """
    cells, palette = prediction.chroma.reshape(-1, 2).astype(np.float64), prediction.palette
    lab = rgb_to_lab(coloured.reshape(-1, 3))
    lightness = lab[:, 0].astype(np.float64)
    # Grey cells were kept grey on purpose if their predicted chroma would be visible at their lightness.
    visible = rgb_to_lab(lab_to_rgb_uint8(lightness, cells))[:, 1:]
    grey = (np.hypot(*lab[:, 1:].T) < 1) & (np.hypot(*visible.T) > 5)
    if palette is not None:
        seeds = rgb_to_lab(palette)[:, 1:].astype(np.float64)
    else:
        rounded, counts = np.unique(np.rint(cells[~grey] / 2) * 2, axis=0, return_counts=True)
        for radius in MERGE_RADII:
            seeds, _ = cluster_colours(rounded, counts.astype(np.float64), radius, MAX_SWATCHES + 1)
            if len(seeds) <= MAX_SWATCHES:
                break
        seeds = seeds[:MAX_SWATCHES]
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


def select_points(
    labels: Int64[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"],
    size: tuple[int, int],
    max_points: int = 6,
) -> list[tuple[int, int]]:
    """Select points of interest and return their columns and rows (x, y) in image pixels.

    The points are those of highest and lowest confidence, the centres of large regions, and then the points farthest
    from all selected points. No two points are closer to each other than ``MIN_POINT_DISTANCE``.

    Args:
        labels: colour label of each cell of a small map. A region is a connected component of cells with equal labels.
        confidence: confidence of each cell.
        size: height and width of the image in pixels.
        max_points: maximum number of points.
    """
    from scipy.ndimage import distance_transform_edt, uniform_filter
    from skimage.measure import label

    rows, columns = labels.shape
    border_rows, border_columns = round(BORDER_FRACTION * rows), round(BORDER_FRACTION * columns)
    inner = np.zeros((rows, columns), bool)
    inner[border_rows : rows - border_rows, border_columns : columns - border_columns] = True
    smoothed = uniform_filter(confidence, max(1, round(0.08 * min(labels.shape))), mode="nearest")
    cells = [int(np.where(inner, smoothed, -1).argmax()), int(np.where(inner, smoothed, 2).argmin())]
    # The innermost cells of the largest regions.
    regions = label(labels + 1, background=0, connectivity=1)
    for number in np.argsort(-np.bincount(regions.ravel())[1:], kind="stable")[:6] + 1:
        depth = distance_transform_edt(np.pad(regions == number, 1))[1:-1, 1:-1]
        cells.append(int(np.where(inner, depth, 0).argmax()))
    # Centres of the cells in image pixels.
    y, x = ((np.arange(count) + 0.5) * side / count for count, side in zip(labels.shape, size, strict=True))
    nearest = np.where(inner, np.inf, -1.0)
    selected: list[tuple[int, int]] = []
    for index in range(len(cells) + max_points):
        row, column = divmod(cells[index] if index < len(cells) else int(nearest.argmax()), columns)
        if nearest[row, column] >= MIN_POINT_DISTANCE * max(size) and len(selected) < max_points:
            selected.append((int(x[column]), int(y[row])))
            np.minimum(nearest, np.hypot(y[:, None] - y[row], x - x[column]), out=nearest)
    return selected


#: Maximum long side of the images in the figure, in pixels.
THUMBNAIL_SIZE = 900
#: Number of points per row of the figure.
POINTS_PER_ROW = 6
#: Width of the figure and height of a row of swatches, in inches.
EXPLANATION_WIDTH, STRIP_HEIGHT = 14.0, 1.15
OUTLINE_COLOUR = "#333333"


def explanation_path(target: Path) -> Path:
    """Return the path of the explanation of a colourised image: ``NAME.SUFFIX.explained.png`` next to it.

    The suffix of the image is kept, because the explanations of ``x.jpg`` and ``x.png`` are different files. File names
    have at most 255 bytes; a longer name is shortened.
    """
    suffix = ".explained.png"
    name = os.fsencode(target.name)
    shortened = target.name if len(name) + len(suffix) <= 255 else name[: 255 - len(suffix)].decode(errors="ignore")
    return target.with_name(shortened + suffix)


def write_explanation(image: ImageData, coloured: ImageData, prediction: ColourPrediction, target: Path) -> str:
    """Write the figure :func:`explanation_path` and return its path as text."""
    figure = explanation_path(target)
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
    """Write a PNG figure that explains the colours of a colourised image.

    The figure shows the input, the result, maps of confidence and entropy, the three most likely colours at each point,
    and the colours used. Confidence is the predicted probability of the selected colour and similar colours. Entropy is
    normalised: 0 is certain, and 1 is uniform. Raise UsageError for a point outside the image, and ChromaboxError if
    the file cannot be written.

    Args:
        image: the input image.
        coloured: the colourised image, of the same size.
        prediction: the prediction from which the image was colourised.
        path: the PNG file to write.
        title: title of the figure, for example the file name.
        points: columns and rows (x, y) in image pixels. If None, up to six points are selected.
    """
    height, width = coloured.pixels.shape[:2]
    for x, y in points or ():
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(f"point ({x}, {y}): outside the image of {width} × {height} pixels")
    before, after = make_thumbnail(image.pixels), make_thumbnail(coloured.pixels)
    rows, columns = prediction.chroma.shape[:2]
    small = np.array(Image.fromarray(after).resize((columns, rows), Image.Resampling.BOX))
    used, labels = used_colours(prediction, small)
    if points is None:
        points = select_points(labels, prediction.confidence, (height, width))
    # Centres of the pixels.
    fractions = [((y + 0.5) / height, (x + 0.5) / width) for x, y in points]
    figure, panels, strips = _make_axes(height / width, math.ceil(len(points) / POINTS_PER_ROW))
    # File names can contain characters that the font lacks.
    font = get_font(findfont(FontProperties()))
    title = "".join(char if font.get_char_index(ord(char)) else "?" for char in title)
    figure.suptitle(title, fontsize=11, parse_math=False)

    grey = lab_to_rgb_uint8(lightness(before).ravel(), np.zeros((before[..., 0].size, 2))).reshape(before.shape)
    for axes, pixels, name in zip(panels, (grey, after), ("input", "colourised"), strict=False):
        axes.imshow(pixels, interpolation="antialiased")
        axes.set_title(name, fontsize=9)
    circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "black", "alpha": 0.85}
    for index, (row, column) in enumerate(fractions):
        x, y = column * after.shape[1] - 0.5, row * after.shape[0] - 0.5
        panels[1].text(x, y, str(index + 1), fontsize=7, ha="center", va="center", bbox=circle)
    extent = (-0.5, after.shape[1] - 0.5, after.shape[0] - 0.5, -0.5)
    maps = (
        (panels[2], prediction.confidence, "confidence in the selected colour", "viridis"),
        (panels[3], prediction.distribution.entropy(), "entropy of the prediction", "magma"),
    )
    for axes, values, name, cmap in maps:
        shown = axes.imshow(values, cmap=cmap, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
        axes.set_title(f"{name} (mean {values.mean():.2f})", fontsize=9)
        # Inset axes keep the bar as tall as the image at every aspect ratio.
        figure.colorbar(shown, cax=axes.inset_axes((1.02, 0, 0.035, 1))).ax.tick_params(labelsize=7)

    if points:
        title = "most likely colours at the numbered points, at their lightness"
        strips[0].set_title(title, fontsize=9, loc="left")
    for index, position in enumerate(fractions):
        axes, left = strips[index // POINTS_PER_ROW], 4.0 * (index % POINTS_PER_ROW)
        axes.text(left + 0.25, 0.95, str(index + 1), fontsize=10, weight="bold", ha="center", va="center")
        _draw_swatches(axes, left + 0.55, 1.05, 1.0, top_colours(prediction, position))
    rest = used[MAX_SWATCHES:]
    more = f"; other colours ({len(rest)}): {_format_percent(sum(swatch.fraction for swatch in rest))}" if rest else ""
    strips[-1].set_title(f"colours used, by fraction of pixels{more}", fontsize=9, loc="left")
    _draw_swatches(strips[-1], 0.05, 2.0, 1.85, used[:MAX_SWATCHES])
    save_figure(figure, path)


def make_thumbnail(pixels: Pixels) -> UInt8[np.ndarray, "_ _ 3"]:
    """Return 8-bit pixels, resized to a long side of at most ``THUMBNAIL_SIZE``. No full-size copy is made."""
    height, width = pixels.shape[:2]
    step = max(1, max(height, width) // (2 * THUMBNAIL_SIZE))
    subsampled = to_uint8(np.ascontiguousarray(pixels[::step, ::step]))
    scale = min(1.0, THUMBNAIL_SIZE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(subsampled).resize(size, Image.Resampling.BOX))


def _make_axes(aspect_ratio: float, num_point_rows: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """Return a figure, four panels for images with this aspect ratio (height / width), and strips for swatches."""
    columns = 2 if aspect_ratio < 0.5 else 4
    panel_height = min(max(EXPLANATION_WIDTH / columns * aspect_ratio, 0.8), 5.5)
    heights = [panel_height + 0.3] * (4 // columns) + [STRIP_HEIGHT] * (num_point_rows + 1)
    figure = Figure(figsize=(EXPLANATION_WIDTH, sum(heights) + 0.5), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    panels = [figure.add_subplot(grid[index // columns, index % columns]) for index in range(4)]
    strips = [figure.add_subplot(grid[row, :]) for row in range(4 // columns, len(heights))]
    for axes in (*panels, *strips):
        axes.set_axis_off()
    for axes in strips:
        axes.set(xlim=(0, 24), ylim=(0, 1.4))
    return figure, panels, strips


def _draw_swatches(axes: Axes, left: float, step: float, width: float, swatches: Sequence[Swatch]) -> None:
    """Draw a row of coloured rectangles with their fractions below them."""
    for index, swatch in enumerate(swatches):
        x, colour = left + step * index, swatch.rgb / 255
        axes.add_patch(Rectangle((x, 0.55), width, 0.85, facecolor=colour, edgecolor=OUTLINE_COLOUR, linewidth=0.4))
        percent = _format_percent(swatch.fraction)
        axes.text(x + width / 2, 0.42, percent, fontsize=8, ha="center", va="top", color=OUTLINE_COLOUR)


def _format_percent(fraction: float) -> str:
    return "<1 %" if 0 < fraction < 0.005 else f"{100 * fraction:.0f} %"
