"""What a detector found, drawn into pictures and written down for other programs.

* COCO's results: a JSON list of image_id, category_id, bbox (left, top, width, height in pixels) and score. The ids of
  COCO's 80 classes are COCO's own, which go to 90; else they count from 1. A picture's id is its name without suffix,
  as a number if it is one (COCO's pictures are named so).
* csv: a line a box, corners in pixels.
* YOLO: a text file a picture with class, centre, width and height in shares of the picture, and the score.
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

#: COCO numbers its classes from 1 and left these out after they had been given.
_COCO_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORIES = tuple(number for number in range(1, 91) if number not in _COCO_GAPS)

CSV_COLUMNS = ("file", "frame", "class", "class_id", "score", "left", "top", "right", "bottom", "width", "height")

#: Colours that differ from each other and from most of what is in photographs; classes take them in turn.
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
#: Height of a letter and thickness of a line, as shares of the picture's shorter side.
_TEXT_HEIGHT, _LINE_WIDTH = 1 / 36, 1 / 300


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one picture or one frame (counted from 0) of a film; ``size`` is height and width."""

    file: str
    size: tuple[int, int]
    detections: Detections
    frame: int | None = None

    @property
    def stem(self) -> str:
        """The file's place without suffix, of a frame with its number."""
        name = str(Path(self.file).with_suffix(""))
        return name if self.frame is None else f"{name}_{self.frame:06d}"

    @property
    def image_id(self) -> int | str:
        """As COCO's results name it."""
        stem = Path(self.stem).name
        return int(stem) if stem.isascii() and stem.isdecimal() else Path(self.stem).as_posix()

    def summary(self) -> str:
        """``2 dogs``-like counts without grammar: ``dog 2, car 1``, the most frequent first."""
        names, counts = np.unique(_class_names(self.detections), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return ", ".join(f"{names[index]} {counts[index]}" for index in order) or "nothing"


def annotate(pixels: Pixels, detections: Detections) -> UInt8[np.ndarray, "height width 3"]:
    """The picture with boxes and labels, whose sizes go with the picture's; the one given is not changed."""
    scene = to_uint8(pixels).copy()
    if not len(detections):
        return scene
    side = min(scene.shape[:2])
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
    return labels.annotate(boxes.annotate(scene, detections), detections, labels=text)


def _text_colour(colour: Any) -> Any:
    """Black or white, whichever is easier to read on a colour (luma of BT.601)."""
    luma = 0.299 * colour.r + 0.587 * colour.g + 0.114 * colour.b
    return supervision.Color.BLACK if luma > 140 else supervision.Color.WHITE


def coco_results(results: Iterable[ImageDetections], classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each box of all pictures, as COCO's evaluation takes them, with file and class in words."""
    ids = COCO_CATEGORIES if tuple(classes) == COCO_CLASSES else range(1, len(classes) + 1)
    rows = []
    for one in results:
        found = one.detections
        boxes = xyxy_to_xywh(found.xyxy.astype(np.float64))
        for box, number, score, name in zip(boxes, _class_ids(found), _scores(found), _class_names(found), strict=True):
            row = {
                "image_id": one.image_id,
                "category_id": ids[number],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 5),
                "file_name": one.file,
                "category": str(name),
            }
            rows.append(row if one.frame is None else {**row, "frame": one.frame})
    return rows


def write_coco_results(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a JSON list, a row a line."""
    _write_text(path, "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")


def write_csv(path: Path, results: Iterable[ImageDetections]) -> None:
    """A line for each box, under a line of ``CSV_COLUMNS``; width and height are the picture's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for one in results:
        found, (height, width) = one.detections, one.size
        for box, number, score, name in zip(
            found.xyxy, _class_ids(found), _scores(found), _class_names(found), strict=True
        ):
            corners = [f"{value:.3f}" for value in box]
            frame = "" if one.frame is None else one.frame
            writer.writerow([one.file, frame, name, number, f"{score:.5f}", *corners, width, height])
    _write_text(path, text.getvalue())


def write_yolo_labels(path: Path, result: ImageDetections) -> None:
    """A line for each box; a picture without boxes gets an empty file, which says that it was looked at."""
    height, width = result.size
    found = result.detections
    boxes = xyxy_to_cxcywh(found.xyxy.astype(np.float64)) / [width, height, width, height]
    lines = [
        f"{number} " + " ".join(f"{value:.6f}" for value in (*box, score)) + "\n"
        for box, number, score in zip(boxes, _class_ids(found), _scores(found), strict=True)
    ]
    _write_text(path, "".join(lines))


def write_class_names(path: Path, classes: Sequence[str]) -> None:
    """The names, a line each, that the class numbers of YOLO's text files count through."""
    _write_text(path, "".join(f"{name}\n" for name in classes))


def _write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ChromaboxError(f"{path} cannot be written ({error.strerror}): a folder with room is needed") from error


def _class_names(detections: Detections) -> np.ndarray:
    return np.asarray(detections.data.get("class_name", np.zeros(0, str)))


def _class_ids(detections: Detections) -> np.ndarray:
    return np.zeros(0, np.int64) if detections.class_id is None else detections.class_id


def _scores(detections: Detections) -> np.ndarray:
    return np.zeros(0, np.float32) if detections.confidence is None else detections.confidence
