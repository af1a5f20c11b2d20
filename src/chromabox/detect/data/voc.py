"""Pascal VOC's labels: an XML file for every picture, with a name and corners for every object.

VOC counts pixels from 1 and its corners are inside the box: xmin 1 is the left edge, xmax the right edge of its pixel.
Objects marked difficult are kept like any other.
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
    """The .xml files of a folder that are annotations."""
    return [path for path in iter_files(folder, {".xml"}) if b"<annotation" in _read_head(path)]


def read_voc(root: Path, files: Sequence[Path]) -> DetectionDataset:
    """All pictures with an annotation; the classes are the names in alphabetical order.

    Splits come from lists and tables called train…, val… or test… (`.txt`, `.csv`) that name pictures, else from the
    folders' names. A picture without an annotation is not taken.
    """
    by_stem = {path.stem: path for path in list_images(root)}
    listed = _read_split_lists(root)
    found: list[tuple[Path, Path, str, list[tuple[int, Element]]]] = []
    faults: list[LabelIssue] = []
    for file in files:
        try:
            tree = _parse_xml(file)
        except (OSError, ParseError, DefusedXmlException, ValueError) as error:
            faults.append(
                LabelIssue("unreadable label", file, None, f"not XML that can be read ({error}); left out", True)
            )
            continue
        picture = by_stem.get(file.stem) or by_stem.get(Path(tree[0][1].findtext("filename", "")).stem)
        split = listed.get(file.stem, "") or split_from_path(file, root)
        found.append((file, picture or file.with_suffix(".jpg"), split, tree[1:]))
    classes = tuple(sorted({name for *_, objects in found for _, one in objects if (name := _object_name(one))}))
    pictures: list[Sample] = []
    for file, path, split, objects in found:
        one, wrong = _read_sample(file, path, split, objects, classes)
        pictures += [] if one is None else [one]
        faults += wrong
    return DetectionDataset(
        samples=tuple(pictures),
        classes=classes,
        splits=tuple(sorted({split for _, _, split, _ in found}, key=_split_order)),
        format="voc",
        issues=tuple(faults),
    )


def _read_sample(
    file: Path, path: Path, split: str, objects: Sequence[tuple[int, Element]], classes: Sequence[str]
) -> tuple[Sample | None, list[LabelIssue]]:
    size, faults = read_size(path)
    if size is None:
        return None, faults
    labels: list[RawLabel] = []
    for line, one in objects:
        name = _object_name(one)
        if not name:
            faults.append(LabelIssue("unknown class", file, line, "an object without a name; left out", True))
            continue
        try:
            left, top, right, bottom = (
                float(one.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            text = "bndbox: numbers for xmin, ymin, xmax and ymax are needed; left out"
            faults.append(LabelIssue("unreadable label", file, line, text, True))
            continue
        # A box of no width in the file, xmax = xmin, is not mended into one of a pixel.
        shift = 1.0 if right > left and bottom > top else 0.0
        labels.append(RawLabel(line, classes.index(name), (left - shift, top - shift, right, bottom)))
    one_picture, wrong = validate_labels(labels, path, size, split, file)
    return one_picture, faults + wrong


def _parse_xml(file: Path) -> list[tuple[int, Element]]:
    """The annotation itself (line 1) and its objects with the lines they begin in."""
    content = file.read_bytes()
    root = fromstring(content, forbid_dtd=True)
    lines = [number for number, line in enumerate(content.split(b"\n"), 1) for _ in range(line.count(b"<object>"))]
    objects = root.findall("object")
    if len(lines) != len(objects):  # Objects with attributes, or in comments: no line is surely right.
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
    """The split of each picture, by its name without suffix, as lists and tables tell it; the first that names it."""
    splits: dict[str, str] = {}
    for path in iter_files(root, _LIST_SUFFIXES):
        split = path.stem.split("_")[0]
        # VOC has such lists for each class too (dog_train.txt); only those that begin with the split's name count.
        if is_split_name(split):
            for name in _iter_image_names(path):
                splits.setdefault(Path(name).stem, split)
    return splits


def _iter_image_names(path: Path) -> Iterator[str]:
    """The pictures' names in a table with a column `filename`, or first in the lines of a list."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix.lower() == ".csv":
            yield from (name for row in csv.DictReader(file) if (name := row.get("filename")))
        else:
            yield from (words[0] for line in file if (words := line.split()))


def _split_order(split: str) -> tuple[int, str]:
    """Training first, then validation, then test."""
    known = ("train", "val", "test")
    return next((place for place, name in enumerate(known) if split.startswith(name)), len(known)), split
