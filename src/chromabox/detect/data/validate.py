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

from chromabox.detect.data.dataset import DetectionSet, Fault, Labelled, legible
from chromabox.detect.data.duplicates import Twins, find_twins, fingerprints
from chromabox.detect.data.load import load_detection_set
from chromabox.engine.logger import progress
from chromabox.errors import ChromaboxError, UsageError

#: Boxes below which a class is told to be thin: a figure from so few is chance.
FEW_BOXES = 5


@dataclass(frozen=True)
class DetectionCheck:
    """The data as loaded, and all that was found. Nothing of it changes a file."""

    data: DetectionSet
    faults: tuple[Fault, ...]
    """Of labels and of pictures, the damaged ones among them."""
    empty: tuple[Path, ...]
    """Pictures without any box, which teach a detector only what is not there; often on purpose."""
    twins: tuple[Twins, ...]

    @property
    def crossing(self) -> tuple[Twins, ...]:
        """Twins of different splits: what was learnt by heart would be counted as recognised."""
        splits = {one.path: one.split for one in self.data.pictures}
        return tuple(pair for pair in self.twins if splits[pair.first] != splits[pair.second])

    @property
    def boxes(self) -> dict[str, dict[str, int]]:
        """Of each split, the number of boxes of each class."""
        counts = {}
        for split in self.data.splits:
            labels = [one.classes for one in self.data.pictures if one.split == split]
            of_class = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(self.data.classes))
            counts[split] = dict(zip(self.data.classes, of_class.tolist(), strict=True))
        return counts

    @property
    def kinds(self) -> dict[str, int]:
        """How many faults there are of each kind."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())

    @property
    def sound(self) -> bool:
        """Whether nothing is broken: no fault but huge boxes, which may be right, and no twins across splits."""
        return not (self.kinds.keys() - {"huge box"}) and not self.crossing

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "format": self.data.format,
            "classes": list(self.data.classes) if self.data.named else None,
            "pictures": dict(Counter(one.split for one in self.data.pictures)),
            "boxes": self.boxes,
            "empty": [legible(path) for path in self.empty],
            "faults": [
                {
                    "kind": one.kind,
                    "file": legible(one.path),
                    "line": one.line,
                    "text": legible(one.text),
                    "dropped": one.dropped,
                }
                for one in self.faults
            ],
            "twins": [
                {"first": legible(one.first), "second": legible(one.second), "exact": one.exact, "bits": one.bits}
                for one in self.twins
            ],
            "twins_across_splits": len(self.crossing),
        }


def check_detection_set(path: Path | str, *, show_progress: bool = False) -> DetectionCheck:
    """Look at every label and decode every picture.

    Raises what `load_detection_set` raises.
    """
    data = load_detection_set(path)
    with progress("checking", len(data.pictures), unit="pictures", show=show_progress) as tick:
        prints, damaged = fingerprints([one.path for one in data.pictures], tick)
    broken = [Fault("damaged picture", place, None, f"{why}; left out", True) for place, why in damaged.items()]
    return DetectionCheck(
        data=data,
        faults=(*data.faults, *broken),
        empty=tuple(one.path for one in data.pictures if len(one.boxes) == 0),
        twins=tuple(find_twins(prints)),
    )


@dataclass(frozen=True)
class Repair:
    """Where the copy is, and what differs from the original, a line for each difference."""

    folder: Path
    pictures: int
    boxes: int
    lines: tuple[str, ...]


def repaired_copy(check: DetectionCheck, source: Path, into: Path) -> Repair:
    """Write the sound part of the data into the new folder `into`: images/, labels/, data.yaml, repair.json.

    `source` is where the data was loaded from. The copy appears whole or not at all. Raises UsageError if `into`
    exists or lies inside of the source, ChromaboxError if it cannot be written.
    """
    if into.exists():
        raise UsageError(f"repair: {into} exists; name a new folder")
    if source.is_dir() and source.resolve() in into.resolve().parents:
        raise UsageError(f"repair: {into} lies inside of {source}, which is never changed; name a folder elsewhere")
    kept, lines = _kept(check)
    aside = into.with_name(f".{into.name}.{uuid.uuid4().hex[:12]}")
    try:
        aside.mkdir(parents=True)
        boxes = sum(_write_picture(one, place, aside) for one, place in zip(kept, _places(kept), strict=True))
        _describe(check, kept, aside)
        report = {"pictures": len(kept), "boxes": boxes, "changes": lines}
        (aside / "repair.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        aside.rename(into)
    except OSError as error:
        raise ChromaboxError(f"{into}: the copy cannot be written ({error.strerror}); give another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Repair(into, len(kept), boxes, tuple(lines))


def _kept(check: DetectionCheck) -> tuple[list[Labelled], list[str]]:
    """The pictures of the copy, and a line for whatever is not taken over as it was."""
    by_path = {one.path: one for one in check.data.pictures}
    left_out: dict[Path, str] = {}
    for pair in check.twins:
        if not pair.exact or pair.first in left_out or pair.second in left_out:
            continue
        first_trains = by_path[pair.first].split.startswith("train")
        second_trains = by_path[pair.second].split.startswith("train")
        goes, stays = (pair.first, pair.second) if first_trains and not second_trains else (pair.second, pair.first)
        left_out[goes] = f"{goes}: byte for byte {stays}; left out"
    lines = [str(fault) for fault in check.faults if fault.kind != "huge box"]
    damaged = {fault.path for fault in check.faults if fault.kind == "damaged picture"}
    crowds = [
        f"{one.path}: {int(one.is_crowd.sum())} crowd boxes, which YOLO's labels lack; left out"
        for one in check.data.pictures
        if one.is_crowd.any()
    ]
    kept = [one for one in check.data.pictures if one.path not in left_out and one.path not in damaged]
    return kept, [legible(line) for line in (*lines, *left_out.values(), *crowds)]


def _places(kept: list[Labelled]) -> list[Path]:
    """Split and file name of each picture; pictures of one name in a split get a number."""
    used: set[Path] = set()
    places = []
    for one in kept:
        place, number = Path(one.split or "train") / one.path.name, 1
        while place.with_suffix(".txt") in used:
            number += 1
            place = Path(one.split or "train") / f"{one.path.stem}-{number}{one.path.suffix}"
        used.add(place.with_suffix(".txt"))
        places.append(place)
    return places


def _write_picture(one: Labelled, place: Path, folder: Path) -> int:
    """Copy a picture, write its labels; returns how many. A copy, not a link: a link would be the user's own file."""
    picture, labels = folder / "images" / place, (folder / "labels" / place).with_suffix(".txt")
    picture.parent.mkdir(parents=True, exist_ok=True)
    labels.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(one.path, picture)
    height, width = one.size
    lines = []
    for (left, top, right, bottom), category in zip(one.boxes[~one.is_crowd], one.classes[~one.is_crowd], strict=True):
        x, y = (left + right) / 2 / width, (top + bottom) / 2 / height
        lines.append(f"{category} {x:.9g} {y:.9g} {(right - left) / width:.9g} {(bottom - top) / height:.9g}\n")
    labels.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _describe(check: DetectionCheck, kept: list[Labelled], folder: Path) -> None:
    splits = list(dict.fromkeys(one.split or "train" for one in kept))
    said: dict[str, object] = {}
    for word in ("train", "val", "test"):
        own = [f"images/{split}" for split in splits if split.startswith(word)]
        if own:
            said[word] = own[0] if len(own) == 1 else own
    if check.data.named:
        said["names"] = dict(enumerate(check.data.classes))
    (folder / "data.yaml").write_text(yaml.safe_dump(said, sort_keys=False, allow_unicode=True), encoding="utf-8")
