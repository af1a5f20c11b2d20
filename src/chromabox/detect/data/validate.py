"""Validation of detection datasets, and cleaned copies of them.

Validation counts images and boxes, and finds invalid labels, damaged images and duplicates.

A cleaned copy is written in YOLO format. The original is not modified. The copy omits invalid labels, damaged images
and exact duplicates. If identical images are in different splits, the training image is omitted, so that the validation
set remains unchanged, unless no training image would be left. Near-duplicates are only reported. The copy is loaded and
compared with the dataset before it appears.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Bool, Int64

from chromabox.detect.boxes import xyxy_to_cxcywh
from chromabox.detect.data.dataset import (
    NOTES,
    DetectionDataset,
    LabelIssue,
    Sample,
    SplitRole,
    atomic_folder,
    boxes_differ,
    format_labels,
    list_names,
    split_role,
    utf8_safe,
)
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.yolo import label_path
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES
from chromabox.io.kinds import identify

#: Number of boxes below which a class is reported as rare. Results for so few boxes are not significant.
MIN_BOXES_PER_CLASS = 5
#: Maximum number of printed lines per type of issue; JSON files contain all issues.
MAX_LINES_PER_ISSUE = 20
#: Maximum difference, in pixels, of a box in a cleaned copy from the box in the dataset.
COPY_TOLERANCE = 0.01
#: Warning about a dataset in which validation measures nothing that is learnt.
NO_COMMON_CLASS = "no class has both training and validation boxes; validation measures nothing that is learnt"


@dataclass(frozen=True)
class DatasetReport:
    """Loaded dataset and the problems found in it. No file is modified."""

    data: DetectionDataset
    issues: tuple[LabelIssue, ...]
    """Issues with labels and images, including damaged images."""
    duplicates: tuple[DuplicatePair, ...]

    @property
    def leaks(self) -> tuple[DuplicatePair, ...]:
        """Duplicates and near-duplicates in different splits. They make validation results too optimistic."""
        splits: dict[Path, set[str]] = {}
        for sample in self.data.samples:
            splits.setdefault(sample.path, set()).add(sample.split)
        return tuple(pair for pair in self.duplicates if len(splits[pair.first] | splits[pair.second]) > 1)

    @property
    def box_counts(self) -> dict[str, dict[str, int]]:
        """Number of boxes of each class, by split."""
        counts = {split: dict.fromkeys(self.data.classes, 0) for split in self.data.splits}
        for sample in self.data.samples:
            for class_id in sample.class_ids.tolist():
                counts[sample.split][self.data.classes[class_id]] += 1
        return counts

    @property
    def issue_counts(self) -> dict[str, int]:
        """Number of issues of each type."""
        return dict(Counter(issue.issue_type for issue in self.issues).most_common())

    @property
    def is_valid(self) -> bool:
        """Whether there are no leaks and no issues except `NOTES`, and validation measures what is learnt."""
        has_issues = bool(self.issue_counts.keys() - NOTES)
        return not has_issues and not self.leaks and NO_COMMON_CLASS not in self.class_warnings

    @property
    def training_problem(self) -> str | None:
        """Reason for which the dataset cannot be used for training, or None; see `find_training_problem`."""
        return find_training_problem(*self._parts)

    @property
    def class_warnings(self) -> list[str]:
        """Warnings about classes that cannot be learnt or are not measured; see `class_warnings`."""
        return class_warnings(*self._parts)

    @cached_property
    def _parts(self) -> tuple[DetectionDataset, DetectionDataset | None]:
        """The images for training and for validation, without damaged images."""
        damaged = {issue.path for issue in self.issues if issue.issue_type == "damaged picture"}
        readable = tuple(sample for sample in self.data.samples if sample.path not in damaged)
        return train_and_val(replace(self.data, samples=readable))

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON-serialisable dictionary."""
        # Images without boxes are background samples, which are often included on purpose.
        empty = [utf8_safe(sample.path) for sample in self.data.samples if len(sample.boxes) == 0]
        duplicates = [
            (utf8_safe(pair.first), utf8_safe(pair.second), pair.exact, pair.hash_distance) for pair in self.duplicates
        ]
        return {
            "format": self.data.format,
            "classes": list(self.data.classes) if self.data.has_class_names else None,
            "pictures": dict(Counter(sample.split for sample in self.data.samples)),
            "boxes": self.box_counts,
            "empty": empty,
            "faults": issues_as_json(self.issues),
            "twins": [dict(zip(("first", "second", "exact", "bits"), row, strict=True)) for row in duplicates],
            "twins_across_splits": len(self.leaks),
        }


def issues_as_json(issues: Iterable[LabelIssue]) -> list[dict[str, Any]]:
    """Return issues as JSON-serialisable dictionaries with the keys kind, file, line, text and dropped."""
    return [
        {
            "kind": issue.issue_type,
            "file": utf8_safe(issue.path),
            "line": issue.line,
            "text": utf8_safe(issue.message),
            "dropped": issue.dropped,
        }
        for issue in issues
    ]


def issue_lines(issues: Iterable[LabelIssue]) -> list[str]:
    """Return a line for each issue, by type, with at most ``MAX_LINES_PER_ISSUE`` lines and the rest as a number."""
    by_type: dict[str, list[str]] = {}
    for issue in issues:
        by_type.setdefault(issue.issue_type, []).append(str(issue))
    lines = []
    for issue_type, texts in by_type.items():
        lines += texts[:MAX_LINES_PER_ISSUE]
        remaining = len(texts) - MAX_LINES_PER_ISSUE
        lines += [f"… and {remaining} more of “{issue_type}”"] if remaining > 0 else []
    return lines


def default_split(data: DetectionDataset) -> str | None:
    """Return the default split for evaluation: the validation split, else the test split, else None (all images).

    If several splits have this role, the role is returned, which denotes all of them.
    """
    roles: tuple[SplitRole, ...] = ("val", "test")
    role = next((role for role in roles if data.splits_for(role)), None)
    names = () if role is None else data.splits_for(role)
    return names[0] if len(names) == 1 else role


def train_and_val(data: DetectionDataset) -> tuple[DetectionDataset, DetectionDataset | None]:
    """Return the images for training, and those for validation, or None if the dataset has no split for validation.

    The images for validation are those of the validation split, otherwise those of the test split. The images for
    training are those of training splits and those without a split, except images that are also test images.
    """
    names, test_names = data.splits_for("train", ""), data.splits_for("test")
    test_paths = {os.path.realpath(sample.path) for sample in data.samples if sample.split in test_names}
    train = tuple(
        sample for sample in data.samples if sample.split in names and os.path.realpath(sample.path) not in test_paths
    )
    split = default_split(data)
    return replace(data, samples=train, splits=names), None if split is None else data.split(split)


def count_boxes(data: DetectionDataset) -> Int64[np.ndarray, " classes"]:
    """Return the number of boxes of each class, without crowd boxes."""
    class_ids = [sample.class_ids[~sample.is_crowd] for sample in data.samples]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *class_ids]), minlength=len(data.classes))


def find_training_problem(train: DetectionDataset, val: DetectionDataset | None) -> str | None:
    """Return the reason for which a dataset cannot be used for training, or None.

    Without validation images (`val` is None), some of the training images are held out, so that two of them must have
    boxes.
    """
    num_labelled = sum(bool((~sample.is_crowd).any()) for sample in train.samples)
    if not num_labelled:
        return (
            "no labelled training images: expected at least one image with boxes outside the validation and test splits"
        )
    if val is None and num_labelled < 2:
        return (
            "only one image has boxes: expected at least two, because one of them is held out for validation, or a "
            "validation split"
        )
    if val is not None and not count_boxes(val).any():
        return (
            f"the images of the split {', '.join(val.splits)}, which are used for validation, have no boxes: expected "
            "labelled images in this split, or no such split, so that training images are held out for validation"
        )
    return None


def class_warnings(train: DetectionDataset, val: DetectionDataset | None) -> list[str]:
    """Return warnings about classes that cannot be learnt, and about classes whose results are not measured.

    Both datasets have the same classes. `val` is None if the validation images are not known.
    """
    in_train = count_boxes(train) > 0
    warnings = [_count_classes("classes without training boxes, which cannot be learnt", train.classes, ~in_train)]
    if val is not None:
        in_val = count_boxes(val) > 0
        text = "classes without validation boxes, whose results are not measured"
        warnings.append(_count_classes(text, train.classes, in_train & ~in_val))
        if in_train.any() and not (in_train & in_val).any():
            warnings.append(NO_COMMON_CLASS)
    return [warning for warning in warnings if warning]


def _count_classes(text: str, names: Sequence[str], mask: Bool[np.ndarray, " classes"]) -> str:
    """Return a line with the number of classes selected by a mask and their names; "" if there are none."""
    selected = [name for name, is_selected in zip(names, mask.tolist(), strict=True) if is_selected]
    return f"{text}: {len(selected)} of {len(names)} ({list_names(selected)})" if selected else ""


def validate_dataset(path: Path | str, *, show_progress: bool = False) -> DatasetReport:
    """Validate all labels, decode all images and find duplicates.

    Raise the same errors as `load_detection_dataset`.
    """
    data = load_detection_dataset(path)
    paths = list(dict.fromkeys(sample.path for sample in data.samples))
    with progress_bar("checking", len(paths), unit="images", show=show_progress) as on_progress:
        image_prints, errors = fingerprints(paths, on_progress)
    damaged = [LabelIssue("damaged picture", path, None, f"{error}; dropped", True) for path, error in errors.items()]
    return DatasetReport(data, (*data.issues, *damaged), tuple(find_duplicates(image_prints)))


def write_clean_copy(dataset_report: DatasetReport, source: Path, output: Path) -> dict[str, Any]:
    """Write the valid part of a dataset to the new folder `output`: images/, labels/, class names and repair.json.

    The class names are in data.yaml, or in classes.txt if the dataset has no splits. `source` is the path from which
    the dataset was loaded. The copy is written atomically, after it has been loaded and compared with the dataset.

    Return the contents of repair.json: "pictures" and "boxes" are the numbers of images and boxes, and "changes" is a
    list with one line for each change from the original.

    Raise UsageError if `output` exists or is inside `source`, and ChromaboxError if no image is left, or if `output`
    cannot be written or differs from the valid part of the dataset.
    """
    if output.exists():
        raise UsageError(f"--repair: {output} already exists; choose a new folder")
    original = source.parent if source.is_file() else source
    is_folder = original.is_dir() and source.suffix.lower() != ".zip"
    if is_folder and original.resolve() in output.resolve().parents:
        raise UsageError(
            f"--repair: {output} is inside {original}, which must not be modified; choose a folder outside the dataset"
        )
    from chromabox.engine.checkpoint import write_json  # This imports PyTorch, which validation does not require.

    samples, changes = _select_samples(dataset_report)
    if not samples:
        raise ChromaboxError(f"{source}: contains no valid image; a copy would be empty, and none was written")
    with atomic_folder(output) as folder:
        copied = [_copy_sample(sample, folder) for sample in samples]
        for sample, copy in zip(samples, copied, strict=True):
            if copy.path.name != sample.path.name:
                changes.append(utf8_safe(f"{sample.path}: copied as {copy.path.relative_to(folder)}"))
        data = replace(dataset_report.data, samples=tuple(copied))
        _write_class_names(data, folder)
        _check_copy(data, folder, output)
        num_boxes = sum(len(sample.boxes) for sample in samples)
        result = {"pictures": len(samples), "boxes": num_boxes, "changes": changes}
        write_json(folder / "repair.json", result)
    return result


def _copy_sample(sample: Sample, folder: Path) -> Sample:
    """Copy an image and write its labels to a folder. Return the sample as it is expected to be read from there."""
    name, suffix = sample.path.stem.lstrip(".") or "image", sample.path.suffix
    if suffix.lower() not in IMAGE_SUFFIXES:  # A list of images can contain a file without a usual suffix.
        name, suffix = sample.path.name.lstrip("."), f".{identify(sample.path).format.lower()}"
    image_path, number = folder / "images" / sample.split / f"{name}{suffix}", 1
    while label_path(image_path).exists():  # Images in several folders can have the same name.
        number += 1
        image_path = image_path.with_name(f"{name}-{number}{suffix}")
    for path in (image_path, label_path(image_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    # The image is copied rather than linked, because changes to a link would also change the original.
    shutil.copyfile(sample.path, image_path)
    height, width = sample.size
    boxes = xyxy_to_cxcywh(sample.boxes) / [width, height, width, height]
    label_path(image_path).write_text(format_labels(sample.class_ids, boxes, ".12g"), encoding="utf-8")
    return replace(sample, path=image_path)


def _write_class_names(data: DetectionDataset, folder: Path) -> None:
    """Write data.yaml with the folders of the splits and the class names, or classes.txt if there are no splits."""
    splits = {sample.split for sample in data.samples}
    if any(splits):
        description: dict[str, object] = {role: f"images/{role}" for role in ("train", "val", "test") if role in splits}
        description["nc"] = len(data.classes)
        if data.classes and data.has_class_names:
            description["names"] = dict(enumerate(data.classes))
        yaml_text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(yaml_text, encoding="utf-8")
    elif data.has_class_names:
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in data.classes), encoding="utf-8")


def _check_copy(expected: DetectionDataset, folder: Path, output: Path) -> None:
    """Load the dataset in `folder`. Raise ChromaboxError, which names `output`, if it is not the expected dataset."""
    problem = ""
    try:
        data = load_detection_dataset(folder)
    except ChromaboxError as error:
        problem = str(error).replace(str(folder), str(output))
    else:
        samples = {(sample.path, sample.split): sample for sample in data.samples}
        if expected.has_class_names and data.classes != expected.classes:
            problem = f"its class names would be read as {', '.join(data.classes)}"
        if len(data.samples) != len(expected.samples):
            problem = f"it contains {len(data.samples)} images instead of {len(expected.samples)}"
        for sample in expected.samples:
            copy = samples.get((sample.path, sample.split))
            if copy is None or copy.size != sample.size or boxes_differ(copy, sample, COPY_TOLERANCE):
                problem = problem or f"{sample.path.relative_to(folder)}: the split, the size or the boxes differ"
    if problem:
        raise ChromaboxError(
            f"--repair: the copy in {output} would differ from the dataset ({utf8_safe(problem)}); it was not written"
        )


def _select_samples(dataset_report: DatasetReport) -> tuple[list[Sample], list[str]]:
    """Return the images to copy, without crowd boxes, and a line for each change.

    Their splits are train, val and test, or "" if the dataset has no splits.
    """
    data = dataset_report.data
    damaged = {issue.path for issue in dataset_report.issues if issue.issue_type == "damaged picture"}
    has_splits = any(split_role(sample.split) for sample in data.samples)
    samples = [
        replace(sample, split=split_role(sample.split) or ("train" if has_splits else ""))
        for sample in data.samples
        if sample.path not in damaged
    ]
    changes = [str(issue) for issue in dataset_report.issues if issue.issue_type not in NOTES]
    kept, duplicates = _drop_duplicates(samples, dataset_report.duplicates)
    for sample in kept:
        if sample.is_crowd.any():
            crowds = f"crowd boxes, which the YOLO format does not support: {int(sample.is_crowd.sum())} dropped"
            duplicates.append(f"{sample.path}: {crowds}")
    return [sample.without_crowds for sample in kept], [*changes, *map(utf8_safe, duplicates)]


def _drop_duplicates(samples: Sequence[Sample], duplicates: Sequence[DuplicatePair]) -> tuple[list[Sample], list[str]]:
    """Keep one of each group of identical images. Return the images kept, and a line for each image dropped.

    Validation and test images are preferred, but training images if otherwise none of them would be left.
    """
    originals: dict[Path, Path] = {}
    for pair in duplicates:
        if pair.exact:
            originals.setdefault(pair.second, originals.get(pair.first, pair.first))
    groups: dict[Path, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(originals.get(sample.path, sample.path), []).append(index)
    is_training = [sample.split in ("", "train") for sample in samples]
    keep_training = not any(all(is_training[index] for index in group) for group in groups.values())
    dropped: dict[int, str] = {}
    for group in groups.values():
        first = min(group, key=lambda index: (is_training[index] != keep_training, index))
        name = " in ".join(filter(None, (str(samples[first].path), samples[first].split)))
        for index in group:
            if index != first:
                differs = (
                    ", whose labels differ" if boxes_differ(samples[index], samples[first], COPY_TOLERANCE) else ""
                )
                dropped[index] = f"{samples[index].path}: exact duplicate of {name}{differs}; dropped"
    return [sample for index, sample in enumerate(samples) if index not in dropped], list(dropped.values())
