"""Where a picture has edges, how far each pixel is from one, and how often a net is right at each distance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer

from chromabox.errors import ChromaboxError

#: The part of all pixels that count as edges of grey pictures: those where grey changes most.
STEEPEST = 0.1

Marks = Bool[np.ndarray, "pictures height width"]
Distances = Float64[np.ndarray, "pictures height width"]


def label_edges(labels: Integer[np.ndarray, "pictures height width"]) -> Marks:
    """Pixels with a pixel of another label above, below, left or right of them."""
    edges = np.zeros(labels.shape, bool)
    across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges


def grey_edges(grey: Float[np.ndarray, "pictures height width"], steepest: float = STEEPEST) -> Marks:
    """The ``steepest`` part of all pixels by the length of Sobel's gradient; flat pictures may have none."""
    from scipy.ndimage import sobel

    steepness = np.hypot(sobel(grey, axis=1, mode="nearest"), sobel(grey, axis=2, mode="nearest"))
    return np.asarray(steepness > np.quantile(steepness, 1 - steepest))


def edge_distances(edges: Marks) -> Distances:
    """Distance, in pixels, of every pixel's centre to the nearest edge pixel of its picture: 0 on one.

    Infinite in a picture without edges.
    """
    from scipy.ndimage import distance_transform_edt

    # One transform for all pictures: so far apart that the nearest edge is always one's own picture's.
    apart = float(2 * sum(edges.shape[1:]))
    if not edges.any():
        return np.full(edges.shape, np.inf)
    distances = np.asarray(distance_transform_edt(~edges, sampling=(apart, 1.0, 1.0)))
    distances[~edges.any((1, 2))] = np.inf
    return distances


@dataclass(frozen=True, eq=False)
class ByDistance:
    """How often a net is right, in bands of distance from an edge; not-a-number in a band without pixels."""

    accuracy: Float64[np.ndarray, " bands"]
    """Share of the band's pixels that are right."""
    share: Float64[np.ndarray, " bands"]
    """Share of all pixels that are in the band."""


def by_distance(
    right: Bool[np.ndarray, "pictures height width"], distances: Distances, bounds: Sequence[int | float]
) -> ByDistance:
    """Accuracy in the bands between neighbouring ``bounds``, each with its lower bound and without its upper one.

    Raises ChromaboxError for fewer than two bounds or such as do not grow.
    """
    if len(bounds) < 2 or any(low >= high for low, high in pairwise(bounds)):
        raise ChromaboxError(f"bounds {list(bounds)}: bands take at least two, each greater than the one before")
    band = np.searchsorted(np.asarray(bounds), distances.ravel(), side="right") - 1
    inside = (band >= 0) & (band < len(bounds) - 1)
    count = np.bincount(band[inside], minlength=len(bounds) - 1)
    hits = np.bincount(band[inside & right.ravel()], minlength=len(bounds) - 1)
    accuracy = np.divide(hits, count, out=np.full(len(count), np.nan), where=count > 0)
    return ByDistance(accuracy, count / right.size)
