"""Loading of detection datasets in three formats, which are detected automatically.

* YOLO: `images/…` and `labels/…`, or a `.txt` file next to each image. Class names and splits are read from a `.yaml`
  file, or from Darknet's `.data` file, which CVAT writes; otherwise from files such as `classes.txt`, and from lists or
  folder names.
* COCO: a `.json` file with images, annotations and categories.
* Pascal VOC: an `.xml` file for each image. Splits are read from lists (`ImageSets/Main/train.txt`), tables
  (`train_labels.csv`) or folder names.

`coco128` and `raccoon` can be loaded by name if the mirror or the cache folder contains a folder of that name.
"""

import logging
import lzma
import os
import shutil
import stat
import struct
import urllib.request
import zipfile
import zlib
from pathlib import Path
from urllib.parse import urlsplit

from chromabox.detect.data.coco import coco_files, read_coco
from chromabox.detect.data.dataset import COCO_CLASSES, DetectionDataset, atomic_folder, split_from_path
from chromabox.detect.data.voc import read_voc, voc_files
from chromabox.detect.data.yolo import find_yolo_yamls, read_yolo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.fetch import cache_folder
from chromabox.io.manifest import sha256_file

log = logging.getLogger(__name__)

#: Datasets that can be loaded by name, and where they are published.
KNOWN_DATASETS = {
    "coco128": "https://github.com/ultralytics/assets/releases (coco128.zip)",
    "raccoon": "https://github.com/datitran/raccoon_dataset",
}
#: Names of folders that contain only annotations, not images.
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels")
#: Suffixes of files that describe a YOLO dataset.
YOLO_SUFFIXES = (".yaml", ".yml", ".data")
#: Maximum number of files in a .zip file, and maximum ratio of their size to the size of the .zip file. Images are
#: hardly compressed, but label files can be smaller by a factor of 20.
MAX_ZIP_FILES, MAX_ZIP_RATIO = 2_000_000, 100
#: Files of this total size in bytes are unpacked at any ratio.
SMALL_ZIP_BYTES = 1 << 24
_DECODING_ERRORS = (zlib.error, lzma.LZMAError, struct.error, OverflowError)


def load_detection_dataset(path: Path | str, split: str | None = None) -> DetectionDataset:
    """Load the dataset at `path`: a folder or its `.zip`, a YOLO `.yaml`, a Darknet `.data`, a COCO `.json`, or a name.

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
    if source.is_file() and suffix not in (*YOLO_SUFFIXES, ".json"):
        raise UsageError(
            f"{source}: unsupported file; expected a folder, a .zip, a .yaml or .data (YOLO) or a .json (COCO)"
        )
    # COCO128 is published without class names.
    default_names = COCO_CLASSES if source.name == "coco128" else ()
    if suffix == ".json":
        source = source.absolute()
        # The images of a file in a folder of annotations are next to this folder.
        is_annotation_folder = source.parent.name.lower() in ANNOTATION_FOLDERS
        data = read_coco(source.parent.parent if is_annotation_folder else source.parent, [source])
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

    A .zip file is unpacked into the cache, unless this has been done before, and the path of its folder is returned.
    Raise UsageError if there is no such path or folder, and ChromaboxError if a .zip file cannot be unpacked.
    """
    source, name = Path(path).expanduser(), str(path)
    if source.is_file() and source.suffix.lower() == ".zip":
        return _unpack(source)
    if source.exists():
        return source
    if name not in KNOWN_DATASETS:
        known = ", ".join(KNOWN_DATASETS)
        raise UsageError(
            f"{path} does not exist: expected the folder, .zip, .yaml, .data or .json of a dataset, or {known}"
        )
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


def _unpack(path: Path) -> Path:
    """Unpack a .zip file into the cache folder, if this has not been done before, and return the dataset's folder.

    This is the only folder in the file if all files are in one folder. The name in the cache contains the SHA-256.

    Raise ChromaboxError if the file is damaged or encrypted, is too large when unpacked, or contains links or paths
    outside its folder. Nothing is left behind then.
    """
    try:
        target = cache_folder() / "datasets" / f"{path.stem}-{sha256_file(path)[:16]}"
        if not target.is_dir():
            with zipfile.ZipFile(path) as archive, atomic_folder(target) as folder:
                _extract(archive, path, folder)
            log.info(f"{path}: unpacked into {target}")
    # Encryption and unknown compression raise RuntimeError and NotImplementedError.
    except (OSError, zipfile.BadZipFile, *_DECODING_ERRORS, EOFError, ValueError, RuntimeError) as error:
        raise ChromaboxError(
            f"{path}: cannot be unpacked ({error}); expected a .zip file of a dataset; use another copy, or unpack it"
        ) from error
    entries = [entry for entry in target.iterdir() if not entry.name.startswith(".")]
    is_split = any(split_from_path(entry / "image", target) for entry in entries)
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and not is_split else target


def _extract(archive: zipfile.ZipFile, path: Path, folder: Path) -> None:
    """Write the files in an archive into a folder. Raise ChromaboxError or an error of `zipfile` if this is unsafe."""
    # macOS adds a folder with the attributes of the files.
    members = [info for info in archive.infolist() if not info.is_dir() and not info.filename.startswith("__MACOSX/")]
    limit = max(MAX_ZIP_RATIO * path.stat().st_size, SMALL_ZIP_BYTES)
    total = sum(info.file_size for info in members)
    if total > limit or len(members) > MAX_ZIP_FILES:
        raise ChromaboxError(
            f"{path}: would be unpacked to {total:,} bytes in {len(members):,} files; expected at most {limit:,} bytes "
            f"in {MAX_ZIP_FILES:,} files; unpack it yourself if it is correct"
        )
    if total > (free := shutil.disk_usage(folder).free):
        raise ChromaboxError(
            f"{path}: would be unpacked to {total:,} bytes, but {folder.parent} has {free:,} bytes of free space; set "
            "CHROMABOX_CACHE to another folder"
        )
    for info in members:
        # Some programs on Windows write backslashes, which `zipfile` replaces only on Windows.
        name = info.filename.replace("\\", "/")
        is_outside = name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/")
        if is_outside or stat.S_ISLNK(info.external_attr >> 16):
            problem = "is outside its folder" if is_outside else "is a symbolic link"
            raise ChromaboxError(f"{path}: {name[:200]!r} {problem}; expected only files below one folder")
        file = folder / name
        if os.path.lexists(file):
            raise ChromaboxError(f"{path}: contains {name[:200]!r} twice; expected different names")
        file.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, file.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
