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

from chromabox.engine.logger import progress
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.cifar10 import CLASSES, load_cifar10
from chromabox.io.http import Progress
from chromabox.io.images import write_picture

Pixels = UInt8[np.ndarray, "height width 3"]
#: Left, top, right, bottom in whole pixels.
WholeBoxes = Int64[np.ndarray, "boxes 4"]

#: Pictures made where no counts are given.
COUNTS = {"train": 120, "val": 40, "test": 40}
#: Classes taken where none are given: two that COCO's detectors know by these names and two that they do not.
SOME_CLASSES = ("airplane", "horse", "frog", "ship")
#: Shares of the photographs' width that the splits' grounds are cut from.
STRIPS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
#: Photographs (of scikit-image) that show nothing of CIFAR-10's classes.
PHOTOGRAPHS = ("coffee", "rocket", "brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field")
#: Share of plain grounds; most things on a picture; a thing's side as a share of the picture's.
PLAIN, MOST_THINGS, SIDES = 0.3, 4, (0.15, 0.45)
#: Tries to find a free place for a thing before it is left out.
_TRIES = 20
#: Side of a picture on which the smallest things can still be told apart.
LEAST_SIZE = 64


@dataclass(frozen=True)
class Things:
    """Pictures of 32 × 32 pixels (planes red, green, blue) and the class of each, an index into the set's names."""

    pictures: UInt8[np.ndarray, "things 3 32 32"]
    classes: Int64[np.ndarray, " things"]


def write_collage(
    folder: Path,
    *,
    classes: Sequence[str] = SOME_CLASSES,
    counts: Mapping[str, int] = COUNTS,
    size: int = 320,
    seed: int = 0,
    things: Mapping[str, Things] | None = None,
    fetched: Progress | None = None,
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
    _refuse(folder, counts, size)
    things = cifar_things(classes, fetched) if things is None else things
    aside = folder.with_name(f".{folder.name[:50]}.{uuid.uuid4().hex[:12]}")
    boxes = {}
    try:
        with progress("pasting", sum(counts.values()), unit="pictures", show=show_progress) as tick:
            for place, split in enumerate(COUNTS):
                draw = np.random.default_rng((seed, place))
                boxes[split] = _write_split(aside, split, counts[split], things[split], size, draw, tick)
        described = {**{split: f"images/{split}" for split in COUNTS}, "names": list(classes)}
        (aside / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        aside.replace(folder)
    except OSError as error:
        raise ChromaboxError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return boxes


def cifar_things(classes: Sequence[str], fetched: Progress | None = None) -> dict[str, Things]:
    """CIFAR-10's pictures of those classes for each split; UsageError for a class that is none, or named twice."""
    if len(set(classes)) < len(classes):
        raise UsageError(f"classes: {', '.join(classes)}: each is named once")
    kept, labels = load_cifar10("train", classes, progress=fetched)
    others, other_labels = load_cifar10("test", classes, progress=fetched)
    first_val = len(kept) * 9 // 10
    numbers = np.array([classes.index(name) if name in classes else -1 for name in CLASSES], np.int64)
    return {
        "train": Things(kept[:first_val], numbers[labels[:first_val]]),
        "val": Things(kept[first_val:], numbers[labels[first_val:]]),
        "test": Things(others, numbers[other_labels]),
    }


def collage(
    ground: Pixels, things: Things, draw: np.random.Generator
) -> tuple[Pixels, WholeBoxes, Int64[np.ndarray, " boxes"]]:
    """The ground with things on it, enlarged to sides and at places drawn; their boxes and classes.

    No two touch each other. A thing for which no free place is found is left out, but never the first.
    """
    image = Image.fromarray(ground)
    shortest = min(ground.shape[:2])
    boxes: list[tuple[int, int, int, int]] = []
    kept = []
    for index, thing in enumerate(things.pictures):
        side = round(shortest * draw.uniform(*SIDES))
        box = _free_place(ground.shape[1], ground.shape[0], side, boxes, draw)
        if box is None:
            continue
        pasted = Image.fromarray(np.ascontiguousarray(thing.transpose(1, 2, 0)))
        image.paste(pasted.resize((side, side), Image.Resampling.BICUBIC), box[:2])
        boxes.append(box)
        kept.append(index)
    return np.asarray(image), np.array(boxes, np.int64).reshape(-1, 4), things.classes[kept]


def _free_place(
    width: int, height: int, side: int, taken: Sequence[tuple[int, int, int, int]], draw: np.random.Generator
) -> tuple[int, int, int, int] | None:
    for _ in range(_TRIES):
        left, top = int(draw.integers(0, width - side + 1)), int(draw.integers(0, height - side + 1))
        box = left, top, left + side, top + side
        if all(box[2] < one[0] or one[2] < left or box[3] < one[1] or one[3] < top for one in taken):
            return box
    return None


def drawn_ground(split: str, size: int, draw: np.random.Generator) -> Pixels:
    """A plain colour, or a square cut from the split's strip of a photograph and brought to the size."""
    if draw.random() < PLAIN:
        return np.full((size, size, 3), draw.integers(0, 256, 3), np.uint8)
    strip = _strip(split, PHOTOGRAPHS[draw.integers(len(PHOTOGRAPHS))])
    longest = min(strip.shape[:2])
    side = int(draw.integers(longest // 2, longest + 1))
    top, left = (int(draw.integers(0, length - side + 1)) for length in strip.shape[:2])
    part = Image.fromarray(strip[top : top + side, left : left + side])
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


@cache
def _strip(split: str, name: str) -> Pixels:
    pixels = getattr(samples, name)()
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
    first, last = (round(share * pixels.shape[1]) for share in STRIPS[split])
    return np.ascontiguousarray(pixels[:, first:last])


def _write_split(
    folder: Path,
    split: str,
    count: int,
    things: Things,
    size: int,
    draw: np.random.Generator,
    tick: Callable[[], object],
) -> int:
    """Write the pictures and labels of one split; no thing is on two pictures while there are enough of them."""
    (folder / "labels" / split).mkdir(parents=True)
    (folder / "images" / split).mkdir(parents=True)
    rounds = 1 + count * MOST_THINGS // len(things.classes)
    order = np.concatenate([draw.permutation(len(things.classes)) for _ in range(rounds)])
    total = used = 0
    for number in range(count):
        chosen = order[used : used + draw.integers(1, MOST_THINGS + 1)]
        used += len(chosen)
        several = Things(things.pictures[chosen], things.classes[chosen])
        pixels, boxes, classes = collage(drawn_ground(split, size, draw), several, draw)
        write_picture(folder / "images" / split / f"{number:04}.jpg", pixels, quality=90)
        labels = "".join(map(_line, classes.tolist(), boxes / size))
        (folder / "labels" / split / f"{number:04}.txt").write_text(labels, encoding="utf-8")
        total += len(boxes)
        tick()
    return total


def _line(category: int, box: Float64[np.ndarray, "4"]) -> str:
    """A line of YOLO's labels: class, and centre, width and height as parts of the picture's sides."""
    left, top, right, bottom = box
    numbers = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    return " ".join([str(category), *(f"{number:.6f}" for number in numbers)]) + "\n"


def _refuse(folder: Path, counts: Mapping[str, int], size: int) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder}: is there already; name a new or an empty folder")
    if counts.keys() != COUNTS.keys() or any(count < 1 for count in counts.values()):
        raise UsageError(f"counts is {dict(counts)}: at least 1 picture for each of {', '.join(COUNTS)} is right")
    if size < LEAST_SIZE:
        raise UsageError(f"size is {size}: pictures need a side of at least {LEAST_SIZE} pixels")
