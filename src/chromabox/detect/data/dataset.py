"""Pictures with boxes, whatever files they come from, and the faults found in those files.

A label with a fault is mended or left out by itself; the picture and its other labels stay. Every such case is a
`Fault` with file and line: nothing is dropped in silence.

The names of COCO's 80 classes (Lin et al. 2014), in the order in which detectors trained on it count them.

Which pictures lie where, and of which split their folders speak.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, image_size

Float64Boxes = Float64[np.ndarray, "boxes 4"]
"""Left, top, right, bottom in pixels of the upright picture, from its upper left corner."""
BoxTuple = tuple[float, float, float, float]
IssueType = Literal[
    "unreadable label",
    "unknown class",
    "zero size",
    "out of range",
    "duplicate label",
    "huge box",
    "missing picture",
    "damaged picture",
    "label without picture",
]

#: Pixels by which a box may reach over the edge without a word: rounding, and formats that count pixels from 1.
BOX_EDGE_TOLERANCE = 1.0

#: Share of the picture from which a box is remarked as huge: it marks the picture rather than a thing in it.
HUGE_BOX_FRACTION = 0.995


@dataclass(frozen=True)
class LabelIssue:
    """What is wrong with one label or picture.

    `line` counts from 1 in text files and XML; of COCO's JSON it is the annotation's id. `dropped`: the label (or the
    picture) is left out; else it is used as `text` says.
    """

    issue_type: IssueType
    path: Path
    line: int | None
    message: str
    dropped: bool

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return utf8_safe(f"{place}: {self.issue_type}: {self.message}")


@dataclass(frozen=True)
class Sample:
    """One picture and its boxes.

    `classes` are indices into the set's names. `size` is height and width, upright. `split` is "" where the files
    know none. `crowd` (COCO's iscrowd) marks boxes around groups, which are neither learnt nor counted as missed.
    """

    path: Path
    boxes: Float64Boxes
    class_ids: Int64[np.ndarray, " boxes"]
    size: tuple[int, int]
    split: str = ""
    crowd_mask: Bool[np.ndarray, " boxes"] | None = None

    @property
    def is_crowd(self) -> Bool[np.ndarray, " boxes"]:
        """`crowd`, all False where the files know none."""
        return np.zeros(len(self.boxes), bool) if self.crowd_mask is None else self.crowd_mask


@dataclass(frozen=True)
class DetectionDataset:
    """Labelled pictures, the names of their classes, and what was wrong with the files.

    `named`: the names are the files' own; else they are the class numbers as text, since YOLO folders need not say
    what their numbers mean.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    has_class_names: bool = True
    format: Literal["yolo", "coco", "voc"] = "yolo"
    issues: tuple[LabelIssue, ...] = ()

    def split(self, name: str) -> "DetectionDataset":
        """The pictures of one split. Raises UsageError for a name that is none of `splits`."""
        if name not in self.splits:
            known = ", ".join(self.splits) if any(self.splits) else "none: the data has no splits"
            raise UsageError(f"split: {name} is not in the data; there are {known}")
        return replace(self, samples=tuple(one for one in self.samples if one.split == name), splits=(name,))


def remap_classes(data: DetectionDataset, classes: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """The set with its labels as indices into `classes`, a net's names, and the names that the net does not know.

    Names are compared without regard to case and to "_" or "-" for a space. Unnamed data is taken to count as the net
    does. Labels of unknown names are left out. Raises ChromaboxError where nothing is shared, or a number is too high.
    """
    if not data.has_class_names:
        if len(data.classes) > len(classes):
            raise ChromaboxError(
                f"the data has no class names and numbers up to {len(data.classes) - 1}; the net knows {len(classes)} "
                "classes: give the names in a data.yaml or classes.txt"
            )
        return replace(data, classes=tuple(classes), has_class_names=True), ()
    places = {normalise_name(name): index for index, name in enumerate(classes)}
    table = np.array([places.get(normalise_name(name), -1) for name in data.classes], np.int64)
    if not (table >= 0).any():
        raise ChromaboxError(
            f"the net knows none of the data's classes ({_preview(data.classes)}); it knows {_preview(classes)}"
        )
    pictures = []
    for one in data.samples:
        own = table[one.class_ids]
        kept = own >= 0
        pictures.append(replace(one, boxes=one.boxes[kept], class_ids=own[kept], crowd_mask=one.is_crowd[kept]))
    unknown = tuple(name for name, place in zip(data.classes, table, strict=True) if place < 0)
    return replace(data, samples=tuple(pictures), classes=tuple(classes)), unknown


def normalise_name(name: str) -> str:
    """A class name for comparison."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def utf8_safe(text: object) -> str:
    """Text that can be written as UTF-8: names of files are bytes, and those that are none are shown by number."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _preview(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class RawLabel:
    """One label as a file has it: its line, class index, and corners in pixels, not yet judged."""

    line: int
    class_id: int
    box: BoxTuple
    is_crowd: bool = False


def validate_labels(
    labels: Iterable[RawLabel], image_path: Path, size: tuple[int, int], split: str, source: Path
) -> tuple[Sample, list[LabelIssue]]:
    """The picture with its sound boxes, cut to the picture of `size` (height, width), and the faults of the others.

    `source` is the file that the labels stand in.
    """
    sound: list[RawLabel] = []
    faults: list[LabelIssue] = []
    seen: dict[tuple[float, ...], int] = {}
    for label in labels:
        corners, found = _validate_label(label, size, source)
        faults += found
        if corners is None:
            continue
        key = (label.class_id, *(round(value, 2) for value in corners))
        if key in seen:
            faults.append(LabelIssue("duplicate label", source, label.line, f"the same as {seen[key]}; left out", True))
        else:
            seen[key] = label.line
            sound.append(replace(label, box=corners))
    boxes = np.array([label.box for label in sound], np.float64).reshape(-1, 4)
    classes = np.array([label.class_id for label in sound], np.int64)
    crowd = np.array([label.is_crowd for label in sound], bool)
    return Sample(image_path, boxes, classes, size, split, crowd), faults


def _validate_label(label: RawLabel, size: tuple[int, int], source: Path) -> tuple[BoxTuple | None, list[LabelIssue]]:
    """The label's corners inside the picture, or None if nothing can be made of it, and what was wrong."""

    def fault(kind: IssueType, text: str, dropped: bool) -> LabelIssue:
        return LabelIssue(kind, source, label.line, text, dropped)

    height, width = size
    left, top, right, bottom = label.box
    if not all(map(math.isfinite, label.box)):
        return None, [fault("unreadable label", "a number is not finite; left out", True)]
    sides = f"{right - left:.6g} × {bottom - top:.6g} pixels"
    if right <= left or bottom <= top:
        return None, [fault("zero size", f"the box is {sides}; left out", True)]
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, [fault("out of range", f"the box lies outside of the {width} × {height} picture; left out", True)]
    over = max(abs(own - cut) for own, cut in zip(label.box, inside, strict=True))
    if over > BOX_EDGE_TOLERANCE:
        text = f"the box reaches {over:.1f} pixels over the edge of the {width} × {height} picture; cut there"
        return inside, [fault("out of range", text, False)]
    if (inside[2] - inside[0]) * (inside[3] - inside[1]) >= HUGE_BOX_FRACTION * width * height:
        return inside, [fault("huge box", "the box covers the whole picture; kept", False)]
    return inside, []


COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


def default_class_names(num_classes: int) -> tuple[str, ...]:
    """COCO's names for 80 classes, else ``class 0``, ``class 1``, … for those whose names nobody has said."""
    return COCO_CLASSES if num_classes == len(COCO_CLASSES) else tuple(f"class {index}" for index in range(num_classes))


#: A folder's or list's name that is a split's: train, val2017, test-dev, valid.
_SPLIT_PATTERN = re.compile(r"(train|val|valid|validation|test)([\d_-].*)?", re.IGNORECASE)


def iter_files(folder: Path, suffixes: frozenset[str] | set[str]) -> Iterator[Path]:
    """The files of these suffixes (in lower case) in a folder and its sub-folders, in the order of their paths.

    Hidden files and folders are passed over, links to folders not followed.
    """
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(top) / name


def list_images(folder: Path) -> list[Path]:
    """All pictures in a folder and its sub-folders."""
    return list(iter_files(folder, IMAGE_SUFFIXES))


def is_split_name(name: str) -> bool:
    """Whether a folder or list of that name speaks of a split."""
    return _SPLIT_PATTERN.fullmatch(name) is not None


def split_from_path(path: Path, root: Path) -> str:
    """The name of the folder between `root` and `path` that is a split's, the outermost; "" if there is none."""
    return next((part for part in path.relative_to(root).parts[:-1] if is_split_name(part)), "")


def read_size(path: Path) -> tuple[tuple[int, int] | None, list[LabelIssue]]:
    """Height and width of a picture, or None and the fault that tells why there is no such picture."""
    try:
        return image_size(path), []
    except ChromaboxError as error:
        kind = "damaged picture" if path.is_file() else "missing picture"
        return None, [LabelIssue(kind, path, None, f"{error}; left out", True)]  # type: ignore[arg-type]
