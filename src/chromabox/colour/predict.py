"""One picture of any size in, the same picture in colour out, its own luminance kept.

The net says only which colours belong where, at the small size it was trained for; the fine detail is the
picture's own lightness L*, at full size. Where a colour of that lightness does not exist in sRGB, its chroma is
reduced and never its lightness.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from PIL import Image
from skimage.color import rgb2lab
from torch.nn import functional as F

from chromabox.colour.palette import annealed_mean
from chromabox.colour.trained import TrainedNet
from chromabox.errors import ChromaboxError, UsageError
from chromabox.files.images import (
    SUFFIXES,
    Picture,
    find_pictures,
    from_floats,
    read_picture,
    refuse_overwrite_of_input,
    write_picture,
)

#: Short side, in pixels, at which the net looks at a picture: the size that the shipped one was trained on.
WORKING_SIZE = 32
#: Suffixes that are written as they came; anything else becomes PNG.
KEPT_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp"}
#: Pixels that are converted at a time, so that memory beyond the picture itself stays flat.
BAND_PIXELS = 1 << 20

# Linear sRGB from CIE XYZ relative to D65 white (IEC 61966-2-1), and that white.
RGB_FROM_XYZ = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]],
    np.float32,
)
WHITE_D65 = np.array([0.95047, 1.0, 1.08883], np.float32)


def colour_picture(
    picture: Picture, trained: TrainedNet, *, temperature: float = 0.38, working_size: int = WORKING_SIZE
) -> Picture:
    """Colour one picture; alpha, EXIF and resolution are kept.

    Args:
        picture: grey or coloured; of a coloured one only the lightness is used.
        trained: the net and its palette.
        temperature: of the annealed mean: 0 takes the likeliest colour, 1 the mean (see ``annealed_mean``).
        working_size: short side in pixels at which the net sees the picture.
    """
    pixels = picture.floats
    chroma = predict_chroma(pixels, trained, temperature=temperature, working_size=working_size)
    return replace(picture, pixels=from_floats(with_chroma(pixels, chroma), picture.depth), was_grey=False)


@torch.no_grad()
def predict_chroma(
    pixels: Float32[np.ndarray, "height width 3"], trained: TrainedNet, *, temperature: float, working_size: int
) -> Float32[np.ndarray, "small_height small_width 2"]:
    """CIELab a* and b* of the picture at working size, by the net."""
    height, width = _working_shape(pixels.shape[:2], working_size, int(getattr(trained.net, "multiple", 8)))
    small = _resize(pixels.mean(axis=2), height, width)
    # The nets count grey as the mean of RGB/256; pixels are value/255.
    grey = torch.from_numpy(small)[None, None] * (255 / 256)
    logits = trained.net(grey)
    colours = annealed_mean(logits, trained.palette, temperature)[0] * (256 / 255)
    lab: Float32[np.ndarray, ...] = rgb2lab(colours.permute(1, 2, 0).clamp(0, 1).numpy()).astype(np.float32)
    return np.ascontiguousarray(lab[..., 1:])


def _working_shape(shape: tuple[int, ...], working_size: int, multiple: int) -> tuple[int, int]:
    """Height and width with the short side near ``working_size``, both multiples of what the net needs.

    A strip is not blown up: the long side stays under 16 times the short one.
    """
    scale = working_size / min(shape)
    height, width = (min(round(side * scale / multiple) * multiple, 16 * working_size) for side in shape)
    return max(height, multiple), max(width, multiple)


def _resize(
    plane: Float[np.ndarray, "height width"], height: int, width: int
) -> Float32[np.ndarray, "new_height new_width"]:
    """Resample one plane with the antialiasing of the area it comes from."""
    resized = Image.fromarray(np.asarray(plane, np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized, np.float32)


def with_chroma(
    pixels: Float32[np.ndarray, "height width 3"], chroma: Float32[np.ndarray, "small_height small_width 2"]
) -> Float32[np.ndarray, "height width 3"]:
    """The picture with its own L* and the given a*, b* (of any size), sRGB in [0, 1]."""
    height, width = pixels.shape[:2]
    small = torch.from_numpy(chroma).permute(2, 0, 1)[None]
    full = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    result = np.empty_like(pixels)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        lightness = rgb2lab(pixels[band])[..., :1].astype(np.float32)
        result[band] = lab_to_rgb_in_gamut(np.concatenate([lightness, full[band]], axis=2))
    return result


def lab_to_rgb_in_gamut(lab: Float32[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """sRGB in [0, 1] of CIELab colours; those outside the gamut lose chroma, at the same L* and hue, until they fit."""
    linear = _lab_to_linear(lab)
    outside = ~_in_gamut(linear)
    if outside.any():
        stray = lab[outside]
        low, high = np.zeros(len(stray), np.float32), np.ones(len(stray), np.float32)
        for _ in range(10):  # The scale is then known to a thousandth.
            middle = (low + high) / 2
            fits = _in_gamut(_lab_to_linear(_scale_chroma(stray, middle)))
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        linear[outside] = _lab_to_linear(_scale_chroma(stray, low))
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def _scale_chroma(
    lab: Float32[np.ndarray, "pixels 3"], scale: Float32[np.ndarray, " pixels"]
) -> Float32[np.ndarray, "pixels 3"]:
    return np.concatenate([lab[:, :1], lab[:, 1:] * scale[:, None]], axis=1)


def _in_gamut(linear: Float32[np.ndarray, "*shape 3"]) -> Bool[np.ndarray, "*shape"]:
    return np.all((linear >= -1e-4) & (linear <= 1 + 1e-4), axis=-1)


def _lab_to_linear(lab: Float32[np.ndarray, "*shape 3"]) -> Float32[np.ndarray, "*shape 3"]:
    """Linear sRGB, not clipped (CIE 15:2004, 8.2.1.1, inverted)."""
    y = (lab[..., 0] + 16) / 116
    cubes = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    ratio = np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29))
    return ((ratio * WHITE_D65) @ RGB_FROM_XYZ.T).astype(np.float32)


@dataclass(frozen=True)
class Outcome:
    """What became of one file: where it went, or why it did not."""

    source: Path
    target: Path
    error: str | None = None


def plan_outputs(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Which file goes where: one picture to a file name, or any number into a folder, with their sub-folders.

    Raises UsageError for missing inputs, for an output that is an input, and where two inputs would share a name.
    """
    found = find_pictures(inputs)
    suffix = output.suffix.lower()
    single = len(found) == 1 and inputs[0].is_file() and suffix in KEPT_SUFFIXES
    if suffix in SUFFIXES - KEPT_SUFFIXES and not output.is_dir():
        raise UsageError(f"{output}: pictures are written as {', '.join(sorted(KEPT_SUFFIXES))}; give one of these")
    if single:
        pairs = [(found[0][0], output)]
    elif output.is_file():
        raise UsageError(f"{output}: is a file, but {len(found)} pictures need a folder; give -o FOLDER")
    else:
        pairs = [(path, output / _kept_name(relative)) for path, relative in found]
    refuse_overwrite_of_input([path for path, _ in pairs], output)
    sources: dict[Path, Path] = {}
    for source, target in pairs:
        if target in sources:
            raise UsageError(f"{source} and {sources[target]} would both become {target}; colour them into two folders")
        sources[target] = source
        refuse_overwrite_of_input([path for path, _ in pairs], target)
    return pairs


def _kept_name(relative: Path) -> Path:
    return relative if relative.suffix.lower() in KEPT_SUFFIXES else relative.with_suffix(".png")


def colour_files(
    pairs: Sequence[tuple[Path, Path]],
    trained: TrainedNet,
    *,
    temperature: float = 0.38,
    working_size: int = WORKING_SIZE,
) -> Iterator[Outcome]:
    """Colour files one after another, each outcome as it is known; a bad file does not stop the rest."""
    for source, target in pairs:
        try:
            picture = colour_picture(read_picture(source), trained, temperature=temperature, working_size=working_size)
            write_picture(target, picture)
            yield Outcome(source, target)
        except ChromaboxError as error:
            yield Outcome(source, target, str(error))
