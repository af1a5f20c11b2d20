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
    DetectionSet,
    Fault,
    Label,
    Labelled,
    files_below,
    is_split,
    judged,
    measured,
    pictures_below,
    split_of,
)

_TABLES = {".csv", ".txt"}


def voc_files(folder: Path) -> list[Path]:
    """The .xml files of a folder that are annotations."""
    return [path for path in files_below(folder, {".xml"}) if b"<annotation" in _start(path)]


def read_voc(root: Path, files: Sequence[Path]) -> DetectionSet:
    """All pictures with an annotation; the classes are the names in alphabetical order.

    Splits come from lists and tables called train…, val… or test… (`.txt`, `.csv`) that name pictures, else from the
    folders' names. A picture without an annotation is not taken.
    """
    by_stem = {path.stem: path for path in pictures_below(root)}
    listed = _listed_splits(root)
    found: list[tuple[Path, Path, str, list[tuple[int, Element]]]] = []
    faults: list[Fault] = []
    for file in files:
        try:
            tree = _numbered(file)
        except (OSError, ParseError, DefusedXmlException, ValueError) as error:
            faults.append(Fault("unreadable label", file, None, f"not XML that can be read ({error}); left out", True))
            continue
        picture = by_stem.get(file.stem) or by_stem.get(Path(tree[0][1].findtext("filename", "")).stem)
        split = listed.get(file.stem, "") or split_of(file, root)
        found.append((file, picture or file.with_suffix(".jpg"), split, tree[1:]))
    classes = tuple(sorted({name for *_, objects in found for _, one in objects if (name := _name(one))}))
    pictures: list[Labelled] = []
    for file, path, split, objects in found:
        one, wrong = _read_picture(file, path, split, objects, classes)
        pictures += [] if one is None else [one]
        faults += wrong
    return DetectionSet(
        pictures=tuple(pictures),
        classes=classes,
        splits=tuple(sorted({split for _, _, split, _ in found}, key=_order)),
        format="voc",
        faults=tuple(faults),
    )


def _read_picture(
    file: Path, path: Path, split: str, objects: Sequence[tuple[int, Element]], classes: Sequence[str]
) -> tuple[Labelled | None, list[Fault]]:
    size, faults = measured(path)
    if size is None:
        return None, faults
    labels: list[Label] = []
    for line, one in objects:
        name = _name(one)
        if not name:
            faults.append(Fault("unknown class", file, line, "an object without a name; left out", True))
            continue
        try:
            left, top, right, bottom = (
                float(one.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            text = "bndbox: numbers for xmin, ymin, xmax and ymax are needed; left out"
            faults.append(Fault("unreadable label", file, line, text, True))
            continue
        # A box of no width in the file, xmax = xmin, is not mended into one of a pixel.
        shift = 1.0 if right > left and bottom > top else 0.0
        labels.append(Label(line, classes.index(name), (left - shift, top - shift, right, bottom)))
    one_picture, wrong = judged(labels, path, size, split, file)
    return one_picture, faults + wrong


def _numbered(file: Path) -> list[tuple[int, Element]]:
    """The annotation itself (line 1) and its objects with the lines they begin in."""
    content = file.read_bytes()
    root = fromstring(content, forbid_dtd=True)
    lines = [number for number, line in enumerate(content.split(b"\n"), 1) for _ in range(line.count(b"<object>"))]
    objects = root.findall("object")
    if len(lines) != len(objects):  # Objects with attributes, or in comments: no line is surely right.
        lines = [1] * len(objects)
    return [(1, root), *zip(lines, objects, strict=True)]


def _name(one: Element) -> str:
    return one.findtext("name", "").strip()


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _listed_splits(root: Path) -> dict[str, str]:
    """The split of each picture, by its name without suffix, as lists and tables tell it; the first that names it."""
    splits: dict[str, str] = {}
    for path in files_below(root, _TABLES):
        split = path.stem.split("_")[0]
        # VOC has such lists for each class too (dog_train.txt); only those that begin with the split's name count.
        if is_split(split):
            for name in _names_in(path):
                splits.setdefault(Path(name).stem, split)
    return splits


def _names_in(path: Path) -> Iterator[str]:
    """The pictures' names in a table with a column `filename`, or first in the lines of a list."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        if path.suffix.lower() == ".csv":
            yield from (name for row in csv.DictReader(file) if (name := row.get("filename")))
        else:
            yield from (words[0] for line in file if (words := line.split()))


def _order(split: str) -> tuple[int, str]:
    """Training first, then validation, then test."""
    known = ("train", "val", "test")
    return next((place for place, name in enumerate(known) if split.startswith(name)), len(known)), split
