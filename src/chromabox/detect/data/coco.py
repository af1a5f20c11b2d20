"""COCO annotations: one JSON file with `images`, `annotations` (x, y, width, height in pixels) and `categories`.

Category ids may have gaps (COCO's 80 classes have ids up to 90). The classes are the categories in order of their ids,
including categories without boxes, such as the supercategory that Roboflow writes first.
"""

import contextlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chromabox.detect.data.dataset import SPLIT_NAME, DatasetBuilder, DetectionDataset, LabelIssue, RawLabel, iter_files
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import parse_json

_REQUIRED_KEYS = ("images", "annotations", "categories")


def coco_files(folder: Path) -> list[Path]:
    """Return the .json files with COCO annotations in a folder. If any are named instances*, consider only these."""
    files = list(iter_files(folder, {".json"}))
    files = [path for path in files if path.name.startswith("instances")] or files
    return [path for path in files if is_coco_file(path)]


def is_coco_file(path: Path) -> bool:
    """Return whether a file contains the keys of COCO annotations."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()  # Parsing would be slow, because files can be 500 MB in size.
        return all(f'"{key}"'.encode() in content for key in _REQUIRED_KEYS)
    return False


def read_coco(root: Path, files: Sequence[Path]) -> DetectionDataset:
    """Read all labelled images in the files, which must have the same categories.

    The split of a file is read from the end of its name (``val2017`` for instances_val2017.json) or is its folder name.

    Raise ChromaboxError if a file contains no valid COCO annotations, or if the categories of the files differ.
    """
    builder = DatasetBuilder()
    splits: dict[str, None] = {}
    categories: dict[int, str] = {}
    by_name = {path.name: path for path in iter_files(root)}
    for file in files:
        content = _load_json(file)
        try:
            file_categories = dict(sorted((int(entry["id"]), str(entry["name"])) for entry in content["categories"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ChromaboxError(f"{file}: invalid categories; expected an id and a name for each category") from error
        if categories and file_categories != categories:
            raise ChromaboxError(
                f"{file}: the categories differ from the categories in {files[0]}; expected the same in all files"
            )
        categories = file_categories
        names = (file.stem.replace("-", "_").split("_")[-1], file.stem, file.parent.name)
        split = next((name for name in names if SPLIT_NAME.fullmatch(name)), "")
        splits[split] = None
        if len(file_categories) < len(content["categories"]):
            raise ChromaboxError(f"{file}: categories: an id is used twice; expected a different id for each category")
        labels = _parse_annotations(content["annotations"], file, list(categories), builder)
        id_counts = Counter(repr(entry.get("id")) for entry in content["images"] if isinstance(entry, dict))
        for entry in content["images"]:
            try:
                image_labels, name = labels.pop(entry["id"], []), Path(entry["file_name"])
            except (KeyError, TypeError):
                builder.drop("missing picture", file, None, "an entry of images has no id or no file_name")
                continue
            path = _find_image(name, file, root, split, by_name)
            if id_counts[repr(entry["id"])] > 1:
                reason = f"{file.name} contains its id {entry['id']} more than once, so that its labels are unknown"
                builder.drop("duplicate id", path, None, reason)
                continue
            builder.add_image(path, split, file, image_labels)
        for label in itertools.chain(*labels.values()):
            builder.drop("label without picture", file, label.line, "no image has the image_id of this annotation")
    return builder.build("coco", categories.values(), splits)


def _parse_annotations(
    annotations: list[Any], file: Path, category_ids: list[int], builder: DatasetBuilder
) -> dict[Any, list[RawLabel]]:
    """Return the labels, keyed by image id. Record an issue for each annotation that is not a valid box."""
    labels: dict[Any, list[RawLabel]] = defaultdict(list)
    class_ids: dict[Any, int] = {category_id: index for index, category_id in enumerate(category_ids)}
    counts = Counter(repr(entry["id"]) for entry in annotations if isinstance(entry, dict) and "id" in entry)
    if repeated := [number for number, count in counts.items() if count > 1]:
        message = f"ids that belong to several annotations: {', '.join(repeated[:5])[:100]} ({len(repeated)}); all kept"
        builder.issues.append(LabelIssue("duplicate id", file, None, message, False))
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
