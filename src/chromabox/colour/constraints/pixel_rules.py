"""Pixel rules: constraints on the full-size chroma of every pixel, applied to bands of rows; exclusion zones.

A rule is a callable ``rule(chroma [rows, width, 2], band)`` that returns the chroma of these rows after the rule. Rules
are stateless: bands can be processed in any order and from several threads.

Exclusion zones are discs in the a*b* plane in which no chroma may lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Integer, UInt

#: Depth inside an edge at which a point still counts as on it, in units of a* and b*: far larger than rounding errors,
#: far too small to see.
EDGE_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class ExclusionZones:
    """Open discs of one radius around points (a*, b*), which may overlap."""

    centres: Float64[np.ndarray, "discs 2"]
    radius: float

    def contains(self, points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
        """Return a mask of the points that lie inside at least one disc by more than ``EDGE_TOLERANCE``."""
        inside = np.zeros(len(points), bool)
        for a, b in self.centres.tolist():
            inside |= (points[:, 0] - a) ** 2 + (points[:, 1] - b) ** 2 < (self.radius - EDGE_TOLERANCE) ** 2
        return inside

    def push_out(self, chroma: Float32[np.ndarray, "*shape 2"]) -> Float32[np.ndarray, "*shape 2"]:
        """Return the nearest chroma outside all discs; chroma outside is not changed.

        The nearest point is on the edge of a disc in the direction away from its centre, or an intersection of two
        edges. At the exact centre of a disc, where all directions are equivalent, the direction is +a*.
        """
        points = chroma.reshape(-1, 2)
        inside = self.contains(points)
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
            away = np.where(length > EDGE_TOLERANCE, away / np.maximum(length, EDGE_TOLERANCE), [1.0, 0.0])
            _keep_nearer(result, best, points, centre + self.radius * away, self)
        for corner in self._intersections:
            _keep_nearer(result, best, points, np.broadcast_to(corner, points.shape), None)
        return result

    @cached_property
    def _intersections(self) -> Float64[np.ndarray, "corners 2"]:
        """The intersections of two edges that are outside all other discs."""
        first, second = np.triu_indices(len(self.centres), 1)
        half = (self.centres[second] - self.centres[first]) / 2
        length = np.hypot(*half.T)
        meet = (length > EDGE_TOLERANCE) & (length <= self.radius)
        half, length, middle = half[meet], length[meet, None], self.centres[first[meet]] + half[meet]
        across = half[:, ::-1] * [-1.0, 1.0] / length * np.sqrt(self.radius**2 - length**2)
        corners = np.concatenate([middle + across, middle - across])
        return corners[~self.contains(corners)]


def _keep_nearer(
    result: Float64[np.ndarray, "points 2"],
    best: Float64[np.ndarray, " points"],
    points: Float64[np.ndarray, "points 2"],
    candidates: Float64[np.ndarray, "points 2"],
    zones: ExclusionZones | None,
) -> None:
    """Write candidates (outside the zones, if given) into the result where they are nearer than the current best."""
    distance = ((candidates - points) ** 2).sum(-1)
    nearer = distance < best
    if zones is not None:
        nearer &= ~zones.contains(candidates)
    result[nearer], best[nearer] = candidates[nearer], distance[nearer]


ChromaBand = Float32[np.ndarray, "rows width 2"]


@dataclass(frozen=True)
class GridMapping:
    """Mapping between the pixels of an image and the cells of a small map; both sizes are (height, width)."""

    map_size: tuple[int, int]
    image_size: tuple[int, int]

    def interpolation_indices(
        self, axis: int, positions: slice
    ) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " positions"]]:
        """Return the two cells around each position of an axis and the fraction (0 to 1) from the first centre."""
        cells = (np.arange(positions.start, positions.stop) + 0.5) * self.map_size[axis] / self.image_size[axis] - 0.5
        cells = cells.clip(0, self.map_size[axis] - 1)
        first = cells.astype(np.intp)
        return first, np.minimum(first + 1, self.map_size[axis] - 1), (cells - first).astype(np.float32)

    @cached_property
    def column_indices(self) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " width"]]:
        """``interpolation_indices`` of all pixels of a row."""
        return self.interpolation_indices(1, slice(0, self.image_size[1]))

    def neighbour_values(self, plane: np.ndarray, band: slice) -> list[np.ndarray]:
        """Return the values of a small plane in the four cells around every pixel of the band."""
        upper, lower, _ = self.interpolation_indices(0, band)
        left, right, _ = self.column_indices
        return [rows[:, columns] for rows in (plane[upper], plane[lower]) for columns in (left, right)]

    def interpolate(
        self, plane: Float32[np.ndarray, "small_height small_width"], band: slice
    ) -> Float32[np.ndarray, "rows width"]:
        """Interpolate a small plane bilinearly at every pixel of the band."""
        upper, lower, down = self.interpolation_indices(0, band)
        left, right, across = self.column_indices
        rows = plane[upper] + down[:, None] * (plane[lower] - plane[upper])
        return rows[:, left] + across * (rows[:, right] - rows[:, left])


@dataclass(frozen=True, eq=False)
class PaletteOnly:
    """Every pixel gets exactly the chroma of one of the four labels around it: the one nearest to the pixel's chroma.

    Only these four are candidates, because the chroma between two regions can be nearest to a third region's colour.
    """

    grid: GridMapping
    labels: Integer[np.ndarray, "small_height small_width"]
    label_chroma: Float32[np.ndarray, "colours 2"]

    def __call__(self, chroma: ChromaBand, band: slice) -> ChromaBand:
        around = self.grid.neighbour_values(self.labels, band)
        first, *others = around
        result = self.label_chroma[first]
        mixed = np.logical_or.reduce([first != labels for labels in others])
        candidates = self.label_chroma[np.stack([labels[mixed] for labels in around])]
        nearest = ((candidates - chroma[mixed]) ** 2).sum(-1).argmin(0)
        result[mixed] = candidates[nearest, np.arange(len(nearest))]
        return result


@dataclass(frozen=True, eq=False)
class ExcludeZones:
    """Chroma is moved out of the zones, except where ``exempt``, interpolated to full size, is above 0.5."""

    grid: GridMapping
    zones: ExclusionZones
    exempt: Float32[np.ndarray, "small_height small_width"] | None = None

    def __call__(self, chroma: ChromaBand, band: slice) -> ChromaBand:
        pushed = self.zones.push_out(chroma)
        if self.exempt is None:
            return pushed
        return np.where(self.grid.interpolate(self.exempt, band)[..., None] > 0.5, chroma, pushed)


@dataclass(frozen=True, eq=False)
class GreyBelowConfidence:
    """Chroma is 0 where the confidence, interpolated to full size, is below ``min_confidence``."""

    grid: GridMapping
    confidence: Float32[np.ndarray, "small_height small_width"]
    min_confidence: float

    def __call__(self, chroma: ChromaBand, band: slice) -> ChromaBand:
        confident = self.grid.interpolate(self.confidence, band) >= self.min_confidence
        return np.where(confident[..., None], chroma, np.float32(0))


@dataclass(frozen=True, eq=False)
class HintPixels:
    """Pixels with a label above 0 get the chroma in the corresponding row of ``label_chroma``."""

    labels: UInt[np.ndarray, "height width"]
    label_chroma: Float32[np.ndarray, "labels 2"]

    def __call__(self, chroma: ChromaBand, band: slice) -> ChromaBand:
        labels = self.labels[band]
        painted = labels > 0
        if not painted.any():
            return chroma
        result = chroma.copy()
        result[painted] = self.label_chroma[labels[painted]]
        return result


PixelRule = PaletteOnly | ExcludeZones | GreyBelowConfidence | HintPixels


@dataclass(frozen=True)
class RuleChain:
    """Rules applied in order; later rules override earlier ones."""

    rules: Sequence[PixelRule]

    def __call__(self, chroma: ChromaBand, band: slice) -> ChromaBand:
        for rule in self.rules:
            chroma = rule(chroma, band)
        return chroma
