"""Loading of detection datasets in three formats, which are detected automatically.

* YOLO: `images/…` and `labels/…`, or a `.txt` file next to each image. Class names and splits are read from a `.yaml`
  file if there is one.
* COCO: a `.json` file with images, annotations and categories.
* Pascal VOC: an `.xml` file for each image. Splits are read from lists (`ImageSets/Main/train.txt`), tables
  (`train_labels.csv`) or folder names.

`coco128` and `raccoon` can be loaded by name if the mirror or the cache folder contains a folder of that name.
"""

import contextlib
import functools
import os
import urllib.request
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from chromabox.detect.data.coco import coco_files, is_coco_file, read_coco
from chromabox.detect.data.dataset import DetectionDataset, LabelIssue, boxes_differ, iter_files, split_from_path
from chromabox.detect.data.voc import read_voc, voc_files
from chromabox.detect.data.yolo import find_yolo_yamls, is_label_file, label_path, read_yolo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.fetch import cache_folder
from chromabox.io.images import IMAGE_SUFFIXES
from chromabox.io.kinds import identify

#: Datasets that can be loaded by name, and where they are published.
KNOWN_DATASETS = {
    "coco128": "https://github.com/ultralytics/assets/releases (coco128.zip)",
    "raccoon": "https://github.com/datitran/raccoon_dataset",
}
#: Maximum difference in pixels of the same box in two formats. VOC files contain whole pixels, counted from 0 or 1.
FORMAT_TOLERANCE = 2.0


def load_detection_dataset(path: Path | str, split: str | None = None) -> DetectionDataset:
    """Load the dataset at `path`: a folder, a YOLO `.yaml`, a COCO `.json`, or the name of a known dataset.

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
    if source.is_file() and suffix not in (".yaml", ".yml", ".json"):
        raise UsageError(f"{source}: unsupported file; expected a folder, a .yaml (YOLO) or a .json (COCO)")
    if source.is_dir():
        datasets = _read_all_formats(source)
    else:
        datasets = [read_coco(source.parent, [source]) if suffix == ".json" else read_yolo(source)]
    data = datasets[0]
    for other in datasets[1:]:
        data = _compare_formats(data, other)
    issues = [*_images_without_labels(data), *_unused_files(source, data, datasets)]
    data = replace(data, issues=(*data.issues, *issues))
    if not data.samples:
        first_issue = f"; the first issue is: {data.issues[0]}" if data.issues else ""
        raise ChromaboxError(f"{source}: contains no readable labelled images{first_issue}")
    return data if split is None else data.split(split)


def _read_all_formats(folder: Path) -> list[DetectionDataset]:
    """Read a folder in each format of which it contains files. The first dataset is the one to use."""
    descriptions = find_yolo_yamls(folder)
    if len(descriptions) > 1:
        names = ", ".join(path.name for path in descriptions)
        raise UsageError(f"{folder}: contains several dataset descriptions ({names}); use the path of one of them")
    readers: list[Callable[[], DetectionDataset]] = [functools.partial(read_yolo, path) for path in descriptions]
    if files := coco_files(folder):
        readers.append(functools.partial(read_coco, folder, files))
    if files := voc_files(folder):
        readers.append(functools.partial(read_voc, folder, files))
    if not readers or (not descriptions and any(map(is_label_file, iter_files(folder, {".txt"})))):
        readers.append(functools.partial(read_yolo, folder))
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


def _unused_files(source: Path, data: DetectionDataset, datasets: Sequence[DetectionDataset]) -> list[LabelIssue]:
    """Return an issue for each image, label file and folder in `source` that is not used.

    If `source` is a file, the folders with images and labels are searched, but only if no second such file could
    describe them.

    Args:
        source: path of the dataset.
        data: the dataset that is used.
        datasets: the labels in all formats.
    """
    images, label_files = (
        {_key(path) for path in paths} for paths in ([s.path for s in data.samples], data.label_files)
    )
    stems, image_folders = {path.stem for path in images}, {path.parent for path in images}
    used = images | {_key(path) for each in datasets for path in each.label_files}
    used |= {_key(issue.path) for each in (data, *datasets) for issue in each.issues}
    root = source if source.is_dir() else source.parent
    if root == source:
        folders = [root]
    elif (coco_files(root) if source.suffix.lower() == ".json" else find_yolo_yamls(root)) == [source]:
        files = [path for path in images | label_files if path.is_relative_to(root.resolve())]
        parts = [path.relative_to(root.resolve()).parts for path in files]
        folders = sorted({root / part[0] for part in parts if len(part) > 1 and (root / part[0]).is_dir()})
    else:
        folders = []
    issues: list[LabelIssue] = []

    def record(error: OSError) -> None:
        message = f"the folder cannot be read ({error.strerror})"
        issues.append(LabelIssue("unused folder", Path(error.filename), None, message, True))

    for top, subfolders, names in (entry for folder in folders for entry in os.walk(folder, onerror=record)):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for folder in (Path(top, name) for name in subfolders):
            if folder.is_symlink() and not any(path.is_relative_to(folder.resolve()) for path in image_folders):
                issues.append(LabelIssue("unused folder", folder, None, "links to folders are not followed", True))
        parent = Path(top).resolve()
        # Masks and depth maps have the names of the images, but lie in other folders, which denote no split.
        may_be_masks = parent not in image_folders and not split_from_path(Path(top, "name"), root)
        for path in (Path(top, name) for name in sorted(names) if not name.startswith(".")):
            if parent / path.name not in used and path.is_file():
                issues += _unused_file(path, stems, may_be_mask=may_be_masks and path.stem in stems)
    return issues


def _unused_file(path: Path, image_stems: Set[str], *, may_be_mask: bool) -> list[LabelIssue]:
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
    if suffix in IMAGE_SUFFIXES and not may_be_mask:
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
