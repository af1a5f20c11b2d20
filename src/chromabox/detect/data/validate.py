"""Validation of detection datasets (counts, label issues, damaged images and duplicates), and cleaned copies.

A cleaned copy is written in YOLO format; the original is not modified. The copy omits invalid labels, damaged images,
and exact duplicates. If the duplicates are in different splits, the training image is omitted, which keeps the
validation set unchanged. Near-duplicates are only reported.
"""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from chromabox.detect.boxes import xyxy_to_cxcywh
from chromabox.detect.data.dataset import DetectionDataset, LabelIssue, Sample, atomic_folder, utf8_safe
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.yolo import label_path
from chromabox.engine.checkpoint import write_json
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError

#: Number of boxes below which a class is reported as rare: results on so few boxes are not significant.
MIN_BOXES_PER_CLASS = 5


@dataclass(frozen=True)
class DatasetReport:
    """Loaded dataset and the problems found in it. No file is modified."""

    data: DetectionDataset
    issues: tuple[LabelIssue, ...]
    """Issues with labels and images, including damaged images."""
    duplicates: tuple[DuplicatePair, ...]

    @property
    def unlabelled(self) -> tuple[Path, ...]:
        """Images without boxes. They are background samples, which are often included on purpose."""
        return tuple(sample.path for sample in self.data.samples if len(sample.boxes) == 0)

    @property
    def leaks(self) -> tuple[DuplicatePair, ...]:
        """Duplicates in different splits, which make validation results optimistic."""
        splits = {sample.path: sample.split for sample in self.data.samples}
        return tuple(pair for pair in self.duplicates if splits[pair.first] != splits[pair.second])

    @property
    def box_counts(self) -> dict[str, dict[str, int]]:
        """Number of boxes of each class, by split."""
        counts = {}
        for split in self.data.splits:
            class_ids = [sample.class_ids for sample in self.data.samples if sample.split == split]
            class_ids.append(np.arange(0))
            per_class = np.bincount(np.concatenate(class_ids), minlength=len(self.data.classes))
            counts[split] = dict(zip(self.data.classes, per_class.tolist(), strict=True))
        return counts

    @property
    def issue_counts(self) -> dict[str, int]:
        """Number of issues of each type."""
        return dict(Counter(issue.issue_type for issue in self.issues).most_common())

    @property
    def is_valid(self) -> bool:
        """Whether there are no issues except huge boxes, which can be correct, and no duplicates across splits."""
        return not (self.issue_counts.keys() - {"huge box"}) and not self.leaks

    def as_json(self) -> dict[str, Any]:
        """Return the report as a JSON-serialisable dictionary."""
        return {
            "format": self.data.format,
            "classes": list(self.data.classes) if self.data.has_class_names else None,
            "pictures": dict(Counter(sample.split for sample in self.data.samples)),
            "boxes": self.box_counts,
            "empty": [utf8_safe(path) for path in self.unlabelled],
            "faults": [
                {
                    "kind": issue.issue_type,
                    "file": utf8_safe(issue.path),
                    "line": issue.line,
                    "text": utf8_safe(issue.message),
                    "dropped": issue.dropped,
                }
                for issue in self.issues
            ],
            "twins": [
                {
                    "first": utf8_safe(pair.first),
                    "second": utf8_safe(pair.second),
                    "exact": pair.exact,
                    "bits": pair.hash_distance,
                }
                for pair in self.duplicates
            ],
            "twins_across_splits": len(self.leaks),
        }


def validate_dataset(path: Path | str, *, show_progress: bool = False) -> DatasetReport:
    """Validate all labels, decode all images and find duplicates.

    Raise the same errors as `load_detection_dataset`.
    """
    data = load_detection_dataset(path)
    with progress_bar("checking", len(data.samples), unit="images", show=show_progress) as on_progress:
        image_prints, errors = fingerprints([sample.path for sample in data.samples], on_progress)
    damaged = [LabelIssue("damaged picture", path, None, f"{error}; dropped", True) for path, error in errors.items()]
    return DatasetReport(data, (*data.issues, *damaged), tuple(find_duplicates(image_prints)))


@dataclass(frozen=True)
class CleanCopy:
    """Folder and size of a cleaned copy, and its changes from the original, one line per change."""

    folder: Path
    num_images: int
    num_boxes: int
    changes: tuple[str, ...]


def write_clean_copy(dataset_report: DatasetReport, source: Path, output: Path) -> CleanCopy:
    """Write the valid part of a dataset to the new folder `output`: images/, labels/, data.yaml, repair.json.

    `source` is the path that the dataset was loaded from. The copy is written atomically.

    Raise UsageError if `output` exists or is inside the source, and ChromaboxError if it cannot be written.
    """
    if output.exists():
        raise UsageError(f"--repair: {output} already exists; choose a new folder")
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise UsageError(f"--repair: {output} is inside {source}, which must not be modified; choose another folder")
    samples, changes = _select_samples(dataset_report)
    num_boxes = 0
    folders: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    with atomic_folder(output) as folder:
        for sample in samples:
            split = sample.split or "train"
            image_path, number = folder / "images" / split / sample.path.name, 1
            while label_path(image_path).exists():  # Names can be repeated in the folders of a split.
                number += 1
                image_path = image_path.with_stem(f"{sample.path.stem}-{number}")
            for path in (image_path, label_path(image_path)):
                path.parent.mkdir(parents=True, exist_ok=True)
            # A link is not enough: changes to the copy would also change the original.
            shutil.copyfile(sample.path, image_path)
            height, width = sample.size
            truth = sample.without_crowds
            rows = zip(truth.class_ids, xyxy_to_cxcywh(truth.boxes) / [width, height, width, height], strict=True)
            lines = [" ".join([str(class_id), *(f"{value:.9g}" for value in box)]) + "\n" for class_id, box in rows]
            label_path(image_path).write_text("".join(lines), encoding="utf-8")
            num_boxes += len(lines)
            for key, names in folders.items():
                if split.startswith(key) and f"images/{split}" not in names:
                    names.append(f"images/{split}")
        description: dict[str, object] = {
            key: names[0] if len(names) == 1 else names for key, names in folders.items() if names
        }
        if dataset_report.data.has_class_names:
            description["names"] = dict(enumerate(dataset_report.data.classes))
        yaml_text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (folder / "data.yaml").write_text(yaml_text, encoding="utf-8")
        write_json(folder / "repair.json", {"pictures": len(samples), "boxes": num_boxes, "changes": changes})
    return CleanCopy(output, len(samples), num_boxes, tuple(changes))


def _select_samples(dataset_report: DatasetReport) -> tuple[list[Sample], list[str]]:
    """Return the images to copy, and a line for each change."""
    data = dataset_report.data
    in_train = {sample.path: sample.split.startswith("train") for sample in data.samples}
    dropped: dict[Path, str] = {}
    for pair in dataset_report.duplicates:
        if not pair.exact or pair.first in dropped or pair.second in dropped:
            continue
        drop, keep = pair.second, pair.first
        if in_train[pair.first] and not in_train[pair.second]:
            drop, keep = keep, drop
        dropped[drop] = f"{drop}: exact duplicate of {keep}; dropped"
    changes = [str(issue) for issue in dataset_report.issues if issue.issue_type != "huge box"]
    damaged = {issue.path for issue in dataset_report.issues if issue.issue_type == "damaged picture"}
    crowds = [
        f"{sample.path}: {int(sample.is_crowd.sum())} crowd boxes, which the YOLO format does not support; dropped"
        for sample in data.samples
        if sample.is_crowd.any()
    ]
    samples = [sample for sample in data.samples if sample.path not in dropped and sample.path not in damaged]
    return samples, [utf8_safe(line) for line in (*changes, *dropped.values(), *crowds)]
