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
from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.models.darknet import Variant
from chromabox.errors import UsageError
from chromabox.io.images import read_image, to_uint8

RgbImage = UInt8[np.ndarray, "height width 3"]
TrainImage = UInt8[np.ndarray, "3 side side"]
#: Class, and centre, width and height as parts of the view's side.
TrainBoxes = Float32[np.ndarray, "boxes 5"]
#: Left, top, right, bottom in pixels of the view.
BoxTuple = tuple[float, float, float, float]

#: A box is learnt where the view shows at least this share of it, and this many pixels of each side.
MIN_VISIBLE_FRACTION, MIN_BOX_SIDE = 0.1, 2.0

#: Of each picture the shares of its width and height that lie left of and above the point at which pictures meet.
_MOSAIC_OFFSETS: tuple[tuple[float, float], ...] = ((1, 1), (0, 1), (1, 0), (0, 0))
_CENTRED_OFFSET: tuple[tuple[float, float], ...] = ((0.5, 0.5),)


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
    hflip: float = 0.5
    fill: int = 114


#: By the names of the recipes: the course's, and one that also shows whole pictures at about the size of detection.
AUGMENTATIONS = {"course": Augmentation(), "default": Augmentation(mosaic=0.5, scale=(0.6, 1.4))}


@dataclass(frozen=True)
class _MosaicTile:
    """Where one picture falls in the view, in pixels, and the part of the view in which it may be seen."""

    sample: Sample
    scale: float
    left: float
    top: float
    window: BoxTuple


def read_pixels(path: Path) -> RgbImage:
    """The upright pixels of a file, 8 bits. Raises ChromaboxError where it cannot be decoded."""
    return to_uint8(read_image(path).pixels)


def augment_sample(
    data: DetectionDataset,
    index: int,
    seed: int | tuple[int, ...],
    size: int,
    recipe: str | Augmentation = "default",
    *,
    read_image: Callable[[Path], RgbImage] = read_pixels,
) -> tuple[TrainImage, TrainBoxes]:
    """A training view about picture ``index``: RGB from 0 to 255, and the boxes seen in it; crowds are no boxes.

    Args:
        data: the set, of which a mosaic takes three more pictures at random.
        seed: one whole number or several (run, epoch, …), not negative; with ``index`` they decide everything drawn.
        size: side of the view in pixels.
        recipe: ``course``, ``default`` or settings of one's own.
        read: gives a file's pixels; one that remembers saves decoding again.
    """
    settings = _resolve_augmentation(recipe)
    draw = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), index])
    tiles = _sample_tiles(data, index, size, settings, draw)
    view = Image.new("RGB", (size, size), (settings.fill,) * 3)
    for tile in tiles:
        _paste(view, tile, read_image(tile.sample.path))
    view = _jitter_hsv(view, settings, draw)
    boxes = np.concatenate([_visible_boxes(tile, size) for tile in tiles])
    pixels = np.asarray(view)
    if draw.random() < settings.hflip:
        pixels = pixels[:, ::-1]
        boxes[:, 1] = 1 - boxes[:, 1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), boxes


def letterbox_sample(
    sample: Sample, size: int, variant: Variant, *, read_image: Callable[[Path], RgbImage] = read_pixels
) -> tuple[Float32[np.ndarray, "3 side side"], TrainBoxes]:
    """A picture exactly as detection shows it to a net of that kind, RGB in [0, 1], and its boxes but for crowds."""
    pixels = read_image(sample.path)
    letterbox = letterbox_for(pixels.shape[:2], size, variant)
    known = ~sample.is_crowd
    return letterbox.apply_image(pixels), _to_train_boxes(
        letterbox.apply_boxes(sample.boxes[known]), sample.class_ids[known], size
    )


def _resolve_augmentation(recipe: str | Augmentation) -> Augmentation:
    if isinstance(recipe, Augmentation):
        return recipe
    if recipe not in AUGMENTATIONS:
        raise UsageError(f"recipe is {recipe!r}: views are drawn by {' or '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[recipe]


def _sample_tiles(
    data: DetectionDataset, index: int, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> list[_MosaicTile]:
    """The pictures of one view and their places: laid out on a canvas, of which a part is shown scaled and moved."""
    if rng.random() < augmentation.mosaic:
        chosen = rng.permutation([index, *rng.integers(0, len(data.samples), 3)])
        canvas, meeting, before = 2.0 * size, rng.uniform(0.5 * size, 1.5 * size, 2), _MOSAIC_OFFSETS
    else:
        chosen, canvas, meeting, before = np.array([index]), float(size), np.full(2, size / 2), _CENTRED_OFFSET
    scale = rng.uniform(*augmentation.scale)
    middle = rng.uniform(0.5 - augmentation.translate, 0.5 + augmentation.translate, 2) * size
    shift = middle - scale * canvas / 2
    window = _rectangle(shift, shift + scale * canvas)
    tiles = []
    for picture, share in zip((data.samples[number] for number in chosen), before, strict=True):
        fit = size / max(picture.size)
        corner = meeting - fit * np.array([picture.size[1], picture.size[0]]) * share
        left, top = (scale * corner + shift).tolist()
        tiles.append(_MosaicTile(picture, scale * fit, left, top, window))
    return tiles


def _rectangle(low: Float64[np.ndarray, "2"], high: Float64[np.ndarray, "2"]) -> BoxTuple:
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _paste(canvas: Image.Image, tile: _MosaicTile, pixels: RgbImage) -> None:
    """Show the part of the picture that lies in the view: all pixels whose centres it covers."""
    height, width = pixels.shape[:2]
    edges = (tile.left, tile.top, tile.left + width * tile.scale, tile.top + height * tile.scale)
    seen = _intersect(_intersect(edges, tile.window), (0.0, 0.0, float(canvas.width), float(canvas.height)))
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
    canvas.paste(part, (left, top))


def _intersect(a: BoxTuple, b: BoxTuple) -> BoxTuple:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _jitter_hsv(image: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Hue, saturation and value each times its own factor; the hue goes round, the others end at 255."""
    gains = np.array([augmentation.hue, augmentation.saturation, augmentation.value])
    if not gains.any():
        return image
    hue, saturation, value = np.arange(256)[None] * (1 + rng.uniform(-1, 1, 3) * gains)[:, None]
    tables = [hue % 256, np.minimum(saturation, 255), np.minimum(value, 255)]
    return image.convert("HSV").point(np.concatenate(tables).astype(np.uint8).tolist()).convert("RGB")


def _visible_boxes(tile: _MosaicTile, size: int) -> TrainBoxes:
    """The boxes of one picture that the view shows enough of, cut to what it shows."""
    known = ~tile.sample.is_crowd
    whole = tile.sample.boxes[known] * tile.scale + [tile.left, tile.top, tile.left, tile.top]
    frame = _intersect(tile.window, (0.0, 0.0, float(size), float(size)))
    cut = np.concatenate([np.maximum(whole[:, :2], frame[:2]), np.minimum(whole[:, 2:], frame[2:])], 1)
    sides = np.maximum(cut[:, 2:] - cut[:, :2], 0)
    share = sides.prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
    kept = (sides >= MIN_BOX_SIDE).all(1) & (share >= MIN_VISIBLE_FRACTION)
    return _to_train_boxes(cut[kept], tile.sample.class_ids[known][kept], size)


def _to_train_boxes(boxes: Float64[np.ndarray, "boxes 4"], class_ids: np.ndarray, size: int) -> TrainBoxes:
    """Boxes (left, top, right, bottom, in pixels of the view) as a net's targets have them."""
    return np.column_stack([class_ids, xyxy_to_cxcywh(boxes) / size]).astype(np.float32)
