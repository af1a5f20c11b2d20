"""Loading of detection datasets in three formats, which are detected automatically.

* YOLO: `images/…` and `labels/…`, or a `.txt` file next to each image. Class names and splits are read from a `.yaml`
  file, or from Darknet's `.data` file, which CVAT writes; otherwise from files such as `classes.txt`, and from lists or
  folder names.
* COCO: a `.json` file with images, annotations and categories.
* Pascal VOC: an `.xml` file for each image. Splits are read from lists (`ImageSets/Main/train.txt`), tables
  (`train_labels.csv`) or folder names.

`coco128` and `raccoon` can be loaded by name if the mirror or the cache folder contains a folder of that name.
"""

import contextlib
import functools
import itertools
import logging
import lzma
import os
import shutil
import stat
import struct
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from chromabox.detect.data.coco import coco_files, is_coco_file, read_coco
from chromabox.detect.data.dataset import (
    COCO_CLASSES,
    DetectionDataset,
    LabelIssue,
    SplitRole,
    atomic_folder,
    boxes_differ,
    is_circular,
    iter_files,
    split_from_path,
    split_role,
)
from chromabox.detect.data.voc import read_voc, voc_files
from chromabox.detect.data.yolo import find_yolo_yamls, is_label_file, label_path, read_yolo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.fetch import cache_folder
from chromabox.io.images import IMAGE_SUFFIXES
from chromabox.io.kinds import identify
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
#: Maximum difference in pixels of the same box in two formats. VOC files contain whole pixels, counted from 0 or 1.
FORMAT_TOLERANCE = 2.0


def load_detection_dataset(path: Path | str, split: str | None = None) -> DetectionDataset:
    """Load the dataset at `path`: a folder or its `.zip`, a YOLO `.yaml`, a Darknet `.data`, a COCO `.json`, or a name.

    If a folder contains labels in several formats, a dataset with a YOLO `.yaml` is used, otherwise the format that
    labels the most images (COCO before VOC and VOC before YOLO if the numbers are equal). Labels of the other formats
    that contradict these, and images and labels that do not belong to the dataset, are recorded in `issues`. Invalid
    labels are fixed or dropped individually and also recorded. Only the headers of the images are read. If `split` is
    given, only the images of this split are returned.

    Raise UsageError if the path or the split does not exist, the file type is not supported, or a folder contains more
    than one YOLO `.yaml`. Raise ChromaboxError if the path contains no labelled images in a known format.
    """
    source = resolve_dataset(path)
    suffix = source.suffix.lower() if source.is_file() else ""
    if source.is_file() and suffix not in (*YOLO_SUFFIXES, ".json"):
        raise UsageError(
            f"{source}: unsupported file; expected a folder, a .zip, a .yaml or .data (YOLO) or a .json (COCO)"
        )
    # COCO128 is published without class names.
    default_names = COCO_CLASSES if source.name == "coco128" else ()
    root = source.absolute() if source.is_dir() else source.absolute().parent
    if source.is_dir():
        datasets = _read_all_formats(source, default_names)
    elif suffix == ".json":
        # The images of a file in a folder of annotations are next to this folder.
        root = root.parent if root.name.lower() in ANNOTATION_FOLDERS else root
        datasets = [read_coco(root, [source.absolute()])]
    else:
        datasets = [read_yolo(source, default_names)]
    data = datasets[0]
    for other in datasets[1:]:
        data = _compare_formats(data, other)
    issues = [*_images_without_labels(data), *_unused_files(source, root, data, datasets)]
    data = replace(data, issues=(*data.issues, *issues))
    if not data.samples:
        first_issue = f"; the first issue is: {data.issues[0]}" if data.issues else ""
        raise ChromaboxError(f"{source}: contains no readable labelled images{first_issue}")
    return data if split is None else data.split(split)


def _read_all_formats(folder: Path, default_names: Sequence[str]) -> list[DetectionDataset]:
    """Read a folder in each format of which it contains files. The first dataset is the one to use."""
    descriptions = find_yolo_yamls(folder)
    if len(descriptions) > 1:
        names = ", ".join(path.name for path in descriptions)
        raise UsageError(f"{folder}: contains several dataset descriptions ({names}); use the path of one of them")
    readers: list[Callable[[], DetectionDataset]] = [
        functools.partial(read_yolo, path, default_names) for path in descriptions
    ]
    if files := coco_files(folder):
        readers.append(functools.partial(read_coco, folder, files))
    if files := voc_files(folder):
        readers.append(functools.partial(read_voc, folder, files))
    if not readers or (not descriptions and any(map(is_label_file, iter_files(folder, {".txt"})))):
        readers.append(functools.partial(read_yolo, folder, default_names))
    datasets = [readers[0]()]
    for reader in readers[1:]:
        with contextlib.suppress(ChromaboxError):  # The files of this format are recorded as unused.
            datasets.append(reader())
    if not descriptions:
        datasets.sort(key=lambda data: sum(len(sample.boxes) > 0 for sample in data.samples), reverse=True)
    return datasets


def _compare_formats(data: DetectionDataset, other: DetectionDataset) -> DetectionDataset:
    """Add an issue for each image whose labels in another format differ. Drop the image if only these have boxes."""
    names = {"yolo": "YOLO", "coco": "COCO", "voc": "Pascal VOC"}
    used, unused = f"the {names[data.format]} labels", f"the {names[other.format]} labels"
    compare_classes = data.has_class_names and other.has_class_names
    table = np.array([data.classes.index(name) if name in data.classes else -1 for name in other.classes], np.int64)
    samples = {_key(sample.path): sample for sample in data.samples}
    known = {(issue.issue_type, _key(issue.path), issue.line) for issue in data.issues}
    issues = [issue for issue in other.issues if (issue.issue_type, _key(issue.path), issue.line) not in known]
    only_other = set()
    for sample in other.samples:
        key = _key(sample.path)
        if len(sample.boxes) == 0:
            continue
        if key not in samples or len(samples[key].boxes) == 0:
            only_other.add(key)
            message = f"{unused} mark objects in this image, but {used} do not, and only {used} are used; dropped"
            issues.append(LabelIssue("unused annotation", sample.path, None, message, True))
            continue
        converted = replace(sample, class_ids=table[sample.class_ids]) if compare_classes else sample
        if boxes_differ(samples[key], converted, FORMAT_TOLERANCE, compare_classes=compare_classes):
            message = f"{unused} of this image differ from {used}; only {used} are used"
            issues.append(LabelIssue("unused annotation", sample.path, None, message, False))
    kept = tuple(sample for sample in data.samples if _key(sample.path) not in only_other)
    return replace(data, samples=kept, issues=(*data.issues, *issues))


def _images_without_labels(data: DetectionDataset) -> list[LabelIssue]:
    """Return an issue for each folder of a YOLO dataset with images that have no label file."""
    names: dict[Path, dict[str, None]] = {}
    for sample in data.samples if data.format == "yolo" else ():
        if not os.path.isfile(label_path(sample.path)):
            names.setdefault(sample.path.parent, {})[sample.path.name] = None
    issues = []
    for folder, unlabelled in names.items():
        example = ", ".join(list(unlabelled)[:3]) + (", …" if len(unlabelled) > 3 else "")
        message = f"images without a label file: {len(unlabelled)} ({example}); used as images without objects"
        issues.append(LabelIssue("picture without label", folder, None, message, False))
    return issues


def _unused_files(
    source: Path, root: Path, data: DetectionDataset, datasets: Sequence[DetectionDataset]
) -> list[LabelIssue]:
    """Return an issue for each image and label file in `root` that is not used, and for folders that cannot be read.

    If `source` is a file, the folders with images and labels are searched, but only if no second such file could
    describe them.

    Args:
        source: path of the dataset.
        root: the folder of the dataset.
        data: the dataset that is used.
        datasets: the labels in all formats.
    """
    images = {_key(sample.path) for sample in data.samples}
    stems, image_folders = {path.stem for path in images}, {path.parent for path in images}
    # Masks, depth maps and annotated copies have the names of the images, but lie in other folders, which denote the
    # same split or none.
    copies: set[tuple[str, SplitRole]] = {(stem, "") for stem in stems}
    copies |= {(sample.path.stem, split_role(sample.split)) for sample in data.samples}
    used = images | {_key(path) for each in datasets for path in each.files}
    used |= {_key(issue.path) for each in (data, *datasets) for issue in each.issues}
    if source.is_dir():
        folders = [root]
    elif (coco_files(root) if source.suffix.lower() == ".json" else find_yolo_yamls(root)) == [source.absolute()]:
        files = [path for path in images | {_key(path) for path in data.files} if path.is_relative_to(root.resolve())]
        parts = [path.relative_to(root.resolve()).parts for path in files]
        folders = sorted({root / part[0] for part in parts if len(part) > 1 and (root / part[0]).is_dir()})
    else:
        folders = []
    issues: list[LabelIssue] = []

    def record(error: OSError) -> None:
        message = f"the folder cannot be read ({error.strerror})"
        issues.append(LabelIssue("unused folder", Path(error.filename), None, message, True))

    walks = (os.walk(folder, onerror=record, followlinks=True) for folder in folders)
    for top, subfolders, names in itertools.chain.from_iterable(walks):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and not is_circular(top, name))
        parent, role = Path(top).resolve(), split_role(split_from_path(Path(top, "name"), root))
        for path in (Path(top, name) for name in sorted(names) if not name.startswith(".")):
            if parent / path.name not in used and path.is_file():
                may_be_copy = parent not in image_folders and (path.stem, role) in copies
                issues += _unused_file(path, stems, may_be_copy=may_be_copy)
    return issues


def _unused_file(path: Path, image_stems: Set[str], *, may_be_copy: bool) -> list[LabelIssue]:
    """Return a list with an issue for an unused file if it contains labels or an image, otherwise an empty list."""
    suffix = path.suffix.lower()
    if suffix == ".txt" and is_label_file(path):
        return [LabelIssue("label without picture", path, None, "no image of the dataset has this name; dropped", True)]
    # COCO publishes other annotations of the same images in files with these names.
    is_other_task = path.name.startswith(("person_keypoints", "stuff", "panoptic", "image_info"))
    is_annotation = path.stem in image_stems or (suffix == ".json" and is_coco_file(path))
    if suffix in (".json", ".xml") and is_annotation and not is_other_task:
        return [LabelIssue("unused annotation", path, None, "the labels are read from other files; dropped", True)]
    try:
        kind = identify(path).description
    except OSError as error:
        kind = f"file that cannot be read ({error.strerror})"
    if suffix in IMAGE_SUFFIXES and not may_be_copy:
        return [LabelIssue("unused picture", path, None, "no label or split names this image; dropped", True)]
    if suffix not in IMAGE_SUFFIXES and kind.endswith(("image", "camera raw file")):
        message = f"{kind}; expected a supported format with its usual suffix, for example .jpg or .png; dropped"
        return [LabelIssue("unused picture", path, None, message, True)]
    return []


def _key(path: Path) -> Path:
    """Return a path that is equal for different spellings of the same path. A link to a file remains a link."""
    return path.parent.resolve() / path.name


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
