"""Model inputs from a dataset: augmented training samples, determined by a seed, and letterboxed validation samples.

Each pixel of an augmented sample is interpolated from a decoded image only once, bilinearly and without antialiasing,
as in detection. The final position of each image is computed beforehand.
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
#: Class index of each box, and its centre x, centre y, width and height as fractions of the side length of the image.
TrainBoxes = Float32[np.ndarray, "boxes 5"]

#: A box is used for training if at least this fraction of its area, and at least this width and height in pixels, are
#: visible.
MIN_VISIBLE_FRACTION, MIN_BOX_SIDE = 0.1, 2.0

#: For each image of a mosaic, its point (x, y) at which the four images meet, as fractions of its width and height.
_MOSAIC_OFFSETS = ((1, 1), (0, 1), (1, 0), (0, 0))
#: Grey value, 0 to 255, of areas that no image covers.
_FILL = 114


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Parameters of data augmentation.

    Args:
        mosaic: fraction of the training samples that are mosaics of four images. The images meet at a random point of a
            canvas with twice the side length of the training image. The point is between 1/4 and 3/4 of the width and
            height of the canvas (Bochkovskiy et al. 2020, section 3.3).
        scale: minimum and maximum scale factor. A factor of 1 fits the longer side of an image to the training image.
        translate: maximum shift of the centre along each axis, as a fraction of the side length of the training image.
        hue, saturation, value: maximum relative change x of this component, which is multiplied by a random factor in
            [1 − x, 1 + x].
        hflip: fraction of the training samples that are flipped horizontally.
    """

    mosaic: float = 1.0
    scale: tuple[float, float] = (0.5, 1.5)
    translate: float = 0.1
    hue: float = 0.015
    saturation: float = 0.7
    value: float = 0.4
    hflip: float = 0.5


#: Augmentations by recipe name. With ``default``, half of the samples are single images at about the same scale as in
#: detection.
AUGMENTATIONS = {"course": Augmentation(), "default": Augmentation(mosaic=0.5, scale=(0.6, 1.4))}


def read_pixels(path: Path) -> RgbImage:
    """Return the upright pixels of an image file as uint8 RGB. Raise ChromaboxError if the file cannot be decoded."""
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
    """Return an augmented image (RGB, 0 to 255) for image ``index``, and its visible boxes without crowd boxes.

    Args:
        data: the dataset. A mosaic contains three more images of the dataset, chosen at random.
        index: index of the image in the dataset.
        seed: one or more non-negative integers (run, epoch, …). ``seed`` and ``index`` determine all random choices.
        size: side length of the training image in pixels.
        recipe: ``course``, ``default`` or an `Augmentation`.
        read_image: function that returns the pixels of a file. A caching reader avoids repeated decoding.

    Raise UsageError if the recipe is unknown, and ChromaboxError if an image cannot be decoded.
    """
    if isinstance(recipe, str) and recipe not in AUGMENTATIONS:
        raise UsageError(f"recipe is {recipe!r}: expected {' or '.join(AUGMENTATIONS)}")
    augmentation = AUGMENTATIONS[recipe] if isinstance(recipe, str) else recipe
    rng = np.random.default_rng([*([seed] if isinstance(seed, int) else seed), index])
    # The images are laid out on a canvas, which is then scaled and translated.
    indices, offsets = np.array([index]), np.array([(0.5, 0.5)])
    canvas_size, meeting_point = float(size), np.full(2, size / 2)
    if rng.random() < augmentation.mosaic:
        indices, offsets = rng.permutation([index, *rng.integers(0, len(data.samples), 3)]), np.array(_MOSAIC_OFFSETS)
        canvas_size, meeting_point = 2.0 * size, rng.uniform(0.5 * size, 1.5 * size, 2)
    scale = rng.uniform(*augmentation.scale)
    centre = rng.uniform(0.5 - augmentation.translate, 0.5 + augmentation.translate, 2) * size
    shift = centre - scale * canvas_size / 2
    window = np.clip([shift, shift + scale * canvas_size], 0, size)
    image = Image.new("RGB", (size, size), (_FILL,) * 3)
    boxes = []
    for sample, offset in zip((data.samples[number] for number in indices), offsets, strict=True):
        fit = size / max(sample.size)
        corner = scale * (meeting_point - fit * np.array(sample.size[::-1]) * offset) + shift
        _paste(image, read_image(sample.path), scale * fit, corner, window)
        boxes.append(_visible_boxes(sample.without_crowds, scale * fit, corner, window, size))
    pixels, targets = np.asarray(_jitter_hsv(image, augmentation, rng)), np.concatenate(boxes)
    if rng.random() < augmentation.hflip:
        pixels = pixels[:, ::-1]
        targets[:, 1] = 1 - targets[:, 1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), targets


def letterbox_sample(
    sample: Sample, size: int, variant: Variant, *, read_image: Callable[[Path], RgbImage] = read_pixels
) -> tuple[Float32[np.ndarray, "3 side side"], TrainBoxes]:
    """Return an image (RGB in [0, 1]) letterboxed as in detection with this variant, and its boxes without crowd boxes.

    Raise ChromaboxError if the image cannot be decoded.
    """
    pixels, truth = read_image(sample.path), sample.without_crowds
    letterbox = letterbox_for(pixels.shape[:2], size, variant)
    boxes = _to_train_boxes(letterbox.apply_boxes(truth.boxes), truth.class_ids, size)
    return letterbox.apply_image(pixels), boxes


def _paste(
    image: Image.Image,
    pixels: RgbImage,
    scale: float,
    corner: Float64[np.ndarray, "2"],
    window: Float64[np.ndarray, "2 2"],
) -> None:
    """Draw the scaled pixels on ``image``, clipped to ``window`` (upper left and lower right corners).

    ``corner`` is the position in ``image`` of the upper left corner of the scaled pixels.
    """
    sides = np.array(pixels.shape[1::-1]) * scale
    visible = np.maximum(corner, window[0]), np.minimum(corner + sides, window[1])
    # Only the pixels of ``image`` with their centres in the visible part are drawn.
    (left, top), (right, bottom) = np.ceil(np.array(visible) - 0.5).astype(int).tolist()
    if right <= left or bottom <= top:
        return
    step = 1 / scale
    x, y = ((left, top) - corner) * step
    coefficients = (step, 0, x, 0, step, y)
    part = Image.fromarray(pixels).transform(
        (right - left, bottom - top), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    image.paste(part, (left, top))


def _jitter_hsv(image: Image.Image, augmentation: Augmentation, rng: np.random.Generator) -> Image.Image:
    """Multiply hue, saturation and value by random factors. The hue wraps around. Saturation and value are clipped."""
    gains = np.array([augmentation.hue, augmentation.saturation, augmentation.value])
    if not gains.any():
        return image
    hue, saturation, value = np.arange(256)[None] * (1 + rng.uniform(-1, 1, 3) * gains)[:, None]
    tables = [hue % 256, np.minimum(saturation, 255), np.minimum(value, 255)]
    return image.convert("HSV").point(np.concatenate(tables).astype(np.uint8).tolist()).convert("RGB")


def _visible_boxes(
    truth: Sample, scale: float, corner: Float64[np.ndarray, "2"], window: Float64[np.ndarray, "2 2"], size: int
) -> TrainBoxes:
    """Return the boxes of an image drawn with :func:`_paste`, clipped to the window. Omit barely visible boxes."""
    boxes = truth.boxes * scale + np.tile(corner, 2)
    clipped = np.concatenate([np.maximum(boxes[:, :2], window[0]), np.minimum(boxes[:, 2:], window[1])], 1)
    sides = np.maximum(clipped[:, 2:] - clipped[:, :2], 0)
    fraction = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = (sides >= MIN_BOX_SIDE).all(1) & (fraction >= MIN_VISIBLE_FRACTION)
    return _to_train_boxes(clipped[kept], truth.class_ids[kept], size)


def _to_train_boxes(boxes: Float64[np.ndarray, "boxes 4"], class_ids: np.ndarray, size: int) -> TrainBoxes:
    """Convert boxes (left, top, right, bottom, in pixels of the training image) to ``TrainBoxes``."""
    return np.column_stack([class_ids, xyxy_to_cxcywh(boxes) / size]).astype(np.float32)
