"""Discs of the a*b* plane in which no colour may lie, and the way out of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

#: How far inside a rim still counts as on it, in units of a* and b*: far above rounding, far below what is seen.
TOUCH = 1e-4


@dataclass(frozen=True, eq=False)
class Discs:
    """Open discs of one radius around points (a*, b*); they may overlap."""

    centres: Float64[np.ndarray, "discs 2"]
    radius: float

    def contain(self, points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
        """Which points lie inside at least one disc, by more than ``TOUCH``."""
        inside = np.zeros(len(points), bool)
        for a, b in self.centres.tolist():
            inside |= (points[:, 0] - a) ** 2 + (points[:, 1] - b) ** 2 < (self.radius - TOUCH) ** 2
        return inside

    def push(self, chroma: Float32[np.ndarray, "*shape 2"]) -> Float32[np.ndarray, "*shape 2"]:
        """The nearest chroma outside all discs; what lies outside already stays as it is.

        That nearest point is straight away from a disc's centre on its rim, or where two rims meet. From the very
        centre of a disc, where every way out is as short, the way is towards +a*.
        """
        points = chroma.reshape(-1, 2)
        inside = self.contain(points)
        if not inside.any():
            return chroma
        result = points.copy()
        result[inside] = self._nearest_outside(points[inside].astype(np.float64))
        return result.reshape(chroma.shape)

    def _nearest_outside(self, points: Float64[np.ndarray, "points 2"]) -> Float64[np.ndarray, "points 2"]:
        best = np.full(len(points), np.inf)
        result = points.copy()
        for centre in self.centres:
            away = points - centre
            length = np.hypot(*away.T)[:, None]
            away = np.where(length > TOUCH, away / np.maximum(length, TOUCH), [1.0, 0.0])
            _take_nearer(result, best, points, centre + self.radius * away, self)
        for corner in self._corners:
            _take_nearer(result, best, points, np.broadcast_to(corner, points.shape), None)
        return result

    @cached_property
    def _corners(self) -> Float64[np.ndarray, "corners 2"]:
        """Where two rims meet outside all other discs."""
        first, second = np.triu_indices(len(self.centres), 1)
        half = (self.centres[second] - self.centres[first]) / 2
        length = np.hypot(*half.T)
        meet = (length > TOUCH) & (length <= self.radius)
        half, length, middle = half[meet], length[meet, None], self.centres[first[meet]] + half[meet]
        across = half[:, ::-1] * [-1.0, 1.0] / length * np.sqrt(self.radius**2 - length**2)
        corners = np.concatenate([middle + across, middle - across])
        return corners[~self.contain(corners)]


def _take_nearer(
    result: Float64[np.ndarray, "points 2"],
    best: Float64[np.ndarray, " points"],
    points: Float64[np.ndarray, "points 2"],
    candidates: Float64[np.ndarray, "points 2"],
    discs: Discs | None,
) -> None:
    """Put candidates (those outside the discs, if given) into the result where they are the nearest yet."""
    distance = ((candidates - points) ** 2).sum(-1)
    nearer = distance < best
    if discs is not None:
        nearer &= ~discs.contain(candidates)
    result[nearer], best[nearer] = candidates[nearer], distance[nearer]
