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

from chromabox.colour.chroma.distribution import Opinion, merge
from chromabox.colour.chroma.lab import lab_from_rgb
from chromabox.colour.chroma.recolour import Pixels, lightness, recolour
from chromabox.colour.constraints.constraints import Control, Decision, decide
from chromabox.colour.constraints.hints import read_hints
from chromabox.colour.weights.checkpoint import CIFAR_LOOKS, PHOTO_LOOKS, TrainedNet, TrainedPhotoNet
from chromabox.io.images import Picture

StyleName = Literal["natural", "vivid"]
Plane = Float32[np.ndarray, "_ _"]

#: The long side of a look is at most so many times the short one; longer strips are squeezed.
LONGEST = 4


@dataclass(frozen=True)
class Style:
    """How opinions become colours: the annealed mean's temperature, and how much rare colours are helped."""

    temperature: float
    rarity: float


#: Chosen on validation photographs; docs/log.md has the numbers.
STYLES: dict[StyleName, Style] = {"natural": Style(0.5, 0.15), "vivid": Style(0.38, 0.85)}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """Everything a user can ask for, besides the net."""

    style: StyleName = "natural"
    temperature: float | None = None
    """Instead of the style's: 0 takes the likeliest colour of each place, 1 the mean."""
    control: Control = field(default_factory=Control)
    hints: Path | None = None
    """A picture of painted hints, read at the size of the picture that it is for."""

    @property
    def heat(self) -> float:
        """The temperature that counts."""
        return STYLES[self.style].temperature if self.temperature is None else self.temperature


Trained = TrainedNet | TrainedPhotoNet


def colour_picture(picture: Picture, trained: Trained, wishes: Wishes | None = None) -> Picture:
    """Colour one picture; depth, alpha, EXIF, profile and resolution are kept.

    Args:
        picture: grey or coloured; of a coloured one only the lightness is used.
        trained: the net and the colours it chooses among.
        wishes: style, temperature and palette control; natural colours if None.
    """
    return in_colours(picture, decide_colours(picture.pixels, trained, wishes or Wishes()))


def in_colours(picture: Picture, decision: Decision) -> Picture:
    """The picture in the colours that were decided, its lightness kept."""
    pixels = recolour(picture.pixels, decision.chroma, adjust=decision.adjust)
    return replace(picture, pixels=pixels, was_grey=False)


def predict_chroma(
    pixels: Pixels, trained: Trained, wishes: Wishes | None = None
) -> Float32[np.ndarray, "small_height small_width 2"]:
    """The small chroma map alone (a*, b* of CIELab), for whoever does the rest (video)."""
    return decide_colours(pixels, trained, wishes or Wishes()).chroma


def decide_colours(pixels: Pixels, trained: Trained, wishes: Wishes) -> Decision:
    """The small chroma map with all that was decided on the way."""
    plane = _reduced_lightness(pixels, 2 * max(_looks(trained)))
    opinion = _opinion(plane, trained)
    strength = STYLES[wishes.style].rarity
    if strength and isinstance(trained, TrainedPhotoNet):
        opinion = opinion.weighted(trained.bins.rarity(strength))
    size = (pixels.shape[0], pixels.shape[1])
    hints = None if wishes.hints is None else read_hints(wishes.hints, size)
    control = wishes.control if hints is None else replace(wishes.control, hints=hints)
    return decide(opinion, control, wishes.heat, size, guide=plane)


def opinion_on(pixels: Pixels, trained: Trained) -> Opinion:
    """What the net thinks, merged over all its looks, at the size of the largest one's answer."""
    return _opinion(_reduced_lightness(pixels, 2 * max(_looks(trained))), trained)


@torch.no_grad()
def _opinion(plane: Plane, trained: Trained) -> Opinion:
    answers = [_looked(plane, trained, side) for side in _looks(trained)]
    size = answers[-1].shape[1:]
    seen = torch.from_numpy(_resize(plane, *size)).clamp(0, 100)
    centres = _centres(trained)
    resized = (F.interpolate(answer[None], size, mode="bilinear")[0].log() for answer in answers)
    return merge([Opinion(answer, centres, seen) for answer in resized])


def _looks(trained: Trained) -> tuple[int, ...]:
    return PHOTO_LOOKS if isinstance(trained, TrainedPhotoNet) else CIFAR_LOOKS


def _reduced_lightness(pixels: Pixels, side: int) -> Plane:
    """L* (0 … 100) of the picture with its short side brought near ``side``, or as it is if it is smaller.

    Large pictures are averaged over whole blocks before their lightness is computed: quick, and enough for the net.
    """
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    factors = tuple(max(1, length // side) for length in (eight.shape[1], eight.shape[0]))
    # A strip is reduced across and along separately, so that its short side is not lost.
    factor = (min(factors[0], max(1, 4 * factors[1])), min(factors[1], max(1, 4 * factors[0])))
    reduced = eight if factor == (1, 1) else np.asarray(Image.fromarray(eight).reduce(factor))
    return lightness(reduced)


def _looked(plane: Plane, trained: Trained, side: int) -> Float[Tensor, "classes height width"]:
    """Class probabilities of one size, the mean of a plain and a mirrored look."""
    shape = _look_shape(plane.shape, side, int(getattr(trained.net, "multiple", 8)))
    seen = torch.from_numpy(_resize(plane, *shape)).clamp(0, 100)[None, None]
    if isinstance(trained, TrainedPhotoNet):
        seen = seen / 100
        both = trained.net(torch.cat([seen, seen.flip(-1)])).softmax(1)
        return (both[0] + both[1].flip(-1)) / 2
    # These nets count grey as the mean of RGB/256; a grey of this L* has the sRGB value v/255.
    return trained.net(_grey_value(seen) * (255 / 256)).softmax(1)[0]


def _grey_value(lightness: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sRGB value in [0, 1] of a grey with that L* (IEC 61966-2-1 and CIE 15:2004, inverted)."""
    root = (lightness + 16) / 116
    linear = torch.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29)).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _look_shape(shape: tuple[int, ...], side: int, multiple: int) -> tuple[int, int]:
    """Height and width with the short side near ``side``, both multiples of what the net needs."""
    scale = side / min(shape)
    height, width = (
        max(multiple, round(min(length * scale, LONGEST * side) / multiple) * multiple) for length in shape
    )
    return height, width


def _resize(plane: Plane, height: int, width: int) -> Plane:
    """Resample one plane with the antialiasing of the area it comes from."""
    resized = Image.fromarray(np.asarray(plane, np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized, np.float32)


def _centres(trained: Trained) -> Float[Tensor, "classes 2"]:
    """a* and b* of the classes; a palette's lightness is not used, since the picture has its own."""
    if isinstance(trained, TrainedPhotoNet):
        return torch.from_numpy(trained.bins.centres)
    return lab_from_rgb(torch.from_numpy(trained.palette.rgb)[None, None])[0, 1:, 0].T.contiguous()
