"""A picture and a small chroma map in, the picture in colour out: its own L* kept exactly, at full size.

The map is brought to full size with the picture's lightness as the guide (guided.py). Where sRGB has no colour of that
lightness, hue and chroma, chroma gives way as far as it must, and lightness and hue stay (lab.py). Work goes in bands
of rows that stay in a core's cache, so memory beyond the two pictures does not grow with them.

Small chroma maps to full size, with the picture's own lightness as the guide.

After the fast guided filter (He & Sun 2015, arXiv:1505.00996, algorithm 2): at the small size, chroma around every cell
is fitted by a line in lightness; the lines, not the chroma, are interpolated to full size and applied to the full
lightness, so that colour ends where the picture's own edge is. Two things differ, because the filter's averaged
offsets blur the map (measured: worse than bilinear interpolation on photographs). Every cell's line passes through the
cell's own chroma; and the map is sharpened first by what interpolation and averaging take from it, so that the average
of the result over a cell is the map's value again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped, UInt8, UInt16
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.chroma import lab

#: Cells of the small map to each side over which a line is fitted.
RADIUS = 1

#: Variance of L* at which the slope is half of what least squares gives: in flatter areas lightness says little.
EPSILON = 100.0

# Passes of the sharpening; each takes back what the one before left blurred.
_SHARPEN_PASSES = 2


@dataclass(frozen=True)
class GuidedUpsampler:
    """A small chroma map made ready to be read at full size, any rows at a time.

    planes: slope, offset, lowest and highest value allowed, each for a* and b*, already at full width (32 bytes for
        each row of the small map and column of the picture). The limits are those of the map around every cell: the
        line may sharpen what the map says but not exceed it.
    height: of the full-size picture.
    """

    planes: Float32[np.ndarray, "4 2 small_height width"]
    height: int

    def rows(self, band: slice, lightness: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "2 rows width"]:
        """a* and b* of the rows of `band` of the full-size picture, of which `lightness` are the L* (0..100)."""
        upper, lower, down = _interpolation_indices(self.planes.shape[2], self.height, band)
        result = np.empty((2, *lightness.shape), np.float32)
        for channel, value in enumerate(result):
            # One plane at a time, so that they stay in the cache.
            slope, offset, lowest, highest = (
                _lerp(plane.take(upper, axis=0), plane.take(lower, axis=0), down[:, None])
                for plane in self.planes[:, channel]
            )
            np.multiply(slope, lightness, out=value)
            value += offset
            np.maximum(value, lowest, out=value)
            np.minimum(value, highest, out=value)
        return result


def fit_local_linear(
    chroma: Float32[np.ndarray, "small_height small_width 2"],
    guide: Float32[np.ndarray, "small_height small_width"],
    height: int,
    width: int,
) -> GuidedUpsampler:
    """Fit chroma by lightness around every cell of the small map.

    Args:
        chroma: a*, b*.
        guide: L* (0..100) of the picture, averaged over each cell.
        height: of the full-size picture.
        width: of the full-size picture.
    """
    colour = torch.from_numpy(chroma.astype(np.float64, order="C")).permute(2, 0, 1)
    light = torch.from_numpy(guide.astype(np.float64, order="C"))[None]
    mean_light, mean_colour = _box_filter(light), _box_filter(colour)
    variance = (_box_filter(light**2) - mean_light**2).clamp(min=0)
    covariance = _box_filter(light * colour) - mean_light * mean_colour
    # Of the squares around a cell, those with more contrast know more of its slope.
    slope = _box_filter(covariance) / (_box_filter(variance) + EPSILON)
    offset = _sharpen(colour, height, width) - slope * _sharpen(light, height, width)
    highest = F.max_pool2d(colour, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-colour, 3, stride=1, padding=1)
    planes = torch.stack([slope, offset, lowest, highest]).float().numpy()
    left, right, across = _interpolation_indices(planes.shape[-1], width, slice(0, width))
    return GuidedUpsampler(_lerp(planes.take(left, axis=-1), planes.take(right, axis=-1), across), height)


def _box_filter(planes: Float64[Tensor, "planes height width"]) -> Float64[Tensor, "planes height width"]:
    """Means over squares of 2 RADIUS + 1 cells, of which only those inside the map count."""
    return F.avg_pool2d(planes, 2 * RADIUS + 1, stride=1, padding=RADIUS, count_include_pad=False)


def _sharpen(
    planes: Float64[Tensor, "planes small_height small_width"], height: int, width: int
) -> Float64[Tensor, "planes small_height small_width"]:
    """Planes whose bilinear interpolation to height × width has about the given averages over the cells."""
    sharp = planes
    for _ in range(_SHARPEN_PASSES):
        blurred = _upsample_blur(_upsample_blur(sharp, height).mT, width).mT
        sharp = sharp + planes - blurred
    return sharp


def _upsample_blur(planes: Float64[Tensor, "planes cells any"], full: int) -> Float64[Tensor, "planes cells any"]:
    """Averages over the cells of their own interpolation to `full` places, along the columns.

    A neighbour's share is the mean of max(0, x) over the places of a cell, x from -1/2 to 1/2: (1 - 1/n²) / 8 for an
    odd number n of places, taken for any.
    """
    share = (1 - (planes.shape[1] / full) ** 2) / 8
    padded = F.pad(planes, (0, 0, 1, 1), mode="replicate")
    return (1 - 2 * share) * planes + share * (padded[:, :-2] + padded[:, 2:])


def _interpolation_indices(
    small: int, full: int, band: slice
) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " places"]]:
    """The two cells between which each place lies, and how far (0..1) it is from the first to the second."""
    places = (np.arange(band.start, band.stop) + 0.5) * small / full - 0.5
    places = places.clip(0, small - 1)
    first = places.astype(np.intp)
    return first, np.minimum(first + 1, small - 1), (places - first).astype(np.float32)


def _lerp(
    first: Float32[np.ndarray, "*shape"], second: Float32[np.ndarray, "*shape"], weight: Float32[np.ndarray, "*_"]
) -> Float32[np.ndarray, "*shape"]:
    """Linear interpolation; exact where both are equal."""
    second = second - first
    second *= weight
    second += first
    return second


def downsample(
    plane: Float32[np.ndarray, "height width"], height: int, width: int
) -> Float32[np.ndarray, "small_height small_width"]:
    """Average one plane down to a smaller size."""
    small = Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.HAMMING)
    return np.array(small, np.float32)


Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
ChromaMap = Float32[np.ndarray, "small_height small_width 2"]

#: Full-size chroma [rows, width, 2] of some rows, and which they are, to the chroma that they get instead.
ChromaHook = Callable[[Float32[np.ndarray, "rows width 2"], slice], Float32[np.ndarray, "rows width 2"]]

#: Pixels in a band of rows: enough that calling numpy costs little beside computing, few enough that the planes worked
#: on (256 KB each) stay in a core's cache. Measured best of 2^13 to 2^17.
BAND_PIXELS = 1 << 16


def lightness(pixels: Pixels, *, band_pixels: int = BAND_PIXELS) -> Float32[np.ndarray, "height width"]:
    """L* (0..100) of sRGB pixels of 8 or 16 bits."""
    result = np.empty(pixels.shape[:2], np.float32)

    def fill(band: slice) -> None:
        result[band] = _root_to_lightness(lab.luminance_root(pixels[band]))

    _map_row_bands(fill, pixels.shape, band_pixels)
    return result


def apply_chroma(
    pixels: Pixels, chroma: ChromaMap, *, chroma_hook: ChromaHook | None = None, band_pixels: int = BAND_PIXELS
) -> Shaped[np.ndarray, "height width 3"]:
    """The picture with its own L* and the chroma of a map, as pixels of the same type.

    Args:
        pixels: sRGB; of a coloured picture only the lightness is used.
        chroma: a*, b* of CIELab (D65) of any size; zero chroma leaves a grey pixel as it is, to the bit.
        adjust: may change the full-size chroma of a band of rows before what sRGB cannot show is reduced. It is
            called from several threads at once, in any order.
        band_pixels: about how many pixels are worked on at a time; the result does not depend on it.
    """
    guided = _guided_upsampler(pixels, chroma, band_pixels)
    result = np.empty_like(pixels)

    def fill(band: slice) -> None:
        root = lab.luminance_root(pixels[band])
        full = guided.rows(band, _root_to_lightness(root))
        if chroma_hook is not None:
            full = np.moveaxis(chroma_hook(np.stack([*full], axis=-1), band), -1, 0)
        result[band] = lab.linear_to_srgb(_clip_to_gamut(root, full), pixels.dtype)

    _map_row_bands(fill, pixels.shape, band_pixels)
    return result


def _guided_upsampler(pixels: Pixels, chroma: ChromaMap, band_pixels: int) -> GuidedUpsampler:
    """The chroma map with its lines, at most as large as the picture."""
    height, width = min(pixels.shape[0], chroma.shape[0]), min(pixels.shape[1], chroma.shape[1])
    if chroma.shape[:2] != (height, width):
        chroma = np.stack([downsample(chroma[..., index], height, width) for index in range(2)], axis=-1)
    # The guide is averaged along the rows band by band, then across them.
    narrow = np.empty((pixels.shape[0], width), np.float32)

    def fill(band: slice) -> None:
        light = _root_to_lightness(lab.luminance_root(pixels[band]))
        narrow[band] = downsample(light, len(light), width)

    _map_row_bands(fill, pixels.shape, band_pixels)
    return fit_local_linear(chroma, downsample(narrow, height, width), *pixels.shape[:2])


def _clip_to_gamut(
    root: Float32[np.ndarray, "rows width"], chroma: Float32[np.ndarray, "2 rows width"]
) -> Float32[np.ndarray, "3 rows width"]:
    """Linear sRGB of colours, those that sRGB does not have with less chroma."""
    linear = lab.lab_to_linear_rgb(root, *chroma)
    stray = lab.out_of_gamut(linear)
    if stray.any():
        root, a, b = root[stray], chroma[0][stray], chroma[1][stray]
        scale = lab.max_chroma_scale(root, a, b)
        linear[:, stray] = lab.lab_to_linear_rgb(root, a * scale, b * scale)
    return linear


def _root_to_lightness(root: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
    return np.float32(116) * root - np.float32(16)


def _map_row_bands(function: Callable[[slice], None], shape: tuple[int, ...], band_pixels: int) -> None:
    """Do `work` for bands of rows, on as many threads as torch may use; numpy frees the interpreter meanwhile."""
    rows = max(1, band_pixels // shape[1])
    bands = [slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows)]
    threads = min(torch.get_num_threads(), len(bands))
    if threads == 1:
        for band in bands:
            function(band)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(function, bands):
            pass
