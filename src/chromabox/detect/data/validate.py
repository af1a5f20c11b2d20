"""Validation of detection datasets, and cleaned copies of them.

Validation counts images and boxes, and finds invalid labels, damaged images and duplicates.

A cleaned copy is written in YOLO format. The original is not modified. The copy omits invalid labels, damaged images
and exact duplicates. If identical images are in different splits, the training image is omitted, so that the validation
set remains unchanged. Near-duplicates are only reported.
"""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chromabox.detect.boxes import xyxy_to_cxcywh
from chromabox.detect.data.dataset import (
    DetectionDataset,
    LabelIssue,
    Sample,
    atomic_folder,
    format_labels,
    split_role,
    utf8_safe,
)
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.yolo import label_path
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError

#: Number of boxes below which a class is reported as rare. Results for so few boxes are not significant.
MIN_BOXES_PER_CLASS = 5


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
        splits = {sample.path: sample.split for sample in self.data.samples}
        return tuple(pair for pair in self.duplicates if splits[pair.first] != splits[pair.second])

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
        """Whether there are no leaks and no issues except huge boxes, which can be correct."""
        return not (self.issue_counts.keys() - {"huge box"}) and not self.leaks

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON-serialisable dictionary."""
        # Images without boxes are background samples, which are often included on purpose.
        empty = [utf8_safe(sample.path) for sample in self.data.samples if len(sample.boxes) == 0]
        faults = [
            (issue.issue_type, utf8_safe(issue.path), issue.line, utf8_safe(issue.message), issue.dropped)
            for issue in self.issues
        ]
        duplicates = [
            (utf8_safe(pair.first), utf8_safe(pair.second), pair.exact, pair.hash_distance) for pair in self.duplicates
        ]
        return {
            "format": self.data.format,
            "classes": list(self.data.classes) if self.data.has_class_names else None,
            "pictures": dict(Counter(sample.split for sample in self.data.samples)),
            "boxes": self.box_counts,
            "empty": empty,
            "faults": [dict(zip(("kind", "file", "line", "text", "dropped"), row, strict=True)) for row in faults],
            "twins": [dict(zip(("first", "second", "exact", "bits"), row, strict=True)) for row in duplicates],
            "twins_across_splits": len(self.leaks),
        }


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
    """Write the valid part of a dataset to the new folder `output`: images/, labels/, data.yaml and repair.json.

    `source` is the path from which the dataset was loaded. The copy is written atomically.

    Return the contents of repair.json: "pictures" and "boxes" are the numbers of images and boxes, and "changes" is a
    list with one line for each change from the original.

    Raise UsageError if `output` exists or is inside `source`, and ChromaboxError if `output` cannot be written.
    """
    if output.exists():
        raise UsageError(f"--repair: {output} already exists; choose a new folder")
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise UsageError(
            f"--repair: {output} is inside {source}, which must not be modified; choose a folder outside the dataset"
        )
    from chromabox.engine.checkpoint import write_json  # This imports PyTorch, which validation does not require.

    data = dataset_report.data
    samples, changes = _select_samples(dataset_report)
    with atomic_folder(output) as folder:
        for sample in samples:
            image_path, number = folder / "images" / (sample.split or "train") / sample.path.name, 1
            while label_path(image_path).exists():  # Images in several folders can have the same name.
                number += 1
                image_path = image_path.with_stem(f"{sample.path.stem}-{number}")
            for path in (image_path, label_path(image_path)):
                path.parent.mkdir(parents=True, exist_ok=True)
            # The image is copied rather than linked, because changes to a link would also change the original.
            shutil.copyfile(sample.path, image_path)
            height, width = sample.size
            boxes = xyxy_to_cxcywh(sample.boxes) / [width, height, width, height]
            label_path(image_path).write_text(format_labels(sample.class_ids, boxes, ".9g"), encoding="utf-8")
        splits = dict.fromkeys(sample.split or "train" for sample in samples)
        description: dict[str, object] = {}
        for key in ("train", "val", "test"):
            folders = [f"images/{split}" for split in splits if split_role(split) == key]
            if folders:
                description[key] = folders[0] if len(folders) == 1 else folders
        description["nc"] = len(data.classes)
        if data.has_class_names:
            description["names"] = dict(enumerate(data.classes))
        yaml_text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(yaml_text, encoding="utf-8")
        num_boxes = sum(len(sample.boxes) for sample in samples)
        result = {"pictures": len(samples), "boxes": num_boxes, "changes": changes}
        write_json(folder / "repair.json", result)
    return result


def _select_samples(dataset_report: DatasetReport) -> tuple[list[Sample], list[str]]:
    """Return the images to copy, without crowd boxes, and a line for each change."""
    samples = dataset_report.data.samples
    in_train = {sample.path: split_role(sample.split) == "train" for sample in samples}
    dropped: dict[Path, str] = {}
    for pair in dataset_report.duplicates:
        if pair.exact and pair.first not in dropped and pair.second not in dropped:
            drop, keep = pair.second, pair.first
            if in_train[pair.first] and not in_train[pair.second]:
                drop, keep = keep, drop
            dropped[drop] = f"{drop}: exact duplicate of {keep}; dropped"
    changes = [str(issue) for issue in dataset_report.issues if issue.issue_type != "huge box"]
    damaged = {issue.path for issue in dataset_report.issues if issue.issue_type == "damaged picture"}
    crowds = [
        f"{sample.path}: crowd boxes, which the YOLO format does not support: {int(sample.is_crowd.sum())} dropped"
        for sample in samples
        if sample.is_crowd.any()
    ]
    kept = [sample.without_crowds for sample in samples if sample.path not in dropped and sample.path not in damaged]
    return kept, [utf8_safe(line) for line in (*changes, *dropped.values(), *crowds)]
