"""Detection data in any of three formats, told apart by looking, as one `DetectionSet`.

* YOLO: `images/…` beside `labels/…`, or a `.txt` beside every picture; names and splits from a `.yaml` if there is one.
* COCO: a `.json` with images, annotations and categories.
* Pascal VOC: an `.xml` for every picture; splits from lists (`ImageSets/Main/train.txt`), tables
  (`train_labels.csv`) or folders.

`coco128` and `raccoon` are known by name wherever a mirror or the cache holds a folder of that name.
"""

import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from chromabox.detect.data.coco import coco_files, read_coco
from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.voc import read_voc, voc_files
from chromabox.detect.data.yolo import find_yolo_yamls, read_yolo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.fetch import cache_folder

#: Data sets known by name, and where their owners keep them.
KNOWN_DATASETS = {
    "coco128": "https://github.com/ultralytics/assets/releases (coco128.zip)",
    "raccoon": "https://github.com/datitran/raccoon_dataset",
}


def load_detection_dataset(path: Path | str, split: str | None = None) -> DetectionDataset:
    """The labelled pictures at `path`: a folder, a YOLO `.yaml`, a COCO `.json`, or the name of a known set.

    Labels with faults are mended or left out one by one and told in `faults`; see `detect/labelled.py`. Only headers of
    pictures are read. Raises UsageError for a path or a split that is not there, ChromaboxError for a place that holds
    no labelled pictures in any known format.
    """
    place = resolve_dataset(path)
    data = _detect_format(place)
    if not data.samples:
        first = f"; the first fault: {data.issues[0]}" if data.issues else ""
        raise ChromaboxError(f"{place}: holds no labelled picture that can be read{first}")
    return data if split is None else data.split(split)


def resolve_dataset(path: Path | str) -> Path:
    """The file or folder meant: a path that exists, or a known set's folder in the mirror or the cache.

    Raises UsageError where there is none.
    """
    place = Path(path).expanduser()
    if place.exists():
        return place
    name = str(path)
    if name not in KNOWN_DATASETS:
        raise UsageError(
            f"{path} does not exist: a folder, .yaml or .json of data, or {', '.join(KNOWN_DATASETS)} is needed"
        )
    for folder in (*_mirror_folders(), cache_folder()):
        if (folder / name).is_dir():
            return folder / name
    raise UsageError(
        f"{name} is neither in CHROMABOX_MIRROR nor in {cache_folder()}: unpack it there as the folder {name}, or name "
        f"its folder; it is to be had at {KNOWN_DATASETS[name]}"
    )


def _mirror_folders() -> list[Path]:
    """The mirror, where it is a folder."""
    location = os.environ.get("CHROMABOX_MIRROR", "")
    if location.startswith("file://"):
        location = urllib.request.url2pathname(urlsplit(location).path)
    return [Path(location).expanduser()] if location and "://" not in location else []


def _detect_format(source: Path) -> DetectionDataset:
    """The set by its files: what a description says comes first, then what each picture's labels look like."""
    if source.is_file():
        if source.suffix.lower() in (".yaml", ".yml"):
            return read_yolo(source)
        if source.suffix.lower() == ".json":
            return read_coco(source.parent, [source])
        raise UsageError(f"{source}: data is a folder, a .yaml (YOLO) or a .json (COCO)")
    descriptions = find_yolo_yamls(source)
    if len(descriptions) > 1:
        names = ", ".join(path.name for path in descriptions)
        raise UsageError(f"{source}: holds several descriptions ({names}); name the one that is meant")
    if descriptions:
        return read_yolo(descriptions[0])
    if files := coco_files(source):
        return read_coco(source, files)
    if files := voc_files(source):
        return read_voc(source, files)
    return read_yolo(source)
