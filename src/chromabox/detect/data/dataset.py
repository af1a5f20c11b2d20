"""Detection datasets: samples, label validation, COCO class names, and functions that list images and infer splits.

An invalid label is fixed or dropped individually. The image and its other labels are kept. Each invalid label is
recorded as a `LabelIssue` with its file and line.
"""

import contextlib
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, image_size

RgbImage = UInt8[np.ndarray, "height width 3"]
Float64Boxes = Float64[np.ndarray, "boxes 4"]
"""Left, top, right, bottom in pixels from the upper left corner of the image, after its EXIF orientation is applied."""
DatasetFormat = Literal["yolo", "coco", "voc"]
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
    "picture without label",
    "duplicate id",
    "unused picture",
    "unused annotation",
    "unused folder",
]

#: Types of issues that can be correct and are only mentioned.
NOTES: frozenset[IssueType] = frozenset({"huge box", "picture without label"})

#: Number of pixels by which a box may extend beyond the image without an issue. This allows for rounding and for
#: formats that count pixels from 1.
BOX_EDGE_TOLERANCE = 1.0

#: Boxes that cover at least this fraction of the image are reported as huge. They probably do not mark an object.
HUGE_BOX_FRACTION = 0.995


@dataclass(frozen=True)
class LabelIssue:
    """Issue with one label or image.

    `line` is counted from 1 in text files and XML. In COCO JSON, `line` is the id of the annotation. If `dropped` is
    True, the label or image is dropped. Otherwise, the label or image is used as described in `message`.
    """

    issue_type: IssueType
    path: Path
    line: int | None
    message: str
    dropped: bool

    def __str__(self) -> str:
        location = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return utf8_safe(f"{location}: {self.issue_type}: {self.message}")


@dataclass(frozen=True)
class Sample:
    """Image with its ground-truth boxes.

    `class_ids` are indices into the class names of the dataset. `size` is the height and width, after the EXIF
    orientation is applied. `split` is "" if the files define no splits. `crowd_mask` (COCO's iscrowd) marks boxes
    around groups of objects. Training ignores these boxes, and evaluation does not count them as missed.
    """

    path: Path
    boxes: Float64Boxes
    class_ids: Int64[np.ndarray, " boxes"]
    size: tuple[int, int]
    split: str = ""
    crowd_mask: Bool[np.ndarray, " boxes"] | None = None

    @property
    def is_crowd(self) -> Bool[np.ndarray, " boxes"]:
        """Whether each box is a crowd. All values are False if `crowd_mask` is None."""
        return np.zeros(len(self.boxes), bool) if self.crowd_mask is None else self.crowd_mask

    @property
    def without_crowds(self) -> "Sample":
        """The sample without crowd boxes."""
        return self.select(~self.is_crowd)

    def select(self, mask: Bool[np.ndarray, " boxes"]) -> "Sample":
        """Return the sample with the boxes selected by a mask."""
        return replace(self, boxes=self.boxes[mask], class_ids=self.class_ids[mask], crowd_mask=self.is_crowd[mask])


@dataclass(frozen=True)
class DetectionDataset:
    """Labelled images, the class names, and the issues found in the files.

    If `has_class_names` is False, `classes` are the class numbers as text. YOLO folders need not contain class names.
    `label_files` are the files from which the labels were read.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    has_class_names: bool = True
    format: DatasetFormat = "yolo"
    issues: tuple[LabelIssue, ...] = ()
    label_files: frozenset[Path] = frozenset()

    def split(self, name: str) -> "DetectionDataset":
        """Return the images of one split. Raise UsageError if the name is not in `splits`."""
        if name not in self.splits:
            known = f"expected {', '.join(self.splits)}" if any(self.splits) else "the dataset has no splits"
            raise UsageError(f"split {name} is not in the dataset: {known}")
        return replace(self, samples=tuple(sample for sample in self.samples if sample.split == name), splits=(name,))


def remap_classes(data: DetectionDataset, classes: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """Replace the class indices of a dataset with the indices of a model's classes, which are matched by name.

    The comparison ignores case and treats "_" and "-" as spaces. If the dataset has no class names, its class numbers
    are used as the model's class indices. Labels of classes that the model lacks are dropped.

    Args:
        data: the dataset.
        classes: the model's class names.

    Returns:
        The dataset with the model's class names, and the names of the dataset's classes that the model lacks.

    Raise ChromaboxError if the model has none of the dataset's classes, or if a class number is not
    an index of the model's classes.
    """
    if not data.has_class_names:
        if len(data.classes) > len(classes):
            raise ChromaboxError(
                f"the dataset has no class names and has class numbers up to {len(data.classes) - 1}; expected "
                f"numbers below {len(classes)}, as in the model, or class names in a data.yaml or classes.txt"
            )
        return replace(data, classes=tuple(classes), has_class_names=True), ()
    indices = {normalise_name(name): index for index, name in enumerate(classes)}
    table = np.array([indices.get(normalise_name(name), -1) for name in data.classes], np.int64)
    if not (table >= 0).any():
        raise ChromaboxError(
            f"the model has none of the dataset's classes ({_preview(data.classes)}): expected at least one of "
            f"{_preview(classes)}"
        )
    samples = []
    for sample in data.samples:
        new_ids = table[sample.class_ids]
        samples.append(replace(sample, class_ids=new_ids).select(new_ids >= 0))
    unknown = tuple(name for name, index in zip(data.classes, table, strict=True) if index < 0)
    return replace(data, samples=tuple(samples), classes=tuple(classes)), unknown


def normalise_name(name: str) -> str:
    """Return a class name in the form used for comparison: lower case, with single spaces."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def utf8_safe(text: object) -> str:
    """Return text that can be encoded as UTF-8. Bytes of file names that are not valid UTF-8 are escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def _preview(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class RawLabel:
    """Label as read from a file, before validation.

    `box` is left, top, right and bottom in pixels, or as fractions of the image size if `as_fractions` is True.
    """

    line: int
    class_id: int
    box: tuple[float, float, float, float]
    is_crowd: bool = False
    as_fractions: bool = False


def validate_labels(
    labels: Iterable[RawLabel], image_path: Path, size: tuple[int, int], split: str, source: Path
) -> tuple[Sample, list[LabelIssue]]:
    """Return a sample with the valid boxes, clipped to the image, and the label issues.

    `size` is the height and width of the image. `source` is the file that contains the labels.
    """
    height, width = size
    image = f"the {width} × {height} image"
    valid: dict[tuple[float, ...], RawLabel] = {}
    issues: list[LabelIssue] = []
    for label in labels:
        x_unit, y_unit = (width, height) if label.as_fractions else (1, 1)
        left, right = label.box[0] * x_unit, label.box[2] * x_unit
        top, bottom = label.box[1] * y_unit, label.box[3] * y_unit
        box = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        excess = max(box[0] - left, box[1] - top, right - box[2], bottom - box[3])
        key = (label.class_id, *(round(value, 2) for value in box))
        problem: tuple[IssueType, str, str] | None = None
        if not all(map(math.isfinite, (left, top, right, bottom))):
            problem = "unreadable label", "a number is not finite", "dropped"
        elif right <= left or bottom <= top:
            problem = "zero size", f"the box is {right - left:.6g} × {bottom - top:.6g} pixels", "dropped"
        elif box[2] <= box[0] or box[3] <= box[1]:
            problem = "out of range", f"the box is outside {image}", "dropped"
        elif excess > BOX_EDGE_TOLERANCE:
            problem = "out of range", f"the box extends {excess:.1f} pixels beyond {image}", "clipped"
        elif (box[2] - box[0]) * (box[3] - box[1]) >= HUGE_BOX_FRACTION * width * height:
            problem = "huge box", "the box covers the whole image", "kept"
        if problem is not None:
            issue_type, reason, action = problem
            issues.append(LabelIssue(issue_type, source, label.line, f"{reason}; {action}", action == "dropped"))
            if action == "dropped":
                continue
        if key in valid:
            message = f"same class and box as label {valid[key].line}; dropped"
            issues.append(LabelIssue("duplicate label", source, label.line, message, True))
        else:
            valid[key] = replace(label, box=box)
    boxes = np.array([label.box for label in valid.values()], np.float64).reshape(-1, 4)
    class_ids = np.array([label.class_id for label in valid.values()], np.int64)
    is_crowd = np.array([label.is_crowd for label in valid.values()], bool)
    return Sample(image_path, boxes, class_ids, size, split, is_crowd), issues


class DatasetBuilder:
    """Collector of the samples and issues of a dataset while its files are read."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.issues: list[LabelIssue] = []
        self._label_files: set[Path] = set()

    def drop(self, issue_type: IssueType, path: Path, line: int | None, reason: object) -> None:
        """Record a label or image that is dropped."""
        self.issues.append(LabelIssue(issue_type, path, line, f"{reason}; dropped", True))

    def add_image(self, path: Path, split: str, source: Path, labels: Iterable[RawLabel]) -> None:
        """Add an image with its labels from the file `source`. Record an issue if the image is missing or damaged.

        Only the header of the image is read.
        """
        self._label_files.add(source)
        try:
            size = image_size(path)
        except ChromaboxError as error:
            self.drop("damaged picture" if os.path.isfile(path) else "missing picture", path, None, error)
            return
        sample, issues = validate_labels(labels, path, size, split, source)
        self.samples.append(sample)
        self.issues += issues

    def build(
        self, dataset_format: DatasetFormat, classes: Iterable[str], splits: Iterable[str], *, has_names: bool = True
    ) -> DetectionDataset:
        """Return the dataset of the collected samples and issues."""
        samples, issues = tuple(self.samples), tuple(self.issues)
        files = frozenset(self._label_files)
        return DetectionDataset(samples, tuple(classes), tuple(splits), has_names, dataset_format, issues, files)


def boxes_differ(first: Sample, second: Sample, tolerance: float, *, compare_classes: bool = True) -> bool:
    """Return whether the boxes of two samples differ in number, in class or by more than `tolerance` pixels.

    The order of the boxes is not compared.
    """
    if len(first.boxes) != len(second.boxes):
        return True
    distances = np.abs(first.boxes[:, None] - second.boxes).max(2, initial=0)
    if compare_classes:
        distances[first.class_ids[:, None] != second.class_ids] = np.inf
    for row in distances:
        nearest = row.argmin()
        if not row[nearest] <= tolerance:
            return True
        distances[:, nearest] = np.inf
    return False


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` if the ``with`` block succeeds, and is otherwise removed.

    `folder` must be empty or must not exist. Raise ChromaboxError if `folder` cannot be written.
    """
    temporary = folder.with_name(f".{folder.name[:50]}.{uuid.uuid4().hex[:12]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.is_dir():
            folder.rmdir()
        temporary.replace(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ChromaboxError(f"{folder}: cannot be written ({reason}); use another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def format_labels(
    class_ids: Int64[np.ndarray, " boxes"], values: Float64[np.ndarray, "boxes values"], number_format: str
) -> str:
    """Return YOLO labels: a line for each box with the class index, followed by the values in ``number_format``."""
    rows = zip(class_ids.tolist(), values.tolist(), strict=True)
    lines = [[str(class_id), *(format(value, number_format) for value in row)] for class_id, row in rows]
    return "".join(f"{' '.join(words)}\n" for words in lines)


#: The 80 classes of COCO (Lin et al. 2014), in the order of the class indices of detectors trained on COCO.
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
    """Return the class names of a model without names: COCO's for 80 classes, otherwise ``class 0``, ``class 1``, …"""
    return COCO_CLASSES if num_classes == len(COCO_CLASSES) else tuple(f"class {index}" for index in range(num_classes))


#: Pattern of the names of folders and lists that denote a split, for example train, val2017, test-dev and valid.
SPLIT_NAME = re.compile(r"(train|val|valid|validation|test)([\d_-].*)?", re.IGNORECASE)


def iter_files(folder: Path, suffixes: frozenset[str] | set[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """Yield the files with these suffixes in a folder and its subfolders, each folder sorted by name.

    The suffixes are given in lower case and also match upper case. Hidden files and folders are skipped. Links to
    folders are not followed.
    """
    for top, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(top) / name


def split_from_path(path: Path, root: Path) -> str:
    """Return the first folder name between `root` and `path` that denotes a split, or "" if there is none."""
    return next((part for part in path.relative_to(root).parts[:-1] if SPLIT_NAME.fullmatch(part)), "")
