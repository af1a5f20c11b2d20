"""Detection datasets: samples, label validation, COCO class names, and functions that list images and infer splits.

An invalid label is fixed or dropped individually. The image and its other labels are kept. Each invalid label is
recorded as a `LabelIssue` with its file and line.
"""

import contextlib
import csv
import itertools
import math
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import read_bytes
from chromabox.io.images import IMAGE_SUFFIXES, image_orientation, image_size

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
    "tiny box",
    "other picture size",
    "ambiguous picture",
    "missing picture",
    "damaged picture",
    "label without picture",
    "picture without split",
    "picture in several splits",
    "other class names",
    "picture without label",
    "duplicate id",
    "unused picture",
    "unused annotation",
    "unused folder",
]
SplitRole = Literal["train", "val", "test", ""]

#: Types of issues that can be correct and are only mentioned.
NOTES: frozenset[IssueType] = frozenset({"huge box", "picture without label"})

#: Number of pixels by which a box may extend beyond the image without an issue. This allows for rounding and for
#: formats that count pixels from 1.
BOX_EDGE_TOLERANCE = 1.0

#: Maximum size of a text file with class names in bytes. A thousand names take about 10 kB.
MAX_NAMES_BYTES = 1 << 20

#: Boxes that cover at least this fraction of the image are reported as huge. They probably do not mark an object.
HUGE_BOX_FRACTION = 0.995

#: Boxes whose width or height is smaller than this number of pixels are dropped. Labels are often rounded, so that it
#: is slightly less than 1.
MIN_BOX_SIDE = 0.99


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

    `splits` are the names of the splits as in the files, in the order of their roles (see `split_role`). If
    `has_class_names` is False, `classes` are "class 0", "class 1", …; YOLO folders need not contain class names.
    `category_ids` are the ids of the classes in COCO files, and empty for other formats. `files` are the files with the
    labels, and the images that they may denote.
    """

    samples: tuple[Sample, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    has_class_names: bool = True
    format: DatasetFormat = "yolo"
    issues: tuple[LabelIssue, ...] = ()
    category_ids: tuple[int, ...] = ()
    files: frozenset[Path] = frozenset()

    def split(self, name: str) -> "DetectionDataset":
        """Return the images of one split, or of all splits with the same role as `name` if no split has this name.

        Raise UsageError if there is no such split.
        """
        names = (name,) if name in self.splits else self.splits_for(split_role(name))
        if not names or names == ("",):
            known = f"expected {', '.join(self.splits)}" if any(self.splits) else "the dataset has no splits"
            raise UsageError(f"split {name} is not in the dataset: {known}")
        return replace(self, samples=tuple(sample for sample in self.samples if sample.split in names), splits=names)

    def splits_for(self, *roles: SplitRole) -> tuple[str, ...]:
        """Return the names of the splits with these roles (see `split_role`)."""
        return tuple(name for name in self.splits if split_role(name) in roles)


def remap_classes(data: DetectionDataset, classes: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """Replace the class indices of a dataset with the indices of a model's classes, which are matched by name.

    The comparison ignores case and treats "_" and "-" as spaces. If the dataset has no class names and the model has
    not been trained on unnamed classes (``class 0``, …), the class numbers of the dataset are used as the model's class
    indices. Labels of classes that the model lacks are dropped.

    Args:
        data: the dataset.
        classes: the model's class names.

    Returns:
        The dataset with the model's class names, and the names of the dataset's classes that the model lacks.

    Raise ChromaboxError if the model has none of the dataset's classes, or if a class number is not
    an index of the model's classes.
    """
    if uses_class_numbers(data, classes):
        if len(data.classes) > len(classes):
            raise ChromaboxError(
                f"the dataset has no class names and has class numbers up to {len(data.classes) - 1}; expected "
                f"numbers below {len(classes)}, as in the model, or class names in a data.yaml or classes.txt"
            )
        return replace(data, classes=tuple(classes), has_class_names=True, category_ids=()), ()
    indices = {normalise_name(name): index for index, name in enumerate(classes)}
    table = np.array([indices.get(normalise_name(name), -1) for name in data.classes], np.int64)
    if not (table >= 0).any():
        raise ChromaboxError(
            f"the model has none of the dataset's classes ({list_names(data.classes)}): expected at least one of "
            f"{list_names(classes)}"
        )
    samples = []
    for sample in data.samples:
        new_ids = table[sample.class_ids]
        samples.append(replace(sample, class_ids=new_ids).select(new_ids >= 0))
    unknown = tuple(name for name, index in zip(data.classes, table, strict=True) if index < 0)
    return replace(data, samples=tuple(samples), classes=tuple(classes), category_ids=()), unknown


def uses_class_numbers(data: DetectionDataset, classes: Sequence[str]) -> bool:
    """Return whether the classes of a dataset without names are matched to a model's classes by number."""
    return not data.has_class_names and not set(data.classes) <= set(classes)


def check_class_names(names: Sequence[str], source: Path) -> None:
    """Raise ChromaboxError if a class name is empty, or if two names are equal or differ only as `normalise_name` does.

    `source` is the file or folder with the names.
    """
    first_by_key: dict[str, str] = {}
    for index, name in enumerate(names):
        if not (key := normalise_name(name)):
            raise ChromaboxError(f"{source}: class {index} has an empty name; expected a different name for each class")
        if key in first_by_key:
            raise ChromaboxError(
                f"{source}: two classes have the names {first_by_key[key]!r} and {name!r}; expected different names "
                "for each class, apart from case, spaces, “_” and “-”"
            )
        first_by_key[key] = name


def read_class_names(path: Path) -> list[str]:
    """Return the lines of a text file with class names, or an empty list if the file contains labels of an image.

    Raise ChromaboxError if the file is too large or is not UTF-8 text.
    """
    try:
        text = read_bytes(path, "class names", MAX_NAMES_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChromaboxError(f"{path}: is not UTF-8 text; expected one class name per line") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    return [] if lines and LABEL_ROW.fullmatch(lines[0]) else lines


def normalise_name(name: str) -> str:
    """Return a class name in the form used for comparison: lower case, with single spaces."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def utf8_safe(text: object) -> str:
    """Return text that can be encoded as UTF-8. Bytes of file names that are not valid UTF-8 are escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def list_names(names: Sequence[str], count: int = 5) -> str:
    """Return the first ``count`` names, separated by commas, and the number of the others."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


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
        elif min(box[2] - box[0], box[3] - box[1]) < MIN_BOX_SIDE:
            width_and_height = f"{box[2] - box[0]:.3g} × {box[3] - box[1]:.3g} pixels"
            problem = "tiny box", f"the box has less than a pixel in {image} ({width_and_height})", "dropped"
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


def fit_to_image(
    labels: Iterable[RawLabel], path: Path, declared: tuple[float, float], size: tuple[int, int]
) -> tuple[list[RawLabel], str]:
    """Return labels for an image of the declared size as labels for the image in a file, and what was changed.

    Boxes are scaled if the proportions agree. If the declared size is that of the image before its EXIF orientation is
    applied, the orientation is also applied to the boxes.

    Args:
        labels: boxes in pixels of the declared image.
        path: the image.
        declared: width and height that the label file states.
        size: height and width of the image, after the EXIF orientation is applied.

    Raise ChromaboxError if the proportions differ.
    """
    height, width = map(float, size)
    orientation, is_turned = 1, False
    if not _same_proportions(declared, (width, height)):
        orientation = image_orientation(path)
        is_turned = orientation >= 5 and _same_proportions(declared, (height, width))
        if not is_turned:
            raise ChromaboxError(
                f"the labels are for an image of {declared[0]:g} × {declared[1]:g} pixels, but the image has "
                f"{width:g} × {height:g}; expected the same proportions"
            )
    stored_width, stored_height = (height, width) if is_turned else (width, height)
    x_scale, y_scale = stored_width / declared[0], stored_height / declared[1]
    fitted = []
    for label in labels:
        left, top, right, bottom = (
            value * scale for value, scale in zip(label.box, (x_scale, y_scale) * 2, strict=True)
        )
        if is_turned:
            left, top, right, bottom = top, left, bottom, right
            if orientation in (6, 7):  # As in `apply_orientation`.
                left, right = width - right, width - left
            if orientation in (7, 8):
                top, bottom = height - bottom, height - top
        fitted.append(replace(label, box=(left, top, right, bottom)))
    changes = [f"turned by the EXIF orientation {orientation}"] if is_turned else []
    changes += ["scaled"] if (x_scale, y_scale) != (1, 1) else []
    return fitted, " and ".join(changes)


def _same_proportions(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Return whether two widths and heights have the same ratio, except for the rounding of one side to a pixel.

    The ratios of very small images may differ by at most 5 %.
    """
    difference = abs(first[0] * second[1] - first[1] * second[0])
    return difference <= min(max(*first, *second), 0.05 * first[0] * second[1])


class DatasetBuilder:
    """Collector of the samples and issues of a dataset while its files are read."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.issues: list[LabelIssue] = []
        self._sources: list[Path] = []  # Label files of the samples.
        self._pixel_boxes: list[tuple[float, ...]] = []
        self.class_ids: set[int] = set()
        """Class numbers in YOLO labels, including those without a name."""
        self.files: set[Path] = set()
        """Files with labels, and images that they may denote."""

    def drop(self, issue_type: IssueType, path: Path, line: int | None, reason: object) -> None:
        """Record a label or image that is dropped."""
        self.issues.append(LabelIssue(issue_type, path, line, f"{reason}; dropped", True))

    def add_image(
        self,
        path: Path,
        split: str,
        source: Path,
        labels: Iterable[RawLabel],
        declared_size: tuple[object, object] = (None, None),
    ) -> None:
        """Add an image with its labels from the file `source`. Record an issue if the image is missing or damaged.

        Only the header of the image is read. `declared_size` is the width and height that `source` states for the
        image. Labels for an image of another size are fitted to the image, or dropped with it (see `fit_to_image`). A
        size that is missing or 0 is not compared.
        """
        self.files.add(source)
        try:
            size = image_size(path)
        except ChromaboxError as error:
            self.drop("damaged picture" if os.path.isfile(path) else "missing picture", path, None, error)
            return
        labels = list(labels)
        self._pixel_boxes += [label.box for label in labels if not label.as_fractions]
        try:
            declared = _parse_size(declared_size)
            if declared is not None and declared != (size[1], size[0]):
                labels, change = fit_to_image(labels, path, declared, size)
                message = f"the labels are for {declared[0]:g} × {declared[1]:g} pixels, but {path.name} has "
                message += f"{size[1]} × {size[0]}; the boxes are {change}"
                self.issues.append(LabelIssue("other picture size", source, None, message, False))
        except ChromaboxError as error:
            self.drop("other picture size", source, None, f"{path.name}: {error}")
            return
        sample, issues = validate_labels(labels, path, size, split, source)
        self.samples.append(sample)
        self._sources.append(source)
        self.issues += issues

    def pick_image(self, found: Sequence[Path], name: str, source: Path) -> Path | None:
        """Return the image that was found for a name in `source`. Record an issue if there are none or several."""
        if len(found) == 1:
            return found[0]
        if found:
            self.files.update(found)
            paths = " or ".join(map(str, found[:3]))
            self.drop("ambiguous picture", source, None, f"{name} may be {paths}; expected one image with this name")
        else:
            self.drop("missing picture", source, None, f"{name} does not exist; expected an image with this name")
        return None

    def _check_units(self, dataset_format: DatasetFormat) -> None:
        """Raise ChromaboxError if all boxes in pixels lie between 0 and 1, because they are fractions."""
        boxes = np.array(self._pixel_boxes, np.float64)
        # VOC counts from 1, so that the left and top edges are less by 1.
        if self._sources and len(boxes) and (np.abs(boxes) <= 1).all() and (boxes != np.rint(boxes)).any():
            raise ChromaboxError(
                f"{self._sources[0]}: all boxes lie between 0 and 1; expected pixels ({dataset_format.upper()}), not "
                "fractions of the image size"
            )

    def _drop_ambiguous_images(self) -> None:
        """Drop images that have different labels in several places. Of equal labels, keep those that were read first.

        An image can be in several splits.
        """
        places: dict[tuple[Path, str], list[int]] = {}
        for index, sample in enumerate(self.samples):
            places.setdefault((sample.path, sample.split), []).append(index)
        dropped: set[int] = set()
        for (path, _), (first, *others) in places.items():
            if any(boxes_differ(self.samples[first], self.samples[index], 0.0) for index in others):
                sources = " and ".join(map(str, dict.fromkeys(self._sources[index] for index in (first, *others))))
                times = f"{len(others) + 1} different lists of labels in {sources}"
                self.drop("ambiguous picture", path, None, f"the image has {times}; expected one")
                dropped |= {first, *others}
                continue
            for index in others:
                message = f"{path.name}: same labels as in {self._sources[first]}"
                self.drop("duplicate label", self._sources[index], None, message)
                dropped.add(index)
        self.samples = [sample for index, sample in enumerate(self.samples) if index not in dropped]
        self._sources = [source for index, source in enumerate(self._sources) if index not in dropped]

    def build(
        self, dataset_format: DatasetFormat, classes: Iterable[str], splits: Iterable[str], *, has_names: bool = True
    ) -> DetectionDataset:
        """Return the dataset of the collected samples and issues.

        Images outside all splits are dropped if there is a training split: they could be test images. An issue is
        recorded for each of these images, and for splits that share images.
        """
        self._check_units(dataset_format)
        self._drop_ambiguous_images()
        names = sorted({*filter(None, splits), *(sample.split for sample in self.samples)}, key=_split_order)
        if "train" in map(split_role, names):
            for sample in self.samples:
                if not sample.split:
                    reason = f"the image is in none of the splits {', '.join(filter(None, names))}"
                    self.drop("picture without split", sample.path, None, reason)
            self.samples = [sample for sample in self.samples if sample.split]
            names = [name for name in names if name]
        if len(names) > 1:
            self._report_shared_images()
        samples, issues = tuple(self.samples), tuple(self.issues)
        files = frozenset(self.files)
        return DetectionDataset(samples, tuple(classes), tuple(names), has_names, dataset_format, issues, files=files)

    def _report_shared_images(self) -> None:
        """Record one issue for each group of splits that contain the same image files."""
        splits: dict[str, dict[str, Path]] = {}
        for sample in self.samples:
            splits.setdefault(os.path.realpath(sample.path), {})[sample.split] = sample.path
        shared: dict[tuple[str, ...], list[Path]] = {}
        for paths in splits.values():
            if len(paths) > 1:
                shared.setdefault(tuple(sorted(paths, key=_split_order)), []).append(next(iter(paths.values())))
        sizes = Counter(sample.split for sample in self.samples)
        for names, images in shared.items():
            counts = ", ".join(f"{len(images)} of {sizes[name]} in {name}" for name in names)
            reason = f"the splits {' and '.join(names)} name the same images ({counts}); kept in each of them"
            self.issues.append(LabelIssue("picture in several splits", images[0], None, reason, False))


def _parse_size(values: tuple[object, object]) -> tuple[float, float] | None:
    """Return the declared width and height, or None if they are missing or 0.

    Raise ChromaboxError if they are not positive numbers.
    """
    if all(value is None or str(value).strip() in ("", "0") for value in values):
        return None
    try:
        width, height = float(str(values[0])), float(str(values[1]))
    except ValueError:
        width = height = 0.0
    if not (0 < width < math.inf and 0 < height < math.inf):
        stated = " × ".join(str(value)[:30] for value in values)
        raise ChromaboxError(f"the labels are for an image of {stated} pixels; expected two positive numbers")
    return width, height


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


#: Words in the names of folders, lists and files that denote a split, and the role of the split.
_SPLIT_WORDS: dict[str, SplitRole] = {
    **dict.fromkeys(("train", "training", "trainset", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "testset"), "test"),
}
#: Words in a name, for example obj, Train and data in obj_Train_data, or val in val2017.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: Pattern of a line in a file with YOLO labels: at least five numbers.
LABEL_ROW = re.compile(r"\s*([-+.\de]+\s+){4,}[-+.\de]+\s*", re.IGNORECASE)


def split_role(name: str) -> SplitRole:
    """Return the role of a split with this name: images for training, for validation, or for tests.

    All commands use this rule: the name contains exactly one of the words train, training, trainset, trainval; val,
    valid, validation, valset, eval, evaluation; test, testing, testset. Case is ignored. Examples are ``val2017``,
    ``obj_Train_data`` and ``test-dev``. The role is "" if there is no such word, or words of different roles.
    """
    roles = {_SPLIT_WORDS[word.lower()] for word in _WORD.findall(name) if word.lower() in _SPLIT_WORDS}
    return roles.pop() if len(roles) == 1 else ""


def _split_order(name: str) -> tuple[int, str]:
    """Return a key that sorts splits: images without a split first, then training, validation and test splits."""
    return ["", "train", "val", "test"].index(split_role(name)), name


def iter_files(folder: Path, suffixes: frozenset[str] | set[str] = IMAGE_SUFFIXES) -> Iterator[Path]:
    """Yield the files with these suffixes in a folder and its subfolders, each folder sorted by name.

    The suffixes are given in lower case and also match upper case. Hidden files and folders are skipped. Links to
    folders are followed, except links to a folder that contains the link, which would have no end.
    """
    for top, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_circular(top, name))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(top) / name


def is_circular(top: str, name: str) -> bool:
    """Return whether a folder is a link to a folder on its own path."""
    path = Path(top, name).absolute()
    return path.is_symlink() and os.path.realpath(path) in map(os.path.realpath, path.parents)


def split_from_path(path: Path, root: Path) -> str:
    """Return the folder name between `root` and `path` that denotes a split, or "" if there is none.

    If there are several, the name with the fewest words is returned, for example ``test`` in ``train-01/test/a.jpg``.
    """
    names = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    return min(filter(split_role, names), key=lambda name: len(_WORD.findall(name)), default="")


def count_common_parts(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of equal parts at the end of two paths, given their parts."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


class SplitLists:
    """Lists of the images of each split in a folder, such as ``ImageSets/Main/train.txt`` and ``test_labels.csv``.

    The name of a list begins with the name of a split. A list contains a path or name without suffix as the first word
    of each line, and a table contains file names in the column `filename`. Of VOC's lists, only those in ``Main`` are
    for detection.
    """

    def __init__(self, root: Path) -> None:
        lists = [path for path in iter_files(root, {".csv", ".txt"}) if split_role(_list_split(path))]
        lists = [path for path in lists if path.parent.name == "Main"] or lists
        # A list of the training and validation images together is used for images that are in no other list.
        lists.sort(key=lambda path: "trainval" in path.stem.lower())
        self._splits: dict[str, dict[str, None]] = {}
        for path in lists:
            for name in _read_list(path):
                parts = Path(name.replace("\\", "/")).parts
                for tail in ("/".join(parts[start:]) for start in range(len(parts))):
                    found = self._splits.setdefault(_without_suffix(tail), {})
                    if not found or "trainval" not in path.stem.lower():
                        found[_list_split(path)] = None

    def splits(self, image: Path, root: Path) -> list[str]:
        """Return the splits whose lists contain an image, or else the split that a folder below `root` denotes.

        A listed path denotes the image with which it has the longest common end.
        """
        parts = image.with_suffix("").parts
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        found = next((self._splits[tail] for tail in tails if tail in self._splits), {})
        return list(found) or [split_from_path(image, root)]


def _list_split(path: Path) -> str:
    """Return the first word of the name of a list: ``train`` for train_labels.csv, and ``dog`` for dog_train.txt."""
    return path.stem.split("_")[0]


def _without_suffix(name: str) -> str:
    """Return a name without the suffix of an image. Other dots belong to the name."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _read_list(path: Path) -> list[str]:
    """Return the image names in a list or table, without repetitions. A file with YOLO labels contains no names.

    Raise ChromaboxError if the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            if path.suffix.lower() == ".csv":
                names = [row.get("filename") or "" for row in csv.DictReader(file)]
            else:
                lines = [line.strip() for line in file if line.strip()]
                names = [line if _without_suffix(line) != line else line.split()[0] for line in lines]
                names = [] if lines and LABEL_ROW.fullmatch(lines[0]) else names
    except (OSError, csv.Error) as error:
        raise ChromaboxError(f"{path}: cannot be read as a list of images ({error}); expected image names") from error
    return list(dict.fromkeys(filter(None, names)))
