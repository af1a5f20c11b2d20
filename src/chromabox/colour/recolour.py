"""A picture and a small chroma map in, the picture in colour out: its own L* kept exactly, at full size.

The map is brought to full size with the picture's lightness as the guide (guided.py). Where sRGB has no colour of that
lightness, hue and chroma, chroma gives way as far as it must, and lightness and hue stay (lab.py). Work goes in bands
of rows that stay in a core's cache, so memory beyond the two pictures does not grow with them.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8, UInt16

from chromabox.colour import lab
from chromabox.colour.guided import GuidedMap, fit_lines, shrink

Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
Chroma = Float32[np.ndarray, "small_height small_width 2"]
#: Full-size chroma [rows, width, 2] of some rows, and which they are, to the chroma that they get instead.
Adjust = Callable[[Float32[np.ndarray, "rows width 2"], slice], Float32[np.ndarray, "rows width 2"]]

#: Pixels in a band of rows: enough that calling numpy costs little beside computing, few enough that the planes worked
#: on (256 KB each) stay in a core's cache. Measured best of 2^13 to 2^17.
BAND_PIXELS = 1 << 16


def lightness(pixels: Pixels, *, band_pixels: int = BAND_PIXELS) -> Float32[np.ndarray, "height width"]:
    """L* (0..100) of sRGB pixels of 8 or 16 bits."""
    result = np.empty(pixels.shape[:2], np.float32)

    def fill(band: slice) -> None:
        result[band] = _lightness(lab.root(pixels[band]))

    _for_bands(fill, pixels.shape, band_pixels)
    return result


def recolour(
    pixels: Pixels, chroma: Chroma, *, adjust: Adjust | None = None, band_pixels: int = BAND_PIXELS
) -> Shaped[np.ndarray, "height width 3"]:
    """The picture with its own L* and the chroma of a map, as pixels of the same type.

    Args:
        pixels: sRGB; of a coloured picture only the lightness is used.
        chroma: a*, b* of CIELab (D65) of any size; zero chroma leaves a grey pixel as it is, to the bit.
        adjust: may change the full-size chroma of a band of rows before what sRGB cannot show is reduced. It is
            called from several threads at once, in any order.
        band_pixels: about how many pixels are worked on at a time; the result does not depend on it.
    """
    guided = _guided_map(pixels, chroma, band_pixels)
    result = np.empty_like(pixels)

    def fill(band: slice) -> None:
        root = lab.root(pixels[band])
        full = guided.rows(band, _lightness(root))
        if adjust is not None:
            full = np.moveaxis(adjust(np.stack([*full], axis=-1), band), -1, 0)
        result[band] = lab.encode(_in_gamut(root, full), pixels.dtype)

    _for_bands(fill, pixels.shape, band_pixels)
    return result


def _guided_map(pixels: Pixels, chroma: Chroma, band_pixels: int) -> GuidedMap:
    """The chroma map with its lines, at most as large as the picture."""
    height, width = min(pixels.shape[0], chroma.shape[0]), min(pixels.shape[1], chroma.shape[1])
    if chroma.shape[:2] != (height, width):
        chroma = np.stack([shrink(chroma[..., index], height, width) for index in range(2)], axis=-1)
    # The guide is averaged along the rows band by band, then across them.
    narrow = np.empty((pixels.shape[0], width), np.float32)

    def fill(band: slice) -> None:
        light = _lightness(lab.root(pixels[band]))
        narrow[band] = shrink(light, len(light), width)

    _for_bands(fill, pixels.shape, band_pixels)
    return fit_lines(chroma, shrink(narrow, height, width), *pixels.shape[:2])


def _in_gamut(
    root: Float32[np.ndarray, "rows width"], chroma: Float32[np.ndarray, "2 rows width"]
) -> Float32[np.ndarray, "3 rows width"]:
    """Linear sRGB of colours, those that sRGB does not have with less chroma."""
    linear = lab.linear_rgb(root, *chroma)
    stray = lab.outside(linear)
    if stray.any():
        root, a, b = root[stray], chroma[0][stray], chroma[1][stray]
        scale = lab.fitting_scale(root, a, b)
        linear[:, stray] = lab.linear_rgb(root, a * scale, b * scale)
    return linear


def _lightness(root: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
    return np.float32(116) * root - np.float32(16)


def _for_bands(work: Callable[[slice], None], shape: tuple[int, ...], band_pixels: int) -> None:
    """Do `work` for bands of rows, on as many threads as torch may use; numpy frees the interpreter meanwhile."""
    rows = max(1, band_pixels // shape[1])
    bands = [slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows)]
    threads = min(torch.get_num_threads(), len(bands))
    if threads == 1:
        for band in bands:
            work(band)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, bands):
            pass
