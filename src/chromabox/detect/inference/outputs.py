"""Output of detections: annotated images, COCO results, CSV and YOLO labels.

* COCO results: a JSON list of image_id, category_id, bbox (left, top, width, height in pixels) and score. The 80 COCO
  classes have COCO's ids, 1 to 90; other classes are numbered from 1. The id of an image is its name without suffix,
  as an integer if it consists of digits (as in COCO).
* CSV: one line per box, with corners in pixels.
* YOLO: one text file per image with class, centre, width and height as fractions of the image size, and score.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from chromabox.detect.boxes import Pixels, xyxy_to_cxcywh, xyxy_to_xywh
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.detections import Detections, supervision
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write
from chromabox.io.images import to_uint8

#: Category ids from 1 to 90 that COCO does not use.
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORIES = tuple(category_id for category_id in range(1, 91) if category_id not in _COCO_GAPS)

CSV_COLUMNS = ("file", "frame", "class", "class_id", "score", "left", "top", "right", "bottom", "width", "height")

#: Colours that are easy to distinguish from each other and from photographs; classes use them cyclically.
_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#ffe119",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#46f0f0",
    "#f032e6",
    "#bcf60c",
    "#fabebe",
)
#: Height of text and thickness of lines, as fractions of the shorter side of the image.
_TEXT_HEIGHT, _LINE_WIDTH = 1 / 36, 1 / 300


@dataclass(frozen=True)
class ImageDetections:
    """Detections in one image, or in one frame (counted from 0) of a video; ``size`` is (height, width)."""

    file: str
    size: tuple[int, int]
    detections: Detections
    frame: int | None = None

    @property
    def stem(self) -> str:
        """The file's relative path without suffix; for a video frame, followed by the frame index."""
        name = str(Path(self.file).with_suffix(""))
        return name if self.frame is None else f"{name}_{self.frame:06d}"

    @property
    def image_id(self) -> int | str:
        """The id of the image in COCO results."""
        stem = Path(self.stem).name
        return int(stem) if stem.isascii() and stem.isdecimal() else Path(self.stem).as_posix()

    def summary(self) -> str:
        """Return the number of detections of each class, most frequent first: ``dog 2, car 1``."""
        names, counts = np.unique(_class_names(self.detections), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return ", ".join(f"{names[index]} {counts[index]}" for index in order) or "nothing"


def annotate(pixels: Pixels, detections: Detections) -> UInt8[np.ndarray, "height width 3"]:
    """Return a copy of the image with boxes and labels, drawn in proportion to its size."""
    image = to_uint8(pixels).copy()
    if not len(detections):
        return image
    side = min(image.shape[:2])
    colours = supervision.ColorPalette.from_hex(list(_COLOURS))
    boxes = supervision.BoxAnnotator(colours, thickness=max(round(side * _LINE_WIDTH), 1))
    labels = supervision.RichLabelAnnotator(
        colours,
        text_color=supervision.ColorPalette([_text_colour(colour) for colour in colours.colors]),
        font_size=max(round(side * _TEXT_HEIGHT), 11),
        text_padding=max(round(side * _TEXT_HEIGHT / 5), 2),
        smart_position=True,
    )
    text = [f"{name} {score:.2f}" for name, score in zip(_class_names(detections), _scores(detections), strict=True)]
    return labels.annotate(boxes.annotate(image, detections), detections, labels=text)


def _text_colour(colour: Any) -> Any:
    """Return black or white, whichever has more contrast with a colour (by its BT.601 luma)."""
    luma = 0.299 * colour.r + 0.587 * colour.g + 0.114 * colour.b
    return supervision.Color.BLACK if luma > 140 else supervision.Color.WHITE


def coco_results(results: Iterable[ImageDetections], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per box in the format of COCO's evaluation, with file and class name in addition."""
    ids = COCO_CATEGORIES if tuple(classes) == COCO_CLASSES else range(1, len(classes) + 1)
    rows = []
    for result in results:
        detections = result.detections
        boxes = xyxy_to_xywh(detections.xyxy.astype(np.float64))
        class_ids, scores, names = _class_ids(detections), _scores(detections), _class_names(detections)
        for box, class_id, score, name in zip(boxes, class_ids, scores, names, strict=True):
            row = {
                "image_id": result.image_id,
                "category_id": ids[class_id],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 5),
                "file_name": result.file,
                "category": str(name),
            }
            rows.append(row if result.frame is None else {**row, "frame": result.frame})
    return rows


def write_coco_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as a JSON list, one row per line. Raise ChromaboxError if the file cannot be written."""
    _write_text(path, "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")


def write_csv(path: Path, results: Iterable[ImageDetections]) -> None:
    """Write one line per box below the header ``CSV_COLUMNS``; width and height are those of the image.

    Raise ChromaboxError if the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        detections, (height, width) = result.detections, result.size
        class_ids, scores, names = _class_ids(detections), _scores(detections), _class_names(detections)
        for box, class_id, score, name in zip(detections.xyxy, class_ids, scores, names, strict=True):
            corners = [f"{value:.3f}" for value in box]
            frame = "" if result.frame is None else result.frame
            writer.writerow([result.file, frame, name, class_id, f"{score:.5f}", *corners, width, height])
    _write_text(path, text.getvalue())


def write_yolo_labels(path: Path, result: ImageDetections) -> None:
    """Write one line per box. An image without detections gets an empty file, which shows that it was processed.

    Raise ChromaboxError if the file cannot be written.
    """
    height, width = result.size
    detections = result.detections
    boxes = xyxy_to_cxcywh(detections.xyxy.astype(np.float64)) / [width, height, width, height]
    lines = [
        f"{class_id} " + " ".join(f"{value:.6f}" for value in (*box, score)) + "\n"
        for box, class_id, score in zip(boxes, _class_ids(detections), _scores(detections), strict=True)
    ]
    _write_text(path, "".join(lines))


def write_class_names(path: Path, classes: Sequence[str]) -> None:
    """Write the class names, one per line, in the order of the class indices in YOLO labels."""
    _write_text(path, "".join(f"{name}\n" for name in classes))


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({error.strerror}); use a writable folder") from error


def _class_names(detections: Detections) -> np.ndarray:
    return np.asarray(detections.data.get("class_name", np.zeros(0, str)))


def _class_ids(detections: Detections) -> np.ndarray:
    return np.zeros(0, np.int64) if detections.class_id is None else detections.class_id


def _scores(detections: Detections) -> np.ndarray:
    return np.zeros(0, np.float32) if detections.confidence is None else detections.confidence
