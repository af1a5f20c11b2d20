"""Hints: dots and strokes of colour that a user paints on an image, and their propagation to similar regions.

Painted pixels keep the chroma of their hint or, with a palette, of the palette colour nearest to it. From the painted
pixels, the colour is propagated to similar pixels, as in Levin, Lischinski & Weiss 2004, "Colorization using
optimization". The weight of a hint at a position is derived from the probability that a random walk from there reaches
the hint (Grady 2006, "Random walks for image segmentation"). The walk can also end at any position before it reaches a
hint. The model's prediction has the remaining weight.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt, UInt8
from threadpoolctl import threadpool_limits

from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_image, to_uint8

#: Alpha (0 to 255) above which a pixel counts as painted.
ALPHA_THRESHOLD = 127
#: Painted colours within this distance in the a*b* plane are propagated as one group.
GROUP_RADIUS = 5.0
#: Maximum number of these groups.
MAX_GROUPS = 32
#: Width (σ, in L*) of the Gaussian that weakens propagation between neighbouring cells of different lightness.
EDGE_LIGHTNESS_SIGMA = 2.5
#: Width (σ, in a* and b*) of the corresponding Gaussian for differences in the model's mean chroma.
EDGE_CHROMA_SIGMA = 8.0
#: Minimum weight of a graph edge, reached across the sharpest image edges.
MIN_EDGE_WEIGHT = 1e-5
#: Distance over which the weight of a broad stroke decays to 1/e in a uniform region, as a fraction of the shorter side
#: of the map.
DECAY_LENGTH = 0.25
#: Total probability of the hints at which the hints and the model get about equal weight. Small dots have low
#: probabilities. Without this saturation, the dots would colour only their own pixels.
HALF_SATURATION = 0.1


@dataclass(frozen=True, eq=False)
class Hints:
    """Painted pixels at the full size of the photograph.

    ``labels`` contains the number of the painted colour at each pixel, starting at 1, and 0 where nothing is painted.
    ``colours`` contains the colours of the labels 1, 2, … in 8-bit sRGB.
    """

    labels: UInt[np.ndarray, "height width"]
    colours: UInt8[np.ndarray, "colours 3"]


def read_hints(path: Path, image_size: tuple[int, int]) -> Hints:
    """Read hints from an image with transparency. Pixels with alpha above ``ALPHA_THRESHOLD`` are painted.

    The image must have the aspect ratio of the upright photograph, up to rounding to whole pixels. ``image_size`` is
    the height and width of the photograph. A smaller image is enlarged with nearest-neighbour interpolation. Reducing a
    larger image keeps every painted dot, however small it is. Raise UsageError, naming the file, for an image without
    transparency, without painted pixels or with another aspect ratio. Raise ChromaboxError for a file that cannot be
    read as an image.
    """
    pixels, mask = read_painted(path)
    height, width = mask.shape
    if abs(width * image_size[0] / (height * image_size[1]) - 1) > 1 / height + 1 / width:
        size, expected = f"{width} × {height} pixels", f"{image_size[1]} × {image_size[0]}"
        raise UsageError(
            f"hints: the size of {path} is {size}; expected the aspect ratio of the photograph, {expected}"
        )
    return hints_from_pixels(pixels, mask, image_size)


def read_painted(path: Path) -> tuple[UInt8[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """Return the pixels of an image with transparency, and which of them are painted.

    Raise the errors of :func:`read_hints`, except that for the aspect ratio.
    """
    try:
        image = read_image(path)
    except ChromaboxError as error:
        raise type(error)(f"hints: {error}") from error
    if image.alpha is None:
        raise UsageError(f"hints: {path} has no transparency; paint on a transparent layer and save it as PNG")
    mask = to_uint8(image.alpha) > ALPHA_THRESHOLD
    if not mask.any():
        raise UsageError(f"hints: {path} has no painted pixels; expected at least one that is more than half opaque")
    return to_uint8(image.pixels), mask


def hints_from_pixels(
    pixels: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], image_size: tuple[int, int]
) -> Hints:
    """Return hints from the ``pixels`` painted in ``mask``, resized from any size to the full size ``image_size``."""
    colours, index = np.unique(pixels[mask], axis=0, return_inverse=True)
    labels = np.zeros(mask.shape, np.min_scalar_type(len(colours)))
    labels[mask] = index.ravel() + 1
    for length in image_size:  # Resize the rows, then the columns.
        count = len(labels)
        if count <= length:
            resized = labels[np.arange(length) * count // length]
        else:
            resized = np.zeros((length, labels.shape[1]), labels.dtype)
            for line, position in zip(labels, np.arange(count) * length // count, strict=True):
                np.copyto(resized[position], line, where=line > 0)
        labels = resized.T
    return Hints(np.ascontiguousarray(labels), colours)


def propagate_hints(
    hints: Hints, lightness: Float32[np.ndarray, "height width"], chroma: Float32[np.ndarray, "height width 2"]
) -> tuple[Float32[np.ndarray, "groups height width"], UInt8[np.ndarray, "groups 3"]]:
    """Propagate the painted colours, in groups of similar colours, on a small map.

    Return the weight of each group at each cell, and the colour of each group in 8-bit sRGB. The weights are in [0, 1],
    and their sum at a cell is at most 1. The model's prediction has the remaining weight.

    The weights are derived from the probability that a random walk from the cell reaches a cell of the group before a
    cell of any other group. The walk steps to neighbours with weights
    exp(−ΔL*² / (2 EDGE_LIGHTNESS_SIGMA²) − Δchroma² / (2 EDGE_CHROMA_SIGMA²)). At each step, the walk ends with a small
    probability, so that the weights decay with distance. The probabilities solve a screened Poisson equation. A walk
    rarely reaches a one-cell dot. Therefore, the sum s of the probabilities at a cell is increased to
    s (1 + HALF_SATURATION) / (s + HALF_SATURATION). The proportions of the groups are unchanged.

    ``lightness`` is L* (0 to 100) of the cells of the map. ``chroma`` contains the a* and b* predicted by the model.
    Edges between cells with similar predictions have higher weights.
    """
    # Group greedily: the most frequent colour that has no group yet absorbs the colours within GROUP_RADIUS.
    frequency = np.bincount(hints.labels.ravel(), minlength=len(hints.colours) + 1)[1:].astype(np.float64)
    label_chroma = rgb_to_lab(hints.colours)[:, 1:]
    ungrouped = frequency > 0
    distances: list[Float32[np.ndarray, " labels"]] = []
    representatives: list[int] = []
    while ungrouped.any() and len(representatives) < MAX_GROUPS:
        representatives.append(int(np.where(ungrouped, frequency, -1).argmax()))
        distances.append(((label_chroma - label_chroma[representatives[-1]]) ** 2).sum(-1))
        ungrouped &= distances[-1] > GROUP_RADIUS**2
    rows, columns = np.nonzero(hints.labels)
    group = np.stack(distances).argmin(0)[hints.labels[rows, columns].astype(np.int64) - 1]
    (map_height, map_width), (height, width) = lightness.shape, hints.labels.shape
    counts = np.zeros((len(representatives), *lightness.shape), np.int64)
    np.add.at(counts, (group, rows * map_height // height, columns * map_width // width), 1)
    # The group with the most painted pixels in each cell; −1 for a cell without painted pixels.
    seeds = np.where(counts.any(0), counts.argmax(0), -1)
    vertical, horizontal = (
        np.exp(
            -(np.diff(lightness, axis=axis).astype(np.float64) ** 2) / (2 * EDGE_LIGHTNESS_SIGMA**2)
            - (np.diff(chroma, axis=axis).astype(np.float64) ** 2).sum(-1) / (2 * EDGE_CHROMA_SIGMA**2)
        ).clip(MIN_EDGE_WEIGHT)
        for axis in (0, 1)
    )
    with threadpool_limits(1, user_api="blas"):  # With matrices this small, more threads are slower on a busy machine.
        probabilities = _random_walk_probabilities(seeds, len(representatives), vertical, horizontal)
    weights = probabilities * ((1 + HALF_SATURATION) / (probabilities.sum(0) + HALF_SATURATION))
    return weights.astype(np.float32), hints.colours[representatives]


def _random_walk_probabilities(
    seeds: Int64[np.ndarray, "height width"],
    num_groups: int,
    vertical: Float64[np.ndarray, "rows width"],
    horizontal: Float64[np.ndarray, "height columns"],
) -> Float64[np.ndarray, "{num_groups} height width"]:
    """Return, for each group and cell, the probability that a random walk from the cell reaches the group first.

    A walk that ends at random before reaching any group counts for none. ``vertical`` and ``horizontal`` are the
    weights of the edges between neighbours.
    """
    if seeds.shape[1] > seeds.shape[0]:  # Eliminate along the longer side: a step takes time cubic in the shorter side.
        transposed = _random_walk_probabilities(seeds.T, num_groups, horizontal.T, vertical.T)
        return transposed.swapaxes(1, 2)
    degree = np.full(seeds.shape, (DECAY_LENGTH * min(seeds.shape)) ** -2)
    degree[:-1] += vertical
    degree[1:] += vertical
    degree[:, :-1] += horizontal
    degree[:, 1:] += horizontal
    values = (seeds[..., None] == np.arange(num_groups)).astype(np.float64)
    # The equation of an unpainted cell is: degree · p − Σ weight · p of the neighbours = 0. In a painted cell, p is 1
    # or 0. The matrix is block tridiagonal, with one block per row of the map. Solve the system by block elimination.
    forward: list[Float64[np.ndarray, "width width"]] = []
    for row, is_unknown in enumerate(seeds < 0):
        block = np.diag(np.where(is_unknown, degree[row], 1.0))
        block -= np.diag(horizontal[row] * is_unknown[:-1], 1) + np.diag(horizontal[row] * is_unknown[1:], -1)
        if row:
            to_previous = vertical[row - 1] * is_unknown
            block -= to_previous[:, None] * forward[-1]
            values[row] += to_previous[:, None] * values[row - 1]
        is_last = row + 1 == len(seeds)
        coupling = np.zeros((len(block), 0)) if is_last else np.diag(vertical[row] * is_unknown)
        solved = np.linalg.solve(block, np.concatenate([coupling, values[row]], axis=1))
        forward.append(solved[:, : coupling.shape[1]])
        values[row] = solved[:, coupling.shape[1] :]
    for row in range(len(seeds) - 2, -1, -1):
        values[row] += forward[row] @ values[row + 1]
    return np.moveaxis(values, -1, 0).clip(0, 1)
