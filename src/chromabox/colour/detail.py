"""Fine detail: what makes the pixels of one 4 × 4 block differ, and how much of it a coloured picture has kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.palette import Palette

#: Pixels along the side of what one place of the bottleneck stands for: the assignment's nets halve a picture twice.
BLOCK = 4

Maps = Float[Tensor, "pictures channels height width"]


def without_block_means(maps: Maps) -> Maps:
    """Each pixel less the mean of its 4 × 4 block. Sides are multiples of 4."""
    return maps - F.interpolate(F.avg_pool2d(maps, BLOCK), scale_factor=BLOCK)


def without_grey(colours: Maps) -> Maps:
    """Red, green and blue less their own mean: what of a colour is not grey."""
    return colours - colours.mean(1, keepdim=True)


def colour_maps(labels: UInt8[Tensor, "pictures height width"], palette: Palette) -> Maps:
    """The palette's colours of labels, in RGB/256, channels first."""
    colours = torch.tensor(palette.colours)
    return colours[labels.long()].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class DetailKept:
    """The fine detail of pictures beside that of others."""

    energy: float
    """Sum of its squares as a part of the others': below 1 it is fainter, above 1 there is more of it."""
    correlation: float
    """1 where it is the same but for its strength, 0 where the two have nothing to do with each other."""


def detail_kept(pictures: Maps, truth: Maps) -> DetailKept:
    """Compare the fine detail of corresponding pictures; not-a-number where either has none."""
    ours, true = (without_block_means(maps.double()).flatten() for maps in (pictures, truth))
    energies = torch.stack([ours @ ours, true @ true])
    return DetailKept((energies[0] / energies[1]).item(), ((ours @ true) / energies.prod().sqrt()).item())
