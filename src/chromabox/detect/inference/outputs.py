"""Output of detections: annotated images, COCO results, CSV and YOLO datasets.

* COCO results: a JSON list with image_id, category_id, bbox (left, top, width, height in pixels) and score of each
  box. The category ids are those of the COCO files on which the detector was trained. Without such files, the ids of
  the 80 COCO classes are COCO's, 1 to 90, and other classes are numbered from 1. The id of an image is its path without
  suffix, or an integer if its name consists of digits (as in COCO). If images of a file would have the same id, the ids
  are paths (see `coco_image_ids`).
* CSV: one line per box, with the left, top, right and bottom of the box in pixels.
* YOLO: a dataset with copies of the images in ``images/`` and one text file per image in ``labels/``. Each line
  contains the class, and the centre, width and height of a box as fractions of the image size. There is no score,
  because labels have exactly five values. ``data.yaml`` contains the class names and the lists of images.
"""

import csv
import io
import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float32, UInt8
from PIL import Image, ImageColor, ImageDraw

from chromabox.detect.boxes import Pixels, xyxy_to_cxcywh, xyxy_to_xywh
from chromabox.detect.data.dataset import COCO_CLASSES, format_labels, split_from_path, split_role
from chromabox.detect.detections import Detections
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write
from chromabox.io.images import can_draw, load_font, to_uint8

#: Category ids from 1 to 90 that COCO does not use.
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORIES = tuple(category_id for category_id in range(1, 91) if category_id not in _COCO_GAPS)

CSV_COLUMNS = ("file", "frame", "class", "class_id", "score", "left", "top", "right", "bottom", "width", "height")

#: Keys of the splits in ``data.yaml``.
YOLO_SPLITS = ("train", "val", "test")

#: Colours of the classes, assigned cyclically. They are easy to distinguish from each other and from photographs.
_COLOURS = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231"),
    *("#911eb4", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe"),
)
#: Text height and line thickness, as fractions of the shorter side of the image.
_TEXT_HEIGHT, _LINE_WIDTH = 1 / 36, 1 / 300
#: Maximum number of classes in the line about classes that are drawn as numbers.
MAX_LISTED_CLASSES = 10
#: Left, top, right and bottom in pixels.
_LabelBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageDetections:
    """Detections in an image, or in a frame (counted from 0) of a video. ``size`` is the height and width."""

    file: str
    size: tuple[int, int]
    detections: Detections
    frame: int | None = None

    @property
    def stem(self) -> str:
        """The path of the file without suffix, followed by the frame index for a video frame."""
        name = str(Path(self.file).with_suffix(""))
        return name if self.frame is None else f"{name}_{self.frame:06d}"

    @property
    def image_id(self) -> int | str:
        """The id of the image in COCO results, if no other image has it."""
        stem = Path(self.stem).name
        return int(stem) if stem.isascii() and stem.isdecimal() else Path(self.stem).as_posix()

    def summary(self) -> str:
        """Return the number of detections of each class, in decreasing order: ``dog 2, car 1``."""
        names, counts = np.unique(self.detections.class_names, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return ", ".join(f"{names[index]} {counts[index]}" for index in order) or "nothing"


def annotate(pixels: Pixels, detections: Detections) -> UInt8[np.ndarray, "height width 3"]:
    """Return a copy of the image with boxes and labels. The text and line sizes are proportional to the image size."""
    image = Image.fromarray(to_uint8(pixels))
    draw, side = ImageDraw.Draw(image), min(image.size)
    font = load_font(max(round(side * _TEXT_HEIGHT), 11))
    padding, width = max(round(side * _TEXT_HEIGHT / 5), 2), max(round(side * _LINE_WIDTH), 1)
    colours = [_COLOURS[class_id % len(_COLOURS)] for class_id in detections.class_id]
    for box, colour in zip(detections.xyxy, colours, strict=True):
        # The sides of a box at the edge of the image are drawn in the last row and column.
        corners = np.clip(np.rint(box), 0, [image.width - 1, image.height - 1] * 2)
        draw.rectangle(tuple(corners.tolist()), outline=colour, width=width)
    label_boxes: list[_LabelBox] = []
    names = map(drawable_name, detections.class_names.tolist(), detections.class_id.tolist())
    labels = zip(detections.xyxy, names, detections.confidence, colours, strict=True)
    for box, name, score, colour in labels:
        text = f"{name} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font)
        size = math.ceil(right - left) + 2 * padding, math.ceil(bottom - top) + 2 * padding
        x, y = _place_label(box, size, image.size, label_boxes)
        label_boxes.append((x, y, x + size[0], y + size[1]))
        draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=colour)
        # The luma of the background (BT.601) determines whether the text is black or white.
        red, green, blue = ImageColor.getrgb(colour)[:3]
        text_colour = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
        draw.text((x + padding - left, y + padding - top), text, fill=text_colour, font=font)
    return np.asarray(image)


def drawable_name(name: str, class_id: int) -> str:
    """Return a class name as it is drawn in images: the name, or ``class 3`` if the font lacks one of its characters.

    Only the bundled font is used, so that the images are the same on every machine.
    """
    composed = unicodedata.normalize("NFC", name)  # Names of files on macOS contain letters and accents separately.
    return composed if all(map(can_draw, composed)) else f"class {class_id}"


def describe_numbered_classes(classes: Sequence[str]) -> list[str]:
    """Return a line about the classes that are drawn as numbers, or an empty list if there are none."""
    drawn = [drawable_name(name, index) for index, name in enumerate(classes)]
    numbered = [
        f"{text} is {name}"
        for text, name in zip(drawn, classes, strict=True)
        if text != unicodedata.normalize("NFC", name)
    ]
    more = f" (and {len(numbered) - MAX_LISTED_CLASSES} more)" if len(numbered) > MAX_LISTED_CLASSES else ""
    heading = "the font of images lacks characters of these classes, which are drawn as numbers"
    return [f"{heading}: {', '.join(numbered[:MAX_LISTED_CLASSES])}{more}"] if numbered else []


def _place_label(
    box: Float32[np.ndarray, "4"], size: tuple[int, int], image_size: tuple[int, int], others: Sequence[_LabelBox]
) -> tuple[int, int]:
    """Return the upper left corner of a label. A label is placed above, inside or below the box, within the image.

    The first position that does not overlap another label is used, or the first of all if there is no such position.
    """
    left, top, right, bottom = (round(float(value)) for value in box)
    width, height = size
    candidates = [(left, top - height), (left, top), (left, bottom), (right - width, top - height)]
    candidates += [(right - width, top), (right - width, bottom), (left, bottom - height)]
    inside = [(max(0, min(x, image_size[0] - width)), max(0, min(y, image_size[1] - height))) for x, y in candidates]
    for x, y in inside:
        if not any(x < box[2] and box[0] < x + width and y < box[3] and box[1] < y + height for box in others):
            return x, y
    return inside[0]


def coco_image_ids(results: Sequence[ImageDetections]) -> list[int | str]:
    """Return a different id for each image or video frame.

    The ids are integers for names that consist of digits, and otherwise paths without suffix. If two of them are equal
    (``a/1.jpg`` and ``b/1.jpg``), all ids are paths without suffix. If two of these are equal (``1.jpg`` and
    ``1.png``), all ids are complete paths, followed by the frame index for a video frame.
    """
    complete = [result.file if result.frame is None else f"{result.file}/{result.frame:06d}" for result in results]
    candidates: list[list[int | str]] = [
        [result.image_id for result in results],
        [Path(result.stem).as_posix() for result in results],
    ]
    return next((ids for ids in candidates if len(set(ids)) == len(set(complete))), list(complete))


def write_coco_results(
    path: Path, results: Sequence[ImageDetections], classes: Sequence[str], category_ids: Sequence[int] = ()
) -> None:
    """Write one row per box in the format of COCO's evaluation, with the file and class names added.

    `category_ids` are the ids of the classes; if empty, they are COCO's for COCO's classes, otherwise 1, 2, ….
    Raise ChromaboxError if the file cannot be written.
    """
    default_ids = COCO_CATEGORIES if tuple(classes) == COCO_CLASSES else range(1, len(classes) + 1)
    ids = category_ids or default_ids
    rows = []
    for result, image_id in zip(results, coco_image_ids(results), strict=True):
        detections = result.detections
        boxes = xyxy_to_xywh(detections.xyxy.astype(np.float64))
        class_ids, scores, names = detections.class_id, detections.confidence, detections.class_names
        for box, class_id, score, name in zip(boxes, class_ids, scores, names, strict=True):
            row = {
                "image_id": image_id,
                "category_id": ids[class_id],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 5),
                "file_name": result.file,
                "category": str(name),
            }
            row |= {} if result.frame is None else {"frame": result.frame}
            rows.append(json.dumps(row, ensure_ascii=False))
    write_text(path, "[" + ",\n ".join(rows) + "]\n", "backslashreplace")  # In JSON, \\udcff is an escape.


def write_csv(path: Path, results: Iterable[ImageDetections]) -> None:
    """Write the header ``CSV_COLUMNS`` and one line per box. ``width`` and ``height`` are the size of the image.

    Raise ChromaboxError if the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        detections, (height, width) = result.detections, result.size
        class_ids, scores, names = detections.class_id, detections.confidence, detections.class_names
        for box, class_id, score, name in zip(detections.xyxy, class_ids, scores, names, strict=True):
            corners = [f"{value:.3f}" for value in box]
            frame = "" if result.frame is None else result.frame
            writer.writerow([result.file, frame, name, class_id, f"{score:.5f}", *corners, width, height])
    write_text(path, text.getvalue(), "surrogateescape")  # The bytes of the name are preserved.


def write_yolo_labels(path: Path, result: ImageDetections) -> None:
    """Write YOLO labels, one line per box. The file is empty for an image without detections.

    Boxes less than a pixel wide or high are left out, because they are not valid labels. Raise ChromaboxError if the
    file cannot be written.
    """
    height, width = result.size
    xyxy = result.detections.xyxy.astype(np.float64)
    is_valid = (xyxy[:, 2:] - xyxy[:, :2] >= 1).all(axis=1)
    boxes = xyxy_to_cxcywh(xyxy[is_valid]) / [width, height, width, height]
    write_text(path, format_labels(result.detections.class_id[is_valid], boxes, ".9g"))


def yolo_label_file(image: Path) -> Path:
    """Return the path at which YOLO programs look for the labels of an image: the last ``images`` becomes ``labels``.

    One of the folders of the image must be named ``images``.
    """
    position = max(index for index, part in enumerate(image.parts[:-1]) if part == "images")
    return Path(*image.parts[:position], "labels", *image.parts[position + 1 :]).with_suffix(".txt")


def write_yolo_description(folder: Path, images: Sequence[Path], classes: Sequence[str]) -> None:
    """Write ``data.yaml``, ``labels/classes.txt`` and the lists of images ``train.txt``, ``val.txt`` and ``test.txt``.

    Only the lists of splits with images are written. The split of an image is the one that its folders denote, or
    otherwise train.

    Args:
        folder: folder of the dataset.
        images: paths of the images in ``folder``.
        classes: class names.

    Raise ChromaboxError if a file cannot be written.
    """
    lists: dict[str, list[str]] = {}
    for image in images:
        role = split_role(split_from_path(image, folder)) or "train"
        lists.setdefault(role, []).append(f"./{image.relative_to(folder).as_posix()}\n")
    for split, lines in lists.items():
        write_text(folder / f"{split}.txt", "".join(lines), "surrogateescape")
    description = {split: f"{split}.txt" for split in YOLO_SPLITS if split in lists} | {"names": list(classes)}
    write_text(folder / "data.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=True))
    write_text(folder / "labels" / "classes.txt", "".join(f"{name}\n" for name in classes))


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file atomically and create its folder if necessary. Raise ChromaboxError on failure.

    ``errors`` is the treatment of bytes of file names that are not text, as in ``str.encode``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors=errors)
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror}); use a writable folder") from error
