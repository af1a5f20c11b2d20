"""Constraints on the full-size chroma of every pixel: exclusion zones and restriction to the colours of a palette."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Integer

from chromabox.colour.chroma.recolour import ChromaBand, interpolation_indices

#: Depth inside a disc, in units of a* and b*, up to which a point counts as on the edge. This depth is far larger than
#: rounding errors and far too small to be visible.
EDGE_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class ExclusionZones:
    """Open discs of the same radius in the a*b* plane, in which no chroma may lie. The discs may overlap."""

    centres: Float64[np.ndarray, "discs 2"]
    radius: float

    def contains(self, points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
        """Return a mask of the points that lie inside at least one disc by more than ``EDGE_TOLERANCE``."""
        inside = np.zeros(len(points), bool)
        for a, b in self.centres.tolist():
            inside |= (points[:, 0] - a) ** 2 + (points[:, 1] - b) ** 2 < (self.radius - EDGE_TOLERANCE) ** 2
        return inside

    def push_out(self, chroma: Float32[np.ndarray, "*shape 2"]) -> Float32[np.ndarray, "*shape 2"]:
        """Return the nearest chroma outside all discs. Chroma that is already outside is not changed.

        The nearest chroma is either on the edge of a disc, in the direction from the centre of the disc to the chroma,
        or at an intersection of two edges. For chroma exactly at the centre, the direction is +a*.
        """
        all_points = chroma.reshape(-1, 2)
        inside = self.contains(all_points)
        if not inside.any():
            return chroma
        points = all_points[inside].astype(np.float64)
        nearest, shortest = points.copy(), np.full(len(points), np.inf)
        for candidates in self._candidates(points):
            distance = ((candidates - points) ** 2).sum(-1)
            nearer = (distance < shortest) & ~self.contains(candidates)
            nearest[nearer], shortest[nearer] = candidates[nearer], distance[nearer]
        result = all_points.copy()
        result[inside] = nearest
        return result.reshape(chroma.shape)

    def _candidates(self, points: Float64[np.ndarray, "points 2"]) -> Iterator[Float64[np.ndarray, "points 2"]]:
        """Yield the projections of all points onto the edge of each disc, then every intersection of two edges."""
        for centre in self.centres:
            away = points - centre
            length = np.hypot(*away.T)[:, None]
            away = np.where(length > EDGE_TOLERANCE, away / np.maximum(length, EDGE_TOLERANCE), [1.0, 0.0])
            yield centre + self.radius * away
        first, second = np.triu_indices(len(self.centres), 1)
        half = (self.centres[second] - self.centres[first]) / 2
        length = np.hypot(*half.T)
        meet = (length > EDGE_TOLERANCE) & (length <= self.radius)
        half, length, middle = half[meet], length[meet, None], self.centres[first[meet]] + half[meet]
        across = half[:, ::-1] * [-1.0, 1.0] / length * np.sqrt(self.radius**2 - length**2)
        for corner in (*(middle + across), *(middle - across)):
            yield np.broadcast_to(corner, points.shape)


def palette_only(
    chroma: ChromaBand,
    band: slice,
    *,
    image_size: tuple[int, int],
    labels: Integer[np.ndarray, "small_height small_width"],
    label_chroma: Float32[np.ndarray, "colours 2"],
) -> ChromaBand:
    """Replace the chroma of every pixel in a band of rows by that of a palette colour.

    The candidates are the colours of the four cells of ``labels`` around the pixel. The candidate with the nearest
    chroma is selected. Other palette colours are not candidates, because the interpolated chroma between two regions
    can be nearest to the colour of a third region. ``image_size`` is the height and width of the whole image.
    """
    upper, lower, _ = interpolation_indices(labels.shape[0], image_size[0], band)
    left, right, _ = interpolation_indices(labels.shape[1], image_size[1], slice(0, image_size[1]))
    around = [rows[:, columns] for rows in (labels[upper], labels[lower]) for columns in (left, right)]
    result = label_chroma[around[0]]
    mixed = np.logical_or.reduce([around[0] != other for other in around[1:]])
    candidates = label_chroma[np.stack([other[mixed] for other in around])]
    nearest = ((candidates - chroma[mixed]) ** 2).sum(-1).argmin(0)
    result[mixed] = candidates[nearest, np.arange(len(nearest))]
    return result
