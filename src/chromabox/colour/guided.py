"""Small chroma maps to full size, with the picture's own lightness as the guide.

The fast guided filter (He & Sun 2015, arXiv:1505.00996, algorithm 2): at the small size, chroma around every cell is
fitted by a line in lightness, chroma = slope × lightness + offset; the lines, not the chroma, are interpolated to full
size and applied to the full lightness, so that colour ends where the picture's own edge is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

#: Cells of the small map to each side over which a line is fitted.
RADIUS = 1
#: Variance of L* below which an area counts as flat: there, chroma is averaged instead of fitted.
EPSILON = 25.0


@dataclass(frozen=True)
class GuidedMap:
    """A small chroma map made ready to be read at full size, any rows at a time.

    planes: slope, offset, lowest and highest value allowed, each for a* and b*, already at full width. The limits are
    those of the map around every cell: the line may sharpen what the map says but not exceed it.
    height: of the full-size picture.
    """

    planes: Float32[np.ndarray, "4 2 small_height width"]
    height: int

    def rows(self, band: slice, lightness: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "2 rows width"]:
        """a* and b* of the rows of `band` of the full-size picture, of which `lightness` are the L* (0..100)."""
        upper, lower, down = _neighbours(self.planes.shape[2], self.height, band)
        result = np.empty((2, *lightness.shape), np.float32)
        for channel, value in enumerate(result):
            # One plane at a time, so that they stay in the cache.
            slope, offset, lowest, highest = (
                _between(plane.take(upper, axis=0), plane.take(lower, axis=0), down[:, None])
                for plane in self.planes[:, channel]
            )
            np.multiply(slope, lightness, out=value)
            value += offset
            np.maximum(value, lowest, out=value)
            np.minimum(value, highest, out=value)
        return result


def fit_lines(
    chroma: Float32[np.ndarray, "small_height small_width 2"],
    guide: Float32[np.ndarray, "small_height small_width"],
    height: int,
    width: int,
    *,
    radius: int = RADIUS,
    epsilon: float = EPSILON,
) -> GuidedMap:
    """Fit chroma by lightness around every cell of the small map.

    Args:
        chroma: a*, b*.
        guide: L* (0..100) of the picture, averaged over each cell.
        height: of the full-size picture, as `width`.
        width: see `height`.
        radius: cells to each side over which a line is fitted.
        epsilon: variance of L* at which the slope is half of what least squares would give.
    """
    colour = torch.from_numpy(chroma).permute(2, 0, 1).double()
    light = torch.from_numpy(guide).double()[None]
    mean_light, mean_colour = _box(light, radius), _box(colour, radius)
    variance = _box(light**2, radius) - mean_light**2
    covariance = _box(light * colour, radius) - mean_light * mean_colour
    slope = covariance / (variance.clamp(min=0) + epsilon)
    offset = mean_colour - slope * mean_light
    highest = F.max_pool2d(colour, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-colour, 3, stride=1, padding=1)
    planes = torch.stack([_box(slope, radius), _box(offset, radius), lowest, highest]).float().numpy()
    left, right, across = _neighbours(planes.shape[-1], width, slice(0, width))
    return GuidedMap(_between(planes.take(left, axis=-1), planes.take(right, axis=-1), across), height)


def _box(planes: Tensor, radius: int) -> Tensor:
    """Means over squares of 2 radius + 1 cells, of which only those inside the map count."""
    return F.avg_pool2d(planes, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


def _neighbours(small: int, full: int, band: slice) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " places"]]:
    """The two cells between which each place lies, and how far (0..1) it is from the first to the second."""
    places = (np.arange(band.start, band.stop) + 0.5) * small / full - 0.5
    places = places.clip(0, small - 1)
    first = places.astype(np.intp)
    return first, np.minimum(first + 1, small - 1), (places - first).astype(np.float32)


def _between(
    first: Float32[np.ndarray, "*shape"], second: Float32[np.ndarray, "*shape"], share: Float32[np.ndarray, "*_"]
) -> Float32[np.ndarray, "*shape"]:
    """Linear interpolation; exact where both are equal."""
    second = second - first
    second *= share
    second += first
    return second


def shrink(
    plane: Float32[np.ndarray, "height width"], height: int, width: int
) -> Float32[np.ndarray, "small_height small_width"]:
    """Average one plane down to a smaller size."""
    small = Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.HAMMING)
    return np.array(small, np.float32)
