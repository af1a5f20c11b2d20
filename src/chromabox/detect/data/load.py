"""Loading of detection datasets in three formats, which are detected automatically.

* YOLO: `images/…` and `labels/…`, or a `.txt` file next to each image. Class names and splits are read from a `.yaml`
  file if there is one; otherwise from files such as `classes.txt`, and from lists or folder names.
* COCO: a `.json` file with images, annotations and categories.
* Pascal VOC: an `.xml` file for each image. Splits are read from lists (`ImageSets/Main/train.txt`), tables
  (`train_labels.csv`) or folder names.

`coco128` and `raccoon` can be loaded by name if the mirror or the cache folder contains a folder of that name.
"""

import os
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from chromabox.detect.data.coco import coco_files, read_coco
from chromabox.detect.data.dataset import COCO_CLASSES, DetectionDataset
from chromabox.detect.data.voc import read_voc, voc_files
from chromabox.detect.data.yolo import find_yolo_yamls, read_yolo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.fetch import cache_folder

#: Datasets that can be loaded by name, and where they are published.
KNOWN_DATASETS = {
    "coco128": "https://github.com/ultralytics/assets/releases (coco128.zip)",
    "raccoon": "https://github.com/datitran/raccoon_dataset",
}


def load_detection_dataset(path: Path | str, split: str | None = None) -> DetectionDataset:
    """Load the dataset at `path`: a folder, a YOLO `.yaml`, a COCO `.json`, or the name of a known dataset.

    In a folder, a YOLO `.yaml` takes precedence over COCO files, and COCO files over other labels. Invalid labels are
    fixed or dropped individually and recorded in `issues`. Only the headers of the images are read. If `split` is
    given, only the images of this split are returned.

    Raise UsageError if the path or the split does not exist, the file type is not supported, or a folder contains more
    than one YOLO `.yaml`. Raise ChromaboxError if the path contains no labelled images in a known format.
    """
    source = resolve_dataset(path)
    suffix = source.suffix.lower() if source.is_file() else ""
    descriptions = [] if suffix else find_yolo_yamls(source)
    if len(descriptions) > 1:
        names = ", ".join(path.name for path in descriptions)
        raise UsageError(f"{source}: contains several dataset descriptions ({names}); use the path of one of them")
    if source.is_file() and suffix not in (".yaml", ".yml", ".json"):
        raise UsageError(f"{source}: unsupported file; expected a folder, a .yaml (YOLO) or a .json (COCO)")
    # COCO128 is published without class names.
    default_names = COCO_CLASSES if source.name == "coco128" else ()
    if suffix == ".json":
        data = read_coco(source.parent, [source])
    elif suffix or descriptions:
        data = read_yolo(source if suffix else descriptions[0], default_names)
    elif files := coco_files(source):
        data = read_coco(source, files)
    elif files := voc_files(source):
        data = read_voc(source, files)
    else:
        data = read_yolo(source, default_names)
    if not data.samples:
        first_issue = f"; the first issue is: {data.issues[0]}" if data.issues else ""
        raise ChromaboxError(f"{source}: contains no readable labelled images{first_issue}")
    return data if split is None else data.split(split)


def resolve_dataset(path: Path | str) -> Path:
    """Return the path of a dataset: an existing path, or the folder of a known dataset in the mirror or the cache.

    Raise UsageError if there is no such path or folder.
    """
    source, name = Path(path).expanduser(), str(path)
    if source.exists():
        return source
    if name not in KNOWN_DATASETS:
        known = ", ".join(KNOWN_DATASETS)
        raise UsageError(f"{path} does not exist: expected the folder, .yaml or .json of a dataset, or {known}")
    mirror = os.environ.get("CHROMABOX_MIRROR", "")
    if mirror.startswith("file://"):
        mirror = urllib.request.url2pathname(urlsplit(mirror).path)
    folders = [Path(mirror).expanduser()] if mirror and "://" not in mirror else []
    for folder in (*folders, cache_folder()):
        if (folder / name).is_dir():
            return folder / name
    raise UsageError(
        f"{name} is neither in CHROMABOX_MIRROR nor in {cache_folder()}: download it from {KNOWN_DATASETS[name]} and "
        f"unpack it as the folder {name} in one of these two folders, or use the path of its folder"
    )
