"""What a user wants of a picture's colours: a palette, colours locked, banned or replaced, hints, grey where unsure.

All of it is put on the classes' scores before they are decoded, and what is promised of every pixel is held at full
size by rules (full_size.py) that recolour applies before the gamut step. Where sRGB has no colour of a pixel's own
lightness and the promised chroma, that step keeps hue and lightness and takes chroma away.

Who wins: a painted hint over all else; grey where unsure over bans and palette; replacements before bans.

A net's opinion told in the colours of a palette: the classes among which every place chooses one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.chroma.distribution import SAME_COLOUR_RADIUS, ChromaDistribution
from chromabox.colour.chroma.lab import rgb_to_lab_array
from chromabox.colour.chroma.recolour import downsample, fit_local_linear
from chromabox.colour.constraints.hints import Hints, HintWeights, propagate_hints
from chromabox.colour.constraints.pixel_rules import (
    ExcludeZones,
    ExclusionZones,
    GreyBelowConfidence,
    GridMapping,
    HintPixels,
    PaletteOnly,
    PixelRule,
    RuleChain,
)
from chromabox.colour.palette.io import Colour, load_palette, to_hex
from chromabox.colour.palette.palette import Palette, fit_palette
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, read_image, to_uint8

#: Width (σ, in a* and b*) of the Gaussian by which a bin's probability is shared among the colours near it.
PALETTE_CHROMA_SIGMA = 10.0

#: Difference of lightness (σ, in L*) at which a palette's colour begins to look out of place.
PALETTE_LIGHTNESS_SIGMA = 25.0

#: Colours that are looked at together, so that memory stays flat.
_CHUNK_SIZE = 1 << 14


@dataclass(frozen=True, eq=False)
class PaletteProjection:
    """Colours as classes.

    Attributes:
        rgb: the colours, each once.
        allowed: which may be given to a place; at least one.
        becomes: the class whose colour is shown where a class is chosen: itself, unless it is replaced.
    """

    rgb: UInt8[np.ndarray, "colours 3"]
    allowed: Bool[np.ndarray, " colours"]
    replaced_by: Int64[np.ndarray, " colours"]

    @cached_property
    def lab(self) -> Float32[np.ndarray, "colours 3"]:
        return rgb_to_lab_array(self.rgb)

    @cached_property
    def chroma(self) -> Float32[np.ndarray, "colours 2"]:
        return np.ascontiguousarray(self.lab[:, 1:])

    def nearest(self, colours: UInt8[np.ndarray, "others 3"]) -> Int64[np.ndarray, " others"]:
        """The class nearest to each colour, in CIELab."""
        result = np.empty(len(colours), np.int64)
        for start in range(0, len(colours), _CHUNK_SIZE):
            lab = rgb_to_lab_array(colours[start : start + _CHUNK_SIZE])
            result[start : start + _CHUNK_SIZE] = ((lab[:, None] - self.lab) ** 2).sum(-1).argmin(1)
        return result

    def project(self, distribution: ChromaDistribution) -> ChromaDistribution:
        """The opinion over these classes: log-probabilities, −∞ where a class is not allowed.

        Every bin shares its probability among the allowed colours by nearness in a*b* (a Gaussian of σ ``SHARING``,
        normalised over the colours). A colour's score is the logarithm of what it gets, times the number of colours
        as near (so that three similar browns do not lose to one red because they divide the votes for brown), plus
        −(L* − L*_colour)² / (2 · LIGHTNESS_TOLERANCE²).
        """
        centres = distribution.centres
        chroma, light = torch.from_numpy(self.chroma).to(centres), torch.from_numpy(self.lab[:, 0].copy()).to(centres)
        closed = torch.from_numpy(~self.allowed).to(centres.device)
        nearness = -(centres[:, None] - chroma).square().sum(-1) / (2 * PALETTE_CHROMA_SIGMA**2)
        share = nearness.masked_fill(closed, -torch.inf).softmax(1)
        mass = torch.einsum("khw,kc->chw", distribution.log_probabilities.exp(), share)
        alike = (-(chroma[:, None] - chroma).square().sum(-1) / (2 * PALETTE_CHROMA_SIGMA**2)).exp() @ (~closed).to(
            centres
        )
        lightness = -(distribution.lightness - light[:, None, None]).square() / (2 * PALETTE_LIGHTNESS_SIGMA**2)
        # A colour far from every likely bin keeps a trace, so that no place is left without any.
        scores = mass.clamp(min=1e-30).log() + alike.log()[:, None, None] + lightness
        scores = scores.masked_fill(closed[:, None, None], -torch.inf)
        return ChromaDistribution(scores.log_softmax(0), chroma, distribution.lightness)


def build_projection(
    palette: UInt8[np.ndarray, "colours 3"],
    allowed_colours: Sequence[Colour],
    banned_colours: Sequence[Colour],
    replacements: Sequence[tuple[Colour, Colour]],
) -> PaletteProjection:
    """The palette's colours under a user's wishes, each of which acts on the palette's nearest colour.

    Args:
        palette: 8-bit sRGB.
        lock: only these are classes; all are if none is named.
        ban: not allowed.
        replacements: pairs (A, B): what would be A becomes B.

    Raises UsageError where nothing is left, and for a replacement by a colour that may not be used.
    """
    whole = _all_allowed(np.unique(palette, axis=0))
    kept = np.unique(whole.nearest(_to_array(allowed_colours))) if allowed_colours else np.arange(len(whole.rgb))
    place = np.full(len(whole.rgb), -1)
    place[kept] = np.arange(len(kept))
    classes = _all_allowed(whole.rgb[kept])
    banned, old, new = (
        place[whole.nearest(_to_array(colours))]
        for colours in (banned_colours, [pair[0] for pair in replacements], [pair[1] for pair in replacements])
    )
    for (first, second), a, b in zip(replacements, old, new, strict=True):
        name = f"replace {to_hex(first)}={to_hex(second)}"
        if a == b >= 0:
            shared = to_hex(tuple(classes.rgb[b].tolist()))
            raise UsageError(f"{name}: both mean the palette's colour {shared}; name two that differ more")
        if b < 0 or b in banned or b in old:
            raise UsageError(f"{name}: {to_hex(second)} is itself locked out, banned or replaced; name another colour")
        if a >= 0 and classes.replaced_by[a] not in (a, b):
            raise UsageError(f"{name}: {to_hex(first)} is replaced twice; give one colour for it")
        if a >= 0:
            classes.replaced_by[a] = b
    classes.allowed[banned[banned >= 0]] = False
    if not classes.allowed.any():
        raise UsageError("ban: leaves no colour of the palette; ban fewer or lock others")
    # A replaced colour is still chosen, and then shown as the other.
    classes.allowed[old[old >= 0]] = True
    return classes


def _all_allowed(rgb: UInt8[np.ndarray, "colours 3"]) -> PaletteProjection:
    return PaletteProjection(rgb, np.ones(len(rgb), bool), np.arange(len(rgb)))


def _to_array(colours: Sequence[Colour]) -> UInt8[np.ndarray, "colours 3"]:
    return np.array(colours, np.uint8).reshape(-1, 3)


#: Without a palette, a colour stands for all chroma within this distance in the a*b* plane, whatever its lightness.
COLOUR_RADIUS = SAME_COLOUR_RADIUS

#: Cells of the map on which hints spread, at least, unless the picture has fewer pixels.
MIN_HINT_CELLS = 40_000

#: Colours of a palette that is taken from a picture.
IMAGE_PALETTE_SIZE = 16


@dataclass(frozen=True)
class ColourConstraints:
    """The user's wishes; by default none.

    Attributes:
        palette: colour with its colours only.
        lock: only these colours; without a palette they are the palette, with one the nearest of its colours.
        ban: colours not to be used: with a palette its nearest ones, without one all chroma within ``REACH``. A banned
            grey bans pale colours, too: what would be grey is pushed to the nearest chroma ``REACH`` away from it.
        replace: pairs (A, B): what would be A becomes B, and A is not used.
        hints: colours painted on the picture; they beat bans, and with a palette mean its nearest colours.
        leave_grey_below: where the net's confidence, 0 to 1, in the chroma chosen is below this, it is left grey.
    """

    palette: Palette | None = None
    allowed: tuple[Colour, ...] = ()
    banned: tuple[Colour, ...] = ()
    replacements: tuple[tuple[Colour, Colour], ...] = ()
    hints: Hints | None = None
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"leave-grey-below is {self.min_confidence}: give a confidence from 0 to 1")


@dataclass(frozen=True, eq=False)
class ColourPrediction:
    """What became of an opinion under a control.

    Attributes:
        chroma: a* and b* of a small map, to be brought to full size by recolour. Finer than the opinion with hints.
        adjust: for recolour; holds what is promised at full size. None where nothing is.
        opinion: after palette, replacements and bans, before hints; over the palette's classes if there is one.
        confidence: of the net, before bans, in the chroma chosen, at the map's size; 1 where hints hold.
        colours: of the palette, 8-bit sRGB, those that may appear. None without a palette.
    """

    chroma: Float32[np.ndarray, "height width 2"]
    chroma_hook: RuleChain | None
    distribution: ChromaDistribution
    confidence: Float32[np.ndarray, "height width"]
    palette: UInt8[np.ndarray, "colours 3"] | None


@dataclass(frozen=True, eq=False)
class _Draft:
    """A decision before confidence is asked for."""

    chroma: Float32[np.ndarray, "height width 2"]
    rules: list[PixelRule]
    distribution: ChromaDistribution
    confidence: Float32[np.ndarray, "height width"]
    hint_chroma: Float32[np.ndarray, "numbers 2"]
    """The chroma of each painted colour, in the order of their numbers."""
    palette: UInt8[np.ndarray, "colours 3"] | None = None


def apply_constraints(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    temperature: float,
    image_size: tuple[int, int],
    *,
    guide: Float32[np.ndarray, "guide_height guide_width"] | None = None,
) -> ColourPrediction:
    """Chroma for a picture, from what a net thinks of it and what the user wants.

    Args:
        opinion: of the net.
        control: the user's wishes.
        temperature: of the annealed mean (``Opinion.annealed``); a palette's colours are always the likeliest.
        size: height and width of the picture at full size.
        guide: the picture's L* (0..100), of any size finer than the opinion, by which hints find edges; without one
            they go by the opinion's.

    Raises UsageError for wishes that contradict each other and for a temperature below 0.
    """
    influence = None if constraints.hints is None else _spread_hints(distribution, constraints.hints, image_size, guide)
    if constraints.palette is not None or constraints.allowed:
        draft = _constrain_to_palette(distribution, constraints, image_size, influence)
    else:
        draft = _constrain_bins(distribution, constraints, temperature, image_size, influence)
    cells = GridMapping(draft.chroma.shape[:2], image_size)
    rules = draft.rules
    if constraints.min_confidence > 0:
        rules = [*rules, GreyBelowConfidence(cells, draft.confidence, constraints.min_confidence)]
    if constraints.hints is not None:
        unpainted = np.zeros((1, 2), np.float32)
        rules = [*rules, HintPixels(constraints.hints.labels, np.concatenate([unpainted, draft.hint_chroma]))]
    adjust = RuleChain(tuple(rules)) if rules else None
    return ColourPrediction(draft.chroma, adjust, draft.distribution, draft.confidence, draft.palette)


def palette_from_image_or_file(path_or_name: str | Path) -> Palette:
    """A palette by name or from its file (``load_palette``), or fitted to a picture, known by its suffix.

    Of a picture with fewer than ``PICTURE_COLOURS`` different colours each is one of the palette. Raises
    ChromaboxError for what is no palette, and for what is no picture of two colours at least.
    """
    path = Path(path_or_name)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return load_palette(path_or_name)
    pixels = read_image(path).pixels
    # Thinned to about a megapixel: colours, not detail, are wanted.
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
    rows = to_uint8(pixels[::step, ::step]).reshape(-1, 3)
    different = len(np.unique(rows.astype(np.int64) @ [1 << 16, 1 << 8, 1]))
    if different < 2:
        raise ChromaboxError(f"{path}: has one colour only; a palette is taken from a picture of two at least")
    return fit_palette(rows, min(IMAGE_PALETTE_SIZE, different), name=path.stem)


def _spread_hints(
    distribution: ChromaDistribution,
    hints: Hints,
    image_size: tuple[int, int],
    guide: Float32[np.ndarray, "guide_height guide_width"] | None,
) -> HintWeights:
    """The hints' influence on a map as fine as the opinion, and of ``HINT_CELLS`` at least where pixels suffice."""
    finer = (MIN_HINT_CELLS / (image_size[0] * image_size[1])) ** 0.5
    small = distribution.lightness.shape
    height, width = (max(cells, min(full, round(finer * full))) for cells, full in zip(small, image_size, strict=True))
    own = distribution.lightness.float().cpu().numpy()
    lightness = downsample(own if guide is None else guide, height, width)
    chroma = distribution.chroma(1.0).permute(1, 2, 0).float().cpu().contiguous().numpy()
    return propagate_hints(hints, lightness, _guided_upsample(chroma, own, lightness))


def _guided_upsample(
    chroma: Float32[np.ndarray, "height width 2"],
    lightness: Float32[np.ndarray, "height width"],
    target_lightness: Float32[np.ndarray, "finer_height finer_width"],
) -> Float32[np.ndarray, "finer_height finer_width 2"]:
    """A small chroma map at the size of a finer lightness, as recolour would bring it there."""
    planes = fit_local_linear(chroma, lightness, *target_lightness.shape).rows(
        slice(0, len(target_lightness)), target_lightness
    )
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _resize_planes(planes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Planes [n, height, width] brought to another size."""
    if planes.shape[1:] == shape:
        return planes
    return F.interpolate(planes[None], shape, mode="bilinear", align_corners=False)[0]


def _confidence(
    distribution: ChromaDistribution, chroma: Float32[np.ndarray, "height width 2"], hint_weights: HintWeights | None
) -> Float32[np.ndarray, "map_height map_width"]:
    """Of the net in a chroma of its own map; where hints hold, theirs, which is 1."""
    confidence = distribution.confidence(torch.from_numpy(chroma).permute(2, 0, 1).to(distribution.centres)).float()
    if hint_weights is None:
        return confidence.cpu().numpy()
    held = hint_weights.weights.sum(0)
    return (1 - held) * _resize_planes(confidence[None], held.shape)[0].cpu().numpy() + held


def _constrain_to_palette(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    image_size: tuple[int, int],
    hint_weights: HintWeights | None,
) -> _Draft:
    """Every place gets one of the palette's colours."""
    palette = np.array(constraints.allowed, np.uint8) if constraints.palette is None else constraints.palette.rgb
    classes = build_projection(palette, constraints.allowed, constraints.banned, constraints.replacements)
    over = classes.project(distribution)
    chosen = over.log_probabilities.argmax(0).cpu().numpy()
    confidence = _confidence(distribution, classes.chroma[chosen], hint_weights)
    used = np.unique(classes.replaced_by[classes.allowed])
    hinted = np.zeros((0, 2), np.float32)
    labels = classes.replaced_by[chosen]
    if hint_weights is not None and constraints.hints is not None:
        likeliest = _resize_planes(over.log_probabilities.exp(), hint_weights.weights.shape[1:]).argmax(0).cpu().numpy()
        labels = _apply_hints(classes, classes.replaced_by[likeliest], hint_weights)
        hints = classes.nearest(constraints.hints.colours)
        hinted, used = classes.chroma[hints], np.union1d(used, hints)
    small = labels.astype(np.min_scalar_type(len(classes.rgb)))
    rule = PaletteOnly(GridMapping(labels.shape, image_size), small, classes.chroma)
    shown = replace(over, centres=torch.from_numpy(classes.chroma[classes.replaced_by]).to(over.centres))
    return _Draft(classes.chroma[labels], [rule], shown, confidence, hinted, classes.rgb[used])


def _apply_hints(
    projection: PaletteProjection, labels: Int64[np.ndarray, "height width"], hint_weights: HintWeights
) -> Int64[np.ndarray, "height width"]:
    """The labels, replaced by a hint's where it holds a place more than the net does."""
    held = np.zeros((len(projection.rgb), *labels.shape), np.float32)
    np.add.at(held, projection.nearest(hint_weights.colours), hint_weights.weights)
    return np.where(held.max(0) > 1 - hint_weights.weights.sum(0), held.argmax(0), labels)


def _constrain_bins(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    temperature: float,
    image_size: tuple[int, int],
    hint_weights: HintWeights | None,
) -> _Draft:
    """Every place gets the annealed mean of the bins that are left, pushed out of what is forbidden."""
    wishes = _BinEdits.from_constraints(constraints)
    moved, narrowed = wishes.apply(distribution)
    discs = ExclusionZones(wishes.excluded, COLOUR_RADIUS)
    chroma = narrowed.chroma(temperature).permute(1, 2, 0).float().cpu().contiguous().numpy()
    chroma = discs.push_out(chroma)
    confidence = _confidence(moved, chroma, hint_weights)
    hinted, spared = np.zeros((0, 2), np.float32), None
    if hint_weights is not None and constraints.hints is not None:
        hinted, spreading = (
            rgb_to_lab_array(colours)[:, 1:] for colours in (constraints.hints.colours, hint_weights.colours)
        )
        free = 1 - hint_weights.weights.sum(0)
        chroma = (
            _guided_upsample(chroma, distribution.lightness.float().cpu().numpy(), hint_weights.lightness)
            * free[..., None]
        )
        chroma += np.einsum("nhw,nc->hwc", hint_weights.weights, spreading)
        spared = hint_weights.weights[discs.contains(spreading)].sum(0)
    rules: list[PixelRule] = (
        [ExcludeZones(GridMapping(chroma.shape[:2], image_size), discs, spared)] if len(discs.centres) else []
    )
    return _Draft(chroma, rules, narrowed, confidence, hinted)


@dataclass(frozen=True, eq=False)
class _BinEdits:
    """Chroma (a*, b*) of the colours that act on a net's bins."""

    banned: Float64[np.ndarray, "banned 2"]
    replaced: Float64[np.ndarray, "replaced 2"]
    replacements: Float64[np.ndarray, "replaced 2"]

    @classmethod
    def from_constraints(cls, constraints: ColourConstraints) -> "_BinEdits":
        """Raises UsageError for a replacement by a colour that may not be used itself."""
        old, new = ([pair[index] for pair in constraints.replacements] for index in (0, 1))
        banned, old_chroma, new_chroma = (
            rgb_to_lab_array(np.array(colours, np.uint8).reshape(-1, 3))[:, 1:].astype(np.float64)
            for colours in (constraints.banned, old, new)
        )
        wishes = cls(banned, old_chroma, new_chroma)
        discs = ExclusionZones(wishes.excluded, COLOUR_RADIUS)
        for a, b, lost in zip(old, new, discs.contains(new_chroma), strict=True):
            if lost:
                name, reason = (
                    f"replace {to_hex(a)}={to_hex(b)}",
                    f"within {COLOUR_RADIUS:g} in a*b* of what is not to be used",
                )
                raise UsageError(f"{name}: {to_hex(b)} lies {reason} (replaced or banned); name another colour")
        return wishes

    @property
    def excluded(self) -> Float64[np.ndarray, "forbidden 2"]:
        """What no pixel may come near."""
        return np.unique(np.concatenate([self.banned, self.replaced]), axis=0)

    def apply(self, distribution: ChromaDistribution) -> tuple[ChromaDistribution, ChromaDistribution]:
        """The opinion with the bins of replaced colours moved to the new ones; and without the banned bins.

        Raises UsageError where no bin is left.
        """
        centres = distribution.centres.double().cpu().numpy()
        closed = _pairwise_distances(centres, self.banned).min(1, initial=np.inf) < COLOUR_RADIUS
        if len(self.replaced):
            distance = _pairwise_distances(centres, self.replaced)
            replaced = distance.min(1) < COLOUR_RADIUS
            centres = np.where(replaced[:, None], self.replacements[distance.argmin(1)], centres)
            closed &= ~replaced
        if closed.all():
            raise UsageError("ban: leaves none of the colours that the net knows; ban fewer")
        moved = replace(distribution, centres=torch.from_numpy(centres).to(distribution.centres))
        if not closed.any():
            return moved, moved
        # What the net itself rules out is only unlikely, so that every place is left something.
        scores = distribution.log_probabilities.clamp(min=-1e4)
        scores = scores.masked_fill(torch.from_numpy(closed).to(scores.device)[:, None, None], -torch.inf)
        return moved, replace(moved, log_probabilities=scores.log_softmax(0))


def _pairwise_distances(
    points: Float64[np.ndarray, "points 2"], references: Float64[np.ndarray, "others 2"]
) -> Float64[np.ndarray, "points others"]:
    return np.sqrt(((points[:, None] - references) ** 2).sum(-1))
