"""Synthetic detection datasets: enlarged CIFAR-10 images on photographs and plain backgrounds.

The training, validation and test splits contain different CIFAR-10 images. The images in the test split are CIFAR-10's
test images. The backgrounds of the three splits are cut from different strips of the photographs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Int64, UInt8
from PIL import Image
from skimage import data as skimage_data

from chromabox.detect.boxes import xyxy_to_cxcywh
from chromabox.detect.data.dataset import RgbImage, atomic_folder, format_labels
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError
from chromabox.io.cifar10 import CIFAR10_CLASSES, load_cifar10
from chromabox.io.http import Progress
from chromabox.io.images import write_image

#: Default number of images per split.
DEFAULT_COUNTS = {"train": 120, "val": 40, "test": 40}
#: Default classes: two that are also COCO classes, and two that are not.
DEFAULT_CLASSES = ("airplane", "horse", "frog", "ship")
#: Strip of the photographs from which backgrounds are cut, for each split: left and right as fractions of the width.
SPLIT_STRIPS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
#: Photographs from scikit-image that contain no objects of the CIFAR-10 classes.
BACKGROUND_PHOTOS = ("coffee", "rocket", "brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field")
#: Fraction of plain backgrounds, maximum number of objects per image, and minimum and maximum side length of objects
#: as fractions of the shorter side of the image.
PLAIN_FRACTION, MAX_OBJECTS, OBJECT_SIZES = 0.3, 4, (0.15, 0.45)
#: Number of attempts to find a free position for an object before the object is omitted.
_MAX_TRIES = 20
#: Minimum side length of an image in pixels, for which the smallest objects are still recognisable.
MIN_IMAGE_SIZE = 64


@dataclass(frozen=True)
class Objects:
    """RGB images (uint8, 32 × 32 pixels) and their classes, as indices into the class names of the dataset."""

    images: UInt8[np.ndarray, "objects 3 32 32"]
    class_ids: Int64[np.ndarray, " objects"]


def make_synthetic_dataset(
    folder: Path,
    *,
    classes: Sequence[str] = DEFAULT_CLASSES,
    counts: Mapping[str, int] = DEFAULT_COUNTS,
    size: int = 320,
    seed: int = 0,
    objects: Mapping[str, Objects] | None = None,
    download_progress: Progress | None = None,
    show_progress: bool = False,
) -> dict[str, int]:
    """Write a YOLO dataset (data.yaml, images/ and labels/) to a new folder; return the number of boxes in each split.

    Args:
        folder: output folder, which must be empty or must not exist. The folder is created when all files are complete.
        classes: CIFAR-10 classes, in the order of the class indices.
        counts: number of images in ``train``, ``val`` and ``test``.
        size: side length of the images in pixels, at least 64.
        seed: random seed.
        objects: objects to paste onto the images of each split; None for CIFAR-10 images, which are downloaded unless
            they are in the cache folder.
        download_progress: callback for the progress of the download.
        show_progress: whether to show a progress bar.

    Raise UsageError if an option is invalid, and ChromaboxError if CIFAR-10 cannot be downloaded or the folder cannot
    be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} already exists: choose a new or an empty folder")
    if counts.keys() != DEFAULT_COUNTS.keys() or any(count < 1 for count in counts.values()):
        raise UsageError(f"counts is {dict(counts)}: expected at least 1 image for each of {', '.join(DEFAULT_COUNTS)}")
    if size < MIN_IMAGE_SIZE:
        raise UsageError(f"--size is {size}: expected at least {MIN_IMAGE_SIZE} pixels")
    objects = load_cifar_objects(classes, download_progress) if objects is None else objects
    num_boxes = {}
    with (
        atomic_folder(folder) as temporary,
        progress_bar("pasting", sum(counts.values()), unit="images", show=show_progress) as on_progress,
    ):
        for index, split in enumerate(DEFAULT_COUNTS):
            rng, pool = np.random.default_rng((seed, index)), objects[split]
            for name in ("images", "labels"):
                (temporary / name / split).mkdir(parents=True)
            # An object is used again only after all objects have been used.
            num_rounds = 1 + counts[split] * MAX_OBJECTS // len(pool.class_ids)
            order = np.concatenate([rng.permutation(len(pool.class_ids)) for _ in range(num_rounds)])
            num_boxes[split] = used = 0
            for number in range(counts[split]):
                chosen = order[used : used + rng.integers(1, MAX_OBJECTS + 1)]
                used += len(chosen)
                selected = Objects(pool.images[chosen], pool.class_ids[chosen])
                pixels, boxes, class_ids = paste_objects(sample_background(split, size, rng), selected, rng)
                write_image(temporary / "images" / split / f"{number:04}.jpg", pixels, quality=90)
                labels = format_labels(class_ids, xyxy_to_cxcywh(boxes / size), ".6f")
                (temporary / "labels" / split / f"{number:04}.txt").write_text(labels, encoding="utf-8")
                num_boxes[split] += len(boxes)
                on_progress()
        description = {**{split: f"images/{split}" for split in DEFAULT_COUNTS}, "names": list(classes)}
        (temporary / "data.yaml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    return num_boxes


def load_cifar_objects(classes: Sequence[str], download_progress: Progress | None = None) -> dict[str, Objects]:
    """Return the CIFAR-10 images of the given classes for each split.

    Raise UsageError if a class is unknown or given twice.
    """
    if len(set(classes)) < len(classes):
        raise UsageError(f"classes: {', '.join(classes)}: expected each name only once")
    images, labels = load_cifar10("train", classes, progress=download_progress)
    test_images, test_labels = load_cifar10("test", classes, progress=download_progress)
    first_val = len(images) * 9 // 10
    class_ids = np.array([classes.index(name) if name in classes else -1 for name in CIFAR10_CLASSES], np.int64)
    return {
        "train": Objects(images[:first_val], class_ids[labels[:first_val]]),
        "val": Objects(images[first_val:], class_ids[labels[first_val:]]),
        "test": Objects(test_images, class_ids[test_labels]),
    }


def paste_objects(
    background: RgbImage, objects: Objects, rng: np.random.Generator
) -> tuple[RgbImage, Int64[np.ndarray, "boxes 4"], Int64[np.ndarray, " boxes"]]:
    """Paste objects at random sizes and positions; return the image, the boxes (xyxy, in pixels) and the classes.

    Objects do not touch each other. An object other than the first is omitted if no free position is found for it.
    """
    image = Image.fromarray(background)
    height, width = background.shape[:2]
    boxes: list[tuple[int, int, int, int]] = []
    pasted = []
    for index, pixels in enumerate(objects.images):
        side = round(min(height, width) * rng.uniform(*OBJECT_SIZES))
        for _ in range(_MAX_TRIES):
            left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
            right, bottom = left + side, top + side
            if all(right < box[0] or box[2] < left or bottom < box[1] or box[3] < top for box in boxes):
                patch = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
                image.paste(patch.resize((side, side), Image.Resampling.BICUBIC), (left, top))
                boxes.append((left, top, right, bottom))
                pasted.append(index)
                break
    return np.asarray(image), np.array(boxes, np.int64).reshape(-1, 4), objects.class_ids[pasted]


def sample_background(split: str, size: int, rng: np.random.Generator) -> RgbImage:
    """Return a plain background, or a random square from the split's strip of a photograph, resized to ``size``."""
    if rng.random() < PLAIN_FRACTION:
        return np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
    strip = _photo_strip(split, BACKGROUND_PHOTOS[rng.integers(len(BACKGROUND_PHOTOS))])
    longest = min(strip.shape[:2])
    side = int(rng.integers(longest // 2, longest + 1))
    top, left = (int(rng.integers(0, length - side + 1)) for length in strip.shape[:2])
    crop = Image.fromarray(strip[top : top + side, left : left + side])
    return np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))


@cache
def _photo_strip(split: str, name: str) -> RgbImage:
    pixels = getattr(skimage_data, name)()
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    first, last = (round(fraction * pixels.shape[1]) for fraction in SPLIT_STRIPS[split])
    return np.ascontiguousarray(pixels[:, first:last])
