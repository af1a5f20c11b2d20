"""Pictures of a set as a net is shown them: training views, each drawn from a seed, and the plain view of validation.

A view is made in one step from the files' own pixels: where each picture falls is worked out first, then every pixel of
the view is read once, between its four neighbours and without smoothing, as pictures to be detected in are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from chromabox.detect.boxes import letterbox_for, xyxy_to_cxcywh
from chromabox.detect.data.dataset import DetectionSet, Labelled
from chromabox.detect.models.darknet import Kind
from chromabox.errors import UsageError
from chromabox.io.images import eight_bits, read_picture

Pixels = UInt8[np.ndarray, "height width 3"]
View = UInt8[np.ndarray, "3 side side"]
#: Class, and centre, width and height as parts of the view's side.
ViewBoxes = Float32[np.ndarray, "boxes 5"]
#: Left, top, right, bottom in pixels of the view.
Rectangle = tuple[float, float, float, float]

#: A box is learnt where the view shows at least this share of it, and this many pixels of each side.
LEAST_SHARE, LEAST_SIDE = 0.1, 2.0

#: Of each picture the shares of its width and height that lie left of and above the point at which pictures meet.
_QUARTERS: tuple[tuple[float, float], ...] = ((1, 1), (0, 1), (1, 0), (0, 0))
_WHOLE: tuple[tuple[float, float], ...] = ((0.5, 0.5),)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training views differ from the pictures.

    Args:
        mosaic: share of the views that are made of four pictures, which meet at a point drawn from the middle half of a
            canvas of twice the side (Bochkovskiy et al. 2020, section 3.3).
        scale: least and greatest factor on top of fitting the longer side to the view.
        translate: by how much of the side the middle is moved, either way.
        hue, saturation, value: each is multiplied by 1 plus or minus at most so much.
        mirror: share of the views that are mirrored left to right.
        ground: the grey, 0 to 255, where no picture is.
    """

    mosaic: float = 1.0
    scale: tuple[float, float] = (0.5, 1.5)
    translate: float = 0.1
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    mirror: float = 0.5
    ground: int = 114


#: By the names of the recipes: the course's, and one that also shows whole pictures at about the size of detection.
AUGMENTATIONS = {"course": Augmentation(), "default": Augmentation(mosaic=0.5, scale=(0.6, 1.4))}


@dataclass(frozen=True)
class _Tile:
    """Where one picture falls in the view, in pixels, and the part of the view in which it may be seen."""

    picture: Labelled
    scale: float
    left: float
    top: float
    window: Rectangle


def read_pixels(path: Path) -> Pixels:
    """The upright pixels of a file, 8 bits. Raises ChromaboxError where it cannot be decoded."""
    return eight_bits(read_picture(path).pixels)


def augmented_view(
    data: DetectionSet,
    index: int,
    seed: int | tuple[int, ...],
    size: int,
    recipe: str | Augmentation = "default",
    *,
    read: Callable[[Path], Pixels] = read_pixels,
) -> tuple[View, ViewBoxes]:
    """A training view about picture ``index``: RGB from 0 to 255, and the boxes seen in it; crowds are no boxes.

    Args:
        data: the set, of which a mosaic takes three more pictures at random.
        seed: one whole number or several (run, epoch, …), not negative; with ``index`` they decide everything drawn.
        size: side of the view in pixels.
        recipe: ``course``, ``default`` or settings of one's own.
        read: gives a file's pixels; one that remembers saves decoding again.
    """
    settings = _settings(recipe)
    draw = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), index])
    tiles = _drawn_tiles(data, index, size, settings, draw)
    view = Image.new("RGB", (size, size), (settings.ground,) * 3)
    for tile in tiles:
        _paste(view, tile, read(tile.picture.path))
    view = _recoloured(view, settings, draw)
    boxes = np.concatenate([_boxes_in(tile, size) for tile in tiles])
    pixels = np.asarray(view)
    if draw.random() < settings.mirror:
        pixels = pixels[:, ::-1]
        boxes[:, 1] = 1 - boxes[:, 1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), boxes


def plain_view(
    picture: Labelled, size: int, kind: Kind, *, read: Callable[[Path], Pixels] = read_pixels
) -> tuple[Float32[np.ndarray, "3 side side"], ViewBoxes]:
    """A picture exactly as detection shows it to a net of that kind, RGB in [0, 1], and its boxes but for crowds."""
    pixels = read(picture.path)
    letterbox = letterbox_for(pixels.shape[:2], size, kind)
    known = ~picture.is_crowd
    return letterbox.pixels_in(pixels), _rows(letterbox.boxes_in(picture.boxes[known]), picture.classes[known], size)


def _settings(recipe: str | Augmentation) -> Augmentation:
    if isinstance(recipe, Augmentation):
        return recipe
    if recipe not in AUGMENTATIONS:
        raise UsageError(f"recipe is {recipe!r}: views are drawn by {' or '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[recipe]


def _drawn_tiles(
    data: DetectionSet, index: int, size: int, settings: Augmentation, draw: np.random.Generator
) -> list[_Tile]:
    """The pictures of one view and their places: laid out on a canvas, of which a part is shown scaled and moved."""
    if draw.random() < settings.mosaic:
        chosen = draw.permutation([index, *draw.integers(0, len(data.pictures), 3)])
        canvas, meeting, before = 2.0 * size, draw.uniform(0.5 * size, 1.5 * size, 2), _QUARTERS
    else:
        chosen, canvas, meeting, before = np.array([index]), float(size), np.full(2, size / 2), _WHOLE
    scale = draw.uniform(*settings.scale)
    middle = draw.uniform(0.5 - settings.translate, 0.5 + settings.translate, 2) * size
    shift = middle - scale * canvas / 2
    window = _rectangle(shift, shift + scale * canvas)
    tiles = []
    for picture, share in zip((data.pictures[number] for number in chosen), before, strict=True):
        fit = size / max(picture.size)
        corner = meeting - fit * np.array([picture.size[1], picture.size[0]]) * share
        left, top = (scale * corner + shift).tolist()
        tiles.append(_Tile(picture, scale * fit, left, top, window))
    return tiles


def _rectangle(low: Float64[np.ndarray, "2"], high: Float64[np.ndarray, "2"]) -> Rectangle:
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _paste(view: Image.Image, tile: _Tile, pixels: Pixels) -> None:
    """Show the part of the picture that lies in the view: all pixels whose centres it covers."""
    height, width = pixels.shape[:2]
    edges = (tile.left, tile.top, tile.left + width * tile.scale, tile.top + height * tile.scale)
    seen = _common(_common(edges, tile.window), (0.0, 0.0, float(view.width), float(view.height)))
    left, top, right, bottom = (int(np.ceil(edge - 0.5)) for edge in seen)
    if right <= left or bottom <= top:
        return
    step = 1 / tile.scale
    across, down = (left - tile.left) * step, (top - tile.top) * step
    part = Image.fromarray(pixels).transform(
        (right - left, bottom - top),
        Image.Transform.AFFINE,
        (step, 0, across, 0, step, down),
        Image.Resampling.BILINEAR,
    )
    view.paste(part, (left, top))


def _common(one: Rectangle, other: Rectangle) -> Rectangle:
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def _recoloured(view: Image.Image, settings: Augmentation, draw: np.random.Generator) -> Image.Image:
    """Hue, saturation and value each times its own factor; the hue goes round, the others end at 255."""
    gains = np.array([settings.hue, settings.saturation, settings.value])
    if not gains.any():
        return view
    hue, saturation, value = np.arange(256)[None] * (1 + draw.uniform(-1, 1, 3) * gains)[:, None]
    tables = [hue % 256, np.minimum(saturation, 255), np.minimum(value, 255)]
    return view.convert("HSV").point(np.concatenate(tables).astype(np.uint8).tolist()).convert("RGB")


def _boxes_in(tile: _Tile, size: int) -> ViewBoxes:
    """The boxes of one picture that the view shows enough of, cut to what it shows."""
    known = ~tile.picture.is_crowd
    whole = tile.picture.boxes[known] * tile.scale + [tile.left, tile.top, tile.left, tile.top]
    frame = _common(tile.window, (0.0, 0.0, float(size), float(size)))
    cut = np.concatenate([np.maximum(whole[:, :2], frame[:2]), np.minimum(whole[:, 2:], frame[2:])], 1)
    sides = np.maximum(cut[:, 2:] - cut[:, :2], 0)
    share = sides.prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
    kept = (sides >= LEAST_SIDE).all(1) & (share >= LEAST_SHARE)
    return _rows(cut[kept], tile.picture.classes[known][kept], size)


def _rows(boxes: Float64[np.ndarray, "boxes 4"], classes: np.ndarray, size: int) -> ViewBoxes:
    """Boxes (left, top, right, bottom, in pixels of the view) as a net's targets have them."""
    return np.column_stack([classes, xyxy_to_cxcywh(boxes) / size]).astype(np.float32)
