"""The palette: the few colours that a network chooses among; to fit, look up, decode, constrain, draw.

Colours are in the unit RGB/256 throughout: an 8-bit value divided by 256, so in [0, 1). Labels are indices
into a palette. A pixel's label is that of its nearest colour (nearest.py says how that is made fast); what a
network says about a pixel becomes a colour again by the annealed mean.

Nothing heavy is imported before the function that needs it: the command line reads this file at every start.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer, UInt8

from chromabox.colour.palette.lookup import ColourLUT
from chromabox.errors import ChromaboxError

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # jaxtyping checks shape and dtype of whatever has them

MAX_COLOURS = 256  # a label is one byte
REC601_WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, for order and legibility only


@dataclass(frozen=True, eq=False)
class Palette:
    """2 to 256 colours, in the unit RGB/256.

    colours: finite, in [0, 1]; kept as a read-only copy. Raises ChromaboxError for anything else.
    name: what tables, plots and file names call it.
    """

    colours: Float32[np.ndarray, "colours 3"]
    name: str

    def __post_init__(self) -> None:
        fault = validate_colours(self.colours)
        if fault:
            raise ChromaboxError(f"palette {self.name}: {fault}")
        colours = self.colours.astype(np.float32)
        colours.flags.writeable = False
        object.__setattr__(self, "colours", colours)

    def __len__(self) -> int:
        return len(self.colours)

    def __reduce__(self) -> tuple[type["Palette"], tuple[np.ndarray, str]]:
        """Pickle and copy without the table: a process that needs one fills its own."""
        return Palette, (self.colours, self.name)

    @cached_property
    def lut(self) -> ColourLUT:
        """What is known so far about the nearest colours; 16 MB, kept as long as the palette."""
        return ColourLUT(self.colours)

    @property
    def rgb(self) -> UInt8[np.ndarray, "colours 3"]:
        """The colours in 8 bits: value · 256, rounded, at most 255."""
        rgb: UInt8[np.ndarray, "colours 3"] = np.minimum(np.rint(self.colours * 256), 255).astype(np.uint8)
        return rgb


def validate_colours(colours: Float[np.ndarray, "..."]) -> str | None:
    """What keeps an array from being a palette's colours, or None if nothing does."""
    if colours.ndim != 2 or colours.shape[1] != 3:
        return f"has the shape {list(colours.shape)}; a palette has the shape [colours, 3]"
    if not 2 <= len(colours) <= MAX_COLOURS:
        return f"has {len(colours)} colour{'s' * (len(colours) != 1)}; a palette has 2 to {MAX_COLOURS}"
    if not np.isfinite(colours).all():
        return "holds values that are not finite; a palette's lie in [0, 1], 8-bit values divided by 256"
    if colours.min() < 0 or colours.max() > 1:
        span = f"from {colours.min():g} to {colours.max():g}"
        return f"holds values {span}; a palette's lie in [0, 1], 8-bit values divided by 256"
    return None


def assign_labels(pixels: UInt8[np.ndarray, "..."], palette: Palette, axis: int = -1) -> UInt8[np.ndarray, "..."]:
    """Index of every pixel's nearest colour (Euclidean in RGB/256), a tie going to the lower index.

    pixels: 8-bit RGB with the three channels along `axis`: -1 for [..., 3], 1 for CIFAR's [N, 3, H, W],
    which is read where it lies. Returns the shape without that axis. Equal for every pixel to
    `((pixels / 256 - colours) ** 2).sum(-1).argmin(-1)` in float64. Raises ChromaboxError without three channels.
    """
    return palette.lut.lookup(_channels_first(pixels, axis))


def quantisation_error(pixels: UInt8[np.ndarray, "..."], palette: Palette, axis: int = -1) -> float:
    """Mean Euclidean distance of a pixel to its nearest colour, in RGB/256; `axis` as in nearest_colour."""
    unique, count = _colour_histogram(_channels_first(pixels, axis))
    nearest = palette.colours[palette.lut.lookup(unique.T)]
    distance = np.sqrt(((unique / 256 - nearest) ** 2).sum(-1))
    return float(distance @ count / count.sum())


def decode_labels(labels: Integer[np.ndarray, "..."], palette: Palette) -> UInt8[np.ndarray, "... 3"]:
    """The picture that labels stand for, in 8 bits. Raises ChromaboxError for a label the palette has not."""
    if labels.size and not (labels.min() >= 0 and labels.max() < len(palette)):
        span = f"{labels.min()} to {labels.max()}"
        raise ChromaboxError(f"palette {palette.name}: has the labels 0 to {len(palette) - 1}, not {span}")
    picture: UInt8[np.ndarray, "... 3"] = palette.rgb[labels]
    return picture


def annealed_mean(
    logits: Float[Tensor, "batch colours height width"], palette: Palette, temperature: float = 0.38
) -> Float[Tensor, "batch 3 height width"]:
    """Colours (float32, RGB/256) from a network's scores, by the annealed mean of Zhang et al. 2016, section 2.3.

    The mean of the palette under softmax(log-probabilities / temperature): 1 gives the plain mean (dull),
    towards 0 it becomes the likeliest colour (patchy), and 0 is exactly argmax. Raises ChromaboxError for
    a negative or infinite temperature and for logits of another number of colours than the palette's.
    """
    import torch

    if not (math.isfinite(temperature) and temperature >= 0):
        raise ChromaboxError(f"temperature {temperature:g}: the annealed mean takes one of 0 (argmax) or more")
    if logits.shape[1] != len(palette):
        raise ChromaboxError(f"palette {palette.name}: has {len(palette)} colours, the logits {logits.shape[1]}")
    colours = torch.tensor(palette.colours, device=logits.device)
    if temperature == 0:
        return colours[logits.argmax(1)].permute(0, 3, 1, 2)
    # The maximum leaves first, so that a small temperature cannot overflow; below 1e-30 nothing would change.
    relative = (logits - logits.amax(1, keepdim=True)).float()
    probability = (relative / max(temperature, 1e-30)).softmax(1)
    return torch.einsum("bkhw,kc->bchw", probability, colours)


def mask_logits(
    logits: Float[Tensor, "batch colours height width"], allowed: Iterable[int]
) -> Float[Tensor, "batch colours height width"]:
    """The logits with every colour but the allowed ones at −inf, so that none of the others can be decoded.

    Raises ChromaboxError for an index that is no colour and when nothing is allowed.
    """
    import torch

    indices, colours = sorted(set(allowed)), logits.shape[1]
    if not indices:
        raise ChromaboxError("allowed colours: none is left; allow at least one")
    strange = [index for index in indices if not 0 <= index < colours]
    if strange:
        raise ChromaboxError(f"allowed colours: {strange[0]} is not one of the palette's, 0 to {colours - 1}")
    banned = torch.ones(colours, dtype=torch.bool, device=logits.device)
    banned[indices] = False
    return logits.masked_fill(banned[:, None, None], -torch.inf)


def fit_palette(
    pixels: UInt8[np.ndarray, "..."], num_colours: int = 24, *, seed: int = 0, name: str = "fitted", axis: int = -1
) -> Palette:
    """The k colours with a low mean distance to all the pixels, darkest first (luminance of ITU-R BT.601).

    `axis` as in nearest_colour. k-means (scikit-learn, k-means++, best of 8) on a coarse histogram finds the
    colours; steps on all the different colours with their counts then lower the mean distance itself, where
    k-means lowers the mean squared one. The same pixels and seed give the same palette. Raises ChromaboxError
    if k is not 2 to 256 or the pixels have fewer than k different colours.
    """
    unique, count = _colour_histogram(_channels_first(pixels, axis))
    if not 2 <= num_colours <= MAX_COLOURS:
        raise ChromaboxError(f"palette {name}: {num_colours} colours asked for; a palette has 2 to {MAX_COLOURS}")
    if len(unique) < num_colours:
        raise ChromaboxError(
            f"palette {name}: {num_colours} colours asked for, but the pictures have only {len(unique)}"
        )
    centres = _geometric_medians(unique, count, _kmeans_init(unique, count, num_colours, seed))
    order = np.argsort(centres @ REC601_WEIGHTS, kind="stable")
    return Palette(centres[order], name)


def draw_palette(
    palette: Palette, tile_size: int = 96, columns: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture of the palette: one tile a colour, with its index and its 8-bit value in hexadecimal.

    tile: edge of a tile in pixels; columns: tiles in a row, by default a little wider than high.
    """
    from PIL import Image, ImageDraw, ImageFont

    columns = min(columns or math.ceil(math.sqrt(1.5 * len(palette))), len(palette))
    rows = math.ceil(len(palette) / columns)
    gap = max(1, tile_size // 16)
    picture = Image.new("RGB", (columns * (tile_size + gap) + gap, rows * (tile_size + gap) + gap), "white")
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(max(6, tile_size // 4)), ImageFont.load_default(max(6, tile_size // 7))
    for index, rgb in enumerate(palette.rgb.tolist()):
        row, column = divmod(index, columns)
        left, top = gap + column * (tile_size + gap), gap + row * (tile_size + gap)
        box = (left, top, left + tile_size - 1, top + tile_size - 1)
        # A hairline keeps near-white tiles apart from the ground.
        draw.rounded_rectangle(box, radius=tile_size // 12, fill=tuple(rgb), outline=(200, 200, 200))
        ink = "white" if rgb @ REC601_WEIGHTS < 140 else "black"
        centre = left + tile_size / 2
        draw.text((centre, top + tile_size * 0.42), str(index), fill=ink, font=large, anchor="mm")
        draw.text(
            (centre, top + tile_size * 0.76), "#{:02x}{:02x}{:02x}".format(*rgb), fill=ink, font=small, anchor="mm"
        )
    return np.array(picture)


def _channels_first(pixels: UInt8[np.ndarray, "..."], axis: int) -> UInt8[np.ndarray, "3 ..."]:
    """A view of the pixels with the channels first."""
    if not -pixels.ndim <= axis < pixels.ndim or pixels.shape[axis] != 3:
        raise ChromaboxError(f"pixels of the shape {list(pixels.shape)}: axis {axis} does not hold red, green and blue")
    return np.moveaxis(pixels, axis, 0)


def _colour_histogram(
    planes: UInt8[np.ndarray, "3 ..."],
) -> tuple[UInt8[np.ndarray, "unique 3"], Int64[np.ndarray, "unique"]]:
    """The different colours and how often each occurs."""
    if not planes.size:
        raise ChromaboxError("no pixels: a palette is fitted to, or measured on, at least one picture")
    packed = np.zeros(planes.shape[1:], np.uint32)
    for plane in planes:
        packed <<= 8
        packed |= plane
    unique, count = np.unique(packed, return_counts=True)
    return np.stack([unique >> 16, unique >> 8 & 255, unique & 255], -1).astype(np.uint8), count


def _kmeans_init(
    unique: UInt8[np.ndarray, "unique 3"], counts: Int64[np.ndarray, "unique"], num_colours: int, seed: int
) -> Float32[np.ndarray, "{num_colours} 3"]:
    """Centres (RGB/256) near the best ones, from the mean colours of cells of 8×8×8 colours."""
    from sklearn.cluster import KMeans

    points: Float64[np.ndarray, "points 3"]
    weight: Float64[np.ndarray, points]
    cell = (unique >> 3).astype(np.int64) @ [1024, 32, 1]
    weight = np.bincount(cell, counts)
    points = np.stack([np.bincount(cell, counts * channel) for channel in unique.T.astype(np.float64)], -1)
    points, weight = points[weight > 0] / weight[weight > 0, None], weight[weight > 0]
    if (
        len(points) < 16 * num_colours
    ):  # too coarse for so many colours; the pictures are then small or nearly all alike
        points, weight = unique.astype(np.float64), counts.astype(np.float64)
    means: Float64[np.ndarray, "{num_colours} 3"] = (
        KMeans(num_colours, n_init=8, random_state=seed).fit(points, sample_weight=weight).cluster_centers_
    )
    # Rounded so that the order in which threads add up their sums cannot show.
    return (means.round(3) / 256).astype(np.float32)


def _geometric_medians(
    unique: UInt8[np.ndarray, "unique 3"],
    counts: Int64[np.ndarray, "unique"],
    centres: Float32[np.ndarray, "colours 3"],
    max_iter: int = 40,
) -> Float32[np.ndarray, "colours 3"]:
    """Centres moved to where the mean distance is lowest: Weiszfeld's step (1937) on what is nearest to each.

    A mean weighted by 1 / distance; it lowers the mean distance as Lloyd's step lowers the mean squared one.
    """
    points: Float64[np.ndarray, "unique 3"] = unique / 256
    for _ in range(max_iter):
        labels = ColourLUT(centres).lookup(unique.T)
        distance = np.sqrt(((points - centres[labels]) ** 2).sum(-1))
        weight = counts / np.maximum(distance, 1 / 512)  # half an 8-bit step: a point on its centre is not infinite
        total = np.bincount(labels, weight, len(centres))
        sums = np.stack([np.bincount(labels, weight * channel, len(centres)) for channel in points.T], -1)
        used = total > 0  # a centre that nothing is nearest to stays where it is
        moved = centres.copy()
        moved[used] = sums[used] / total[used, None]
        settled = np.abs(moved - centres).max() < 1e-5
        centres = moved
        if settled:
            break
    return centres
