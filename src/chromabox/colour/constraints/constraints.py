"""Constraints on the colours of an image: a palette; allowed, banned and replaced colours; hints; minimum confidence.

Constraints change the predicted distribution before it is decoded. Pixel rules (pixel_rules.py) enforce them at each
pixel at full size. The module recolour applies the rules before gamut mapping. Where the resulting chroma is outside
the sRGB gamut at the lightness of the pixel, gamut mapping keeps hue and lightness and reduces chroma.

Precedence: hints override everything else. The minimum confidence overrides bans and the palette. Replacements override
bans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from chromabox.colour.chroma.distribution import SAME_COLOUR_RADIUS, ChromaDistribution, log_softmax, softmax
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.chroma.recolour import ChromaBand, ChromaHook, downsample, fit_local_linear, resize_planes
from chromabox.colour.constraints.hints import Hints, HintWeights, propagate_hints
from chromabox.colour.constraints.pixel_rules import (
    ExclusionZones,
    exclude_zones,
    grey_below_confidence,
    hint_pixels,
    palette_only,
)
from chromabox.colour.palette.io import Colour, load_palette, to_hex
from chromabox.colour.palette.palette import Palette, fit_palette
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, read_image, to_uint8

#: Width (σ, in a* and b*) of the Gaussian that distributes a bin's probability over the palette colours near it.
PALETTE_CHROMA_SIGMA = 10.0

#: Width (σ, in L*) of the Gaussian that penalises palette colours whose lightness differs from that of the pixel.
PALETTE_LIGHTNESS_SIGMA = 25.0

#: Number of colours processed at a time, to limit memory use.
_CHUNK_SIZE = 1 << 14


@dataclass(frozen=True, eq=False)
class PaletteProjection:
    """Colours of a palette, used as classes.

    Attributes:
        rgb: the colours, without duplicates, 8-bit sRGB.
        allowed: mask of the classes that can be selected, of which there is at least one.
        replaced_by: for each class, the class whose colour is shown where it is selected. Unless a class is replaced,
        this is
            the class itself.
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

        Each bin distributes its probability over the allowed colours with a Gaussian of their distance in a*b*
        (σ ``PALETTE_CHROMA_SIGMA``), normalised over the colours. The score of a colour is the sum of two terms:

        * the logarithm of its probability times the number of allowed colours with similar chroma. The factor
          compensates for similar colours sharing their probability: otherwise, three browns could lose to one red;
        * −(L* − L*_colour)² / (2 · PALETTE_LIGHTNESS_SIGMA²).
        """
        chroma, excluded = self.chroma, ~self.allowed
        log_kernel = _log_gaussian(distribution.centres, chroma)
        log_kernel[:, excluded] = -np.inf
        fractions = softmax(log_kernel, 1)
        probability = np.tensordot(fractions, np.exp(distribution.log_probabilities), axes=(0, 0))
        num_similar = np.exp(_log_gaussian(chroma, chroma)) @ self.allowed.astype(np.float32)
        lightness_term = (distribution.lightness - self.lab[:, 0, None, None]) ** 2 / np.float32(
            2 * PALETTE_LIGHTNESS_SIGMA**2
        )
        # The lower bound keeps the scores of colours far from every likely bin finite, so that each position has a
        # class.
        scores = np.log(np.maximum(probability, np.float32(1e-30))) - lightness_term
        scores += np.log(np.maximum(num_similar, np.float32(1e-30)))[:, None, None]
        scores[excluded] = -np.inf
        return ChromaDistribution(log_softmax(scores, 0), chroma, distribution.lightness)


def _log_gaussian(
    points: Float32[np.ndarray, "points 2"], references: Float32[np.ndarray, "others 2"]
) -> Float32[np.ndarray, "points others"]:
    """Return the log of an unnormalised Gaussian of all pairwise distances, with σ = ``PALETTE_CHROMA_SIGMA``."""
    squared_distances: np.ndarray = ((points[:, None] - references) ** 2).sum(-1)
    return -squared_distances / np.float32(2 * PALETTE_CHROMA_SIGMA**2)


def build_projection(
    palette: UInt8[np.ndarray, "colours 3"],
    allowed_colours: Sequence[Colour],
    banned_colours: Sequence[Colour],
    replacements: Sequence[tuple[Colour, Colour]],
) -> PaletteProjection:
    """Return the palette colours as classes. A constraint on a colour applies to the nearest palette colour.

    Args:
        palette: the palette colours in 8-bit sRGB.
        allowed_colours: colours that become the only classes. An empty sequence allows all palette colours.
        banned_colours: colours that are not allowed.
        replacements: pairs (A, B): colour A is replaced by B.

    Raise UsageError if no colour is left, or if the replacement of a colour is not available.
    """
    every = np.unique(palette, axis=0)
    remaining = np.unique(_nearest(every, allowed_colours)) if len(allowed_colours) else np.arange(len(every))
    class_index = np.full(len(every), -1)
    class_index[remaining] = np.arange(len(remaining))
    classes = PaletteProjection(every[remaining], np.ones(len(remaining), bool), np.arange(len(remaining)))
    banned, old, new = (
        class_index[_nearest(every, colours)]
        for colours in (banned_colours, [pair[0] for pair in replacements], [pair[1] for pair in replacements])
    )
    for (first, second), a, b in zip(replacements, old, new, strict=True):
        name = f"replace {to_hex(first)}={to_hex(second)}"
        if a == b >= 0:
            shared = to_hex(tuple(classes.rgb[b].tolist()))
            raise UsageError(
                f"{name}: both colours are nearest to the palette colour {shared}; use colours that differ more"
            )
        if b < 0 or b in banned or b in old:
            raise UsageError(
                f"{name}: {to_hex(second)} is banned, replaced or not among the allowed colours; use another colour"
            )
        if a >= 0 and classes.replaced_by[a] not in (a, b):
            raise UsageError(f"{name}: {to_hex(first)} has two different replacements; use only one")
        if a >= 0:
            classes.replaced_by[a] = b
    classes.allowed[banned[banned >= 0]] = False
    if not classes.allowed.any():
        raise UsageError("ban: no colour of the palette is left; ban fewer colours or allow others")
    # A replaced colour can still be selected; it is then shown as its replacement.
    classes.allowed[old[old >= 0]] = True
    return classes


def _nearest(
    palette: UInt8[np.ndarray, "colours 3"], colours: Sequence[Colour] | UInt8[np.ndarray, "others 3"]
) -> Int64[np.ndarray, " others"]:
    """Return the index of the palette colour nearest to each colour in CIELab. All colours are 8-bit sRGB."""
    palette_lab, lab = rgb_to_lab(palette), _to_lab(colours)
    result = np.empty(len(lab), np.int64)
    for start in range(0, len(lab), _CHUNK_SIZE):
        chunk = lab[start : start + _CHUNK_SIZE]
        result[start : start + _CHUNK_SIZE] = ((chunk[:, None] - palette_lab) ** 2).sum(-1).argmin(1)
    return result


def _to_lab(colours: Sequence[Colour] | UInt8[np.ndarray, "others 3"]) -> Float32[np.ndarray, "others 3"]:
    return rgb_to_lab(np.asarray(colours, np.uint8).reshape(-1, 3))


#: Without a palette, a colour stands for all chroma within this distance in the a*b* plane, at any lightness.
COLOUR_RADIUS = SAME_COLOUR_RADIUS

#: Minimum number of cells of the map on which hints are propagated, unless the image has fewer pixels.
MIN_HINT_CELLS = 40_000

#: Number of colours of a palette that is fitted to an image.
IMAGE_PALETTE_SIZE = 16


@dataclass(frozen=True)
class ColourConstraints:
    """Constraints on the colours of an image. By default, there are none.

    Attributes:
        palette: use only the colours of this palette.
        allowed: use only these colours. Without a palette, they form the palette. With a palette, the palette colours
            nearest to them are used.
        banned: colours not to use. With a palette, this excludes the nearest palette colours; without a palette, it
            excludes all chroma within ``COLOUR_RADIUS``. A banned grey also bans pale colours: greys are moved to the
            nearest chroma at distance ``COLOUR_RADIUS``.
        replacements: pairs (A, B): colour A is replaced by B and not used.
        hints: colours painted on the image. They override bans. With a palette, the nearest palette colours are
            used.
        min_confidence: leave pixels grey where the model's confidence in the selected chroma is lower than this value
            (0 to 1).

    Raise UsageError for a minimum confidence outside 0 to 1.
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


@dataclass(frozen=True, eq=False)
class ColourPrediction:
    """Result of applying constraints to a predicted distribution.

    Attributes:
        chroma: a* and b* of a small map, which recolour upsamples. With hints it has a higher resolution than the
            distribution.
        chroma_hook: pixel rules for recolour that enforce the constraints at full size; None if there are no rules.
        distribution: the distribution after palette, replacements and bans have been applied, but before hints. With a
            palette, its classes are the palette colours.
        confidence: the model's confidence in the selected chroma, before bans, at the size of the map. It is 1 where
        hints
            determine the colour.
        palette: the palette colours that can occur, in 8-bit sRGB; None without a palette.
    """

    chroma: Float32[np.ndarray, "height width 2"]
    chroma_hook: ChromaHook | None
    distribution: ChromaDistribution
    confidence: Float32[np.ndarray, "height width"]
    palette: UInt8[np.ndarray, "colours 3"] | None


def apply_constraints(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    temperature: float,
    image_size: tuple[int, int],
    *,
    guide: Float32[np.ndarray, "guide_height guide_width"] | None = None,
) -> ColourPrediction:
    """Apply constraints to a predicted distribution and decode its chroma.

    Args:
        distribution: the model's prediction.
        constraints: the user's constraints.
        temperature: temperature of the annealed mean (``ChromaDistribution.anneal``). It has no effect with a
            palette, because the most likely colour is selected.
        image_size: height and width of the full-size image.
        guide: L* (0 to 100) of the image, at any higher resolution than the distribution. Hints stop at the edges of
            this guide. By default, the lightness of the distribution is the guide.

    Raise UsageError for contradictory constraints and for a negative temperature.
    """
    hints, hint_weights = constraints.hints, None
    if hints is not None:
        hint_weights = _spread_hints(distribution, hints, image_size, guide)
    if constraints.palette is not None or constraints.allowed:
        prediction, hint_chroma = _constrain_to_palette(distribution, constraints, image_size, hint_weights)
    else:
        prediction, hint_chroma = _constrain_bins(distribution, constraints, temperature, image_size, hint_weights)
    rules = [] if prediction.chroma_hook is None else [prediction.chroma_hook]
    if constraints.min_confidence > 0:
        confidence, limit = prediction.confidence, constraints.min_confidence
        rules.append(partial(grey_below_confidence, image_size=image_size, confidence=confidence, min_confidence=limit))
    if hints is not None:
        rules.append(partial(hint_pixels, labels=hints.labels, label_chroma=hint_chroma))

    def apply_rules(chroma: ChromaBand, band: slice) -> ChromaBand:
        for rule in rules:
            chroma = rule(chroma, band)
        return chroma

    return replace(prediction, chroma_hook=apply_rules if rules else None)


def palette_from_image_or_file(path_or_name: str | Path) -> Palette:
    """Load a palette by name or from a palette file (``load_palette``), or fit one to an image file.

    The suffix determines the kind of file. An image with fewer than ``IMAGE_PALETTE_SIZE`` different colours gives a
    palette of these colours. Raise ChromaboxError for an invalid palette, an invalid image and an image with fewer than
    two colours.
    """
    path = Path(path_or_name)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return load_palette(path_or_name)
    pixels = read_image(path).pixels
    # Subsample to about one megapixel, because only the distribution of colours matters.
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
    rows = to_uint8(pixels[::step, ::step]).reshape(-1, 3)
    different = len(np.unique(rows.astype(np.int64) @ [1 << 16, 1 << 8, 1]))
    if different < 2:
        raise ChromaboxError(f"{path}: has only one colour; use an image with two or more")
    return fit_palette(rows, min(IMAGE_PALETTE_SIZE, different), name=path.stem)


def _spread_hints(
    distribution: ChromaDistribution,
    hints: Hints,
    image_size: tuple[int, int],
    guide: Float32[np.ndarray, "guide_height guide_width"] | None,
) -> HintWeights:
    """Propagate hints on a map at least as fine as the distribution, with ``MIN_HINT_CELLS`` cells if possible."""
    scale = (MIN_HINT_CELLS / (image_size[0] * image_size[1])) ** 0.5
    small = distribution.lightness.shape
    height, width = (max(cells, min(full, round(scale * full))) for cells, full in zip(small, image_size, strict=True))
    small_lightness = distribution.lightness
    lightness = downsample(small_lightness if guide is None else guide, height, width)
    chroma = distribution.chroma(1.0)
    return propagate_hints(hints, lightness, _guided_upsample(chroma, small_lightness, lightness))


def _guided_upsample(
    chroma: Float32[np.ndarray, "height width 2"],
    lightness: Float32[np.ndarray, "height width"],
    target_lightness: Float32[np.ndarray, "finer_height finer_width"],
) -> Float32[np.ndarray, "finer_height finer_width 2"]:
    """Upsample a small chroma map to the size of a larger lightness map, as recolour does."""
    planes = fit_local_linear(chroma, lightness, *target_lightness.shape).rows(
        slice(0, len(target_lightness)), target_lightness
    )
    return np.ascontiguousarray(np.moveaxis(planes, 0, -1))


def _confidence(
    distribution: ChromaDistribution, chroma: Float32[np.ndarray, "height width 2"], hint_weights: HintWeights | None
) -> Float32[np.ndarray, "map_height map_width"]:
    """Return the model's confidence in its chroma map, blended with the hints' confidence, which is 1."""
    confidence = distribution.confidence(chroma)
    if hint_weights is None:
        return confidence
    weight = hint_weights.weights.sum(0)
    return (1 - weight) * resize_planes(confidence[None], *weight.shape)[0] + weight


def _constrain_to_palette(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    image_size: tuple[int, int],
    hint_weights: HintWeights | None,
) -> tuple[ColourPrediction, Float32[np.ndarray, "labels 2"]]:
    """Assign a palette colour to every position. Return the prediction and the chroma of each hint label."""
    palette = np.array(constraints.allowed, np.uint8) if constraints.palette is None else constraints.palette.rgb
    classes = build_projection(palette, constraints.allowed, constraints.banned, constraints.replacements)
    projected = classes.project(distribution)
    selected = projected.log_probabilities.argmax(0)
    confidence = _confidence(distribution, classes.chroma[selected], hint_weights)
    used = np.unique(classes.replaced_by[classes.allowed])
    hint_chroma = np.zeros((0, 2), np.float32)
    labels = classes.replaced_by[selected]
    if hint_weights is not None and constraints.hints is not None:
        map_size = hint_weights.lightness.shape
        most_likely = resize_planes(np.exp(projected.log_probabilities), *map_size).argmax(0)
        weights = np.zeros((len(classes.rgb), *map_size), np.float32)
        np.add.at(weights, _nearest(classes.rgb, hint_weights.colours), hint_weights.weights)
        # The model's weight is the remainder.
        is_hint = weights.max(0) > 1 - hint_weights.weights.sum(0)
        labels = np.where(is_hint, weights.argmax(0), classes.replaced_by[most_likely])
        hints = _nearest(classes.rgb, constraints.hints.colours)
        hint_chroma, used = classes.chroma[hints], np.union1d(used, hints)
    compact_labels = labels.astype(np.min_scalar_type(len(classes.rgb)))
    rule = partial(palette_only, image_size=image_size, labels=compact_labels, label_chroma=classes.chroma)
    shown = replace(projected, centres=classes.chroma[classes.replaced_by])
    return ColourPrediction(classes.chroma[labels], rule, shown, confidence, classes.rgb[used]), hint_chroma


def _constrain_bins(
    distribution: ChromaDistribution,
    constraints: ColourConstraints,
    temperature: float,
    image_size: tuple[int, int],
    hint_weights: HintWeights | None,
) -> tuple[ColourPrediction, Float32[np.ndarray, "labels 2"]]:
    """Assign the annealed mean of the remaining bins to every position, moved out of the exclusion zones.

    Return the prediction and the chroma of each hint label.
    """
    old, new = ([pair[index] for pair in constraints.replacements] for index in (0, 1))
    banned, replaced, replacements = (
        _to_lab(colours)[:, 1:].astype(np.float64) for colours in (constraints.banned, old, new)
    )
    zones = ExclusionZones(np.unique(np.concatenate([banned, replaced]), axis=0), COLOUR_RADIUS)
    for a, b, is_excluded in zip(old, new, zones.contains(replacements), strict=True):
        if is_excluded:
            reason = f"within {COLOUR_RADIUS:g} in a*b* of a replaced or banned colour"
            raise UsageError(f"replace {to_hex(a)}={to_hex(b)}: {to_hex(b)} is {reason}; use another colour")
    moved, remaining = _edit_bins(distribution, banned, replaced, replacements)
    chroma = zones.push_out(remaining.chroma(temperature))
    confidence = _confidence(moved, chroma, hint_weights)
    hint_chroma, exempt = np.zeros((0, 2), np.float32), None
    if hint_weights is not None and constraints.hints is not None:
        hint_chroma, group_chroma = (_to_lab(hints.colours)[:, 1:] for hints in (constraints.hints, hint_weights))
        model_weight = 1 - hint_weights.weights.sum(0)
        chroma = _guided_upsample(chroma, distribution.lightness, hint_weights.lightness) * model_weight[..., None]
        chroma += np.einsum("nhw,nc->hwc", hint_weights.weights, group_chroma)
        exempt = hint_weights.weights[zones.contains(group_chroma)].sum(0)
    rule = partial(exclude_zones, image_size=image_size, zones=zones, exempt=exempt) if len(zones.centres) else None
    return ColourPrediction(chroma, rule, remaining, confidence, None), hint_chroma


def _edit_bins(
    distribution: ChromaDistribution,
    banned_chroma: Float64[np.ndarray, "banned 2"],
    replaced_chroma: Float64[np.ndarray, "replaced 2"],
    replacements: Float64[np.ndarray, "replaced 2"],
) -> tuple[ChromaDistribution, ChromaDistribution]:
    """Move the replaced bins to their replacements. Return the result with and without the banned bins.

    Raise UsageError if no bin is left.
    """
    centres = distribution.centres.astype(np.float64)
    to_banned, to_replaced = (
        np.sqrt(((centres[:, None] - colours) ** 2).sum(-1)) for colours in (banned_chroma, replaced_chroma)
    )
    banned = to_banned.min(1, initial=np.inf) < COLOUR_RADIUS
    if len(replaced_chroma):
        replaced = to_replaced.min(1) < COLOUR_RADIUS
        centres = np.where(replaced[:, None], replacements[to_replaced.argmin(1)], centres)
        banned &= ~replaced
    if banned.all():
        raise UsageError("ban: no colour of the model is left; ban fewer colours")
    moved = replace(distribution, centres=centres.astype(np.float32))
    if not banned.any():
        return moved, moved
    # Raise probabilities of 0 to a tiny value, so that each position keeps a colour even if all likely bins are banned.
    scores = np.maximum(distribution.log_probabilities, np.float32(-1e4))
    scores[banned] = -np.inf
    return moved, replace(moved, log_probabilities=log_softmax(scores, 0))
