"""What can be told of a decision: the likeliest colours at a place, the swatches used, and places worth a look."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from chromabox.colour.chroma.distribution import NEAR
from chromabox.colour.chroma.lab import encode, fitting_scale, linear_rgb
from chromabox.colour.constraints.constraints import Decision
from chromabox.colour.constraints.palette_projection import lab_of

#: Most swatches that are told apart.
SWATCHES = 12
#: Decoded chroma within one of these distances is one swatch: the first with which ``SWATCHES`` are enough.
SWATCH_REACHES = (5.0, 7.0, 10.0, 14.0, 20.0)
#: Colours of a palette whose chroma is nearer than this look alike at one lightness.
ALIKE = 5.0
#: Least distance of two places, as a part of the picture's long side.
APART = 0.14
#: Part of each side at its borders in which no place is chosen.
BORDER = 0.05

Chroma = Float[np.ndarray, "colours 2"]


@dataclass(frozen=True, eq=False)
class Swatch:
    """A colour, 8-bit sRGB, and its part of the whole, 0 to 1."""

    rgb: UInt8[np.ndarray, "3"]
    share: float


def likeliest(decision: Decision, place: tuple[float, float], count: int = 3) -> list[Swatch]:
    """The likeliest colours at a place, at its own lightness, with their probabilities; the likeliest first.

    Chroma bins within ``NEAR`` of a likelier one are one colour with it: their probabilities are added, and what is
    shown is their mean. Of a palette only colours are joined that look alike at one lightness.

    Args:
        place: row and column as parts of height and width, in [0, 1).
        count: most colours; fewer where there are fewer.
    """
    opinion = decision.opinion
    row, column = (int(part * side) for part, side in zip(place, opinion.lightness.shape, strict=True))
    probabilities = opinion.log_probabilities[:, row, column].double().exp().cpu().numpy()
    reach = NEAR if decision.colours is None else ALIKE
    chroma, shares = gathered(opinion.centres.double().cpu().numpy(), probabilities, reach, count)
    lightness = np.full(len(chroma), opinion.lightness[row, column].item())
    colours = rgb_of(lightness, chroma)
    return [Swatch(rgb, float(share)) for rgb, share in zip(colours, shares, strict=True)]


def gathered(
    chroma: Float[np.ndarray, "points 2"], weights: Float[np.ndarray, " points"], reach: float, count: int
) -> tuple[Chroma, Float[np.ndarray, " colours"]]:
    """The heaviest of the points, each with all within its reach: their weighted mean and their weight.

    Greedy non-maximum suppression: the heaviest point takes its neighbours, then the heaviest of what is left does.
    At most ``count``; points of no weight are none.
    """
    left = np.asarray(weights, np.float64).copy()
    means: list[np.ndarray] = []
    sums: list[float] = []
    while len(sums) < count and left.max(initial=0) > 0:
        near = ((chroma - chroma[left.argmax()]) ** 2).sum(1) <= reach**2
        taken = np.where(near, left, 0)
        sums.append(float(taken.sum()))
        means.append(taken @ chroma / sums[-1])
        left[near] = 0
    order = np.argsort(sums)[::-1]
    return np.array(means).reshape(-1, 2)[order], np.array(sums)[order]


def rgb_of(lightness: Float[np.ndarray, " colours"], chroma: Chroma) -> UInt8[np.ndarray, "colours 3"]:
    """8-bit sRGB of colours by L*, 0 to 100, and a*, b*; chroma gives way where sRGB has no such colour."""
    root = ((np.asarray(lightness) + 16) / 116).astype(np.float32)
    a, b = np.asarray(chroma, np.float32).reshape(-1, 2).T
    scale = fitting_scale(root, np.ascontiguousarray(a), np.ascontiguousarray(b))
    return encode(linear_rgb(root, a * scale, b * scale), np.dtype(np.uint8))


def swatches(
    decision: Decision, coloured: UInt8[np.ndarray, "map_height map_width 3"]
) -> tuple[list[Swatch], Int64[np.ndarray, "map_height map_width"]]:
    """The colours used, each with its share of the pixels, largest first; and for every cell of the map which it has.

    Of a palette its own colours that occur; else at most ``SWATCHES`` groups of decoded chroma, at their mean
    lightness. Cells that were left grey although they might have had a colour are a swatch of their own.

    Args:
        coloured: what has become of the picture, at the size of the decision's map.
    """
    cells = decision.chroma.reshape(-1, 2).astype(np.float64)
    lightness = lab_of(coloured.reshape(-1, 3))[:, 0].astype(np.float64)
    grey = _left_grey(cells, lightness, coloured.reshape(-1, 3))
    palette = decision.colours
    seeds = _seeds(cells[~grey]) if palette is None else lab_of(palette)[:, 1:].astype(np.float64)
    distance = ((cells[:, None] - seeds) ** 2).sum(-1) if len(seeds) else np.zeros((len(cells), 1))
    labels = np.where(grey, len(seeds), distance.argmin(1))
    found = []
    for number in np.unique(labels):
        here = labels == number
        if number < len(seeds) and palette is not None:
            rgb = palette[number]
        else:
            mean = np.zeros((1, 2)) if number == len(seeds) else cells[here].mean(0, keepdims=True)
            rgb = rgb_of(lightness[here].mean(keepdims=True), mean)[0]
        found.append(Swatch(rgb, float(here.mean())))
    return sorted(found, key=lambda swatch: -swatch.share), labels.reshape(decision.chroma.shape[:2])


def _seeds(cells: Float[np.ndarray, "cells 2"]) -> Chroma:
    """At most ``SWATCHES`` chroma to which all cells are near."""
    rounded, counts = np.unique(np.rint(cells / 2) * 2, axis=0, return_counts=True)
    for reach in SWATCH_REACHES:
        seeds, _ = gathered(rounded, counts.astype(np.float64), reach, SWATCHES + 1)
        if len(seeds) <= SWATCHES:
            break
    return seeds[:SWATCHES]


def _left_grey(
    cells: Float[np.ndarray, "cells 2"], lightness: Float[np.ndarray, " cells"], coloured: UInt8[np.ndarray, "cells 3"]
) -> Bool[np.ndarray, " cells"]:
    """Where the picture is grey though the chroma that was decided would show at this lightness."""
    shown = lab_of(coloured)[:, 1:]
    possible = lab_of(rgb_of(lightness, cells))[:, 1:]
    return (np.hypot(*shown.T) < 1) & (np.hypot(*possible.T) > 5)


def places(
    labels: Int64[np.ndarray, "height width"],
    confidence: Float32[np.ndarray, "height width"],
    size: tuple[int, int],
    count: int = 6,
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
    inner = _inner(len(rows))[:, None] & _inner(len(columns))
    smooth = uniform_filter(confidence, max(1, round(0.08 * min(labels.shape))), mode="nearest")
    extremes = (np.where(inner, smooth, -1).argmax(), np.where(inner, smooth, 2).argmin())
    # Of the cells' middles, in pixels of the picture.
    y, x = ((cells + 0.5) * side / len(cells) for cells, side in zip((rows, columns), size, strict=True))
    apart = APART * max(size)
    nearest = np.where(inner, np.inf, -1.0)
    chosen: list[tuple[int, int]] = []

    def choose(cell: int) -> None:
        row, column = divmod(cell, len(columns))
        if nearest[row, column] >= apart and len(chosen) < count:
            chosen.append((int(x[column]), int(y[row])))
            np.minimum(nearest, np.hypot(y[:, None] - y[row], x - x[column]), out=nearest)

    for cell in (*map(int, extremes), *_middles(labels, inner)):
        choose(cell)
    for _ in range(count - len(chosen)):
        choose(int(nearest.argmax()))
    return chosen


def _inner(cells: int) -> Bool[np.ndarray, " cells"]:
    """Which cells of a side are not at its borders; of a short one all."""
    border = round(BORDER * cells)
    return (np.arange(cells) >= border) & (np.arange(cells) < cells - border)


def _middles(
    labels: Int64[np.ndarray, "height width"], inner: Bool[np.ndarray, "height width"], count: int = 6
) -> list[int]:
    """Of the largest regions the cell that is farthest from all others, as a flat index; the largest region first."""
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label

    regions = label(labels + 1, background=0, connectivity=1)
    middles = []
    for number in np.argsort(-np.bincount(regions.ravel())[1:], kind="stable")[:count] + 1:
        depth = distance_transform_edt(np.pad(regions == number, 1))[1:-1, 1:-1]
        middles.append(int(np.where(inner, depth, 0).argmax()))
    return middles
