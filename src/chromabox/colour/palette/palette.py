"""Palettes: fitting, nearest-colour labels, decoding of labels and logits, constraints on logits, drawing.

Colours are in units of RGB/256: an 8-bit value divided by 256, in [0, 1). The label of a pixel is the index of its
nearest palette colour (lookup.py explains the fast algorithm). The annealed mean converts a model's logits to colours.

Heavy modules are imported inside the functions that use them, because the command line imports this module at every
start.
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
    Tensor = Any  # jaxtyping checks the shape and dtype of any array type

MAX_COLOURS = 256  # A label is one byte.
REC601_WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, used only to sort colours and choose the text colour.


@dataclass(frozen=True, eq=False)
class Palette:
    """Palette of 2 to 256 colours.

    colours: RGB values divided by 256, finite and in [0, 1], stored as a read-only copy. Other values raise
        ChromaboxError.
    name: name of the palette in tables, plots and file names.
    """

    colours: Float32[np.ndarray, "colours 3"]
    name: str

    def __post_init__(self) -> None:
        issue = validate_colours(self.colours)
        if issue:
            raise ChromaboxError(f"palette {self.name}: {issue}")
        colours = self.colours.astype(np.float32)
        colours.flags.writeable = False
        object.__setattr__(self, "colours", colours)

    def __len__(self) -> int:
        return len(self.colours)

    def __reduce__(self) -> tuple[type["Palette"], tuple[np.ndarray, str]]:
        """Pickle and copy without the lookup table. Each process fills its own table on demand."""
        return Palette, (self.colours, self.name)

    @cached_property
    def lut(self) -> ColourLUT:
        """Nearest-colour lookup table of 16 MB, which is filled on demand and kept as long as the palette exists."""
        return ColourLUT(self.colours)

    @property
    def rgb(self) -> UInt8[np.ndarray, "colours 3"]:
        """The colours as 8-bit values: each value is multiplied by 256, rounded and limited to 255."""
        return np.minimum(np.rint(self.colours * 256), 255).astype(np.uint8)


def validate_colours(colours: Float[np.ndarray, "..."]) -> str | None:
    """Return the reason why the array is not a valid set of palette colours, or None if it is valid."""
    if colours.ndim != 2 or colours.shape[1] != 3:
        return f"has shape {list(colours.shape)}; expected [colours, 3]"
    if not 2 <= len(colours) <= MAX_COLOURS:
        return f"has {len(colours)} colour{'s' * (len(colours) != 1)}; expected 2 to {MAX_COLOURS}"
    if not (colours.min() >= 0 and colours.max() <= 1):  # The comparisons are false for NaN.
        value_range = f"values from {colours.min():g} to {colours.max():g}"
        return f"contains {value_range}; expected values in [0, 1], which are 8-bit values divided by 256"
    return None


def assign_labels(pixels: UInt8[np.ndarray, "..."], palette: Palette, axis: int = -1) -> UInt8[np.ndarray, "..."]:
    """Return the index of every pixel's nearest colour by Euclidean distance in RGB. A tie goes to the lower index.

    pixels: 8-bit RGB with the three channels along `axis`, which is -1 for [..., 3] and 1 for CIFAR's [N, 3, H, W]. The
    pixels are not copied. The result has the shape of the pixels without the channel axis. For channels last, the
    result equals `((pixels / 256 - colours) ** 2).sum(-1).argmin(-1)` in float64. Raise ChromaboxError if `axis` does
    not have three channels.
    """
    return palette.lut.lookup(_channels_first(pixels, axis))


def quantisation_error(pixels: UInt8[np.ndarray, "..."], palette: Palette, axis: int = -1) -> float:
    """Return the mean Euclidean distance from a pixel to its nearest colour, in units of RGB values divided by 256.

    `axis` has the same meaning as in :func:`assign_labels`.
    """
    unique, count = _colour_histogram(_channels_first(pixels, axis))
    nearest = palette.colours[palette.lut.lookup(unique.T)]
    distance = np.sqrt(((unique / 256 - nearest) ** 2).sum(-1))
    return float(distance @ count / count.sum())


def decode_labels(labels: Integer[np.ndarray, "..."], palette: Palette) -> UInt8[np.ndarray, "... 3"]:
    """Return the 8-bit RGB colours of the labels. Raise ChromaboxError for a label outside the palette."""
    if labels.size and (labels.min() < 0 or labels.max() >= len(palette)):
        label_range = f"{labels.min()} to {labels.max()}"
        raise ChromaboxError(f"palette {palette.name}: expected labels 0 to {len(palette) - 1}, got {label_range}")
    return palette.rgb[labels]


def annealed_mean(
    logits: Float[Tensor, "batch colours height width"], palette: Palette, temperature: float = 0.38
) -> Float[Tensor, "batch 3 height width"]:
    """Decode logits to colours with the annealed mean of Zhang et al. 2016, section 2.3.

    The result is the mean of the palette under softmax(log-probabilities / temperature), as float32 RGB values divided
    by 256. Temperature 1 gives the plain mean, whose colours are dull. As the temperature approaches 0, the result
    approaches the most likely colour and becomes patchy; temperature 0 is exactly argmax. Raise ChromaboxError for a
    negative or non-finite temperature, or if the number of logits differs from the number of colours.
    """
    import torch

    if not (math.isfinite(temperature) and temperature >= 0):
        raise ChromaboxError(f"temperature is {temperature:g}: expected 0 (argmax) or a positive number")
    if logits.shape[1] != len(palette):
        raise ChromaboxError(f"palette {palette.name}: expected {len(palette)} logits per pixel, got {logits.shape[1]}")
    colours = torch.tensor(palette.colours, device=logits.device)
    if temperature == 0:
        return colours[logits.argmax(1)].permute(0, 3, 1, 2)
    # Subtract the maximum to avoid overflow at low temperatures. Below 1e-30, the result no longer changes.
    relative = (logits - logits.amax(1, keepdim=True)).float()
    probability = (relative / max(temperature, 1e-30)).softmax(1)
    return torch.einsum("bkhw,kc->bchw", probability, colours)


def mask_logits(
    logits: Float[Tensor, "batch colours height width"], allowed: Iterable[int]
) -> Float[Tensor, "batch colours height width"]:
    """Set the logits of all disallowed colours to −inf, so that these colours are never decoded.

    Raise ChromaboxError for an index outside the palette or if no colour is allowed.
    """
    import torch

    indices, colours = sorted(set(allowed)), logits.shape[1]
    if not indices or indices[0] < 0 or indices[-1] >= colours:
        raise ChromaboxError(f"allowed colours {indices}: expected one or more indices, all from 0 to {colours - 1}")
    banned = torch.ones(colours, dtype=torch.bool, device=logits.device)
    banned[indices] = False
    return logits.masked_fill(banned[:, None, None], -torch.inf)


def fit_palette(
    pixels: UInt8[np.ndarray, "..."], num_colours: int = 24, *, seed: int = 0, name: str = "fitted", axis: int = -1
) -> Palette:
    """Fit a palette with a low mean distance from all pixels to their nearest colours.

    The colours are sorted by luminance (ITU-R BT.601), darkest first. `axis` has the same meaning as in
    :func:`assign_labels`. k-means (k-means++, best of 8) on a coarse histogram finds initial colours by minimising the
    mean squared distance. Iterations over all distinct colours, weighted by their counts, then reduce the mean
    distance. Equal pixels and seeds give equal results. Raise ChromaboxError if `num_colours` is not from 2 to 256 or
    exceeds the number of distinct colours.
    """
    unique, count = _colour_histogram(_channels_first(pixels, axis))
    if not 2 <= num_colours <= min(MAX_COLOURS, len(unique)):
        limit = f"2 to {MAX_COLOURS}, and at most the number of different colours in the images, {len(unique)}"
        raise ChromaboxError(f"palette {name}: the number of colours is {num_colours}; expected {limit}")
    centres = _initial_centres(unique, count, num_colours, seed)
    points: Float64[np.ndarray, "unique 3"] = unique / 256
    # Move the centres to the geometric medians of their clusters with Weiszfeld's algorithm (1937). Each step takes
    # the mean weighted by 1 / distance. This reduces the mean distance, as a step of k-means reduces the mean squared
    # distance.
    for _ in range(40):
        labels = ColourLUT(centres).lookup(unique.T)
        distance = np.sqrt(((points - centres[labels]) ** 2).sum(-1))
        weight = count / np.maximum(distance, 1 / 512)  # Keep the weight finite at the centre.
        previous, centres = centres, _cluster_means(points, weight, labels, centres)
        if np.abs(previous - centres).max() < 1e-5:
            break
    order = np.argsort(centres @ REC601_WEIGHTS, kind="stable")
    return Palette(centres[order], name)


def draw_palette(palette: Palette, tile_size: int = 96) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the palette: one tile per colour, with its index and its 8-bit value in hexadecimal.

    tile_size: side length of a tile in pixels. The image is slightly wider than it is high.
    """
    from PIL import Image, ImageDraw

    from chromabox.io.images import load_font

    columns = min(math.ceil(math.sqrt(1.5 * len(palette))), len(palette))
    rows = math.ceil(len(palette) / columns)
    gap = max(1, tile_size // 16)
    step = tile_size + gap
    image = Image.new("RGB", (columns * step + gap, rows * step + gap), "white")
    draw = ImageDraw.Draw(image)
    large, small = load_font(max(6, tile_size // 4)), load_font(max(6, tile_size // 7))
    for index, rgb in enumerate(palette.rgb.tolist()):
        left, top = gap + index % columns * step, gap + index // columns * step
        box = (left, top, left + tile_size - 1, top + tile_size - 1)
        # A thin outline separates near-white tiles from the background.
        draw.rounded_rectangle(box, radius=tile_size // 12, fill=tuple(rgb), outline=(200, 200, 200))
        text_colour = "white" if rgb @ REC601_WEIGHTS < 140 else "black"
        for height, text, font in ((0.42, str(index), large), (0.76, "#{:02x}{:02x}{:02x}".format(*rgb), small)):
            centre = (left + tile_size / 2, top + tile_size * height)
            draw.text(centre, text, fill=text_colour, font=font, anchor="mm")
    return np.array(image)


def _channels_first(pixels: UInt8[np.ndarray, "..."], axis: int) -> UInt8[np.ndarray, "3 ..."]:
    if not -pixels.ndim <= axis < pixels.ndim or pixels.shape[axis] != 3:
        raise ChromaboxError(f"pixels of shape {list(pixels.shape)}: expected 3 channels (RGB) along axis {axis}")
    return np.moveaxis(pixels, axis, 0)


def _colour_histogram(
    planes: UInt8[np.ndarray, "3 ..."],
) -> tuple[UInt8[np.ndarray, "unique 3"], Int64[np.ndarray, "unique"]]:
    """Return the distinct colours, and how often each colour occurs."""
    if not planes.size:
        raise ChromaboxError("no pixels: expected at least one image")
    packed = planes[0].astype(np.uint32) << 16 | planes[1].astype(np.uint32) << 8 | planes[2]
    unique, count = np.unique(packed, return_counts=True)
    return np.stack([unique >> 16, unique >> 8 & 255, unique & 255], -1).astype(np.uint8), count


def _initial_centres(
    unique: UInt8[np.ndarray, "unique 3"], counts: Int64[np.ndarray, "unique"], num_colours: int, seed: int
) -> Float32[np.ndarray, "{num_colours} 3"]:
    """Return initial centres (RGB values divided by 256), from k-means on the mean colours of cells of 8×8×8 colours.

    Lloyd's algorithm is initialised by k-means++ (Arthur and Vassilvitskii 2007). The best of eight runs is returned.
    """
    cell = (unique >> 3).astype(np.int64) @ [1024, 32, 1]
    weight: np.ndarray = np.bincount(cell, counts)
    points = np.stack([np.bincount(cell, counts * channel) for channel in unique.T.astype(np.float64)], -1)
    points, weight = points[weight > 0] / weight[weight > 0, None], weight[weight > 0]
    # If small or nearly uniform images fill too few cells for the number of colours, use the colours themselves.
    if len(points) < 16 * num_colours:
        points, weight = unique.astype(np.float64), counts.astype(np.float64)
    rng = np.random.default_rng(seed)
    lowest, best = np.inf, points[:num_colours]
    for _ in range(8):
        centres = points[rng.choice(len(points), 1, p=weight / weight.sum())]
        distance = ((points - centres) ** 2).sum(-1)
        for _ in range(num_colours - 1):
            probability = weight * distance
            new = points[rng.choice(len(points), p=probability / probability.sum())]
            centres = np.concatenate([centres, new[None]])
            distance = np.minimum(distance, ((points - new) ** 2).sum(-1))
        for _ in range(100):
            labels = ((centres**2).sum(-1) - 2 * points @ centres.T).argmin(1)
            previous, centres = centres, _cluster_means(points, weight, labels, centres)
            if np.abs(previous - centres).max() < 1e-3:
                break
        cost = weight @ ((points**2).sum(-1) + ((centres**2).sum(-1) - 2 * points @ centres.T).min(1))
        if cost < lowest:
            lowest, best = cost, centres
    return (best / 256).astype(np.float32)


def _cluster_means(
    points: Float64[np.ndarray, "points 3"],
    weight: Float64[np.ndarray, " points"],
    labels: Integer[np.ndarray, " points"],
    centres: Float[np.ndarray, "clusters 3"],
) -> Float[np.ndarray, "clusters 3"]:
    """Return the weighted mean of the points of each cluster, in the dtype of ``centres``.

    A cluster without points keeps its centre.
    """
    total = np.bincount(labels, weight, len(centres))
    sums = np.stack([np.bincount(labels, weight * channel, len(centres)) for channel in points.T], -1)
    used, moved = total > 0, centres.copy()
    moved[used] = sums[used] / total[used, None]
    return moved
