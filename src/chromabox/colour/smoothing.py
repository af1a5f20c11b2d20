"""Chroma maps that do not flicker from frame to frame: an average over time that lets go where something moves."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch.nn import functional as F

from chromabox.errors import UsageError

#: Share of the past in the average where nothing moves: an old colour is half gone after three frames.
DEFAULT_SMOOTHING = 0.8
#: Changes of lightness L* up to which a place counts as still, and from which it counts as new.
STILL, MOVED = 2.0, 8.0
#: A frame begins a new scene if its lightness differs from the last frame's by this much on average, in L* (more
#: than noise does) …
CUT_DIFFERENCE = 3.0
#: … and the correlation of the two is below this (a flash, a fade and a fast movement keep it higher).
CUT_CORRELATION = 0.5


@dataclass
class ChromaSmoother:
    """Averages the chroma maps of a film's frames, in their order.

    With cₜ the chroma and Lₜ the lightness of frame t at one place of the map, Cₜ and Rₜ their averages:

        eₜ = Lₜ − Rₜ₋₁, less its median over the frame
        dₜ = | mean of eₜ over the 3 × 3 places around |
        sₜ = (dₜ − STILL) / (MOVED − STILL), clipped to [0, 1]
        wₜ = (1 − smoothing) + smoothing · sₜ
        Cₜ = Cₜ₋₁ + wₜ (cₜ − Cₜ₋₁),   Rₜ = Rₜ₋₁ + wₜ (Lₜ − Rₜ₋₁)

    A still place is averaged exponentially; a place whose lightness has moved away from what its colour was averaged
    over takes the new colour at once. Comparing with Rₜ₋₁ instead of the last frame also notices slow movement. The
    median is there so that the flicker of old film and fades do not look like movement, the mean over 3 × 3 places so
    that noise does not. At a cut (see CUT_DIFFERENCE and CUT_CORRELATION) the average begins anew. What moves without
    a change of lightness is not seen to move: there the old colour fades by the factor ``smoothing`` a frame.

    Attributes:
        smoothing: from 0 (every frame by itself) to below 1.
        cuts: how many frames began a new scene, the first one not counted.
    """

    smoothing: float = DEFAULT_SMOOTHING
    cuts: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing is {self.smoothing}: give 0 (each frame by itself) to below 1, such as 0.9")
        self._last: Float32[np.ndarray, "height width"] | None = None

    def __call__(
        self, chroma: Float32[np.ndarray, "height width 2"], lightness: Float32[np.ndarray, "height width"]
    ) -> Float32[np.ndarray, "height width 2"]:
        """The smoothed a* and b* of the next frame; all frames' maps are of one size.

        Args:
            chroma: a* and b* of this frame by itself.
            lightness: L* of this frame, 0 to 100, averaged over each place of the map.
        """
        last, self._last = self._last, lightness
        if last is None or is_cut(last, lightness):
            self.cuts += last is not None
            self._chroma, self._reference = chroma, lightness
            return chroma
        change = lightness - self._reference
        local = np.abs(_mean_around(change - np.median(change)))
        moved = ((local - STILL) / (MOVED - STILL)).clip(0, 1)
        weight = (1 - self.smoothing) + self.smoothing * moved
        self._reference = self._reference + weight * change
        self._chroma = self._chroma + weight[..., None] * (chroma - self._chroma)
        return self._chroma


def is_cut(last: Float32[np.ndarray, "height width"], now: Float32[np.ndarray, "height width"]) -> bool:
    """Whether a new scene begins between two frames, judged by their L* maps."""
    if np.abs(now - last).mean() < CUT_DIFFERENCE:
        return False
    a, b = last - last.mean(), now - now.mean()
    return bool((a * b).sum() <= CUT_CORRELATION * np.sqrt((a * a).sum() * (b * b).sum()))


def _mean_around(plane: Float32[np.ndarray, "height width"]) -> Float32[np.ndarray, "height width"]:
    """Mean over each place and its neighbours; at the edges over those that exist."""
    means = F.avg_pool2d(torch.from_numpy(plane)[None, None], 3, stride=1, padding=1, count_include_pad=False)
    result: np.ndarray = means[0, 0].numpy()
    return result
