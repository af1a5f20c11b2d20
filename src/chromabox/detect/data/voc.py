"""Pascal VOC annotations: an XML file for each image with the class name and corners of each object.

VOC counts pixels from 1, and the corner pixels belong to the box: xmin = 1 is the left edge of the image, and xmax is
the right edge of the pixel with that number. Objects marked as difficult are kept.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from chromabox.detect.data.dataset import (
    DetectionDataset,
    LabelIssue,
    RawLabel,
    Sample,
    is_split_name,
    iter_files,
    list_images,
    read_size,
    split_from_path,
    validate_labels,
)

_LIST_SUFFIXES = {".csv", ".txt"}


def voc_files(folder: Path) -> list[Path]:
    """Return the .xml files in a folder that are annotations."""
    return [path for path in iter_files(folder, {".xml"}) if b"<annotation" in _read_head(path)]


def read_voc(root: Path, files: Sequence[Path]) -> DetectionDataset:
    """Read all annotated images; the classes are the object names in alphabetical order.

    Splits come from lists and tables (`.txt`, `.csv`) named train…, val… or test… that contain image names, or
    otherwise from the folder names. Images without an annotation are ignored.
    """
    by_stem = {path.stem: path for path in list_images(root)}
    splits = _read_split_lists(root)
    annotations: list[tuple[Path, Path, str, list[tuple[int, Element]]]] = []
    issues: list[LabelIssue] = []
    for file in files:
        try:
            elements = _parse_xml(file)
        except (OSError, ParseError, DefusedXmlException, ValueError) as error:
            issues.append(LabelIssue("unreadable label", file, None, f"cannot be read as XML ({error}); dropped", True))
            continue
        image_path = by_stem.get(file.stem) or by_stem.get(Path(elements[0][1].findtext("filename", "")).stem)
        split = splits.get(file.stem, "") or split_from_path(file, root)
        annotations.append((file, image_path or file.with_suffix(".jpg"), split, elements[1:]))
    classes = tuple(
        sorted({name for *_, objects in annotations for _, element in objects if (name := _object_name(element))})
    )
    samples: list[Sample] = []
    for file, path, split, objects in annotations:
        sample, new_issues = _read_sample(file, path, split, objects, classes)
        samples += [] if sample is None else [sample]
        issues += new_issues
    return DetectionDataset(
        samples=tuple(samples),
        classes=classes,
        splits=tuple(sorted({split for _, _, split, _ in annotations}, key=_split_order)),
        format="voc",
        issues=tuple(issues),
    )


def _read_sample(
    file: Path, path: Path, split: str, objects: Sequence[tuple[int, Element]], classes: Sequence[str]
) -> tuple[Sample | None, list[LabelIssue]]:
    size, issues = read_size(path)
    if size is None:
        return None, issues
    labels: list[RawLabel] = []
    for line, element in objects:
        name = _object_name(element)
        if not name:
            issues.append(LabelIssue("unknown class", file, line, "an object without a name; dropped", True))
            continue
        try:
            left, top, right, bottom = (
                float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            message = "bndbox: expected numbers for xmin, ymin, xmax and ymax; dropped"
            issues.append(LabelIssue("unreadable label", file, line, message, True))
            continue
        # A box with zero width in the file (xmax = xmin) must not become one pixel wide.
        shift = 1.0 if right > left and bottom > top else 0.0
        labels.append(RawLabel(line, classes.index(name), (left - shift, top - shift, right, bottom)))
    sample, new_issues = validate_labels(labels, path, size, split, file)
    return sample, issues + new_issues


def _parse_xml(file: Path) -> list[tuple[int, Element]]:
    """Return the root element (line 1) and the object elements with their line numbers."""
    content = file.read_bytes()
    root = fromstring(content, forbid_dtd=True)
    lines = [number for number, line in enumerate(content.split(b"\n"), 1) for _ in range(line.count(b"<object>"))]
    objects = root.findall("object")
    if len(lines) != len(objects):  # Objects with attributes or inside comments: the line numbers are unknown.
        lines = [1] * len(objects)
    return [(1, root), *zip(lines, objects, strict=True)]


def _object_name(element: Element) -> str:
    return element.findtext("name", "").strip()


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _read_split_lists(root: Path) -> dict[str, str]:
    """Return the split of each image, by file name without suffix, from the first list or table that contains it."""
    splits: dict[str, str] = {}
    for path in iter_files(root, _LIST_SUFFIXES):
        split = path.stem.split("_")[0]
        # VOC also has such lists for each class (dog_train.txt). Only names that start with a split name are used.
        if is_split_name(split):
            for name in _iter_image_names(path):
                splits.setdefault(Path(name).stem, split)
    return splits


def _iter_image_names(path: Path) -> Iterator[str]:
    """Yield the image names in a table (column `filename`) or in a list (first word of each line)."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix.lower() == ".csv":
            yield from (name for row in csv.DictReader(file) if (name := row.get("filename")))
        else:
            yield from (words[0] for line in file if (words := line.split()))


def _split_order(split: str) -> tuple[int, str]:
    """Return the sort key that puts training first, then validation, then test."""
    known = ("train", "val", "test")
    return next((index for index, name in enumerate(known) if split.startswith(name)), len(known)), split
