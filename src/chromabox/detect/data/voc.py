"""Pascal VOC annotations: an XML file for each image, with the class names and box corners of all objects.

VOC counts pixels from 1, and the corner pixels belong to the box: xmin = 1 is the left edge of the image, and xmax is
the right edge of the pixel with this number. Objects marked as difficult are kept.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from chromabox.detect.data.dataset import (
    DatasetBuilder,
    DetectionDataset,
    RawLabel,
    SplitLists,
    check_class_names,
    iter_files,
)


def voc_files(folder: Path) -> list[Path]:
    """Return the .xml files in a folder that contain annotations."""
    found = []
    for path in iter_files(folder, {".xml"}):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if b"<annotation" in file.read(4096):
                found.append(path)
    return found


def read_voc(root: Path, files: Sequence[Path]) -> DetectionDataset:
    """Read all annotated images. The classes are the object names in alphabetical order.

    The image names of each split are read from lists (`.txt`) and tables (`.csv`) named train…, val… or test…. The
    split of an image that is not in any list or table is inferred from the folder names. Images without an annotation
    are ignored.
    """
    by_stem = {path.stem: path for path in iter_files(root)}
    split_lists = SplitLists(root)
    annotations: list[tuple[Path, Path, str, list[tuple[int, str, Element]]]] = []
    builder = DatasetBuilder()
    for file in files:
        try:
            document, objects = _parse_xml(file)
        except (OSError, ParseError, DefusedXmlException, ValueError) as error:
            builder.drop("unreadable label", file, None, f"cannot be read as XML ({error})")
            continue
        image_path = by_stem.get(file.stem) or by_stem.get(Path(document.findtext("filename", "")).stem)
        image_path = image_path or file.with_suffix(".jpg")
        # Lists and folders can also refer to the annotation.
        splits = (split_lists.splits(path, root) for path in (image_path, file))
        annotations += [(file, image_path, split, objects) for split in next(filter(any, splits), [""])]
    classes = sorted({name for *_, objects in annotations for _, name, _ in objects} - {""})
    check_class_names(classes, root)
    for file, path, split, objects in annotations:
        builder.add_image(path, split, file, _iter_labels(objects, classes, file, builder))
    return builder.build("voc", classes, [split for _, _, split, _ in annotations])


def _iter_labels(
    objects: Sequence[tuple[int, str, Element]], classes: Sequence[str], file: Path, builder: DatasetBuilder
) -> Iterator[RawLabel]:
    """Yield the labels of the objects. Record an issue for each invalid object."""
    for line, name, element in objects:
        if not name:
            builder.drop("unknown class", file, line, "the object has no name")
            continue
        try:
            left, top, right, bottom = (
                float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            reason = "bndbox: expected numbers for xmin, ymin, xmax and ymax"
            builder.drop("unreadable label", file, line, reason)
            continue
        # The size of a box with xmax = xmin or ymax = ymin must remain zero, so that the box is reported as invalid.
        shift = 1.0 if right > left and bottom > top else 0.0
        yield RawLabel(line, classes.index(name), (left - shift, top - shift, right, bottom))


def _parse_xml(file: Path) -> tuple[Element, list[tuple[int, str, Element]]]:
    """Return the root element, and the line number, name and element of each object."""
    content = file.read_bytes()
    root = fromstring(content, forbid_dtd=True)
    lines = [number for number, line in enumerate(content.split(b"\n"), 1) for _ in range(line.count(b"<object>"))]
    objects = root.findall("object")
    if len(lines) != len(objects):  # The line numbers are unknown if objects have attributes or are in comments.
        lines = [1] * len(objects)
    names = [element.findtext("name", "").strip() for element in objects]
    return root, list(zip(lines, names, objects, strict=True))
