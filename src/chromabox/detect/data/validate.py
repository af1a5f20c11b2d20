"""What is in a detection data set and what is wrong with it: counts, faults of labels, damaged and doubled pictures.

A sound copy of a detection data set in YOLO's layout; what it is made from stays as it is.

Left out are labels that nothing can be made of, damaged pictures, and pictures that are byte for byte another one: of
such a pair the one in training goes, so that validation stays what it was. Near-duplicates are only told.
"""

import json
import shutil
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from chromabox.detect.data.dataset import DetectionDataset, LabelIssue, Sample, utf8_safe
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.detect.data.load import load_detection_dataset
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError

#: Boxes below which a class is told to be thin: a figure from so few is chance.
MIN_BOXES_PER_CLASS = 5


@dataclass(frozen=True)
class DatasetReport:
    """The data as loaded, and all that was found. Nothing of it changes a file."""

    data: DetectionDataset
    issues: tuple[LabelIssue, ...]
    """Of labels and of pictures, the damaged ones among them."""
    unlabelled: tuple[Path, ...]
    """Pictures without any box, which teach a detector only what is not there; often on purpose."""
    duplicates: tuple[DuplicatePair, ...]

    @property
    def leaks(self) -> tuple[DuplicatePair, ...]:
        """Twins of different splits: what was learnt by heart would be counted as recognised."""
        splits = {one.path: one.split for one in self.data.samples}
        return tuple(pair for pair in self.duplicates if splits[pair.first] != splits[pair.second])

    @property
    def box_counts(self) -> dict[str, dict[str, int]]:
        """Of each split, the number of boxes of each class."""
        counts = {}
        for split in self.data.splits:
            labels = [one.class_ids for one in self.data.samples if one.split == split]
            of_class = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(self.data.classes))
            counts[split] = dict(zip(self.data.classes, of_class.tolist(), strict=True))
        return counts

    @property
    def issue_counts(self) -> dict[str, int]:
        """How many faults there are of each kind."""
        return dict(Counter(fault.issue_type for fault in self.issues).most_common())

    @property
    def is_valid(self) -> bool:
        """Whether nothing is broken: no fault but huge boxes, which may be right, and no twins across splits."""
        return not (self.issue_counts.keys() - {"huge box"}) and not self.leaks

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "format": self.data.format,
            "classes": list(self.data.classes) if self.data.has_class_names else None,
            "pictures": dict(Counter(one.split for one in self.data.samples)),
            "boxes": self.box_counts,
            "empty": [utf8_safe(path) for path in self.unlabelled],
            "faults": [
                {
                    "kind": one.issue_type,
                    "file": utf8_safe(one.path),
                    "line": one.line,
                    "text": utf8_safe(one.message),
                    "dropped": one.dropped,
                }
                for one in self.issues
            ],
            "twins": [
                {
                    "first": utf8_safe(one.first),
                    "second": utf8_safe(one.second),
                    "exact": one.exact,
                    "bits": one.hash_distance,
                }
                for one in self.duplicates
            ],
            "twins_across_splits": len(self.leaks),
        }


def validate_dataset(path: Path | str, *, show_progress: bool = False) -> DatasetReport:
    """Look at every label and decode every picture.

    Raises what `load_detection_set` raises.
    """
    data = load_detection_dataset(path)
    with progress_bar("checking", len(data.samples), unit="pictures", show=show_progress) as tick:
        prints, damaged = fingerprints([one.path for one in data.samples], tick)
    broken = [LabelIssue("damaged picture", place, None, f"{why}; left out", True) for place, why in damaged.items()]
    return DatasetReport(
        data=data,
        issues=(*data.issues, *broken),
        unlabelled=tuple(one.path for one in data.samples if len(one.boxes) == 0),
        duplicates=tuple(find_duplicates(prints)),
    )


@dataclass(frozen=True)
class CleanCopy:
    """Where the copy is, and what differs from the original, a line for each difference."""

    folder: Path
    num_images: int
    num_boxes: int
    changes: tuple[str, ...]


def write_clean_copy(dataset_report: DatasetReport, source: Path, output: Path) -> CleanCopy:
    """Write the sound part of the data into the new folder `into`: images/, labels/, data.yaml, repair.json.

    `source` is where the data was loaded from. The copy appears whole or not at all. Raises UsageError if `into`
    exists or lies inside of the source, ChromaboxError if it cannot be written.
    """
    if output.exists():
        raise UsageError(f"repair: {output} exists; name a new folder")
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise UsageError(f"repair: {output} lies inside of {source}, which is never changed; name a folder elsewhere")
    kept, lines = _select_samples(dataset_report)
    aside = output.with_name(f".{output.name}.{uuid.uuid4().hex[:12]}")
    try:
        aside.mkdir(parents=True)
        boxes = sum(_write_sample(one, place, aside) for one, place in zip(kept, _target_paths(kept), strict=True))
        _write_yaml(dataset_report, kept, aside)
        report = {"pictures": len(kept), "boxes": boxes, "changes": lines}
        (aside / "repair.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.rename(output)
    except OSError as error:
        raise ChromaboxError(f"{output}: the copy cannot be written ({error.strerror}); give another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return CleanCopy(output, len(kept), boxes, tuple(lines))


def _select_samples(dataset_report: DatasetReport) -> tuple[list[Sample], list[str]]:
    """The pictures of the copy, and a line for whatever is not taken over as it was."""
    by_path = {one.path: one for one in dataset_report.data.samples}
    left_out: dict[Path, str] = {}
    for pair in dataset_report.duplicates:
        if not pair.exact or pair.first in left_out or pair.second in left_out:
            continue
        first_trains = by_path[pair.first].split.startswith("train")
        second_trains = by_path[pair.second].split.startswith("train")
        goes, stays = (pair.first, pair.second) if first_trains and not second_trains else (pair.second, pair.first)
        left_out[goes] = f"{goes}: byte for byte {stays}; left out"
    lines = [str(fault) for fault in dataset_report.issues if fault.issue_type != "huge box"]
    damaged = {fault.path for fault in dataset_report.issues if fault.issue_type == "damaged picture"}
    crowds = [
        f"{one.path}: {int(one.is_crowd.sum())} crowd boxes, which YOLO's labels lack; left out"
        for one in dataset_report.data.samples
        if one.is_crowd.any()
    ]
    kept = [one for one in dataset_report.data.samples if one.path not in left_out and one.path not in damaged]
    return kept, [utf8_safe(line) for line in (*lines, *left_out.values(), *crowds)]


def _target_paths(samples: list[Sample]) -> list[Path]:
    """Split and file name of each picture; pictures of one name in a split get a number."""
    used: set[Path] = set()
    places = []
    for one in samples:
        place, number = Path(one.split or "train") / one.path.name, 1
        while place.with_suffix(".txt") in used:
            number += 1
            place = Path(one.split or "train") / f"{one.path.stem}-{number}{one.path.suffix}"
        used.add(place.with_suffix(".txt"))
        places.append(place)
    return places


def _write_sample(sample: Sample, relative_path: Path, folder: Path) -> int:
    """Copy a picture, write its labels; returns how many. A copy, not a link: a link would be the user's own file."""
    picture, labels = folder / "images" / relative_path, (folder / "labels" / relative_path).with_suffix(".txt")
    picture.parent.mkdir(parents=True, exist_ok=True)
    labels.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sample.path, picture)
    height, width = sample.size
    lines = []
    for (left, top, right, bottom), category in zip(
        sample.boxes[~sample.is_crowd], sample.class_ids[~sample.is_crowd], strict=True
    ):
        x, y = (left + right) / 2 / width, (top + bottom) / 2 / height
        lines.append(f"{category} {x:.9g} {y:.9g} {(right - left) / width:.9g} {(bottom - top) / height:.9g}\n")
    labels.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _write_yaml(dataset_report: DatasetReport, samples: list[Sample], folder: Path) -> None:
    splits = list(dict.fromkeys(one.split or "train" for one in samples))
    said: dict[str, object] = {}
    for word in ("train", "val", "test"):
        own = [f"images/{split}" for split in splits if split.startswith(word)]
        if own:
            said[word] = own[0] if len(own) == 1 else own
    if dataset_report.data.has_class_names:
        said["names"] = dict(enumerate(dataset_report.data.classes))
    (folder / "data.yaml").write_text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True), encoding="utf-8")
