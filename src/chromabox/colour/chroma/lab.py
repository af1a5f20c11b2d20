"""CIELab and sRGB, plane by plane, fast enough for every pixel of a photograph.

All numbers follow IEC 61966-2-1 (sRGB and its curve) and CIE 15:2004, 8.2.1.1 (CIELab, white point D65). The working
quantity is the root f = (L* + 16) / 116, CIE's f(Y / Yn): a colour's other two coordinates lie beside it, f(X / Xn) =
f + a* / 500 and f(Z / Zn) = f - b* / 200.

sRGB and CIELab (D65, 2° observer) on small tensors, for training; full-size pictures go through lab.py.

Formulas and constants: IEC 61966-2-1 (sRGB) and CIE 15:2004, section 8.2.1 (L*, a*, b*).
"""

from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped, UInt8, UInt16
from torch import Tensor

# Linear sRGB from CIE XYZ relative to D65 white (IEC 61966-2-1), and that white.
_RGB_FROM_XYZ = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)
_WHITE_POINT = np.array([0.95047, 1.0, 1.08883])
_RGB_FROM_RELATIVE_XYZ = _RGB_FROM_XYZ * _WHITE_POINT

# White is (1, 1, 1) to the last digit, so that grey stays grey: every row's sum is one.
_RGB_FROM_RELATIVE_XYZ /= _RGB_FROM_RELATIVE_XYZ.sum(axis=1, keepdims=True)

#: Luminance Y of white = 1 from linear sRGB.
LUMINANCE_WEIGHTS = np.linalg.inv(_RGB_FROM_RELATIVE_XYZ)[1].astype(np.float32)

#: As the rows' sums are one, linear sRGB is Y + X_WEIGHT (X - Y) + Z_WEIGHT (Z - Y), with X and Z relative to white.
X_WEIGHT, Z_WEIGHT = (_RGB_FROM_RELATIVE_XYZ[:, column].astype(np.float32) for column in (0, 2))

#: Root below which CIELab's cube gives way to its own tangent, and that tangent's slope.
KNEE = np.float32(6 / 29)
KNEE_SLOPE = np.float32(3 * (6 / 29) ** 2)
_KNEE_CUBE = np.float32((6 / 29) ** 3)

#: How far linear sRGB may leave [0, 1] and still count as inside: it is clipped, which moves L* by less than 0.1.
GAMUT_TOLERANCE = np.float32(1e-4)

# Slope that counts as none: with it, any excess lasts as far as the search may reach.
_MIN_SLOPE = np.float32(1e-6)

# Steps towards the gamut; nearly all colours need under ten.
_MAX_STEPS = 40

# Entries of the table that turns linear sRGB into 8 bits; near black, where they are fewest, 20 to a level.
_TABLE_SIZE = 1 << 16


def luminance_root(
    pixels: UInt8[np.ndarray, "*shape 3"] | UInt16[np.ndarray, "*shape 3"],
) -> Float32[np.ndarray, "*shape"]:
    """f(Y / Yn) of sRGB pixels, from 4/29 (black) to 1 (white)."""
    linear = _srgb_to_linear_table(pixels.dtype)
    luminance = LUMINANCE_WEIGHTS[0] * linear[pixels[..., 0]]
    luminance += LUMINANCE_WEIGHTS[1] * linear[pixels[..., 1]]
    luminance += LUMINANCE_WEIGHTS[2] * linear[pixels[..., 2]]
    above = np.maximum(luminance, _KNEE_CUBE)
    luminance -= above
    luminance /= KNEE_SLOPE
    return np.add(np.cbrt(above, out=above), luminance, out=above)


def lab_to_linear_rgb(
    root: Float32[np.ndarray, "*shape"], a: Float32[np.ndarray, "*shape"], b: Float32[np.ndarray, "*shape"]
) -> Float32[np.ndarray, "3 *shape"]:
    """Linear sRGB, not clipped, of colours given by their root and their a*, b*; exactly grey where both are zero."""
    y = _root_to_tristimulus(root)
    x = _root_to_tristimulus(root + a * np.float32(1 / 500)) - y
    z = _root_to_tristimulus(root - b * np.float32(1 / 200)) - y
    linear = np.empty((3, *root.shape), np.float32)
    for channel in range(3):
        np.multiply(x, X_WEIGHT[channel], out=linear[channel])
        linear[channel] += Z_WEIGHT[channel] * z
        linear[channel] += y
    return linear


def out_of_gamut(linear: Float32[np.ndarray, "3 *shape"]) -> Bool[np.ndarray, "*shape"]:
    """Where sRGB has no such colour."""
    return (linear.min(axis=0) < -GAMUT_TOLERANCE) | (linear.max(axis=0) > 1 + GAMUT_TOLERANCE)


def max_chroma_scale(
    root: Float32[np.ndarray, " colours"], a: Float32[np.ndarray, " colours"], b: Float32[np.ndarray, " colours"]
) -> Float32[np.ndarray, " colours"]:
    """The largest scale in [0, 1] by which a* and b* can be multiplied so that the colour lies in sRGB.

    The colours of one lightness and hue that sRGB has are not always one stretch from grey outwards (bright yellows
    have a gap). So the search comes from outside, by steps too short to pass a colour that fits (_safe_step), and
    ends at the first that does.
    """
    result = np.ones_like(root)
    place, scale, reach = np.arange(len(root)), result.copy(), result.copy()
    for _ in range(_MAX_STEPS):
        step = _gamut_step(root, a, b, scale, reach)
        stray = np.flatnonzero(step)
        if not stray.size:
            break
        step = step[stray]
        place, root, a, b = place[stray], root[stray], a[stray], b[stray]
        scale = np.maximum(scale[stray] - step, 0)
        reach = np.minimum(2 * step, scale)
        result[place] = scale
    return result


def _gamut_step(
    root: Float32[np.ndarray, " colours"],
    a: Float32[np.ndarray, " colours"],
    b: Float32[np.ndarray, " colours"],
    scale: Float32[np.ndarray, " colours"],
    max_step: Float32[np.ndarray, " colours"],
) -> Float32[np.ndarray, " colours"]:
    """By how much the scale can fall, at most `reach`, without passing a colour that fits; zero where this one does.

    A channel beyond its bound comes back to it no sooner than after its excess divided by its steepest slope within
    reach. X and Z are cubes of what grows evenly with the scale, so their slopes are steepest at either end.
    """
    x, z = a * np.float32(1 / 500), b * np.float32(-1 / 200)
    linear = lab_to_linear_rgb(root, a * scale, b * scale)
    near, far = scale, scale - max_step
    x_near, x_far = x * _cube_derivative(root + x * near), x * _cube_derivative(root + x * far)
    z_near, z_far = z * _cube_derivative(root + z * near), z * _cube_derivative(root + z * far)
    step = np.zeros_like(root)
    for channel, (x_weight, z_weight) in enumerate(zip(X_WEIGHT, Z_WEIGHT, strict=True)):
        for sign, excess in ((1, linear[channel] - 1), (-1, -linear[channel])):
            beyond = np.flatnonzero(excess > GAMUT_TOLERANCE)
            if beyond.size:
                steepest = np.maximum(sign * x_weight * x_near[beyond], sign * x_weight * x_far[beyond])
                steepest += np.maximum(sign * z_weight * z_near[beyond], sign * z_weight * z_far[beyond])
                # Half the tolerance is the aim, so that the search ends; a falling slope leads nowhere within reach.
                needed = (excess[beyond] - GAMUT_TOLERANCE / 2) / np.maximum(steepest, _MIN_SLOPE)
                step[beyond] = np.maximum(step[beyond], np.minimum(needed, max_step[beyond]))
    return step


def _root_to_tristimulus(root: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Tristimulus value relative to white: the cube above the knee, its tangent below."""
    above = np.maximum(root, KNEE)
    cube = above * above
    cube *= above
    below = np.subtract(root, above, out=above)
    below *= KNEE_SLOPE
    cube += below
    return cube


def _cube_derivative(root: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Derivative of the cube and its tangent."""
    above = np.maximum(root, KNEE)
    return 3 * above * above


def linear_to_srgb(
    linear: Float32[np.ndarray, "3 *shape"], dtype: np.dtype[np.uint8] | np.dtype[np.uint16]
) -> Shaped[np.ndarray, "*shape 3"]:
    """sRGB pixels of 8 or 16 bits of linear sRGB, clipped; the linear values are overwritten."""
    pixels = np.empty((*linear.shape[1:], 3), dtype)
    np.clip(linear, 0, 1, out=linear)
    if dtype == np.uint8:
        linear *= _TABLE_SIZE - 1
        linear += 0.5
        table = _linear_to_uint8_table()
        for channel in range(3):
            pixels[..., channel] = table[linear[channel].astype(np.intp)]
    else:
        levels = _srgb_transfer(linear) * np.float32(65535) + np.float32(0.5)
        for channel in range(3):
            np.copyto(pixels[..., channel], levels[channel], casting="unsafe")
    return pixels


def _srgb_transfer(linear: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """The sRGB curve, from linear to encoded."""
    bent = np.float32(1.055) * linear ** np.float32(1 / 2.4) - np.float32(0.055)
    return np.where(linear <= 0.0031308, np.float32(12.92) * linear, bent)


@cache
def _srgb_to_linear_table(dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> Float32[np.ndarray, " levels"]:
    """Linear value of every level that pixels of this type can have."""
    encoded = np.linspace(0, 1, np.iinfo(dtype).max + 1)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _linear_to_uint8_table() -> UInt8[np.ndarray, " entries"]:
    """Nearest 8-bit level of evenly spaced linear values."""
    return np.rint(255 * _srgb_transfer(np.linspace(0, 1, _TABLE_SIZE, dtype=np.float32))).astype(np.uint8)


XYZ_FROM_RGB = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE_D65 = torch.tensor([0.95047, 1.0, 1.08883])
_XYZ_KNEE = (6 / 29) ** 3


def rgb_to_lab(rgb: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """L* in 0 … 100, a* and b* in about −110 … 110, float32, of 8-bit sRGB."""
    xyz = _byte_to_linear_table().to(rgb.device)[rgb.int()] @ XYZ_FROM_RGB.to(rgb.device).T / WHITE_D65.to(rgb.device)
    f = torch.where(xyz > _XYZ_KNEE, xyz.clamp(min=_XYZ_KNEE) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width 3"]:
    """sRGB in [0, 1]; what lies outside its gamut is clipped, each channel for itself."""
    lightness, a, b = lab.float().unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -1)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * WHITE_D65.to(lab.device)
    linear = (xyz @ torch.linalg.inv(XYZ_FROM_RGB).to(lab.device).T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _byte_to_linear_table() -> Float[Tensor, "256"]:
    """Linear light of every 8-bit sRGB value."""
    value = torch.arange(256, dtype=torch.float64) / 255
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).float()


def rgb_to_lab_array(colours: UInt8[np.ndarray, "colours 3"]) -> Float32[np.ndarray, "colours 3"]:
    """CIELab (D65) of 8-bit sRGB; a* and b* of greys are exactly 0."""
    lab = rgb_to_lab(torch.from_numpy(np.ascontiguousarray(colours))[None, None])[0, :, 0].numpy().T.copy()
    lab[(colours == colours[:, :1]).all(1), 1:] = 0
    return lab
