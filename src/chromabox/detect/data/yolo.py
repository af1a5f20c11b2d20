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
    LABEL_ROW,
    DatasetBuilder,
    DetectionDataset,
    LabelIssue,
    RawLabel,
    SplitLists,
    SplitRole,
    check_class_names,
    iter_files,
    read_class_names,
    split_role,
)
from chromabox.errors import ChromaboxError, escape_unprintable
from chromabox.io.atomic import read_bytes
from chromabox.io.images import IMAGE_SUFFIXES

log = logging.getLogger(__name__)

#: Maximum size of a .yaml file. Parsing this size takes a second.
MAX_YAML_BYTES = 1 << 18
#: Maximum number of classes of a dataset without class names. The dataset with the most classes, LVIS, has 1,203.
MAX_UNNAMED_CLASSES = 2_000
#: Maximum number of key points of a box.
MAX_KEYPOINTS = 10_000
#: Text files with the class names, one per line. Files with the suffix .names have the same contents.
CLASS_NAME_FILES = ("classes.txt", "class_names.txt", "names.txt", "_darknet.labels")
#: Text files that never contain labels.
_NON_LABEL_FILES = {*CLASS_NAME_FILES, "readme.txt", "license.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}


def find_yolo_yamls(folder: Path) -> list[Path]:
    """Return the .yaml files in a folder that describe a dataset. They have a key for training or validation images."""
    found = []
    for path in _find_yamls(folder):
        with contextlib.suppress(ChromaboxError):
            if {"train", "val"} & {role for role, _ in _split_entries(_load_yaml(path))}:
                found.append(path)
    return found


def read_yolo(source: Path, default_names: Sequence[str] = ()) -> DetectionDataset:
    """Read the dataset in a folder or described by a .yaml file.

    The classes of a dataset without class names are `default_names`, or else "class 0", "class 1", ….

    Raise ChromaboxError if the folder contains no labels, if the file does not describe a dataset, or if the class
    names are invalid or contradictory.
    """
    images, splits, keypoint_shape = (_find_images(source), [], None) if source.is_dir() else _read_yaml(source)
    builder = DatasetBuilder()
    files = {path: label_path(path) for _, path in images}
    images_by_file: dict[Path, list[Path]] = defaultdict(list)
    for path, file in files.items():
        images_by_file[file].append(path)
    folders = {path.parent for path in (*files, *images_by_file)}
    class_names, declared_count = _read_class_names(source, folders, builder)
    class_names = class_names or list(default_names)
    num_allowed = len(class_names) or declared_count or MAX_UNNAMED_CLASSES
    for split, path in images:
        file = files[path]
        if len(images_by_file[file]) > 1 and file.is_file():
            others = ", ".join(str(other) for other in images_by_file[file] if other != path)
            reason = f"{path.name} has the same label file {file} as {others}; expected one image"
            builder.drop("ambiguous picture", path, None, reason)
            builder.files.add(file)
            continue
        labels = _read_labels(file, num_allowed, keypoint_shape, builder)
        builder.add_image(path, split, file, labels)
    issue = _class_numbers_issue(builder.class_ids, len(class_names) or declared_count, source)
    builder.issues[:0] = [] if issue is None else [issue]
    num_classes = max((int(sample.class_ids.max(initial=-1)) for sample in builder.samples), default=-1) + 1
    classes = class_names or [f"class {index}" for index in range(declared_count or num_classes)]
    # A split that a .yaml file defines is kept even if it contains no images.
    return builder.build("yolo", classes, [*splits, *(split for split, _ in images)], has_names=bool(class_names))


def _class_numbers_issue(class_ids: set[int], num_classes: int, source: Path) -> LabelIssue | None:
    """Return an issue if the class numbers in the labels seem to be counted from 1 instead of 0, or None."""
    if not num_classes or 0 in class_ids or max(class_ids, default=-1) != num_classes:
        return None
    message = (
        f"no label has class 0, and the highest class is {num_classes}, the number of classes; if they are counted "
        f"from 1, all boxes have wrong names; expected 0 to {num_classes - 1}"
    )
    return LabelIssue("unknown class", source, None, message, False)


def is_label_file(path: Path) -> bool:
    """Return whether a .txt file contains YOLO labels: it is empty, or its first row has at least five numbers."""
    if path.name.lower() in _NON_LABEL_FILES or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        row = next((line for line in file if line.strip()), "")
        return row == "" or LABEL_ROW.fullmatch(row) is not None
    return False


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
            builder.class_ids.add(int(class_id))
            reason = f"class {words[0][:60]} is not defined; expected 0 to {num_classes - 1}"
            builder.drop("unknown class", source, number, reason)
        else:
            builder.class_ids.add(int(class_id))
            if is_polygon:
                xs, ys = coordinates[::2], coordinates[1::2]
                box = (min(xs), min(ys), max(xs), max(ys))
            else:
                x, y, width, height = coordinates[:4]
                box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            yield RawLabel(number, int(class_id), box, as_fractions=True)


def _find_images(folder: Path) -> list[tuple[str, Path]]:
    """Return the images in a folder with their splits, which are defined by lists or by the names of folders."""
    lists = SplitLists(folder)
    images = [(split, path) for path in iter_files(folder) for split in lists.splits(path, folder)]
    if not any(label_path(path).is_file() for _, path in images):
        raise ChromaboxError(
            f"{folder}: contains no labels in a known format; expected YOLO .txt files next to the images or in "
            "labels/, COCO .json files, or Pascal VOC .xml files"
        )
    return images


def _read_class_names(source: Path, image_folders: set[Path], builder: DatasetBuilder) -> tuple[list[str], int]:
    """Return the class names, if there are any, and the number of classes if a .yaml file declares it, otherwise 0.

    The names are read from the .yaml file `source` or, if it is a folder, from all .yaml files, and from the text files
    described at CLASS_NAME_FILES, in `image_folders` (those of the images and labels) and in their parent folders up to
    `source`. Names in the .yaml file `source` take precedence. An issue is recorded for each file with other names.

    Raise ChromaboxError if names are invalid, if their number is not the declared number of classes, or if files
    without precedence contain different names.
    """
    folder = source if source.is_dir() else source.parent
    parents = {parent for each in image_folders for parent in each.parents if parent.is_relative_to(folder)}
    folders = sorted(filter(os.path.isdir, {folder, *image_folders, *parents}))
    yamls = [path for each in folders for path in _find_yamls(each)] if source.is_dir() else [source]
    found: dict[Path, list[str]] = {}
    counts: dict[Path, int] = {}
    for path in yamls:
        content = _load_yaml(path)
        found[path] = _yaml_class_names(path, content)
        # In a folder, other .yaml files with nc and without names are descriptions of networks.
        if (found[path] or path == source) and (count := _yaml_class_count(path, content)):
            counts[path] = count
    for each in folders:
        files = [name for name in os.listdir(each) if name.lower() in CLASS_NAME_FILES or name.endswith(".names")]
        found |= {each / name: read_class_names(each / name) for name in sorted(files)}
    found = {path: names for path, names in found.items() if names}
    names_path, names = next(iter(found.items()), (source, []))
    for path, other_names in found.items():
        check_class_names(other_names, path)
        if other_names != names:
            reason = f"the class names ({', '.join(other_names)[:100]}) differ from those in {names_path}"
            if names_path != source:
                raise ChromaboxError(
                    f"{path}: {reason} ({', '.join(names)[:100]}); expected the same names in all files"
                )
            builder.issues.append(LabelIssue("other class names", path, None, f"{reason}, which are used", False))
    for path, count in counts.items():
        if names and count != len(names):
            raise ChromaboxError(
                f"{path}: {_count_key(path)} is {count}, but {names_path} contains {len(names)} class names; expected "
                "equal numbers"
            )
    return names, counts.get(source, 0)


def _yaml_class_names(path: Path, content: dict[str, Any]) -> list[str]:
    """Return the class names in the contents of a .yaml file, or in the text file that they name."""
    names = content.get("names") or []
    if isinstance(names, str):
        found = _find_path(names, [path.parent, path.parent.parent], path)
        if found is None or not found.is_file():
            raise ChromaboxError(
                f"{path}: names: {names[:100]} does not exist; expected a list of names, or a text file"
            )
        return read_class_names(found)
    if isinstance(names, dict) and set(names) == set(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list) or any(isinstance(name, dict | list) for name in names):
        raise ChromaboxError(f"{path}: names: expected a list of different names, or a name for each class index")
    return names


def _count_key(path: Path) -> str:
    """Return the key of the number of classes in a .yaml or .data file."""
    return "classes" if path.suffix.lower() == ".data" else "nc"


def _yaml_class_count(path: Path, content: dict[str, Any]) -> int:
    """Return the number of classes in the contents of a .yaml file, or 0 if it contains none."""
    count = content.get("nc") or "0"
    if content.get("nc") and not (isinstance(count, str) and re.fullmatch(r"0*[1-9]\d{0,3}", count)):
        raise ChromaboxError(
            f"{path}: {_count_key(path)} is {str(count)[:20]}; expected a number of classes from 1 to 9999"
        )
    return int(count)


def _read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file, without leading and trailing spaces."""
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _read_yaml(yaml_path: Path) -> tuple[list[tuple[str, Path]], list[SplitRole], tuple[int, int] | None]:
    """Return the images that a .yaml file describes, with the roles of their splits, all roles, and `kpt_shape`."""
    content = _load_yaml(yaml_path)
    split_entries = _split_entries(content)
    if not split_entries:
        raise ChromaboxError(
            f"{yaml_path}: does not describe a dataset; expected train: or val: with a folder of images"
        )
    # The text of a nested list with YAML aliases could be very long.
    if isinstance(content.get("path"), dict | list):
        raise ChromaboxError(f"{yaml_path}: path: expected the path of a folder")
    base = str(content.get("path") or ".").replace("\\", "/")
    # Paths may be relative to `path`, to the folder of the .yaml file, or to a sibling folder. The first match is used.
    roots = [yaml_path.parent / base, yaml_path.parent, yaml_path.parent.parent / base]
    if not any(os.path.isdir(root) for root in (roots[0], roots[2])):
        _log_moved(yaml_path, Path(base), yaml_path.parent)
    images: list[tuple[str, Path]] = []
    for split, key in split_entries:
        entries = content[key]
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                raise ChromaboxError(f"{yaml_path}: {key}: expected the path of a folder, or a list of paths")
            images += [(split, path) for path in _resolve_entry(entry, roots, yaml_path, key)]
    roles = [role for role, _ in split_entries]
    return list(dict.fromkeys(images)), roles, _keypoint_shape(content, yaml_path)


def _keypoint_shape(content: dict[str, Any], yaml_path: Path) -> tuple[int, int] | None:
    """Return the number of key points of each box and the number of values of each key point, or None for no points.

    Raise ChromaboxError for an invalid `kpt_shape`.
    """
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    is_valid = isinstance(shape, list) and all(re.fullmatch(r"0*[1-9]\d{0,4}", str(number)) for number in shape)
    numbers = list(map(int, shape)) if is_valid else []
    if not (len(numbers) == 2 and numbers[0] <= MAX_KEYPOINTS and numbers[1] in (2, 3)):
        raise ChromaboxError(
            f"{yaml_path}: kpt_shape: expected the number of key points (1 to {MAX_KEYPOINTS}), and 2 or 3 values for "
            "each, as in [17, 3]"
        )
    return numbers[0], numbers[1]


def _split_entries(content: dict[str, Any]) -> list[tuple[SplitRole, str]]:
    """Return the role and the key of each split in the contents of a .yaml file, in the order of the roles.

    A key is a single word, such as train, val, valid or Test. Settings of other programs, which have the value true or
    false, are not splits.
    """
    keys = [key for key, value in content.items() if key.isalpha() and str(value)[:5].lower() not in ("true", "false")]
    roles: tuple[SplitRole, ...] = ("train", "val", "test")
    return [(role, key) for role in roles for key in keys if split_role(key) == role]


def _find_yamls(folder: Path) -> list[Path]:
    """Return the .yaml files in a folder."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


class _BoundedLoader(yaml.BaseLoader):
    """YAML loader that keeps all values as text, because yes, no and 1.10 are names. Repeated keys are errors.

    Time and memory are proportional to the size of the file: references to lists and mappings are rejected, because
    nested references describe exponentially many values.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node. Raise YAMLError for a reference to a list or mapping."""
        is_reference = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_reference and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError(f"line {self.line + 1}: references (*) to lists and mappings are not supported")
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        """Return the text. In JSON, which is also YAML, characters above U+FFFF are escaped as pairs of surrogates."""
        return str(super().construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raise ConstructorError if a key is repeated."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is repeated", node.start_mark)
        return mapping


def _load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a .yaml or .data file, with all values as text, or an empty mapping if there is none.

    Keys without a value are omitted. Raise ChromaboxError if the file cannot be read.
    """
    encoded = read_bytes(path, "a dataset description", MAX_YAML_BYTES)
    if path.suffix.lower() == ".data":
        return _parse_darknet_data(encoded.decode("utf-8-sig", "replace"))
    try:
        content = yaml.load(encoded.decode("utf-8-sig"), _BoundedLoader)
    except Exception as error:  # The parser raises many types of errors, for example for an invalid date or number.
        raise ChromaboxError(
            f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:300]}); expected a dataset description"
        ) from error
    content = content if isinstance(content, dict) else {}
    return {key: value for key, value in content.items() if value not in ("", "null", "~", [], {})}


def _parse_darknet_data(text: str) -> dict[str, str]:
    """Return the contents of Darknet's .data file (lines "key = value") as those of a .yaml file.

    CVAT also writes such files. Keys that describe no dataset, such as `eval` and `backup`, are omitted.
    """
    pairs = [line.partition("=") for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    keys = {"train": "train", "valid": "valid", "val": "val", "test": "test", "names": "names", "classes": "nc"}
    return {keys[key.strip()]: value.strip() for key, _, value in pairs if key.strip() in keys and value.strip()}


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
