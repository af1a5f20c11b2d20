"""sRGB and CIELab (D65, 2° observer) on small tensors, for training; full-size pictures go through lab.py.

Formulas and constants: IEC 61966-2-1 (sRGB) and CIE 15:2004, section 8.2.1 (L*, a*, b*).
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

XYZ_FROM_RGB = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE_D65 = torch.tensor([0.95047, 1.0, 1.08883])
_KNEE = (6 / 29) ** 3


def lab_from_rgb(rgb: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """L* in 0 … 100, a* and b* in about −110 … 110, float32, of 8-bit sRGB."""
    xyz = _linear_of_byte().to(rgb.device)[rgb.int()] @ XYZ_FROM_RGB.to(rgb.device).T / WHITE_D65.to(rgb.device)
    f = torch.where(xyz > _KNEE, xyz.clamp(min=_KNEE) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def rgb_from_lab(lab: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch height width 3"]:
    """sRGB in [0, 1]; what lies outside its gamut is clipped, each channel for itself."""
    lightness, a, b = lab.float().unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], -1)
    xyz = torch.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * WHITE_D65.to(lab.device)
    linear = (xyz @ torch.linalg.inv(XYZ_FROM_RGB).to(lab.device).T).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _linear_of_byte() -> Float[Tensor, "256"]:
    """Linear light of every 8-bit sRGB value."""
    value = torch.arange(256, dtype=torch.float64) / 255
    return torch.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).float()
