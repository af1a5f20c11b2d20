"""Model inputs from a dataset: augmented training samples, determined by a seed, and letterboxed validation samples.

An augmented sample is computed in one step from the decoded images: the position of each image is computed first, then
each pixel is sampled once, bilinearly and without antialiasing, as in detection.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from PIL import Image

from chromabox.detect.boxes import letterbox_for, xyxy_to_cxcywh
from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.data.dataset import RgbImage as RgbImage
from chromabox.detect.models.architecture import Variant
from chromabox.errors import UsageError
from chromabox.io.images import read_image, to_uint8

TrainImage = UInt8[np.ndarray, "3 side side"]
#: Class index, and centre x, centre y, width and height as fractions of the side length of the training image.
TrainBoxes = Float32[np.ndarray, "boxes 5"]

#: A box is used for training if at least this fraction of its area and this many pixels of each side are visible.
MIN_VISIBLE_FRACTION, MIN_BOX_SIDE = 0.1, 2.0

#: Fractions of the width and height of each image that lie to the left of and above the point where the images meet.
_MOSAIC_OFFSETS: tuple[tuple[float, float], ...] = ((1, 1), (0, 1), (1, 0), (0, 0))
_CENTRED_OFFSET: tuple[tuple[float, float], ...] = ((0.5, 0.5),)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Parameters of data augmentation.

    Args:
        mosaic: fraction of the training samples that are mosaics of four images. The images meet at a random point in
            the middle half of a canvas with twice the side length (Bochkovskiy et al. 2020, section 3.3).
        scale: minimum and maximum scale factor, applied after fitting the longer side to the training image.
        translate: maximum shift of the centre along each axis, as a fraction of the side length.
        hue, saturation, value: maximum relative change; each is multiplied by a random factor between 1 − x and 1 + x.
        hflip: fraction of the training samples that are flipped horizontally.
        fill: grey value, 0 to 255, of areas that no image covers.
    """

    mosaic: float = 1.0
    scale: tuple[float, float] = (0.5, 1.5)
    translate: float = 0.1
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    hflip: float = 0.5
    fill: int = 114


#: Augmentations by recipe name: the course's, and one that also shows whole images at about their size in detection.
AUGMENTATIONS = {"course": Augmentation(), "default": Augmentation(mosaic=0.5, scale=(0.6, 1.4))}


@dataclass(frozen=True)
class _Tile:
    """One image in the training image: its scale, and the position of its upper left corner in pixels."""

    sample: Sample
    scale: float
    corner: Float64[np.ndarray, "2"]


def read_pixels(path: Path) -> RgbImage:
    """Return the upright pixels of an image file as uint8 RGB. Raise ChromaboxError if it cannot be decoded."""
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
    """Return an augmented training sample for image ``index``: RGB, 0 to 255, and its visible boxes, excluding crowds.

    Args:
        data: the dataset. A mosaic contains three more of its images, chosen at random.
        seed: one or more non-negative integers (run, epoch, …). With ``index``, they determine all random choices.
        size: side length of the training image in pixels.
        recipe: ``course``, ``default`` or an `Augmentation`.
        read_image: function that returns the pixels of a file. A caching reader avoids repeated decoding.

    Raise UsageError if the recipe is unknown, and ChromaboxError if an image cannot be decoded.
    """
    if isinstance(recipe, str) and recipe not in AUGMENTATIONS:
        raise UsageError(f"recipe is {recipe!r}: expected {' or '.join(AUGMENTATIONS)}")
    augmentation = AUGMENTATIONS[recipe] if isinstance(recipe, str) else recipe
    rng = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), index])
    tiles, window = _sample_tiles(data, index, size, augmentation, rng)
    canvas = Image.new("RGB", (size, size), (augmentation.fill,) * 3)
    for tile in tiles:
        _paste(canvas, tile, window, read_image(tile.sample.path))
    canvas = _jitter_hsv(canvas, augmentation, rng)
    boxes = np.concatenate([_visible_boxes(tile, window, size) for tile in tiles])
    pixels = np.asarray(canvas)
    if rng.random() < augmentation.hflip:
        pixels = pixels[:, ::-1]
        boxes[:, 1] = 1 - boxes[:, 1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), boxes


def letterbox_sample(
    sample: Sample, size: int, variant: Variant, *, read_image: Callable[[Path], RgbImage] = read_pixels
) -> tuple[Float32[np.ndarray, "3 side side"], TrainBoxes]:
    """Return an image letterboxed as in detection with this variant, RGB in [0, 1], and its boxes, excluding crowds.

    Raise ChromaboxError if the image cannot be decoded.
    """
    pixels, truth = read_image(sample.path), sample.without_crowds
    letterbox = letterbox_for(pixels.shape[:2], size, variant)
    boxes = _to_train_boxes(letterbox.apply_boxes(truth.boxes), truth.class_ids, size)
    return letterbox.apply_image(pixels), boxes


def _sample_tiles(
    data: DetectionDataset, index: int, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[list[_Tile], Float64[np.ndarray, "2 2"]]:
    """Choose the images of a training sample and their positions: laid out on a canvas, then scaled and translated.

    Also return the upper left and lower right corners of the visible part of the canvas, in pixels.
    """
    if rng.random() < augmentation.mosaic:
        chosen = rng.permutation([index, *rng.integers(0, len(data.samples), 3)])
        canvas_size, centre, offsets = 2.0 * size, rng.uniform(0.5 * size, 1.5 * size, 2), _MOSAIC_OFFSETS
    else:
        chosen, canvas_size, centre, offsets = np.array([index]), float(size), np.full(2, size / 2), _CENTRED_OFFSET
    scale = rng.uniform(*augmentation.scale)
    middle = rng.uniform(0.5 - augmentation.translate, 0.5 + augmentation.translate, 2) * size
    shift = middle - scale * canvas_size / 2
    tiles = []
    for sample, offset in zip((data.samples[number] for number in chosen), offsets, strict=True):
        fit = size / max(sample.size)
        corner = centre - fit * np.array(sample.size[::-1]) * offset
        tiles.append(_Tile(sample, scale * fit, scale * corner + shift))
    return tiles, np.clip([shift, shift + scale * canvas_size], 0, size)


def _paste(canvas: Image.Image, tile: _Tile, window: Float64[np.ndarray, "2 2"], pixels: RgbImage) -> None:
    """Draw the visible part of an image onto all pixels of the canvas whose centres it covers."""
    sides = np.array(pixels.shape[1::-1]) * tile.scale
    visible = np.maximum(tile.corner, window[0]), np.minimum(tile.corner + sides, window[1])
    (left, top), (right, bottom) = np.ceil(np.array(visible) - 0.5).astype(int).tolist()
    if right <= left or bottom <= top:
        return
    step = 1 / tile.scale
    x, y = ((left, top) - tile.corner) * step
    coefficients = (step, 0, x, 0, step, y)
    part = Image.fromarray(pixels).transform(
        (right - left, bottom - top), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    canvas.paste(part, (left, top))


def _jitter_hsv(image: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Multiply hue, saturation and value by random factors. The hue wraps around; the others are clipped at 255."""
    gains = np.array([augmentation.hue, augmentation.saturation, augmentation.value])
    if not gains.any():
        return image
    hue, saturation, value = np.arange(256)[None] * (1 + rng.uniform(-1, 1, 3) * gains)[:, None]
    tables = [hue % 256, np.minimum(saturation, 255), np.minimum(value, 255)]
    return image.convert("HSV").point(np.concatenate(tables).astype(np.uint8).tolist()).convert("RGB")


def _visible_boxes(tile: _Tile, window: Float64[np.ndarray, "2 2"], size: int) -> TrainBoxes:
    """Return the sufficiently visible boxes of one image, clipped to their visible parts."""
    truth = tile.sample.without_crowds
    boxes = truth.boxes * tile.scale + np.tile(tile.corner, 2)
    clipped = np.concatenate([np.maximum(boxes[:, :2], window[0]), np.minimum(boxes[:, 2:], window[1])], 1)
    sides = np.maximum(clipped[:, 2:] - clipped[:, :2], 0)
    fraction = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = (sides >= MIN_BOX_SIDE).all(1) & (fraction >= MIN_VISIBLE_FRACTION)
    return _to_train_boxes(clipped[kept], truth.class_ids[kept], size)


def _to_train_boxes(boxes: Float64[np.ndarray, "boxes 4"], class_ids: np.ndarray, size: int) -> TrainBoxes:
    """Convert boxes (left, top, right, bottom, in pixels of the training image) to training targets."""
    return np.column_stack([class_ids, xyxy_to_cxcywh(boxes) / size]).astype(np.float32)
