"""A sound copy of a detection data set in YOLO's layout; what it is made from stays as it is.

Left out are labels that nothing can be made of, damaged pictures, and pictures that are byte for byte another one: of
such a pair the one in training goes, so that validation stays what it was. Near-duplicates are only told.
"""

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import yaml

from chromabox.detect.check import DetectionCheck
from chromabox.detect.labelled import Labelled, legible
from chromabox.errors import ChromaboxError, UsageError


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
