"""Application of a small chroma map to a full-size image, whose L* is preserved exactly.

The map is upsampled to full size with the lightness of the image as the guide. Where a colour is outside the sRGB
gamut, its chroma is reduced as little as possible (lab.py). Its lightness and hue are kept. The image is processed in
bands of rows that fit in a core's cache. Apart from the input and the result, memory use does not grow with the image.

The upsampling follows the fast guided filter (He & Sun 2015, arXiv:1505.00996, algorithm 2). On the small map, chroma
around every cell is fitted by a linear function of lightness. The coefficients, not the chroma, are interpolated to
full size and applied to the full-size lightness, which makes colours end at edges in the image. The filter averages
the offsets, which blurs the map: on photographs, its results were worse than those of bilinear interpolation.
Therefore, this module differs from the filter in two ways. The function of each cell passes through the chroma of the
cell. The map is first sharpened to compensate for interpolation and averaging, so that the average of the result over a
cell equals the value of the map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped
from PIL import Image

from chromabox.colour.chroma import lab
from chromabox.io.images import Pixels
from chromabox.runtime.parallel import map_row_bands

Plane = Float32[np.ndarray, "rows width"]
Planes = Float[np.ndarray, "planes height width"]
ChromaMap = Float32[np.ndarray, "small_height small_width 2"]
ChromaBand = Float32[np.ndarray, "rows width 2"]
#: Function that is called with the full-size chroma of a band of rows and with the band, and returns new chroma.
ChromaHook = Callable[[ChromaBand, slice], ChromaBand]

#: Radius, in cells of the small map, of the window over which a linear function is fitted.
RADIUS = 1
#: Regularisation: variance of L* at which the slope is half the least-squares slope.
EPSILON = 100.0
#: Approximate number of pixels in a band of rows. It does not affect the result. Of the measured values, 2^13 to
#: 2^17, this was the fastest.
BAND_PIXELS = 1 << 16


@dataclass(frozen=True)
class GuidedUpsampler:
    """Coefficients of a small chroma map, from which any band of rows of the full-size chroma can be computed.

    planes: slope, offset, minimum and maximum, each for a* and b*. They are already interpolated to the full width, and
        take 32 bytes for each row of the small map in each column of the image. The minimum and maximum are taken over
        the neighbourhood of each cell, so that the linear function can sharpen the map but not exceed its range.
    height: height of the full-size image.
    """

    planes: Float32[np.ndarray, "4 2 small_height width"]
    height: int

    def rows(self, band: slice, lightness: Plane) -> Float32[np.ndarray, "2 rows width"]:
        """Return a* and b* for the rows `band` of the full-size image. `lightness` is L* (0 to 100) of these rows."""
        upper, lower, down = interpolation_indices(self.planes.shape[2], self.height, band)
        result = np.empty((2, *lightness.shape), np.float32)
        # Processing one channel at a time keeps the planes in the cache.
        for planes, value in zip(self.planes.swapaxes(0, 1), result, strict=True):
            slope, offset, lowest, highest = (
                _lerp(plane.take(upper, axis=0), plane.take(lower, axis=0), down[:, None]) for plane in planes
            )
            np.multiply(slope, lightness, out=value)
            value += offset
            np.maximum(value, lowest, out=value)
            np.minimum(value, highest, out=value)
        return result


def fit_local_linear(
    chroma: ChromaMap, guide: Float32[np.ndarray, "small_height small_width"], height: int, width: int
) -> GuidedUpsampler:
    """Fit chroma (a*, b*) as a linear function of lightness around every cell of the small map.

    ``guide`` is L* (0 to 100) of the image, averaged over each cell. ``height`` and ``width`` are those of the
    full-size image.
    """
    colour = np.moveaxis(chroma, -1, 0).astype(np.float64, order="C")
    light = guide.astype(np.float64)[None]
    mean_light, mean_colour = box_filter(light), box_filter(colour)
    variance = np.maximum(box_filter(light**2) - mean_light**2, 0)
    covariance = box_filter(light * colour) - mean_light * mean_colour
    # Windows with more contrast determine the slope of a cell better and get more weight.
    slope = box_filter(covariance) / (box_filter(variance) + EPSILON)
    offset = _sharpen(colour, height, width) - slope * _sharpen(light, height, width)
    neighbours = np.stack(_window(colour, mode="edge"))
    planes = np.stack([slope, offset, neighbours.min(0), neighbours.max(0)]).astype(np.float32)
    left, right, across = interpolation_indices(planes.shape[-1], width, slice(0, width))
    return GuidedUpsampler(_lerp(planes.take(left, axis=-1), planes.take(right, axis=-1), across), height)


def box_filter(planes: Planes) -> Planes:
    """Return means over windows of ``2 * RADIUS + 1`` cells per side, cropped at the border of the map."""
    total, count = (reduce(np.add, _window(values, mode="constant")) for values in (planes, np.ones_like(planes[:1])))
    return total / count


def _window(planes: Planes, *, mode: Literal["constant", "edge"]) -> list[Planes]:
    """Return one shifted copy of the planes for each cell of the window.

    The padding is 0 (``constant``) or repeats the border values (``edge``).
    """
    height, width = planes.shape[1:]
    padded = np.pad(planes, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS)), mode=mode)
    shifts = range(2 * RADIUS + 1)
    return [padded[:, row : row + height, column : column + width] for row in shifts for column in shifts]


def _sharpen(
    planes: Float64[np.ndarray, "planes small_height small_width"], height: int, width: int
) -> Float64[np.ndarray, "planes small_height small_width"]:
    """Sharpen planes so that the cell averages of their interpolation to height × width equal the input values.

    The interpolation is bilinear. Along one axis, the weight of a neighbouring cell in a cell average is the mean of
    max(0, x) over the positions in a cell, where x is the offset from the centre of the cell, from -1/2 to 1/2. For an
    odd number n of positions, the mean is (1 - 1/n²) / 8. This value is used for any n.
    """
    sharp = planes
    for _ in range(2):  # The second pass reduces the blur left by the first pass.
        blurred = sharp
        for full in (height, width):
            weight = (1 - (blurred.shape[1] / full) ** 2) / 8
            padded = np.pad(blurred, ((0, 0), (1, 1), (0, 0)), mode="edge")
            blurred = (1 - 2 * weight) * blurred + weight * (padded[:, :-2] + padded[:, 2:])
            blurred = blurred.swapaxes(1, 2)
        sharp = sharp + planes - blurred
    return sharp


def interpolation_indices(
    small: int, full: int, band: slice
) -> tuple[np.ndarray, np.ndarray, Float32[np.ndarray, " positions"]]:
    """Return the two cells around each position of the band, and the weight (0 to 1) of the second cell."""
    positions = ((np.arange(band.start, band.stop) + 0.5) * small / full - 0.5).clip(0, small - 1)
    first = positions.astype(np.intp)
    return first, np.minimum(first + 1, small - 1), (positions - first).astype(np.float32)


def _lerp(
    first: Float32[np.ndarray, "*shape"], second: Float32[np.ndarray, "*shape"], weight: Float32[np.ndarray, "*_"]
) -> Float32[np.ndarray, "*shape"]:
    """Interpolate linearly. Where both values are equal, the result is exactly that value."""
    second = second - first
    second *= weight
    second += first
    return second


def resize_planes(
    planes: Float32[np.ndarray, "planes height width"], height: int, width: int, band: slice | None = None
) -> Float32[np.ndarray, "planes rows new_width"]:
    """Resize planes with bilinear interpolation, without antialiasing.

    The outer edges of input and output coincide, as with ``align_corners=False`` in PyTorch. Only the rows in ``band``
    of the result are computed; None selects all rows.
    """
    upper, lower, down = interpolation_indices(planes.shape[1], height, band or slice(0, height))
    left, right, across = interpolation_indices(planes.shape[2], width, slice(0, width))
    rows = _lerp(planes.take(upper, axis=1), planes.take(lower, axis=1), down[:, None])
    return _lerp(rows.take(left, axis=2), rows.take(right, axis=2), across)


def downsample(
    plane: Float32[np.ndarray, "height width"], height: int, width: int
) -> Float32[np.ndarray, "small_height small_width"]:
    """Downsample one plane by averaging."""
    small = Image.fromarray(np.ascontiguousarray(plane)).resize((width, height), Image.Resampling.HAMMING)
    return np.array(small, np.float32)


def lightness(pixels: Pixels) -> Float32[np.ndarray, "height width"]:
    """Return L* (0 to 100) of 8- or 16-bit sRGB pixels."""
    result = np.empty(pixels.shape[:2], np.float32)

    def fill(band: slice) -> None:
        result[band] = _root_to_lightness(lab.luminance_root(pixels[band]))

    map_row_bands(fill, pixels.shape, BAND_PIXELS)
    return result


def apply_chroma(
    pixels: Pixels, chroma: ChromaMap, *, chroma_hook: ChromaHook | None = None
) -> Shaped[np.ndarray, "height width 3"]:
    """Return an image with the L* of ``pixels`` and the chroma of a map, in the dtype of ``pixels``.

    Args:
        pixels: a grey or colour image in 8- or 16-bit sRGB, of which only the lightness is used.
        chroma: a* and b* of CIELAB (D65), on a map of any size. Zero chroma leaves a grey pixel unchanged, bit for bit.
        chroma_hook: function that may change the full-size chroma of a band of rows before out-of-gamut chroma is
            reduced. It is called concurrently from several threads, with the bands in any order.
    """
    height, width = min(pixels.shape[0], chroma.shape[0]), min(pixels.shape[1], chroma.shape[1])
    if chroma.shape[:2] != (height, width):
        chroma = np.stack([downsample(chroma[..., index], height, width) for index in range(2)], axis=-1)
    # Average the guide along the rows band by band, then along the columns.
    narrow = np.empty((pixels.shape[0], width), np.float32)

    def average_rows(band: slice) -> None:
        light = _root_to_lightness(lab.luminance_root(pixels[band]))
        narrow[band] = downsample(light, len(light), width)

    map_row_bands(average_rows, pixels.shape, BAND_PIXELS)
    guided = fit_local_linear(chroma, downsample(narrow, height, width), *pixels.shape[:2])
    result = np.empty_like(pixels)

    def recolour(band: slice) -> None:
        root = lab.luminance_root(pixels[band])
        full = guided.rows(band, _root_to_lightness(root))
        if chroma_hook is not None:
            full = np.moveaxis(chroma_hook(np.stack([*full], axis=-1), band), -1, 0)
        linear = lab.lab_to_linear_rgb(root, *full)
        outside = lab.out_of_gamut(linear)
        if outside.any():
            a, b = full[:, outside]
            scale = lab.max_chroma_scale(root[outside], a, b)
            linear[:, outside] = lab.lab_to_linear_rgb(root[outside], a * scale, b * scale)
        result[band] = lab.linear_to_srgb(linear, pixels.dtype)

    map_row_bands(recolour, pixels.shape, BAND_PIXELS)
    return result


def _root_to_lightness(root: Plane) -> Plane:
    return np.float32(116) * root - np.float32(16)
