"""One picture of any size in, the same picture in colour out.

The net looks at the picture at a few fixed sizes, plain and in the mirror, whatever the picture's own size is; its
opinions are merged, each place trusting the look that is most certain there. Opinions become a small chroma map under
the user's wishes (control.py), and the map becomes the picture with its own lightness at full size (recolour.py).
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.chroma.distribution import ChromaDistribution, merge_distributions
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.chroma.recolour import apply_chroma, lightness
from chromabox.colour.constraints.constraints import ColourConstraints, ColourPrediction, apply_constraints
from chromabox.colour.constraints.hints import read_hints
from chromabox.colour.weights.checkpoint import CIFAR_SCALES, PHOTO_SCALES, PaletteModel, PhotoModel
from chromabox.io.images import ImageData, Pixels

StyleName = Literal["natural", "vivid"]
Plane = Float32[np.ndarray, "_ _"]

#: The long side of a look is at most so many times the short one; longer strips are squeezed.
MAX_ASPECT_RATIO = 4


@dataclass(frozen=True)
class Style:
    """How opinions become colours: the annealed mean's temperature, and how much rare colours are helped."""

    temperature: float
    rebalancing_strength: float


#: Chosen on validation photographs; docs/log.md has the numbers.
STYLES: dict[StyleName, Style] = {"natural": Style(0.5, 0.15), "vivid": Style(0.38, 0.85)}


@dataclass(frozen=True, kw_only=True)
class ColouriseOptions:
    """Everything a user can ask for, besides the net."""

    style: StyleName = "natural"
    temperature: float | None = None
    """Instead of the style's: 0 takes the likeliest colour of each place, 1 the mean."""
    constraints: ColourConstraints = field(default_factory=ColourConstraints)
    hints: Path | None = None
    """A picture of painted hints, read at the size of the picture that it is for."""

    @property
    def effective_temperature(self) -> float:
        """The temperature that counts."""
        return STYLES[self.style].temperature if self.temperature is None else self.temperature


ColourModel = PaletteModel | PhotoModel


def colourise_image(image: ImageData, model: ColourModel, options: ColouriseOptions | None = None) -> ImageData:
    """Colour one picture; depth, alpha, EXIF, profile and resolution are kept.

    Args:
        picture: grey or coloured; of a coloured one only the lightness is used.
        trained: the net and the colours it chooses among.
        wishes: style, temperature and palette control; natural colours if None.
    """
    return apply_prediction(image, predict_colours(image.pixels, model, options or ColouriseOptions()))


def apply_prediction(image: ImageData, prediction: ColourPrediction) -> ImageData:
    """The picture in the colours that were decided, its lightness kept."""
    pixels = apply_chroma(image.pixels, prediction.chroma, chroma_hook=prediction.chroma_hook)
    return replace(image, pixels=pixels, is_grey=False)


def predict_chroma(
    pixels: Pixels, model: ColourModel, options: ColouriseOptions | None = None
) -> Float32[np.ndarray, "small_height small_width 2"]:
    """The small chroma map alone (a*, b* of CIELab), for whoever does the rest (video)."""
    return predict_colours(pixels, model, options or ColouriseOptions()).chroma


def predict_colours(pixels: Pixels, model: ColourModel, options: ColouriseOptions) -> ColourPrediction:
    """The small chroma map with all that was decided on the way."""
    plane = _downsampled_lightness(pixels, 2 * max(_scales(model)))
    opinion = _predict(plane, model)
    strength = STYLES[options.style].rebalancing_strength
    if strength and isinstance(model, PhotoModel):
        opinion = opinion.reweight(model.bins.rebalancing_weights(strength))
    size = (pixels.shape[0], pixels.shape[1])
    hints = None if options.hints is None else read_hints(options.hints, size)
    control = options.constraints if hints is None else replace(options.constraints, hints=hints)
    return apply_constraints(opinion, control, options.effective_temperature, size, guide=plane)


def predict_distribution(pixels: Pixels, model: ColourModel) -> ChromaDistribution:
    """What the net thinks, merged over all its looks, at the size of the largest one's answer."""
    return _predict(_downsampled_lightness(pixels, 2 * max(_scales(model))), model)


@torch.no_grad()
def _predict(plane: Plane, model: ColourModel) -> ChromaDistribution:
    answers = [_predict_at_scale(plane, model, side) for side in _scales(model)]
    size = answers[-1].shape[1:]
    seen = torch.from_numpy(_resize(plane, *size)).clamp(0, 100)
    centres = _centres(model)
    resized = (F.interpolate(answer[None], size, mode="bilinear")[0].log() for answer in answers)
    return merge_distributions([ChromaDistribution(answer, centres, seen) for answer in resized])


def _scales(model: ColourModel) -> tuple[int, ...]:
    return PHOTO_SCALES if isinstance(model, PhotoModel) else CIFAR_SCALES


def _downsampled_lightness(pixels: Pixels, side: int) -> Plane:
    """L* (0 … 100) of the picture with its short side brought near ``side``, or as it is if it is smaller.

    Large pictures are averaged over whole blocks before their lightness is computed: quick, and enough for the net.
    """
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    factors = tuple(max(1, length // side) for length in (eight.shape[1], eight.shape[0]))
    # A strip is reduced across and along separately, so that its short side is not lost.
    factor = (min(factors[0], max(1, 4 * factors[1])), min(factors[1], max(1, 4 * factors[0])))
    reduced = eight if factor == (1, 1) else np.asarray(Image.fromarray(eight).reduce(factor))
    return lightness(reduced)


def _predict_at_scale(plane: Plane, model: ColourModel, side: int) -> Float[Tensor, "classes height width"]:
    """Class probabilities of one size, the mean of a plain and a mirrored look."""
    shape = _input_shape(plane.shape, side, int(getattr(model.network, "size_divisor", 8)))
    seen = torch.from_numpy(_resize(plane, *shape)).clamp(0, 100)[None, None]
    if isinstance(model, PhotoModel):
        seen = seen / 100
        both = model.network(torch.cat([seen, seen.flip(-1)])).softmax(1)
        return (both[0] + both[1].flip(-1)) / 2
    # These nets count grey as the mean of RGB/256; a grey of this L* has the sRGB value v/255.
    return model.network(_lightness_to_grey(seen) * (255 / 256)).softmax(1)[0]


def _lightness_to_grey(lightness: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sRGB value in [0, 1] of a grey with that L* (IEC 61966-2-1 and CIE 15:2004, inverted)."""
    root = (lightness + 16) / 116
    linear = torch.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29)).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _input_shape(shape: tuple[int, ...], side: int, size_divisor: int) -> tuple[int, int]:
    """Height and width with the short side near ``side``, both multiples of what the net needs."""
    scale = side / min(shape)
    height, width = (
        max(size_divisor, round(min(length * scale, MAX_ASPECT_RATIO * side) / size_divisor) * size_divisor)
        for length in shape
    )
    return height, width


def _resize(plane: Plane, height: int, width: int) -> Plane:
    """Resample one plane with the antialiasing of the area it comes from."""
    resized = Image.fromarray(np.asarray(plane, np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized, np.float32)


def _centres(model: ColourModel) -> Float[Tensor, "classes 2"]:
    """a* and b* of the classes; a palette's lightness is not used, since the picture has its own."""
    if isinstance(model, PhotoModel):
        return torch.from_numpy(model.bins.centres)
    return rgb_to_lab(torch.from_numpy(model.palette.rgb)[None, None])[0, 1:, 0].T.contiguous()
