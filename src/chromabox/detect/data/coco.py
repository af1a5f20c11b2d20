"""COCO annotations: one JSON file with `images`, `annotations` (x, y, width, height in pixels) and `categories`.

Category ids may have gaps (COCO's 80 classes have ids up to 90). The classes are the categories in order of their ids,
including categories without boxes, such as the supercategory that Roboflow writes first.
"""

import contextlib
import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chromabox.detect.data.dataset import (
    DatasetBuilder,
    DetectionDataset,
    RawLabel,
    check_class_names,
    iter_files,
    split_from_path,
    split_role,
)
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import parse_json

_REQUIRED_KEYS = ("images", "annotations", "categories")


def coco_files(folder: Path) -> list[Path]:
    """Return the .json files with COCO annotations in a folder. If any are named instances*, consider only these."""
    files = list(iter_files(folder, {".json"}))
    found = []
    for path in [path for path in files if path.name.startswith("instances")] or files:
        with contextlib.suppress(OSError):
            content = path.read_bytes()  # Parsing would be slow, because files can be 500 MB in size.
            if all(f'"{key}"'.encode() in content for key in _REQUIRED_KEYS):
                found.append(path)
    return found


def read_coco(root: Path, files: Sequence[Path]) -> DetectionDataset:
    """Read all labelled images in the files, which must have the same categories.

    The split of a file is read from the end of its name (``val2017`` for instances_val2017.json) or is its folder's
    name. If neither denotes a split, the folders of the images are used.

    Raise ChromaboxError if a file contains no valid COCO annotations, or if the categories of the files differ.
    """
    builder = DatasetBuilder()
    splits: dict[str, None] = {}
    categories: dict[int, str] = {}
    by_name = {path.name: path for path in iter_files(root)}
    for file in files:
        content = _load_json(file)
        try:
            pairs = sorted({(int(entry["id"]), str(entry["name"])) for entry in content["categories"]})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ChromaboxError(f"{file}: invalid categories; expected an id and a name for each category") from error
        file_categories = dict(pairs)
        if len(file_categories) < len(pairs):
            raise ChromaboxError(f"{file}: two categories have the same id; expected a different id for each name")
        if categories and file_categories != categories:
            raise ChromaboxError(
                f"{file}: the categories differ from the categories in {files[0]}; expected the same in all files"
            )
        check_class_names(list(file_categories.values()), file)
        categories = file_categories
        names = (file.stem.replace("-", "_").split("_")[-1], file.stem, split_from_path(file, root))
        split = next(filter(split_role, names), "")
        splits[split] = None
        labels = _parse_annotations(content["annotations"], file, list(categories), builder)
        for entry in content["images"]:
            try:
                image_labels, name = labels.pop(entry["id"], []), Path(entry["file_name"])
            except (KeyError, TypeError):
                builder.drop("missing picture", file, None, "an entry of images has no id or no file_name")
                continue
            path = _find_image(name, file, root, split, by_name)
            builder.add_image(path, split or split_from_path(path, root), file, image_labels)
        for label in itertools.chain(*labels.values()):
            builder.drop("label without picture", file, label.line, "no image has the image_id of this annotation")
    return builder.build("coco", categories.values(), splits)


def _parse_annotations(
    annotations: list[Any], file: Path, category_ids: list[int], builder: DatasetBuilder
) -> dict[Any, list[RawLabel]]:
    """Return the labels, keyed by image id. Record an issue for each annotation that is not a valid box."""
    labels: dict[Any, list[RawLabel]] = defaultdict(list)
    class_ids: dict[Any, int] = {category_id: index for index, category_id in enumerate(category_ids)}
    for index, entry in enumerate(annotations):
        number = entry.get("id") if isinstance(entry, dict) else None
        number = number if isinstance(number, int) else index
        try:
            x, y, width, height = (float(value) for value in entry["bbox"])
            # If an id is a list or an object, the lookup raises TypeError.
            image_labels, class_id = labels[entry["image_id"]], class_ids.get(entry["category_id"])
        except (KeyError, TypeError, ValueError, OverflowError):
            builder.drop("unreadable label", file, number, "expected bbox (four numbers), image_id and category_id")
            continue
        if class_id is None:
            builder.drop("unknown class", file, number, f"category_id {entry['category_id']} is not in categories")
            continue
        corners = (x, y, x + width, y + height)
        image_labels.append(RawLabel(number, class_id, corners, bool(entry.get("iscrowd", 0))))
    return labels


def _find_image(name: Path, file: Path, root: Path, split: str, by_name: dict[str, Path]) -> Path:
    """Return the path of an image. It is searched for next to ``file``, in usual folders, and by name in ``root``."""
    parent = file.parent.parent
    folders = [file.parent, root, root / "images", root / split, root / "images" / split]
    candidates = [folder / name for folder in (*folders, parent, parent / "images" / split, parent / split)]
    return next((path for path in candidates if os.path.isfile(path)), by_name.get(name.name, candidates[0]))


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ChromaboxError(f"{path}: cannot be read as JSON ({error}); expected COCO annotations") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _REQUIRED_KEYS):
        raise ChromaboxError(f"{path}: contains no COCO annotations; expected the lists {', '.join(_REQUIRED_KEYS)}")
    return content
