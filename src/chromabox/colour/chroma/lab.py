"""Conversion between sRGB and CIELAB (white point D65, 2° observer).

Formulas and constants: IEC 61966-2-1 (sRGB and its transfer function) and CIE 15:2004, section 8.2.1.1 (CIELAB). The
functions for whole images represent lightness by the root f = (L* + 16) / 116, which is CIE's f(Y / Yn). The other two
coordinates of a colour follow from the root: f(X / Xn) = f + a* / 500 and f(Z / Zn) = f - b* / 200.
"""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8, UInt16

Values = Float32[np.ndarray, "*shape"]
LinearRgb = Float32[np.ndarray, "3 *shape"]
Colours = Float32[np.ndarray, " colours"]

# Matrix from CIE XYZ, relative to D65 white, to linear sRGB (IEC 61966-2-1), its published inverse, the white point.
_RGB_FROM_XYZ = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
_XYZ_FROM_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
)
_WHITE_POINT = np.array([0.95047, 1.0, 1.08883])
# Scale each row to a sum of one: white is then exactly (1, 1, 1), and grey stays grey.
_RGB_FROM_RELATIVE_XYZ = _RGB_FROM_XYZ * _WHITE_POINT
_RGB_FROM_RELATIVE_XYZ /= _RGB_FROM_RELATIVE_XYZ.sum(axis=1, keepdims=True)
#: Weights that convert linear sRGB to luminance Y, where Y of white is 1.
LUMINANCE_WEIGHTS = np.linalg.inv(_RGB_FROM_RELATIVE_XYZ)[1].astype(np.float32)
#: Because each row sums to one, linear sRGB is Y + X_WEIGHT (X - Y) + Z_WEIGHT (Z - Y), with X and Z relative to white.
X_WEIGHT, Z_WEIGHT = (_RGB_FROM_RELATIVE_XYZ[:, column].astype(np.float32) for column in (0, 2))
#: Root below which CIELAB replaces the cube function by its tangent, and the slope of the tangent.
KNEE = np.float32(6 / 29)
KNEE_SLOPE = np.float32(3 * (6 / 29) ** 2)
_KNEE_CUBE = np.float32((6 / 29) ** 3)
#: Tolerance by which linear sRGB may exceed [0, 1]. The excess is clipped, which changes L* by less than 0.1.
GAMUT_TOLERANCE = np.float32(1e-4)
# Number of entries in the table from linear sRGB to 8 bits. Each 8-bit level has at least 20 entries.
_TABLE_SIZE = 1 << 16


def luminance_root(pixels: UInt8[np.ndarray, "*shape 3"] | UInt16[np.ndarray, "*shape 3"]) -> Values:
    """Return f(Y / Yn) of 8- or 16-bit sRGB pixels, from 4/29 (black) to 1 (white)."""
    linear = _srgb_to_linear_table(pixels.dtype)
    luminance = LUMINANCE_WEIGHTS[0] * linear[pixels[..., 0]]
    luminance += LUMINANCE_WEIGHTS[1] * linear[pixels[..., 1]]
    luminance += LUMINANCE_WEIGHTS[2] * linear[pixels[..., 2]]
    above = np.maximum(luminance, _KNEE_CUBE)
    return np.cbrt(above) + (luminance - above) / KNEE_SLOPE


def lab_to_linear_rgb(root: Values, a: Values, b: Values) -> LinearRgb:
    """Return unclipped linear sRGB of colours given by root, a* and b*. Colours with a* = b* = 0 are exactly grey."""
    y = _root_to_tristimulus(root)
    x = _root_to_tristimulus(root + a * np.float32(1 / 500)) - y
    z = _root_to_tristimulus(root - b * np.float32(1 / 200)) - y
    linear = np.empty((3, *root.shape), np.float32)
    for plane, x_weight, z_weight in zip(linear, X_WEIGHT, Z_WEIGHT, strict=True):
        np.multiply(x, x_weight, out=plane)
        plane += z_weight * z
        plane += y
    return linear


def out_of_gamut(linear: LinearRgb) -> Bool[np.ndarray, "*shape"]:
    """Return a mask of the linear sRGB colours outside the gamut."""
    return (linear.min(axis=0) < -GAMUT_TOLERANCE) | (linear.max(axis=0) > 1 + GAMUT_TOLERANCE)


def max_chroma_scale(root: Colours, a: Colours, b: Colours) -> Colours:
    """Return the largest scale in [0, 1] for a* and b* at which the colour is in the sRGB gamut.

    The in-gamut colours of one lightness and hue do not always form a single interval from grey outwards: bright
    yellows have a gap. The search therefore starts at scale 1, decreases the scale in steps too short to skip an
    in-gamut colour (`_gamut_step`), and ends at the first in-gamut colour.
    """
    result = np.ones_like(root)
    index, scale, max_step = np.arange(len(root)), result.copy(), result.copy()
    for _ in range(40):  # Nearly all colours need fewer than ten steps.
        step = _gamut_step(root, a, b, scale, max_step)
        outside = np.flatnonzero(step)
        if not outside.size:
            break
        index, root, a, b, step = (values[outside] for values in (index, root, a, b, step))
        scale = np.maximum(scale[outside] - step, 0)
        max_step = np.minimum(2 * step, scale)
        result[index] = scale
    return result


def _gamut_step(root: Colours, a: Colours, b: Colours, scale: Colours, max_step: Colours) -> Colours:
    """Return a decrease of the scale, at most `max_step`, that skips no in-gamut colour; 0 for an in-gamut colour.

    To bring an out-of-gamut channel back to its bound, the scale must decrease by at least the excess of the channel
    divided by its steepest slope in the interval from `scale - max_step` to `scale`. X and Z are cubes of linear
    functions of the scale. Their slopes are therefore steepest at an end of the interval.
    """
    x, z = a * np.float32(1 / 500), b * np.float32(-1 / 200)
    linear = lab_to_linear_rgb(root, a * scale, b * scale)
    ends = np.stack([scale, scale - max_step])
    above_x, above_z = (np.maximum(root + slope * ends, KNEE) for slope in (x, z))
    (x_near, x_far), (z_near, z_far) = x * (3 * above_x * above_x), z * (3 * above_z * above_z)
    step = np.zeros_like(root)
    for channel, (x_weight, z_weight) in enumerate(zip(X_WEIGHT, Z_WEIGHT, strict=True)):
        for sign, excess in ((1, linear[channel] - 1), (-1, -linear[channel])):
            beyond = np.flatnonzero(excess > GAMUT_TOLERANCE)
            if beyond.size:
                steepest = np.maximum(sign * x_weight * x_near[beyond], sign * x_weight * x_far[beyond])
                steepest += np.maximum(sign * z_weight * z_near[beyond], sign * z_weight * z_far[beyond])
                # Aim for half the tolerance to ensure termination. A slope of the wrong sign gives `max_step`.
                needed = (excess[beyond] - GAMUT_TOLERANCE / 2) / np.maximum(steepest, np.float32(1e-6))
                step[beyond] = np.maximum(step[beyond], np.minimum(needed, max_step[beyond]))
    return step


def _root_to_tristimulus(root: Values) -> Values:
    """Return the tristimulus value relative to white: the cube of the root above ``KNEE``, and its tangent below."""
    above = np.maximum(root, KNEE)
    cube = above * above
    cube *= above
    below = np.subtract(root, above, out=above)
    below *= KNEE_SLOPE
    cube += below
    return cube


def linear_to_srgb(
    linear: LinearRgb, dtype: np.dtype[np.uint8] | np.dtype[np.uint16]
) -> Shaped[np.ndarray, "*shape 3"]:
    """Convert linear sRGB to 8- or 16-bit sRGB pixels, with clipping."""
    pixels = np.empty((*linear.shape[1:], 3), dtype)
    for channel, plane in enumerate(linear):
        plane = plane.clip(0, 1)
        if dtype == np.uint8:
            plane *= _TABLE_SIZE - 1
            plane += 0.5
            pixels[..., channel] = _linear_to_uint8_table()[plane.astype(np.intp)]
        else:
            pixels[..., channel] = _srgb_transfer(plane) * np.float32(65535) + np.float32(0.5)
    return pixels


def _srgb_transfer(linear: Values) -> Values:
    """Apply the sRGB transfer function, from linear to encoded values."""
    power = np.float32(1.055) * linear ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(linear <= 0.0031308, np.float32(12.92) * linear, power)


@cache
def _srgb_to_linear_table(dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> Float32[np.ndarray, " levels"]:
    """Return the linear value of every level of the dtype."""
    encoded = np.linspace(0, 1, np.iinfo(dtype).max + 1)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _linear_to_uint8_table() -> UInt8[np.ndarray, " entries"]:
    """Return the nearest 8-bit levels for evenly spaced linear values."""
    return np.rint(255 * _srgb_transfer(np.linspace(0, 1, _TABLE_SIZE, dtype=np.float32))).astype(np.uint8)


def rgb_to_lab(rgb: UInt8[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """Convert 8-bit sRGB to L* (0 to 100), a* and b* (about −110 to 110). For greys, a* and b* are exactly 0."""
    linear = _srgb_to_linear_table(np.dtype(np.uint8))[rgb]
    xyz = linear @ _XYZ_FROM_RGB.T / _WHITE_POINT.astype(np.float32)
    f = np.where(xyz > _KNEE_CUBE, np.cbrt(xyz), xyz / KNEE_SLOPE + np.float32(4 / 29))
    lab = np.empty_like(f)
    lab[..., 0] = 116 * f[..., 1] - 16
    lab[..., 1] = 500 * (f[..., 0] - f[..., 1])
    lab[..., 2] = 200 * (f[..., 1] - f[..., 2])
    lab[(rgb == rgb[..., :1]).all(-1), 1:] = 0
    return lab


def lightness_to_grey(lightness: Values) -> Values:
    """Return the sRGB value in [0, 1] of the grey with this L* (0 to 100)."""
    linear = _root_to_tristimulus((lightness + np.float32(16)) * np.float32(1 / 116))
    return _srgb_transfer(np.clip(linear, 0, 1))


def lab_to_rgb(lab: Float32[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Convert CIELAB to 8-bit sRGB. Channels of out-of-gamut colours are clipped."""
    root = (lab[..., 0] + np.float32(16)) * np.float32(1 / 116)
    return linear_to_srgb(lab_to_linear_rgb(root, lab[..., 1], lab[..., 2]), np.dtype(np.uint8))
