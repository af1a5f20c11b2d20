"""A net's opinion told in the colours of a palette: the classes among which every place chooses one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

from chromabox.colour.chroma.distribution import Opinion
from chromabox.colour.chroma.lab import lab_from_rgb
from chromabox.colour.palette.io import Colour, written
from chromabox.errors import UsageError

#: Width (σ, in a* and b*) of the Gaussian by which a bin's probability is shared among the colours near it.
SHARING = 10.0
#: Difference of lightness (σ, in L*) at which a palette's colour begins to look out of place.
LIGHTNESS_TOLERANCE = 25.0
#: Colours that are looked at together, so that memory stays flat.
_PORTION = 1 << 14


def lab_of(colours: UInt8[np.ndarray, "colours 3"]) -> Float32[np.ndarray, "colours 3"]:
    """CIELab (D65) of 8-bit sRGB; a* and b* of greys are exactly 0."""
    lab = lab_from_rgb(torch.from_numpy(np.ascontiguousarray(colours))[None, None])[0, :, 0].numpy().T.copy()
    lab[(colours == colours[:, :1]).all(1), 1:] = 0
    return lab


@dataclass(frozen=True, eq=False)
class PaletteClasses:
    """Colours as classes.

    Attributes:
        rgb: the colours, each once.
        allowed: which may be given to a place; at least one.
        becomes: the class whose colour is shown where a class is chosen: itself, unless it is replaced.
    """

    rgb: UInt8[np.ndarray, "colours 3"]
    allowed: Bool[np.ndarray, " colours"]
    becomes: Int64[np.ndarray, " colours"]

    @cached_property
    def lab(self) -> Float32[np.ndarray, "colours 3"]:
        return lab_of(self.rgb)

    @cached_property
    def chroma(self) -> Float32[np.ndarray, "colours 2"]:
        return np.ascontiguousarray(self.lab[:, 1:])

    def nearest(self, colours: UInt8[np.ndarray, "others 3"]) -> Int64[np.ndarray, " others"]:
        """The class nearest to each colour, in CIELab."""
        result = np.empty(len(colours), np.int64)
        for start in range(0, len(colours), _PORTION):
            lab = lab_of(colours[start : start + _PORTION])
            result[start : start + _PORTION] = ((lab[:, None] - self.lab) ** 2).sum(-1).argmin(1)
        return result

    def judge(self, opinion: Opinion) -> Opinion:
        """The opinion over these classes: log-probabilities, −∞ where a class is not allowed.

        Every bin shares its probability among the allowed colours by nearness in a*b* (a Gaussian of σ ``SHARING``,
        normalised over the colours). A colour's score is the logarithm of what it gets, times the number of colours
        as near (so that three similar browns do not lose to one red because they divide the votes for brown), plus
        −(L* − L*_colour)² / (2 · LIGHTNESS_TOLERANCE²).
        """
        centres = opinion.centres
        chroma, light = torch.from_numpy(self.chroma).to(centres), torch.from_numpy(self.lab[:, 0].copy()).to(centres)
        closed = torch.from_numpy(~self.allowed).to(centres.device)
        nearness = -(centres[:, None] - chroma).square().sum(-1) / (2 * SHARING**2)
        share = nearness.masked_fill(closed, -torch.inf).softmax(1)
        mass = torch.einsum("khw,kc->chw", opinion.log_probabilities.exp(), share)
        alike = (-(chroma[:, None] - chroma).square().sum(-1) / (2 * SHARING**2)).exp() @ (~closed).to(centres)
        lightness = -(opinion.lightness - light[:, None, None]).square() / (2 * LIGHTNESS_TOLERANCE**2)
        # A colour far from every likely bin keeps a trace, so that no place is left without any.
        scores = mass.clamp(min=1e-30).log() + alike.log()[:, None, None] + lightness
        scores = scores.masked_fill(closed[:, None, None], -torch.inf)
        return Opinion(scores.log_softmax(0), chroma, opinion.lightness)


def palette_classes(
    palette: UInt8[np.ndarray, "colours 3"],
    lock: Sequence[Colour],
    ban: Sequence[Colour],
    replacements: Sequence[tuple[Colour, Colour]],
) -> PaletteClasses:
    """The palette's colours under a user's wishes, each of which acts on the palette's nearest colour.

    Args:
        palette: 8-bit sRGB.
        lock: only these are classes; all are if none is named.
        ban: not allowed.
        replacements: pairs (A, B): what would be A becomes B.

    Raises UsageError where nothing is left, and for a replacement by a colour that may not be used.
    """
    whole = _unrestricted(np.unique(palette, axis=0))
    kept = np.unique(whole.nearest(_array(lock))) if lock else np.arange(len(whole.rgb))
    place = np.full(len(whole.rgb), -1)
    place[kept] = np.arange(len(kept))
    classes = _unrestricted(whole.rgb[kept])
    banned, old, new = (
        place[whole.nearest(_array(colours))]
        for colours in (ban, [pair[0] for pair in replacements], [pair[1] for pair in replacements])
    )
    for (first, second), a, b in zip(replacements, old, new, strict=True):
        name = f"replace {written(first)}={written(second)}"
        if a == b >= 0:
            shared = written(tuple(classes.rgb[b].tolist()))
            raise UsageError(f"{name}: both mean the palette's colour {shared}; name two that differ more")
        if b < 0 or b in banned or b in old:
            raise UsageError(f"{name}: {written(second)} is itself locked out, banned or replaced; name another colour")
        if a >= 0 and classes.becomes[a] not in (a, b):
            raise UsageError(f"{name}: {written(first)} is replaced twice; give one colour for it")
        if a >= 0:
            classes.becomes[a] = b
    classes.allowed[banned[banned >= 0]] = False
    if not classes.allowed.any():
        raise UsageError("ban: leaves no colour of the palette; ban fewer or lock others")
    # A replaced colour is still chosen, and then shown as the other.
    classes.allowed[old[old >= 0]] = True
    return classes


def _unrestricted(rgb: UInt8[np.ndarray, "colours 3"]) -> PaletteClasses:
    return PaletteClasses(rgb, np.ones(len(rgb), bool), np.arange(len(rgb)))


def _array(colours: Sequence[Colour]) -> UInt8[np.ndarray, "colours 3"]:
    return np.array(colours, np.uint8).reshape(-1, 3)
