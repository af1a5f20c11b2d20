"""Chroma bins, the classes of the photo model: points of a square grid in the a*b* plane of CIELAB.

The target of a pixel is distributed over the four bins around its chroma with bilinear weights. The mean of the bins
under this target is exactly the chroma, so that the mean of a prediction needs no correction. Zhang et al. 2016,
section 2.2, distribute the target over the five nearest bins with a Gaussian, whose mean only approximates the chroma.
Only bins that occur in photographs are used, which reduces the number of classes that a small model must distinguish.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from chromabox.errors import ChromaboxError


@dataclass(frozen=True, eq=False)
class ChromaBins:
    """Grid points (a*, b*) at multiples of ``spacing``, and their relative frequencies among the training pixels.

    Raise ChromaboxError unless there are two or more finite points on the grid and one positive frequency per point.
    """

    centres: Float32[np.ndarray, "bins 2"]
    frequencies: Float32[np.ndarray, " bins"]
    spacing: float

    def __post_init__(self) -> None:
        cells = self.centres / self.spacing if self.spacing > 0 else self.centres
        # Arrays for all grid points between the bins would be too large if the bins were far apart.
        on_grid = (
            np.isfinite(cells).all() and np.allclose(cells, np.rint(cells), atol=1e-3) and (abs(cells) < 1000).all()
        )
        if self.centres.ndim != 2 or len(self.centres) < 2 or self.centres.shape[1] != 2 or not on_grid:
            expected = f"two or more points (a*, b*) at multiples of {self.spacing:g}, less than 1000 times that from 0"
            raise ChromaboxError(f"chroma bins: expected {expected}")
        if self.frequencies.shape != (len(self.centres),) or not (self.frequencies > 0).all():
            raise ChromaboxError(f"chroma bins: expected {len(self.centres)} frequencies above 0, one per bin")

    def __len__(self) -> int:
        return len(self.centres)

    def as_json(self) -> dict[str, Any]:
        """Return the bins as JSON values, for the metadata of a checkpoint."""
        frequencies = [float(f"{value:.6g}") for value in self.frequencies]
        return {"spacing": self.spacing, "centres": self.centres.tolist(), "frequencies": frequencies}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ChromaBins":
        """Return bins from the JSON values of :meth:`as_json`.

        Raise KeyError, TypeError, ValueError or ChromaboxError for invalid values.
        """
        centres, frequencies = (np.asarray(values[name], np.float32) for name in ("centres", "frequencies"))
        return cls(centres, frequencies, float(values["spacing"]))

    @cached_property
    def nearest_bin_grid(self) -> tuple[Int64[np.ndarray, "rows columns"], Int64[np.ndarray, "2"]]:
        """The index of the nearest bin for every grid point in the bounding box of the bins, and the start of the box.

        The start is the grid point with the lowest a* and b*, in units of ``spacing``.
        """
        cells = np.rint(self.centres / self.spacing).astype(np.int64)
        first, last = cells.min(0), cells.max(0)
        box = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last, strict=True)), indexing="ij"), -1)
        distance = ((box[..., None, :] - cells) ** 2).sum(-1)
        return distance.argmin(-1), first


def fit_bins(
    chroma: Iterable[Float32[np.ndarray, "pixels 2"]], spacing: float, *, min_fraction: float = 2e-6
) -> ChromaBins:
    """Return the bins whose bilinear weight is at least the fraction ``min_fraction`` of the total weight.

    ``chroma``: a* and b* of pixels, in chunks. ``spacing``: distance of the grid points, in units of a* and b*. Pixels
    of the omitted bins belong to the nearest remaining bin. Raise ChromaboxError if fewer than two bins remain.
    """
    radius = math.ceil(128 / spacing) + 1
    size = 2 * radius + 1
    counts = np.zeros(size * size)
    for chunk in chroma:
        position = chunk.T.astype(np.float64) / spacing + radius
        corner = np.floor(position)
        offset = position - corner
        for down, vertical in enumerate((1 - offset[0], offset[0])):
            for right, horizontal in enumerate((1 - offset[1], offset[1])):
                index = ((corner[0] + down) * size + corner[1] + right).astype(np.int64)
                np.add.at(counts, index, vertical * horizontal)
    fractions = counts / max(counts.sum(), 1e-12)
    used = np.flatnonzero(fractions >= min_fraction)
    if len(used) < 2:
        raise ChromaboxError(f"chroma bins: expected two or more, got {len(used)}; use images with several colours")
    cells = np.stack([used // size, used % size], 1) - radius
    return ChromaBins((cells * spacing).astype(np.float32), fractions[used].astype(np.float32), spacing)
