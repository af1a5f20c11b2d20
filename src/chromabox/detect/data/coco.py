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
    DetectionSet,
    Fault,
    Label,
    Labelled,
    files_below,
    is_split,
    judged,
    measured,
    pictures_below,
)
from chromabox.errors import ChromaboxError

_PARTS = ("images", "annotations", "categories")


def coco_files(folder: Path) -> list[Path]:
    """The .json files of a folder that are COCO labels of boxes; only instances_* where there are such."""
    found = list(files_below(folder, {".json"}))
    instances = [path for path in found if path.name.startswith("instances")]
    return [path for path in instances or found if _is_coco(path)]


def read_coco(root: Path, files: Sequence[Path]) -> DetectionSet:
    """All labelled pictures of the files, which must agree in their categories.

    A file's pictures are of the split that its name ends in (instances_val2017.json) or that its folder is called.
    Raises ChromaboxError for a file that is not such JSON, or where the categories differ.
    """
    pictures: list[Labelled] = []
    faults: list[Fault] = []
    splits: dict[str, None] = {}
    categories: dict[int, str] = {}
    by_name: dict[str, Path] = {}
    for file in files:
        said = _load(file)
        own = _categories(said, file)
        if categories and own != categories:
            raise ChromaboxError(f"{file}: its categories differ from those of {files[0]}; one list for all is needed")
        categories = own
        by_name = by_name or {path.name: path for path in pictures_below(root)}
        split = _split(file)
        splits[split] = None
        found, wrong = _read_pictures(said, file, root, split, list(categories), by_name)
        pictures += found
        faults += wrong
    return DetectionSet(
        pictures=tuple(pictures),
        classes=tuple(categories.values()),
        splits=tuple(splits),
        format="coco",
        faults=tuple(faults),
    )


def _read_pictures(
    said: dict[str, Any], file: Path, root: Path, split: str, ids: list[int], by_name: dict[str, Path]
) -> tuple[list[Labelled], list[Fault]]:
    labels, faults = _labels(said["annotations"], file, {category: index for index, category in enumerate(ids)})
    pictures: list[Labelled] = []
    for entry in said["images"]:
        try:
            own, name = labels.pop(_identity(entry["id"]), []), Path(entry["file_name"])
        except (KeyError, TypeError):
            faults.append(Fault("missing picture", file, None, "an image without id or file_name; left out", True))
            continue
        path = _place(name, file, root, split, by_name)
        size, found = measured(path)
        faults += found
        if size is not None:
            one, found = judged(own, path, size, split, file)
            pictures.append(one)
            faults += found
    for lost in labels.values():
        faults += [
            Fault("label without picture", file, label.line, "no image has its image_id", True) for label in lost
        ]
    return pictures, faults


def _labels(annotations: list[Any], file: Path, places: dict[int, int]) -> tuple[dict[Any, list[Label]], list[Fault]]:
    """The labels by image id, and the faults of those that are no boxes."""
    labels: dict[Any, list[Label]] = defaultdict(list)
    faults: list[Fault] = []
    for index, entry in enumerate(annotations):
        number = entry.get("id", index) if isinstance(entry, dict) else index
        number = number if isinstance(number, int) else index
        try:
            x, y, width, height = (float(value) for value in entry["bbox"])
            image, category = _identity(entry["image_id"]), _identity(entry["category_id"])
        except (KeyError, TypeError, ValueError):
            text = "bbox: four numbers, image_id and category_id are needed; left out"
            faults.append(Fault("unreadable label", file, number, text, True))
            continue
        if category not in places:
            faults.append(Fault("unknown class", file, number, f"category_id {category} is none; left out", True))
            continue
        corners = (x, y, x + width, y + height)
        labels[image].append(Label(number, places[category], corners, bool(entry.get("iscrowd", 0))))
    return labels, faults


def _identity(value: object) -> int | str:
    """An id as it stands. Raises TypeError for what cannot be one."""
    if isinstance(value, int | str):
        return value
    raise TypeError


def _place(name: Path, file: Path, root: Path, split: str, by_name: dict[str, Path]) -> Path:
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


def _split(file: Path) -> str:
    last = file.stem.replace("-", "_").split("_")[-1]
    return next((name for name in (last, file.stem, file.parent.name) if is_split(name)), "")


def _is_coco(path: Path) -> bool:
    """Whether the words for all three lists occur: a file of 500 MB is not parsed only to be told from others."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(f'"{part}"'.encode()) >= 0 for part in _PARTS)
    except (OSError, ValueError):  # An empty file cannot be mapped.
        return False


def _load(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ChromaboxError(f"{path}: cannot be read as JSON ({error}); COCO's labels are needed") from error
    if not isinstance(said, dict) or not all(isinstance(said.get(part), list) for part in _PARTS):
        raise ChromaboxError(f"{path}: holds no COCO labels; lists of {', '.join(_PARTS)} are needed")
    return said


def _categories(said: dict[str, Any], path: Path) -> dict[int, str]:
    """Names by id, in the order of the ids. Categories above others (Roboflow's first) that no box has are kept."""
    try:
        return dict(sorted((int(entry["id"]), str(entry["name"])) for entry in said["categories"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ChromaboxError(f"{path}: categories need an id and a name each") from error
