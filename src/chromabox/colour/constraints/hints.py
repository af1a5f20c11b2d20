"""Hints: dots and strokes of colour that a user paints on a picture, and how far each reaches.

Painted pixels have their hint's chroma whatever else is asked for. From them colour spreads to pixels alike, as in
Levin, Lischinski & Weiss 2004, "Colorization using optimization", but as probabilities of a random walk (Grady 2006,
"Random walks for image segmentation") that may also end anywhere, in the net's own opinion.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt, UInt8

from chromabox.colour.chroma.lab import rgb_to_lab_array
from chromabox.errors import UsageError
from chromabox.io.images import read_image, to_uint8

#: Alpha, of 255, above which a pixel counts as painted.
ALPHA_THRESHOLD = 127
#: Painted colours nearer than this in a*b* spread as one, and at most so many spread apart.
GROUP_RADIUS, MAX_GROUPS = 5.0, 32
#: Difference of lightness (σ, in L*) and of the net's mean chroma (σ, in a* and b*) between neighbouring cells at
#: which colour begins to stop.
EDGE_LIGHTNESS_SIGMA, EDGE_CHROMA_SIGMA = 2.5, 8.0
#: Conductance that is left across the sharpest edge.
MIN_EDGE_WEIGHT = 1e-5
#: Cells, as a part of the short side, over which a broad stroke's hold fades to 1/e on an even ground.
DECAY_LENGTH = 0.25
#: Hold at which a hint and the net weigh alike: small dots hold little and would else colour only themselves.
HALF_SATURATION = 0.1


@dataclass(frozen=True, eq=False)
class Hints:
    """What is painted, at the photograph's full size.

    Attributes:
        numbers: 0 where nothing is painted, else the number of the painted colour, from 1.
        colours: 8-bit sRGB of colour 1, 2, …
    """

    labels: UInt[np.ndarray, "height width"]
    colours: UInt8[np.ndarray, "colours 3"]


@dataclass(frozen=True, eq=False)
class HintWeights:
    """How much each spreading hint holds each cell of a small map.

    Attributes:
        hold: 0 to 1, together at most 1; the rest is the net's.
        lightness: L* of the same map.
        colours: 8-bit sRGB that each hint spreads.
    """

    weights: Float32[np.ndarray, "hints height width"]
    lightness: Float32[np.ndarray, "height width"]
    colours: UInt8[np.ndarray, "hints 3"]


def read_hints(path: Path, image_size: tuple[int, int]) -> Hints:
    """The hints in a picture with transparency, painted where alpha is above ``PAINTED``.

    A picture of another size is scaled to the nearest pixel; shrunk, it keeps every painted one, however small.

    Args:
        path: of a picture of the photograph's proportions (as far as whole pixels allow).
        size: height and width of the photograph, upright.

    Raises UsageError, naming the file, for a picture without transparency, without anything painted, or of other
    proportions; ChromaboxError for what cannot be read as a picture.
    """
    picture = read_image(path)
    if picture.alpha is None:
        raise UsageError(f"hints {path}: has no transparency; paint on a transparent layer and save it as PNG")
    painted = to_uint8(picture.alpha) > ALPHA_THRESHOLD
    if not painted.any():
        raise UsageError(f"hints {path}: nothing is painted; at least one pixel must be more opaque than transparent")
    height, width = painted.shape
    if abs(width * image_size[0] / (height * image_size[1]) - 1) > 1 / height + 1 / width:
        found, wanted = f"{width}×{height} pixels", f"{image_size[1]}×{image_size[0]}"
        raise UsageError(f"hints {path}: has {found}; the same proportions as the photograph's {wanted} are right")
    return hints_from_pixels(to_uint8(picture.pixels), painted, image_size)


def hints_from_pixels(
    pixels: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], image_size: tuple[int, int]
) -> Hints:
    """Hints of the given full size from painted pixels of any size."""
    packed = pixels[mask].astype(np.int64) @ [1 << 16, 1 << 8, 1]
    distinct, number = np.unique(packed, return_inverse=True)
    colours = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], -1).astype(np.uint8)
    numbers = np.zeros(mask.shape, np.min_scalar_type(len(colours)))
    numbers[mask] = number + 1
    for axis, length in enumerate(image_size):
        numbers = _resize_axis(numbers, axis, length)
    return Hints(np.ascontiguousarray(numbers), colours)


def _resize_axis(labels: UInt[np.ndarray, "_ _"], axis: int, length: int) -> UInt[np.ndarray, "_ _"]:
    """One axis brought to a length: repeated to the nearest, or shrunk with every painted pixel kept."""
    now = labels.shape[axis]
    if now <= length:
        return labels if now == length else labels.take(np.arange(length) * now // length, axis)
    moved = np.moveaxis(labels, axis, 0)
    result = np.zeros((length, moved.shape[1]), labels.dtype)
    for line, place in zip(moved, np.arange(now) * length // now, strict=True):
        np.copyto(result[place], line, where=line > 0)
    return np.moveaxis(result, 0, axis)


def propagate_hints(
    hints: Hints, lightness: Float32[np.ndarray, "height width"], chroma: Float32[np.ndarray, "height width 2"]
) -> HintWeights:
    """How far each painted colour reaches on a small map.

    The probabilities p that a random walk from a cell meets a hint's cells first; it steps to neighbours by the
    weights exp(−ΔL*² / (2 LIGHTNESS_STEP²) − Δchroma² / (2 CHROMA_STEP²)) and ends at each step with a small chance
    (a screened Poisson equation), which makes colour fade with distance. As a dot of one cell is seldom met, what all
    hints hold together, s, is raised to s (1 + EVEN) / (s + EVEN), in the same proportions among them.

    Args:
        hints: at full size.
        lightness: L* (0..100) of the map's cells.
        chroma: the net's own, a* and b*: cells about which it thinks alike conduct better.
    """
    groups, colours = _group_colours(hints)
    owner = _seed_cells(hints, groups, len(colours), lightness.shape)
    met = _random_walk_probabilities(
        owner, len(colours), _edge_weights(lightness, chroma), DECAY_LENGTH * min(lightness.shape)
    )
    together = met.sum(0)
    hold = met * ((1 + HALF_SATURATION) / (together + HALF_SATURATION))
    return HintWeights(hold.astype(np.float32), lightness, colours)


def _group_colours(hints: Hints) -> tuple[Int64[np.ndarray, " numbers"], UInt8[np.ndarray, "groups 3"]]:
    """The group of every painted colour (in the order of their numbers), and the most frequent colour of each."""
    count = np.bincount(hints.labels.ravel(), minlength=len(hints.colours) + 1)[1:].astype(np.float64)
    chroma = rgb_to_lab_array(hints.colours)[:, 1:]
    free = count > 0
    heads: list[int] = []
    while free.any() and len(heads) < MAX_GROUPS:
        heads.append(int(np.where(free, count, -1).argmax()))
        free &= ((chroma - chroma[heads[-1]]) ** 2).sum(-1) > GROUP_RADIUS**2
    distance = np.stack([((chroma - chroma[head]) ** 2).sum(-1) for head in heads])
    return distance.argmin(0), hints.colours[heads]


def _seed_cells(
    hints: Hints, groups: Int64[np.ndarray, " numbers"], num_groups: int, shape: tuple[int, int]
) -> Int64[np.ndarray, "height width"]:
    """The group with the most painted pixels in each cell; −1 where none is painted."""
    rows, columns = np.nonzero(hints.labels)
    group = groups[hints.labels[rows, columns].astype(np.int64) - 1]
    height, width = hints.labels.shape
    cell = rows * shape[0] // height * shape[1] + columns * shape[1] // width
    area = shape[0] * shape[1]
    votes = np.bincount(group * area + cell, minlength=num_groups * area).reshape(num_groups, *shape)
    owners: Int64[np.ndarray, "height width"] = np.where(votes.any(0), votes.argmax(0), -1)
    return owners


def _edge_weights(
    lightness: Float32[np.ndarray, "height width"], chroma: Float32[np.ndarray, "height width 2"]
) -> tuple[Float64[np.ndarray, "rows width"], Float64[np.ndarray, "height columns"]]:
    """Weights of the edges between cells above each other and beside each other."""
    downwards, across = (
        np.exp(
            -(np.diff(lightness, axis=axis).astype(np.float64) ** 2) / (2 * EDGE_LIGHTNESS_SIGMA**2)
            - (np.diff(chroma, axis=axis).astype(np.float64) ** 2).sum(-1) / (2 * EDGE_CHROMA_SIGMA**2)
        ).clip(MIN_EDGE_WEIGHT)
        for axis in (0, 1)
    )
    return downwards, across


def _random_walk_probabilities(
    seeds: Int64[np.ndarray, "height width"],
    num_groups: int,
    edge_weights: tuple[Float64[np.ndarray, "rows width"], Float64[np.ndarray, "height columns"]],
    decay_length: float,
) -> Float64[np.ndarray, "{num_groups} height width"]:
    """Probability that a walk from each cell meets each group's cells first, before it ends by itself."""
    from scipy.sparse import coo_array, diags_array
    from scipy.sparse.linalg import splu

    cell = np.arange(seeds.size).reshape(seeds.shape)
    first = np.concatenate([cell[:-1].ravel(), cell[:, :-1].ravel()])
    second = np.concatenate([cell[1:].ravel(), cell[:, 1:].ravel()])
    weight = np.concatenate([part.ravel() for part in edge_weights])
    ends = np.concatenate([first, second]), np.concatenate([second, first])
    links = coo_array((np.tile(weight, 2), ends), shape=(seeds.size, seeds.size)).tocsr()
    system = diags_array(links.sum(1) + decay_length**-2).tocsr() - links
    flat = seeds.ravel()
    known, unknown = np.flatnonzero(flat >= 0), np.flatnonzero(flat < 0)
    result = np.zeros((seeds.size, num_groups))
    result[known, flat[known]] = 1
    if unknown.size:
        towards = links[unknown][:, known] @ result[known]
        # The system is symmetric and diagonally dominant: no pivoting is needed, and the order may look at both sides.
        factors = splu(
            system[unknown][:, unknown].tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        result[unknown] = factors.solve(towards).clip(0, 1)
    return result.T.reshape(num_groups, *seeds.shape)
