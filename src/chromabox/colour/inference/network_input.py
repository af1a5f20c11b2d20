"""Properties of an image that matter before a network sees it: screens, grain and fading of old prints; colours.

:func:`prepare_lightness` changes only the input of the network. The colourised image keeps the lightness of the
original. The thresholds were chosen on degraded versions of validation photographs (benchmarks/old_photographs.py).
"""

import numpy as np
from jaxtyping import Float32
from PIL import Image

from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.io.images import Pixels, to_uint8

Plane = Float32[np.ndarray, "_ _"]

#: Short side at which the noise is estimated.
NOISE_SIDE = 256
#: Product of the estimated noise and of the standard deviation of L* above which the resolution is reduced. Both are
#: high for dots: dot screens have 300 to 1000 on average, scans with one bit per pixel 3000, and grain with a standard
#: deviation of 15 has 360 and with 10, which the model tolerates, 240. Of 150 validation photographs, one has more.
MAX_NOISE_TIMES_CONTRAST = 280.0
#: Factors by which the resolution may be reduced. The first one is used at which the estimated noise is at most
#: ``MAX_REDUCED_NOISE``: it is below 8 if the dots have disappeared, and 15 to 40 if they are still visible.
REDUCTIONS, MAX_REDUCED_NOISE = (2, 3, 4, 5, 6, 8), 10.0
#: A photograph is faded if its lightness, from the 1st to the 99th percentile, has a smaller range than this. Of
#: 150 validation photographs, none has less.
FADED_RANGE = 45.0
#: Range to which the lightness of a faded photograph is stretched, and below which an image is uniform.
STRETCHED_RANGE, UNIFORM_RANGE = (2.0, 97.0), 6.0


def prepare_lightness(plane: Plane) -> Plane:
    """Return the lightness L* (0 to 100) that a photo model is given instead of the lightness of an old print.

    * Dots (a printing screen, one bit per pixel) and strong grain are removed by reducing the resolution as little as
      possible. The size may change, but not the aspect ratio.
    * The lightness of a faded print is stretched linearly. A border, up to a tenth of each side, is ignored.

    Other images are returned unchanged.
    """
    smooth = _remove_dots(plane)
    height, width = smooth.shape
    inner = smooth[height // 10 : height - height // 10, width // 10 : width - width // 10]
    black, white = np.percentile(inner, (1, 99))
    if not UNIFORM_RANGE < white - black < FADED_RANGE:
        return smooth
    low, high = STRETCHED_RANGE
    stretched = np.float32(low) + (smooth - np.float32(black)) * np.float32((high - low) / (white - black))
    return stretched.clip(0, 100)


def _remove_dots(plane: Plane) -> Plane:
    """Return the image without dots and strong grain, or unchanged if it has none or they cannot be removed."""
    height, width = reduced_size(plane, NOISE_SIDE)
    small = resize_plane(plane, height, width)
    if estimate_noise(small) * small.std() <= MAX_NOISE_TIMES_CONTRAST:
        return plane
    for factor in REDUCTIONS:
        reduced = resize_plane(small, max(1, height // factor), max(1, width // factor))
        if estimate_noise(reduced) <= MAX_REDUCED_NOISE:
            return resize_plane(reduced, height, width).clip(0, 100)
    return plane


def estimate_noise(plane: Plane) -> float:
    """Return the estimated standard deviation of the noise of an image, in the unit of its values.

    The image is convolved with the difference of two Laplacians, which is 0 for linear and quadratic gradients. An
    image with a side below three pixels has no estimate, and the result is 0. Source: Immerkær 1996, "Fast noise
    variance estimation", Computer Vision and Image Understanding 64, equation 4.
    """
    if min(plane.shape) < 3:
        return 0.0
    rows = plane[:-2] - 2 * plane[1:-1] + plane[2:]
    response = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.abs(response).mean(dtype=np.float64) * np.sqrt(np.pi / 2) / 6)


def reduced_size(plane: Plane, side: int) -> tuple[int, int]:
    """Return the height and width after reducing the short side to at most ``side`` pixels."""
    scale = min(1.0, side / min(plane.shape))
    height, width = (max(1, round(length * scale)) for length in plane.shape)
    return height, width


def resize_plane(plane: Plane, height: int, width: int) -> Plane:
    """Resize one plane by bicubic interpolation with antialiasing."""
    resized = Image.fromarray(np.asarray(plane, np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized, np.float32)


#: Short side to which an image is reduced before its colours are examined.
EXAMINED_SIDE = 64
#: Distance from the tint, in a* and b*, that more than 1 in 20 positions of an image in colour exceed. 6 % of 600
#: validation photographs do not reach it, mostly snow, sky and night scenes. 7 % of their toned versions, with stains
#: and noise, exceed it.
MIN_COLOUR_SPREAD = 9.0
#: Mean chroma below which no colour is noticed. 2.3 is the just noticeable difference in CIELAB (Mahy et al. 1994). Of
#: the results for 35 validation photographs, the palest had 3.1.
MIN_VISIBLE_CHROMA = 2.3


def is_in_colour(pixels: Pixels) -> bool:
    """Return whether an image has more colours than the tint of a toned print or of yellowed paper.

    The tint is a cubic function of lightness, fitted by least squares. The image is in colour if the distance from the
    tint exceeds ``MIN_COLOUR_SPREAD`` in more than 5 % of its area.
    """
    lab = _examined_lab(pixels)
    powers = np.vander(lab[:, 0] / 100, 4)
    tint = powers @ np.linalg.lstsq(powers, lab[:, 1:], rcond=None)[0]
    return bool(np.percentile(np.hypot(*(lab[:, 1:] - tint).T), 95) > MIN_COLOUR_SPREAD)


def is_nearly_grey(pixels: Pixels) -> bool:
    """Return whether nobody would notice a colour: the mean chroma is below ``MIN_VISIBLE_CHROMA``."""
    return bool(np.hypot(*_examined_lab(pixels)[:, 1:].T).mean() < MIN_VISIBLE_CHROMA)


def is_black_and_white(pixels: Pixels) -> bool:
    """Return whether at least 90 % of the values are within 8 of 0 or 255, in 8 bits.

    The lightness of black and of white pixels leaves no room for chroma, so that such an image cannot be colourised.
    """
    values = to_uint8(pixels)
    return bool(((values <= 8) | (values >= 247)).mean() >= 0.9)


def _examined_lab(pixels: Pixels) -> Float32[np.ndarray, "positions 3"]:
    """Return CIELAB of the image, averaged over blocks so that the noise of JPEG compression and of scanners is low."""
    factor = max(1, min(pixels.shape[:2]) // EXAMINED_SIDE)
    image = Image.fromarray(to_uint8(pixels))
    return rgb_to_lab(np.asarray(image.reduce(factor))).reshape(-1, 3)
