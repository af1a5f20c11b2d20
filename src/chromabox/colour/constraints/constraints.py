"""Constraints on the colours of an image: a palette; allowed, banned and replaced colours; hints; minimum confidence.

Constraints change the predicted distribution before it is decoded. Pixel rules then enforce the constraints at every
pixel of the full-size image. A rule is called with the full-size chroma of a band of rows and with the band, and
returns chroma that satisfies the constraint. Bands can be processed in any order and by several threads. The module
``recolour`` applies the rules before gamut mapping. Where the resulting chroma is outside the sRGB gamut at the
lightness of the pixel, gamut mapping reduces the chroma and keeps hue and lightness.

Precedence: hints override all other constraints, except that they take the nearest palette colours if there is a
palette. The minimum confidence overrides bans and the palette. Replacements override bans.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from chromabox.colour.chroma.distribution import SAME_COLOUR_RADIUS, ChromaDistribution, log_softmax, softmax
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.chroma.recolour import ChromaBand, ChromaHook, downsample, fit_local_linear, resize_planes
from chromabox.colour.constraints.hints import Hints, propagate_hints
from chromabox.colour.constraints.pixel_rules import ExclusionZones, palette_only
from chromabox.colour.palette.io import Colour, load_palette, to_hex
from chromabox.colour.palette.palette import Palette, fit_palette
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, read_image, to_uint8

#: Width (σ, in a* and b*) of the Gaussian that distributes a bin's probability over the palette colours near it.
PALETTE_CHROMA_SIGMA = 10.0
#: Width (σ, in L*) of the Gaussian that penalises palette colours whose lightness differs from that of the pixel.
PALETTE_LIGHTNESS_SIGMA = 25.0
#: Without a palette, banning or replacing a colour applies to all chroma within this distance of the colour in the
#: a*b* plane, at any lightness.
COLOUR_RADIUS = SAME_COLOUR_RADIUS
#: Minimum number of cells of the map on which hints are propagated, unless the image has fewer pixels.
MIN_HINT_CELLS = 40_000
#: Maximum number of colours of a palette that is fitted to an image.
IMAGE_PALETTE_SIZE = 16

#: Propagated hints: the lightness of the map [height, width] and, for each group of hints, the weights
#: [groups, height, width] and the 8-bit colour [groups, 3].
SpreadHints = tuple[np.ndarray, np.ndarray, np.ndarray]
RgbColours = Sequence[Colour] | UInt8[np.ndarray, "others 3"]


@dataclass(frozen=True, eq=False)
class PaletteProjection:
    """Palette colours as classes, onto which a distribution over chroma bins can be projected.

    Attributes:
        rgb: the colours in 8-bit sRGB, without duplicates.
        allowed: mask of the classes that can be selected. At least one class is allowed.
        replaced_by: for each class, the index of the class whose colour is used instead, or the class's own index if it
            is not replaced.
    """

    rgb: UInt8[np.ndarray, "colours 3"]
    allowed: Bool[np.ndarray, " colours"]
    replaced_by: Int64[np.ndarray, " colours"]

    @cached_property
    def lab(self) -> Float32[np.ndarray, "colours 3"]:
        return rgb_to_lab(self.rgb)

    @cached_property
    def chroma(self) -> Float32[np.ndarray, "colours 2"]:
        return np.ascontiguousarray(self.lab[:, 1:])

    def project(self, distribution: ChromaDistribution) -> ChromaDistribution:
        """Project a distribution over bins onto these classes. The log-probability of a disallowed class is −∞.

        The probability of each bin is distributed over the allowed colours in proportion to a Gaussian of their
        distance from the bin in the a*b* plane (σ = ``PALETTE_CHROMA_SIGMA``). The result is the log-softmax of scores.
        The score of a colour is the sum of two terms:

        * log(p · n), where p is the probability of the colour and n is the number of allowed colours with similar
          chroma. Similar colours share their probability, so that without n, three browns could lose to one red;
        * −(L* − L*_colour)² / (2 · ``PALETTE_LIGHTNESS_SIGMA``²), where L*_colour is the lightness of the colour.
        """
        chroma, excluded = self.chroma, ~self.allowed
        log_kernel, log_similarity = (
            -((points[:, None] - chroma) ** 2).sum(-1) / np.float32(2 * PALETTE_CHROMA_SIGMA**2)
            for points in (distribution.centres, chroma)
        )
        log_kernel[:, excluded] = -np.inf
        probability = np.tensordot(softmax(log_kernel, 1), np.exp(distribution.log_probabilities), axes=(0, 0))
        num_similar = np.exp(log_similarity) @ self.allowed.astype(np.float32)
        squared_difference = (distribution.lightness - self.lab[:, 0, None, None]) ** 2
        # The lower bound keeps the scores finite even where all allowed colours are far from every likely bin. Every
        # position therefore has a class.
        scores = np.log(np.maximum(probability, np.float32(1e-30)))
        scores -= squared_difference / np.float32(2 * PALETTE_LIGHTNESS_SIGMA**2)
        scores += np.log(np.maximum(num_similar, np.float32(1e-30)))[:, None, None]
        scores[excluded] = -np.inf
        return ChromaDistribution(log_softmax(scores, 0), chroma, distribution.lightness)


def build_projection(
    palette: UInt8[np.ndarray, "colours 3"],
    allowed_colours: Sequence[Colour],
    banned_colours: Sequence[Colour],
    replacements: Sequence[tuple[Colour, Colour]],
) -> PaletteProjection:
    """Apply constraints to a palette and return its colours as classes.

    A constraint on a colour applies to the nearest palette colour. All colours are 8-bit sRGB. The allowed colours
    become the only classes. If there are none, all palette colours are allowed. A pair (A, B) means that colour A is
    replaced by B. Raise UsageError if no colour is left, or if a replacement has no effect or contradicts another
    constraint.
    """
    every = np.unique(palette, axis=0)
    old_colours, new_colours = ([pair[index] for pair in replacements] for index in (0, 1))
    allowed, banned, old, new = (
        _nearest(every, colours) for colours in (allowed_colours, banned_colours, old_colours, new_colours)
    )
    kept = np.unique(allowed) if len(allowed) else np.arange(len(every))
    replaced_by = np.arange(len(every))
    for (first, second), a, b in zip(replacements, old, new, strict=True):
        issue = None
        if a == b:
            issue = f"{to_hex(tuple(every[a].tolist()))} is the palette colour nearest to both; use other colours"
        elif b not in kept or b in banned or b in old:
            issue = f"{to_hex(second)} is banned, replaced or not among the allowed colours; use another colour"
        elif replaced_by[a] not in (a, b):
            issue = f"{to_hex(first)} has two different replacements; expected one"
        if issue:
            raise UsageError(f"replace {to_hex(first)}={to_hex(second)}: {issue}")
        replaced_by[a] = b
    is_allowed = ~np.isin(np.arange(len(every)), banned)
    if not is_allowed[kept].any():
        kind = "allowed" if len(allowed) else "palette"
        raise UsageError(f"ban: all {kind} colours are banned; ban fewer colours or allow others")
    # A replaced colour can still be selected. Where it is selected, its replacement is used.
    is_allowed[old] = True
    return PaletteProjection(every[kept], is_allowed[kept], np.searchsorted(kept, replaced_by[kept]))


def _nearest(palette: UInt8[np.ndarray, "colours 3"], colours: RgbColours) -> Int64[np.ndarray, " others"]:
    """Return, for each colour, the index of the nearest palette colour in CIELAB. All colours are 8-bit sRGB."""
    lab = _to_lab(colours)
    return np.stack([((lab - reference) ** 2).sum(-1) for reference in rgb_to_lab(palette)]).argmin(0)


def _to_lab(colours: RgbColours) -> Float32[np.ndarray, "others 3"]:
    return rgb_to_lab(np.asarray(colours, np.uint8).reshape(-1, 3))


@dataclass(frozen=True)
class ColourConstraints:
    """Constraints on the colours of an image. By default, there are none.

    Attributes:
        palette: use only the colours of this palette.
        allowed: use only these colours. Without a palette, they form the palette. With a palette, the palette colours
            nearest to them are used.
        banned: colours not to use. With a palette, the nearest palette colours are excluded. Without a palette, all
            chroma within ``COLOUR_RADIUS`` of these colours is excluded. Banning a grey therefore also bans pale
            colours, and grey pixels get the nearest chroma at distance ``COLOUR_RADIUS``.
        replacements: pairs (A, B). Colour A is not used; colour B is used in its place.
        hints: colours painted on the image, which override bans. With a palette, the nearest palette colours are used.
        min_confidence: leave pixels grey where the model's confidence in the selected chroma is lower than this value
            (0 to 1).

    Raise UsageError if constraints contradict each other or the minimum confidence is not from 0 to 1.
    """

    palette: Palette | None = None
    allowed: tuple[Colour, ...] = ()
    banned: tuple[Colour, ...] = ()
    replacements: tuple[tuple[Colour, Colour], ...] = ()
    hints: Hints | None = None
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"min_confidence is {self.min_confidence}: expected a number from 0 to 1")
        # Contradictory constraints raise an error here, before an image is processed.
        _ = self.classes or self.zones

    @cached_property
    def classes(self) -> PaletteProjection | None:
        """The colours of the palette as classes; None if neither a palette nor allowed colours are given."""
        if self.palette is None and not self.allowed:
            return None
        palette = np.array(self.allowed, np.uint8) if self.palette is None else self.palette.rgb
        return build_projection(palette, self.allowed, self.banned, self.replacements)

    @cached_property
    def chroma_points(self) -> list[Float64[np.ndarray, "colours 2"]]:
        """The chroma of the banned colours, the replaced colours and their replacements."""
        old, new = ([pair[index] for pair in self.replacements] for index in (0, 1))
        return [_to_lab(colours)[:, 1:].astype(np.float64) for colours in (self.banned, old, new)]

    @cached_property
    def zones(self) -> ExclusionZones:
        """Zones around the chroma of banned and replaced colours, from which chroma is excluded if there is no palette.

        Raise UsageError if a replacement is inside a zone.
        """
        banned, old, new = self.chroma_points
        zones = ExclusionZones(np.unique(np.concatenate([banned, old]), axis=0), COLOUR_RADIUS)
        for (a, b), is_excluded in zip(self.replacements, zones.contains(new), strict=True):
            if is_excluded:
                reason = f"within a distance of {COLOUR_RADIUS:g} in a*b* from a replaced or banned colour"
                raise UsageError(f"replace {to_hex(a)}={to_hex(b)}: {to_hex(b)} is {reason}; use another colour")
        return zones


@dataclass(frozen=True, eq=False)
class ColourPrediction:
    """Result of applying constraints to a predicted distribution.

    Attributes:
        chroma: small map of a* and b*, which the module ``recolour`` upsamples. With hints, the resolution of the map
            is higher than that of the distribution.
        chroma_hook: pixel rules that enforce the constraints at full size; None if there are no rules.
        distribution: the distribution after the palette, replacements and bans have been applied, but before the hints.
            With a palette, its classes are the palette colours.
        confidence: the model's confidence in the selected chroma before bans are applied, at the resolution of the map;
            1 where hints determine the colour.
        palette: the palette colours that can occur, in 8-bit sRGB; None without a palette.
    """

    chroma: Float32[np.ndarray, "height width 2"]
    chroma_hook: ChromaHook | None
    distribution: ChromaDistribution
    confidence: Float32[np.ndarray, "map_height map_width"]
    palette: UInt8[np.ndarray, "colours 3"] | None


def apply_constraints(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    temperature: float,
    image_size: tuple[int, int],
    *,
    gain: float = 1.0,
    full_confidence: float = 0.0,
    guide: Float32[np.ndarray, "guide_height guide_width"] | None = None,
) -> ColourPrediction:
    """Apply constraints to a predicted distribution and decode its chroma.

    Args:
        distribution: the model's prediction.
        constraints: the user's constraints.
        temperature: temperature of the annealed mean (``ChromaDistribution.anneal``). It has no effect with a
            palette, because the most likely colour is selected.
        image_size: height and width of the full-size image.
        gain: factor of the decoded chroma. Like ``full_confidence``, it has no effect with a palette.
        full_confidence: confidence below which the decoded chroma is reduced (``ChromaDistribution.decode``).
        guide: L* (0 to 100) of the image, at any resolution higher than that of the distribution. The propagation of
            hints stops at edges in the guide. By default, the lightness of the distribution is the guide.

    Raise UsageError if all colours of the model are banned or the temperature is negative.
    """
    hints, spread = constraints.hints, None
    if hints is not None:
        # Propagate hints on a map at least as fine as the distribution, with MIN_HINT_CELLS cells if possible.
        scale = (MIN_HINT_CELLS / (image_size[0] * image_size[1])) ** 0.5
        small = distribution.lightness
        sides = zip(small.shape, image_size, strict=True)
        map_size = [max(cells, min(full, round(scale * full))) for cells, full in sides]
        lightness = downsample(small if guide is None else guide, *map_size)
        upsampled = _guided_upsample(distribution.chroma(1.0), small, lightness)
        spread = (lightness, *propagate_hints(hints, lightness, upsampled))
    if constraints.classes is not None:
        prediction = _select_classes(distribution, constraints.classes, image_size, hints, spread)
    else:
        decode = partial(ChromaDistribution.decode, temperature=temperature, gain=gain, full_confidence=full_confidence)
        prediction = _constrain_bins(distribution, constraints, decode, image_size, spread)
    first_rule, confidence, min_confidence = prediction.chroma_hook, prediction.confidence, constraints.min_confidence
    label_chroma = np.zeros((1, 2), np.float32)  # Label 0: not painted.
    if hints is not None and spread is not None:
        # Blend the confidence of the model with that of the hints, which is 1.
        weight = spread[1].sum(0)
        confidence = (1 - weight) * resize_planes(confidence[None], *weight.shape)[0] + weight
        classes, colours = constraints.classes, hints.colours
        painted = _to_lab(colours)[:, 1:] if classes is None else classes.chroma[_nearest(classes.rgb, colours)]
        label_chroma = np.concatenate([label_chroma, painted])

    def apply_rules(chroma: ChromaBand, band: slice) -> ChromaBand:
        if first_rule is not None:
            chroma = first_rule(chroma, band)
        if min_confidence > 0:
            is_confident = resize_planes(confidence[None], *image_size, band)[0] >= min_confidence
            chroma = np.where(is_confident[..., None], chroma, np.float32(0))
        if hints is not None:
            labels = hints.labels[band]
            chroma = np.where(labels[..., None] > 0, label_chroma[labels], chroma)
        return chroma

    has_rules = first_rule is not None or min_confidence > 0 or hints is not None
    return replace(prediction, confidence=confidence, chroma_hook=apply_rules if has_rules else None)


def _guided_upsample(
    chroma: Float32[np.ndarray, "height width 2"],
    lightness: Float32[np.ndarray, "height width"],
    target_lightness: Float32[np.ndarray, "finer_height finer_width"],
) -> Float32[np.ndarray, "finer_height finer_width 2"]:
    """Upsample a small chroma map to the size of a larger lightness map, as ``recolour`` does."""
    upsampler = fit_local_linear(chroma, lightness, *target_lightness.shape)
    planes = upsampler.rows(slice(0, len(target_lightness)), target_lightness)
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _select_classes(
    distribution: ChromaDistribution,
    classes: PaletteProjection,
    image_size: tuple[int, int],
    hints: Hints | None,
    spread: SpreadHints | None,
) -> ColourPrediction:
    """Select a palette colour at every position."""
    projected = classes.project(distribution)
    selected = projected.log_probabilities.argmax(0)
    confidence = distribution.confidence(classes.chroma[selected])
    labels, used = classes.replaced_by[selected], np.unique(classes.replaced_by[classes.allowed])
    if spread is not None and hints is not None:
        _, group_weights, group_colours = spread
        map_size = group_weights.shape[1:]
        most_likely = resize_planes(np.exp(projected.log_probabilities), *map_size).argmax(0)
        weights = np.zeros((len(classes.rgb), *map_size), np.float32)
        np.add.at(weights, _nearest(classes.rgb, group_colours), group_weights)
        # The weight of the model's prediction is 1 minus the sum of the group weights.
        is_hint = weights.max(0) > 1 - group_weights.sum(0)
        labels = np.where(is_hint, weights.argmax(0), classes.replaced_by[most_likely])
        used = np.union1d(used, _nearest(classes.rgb, hints.colours))
    compact_labels = labels.astype(np.min_scalar_type(len(classes.rgb)))
    rule = partial(palette_only, image_size=image_size, labels=compact_labels, label_chroma=classes.chroma)
    shown = replace(projected, centres=classes.chroma[classes.replaced_by])
    return ColourPrediction(classes.chroma[labels], rule, shown, confidence, classes.rgb[used])


def _constrain_bins(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    decode: Callable[[ChromaDistribution], Float32[np.ndarray, "height width 2"]],
    image_size: tuple[int, int],
    spread: SpreadHints | None,
) -> ColourPrediction:
    """Decode the bins that are not banned, and move the chroma out of the exclusion zones."""
    zones, (banned, old, new) = constraints.zones, constraints.chroma_points
    centres = distribution.centres.astype(np.float64)
    to_banned, to_old = (np.sqrt(((centres[:, None] - colours) ** 2).sum(-1)) for colours in (banned, old))
    is_banned = to_banned.min(1, initial=np.inf) < COLOUR_RADIUS
    if len(old):
        is_replaced = to_old.min(1) < COLOUR_RADIUS
        centres = np.where(is_replaced[:, None], new[to_old.argmin(1)], centres)
        is_banned &= ~is_replaced
    if is_banned.all():
        raise UsageError("ban: all colours of the model are banned; ban fewer colours")
    replaced = remaining = replace(distribution, centres=centres.astype(np.float32))
    if is_banned.any():
        # Raise probabilities of 0 to a tiny value, so that each position keeps a colour if all likely bins are banned.
        scores = np.maximum(distribution.log_probabilities, np.float32(-1e4))
        scores[is_banned] = -np.inf
        remaining = replace(replaced, log_probabilities=log_softmax(scores, 0))
    chroma = zones.push_out(decode(remaining))
    confidence = replaced.confidence(chroma)
    exempt = None
    if spread is not None:
        lightness, weights, group_colours = spread
        group_chroma = _to_lab(group_colours)[:, 1:]
        chroma = _guided_upsample(chroma, distribution.lightness, lightness) * (1 - weights.sum(0))[..., None]
        chroma += np.einsum("nhw,nc->hwc", weights, group_chroma)
        exempt = weights[zones.contains(group_chroma)].sum(0)

    def exclude_zones(full_chroma: ChromaBand, band: slice) -> ChromaBand:
        pushed = zones.push_out(full_chroma)
        if exempt is None:
            return pushed
        return np.where(resize_planes(exempt[None], *image_size, band)[0, ..., None] > 0.5, full_chroma, pushed)

    rule = exclude_zones if len(zones.centres) else None
    return ColourPrediction(chroma, rule, remaining, confidence, None)


def palette_from_image_or_file(path_or_name: str | Path) -> Palette:
    """Load a palette by name or from a palette file (``load_palette``), or fit a palette to an image file.

    The suffix shows whether the file is an image. The palette of an image with fewer than ``IMAGE_PALETTE_SIZE``
    different colours consists of these colours. Raise UsageError for a missing file, and ChromaboxError for an invalid
    palette, an invalid image, or an image with fewer than two colours.
    """
    path = Path(path_or_name)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return load_palette(path_or_name)
    if not path.exists():
        raise UsageError(f"{path}: does not exist; expected a palette or an image")
    pixels = read_image(path).pixels
    # Subsample to about one megapixel, because only the distribution of colours matters.
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
    rows = to_uint8(pixels[::step, ::step]).reshape(-1, 3)
    num_different = len(np.unique(rows.astype(np.int64) @ [1 << 16, 1 << 8, 1]))
    if num_different < 2:
        raise ChromaboxError(f"{path}: has only one colour; use an image with two or more colours")
    return fit_palette(rows, min(IMAGE_PALETTE_SIZE, num_different), name=path.stem)
