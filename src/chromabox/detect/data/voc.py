"""Pascal VOC annotations: an XML file for each image, with the class names and box corners of all objects.

VOC counts pixels from 1, and the corner pixels belong to the box: xmin = 1 is the left edge of the image, and xmax is
the right edge of the pixel with this number. Objects marked as difficult are kept. The box of an object that has only a
polygon is the bounding box of the polygon.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from chromabox.detect.data.dataset import (
    DatasetBuilder,
    DetectionDataset,
    LabelIssue,
    RawLabel,
    SplitLists,
    check_class_names,
    iter_files,
)
from chromabox.detect.data.image_index import ImageIndex


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
    index = ImageIndex(root)
    split_lists = SplitLists(root)
    annotations: list[tuple[Path, Path | None, str, Element, list[tuple[int, str, Element]]]] = []
    builder = DatasetBuilder()
    for file in files:
        try:
            document, objects = _parse_xml(file)
        except (OSError, ParseError, DefusedXmlException, ValueError, LookupError) as error:
            # The encoding in the XML declaration can be unknown (LookupError) or a codec that is not for text.
            builder.drop("unreadable label", file, None, f"cannot be read as XML ({error})")
            continue
        path = _find_image(file, document.findtext("filename", "").strip(), index, builder)
        # Lists and folders can also refer to the annotation.
        splits = (split_lists.splits(each, root) for each in (path, file) if each is not None)
        annotations += [(file, path, split, document, objects) for split in next(filter(any, splits), [""])]
    classes = sorted({name for *_, objects in annotations for _, name, _ in objects} - {""})
    check_class_names(classes, root)
    for file, path, split, document, objects in annotations:
        size = document.findtext("size/width"), document.findtext("size/height")
        if path is not None:
            builder.add_image(path, split, file, _iter_labels(objects, classes, file, builder), size)
    return builder.build("voc", classes, [split for _, _, split, *_ in annotations])


def _find_image(file: Path, name: str, index: ImageIndex, builder: DatasetBuilder) -> Path | None:
    """Return the image of an annotation: it has the name of the .xml file, or else the name that the file states.

    Record an issue if there is no such image, or several, or if the file states the name of another image.
    """
    suffix = Path(name).suffix
    found = index.find(f"{file.stem}{suffix}", file, any_suffix=True)
    named = index.find(name, file, any_suffix=True) if name else []
    if not found:
        return builder.pick_image(named, name or file.stem, file)
    if len(found) == 1 and named and found[0] not in named:
        message = f"filename is {name}, but the image with the name of this file is used, {found[0].name}"
        builder.issues.append(LabelIssue("ambiguous picture", file, None, message, False))
    return builder.pick_image(found, file.stem, file)


def _iter_labels(
    objects: Sequence[tuple[int, str, Element]], classes: Sequence[str], file: Path, builder: DatasetBuilder
) -> Iterator[RawLabel]:
    """Yield the labels of the objects. Record an issue for each invalid object."""
    class_ids = {name: index for index, name in enumerate(classes)}
    for line, name, element in objects:
        if not name:
            builder.drop("unknown class", file, line, "the object has no name")
            continue
        try:
            left, top, right, bottom = _read_box(element)
        except ValueError:
            reason = "bndbox: expected numbers for xmin, ymin, xmax and ymax, or a polygon"
            builder.drop("unreadable label", file, line, reason)
            continue
        # The size of a box with xmax = xmin or ymax = ymin must remain zero, so that the box is reported as invalid.
        shift = 1.0 if right > left and bottom > top else 0.0
        yield RawLabel(line, class_ids[name], (left - shift, top - shift, right, bottom))


def _read_box(element: Element) -> tuple[float, float, float, float]:
    """Return the left, top, right and bottom that an object states, or those of its polygon if it has no box.

    The corners of polygons are `x1`, `y1`, `x2`, `y2`, … or points with `x` and `y`. Raise ValueError if a number is
    missing.
    """
    polygon = element.find("polygon")
    if element.find("bndbox") is not None or polygon is None:
        left, top, right, bottom = (
            float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        return left, top, right, bottom
    xs, ys = (
        [float(child.text or "") for child in polygon.iter() if re.fullmatch(rf"{axis}\d*", str(child.tag))]
        for axis in "xy"
    )
    if len(xs) != len(ys) or not xs:
        raise ValueError("the polygon has no corners")
    return min(xs), min(ys), max(xs), max(ys)


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
