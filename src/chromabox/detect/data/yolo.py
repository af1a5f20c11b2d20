"""YOLO labels: a text file for each image, with a line "class centre-x centre-y width height" for each box.

The last four numbers are fractions of the image width and height. A line with more numbers describes a polygon, as in
segmentation datasets. The bounding box of the polygon is used. If the .yaml file states `kpt_shape`, a line with more
numbers describes a box followed by key points, which are not used. An image without a text file has no boxes.
"""

import contextlib
import functools
import logging
import os
import re
from collections import defaultdict
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
from chromabox.errors import ChromaboxError, escape_unprintable
from chromabox.io.atomic import read_bytes
from chromabox.io.images import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

#: Maximum size of a .yaml file. Parsing this size takes a second. The names of a thousand classes take 30 kB.
MAX_YAML_BYTES = 1 << 18
#: Maximum number of classes of a dataset without class names. The dataset with the most classes, LVIS, has 1,203.
MAX_UNNAMED_CLASSES = 2_000
#: Maximum number of key points of a box.
MAX_KEYPOINTS = 10_000
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
    images, class_names, keypoint_shape = (*_find_images(source), None) if source.is_dir() else _read_yaml(source)
    builder = DatasetBuilder()
    files = {path: label_path(path) for _, path in images}
    images_by_file: dict[Path, list[Path]] = defaultdict(list)
    for path, file in files.items():
        images_by_file[file].append(path)
    for split, path in images:
        file = files[path]
        if len(images_by_file[file]) > 1 and file.is_file():
            others = ", ".join(str(other) for other in images_by_file[file] if other != path)
            reason = f"{path.name} has the same label file {file} as {others}; expected one image"
            builder.drop("ambiguous picture", path, None, reason)
            continue
        labels = _read_labels(file, len(class_names) or MAX_UNNAMED_CLASSES, keypoint_shape, builder)
        builder.add_image(path, split, file, labels)
    for path in iter_files(source, {".txt"}):  # There are no such files if ``source`` is a file.
        if path in images_by_file or path.name.lower() in _NON_LABEL_FILES:
            continue
        with path.open(encoding="utf-8", errors="replace") as stream:
            if _FIRST_LABEL.fullmatch(stream.readline()):
                builder.drop("label without picture", path, None, "no image has this name")
    num_classes = max((int(sample.class_ids.max(initial=-1)) for sample in builder.samples), default=-1) + 1
    classes = class_names or [str(index) for index in range(num_classes)]
    splits = dict.fromkeys(split for split, _ in images)
    return builder.build("yolo", classes, splits, has_names=bool(class_names))


def label_path(image_path: Path) -> Path:
    """Return the path of an image's label file.

    The last `images` folder in the image path is replaced by `labels`. If the file does not exist, the label file can
    be next to the image, in a folder `labels` next to the image, or in a folder `labels` next to the folder of the
    image, where it can be in a folder with the same name. If there is no label file, the first of these paths is
    returned.
    """
    folder, name = image_path.parent, f"{image_path.stem}.txt"
    folders = [folder, folder / "labels", folder.parent / "labels" / folder.name, folder.parent / "labels"]
    positions = [index for index, part in enumerate(folder.parts) if part == "images"]
    if positions:
        folders.insert(0, Path(*folder.parts[: positions[-1]], "labels", *folder.parts[positions[-1] + 1 :]))
    paths = [folder / name for folder in folders]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def _read_labels(
    source: Path, num_classes: int, keypoint_shape: tuple[int, int] | None, builder: DatasetBuilder
) -> Iterator[RawLabel]:
    """Yield the labels (boxes, polygons, or boxes with key points) in a file. Yield nothing if it does not exist."""
    expected = "a class and at least 3 corners"
    if keypoint_shape is not None:
        num_values = 5 + keypoint_shape[0] * keypoint_shape[1]
        expected = f"{num_values} (kpt_shape: {keypoint_shape[0]} key points of {keypoint_shape[1]} values)"
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
        is_polygon = keypoint_shape is None and len(values) >= 7 and len(values) % 2 == 1
        if len(values) != 5 and not is_polygon and (keypoint_shape is None or len(values) != num_values):
            reason = f"the number of values is {len(values)}; expected 5, or {expected}"
            builder.drop("unreadable label", source, number, reason)
        elif not class_id.is_integer() or class_id < 0:
            reason = f"{words[0][:60]} is not a class number; expected a non-negative integer"
            builder.drop("unknown class", source, number, reason)
        elif class_id >= num_classes:
            reason = f"class {words[0][:60]} is not defined; expected 0 to {num_classes - 1}"
            builder.drop("unknown class", source, number, reason)
        else:
            if is_polygon:
                xs, ys = coordinates[::2], coordinates[1::2]
                box = (min(xs), min(ys), max(xs), max(ys))
            else:
                x, y, width, height = coordinates[:4]
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


def _read_yaml(yaml_path: Path) -> tuple[list[tuple[str, Path]], list[str], tuple[int, int] | None]:
    """Return the images that a .yaml file describes, with their splits, the class names, and `kpt_shape`, if any."""
    content = _load_yaml(yaml_path)
    # The text of a nested list with YAML aliases could be very long.
    if isinstance(content.get("path"), dict | list):
        raise ChromaboxError(f"{yaml_path}: path: expected the path of a folder")
    base = str(content.get("path") or ".").replace("\\", "/")
    # Paths may be relative to `path`, to the folder of the .yaml file, or to a sibling folder. The first match is used.
    roots = [yaml_path.parent / base, yaml_path.parent, yaml_path.parent.parent / base]
    if not any(os.path.isdir(root) for root in (roots[0], roots[2])):
        _log_moved(yaml_path, Path(base), yaml_path.parent)
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
    return list(dict.fromkeys(images)), [str(name) for name in names or ()], _keypoint_shape(content, yaml_path)


def _keypoint_shape(content: dict[str, Any], yaml_path: Path) -> tuple[int, int] | None:
    """Return the number of key points of each box and the number of values of each key point, or None for no points.

    Raise ChromaboxError for an invalid `kpt_shape`.
    """
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(number) is int for number in shape):
        shape = [0, 0]
    if not (1 <= shape[0] <= MAX_KEYPOINTS and shape[1] in (2, 3)):
        raise ChromaboxError(
            f"{yaml_path}: kpt_shape: expected the number of key points (1 to {MAX_KEYPOINTS}), and 2 or 3 values for "
            "each, as in [17, 3]"
        )
    return shape[0], shape[1]


class _BoundedLoader(yaml.SafeLoader):
    """Loader of .yaml files whose time and memory are proportional to the size of the file.

    References to lists and mappings are rejected, because nested references describe exponentially many values. Numbers
    of many digits are rejected, because their conversion takes quadratic time.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node. Raise YAMLError for a reference to a list or mapping, and for a long number."""
        is_reference = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_reference and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError(f"line {self.line + 1}: references (*) to lists and mappings are not supported")
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")) and len(node.value) > 100:
            raise yaml.YAMLError(f"line {self.line + 1}: a number has {len(node.value)} characters")
        return node


def _load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a .yaml or .data file. Raise ChromaboxError if the file does not describe a dataset."""
    encoded = read_bytes(path, "a dataset description", MAX_YAML_BYTES)
    if path.suffix.lower() == ".data":
        return _parse_darknet_data(encoded.decode("utf-8-sig", "replace"), path)
    try:
        content = yaml.load(encoded.decode(), _BoundedLoader)
    except Exception as error:  # The parser raises many types of errors, for example for an invalid date or number.
        raise ChromaboxError(
            f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:300]}); expected a dataset description"
        ) from error
    if not isinstance(content, dict) or not {"train", "val", "test"} & content.keys():
        raise ChromaboxError(f"{path}: does not describe a dataset; expected train: or val: with a folder of images")
    return content


def _parse_darknet_data(text: str, path: Path) -> dict[str, Any]:
    """Return the contents of Darknet's .data file (lines "key = value") as those of a .yaml file.

    CVAT also writes such files. Raise ChromaboxError if the file does not describe a dataset.
    """
    pairs = [line.partition("=") for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    content: dict[str, Any] = {
        role: values[key]
        for key, role in (("train", "train"), ("valid", "val"), ("val", "val"), ("test", "test"))
        if values.get(key)
    }
    if not content:
        raise ChromaboxError(f"{path}: does not describe a dataset; expected train = or valid = with a list of images")
    if values.get("names"):
        found = _find_path(values["names"], [path.parent, path.parent.parent], path)
        if found is None or not found.is_file():
            raise ChromaboxError(f"{path}: names: {values['names'][:100]} does not exist; expected a file with names")
        content["names"] = _read_lines(found)
        count = values.get("classes", "")
        if count and count != str(len(content["names"])):
            raise ChromaboxError(
                f"{path}: classes is {count[:20]}, but {found} contains {len(content['names'])} names; expected the "
                "same number"
            )
    return content


def _resolve_entry(entry: str, roots: Sequence[Path], source: Path, split: str) -> list[Path]:
    """Return the images of an entry in a .yaml file: a folder, a .txt list of paths (one per line) or one image."""
    found = _find_path(entry, roots, source)
    if found is None:
        name, path = escape_unprintable(entry[:100]), escape_unprintable(str(roots[0] / entry)[:200])
        raise ChromaboxError(f"{source}: {split}: {name} does not exist or is no regular file; expected {path}")
    if found.is_dir():
        return list(iter_files(found))
    if found.suffix.lower() in IMAGE_SUFFIXES:
        return [found]
    list_roots = [found.parent, *roots]
    return [_find_path(line, list_roots, found) or found.parent / line for line in _read_lines(found)]


def _find_path(text: str, roots: Sequence[Path], source: Path) -> Path | None:
    """Return the file or folder that a path in the file ``source`` denotes, or None if there is none.

    Both "/" and Windows' backslashes separate folders. If the path does not exist, the dataset has been moved, or the
    path is relative to another folder: its last parts, as many as possible, are searched in ``roots``. The last part
    alone denotes only a list or a file of names, because a folder or image of the same name could be another one. A
    message is logged for the first such path of a folder.
    """
    parts = Path(text.replace("\\", "/")).parts
    for start in range(len(parts)):
        is_name = start > 0 and start == len(parts) - 1 and parts[start - 1] != ".."
        for path in (Path(root, *parts[start:]) for root in roots):
            if is_name and (os.path.isdir(path) or path.suffix.lower() in IMAGE_SUFFIXES):
                continue
            # A device is not accepted, because reading it might never end.
            if os.path.isdir(path) or os.path.isfile(path):
                if start > 0:
                    _log_moved(source, Path(*parts[:start]), path.parents[len(parts) - start - 1])
                return path
    return None


@functools.lru_cache
def _log_moved(source: Path, stated: Path, used: Path) -> None:
    """Log once that paths in a file denote another folder than the file states."""
    log.info(f"{source}: {stated} does not exist; {used} is used instead")
