"""A small detection set that any machine can make: CIFAR-10's pictures, enlarged, on photographs and plain grounds.

Training, validation and test pictures share nothing: their CIFAR-10 pictures are different ones (those for testing are
CIFAR-10's own test pictures), and their grounds are from different strips of the photographs.
"""

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float64, Int64, UInt8
from PIL import Image
from skimage import data as samples

from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.cifar10 import CIFAR10_CLASSES, load_cifar10
from chromabox.io.http import Progress
from chromabox.io.images import write_image

RgbImage = UInt8[np.ndarray, "height width 3"]
#: Left, top, right, bottom in whole pixels.
IntBoxes = Int64[np.ndarray, "boxes 4"]

#: Pictures made where no counts are given.
DEFAULT_COUNTS = {"train": 120, "val": 40, "test": 40}
#: Classes taken where none are given: two that COCO's detectors know by these names and two that they do not.
DEFAULT_CLASSES = ("airplane", "horse", "frog", "ship")
#: Shares of the photographs' width that the splits' grounds are cut from.
SPLIT_STRIPS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
#: Photographs (of scikit-image) that show nothing of CIFAR-10's classes.
BACKGROUND_PHOTOS = ("coffee", "rocket", "brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field")
#: Share of plain grounds; most things on a picture; a thing's side as a share of the picture's.
PLAIN_FRACTION, MAX_OBJECTS, OBJECT_SIZES = 0.3, 4, (0.15, 0.45)
#: Tries to find a free place for a thing before it is left out.
_MAX_TRIES = 20
#: Side of a picture on which the smallest things can still be told apart.
MIN_IMAGE_SIZE = 64


@dataclass(frozen=True)
class Objects:
    """Pictures of 32 × 32 pixels (planes red, green, blue) and the class of each, an index into the set's names."""

    images: UInt8[np.ndarray, "things 3 32 32"]
    class_ids: Int64[np.ndarray, " things"]


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
    """Write a YOLO set (data.yaml, images/ and labels/) into a new folder; how many boxes each split has.

    Args:
        folder: must not exist yet, or be empty. It appears when everything in it is written.
        classes: of CIFAR-10, in the order in which the set numbers them.
        counts: pictures of ``train``, ``val`` and ``test``.
        size: side of the pictures in pixels, at least 64.
        seed: decides everything.
        things: what is pasted on the pictures of each split; None: CIFAR-10's, fetched if it is not in the cache.
        fetched: is told how far that is.

    Raises UsageError for wrong options, ChromaboxError where CIFAR-10 cannot be had or the folder not be written.
    """
    _check_arguments(folder, counts, size)
    objects = load_cifar_objects(classes, download_progress) if objects is None else objects
    aside = folder.with_name(f".{folder.name[:50]}.{uuid.uuid4().hex[:12]}")
    boxes = {}
    try:
        with progress_bar("pasting", sum(counts.values()), unit="pictures", show=show_progress) as tick:
            for place, split in enumerate(DEFAULT_COUNTS):
                draw = np.random.default_rng((seed, place))
                boxes[split] = _write_split(aside, split, counts[split], objects[split], size, draw, tick)
        described = {**{split: f"images/{split}" for split in DEFAULT_COUNTS}, "names": list(classes)}
        (aside / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        aside.replace(folder)
    except OSError as error:
        raise ChromaboxError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return boxes


def load_cifar_objects(classes: Sequence[str], download_progress: Progress | None = None) -> dict[str, Objects]:
    """CIFAR-10's pictures of those classes for each split; UsageError for a class that is none, or named twice."""
    if len(set(classes)) < len(classes):
        raise UsageError(f"classes: {', '.join(classes)}: each is named once")
    kept, labels = load_cifar10("train", classes, progress=download_progress)
    others, other_labels = load_cifar10("test", classes, progress=download_progress)
    first_val = len(kept) * 9 // 10
    numbers = np.array([classes.index(name) if name in classes else -1 for name in CIFAR10_CLASSES], np.int64)
    return {
        "train": Objects(kept[:first_val], numbers[labels[:first_val]]),
        "val": Objects(kept[first_val:], numbers[labels[first_val:]]),
        "test": Objects(others, numbers[other_labels]),
    }


def paste_objects(
    background: RgbImage, objects: Objects, rng: np.random.Generator
) -> tuple[RgbImage, IntBoxes, Int64[np.ndarray, " boxes"]]:
    """The ground with things on it, enlarged to sides and at places drawn; their boxes and classes.

    No two touch each other. A thing for which no free place is found is left out, but never the first.
    """
    image = Image.fromarray(background)
    shortest = min(background.shape[:2])
    boxes: list[tuple[int, int, int, int]] = []
    kept = []
    for index, thing in enumerate(objects.images):
        side = round(shortest * rng.uniform(*OBJECT_SIZES))
        box = _find_free_box(background.shape[1], background.shape[0], side, boxes, rng)
        if box is None:
            continue
        pasted = Image.fromarray(np.ascontiguousarray(thing.transpose(1, 2, 0)))
        image.paste(pasted.resize((side, side), Image.Resampling.BICUBIC), box[:2])
        boxes.append(box)
        kept.append(index)
    return np.asarray(image), np.array(boxes, np.int64).reshape(-1, 4), objects.class_ids[kept]


def _find_free_box(
    width: int, height: int, side: int, occupied: Sequence[tuple[int, int, int, int]], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    for _ in range(_MAX_TRIES):
        left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        box = left, top, left + side, top + side
        if all(box[2] < one[0] or one[2] < left or box[3] < one[1] or one[3] < top for one in occupied):
            return box
    return None


def sample_background(split: str, size: int, rng: np.random.Generator) -> RgbImage:
    """A plain colour, or a square cut from the split's strip of a photograph and brought to the size."""
    if rng.random() < PLAIN_FRACTION:
        return np.full((size, size, 3), rng.integers(0, 256, 3), np.uint8)
    strip = _photo_strip(split, BACKGROUND_PHOTOS[rng.integers(len(BACKGROUND_PHOTOS))])
    longest = min(strip.shape[:2])
    side = int(rng.integers(longest // 2, longest + 1))
    top, left = (int(rng.integers(0, length - side + 1)) for length in strip.shape[:2])
    part = Image.fromarray(strip[top : top + side, left : left + side])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


@cache
def _photo_strip(split: str, name: str) -> RgbImage:
    pixels = getattr(samples, name)()
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    first, last = (round(share * pixels.shape[1]) for share in SPLIT_STRIPS[split])
    return np.ascontiguousarray(pixels[:, first:last])


def _write_split(
    folder: Path,
    split: str,
    num_images: int,
    objects: Objects,
    size: int,
    rng: np.random.Generator,
    on_progress: Callable[[], object],
) -> int:
    """Write the pictures and labels of one split; no thing is on two pictures while there are enough of them."""
    (folder / "labels" / split).mkdir(parents=True)
    (folder / "images" / split).mkdir(parents=True)
    rounds = 1 + num_images * MAX_OBJECTS // len(objects.class_ids)
    order = np.concatenate([rng.permutation(len(objects.class_ids)) for _ in range(rounds)])
    total = used = 0
    for number in range(num_images):
        chosen = order[used : used + rng.integers(1, MAX_OBJECTS + 1)]
        used += len(chosen)
        several = Objects(objects.images[chosen], objects.class_ids[chosen])
        pixels, boxes, classes = paste_objects(sample_background(split, size, rng), several, rng)
        write_image(folder / "images" / split / f"{number:04}.jpg", pixels, quality=90)
        labels = "".join(map(_yolo_line, classes.tolist(), boxes / size))
        (folder / "labels" / split / f"{number:04}.txt").write_text(labels, encoding="utf-8")
        total += len(boxes)
        on_progress()
    return total


def _yolo_line(class_id: int, box: Float64[np.ndarray, "4"]) -> str:
    """A line of YOLO's labels: class, and centre, width and height as parts of the picture's sides."""
    left, top, right, bottom = box
    numbers = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return " ".join([str(class_id), *(f"{number:.6f}" for number in numbers)]) + "\n"


def _check_arguments(folder: Path, counts: Mapping[str, int], size: int) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already; name a new or an empty folder")
    if counts.keys() != DEFAULT_COUNTS.keys() or any(count < 1 for count in counts.values()):
        raise UsageError(
            f"counts is {dict(counts)}: at least 1 picture for each of {', '.join(DEFAULT_COUNTS)} is right"
        )
    if size < MIN_IMAGE_SIZE:
        raise UsageError(f"size is {size}: pictures need a side of at least {MIN_IMAGE_SIZE} pixels")
