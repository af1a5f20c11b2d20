"""COCO's labels: one JSON of `images`, `annotations` (x, y, width, height in pixels) and `categories`.

Category ids may have gaps (COCO's own run to 90 for 80 classes): classes are the categories in the order of their ids.
"""

import json
import mmap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chromabox.detect.data.dataset import (
    DetectionDataset,
    LabelIssue,
    RawLabel,
    Sample,
    is_split_name,
    iter_files,
    list_images,
    read_size,
    validate_labels,
)
from chromabox.errors import ChromaboxError

_REQUIRED_KEYS = ("images", "annotations", "categories")


def coco_files(folder: Path) -> list[Path]:
    """The .json files of a folder that are COCO labels of boxes; only instances_* where there are such."""
    found = list(iter_files(folder, {".json"}))
    instances = [path for path in found if path.name.startswith("instances")]
    return [path for path in instances or found if _is_coco(path)]


def read_coco(root: Path, files: Sequence[Path]) -> DetectionDataset:
    """All labelled pictures of the files, which must agree in their categories.

    A file's pictures are of the split that its name ends in (instances_val2017.json) or that its folder is called.
    Raises ChromaboxError for a file that is not such JSON, or where the categories differ.
    """
    pictures: list[Sample] = []
    faults: list[LabelIssue] = []
    splits: dict[str, None] = {}
    categories: dict[int, str] = {}
    by_name: dict[str, Path] = {}
    for file in files:
        said = _load_json(file)
        own = _parse_categories(said, file)
        if categories and own != categories:
            raise ChromaboxError(f"{file}: its categories differ from those of {files[0]}; one list for all is needed")
        categories = own
        by_name = by_name or {path.name: path for path in list_images(root)}
        split = _infer_split(file)
        splits[split] = None
        found, wrong = _read_images(said, file, root, split, list(categories), by_name)
        pictures += found
        faults += wrong
    return DetectionDataset(
        samples=tuple(pictures),
        classes=tuple(categories.values()),
        splits=tuple(splits),
        format="coco",
        issues=tuple(faults),
    )


def _read_images(
    content: dict[str, Any], file: Path, root: Path, split: str, category_ids: list[int], by_name: dict[str, Path]
) -> tuple[list[Sample], list[LabelIssue]]:
    labels, faults = _parse_annotations(
        content["annotations"], file, {category: index for index, category in enumerate(category_ids)}
    )
    pictures: list[Sample] = []
    for entry in content["images"]:
        try:
            own, name = labels.pop(_check_id(entry["id"]), []), Path(entry["file_name"])
        except (KeyError, TypeError):
            faults.append(LabelIssue("missing picture", file, None, "an image without id or file_name; left out", True))
            continue
        path = _find_image(name, file, root, split, by_name)
        size, found = read_size(path)
        faults += found
        if size is not None:
            one, found = validate_labels(own, path, size, split, file)
            pictures.append(one)
            faults += found
    for lost in labels.values():
        faults += [
            LabelIssue("label without picture", file, label.line, "no image has its image_id", True) for label in lost
        ]
    return pictures, faults


def _parse_annotations(
    annotations: list[Any], file: Path, class_ids: dict[int, int]
) -> tuple[dict[Any, list[RawLabel]], list[LabelIssue]]:
    """The labels by image id, and the faults of those that are no boxes."""
    labels: dict[Any, list[RawLabel]] = defaultdict(list)
    faults: list[LabelIssue] = []
    for index, entry in enumerate(annotations):
        number = entry.get("id", index) if isinstance(entry, dict) else index
        number = number if isinstance(number, int) else index
        try:
            x, y, width, height = (float(value) for value in entry["bbox"])
            image, category = _check_id(entry["image_id"]), _check_id(entry["category_id"])
        except (KeyError, TypeError, ValueError):
            text = "bbox: four numbers, image_id and category_id are needed; left out"
            faults.append(LabelIssue("unreadable label", file, number, text, True))
            continue
        if category not in class_ids:
            faults.append(LabelIssue("unknown class", file, number, f"category_id {category} is none; left out", True))
            continue
        corners = (x, y, x + width, y + height)
        labels[image].append(RawLabel(number, class_ids[category], corners, bool(entry.get("iscrowd", 0))))
    return labels, faults


def _check_id(value: object) -> int | str:
    """An id as it stands. Raises TypeError for what cannot be one."""
    if isinstance(value, int | str):
        return value
    raise TypeError


def _find_image(name: Path, file: Path, root: Path, split: str, by_name: dict[str, Path]) -> Path:
    """Where the picture is: beside the file, in the usual folders, else wherever its name occurs below the root."""
    above = file.parent.parent
    folders = (
        file.parent,
        root,
        root / "images",
        root / split,
        root / "images" / split,
        above,
        above / "images" / split,
    )
    tried = [folder / name for folder in (*folders, above / split)]
    return next((path for path in tried if path.is_file()), by_name.get(name.name, tried[0]))


def _infer_split(file: Path) -> str:
    last = file.stem.replace("-", "_").split("_")[-1]
    return next((name for name in (last, file.stem, file.parent.name) if is_split_name(name)), "")


def _is_coco(path: Path) -> bool:
    """Whether the words for all three lists occur: a file of 500 MB is not parsed only to be told from others."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(f'"{part}"'.encode()) >= 0 for part in _REQUIRED_KEYS)
    except (OSError, ValueError):  # An empty file cannot be mapped.
        return False


def _load_json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ChromaboxError(f"{path}: cannot be read as JSON ({error}); COCO's labels are needed") from error
    if not isinstance(said, dict) or not all(isinstance(said.get(part), list) for part in _REQUIRED_KEYS):
        raise ChromaboxError(f"{path}: holds no COCO labels; lists of {', '.join(_REQUIRED_KEYS)} are needed")
    return said


def _parse_categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    """Names by id, in the order of the ids. Categories above others (Roboflow's first) that no box has are kept."""
    try:
        return dict(sorted((int(entry["id"]), str(entry["name"])) for entry in content["categories"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ChromaboxError(f"{path}: categories need an id and a name each") from error
