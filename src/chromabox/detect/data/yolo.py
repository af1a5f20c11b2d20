"""YOLO labels: a text file for each image, with a line "class centre-x centre-y width height" for each box.

The last four numbers are fractions of the image width and height. A line with more numbers describes a polygon, as in
segmentation datasets. The bounding box of the polygon is used. An image without a text file has no boxes.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from chromabox.detect.data.dataset import (
    DatasetBuilder,
    DetectionDataset,
    LabelIssue,
    RawLabel,
    iter_files,
    split_from_path,
)
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import read_bytes
from chromabox.io.images import IMAGE_SUFFIXES

#: Maximum size of a .yaml file. Parsing this size takes a second. The names of a thousand classes take 30 kB.
MAX_YAML_BYTES = 1 << 18
#: Maximum number of classes of a dataset without class names.
MAX_UNNAMED_CLASSES = 10_000
#: Files with the class names, one per line, in datasets without a .yaml file.
CLASS_NAME_FILES = ("classes.txt", "obj.names", "names.txt")
#: Text files that never contain labels.
_NON_LABEL_FILES = {*CLASS_NAME_FILES, "readme.txt", "license.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}
#: Pattern of the first line of a file with labels: at least five numbers.
_FIRST_LABEL = re.compile(r"\s*([-+.\de]+\s+){4,}[-+.\de]+\s*", re.IGNORECASE)


def find_yolo_yamls(folder: Path) -> list[Path]:
    """Return the .yaml files in a folder that describe a dataset. They have the key `train` or `val`."""
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        with contextlib.suppress(ChromaboxError):
            if {"train", "val"} & _load_yaml(path).keys():
                found.append(path)
    return found


def read_yolo(source: Path) -> DetectionDataset:
    """Read the dataset in a folder or described by a .yaml file.

    Raise ChromaboxError if the folder contains no labels, or if the file does not describe a dataset.
    """
    images, class_names = _find_images(source) if source.is_dir() else _read_yaml(source)
    builder = DatasetBuilder()
    for split, path in images:
        labels = _read_labels(label_path(path), len(class_names) or MAX_UNNAMED_CLASSES, builder)
        builder.add_image(path, split, label_path(path), labels)
    num_classes = max((int(sample.class_ids.max(initial=-1)) for sample in builder.samples), default=-1) + 1
    classes = class_names or [str(index) for index in range(num_classes)]
    splits = dict.fromkeys(split for split, _ in images)
    return builder.build("yolo", classes, splits, has_names=bool(class_names))


def is_label_file(path: Path) -> bool:
    """Return whether a .txt file contains YOLO labels: it is empty, or its first line has at least five numbers."""
    if path.name.lower() in _NON_LABEL_FILES or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        line = file.readline()
        return line == "" or _FIRST_LABEL.fullmatch(line) is not None
    return False


def label_path(image_path: Path) -> Path:
    """Return the path of an image's label file.

    The last `images` folder in the image path is replaced by `labels`. If there is no such folder, or if only a label
    file next to the image exists, the path next to the image is returned.
    """
    parts = list(image_path.parts)
    positions = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if positions:
        parts[positions[-1]] = "labels"
        path = Path(*parts).with_suffix(".txt")
        if os.path.isfile(path) or not os.path.isfile(image_path.with_suffix(".txt")):
            return path
    return image_path.with_suffix(".txt")


def _read_labels(source: Path, num_classes: int, builder: DatasetBuilder) -> Iterator[RawLabel]:
    """Yield the labels (boxes or polygons) in a file. Yield nothing if the file does not exist."""
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        message = f"{getattr(error, 'strerror', None) or 'not UTF-8 text'}; the image is used without boxes"
        builder.issues.append(LabelIssue("unreadable label", source, None, message, True))
        return
    for number, words in enumerate(map(str.split, lines), 1):
        try:
            values = [float(word) for word in words]
        except ValueError:
            builder.drop("unreadable label", source, number, f"“{' '.join(words)[:60]}” is not a row of numbers")
            continue
        if not values:
            continue
        class_id, coordinates = values[0], values[1:]
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            reason = f"the number of values is {len(values)}; expected 5, or a class and at least 3 corners"
            builder.drop("unreadable label", source, number, reason)
        elif not class_id.is_integer() or class_id < 0:
            reason = f"{words[0][:60]} is not a class number; expected a non-negative integer"
            builder.drop("unknown class", source, number, reason)
        elif class_id >= num_classes:
            reason = f"class {words[0][:60]} is not defined; expected 0 to {num_classes - 1}"
            builder.drop("unknown class", source, number, reason)
        else:
            xs, ys = coordinates[::2], coordinates[1::2]
            box = (min(xs), min(ys), max(xs), max(ys))
            if len(coordinates) == 4:
                x, y, width, height = coordinates
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            yield RawLabel(number, int(class_id), box, as_fractions=True)


def _find_images(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return the images in a folder with their splits, and the class names in ``classes.txt`` or a similar file."""
    images = [(split_from_path(path, folder), path) for path in iter_files(folder)]
    if not any(label_path(path).is_file() for _, path in images):
        raise ChromaboxError(
            f"{folder}: contains no labels in a known format; expected YOLO .txt files next to the images or in "
            "labels/, COCO .json files, or Pascal VOC .xml files"
        )
    paths = [parent / name for name in CLASS_NAME_FILES for parent in (folder, folder / "labels")]
    return images, next((names for path in paths if path.is_file() and (names := _read_lines(path))), [])


def _read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file, without leading and trailing spaces."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _read_yaml(yaml_path: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return the images that a .yaml file describes, with their splits, and the class names, if any."""
    content = _load_yaml(yaml_path)
    # The text of a nested list with YAML aliases could be very long.
    if isinstance(content.get("path"), dict | list):
        raise ChromaboxError(f"{yaml_path}: path: expected the path of a folder")
    base = Path(str(content.get("path") or "."))
    # Paths may be relative to `path`, to the folder of the .yaml file, or to a sibling folder. The first match is used.
    roots = [yaml_path.parent / base, yaml_path.parent, yaml_path.parent.parent / base]
    images: list[tuple[str, Path]] = []
    for split in ("train", "val", "test"):
        entries = content.get(split) or []
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, dict | list):
                raise ChromaboxError(f"{yaml_path}: {split}: expected the path of a folder, or a list of paths")
            images += [(split, path) for path in _resolve_entry(str(entry), roots, yaml_path, split)]
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    is_list = isinstance(names, list) and not any(isinstance(name, dict | list) for name in names)
    if names is not None and (not is_list or not names or len(set(map(str, names))) < len(names)):
        raise ChromaboxError(f"{yaml_path}: names: expected a list of different names, or a name for each class index")
    return list(dict.fromkeys(images)), [str(name) for name in names or ()]


def _load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a .yaml file. Raise ChromaboxError if the file does not describe a dataset."""
    encoded = read_bytes(path, "a dataset description", MAX_YAML_BYTES)
    try:
        content = yaml.safe_load(encoded.decode())
    except Exception as error:  # The parser raises many types of errors, for example for an invalid date or number.
        raise ChromaboxError(
            f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:300]}); expected a dataset description"
        ) from error
    if not isinstance(content, dict) or not {"train", "val", "test"} & content.keys():
        raise ChromaboxError(f"{path}: does not describe a dataset; expected train: or val: with a folder of images")
    return content


def _resolve_entry(entry: str, roots: Sequence[Path], source: Path, split: str) -> list[Path]:
    """Return the images of an entry in a .yaml file: a folder, a .txt list of paths (one per line) or one image."""
    # Some programs write ../train/images for a folder next to the .yaml file.
    candidates = [root / name for name in dict.fromkeys((entry, entry.removeprefix("../"))) for root in roots]
    # A device is not accepted, because reading it might never end.
    found = next((path for path in candidates if os.path.isdir(path) or os.path.isfile(path)), None)
    if found is None:
        expected = f"does not exist or is no regular file; expected {str(candidates[0])[:200]}"
        raise ChromaboxError(f"{source}: {split}: {entry[:100]} {expected}")
    if found.is_dir():
        return list(iter_files(found))
    if found.suffix.lower() in IMAGE_SUFFIXES:
        return [found]
    paths = map(Path, _read_lines(found))
    return [
        next((root / path for root in (found.parent, *roots) if os.path.isfile(root / path)), path) for path in paths
    ]
