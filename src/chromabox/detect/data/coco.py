"""COCO annotations: one JSON file with `images`, `annotations` (x, y, width, height in pixels) and `categories`.

Category ids may have gaps (COCO's 80 classes have ids up to 90). The classes are the categories in order of their ids,
including categories without boxes, such as the supercategory that Roboflow writes first. The box of an annotation that
has only polygons is the bounding box of the polygons.
"""

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chromabox.detect.data.dataset import (
    DatasetBuilder,
    DetectionDataset,
    LabelIssue,
    RawLabel,
    check_class_names,
    iter_files,
    split_from_path,
    split_role,
)
from chromabox.detect.data.image_index import ImageIndex
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

    The split of a file is read from the end of its name (``val2017`` for instances_val2017.json) or is its folder's
    name. If neither denotes a split, the folders of the images are used.

    Raise ChromaboxError if a file contains no valid COCO annotations, or if the categories of the files differ.
    """
    builder = DatasetBuilder()
    splits: dict[str, None] = {}
    categories: dict[int, str] = {}
    index = ImageIndex(root)
    for file in files:
        content = _load_json(file)
        try:
            pairs = sorted({(int(entry["id"]), str(entry["name"])) for entry in content["categories"]})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ChromaboxError(f"{file}: invalid categories; expected an id and a name for each category") from error
        file_categories = dict(pairs)
        if len(file_categories) < len(pairs):
            raise ChromaboxError(f"{file}: several categories have the same id; expected a different id for each name")
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
        images = _group_images(content["images"], file, builder)
        # All images of a split can be in the folder of another split, if the lists of images define the splits.
        any_split = not any(index.find(name, file, split) for entries in images.values() for name in entries)
        for image_id, entries in images.items():
            image_labels, (name, *others) = labels.pop(image_id, []), entries
            if others:
                more = ", …" * (len(others) > 1)
                reason = f"{file.name}: the id {image_id} denotes {len(entries)} images ({name}, {others[0]}{more})"
                reason += f", with {len(image_labels)} labels; expected one"
                for each in entries:
                    found = index.find(each, file, split, any_split=any_split)
                    builder.drop("ambiguous picture", found[0] if found else file, None, reason)
                continue
            path = builder.pick_image(index.find(name, file, split, any_split=any_split), name, file)
            if path is not None:
                size = entries[name].get("width"), entries[name].get("height")
                builder.add_image(path, split or split_from_path(path, root), file, image_labels, size)
        for label in itertools.chain(*labels.values()):
            builder.drop("label without picture", file, label.line, "no image has the image_id of this annotation")
    data = builder.build("coco", categories.values(), splits)
    return replace(data, category_ids=tuple(categories))


def _group_images(
    entries: list[Any], file: Path, builder: DatasetBuilder
) -> dict[int | str, dict[str, dict[str, Any]]]:
    """Return the entries of images, keyed by id and file name. Record an issue for each invalid entry."""
    images: dict[int | str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for entry in entries:
        try:
            image_id, name = _parse_id(entry["id"]), entry["file_name"].strip()
        except (KeyError, TypeError, AttributeError):
            builder.drop("missing picture", file, None, "an entry of images has no id or no file_name")
        else:
            images[image_id].setdefault(name, entry)
    return images


def _parse_annotations(
    annotations: list[Any], file: Path, category_ids: list[int], builder: DatasetBuilder
) -> dict[int | str, list[RawLabel]]:
    """Return the labels, keyed by image id. Record an issue for each annotation that is not a valid box."""
    labels: dict[int | str, list[RawLabel]] = defaultdict(list)
    class_ids = {category_id: index for index, category_id in enumerate(category_ids)}
    counts = Counter(repr(entry["id"]) for entry in annotations if isinstance(entry, dict) and "id" in entry)
    if repeated := [number for number, count in counts.items() if count > 1]:
        message = f"ids that belong to several annotations: {', '.join(repeated[:5])[:100]} ({len(repeated)}); all kept"
        builder.issues.append(LabelIssue("duplicate id", file, None, message, False))
    for index, entry in enumerate(annotations):
        number = entry.get("id") if isinstance(entry, dict) else None
        number = number if isinstance(number, int) else index
        try:
            corners = _parse_box(entry)
            image_labels, category_id = labels[_parse_id(entry["image_id"])], _parse_id(entry["category_id"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):  # The entry can be any JSON value.
            reason = "expected bbox (four numbers) or segmentation (polygons), image_id and category_id"
            builder.drop("unreadable label", file, number, reason)
            continue
        class_id = class_ids.get(category_id) if isinstance(category_id, int) else None
        if class_id is None:
            builder.drop("unknown class", file, number, f"category_id {category_id} is not in categories")
            continue
        image_labels.append(RawLabel(number, class_id, corners, str(entry.get("iscrowd", 0)) in ("1", "True")))
    return labels


def _parse_box(entry: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom of an annotation, or those of its polygons if it has no bbox.

    Raise KeyError, TypeError, ValueError or OverflowError for an annotation without valid numbers.
    """
    if entry.get("bbox") or not entry.get("segmentation"):
        if isinstance(entry["bbox"], str):
            raise TypeError("expected a list")
        x, y, width, height = (float(value) for value in entry["bbox"])
        return x, y, x + width, y + height
    if not isinstance(entry["segmentation"], list):
        raise TypeError("a mask with run lengths, not polygons")
    polygons = [[float(value) for value in polygon] for polygon in entry["segmentation"]]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("expected at least 3 corners")
    xs, ys = ([value for polygon in polygons for value in polygon[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def _parse_id(value: Any) -> int | str:
    """Return an id as an integer if it is one, since some programs write ``"1"`` or ``1.0`` for ``1``.

    Raise TypeError if the value is neither a number nor text.
    """
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() and len(value) < 20 else value
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise TypeError("expected a number or text")


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ChromaboxError(f"{path}: cannot be read as JSON ({error}); expected COCO annotations") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _REQUIRED_KEYS):
        raise ChromaboxError(f"{path}: contains no COCO annotations; expected the lists {', '.join(_REQUIRED_KEYS)}")
    return content
