"""Chroma bins: the classes among which a photo net chooses, points of a square grid in the a*b* plane of CIELab.

A pixel's target is shared among the four bins around its chroma by bilinear weights, so that the mean of the bins
under the target is exactly that chroma: what a net that has learnt the targets says needs no correction. (Zhang et
al. 2016, section 2.2, share it among the five nearest by a Gaussian, whose mean is only near it.) A small net has
fewer classes to learn than pixels have colours because only bins that photographs use are kept.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from chromabox.errors import ChromaboxError

BinScores = Float[Tensor, "batch bins height width"]
ChromaTensor = Float[Tensor, "batch 2 height width"]


@dataclass(frozen=True, eq=False)
class ChromaBins:
    """Grid points (a*, b*), in multiples of ``spacing``, and how often each occurs among the training pixels.

    Raises ChromaboxError for arrays that are not two or more finite points on the grid with as many frequencies.
    """

    centres: Float32[np.ndarray, "bins 2"]
    frequencies: Float32[np.ndarray, " bins"]
    spacing: float

    def __post_init__(self) -> None:
        cells = self.centres / self.spacing if self.spacing > 0 else self.centres
        whole = np.isfinite(cells).all() and np.allclose(cells, np.rint(cells), atol=1e-3)
        if self.centres.ndim != 2 or len(self.centres) < 2 or self.centres.shape[1] != 2 or not whole:
            raise ChromaboxError(f"chroma bins: need two or more points (a*, b*) in multiples of {self.spacing:g}")
        if self.frequencies.shape != (len(self.centres),) or not (self.frequencies > 0).all():
            raise ChromaboxError(f"chroma bins: need {len(self.centres)} frequencies above 0, one for each bin")

    def __len__(self) -> int:
        return len(self.centres)

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint says of its bins."""
        frequencies = [float(f"{value:.6g}") for value in self.frequencies]
        return {"spacing": self.spacing, "centres": self.centres.tolist(), "frequencies": frequencies}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ChromaBins":
        """The bins of :meth:`as_json`; KeyError, TypeError, ValueError or ChromaboxError if they are none."""
        centres, frequencies = (np.asarray(values[name], np.float32) for name in ("centres", "frequencies"))
        return cls(centres, frequencies, float(values["spacing"]))

    @cached_property
    def _nearest_bin_grid(self) -> tuple[Int64[Tensor, "rows columns"], Int64[Tensor, "2"]]:
        """The bin nearest to every point of the grid's bounding box, and the box's first point."""
        cells = np.rint(self.centres / self.spacing).astype(np.int64)
        first, last = cells.min(0), cells.max(0)
        box = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(first, last, strict=True)), indexing="ij"), -1)
        distance = ((box[..., None, :] - cells) ** 2).sum(-1)
        return torch.from_numpy(distance.argmin(-1)), torch.from_numpy(first)

    def soft_encode(
        self, chroma: ChromaTensor
    ) -> tuple[Int64[Tensor, "batch 4 height width"], Float[Tensor, "batch 4 height width"]]:
        """The four bins around each pixel's chroma and their bilinear weights, which add up to 1.

        Chroma beyond the bins is drawn to the nearest one.
        """
        lattice, first = (part.to(chroma.device) for part in self._nearest_bin_grid)
        size = torch.tensor(lattice.shape, device=chroma.device)
        place = chroma / self.spacing - first[:, None, None]
        place = torch.minimum(place.clamp(min=0), (size - 1)[:, None, None] - 1e-4)
        corner = place.floor()
        part = place - corner
        row, column = corner.long().unbind(1)
        bins, weights = [], []
        for down in (0, 1):
            for right in (0, 1):
                bins.append(lattice[row + down, column + right])
                weights.append((part[:, 0] if down else 1 - part[:, 0]) * (part[:, 1] if right else 1 - part[:, 1]))
        return torch.stack(bins, 1), torch.stack(weights, 1)

    def decode_mean(self, probabilities: BinScores) -> ChromaTensor:
        """The mean chroma under probabilities [batch, bins, height, width]."""
        return torch.einsum("bkhw,kc->bchw", probabilities, torch.from_numpy(self.centres).to(probabilities))

    def rebalancing_weights(self, strength: float) -> Float[Tensor, " bins"]:
        """Logarithms of class weights that make rare colours count more; 0 for strength 0.

        Zhang et al. 2016, section 2.2: w ∝ ((1 − λ)·p̃ + λ/Q)⁻¹ with λ = 1/2 and p̃ the bins' frequencies smoothed by a
        Gaussian of σ = 5, scaled so that E[w] = 1. A net trained with the weighted loss says p·w up to a factor, so the
        weights can as well be put on afterwards, and to the power of ``strength``.
        """
        centres = self.centres.astype(np.float64)
        distance = ((centres[:, None] - centres) ** 2).sum(-1)
        kernel = np.exp(-distance / (2 * 5**2))
        smooth = (kernel / kernel.sum(0)) @ (self.frequencies / self.frequencies.sum())
        weights = 1 / (0.5 * smooth + 0.5 / len(self))
        weights /= weights @ smooth
        return torch.from_numpy(strength * np.log(weights)).float()


def fit_bins(chroma: Iterable[Float[Tensor, "2 pixels"]], spacing: float, *, min_fraction: float = 2e-6) -> ChromaBins:
    """The grid points that pixels use: those with at least the share ``least`` of all bilinear weight.

    Args:
        chroma: a* and b* of pixels, in portions.
        spacing: of the grid, in units of a* and b*.
        least: a rarer bin is left out, its pixels going to the nearest that is kept.

    Raises ChromaboxError if fewer than two bins are used.
    """
    reach = math.ceil(128 / spacing) + 1
    size = 2 * reach + 1
    counts = torch.zeros(size * size, dtype=torch.float64)
    for portion in chroma:
        place = portion.double() / spacing + reach
        corner = place.floor()
        part = place - corner
        for down in (0, 1):
            for right in (0, 1):
                weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
                counts.index_add_(0, ((corner[0] + down) * size + corner[1] + right).long(), weight)
    share = counts / counts.sum().clamp(min=1e-12)
    used = torch.nonzero(share >= min_fraction)[:, 0]
    if len(used) < 2:
        raise ChromaboxError(
            f"chroma bins: the pictures use {len(used)} of them; pictures in several colours are needed"
        )
    cells = torch.stack([used // size, used % size], 1) - reach
    return ChromaBins((cells * spacing).numpy().astype(np.float32), share[used].numpy().astype(np.float32), spacing)
