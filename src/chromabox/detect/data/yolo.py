"""YOLO labels: a text file for each image, with a line "class centre-x centre-y width height" for each box.

The last four numbers are fractions of the image width and height. A line with more numbers is a polygon, as in
segmentation datasets; its bounding box is used. An image without a text file has no boxes.
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

#: Files with the class names, one per line, in datasets without a .yaml file.
CLASS_NAME_FILES = ("classes.txt", "obj.names", "names.txt")
#: Text files that never contain labels.
_NON_LABEL_FILES = {*CLASS_NAME_FILES, "readme.txt", "license.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}


@dataclass(frozen=True)
class _DatasetPlan:
    """Paths of the images with their splits, and the class names (None if unknown)."""

    root: Path
    images: tuple[tuple[str, Path], ...]
    class_names: tuple[str, ...] | None


def find_yolo_yamls(folder: Path) -> list[Path]:
    """Return the .yaml files in a folder that describe a dataset: those with the key `train` or `val`."""
    paths = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return [path for path in paths if {"train", "val"} & _load_yaml(path, required=False).keys()]


def read_yolo(source: Path) -> DetectionDataset:
    """Read the dataset in a folder or described by a .yaml file. Raise ChromaboxError if the file describes none."""
    plan = _plan_from_folder(source) if source.is_dir() else _plan_from_yaml(source)
    samples: list[Sample] = []
    issues: list[LabelIssue] = []
    for split, path in plan.images:
        sample, new_issues = _read_sample(path, split, None if plan.class_names is None else len(plan.class_names))
        issues += new_issues
        samples += [] if sample is None else [sample]
    if source.is_dir():
        issues += _orphan_labels(source, {label_path(path) for _, path in plan.images})
    max_class_id = max((int(sample.class_ids.max()) for sample in samples if len(sample.class_ids)), default=-1)
    return DetectionDataset(
        samples=tuple(samples),
        classes=plan.class_names or tuple(str(index) for index in range(max_class_id + 1)),
        splits=tuple(dict.fromkeys(split for split, _ in plan.images)),
        has_class_names=plan.class_names is not None,
        format="yolo",
        issues=tuple(issues),
    )


def label_path(image_path: Path) -> Path:
    """Return the path of an image's label file.

    The last `images` folder in the image path is replaced by `labels`. The label file is next to the image if there is
    no such folder, or if it exists only there.
    """
    parts = list(image_path.parts)
    positions = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if positions:
        parts[positions[-1]] = "labels"
        path = Path(*parts).with_suffix(".txt")
        if path.is_file() or not image_path.with_suffix(".txt").is_file():
            return path
    return image_path.with_suffix(".txt")


def _read_sample(path: Path, split: str, num_classes: int | None) -> tuple[Sample | None, list[LabelIssue]]:
    size, issues = read_size(path)
    if size is None:
        return None, issues
    source = label_path(path)
    labels, issues = _read_labels(source, size, num_classes)
    sample, new_issues = validate_labels(labels, path, size, split, source)
    return sample, issues + new_issues


def _read_labels(
    source: Path, size: tuple[int, int], num_classes: int | None
) -> tuple[list[RawLabel], list[LabelIssue]]:
    """Return the labels in a file (boxes or polygons) and its invalid lines as issues; none if it does not exist."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return [], []
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        return [], [LabelIssue("unreadable label", source, None, f"{reason}; the image is used without boxes", True)]
    labels: list[RawLabel] = []
    issues: list[LabelIssue] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            labels.append(_parse_label(number, line, size, num_classes))
        except _UnknownClassError as error:
            issues.append(LabelIssue("unknown class", source, number, f"{error}; dropped", True))
        except ValueError as error:
            issues.append(LabelIssue("unreadable label", source, number, f"{error}; dropped", True))
    return labels, issues


class _UnknownClassError(ValueError):
    """Error for an invalid class number."""


def _parse_label(number: int, line: str, size: tuple[int, int], num_classes: int | None) -> RawLabel:
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"“{line.strip()[:60]}” is not a row of numbers") from None
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(f"{len(values)} numbers; expected 5, or a class and at least 3 corners")
    class_id = values[0]
    if not class_id.is_integer() or class_id < 0:
        raise _UnknownClassError(f"{words[0]} is not a class number; expected an integer from 0")
    if num_classes is not None and class_id >= num_classes:
        raise _UnknownClassError(f"class {int(class_id)} is not defined; expected 0 to {num_classes - 1}")
    return RawLabel(number, int(class_id), _to_xyxy(values[1:], size))


def _to_xyxy(values: Sequence[float], size: tuple[int, int]) -> BoxTuple:
    """Convert fractions (centre, width and height, or the corners of a polygon) to a bounding box in pixels."""
    height, width = size
    if len(values) > 4:
        xs, ys = values[0::2], values[1::2]
        return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
    x, y, w, h = values
    return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height


def _plan_from_folder(folder: Path) -> _DatasetPlan:
    images = tuple((split_from_path(path, folder), path) for path in list_images(folder))
    if not any(label_path(path).is_file() for _, path in images):
        raise ChromaboxError(
            f"{folder}: contains no labels in a known format; expected YOLO .txt next to the images or in labels/, "
            "COCO .json, or Pascal VOC .xml"
        )
    for name in CLASS_NAME_FILES:
        for path in (folder / name, folder / "labels" / name):
            if path.is_file():
                lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                return _DatasetPlan(folder, images, tuple(line.strip() for line in lines if line.strip()))
    return _DatasetPlan(folder, images, None)


def _plan_from_yaml(yaml_path: Path) -> _DatasetPlan:
    content = _load_yaml(yaml_path, required=True)
    base = Path(str(content.get("path") or "."))
    # Paths may be relative to `path`, to the .yaml file's folder, or to a sibling folder. The first one found is used.
    roots = [yaml_path.parent / base, yaml_path.parent, yaml_path.parent.parent / base]
    images: list[tuple[str, Path]] = []
    for split in ("train", "val", "test"):
        entries = content.get(split)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            images += [(split, path) for path in _resolve_entry(str(entry), roots, yaml_path, split)]
    return _DatasetPlan(yaml_path.parent, tuple(dict.fromkeys(images)), _parse_class_names(content, yaml_path))


def _load_yaml(path: Path, *, required: bool) -> dict[str, Any]:
    """Return the mapping in a .yaml file; an empty one for any other content.

    Raise ChromaboxError if ``required`` and the file does not describe a dataset.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        if required:
            reason = " ".join(str(error).split())
            raise ChromaboxError(f"{path}: cannot be read as YAML ({reason})") from error
        return {}
    if isinstance(content, dict) and (not required or {"train", "val", "test"} & content.keys()):
        return content
    if required:
        raise ChromaboxError(f"{path}: does not describe a dataset; expected train: or val: with a folder of images")
    return {}


def _resolve_entry(entry: str, roots: Sequence[Path], source: Path, split: str) -> list[Path]:
    """Return the images in a folder or a list (.txt, one path per line), or the single image."""
    # Some exporters write ../train/images for a folder next to the file.
    stripped = entry.removeprefix("../")
    candidates = [root / name for name in dict.fromkeys((entry, stripped)) for root in roots]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise ChromaboxError(f"{source}: {split}: {entry} does not exist; expected {candidates[0]}")
    if found.is_dir():
        return list_images(found)
    if found.suffix.lower() in IMAGE_SUFFIXES:
        return [found]
    lines = found.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    paths = (Path(line.strip()) for line in lines if line.strip())
    return [next((root / path for root in (found.parent, *roots) if (root / path).is_file()), path) for path in paths]


def _parse_class_names(content: dict[str, Any], source: Path) -> tuple[str, ...] | None:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if names is None:
        return None
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise ChromaboxError(f"{source}: names: expected a list of different names, or a name for each number from 0")
    return tuple(str(name) for name in names)


def _orphan_labels(folder: Path, known: Iterable[Path]) -> list[LabelIssue]:
    """Return an issue for each label file in the folder that has no image."""
    known = set(known)
    orphans = (path for path in iter_files(folder, {".txt"}) if path not in known and _is_label_file(path))
    return [LabelIssue("label without picture", path, None, "no image has this name", True) for path in orphans]


def _is_label_file(path: Path) -> bool:
    """Return whether the first line of the file consists of at least five numbers."""
    if path.name.lower() in _NON_LABEL_FILES:
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        words = "".join(itertools.islice(file, 1)).split()
    try:
        return len([float(word) for word in words]) >= 5
    except ValueError:
        return False
