"""What holds for every pixel of a coloured picture: rules on the full-size chroma of bands of rows.

A rule is called as ``rule(chroma [rows, width, 2], band)`` and gives the chroma that these rows get instead; rules keep
no state, so bands may come in any order and from several threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Integer, UInt

from chromabox.colour.discs import Discs

Band = Float32[np.ndarray, "rows width 2"]


@dataclass(frozen=True)
class Cells:
    """How the pixels of a picture lie among the cells of a small map; both are (height, width)."""

    small: tuple[int, int]
    full: tuple[int, int]

    def between(self, axis: int, places: slice) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " places"]]:
        """The two cells between whose centres each place of an axis lies, and how far (0..1) it is from the first."""
        at = (np.arange(places.start, places.stop) + 0.5) * self.small[axis] / self.full[axis] - 0.5
        at = at.clip(0, self.small[axis] - 1)
        first = at.astype(np.intp)
        return first, np.minimum(first + 1, self.small[axis] - 1), (at - first).astype(np.float32)

    @cached_property
    def columns(self) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " width"]]:
        """``between`` for all pixels of a row."""
        return self.between(1, slice(0, self.full[1]))

    def corners(self, plane: np.ndarray, band: slice) -> list[np.ndarray]:
        """Values of a small plane in the four cells around every pixel of the band."""
        upper, lower, _ = self.between(0, band)
        left, right, _ = self.columns
        return [rows[:, columns] for rows in (plane[upper], plane[lower]) for columns in (left, right)]

    def bilinear(
        self, plane: Float32[np.ndarray, "small_height small_width"], band: slice
    ) -> Float32[np.ndarray, "rows width"]:
        """A small plane at every pixel of the band."""
        upper, lower, down = self.between(0, band)
        left, right, across = self.columns
        rows = plane[upper] + down[:, None] * (plane[lower] - plane[upper])
        return rows[:, left] + across * (rows[:, right] - rows[:, left])


@dataclass(frozen=True, eq=False)
class OnlyColours:
    """Every pixel gets, to the bit, the chroma of one of the four labels around it: the one nearest to its own.

    Only these four are asked, because the chroma between two regions may be nearest to a third region's colour.
    """

    cells: Cells
    labels: Integer[np.ndarray, "small_height small_width"]
    table: Float32[np.ndarray, "colours 2"]

    def __call__(self, chroma: Band, band: slice) -> Band:
        around = self.cells.corners(self.labels, band)
        first, *others = around
        result = self.table[first]
        mixed = np.logical_or.reduce([first != labels for labels in others])
        candidates = self.table[np.stack([labels[mixed] for labels in around])]
        nearest = ((candidates - chroma[mixed]) ** 2).sum(-1).argmin(0)
        result[mixed] = candidates[nearest, np.arange(len(nearest))]
        return result


@dataclass(frozen=True, eq=False)
class OutsideDiscs:
    """No pixel's chroma lies in a disc, but where ``spared``, brought to full size, is above one half."""

    cells: Cells
    discs: Discs
    spared: Float32[np.ndarray, "small_height small_width"] | None = None

    def __call__(self, chroma: Band, band: slice) -> Band:
        pushed = self.discs.push(chroma)
        if self.spared is None:
            return pushed
        return np.where(self.cells.bilinear(self.spared, band)[..., None] > 0.5, chroma, pushed)


@dataclass(frozen=True, eq=False)
class GreyWhereUnsure:
    """Chroma is 0 where the confidence, brought to full size, is below the least one."""

    cells: Cells
    confidence: Float32[np.ndarray, "small_height small_width"]
    least: float

    def __call__(self, chroma: Band, band: slice) -> Band:
        sure = self.cells.bilinear(self.confidence, band) >= self.least
        return np.where(sure[..., None], chroma, np.float32(0))


@dataclass(frozen=True, eq=False)
class Painted:
    """Pixels with a number above 0 get the chroma of that row of the table."""

    numbers: UInt[np.ndarray, "height width"]
    table: Float32[np.ndarray, "numbers 2"]

    def __call__(self, chroma: Band, band: slice) -> Band:
        numbers = self.numbers[band]
        painted = numbers > 0
        if not painted.any():
            return chroma
        result = chroma.copy()
        result[painted] = self.table[numbers[painted]]
        return result


Rule = OnlyColours | OutsideDiscs | GreyWhereUnsure | Painted


@dataclass(frozen=True)
class InTurn:
    """Rules one after another, the last one having the last word."""

    rules: Sequence[Rule]

    def __call__(self, chroma: Band, band: slice) -> Band:
        for rule in self.rules:
            chroma = rule(chroma, band)
        return chroma
