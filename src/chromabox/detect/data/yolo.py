"""YOLO's labels: beside every picture a text file with a line "class centre-x centre-y width height" for every box.

All four are fractions of the picture's sides. A line of more numbers is a polygon, as segmentation sets have it; the
box around it is taken. A picture without a text file has nothing on it.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chromabox.detect.data.dataset import (
    BoxTuple,
    DetectionDataset,
    LabelIssue,
    RawLabel,
    Sample,
    iter_files,
    list_images,
    read_size,
    split_from_path,
    validate_labels,
)
from chromabox.errors import ChromaboxError
from chromabox.io.images import IMAGE_SUFFIXES

#: Files that hold the names of the classes, a line each, where no .yaml does.
CLASS_NAME_FILES = ("classes.txt", "obj.names", "names.txt")
#: Text files that are never labels.
_NON_LABEL_FILES = {*CLASS_NAME_FILES, "readme.txt", "license.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}


@dataclass(frozen=True)
class _DatasetPlan:
    """Where the pictures of each split are, and the classes' names, None where nobody tells them."""

    root: Path
    images: tuple[tuple[str, Path], ...]
    class_names: tuple[str, ...] | None


def find_yolo_yamls(folder: Path) -> list[Path]:
    """The .yaml files of a folder that describe a data set: they say where `train` or `val` pictures are."""
    found = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return [path for path in found if {"train", "val"} & _load_yaml(path, required=False).keys()]


def read_yolo(source: Path) -> DetectionDataset:
    """The set that a .yaml describes, or that lies in a folder. Raises ChromaboxError for a .yaml of other content."""
    plan = _plan_from_folder(source) if source.is_dir() else _plan_from_yaml(source)
    pictures: list[Sample] = []
    faults: list[LabelIssue] = []
    for split, path in plan.images:
        one, found = _read_sample(path, split, None if plan.class_names is None else len(plan.class_names))
        faults += found
        pictures += [] if one is None else [one]
    if source.is_dir():
        faults += _orphan_labels(source, {label_path(path) for _, path in plan.images})
    highest = max((int(one.class_ids.max()) for one in pictures if len(one.class_ids)), default=-1)
    return DetectionDataset(
        samples=tuple(pictures),
        classes=plan.class_names or tuple(str(index) for index in range(highest + 1)),
        splits=tuple(dict.fromkeys(split for split, _ in plan.images)),
        has_class_names=plan.class_names is not None,
        format="yolo",
        issues=tuple(faults),
    )


def label_path(image_path: Path) -> Path:
    """Where a picture's labels are looked for: the last folder `images` of its path as `labels`, else beside it."""
    parts = list(image_path.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
        other = Path(*parts).with_suffix(".txt")
        if other.is_file() or not image_path.with_suffix(".txt").is_file():
            return other
    return image_path.with_suffix(".txt")


def _read_sample(path: Path, split: str, num_classes: int | None) -> tuple[Sample | None, list[LabelIssue]]:
    size, faults = read_size(path)
    if size is None:
        return None, faults
    source = label_path(path)
    labels, faults = _read_labels(source, size, num_classes)
    one, found = validate_labels(labels, path, size, split, source)
    return one, faults + found


def _read_labels(
    source: Path, size: tuple[int, int], num_classes: int | None
) -> tuple[list[RawLabel], list[LabelIssue]]:
    """The lines that are five numbers or a polygon, and the faults of the others; nothing where there is no file."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        return [], [LabelIssue("unreadable label", source, None, f"{reason}; the picture counts as empty", True)]
    labels: list[RawLabel] = []
    faults: list[LabelIssue] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            labels.append(_parse_label(number, line, size, num_classes))
        except _UnknownClassError as error:
            faults.append(LabelIssue("unknown class", source, number, f"{error}; left out", True))
        except ValueError as error:
            faults.append(LabelIssue("unreadable label", source, number, f"{error}; left out", True))
    return labels, faults


class _UnknownClassError(ValueError):
    """A class number that is none."""


def _parse_label(number: int, line: str, size: tuple[int, int], num_classes: int | None) -> RawLabel:
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"“{line.strip()[:60]}” is not a row of numbers") from None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(f"{len(values)} numbers; 5 are right, or a class and 3 or more corners")
    category = values[0]
    if not category.is_integer() or category < 0:
        raise _UnknownClassError(f"{words[0]} is not a class number; whole numbers from 0 are right")
    if num_classes is not None and category >= num_classes:
        raise _UnknownClassError(f"class {int(category)} of {num_classes}; 0 to {num_classes - 1} are right")
    return RawLabel(number, int(category), _to_xyxy(values[1:], size))


def _to_xyxy(values: Sequence[float], size: tuple[int, int]) -> BoxTuple:
    """Fractions as pixels: of a centre and sides, or of the corners of a polygon."""
    height, width = size
    if len(values) > 4:
        across, down = values[0::2], values[1::2]
        return min(across) * width, min(down) * height, max(across) * width, max(down) * height
    x, y, wide, high = values
    return (x - wide / 2) * width, (y - high / 2) * height, (x + wide / 2) * width, (y + high / 2) * height


def _plan_from_folder(folder: Path) -> _DatasetPlan:
    pictures = tuple((split_from_path(path, folder), path) for path in list_images(folder))
    if not any(label_path(path).is_file() for _, path in pictures):
        raise ChromaboxError(
            f"{folder}: holds no labels that are known: YOLO .txt beside the pictures or in labels/, COCO .json, or "
            "Pascal VOC .xml are right"
        )
    for name in CLASS_NAME_FILES:
        for place in (folder / name, folder / "labels" / name):
            if place.is_file():
                lines = place.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                return _DatasetPlan(folder, pictures, tuple(line.strip() for line in lines if line.strip()))
    return _DatasetPlan(folder, pictures, None)


def _plan_from_yaml(yaml_path: Path) -> _DatasetPlan:
    said = _load_yaml(yaml_path, required=True)
    base = Path(str(said.get("path") or "."))
    # Writers mean the folder of the file, or its name, or a folder beside it: the first that is there is taken.
    roots = [yaml_path.parent / base, yaml_path.parent, yaml_path.parent.parent / base]
    pictures: list[tuple[str, Path]] = []
    for split in ("train", "val", "test"):
        entries = said.get(split)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            pictures += [(split, path) for path in _resolve_entry(str(entry), roots, yaml_path, split)]
    return _DatasetPlan(yaml_path.parent, tuple(dict.fromkeys(pictures)), _parse_class_names(said, yaml_path))


def _load_yaml(path: Path, *, required: bool) -> dict[str, Any]:
    """The mapping in a .yaml; an empty one for other content, unless it must describe a data set."""
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        if required:
            reason = " ".join(str(error).split())
            raise ChromaboxError(f"{path}: cannot be read as YAML ({reason})") from error
        return {}
    if isinstance(said, dict) and (not required or {"train", "val", "test"} & said.keys()):
        return said
    if required:
        raise ChromaboxError(f"{path}: does not describe data; train: or val: with a folder of pictures is needed")
    return {}


def _resolve_entry(entry: str, roots: Sequence[Path], source: Path, split: str) -> list[Path]:
    """The pictures of a folder, of a list (.txt, a path a line), or the one picture."""
    # Some exporters write ../train/images and mean a folder beside the file.
    plain = entry.removeprefix("../")
    places = [root / name for name in dict.fromkeys((entry, plain)) for root in roots]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise ChromaboxError(f"{source}: {split}: {entry} is not there (looked for as {places[0]})")
    if place.is_dir():
        return list_images(place)
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [place]
    lines = place.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    listed = (Path(line.strip()) for line in lines if line.strip())
    return [next((root / path for root in (place.parent, *roots) if (root / path).is_file()), path) for path in listed]


def _parse_class_names(content: dict[str, Any], source: Path) -> tuple[str, ...] | None:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if names is None:
        return None
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise ChromaboxError(f"{source}: names: a list of different names, or one for each number from 0, is right")
    return tuple(str(name) for name in names)


def _orphan_labels(folder: Path, known: Iterable[Path]) -> list[LabelIssue]:
    """A fault for each label file of the folder to which there is no picture."""
    known = set(known)
    lone = (path for path in iter_files(folder, {".txt"}) if path not in known and _is_label_file(path))
    return [LabelIssue("label without picture", path, None, "there is no picture of that name", True) for path in lone]


def _is_label_file(path: Path) -> bool:
    """Whether the first line is a row of five or more numbers."""
    if path.name.lower() in _NON_LABEL_FILES:
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        words = "".join(itertools.islice(file, 1)).split()
    try:
        return len([float(word) for word in words]) >= 5
    except ValueError:
        return False
