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

from chromabox.colour.chroma.distribution import NEAR, Opinion
from chromabox.colour.chroma.lab import lab_of
from chromabox.colour.chroma.recolour import fit_lines, shrink
from chromabox.colour.constraints.hints import Hints, Influence, spread
from chromabox.colour.constraints.pixel_rules import (
    Cells,
    Discs,
    GreyWhereUnsure,
    InTurn,
    OnlyColours,
    OutsideDiscs,
    Painted,
    Rule,
)
from chromabox.colour.palette.io import Colour, load_palette, written
from chromabox.colour.palette.palette import Palette, fit_palette
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import SUFFIXES, eight_bits, read_picture

#: Width (σ, in a* and b*) of the Gaussian by which a bin's probability is shared among the colours near it.
SHARING = 10.0

#: Difference of lightness (σ, in L*) at which a palette's colour begins to look out of place.
LIGHTNESS_TOLERANCE = 25.0

#: Colours that are looked at together, so that memory stays flat.
_PORTION = 1 << 14


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


#: Without a palette, a colour stands for all chroma within this distance in the a*b* plane, whatever its lightness.
REACH = NEAR

#: Cells of the map on which hints spread, at least, unless the picture has fewer pixels.
HINT_CELLS = 40_000

#: Colours of a palette that is taken from a picture.
PICTURE_COLOURS = 16


@dataclass(frozen=True)
class Control:
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
    lock: tuple[Colour, ...] = ()
    ban: tuple[Colour, ...] = ()
    replace: tuple[tuple[Colour, Colour], ...] = ()
    hints: Hints | None = None
    leave_grey_below: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.leave_grey_below <= 1:
            raise UsageError(f"leave-grey-below is {self.leave_grey_below}: give a confidence from 0 to 1")


@dataclass(frozen=True, eq=False)
class Decision:
    """What became of an opinion under a control.

    Attributes:
        chroma: a* and b* of a small map, to be brought to full size by recolour. Finer than the opinion with hints.
        adjust: for recolour; holds what is promised at full size. None where nothing is.
        opinion: after palette, replacements and bans, before hints; over the palette's classes if there is one.
        confidence: of the net, before bans, in the chroma chosen, at the map's size; 1 where hints hold.
        colours: of the palette, 8-bit sRGB, those that may appear. None without a palette.
    """

    chroma: Float32[np.ndarray, "height width 2"]
    adjust: InTurn | None
    opinion: Opinion
    confidence: Float32[np.ndarray, "height width"]
    colours: UInt8[np.ndarray, "colours 3"] | None


@dataclass(frozen=True, eq=False)
class _Draft:
    """A decision before confidence is asked for."""

    chroma: Float32[np.ndarray, "height width 2"]
    rules: list[Rule]
    opinion: Opinion
    confidence: Float32[np.ndarray, "height width"]
    hinted: Float32[np.ndarray, "numbers 2"]
    """The chroma of each painted colour, in the order of their numbers."""
    colours: UInt8[np.ndarray, "colours 3"] | None = None


def decide(
    opinion: Opinion,
    control: Control,
    temperature: float,
    size: tuple[int, int],
    *,
    guide: Float32[np.ndarray, "guide_height guide_width"] | None = None,
) -> Decision:
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
    influence = None if control.hints is None else _spread(opinion, control.hints, size, guide)
    if control.palette is not None or control.lock:
        draft = _by_palette(opinion, control, size, influence)
    else:
        draft = _by_bins(opinion, control, temperature, size, influence)
    cells = Cells(draft.chroma.shape[:2], size)
    rules = draft.rules
    if control.leave_grey_below > 0:
        rules = [*rules, GreyWhereUnsure(cells, draft.confidence, control.leave_grey_below)]
    if control.hints is not None:
        unpainted = np.zeros((1, 2), np.float32)
        rules = [*rules, Painted(control.hints.numbers, np.concatenate([unpainted, draft.hinted]))]
    adjust = InTurn(tuple(rules)) if rules else None
    return Decision(draft.chroma, adjust, draft.opinion, draft.confidence, draft.colours)


def palette_from(path_or_name: str | Path) -> Palette:
    """A palette by name or from its file (``load_palette``), or fitted to a picture, known by its suffix.

    Of a picture with fewer than ``PICTURE_COLOURS`` different colours each is one of the palette. Raises
    ChromaboxError for what is no palette, and for what is no picture of two colours at least.
    """
    path = Path(path_or_name)
    if path.suffix.lower() not in SUFFIXES:
        return load_palette(path_or_name)
    pixels = read_picture(path).pixels
    # Thinned to about a megapixel: colours, not detail, are wanted.
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
    rows = eight_bits(pixels[::step, ::step]).reshape(-1, 3)
    different = len(np.unique(rows.astype(np.int64) @ [1 << 16, 1 << 8, 1]))
    if different < 2:
        raise ChromaboxError(f"{path}: has one colour only; a palette is taken from a picture of two at least")
    return fit_palette(rows, min(PICTURE_COLOURS, different), name=path.stem)


def _spread(
    opinion: Opinion,
    hints: Hints,
    size: tuple[int, int],
    guide: Float32[np.ndarray, "guide_height guide_width"] | None,
) -> Influence:
    """The hints' influence on a map as fine as the opinion, and of ``HINT_CELLS`` at least where pixels suffice."""
    finer = (HINT_CELLS / (size[0] * size[1])) ** 0.5
    small = opinion.lightness.shape
    height, width = (max(cells, min(full, round(finer * full))) for cells, full in zip(small, size, strict=True))
    own = opinion.lightness.float().cpu().numpy()
    lightness = shrink(own if guide is None else guide, height, width)
    chroma = opinion.chroma(1.0).permute(1, 2, 0).float().cpu().contiguous().numpy()
    return spread(hints, lightness, _guided(chroma, own, lightness))


def _guided(
    chroma: Float32[np.ndarray, "height width 2"],
    lightness: Float32[np.ndarray, "height width"],
    finer: Float32[np.ndarray, "finer_height finer_width"],
) -> Float32[np.ndarray, "finer_height finer_width 2"]:
    """A small chroma map at the size of a finer lightness, as recolour would bring it there."""
    planes = fit_lines(chroma, lightness, *finer.shape).rows(slice(0, len(finer)), finer)
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _enlarged(planes: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Planes [n, height, width] brought to another size."""
    if planes.shape[1:] == shape:
        return planes
    return F.interpolate(planes[None], shape, mode="bilinear", align_corners=False)[0]


def _confidence(
    opinion: Opinion, chroma: Float32[np.ndarray, "height width 2"], influence: Influence | None
) -> Float32[np.ndarray, "map_height map_width"]:
    """Of the net in a chroma of its own map; where hints hold, theirs, which is 1."""
    confidence = opinion.confidence(torch.from_numpy(chroma).permute(2, 0, 1).to(opinion.centres)).float()
    if influence is None:
        return confidence.cpu().numpy()
    held = influence.hold.sum(0)
    return (1 - held) * _enlarged(confidence[None], held.shape)[0].cpu().numpy() + held


def _by_palette(opinion: Opinion, control: Control, size: tuple[int, int], influence: Influence | None) -> _Draft:
    """Every place gets one of the palette's colours."""
    palette = np.array(control.lock, np.uint8) if control.palette is None else control.palette.rgb
    classes = palette_classes(palette, control.lock, control.ban, control.replace)
    over = classes.judge(opinion)
    chosen = over.log_probabilities.argmax(0).cpu().numpy()
    confidence = _confidence(opinion, classes.chroma[chosen], influence)
    used = np.unique(classes.becomes[classes.allowed])
    hinted = np.zeros((0, 2), np.float32)
    labels = classes.becomes[chosen]
    if influence is not None and control.hints is not None:
        likeliest = _enlarged(over.log_probabilities.exp(), influence.hold.shape[1:]).argmax(0).cpu().numpy()
        labels = _with_hints(classes, classes.becomes[likeliest], influence)
        hints = classes.nearest(control.hints.colours)
        hinted, used = classes.chroma[hints], np.union1d(used, hints)
    small = labels.astype(np.min_scalar_type(len(classes.rgb)))
    rule = OnlyColours(Cells(labels.shape, size), small, classes.chroma)
    shown = replace(over, centres=torch.from_numpy(classes.chroma[classes.becomes]).to(over.centres))
    return _Draft(classes.chroma[labels], [rule], shown, confidence, hinted, classes.rgb[used])


def _with_hints(
    classes: PaletteClasses, labels: Int64[np.ndarray, "height width"], influence: Influence
) -> Int64[np.ndarray, "height width"]:
    """The labels, replaced by a hint's where it holds a place more than the net does."""
    held = np.zeros((len(classes.rgb), *labels.shape), np.float32)
    np.add.at(held, classes.nearest(influence.colours), influence.hold)
    return np.where(held.max(0) > 1 - influence.hold.sum(0), held.argmax(0), labels)


def _by_bins(
    opinion: Opinion, control: Control, temperature: float, size: tuple[int, int], influence: Influence | None
) -> _Draft:
    """Every place gets the annealed mean of the bins that are left, pushed out of what is forbidden."""
    wishes = _Wishes.of(control)
    moved, narrowed = wishes.applied(opinion)
    discs = Discs(wishes.forbidden, REACH)
    chroma = narrowed.chroma(temperature).permute(1, 2, 0).float().cpu().contiguous().numpy()
    chroma = discs.push(chroma)
    confidence = _confidence(moved, chroma, influence)
    hinted, spared = np.zeros((0, 2), np.float32), None
    if influence is not None and control.hints is not None:
        hinted, spreading = (lab_of(colours)[:, 1:] for colours in (control.hints.colours, influence.colours))
        free = 1 - influence.hold.sum(0)
        chroma = _guided(chroma, opinion.lightness.float().cpu().numpy(), influence.lightness) * free[..., None]
        chroma += np.einsum("nhw,nc->hwc", influence.hold, spreading)
        spared = influence.hold[discs.contain(spreading)].sum(0)
    rules: list[Rule] = [OutsideDiscs(Cells(chroma.shape[:2], size), discs, spared)] if len(discs.centres) else []
    return _Draft(chroma, rules, narrowed, confidence, hinted)


@dataclass(frozen=True, eq=False)
class _Wishes:
    """Chroma (a*, b*) of the colours that act on a net's bins."""

    banned: Float64[np.ndarray, "banned 2"]
    old: Float64[np.ndarray, "replaced 2"]
    new: Float64[np.ndarray, "replaced 2"]

    @classmethod
    def of(cls, control: Control) -> "_Wishes":
        """Raises UsageError for a replacement by a colour that may not be used itself."""
        old, new = ([pair[index] for pair in control.replace] for index in (0, 1))
        banned, old_chroma, new_chroma = (
            lab_of(np.array(colours, np.uint8).reshape(-1, 3))[:, 1:].astype(np.float64)
            for colours in (control.ban, old, new)
        )
        wishes = cls(banned, old_chroma, new_chroma)
        discs = Discs(wishes.forbidden, REACH)
        for a, b, lost in zip(old, new, discs.contain(new_chroma), strict=True):
            if lost:
                name, reason = (
                    f"replace {written(a)}={written(b)}",
                    f"within {REACH:g} in a*b* of what is not to be used",
                )
                raise UsageError(f"{name}: {written(b)} lies {reason} (replaced or banned); name another colour")
        return wishes

    @property
    def forbidden(self) -> Float64[np.ndarray, "forbidden 2"]:
        """What no pixel may come near."""
        return np.unique(np.concatenate([self.banned, self.old]), axis=0)

    def applied(self, opinion: Opinion) -> tuple[Opinion, Opinion]:
        """The opinion with the bins of replaced colours moved to the new ones; and without the banned bins.

        Raises UsageError where no bin is left.
        """
        centres = opinion.centres.double().cpu().numpy()
        closed = _distances(centres, self.banned).min(1, initial=np.inf) < REACH
        if len(self.old):
            distance = _distances(centres, self.old)
            replaced = distance.min(1) < REACH
            centres = np.where(replaced[:, None], self.new[distance.argmin(1)], centres)
            closed &= ~replaced
        if closed.all():
            raise UsageError("ban: leaves none of the colours that the net knows; ban fewer")
        moved = replace(opinion, centres=torch.from_numpy(centres).to(opinion.centres))
        if not closed.any():
            return moved, moved
        # What the net itself rules out is only unlikely, so that every place is left something.
        scores = opinion.log_probabilities.clamp(min=-1e4)
        scores = scores.masked_fill(torch.from_numpy(closed).to(scores.device)[:, None, None], -torch.inf)
        return moved, replace(moved, log_probabilities=scores.log_softmax(0))


def _distances(
    points: Float64[np.ndarray, "points 2"], others: Float64[np.ndarray, "others 2"]
) -> Float64[np.ndarray, "points others"]:
    return np.sqrt(((points[:, None] - others) ** 2).sum(-1))
