"""Generated datasets in all formats are read back equal, also through supervision, and any single change is reported.

The datasets are written from the definitions of the formats (`write_dataset`), by this package and by supervision.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from chromabox.detect.data.dataset import NOTES, normalise_name
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset, write_clean_copy
from chromabox.errors import ChromaboxError
from detection_fixtures import LabelledImage, assert_dataset, make_voc_xml, write_dataset

FORMATS = ("yolo", "coco", "voc")
cheap = settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=(Phase.generate,))
#: Class names that YAML, XML or JSON could change, and arbitrary names.
NAMES = st.sampled_from(
    ["yes", "no", "null", "1", "1.10", "a: b", "# c", "cat & <dog>", "étoile", "猫", "traffic light"]
)
NAMES |= st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=8).filter(normalise_name)
STEMS = st.text("abcxyz019-_äЖ猫", min_size=1, max_size=6)


@st.composite
def datasets(draw: st.DrawFn, *, min_objects: int = 0) -> tuple[list[LabelledImage], list[str]]:
    """Draw images with objects, and the class names, which are in alphabetical order, as in VOC."""
    classes = sorted(draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=normalise_name)))
    stems = draw(st.lists(STEMS, min_size=1, max_size=4, unique_by=str.casefold))
    has_splits = draw(st.booleans())
    images = []
    for stem in stems:
        split = draw(st.sampled_from(["train", "val", "test"] if images else ["train"])) if has_splits else ""
        width, height = draw(st.integers(12, 90)), draw(st.integers(12, 90))
        objects = []
        for index in range(draw(st.integers(min_objects, 3))):
            # The tops differ, so that no two boxes are equal.
            left, top = draw(st.floats(0, width - 4, width=16)), index + draw(st.floats(0, 0.5, width=16))
            right, bottom = draw(st.floats(left + 2, width)), draw(st.floats(top + 2, height))
            objects.append((draw(st.sampled_from(classes)), (left, top, right, bottom)))
        images.append(LabelledImage(stem, split, (width, height), tuple(objects)))
    return images, classes


@pytest.mark.parametrize("dataset_format", FORMATS)
def test_generated_dataset_is_read_back_and_copied(
    tmp_path_factory: pytest.TempPathFactory, dataset_format: str
) -> None:
    @cheap
    @given(datasets())
    def check(dataset: tuple[list[LabelledImage], list[str]]) -> None:
        images, classes = dataset
        folder = tmp_path_factory.mktemp("data")
        write_dataset(folder / "data", dataset_format, images, classes)
        report = validate_dataset(folder / "data")
        assert [str(issue) for issue in report.issues if issue.issue_type not in NOTES] == []
        assert_dataset(report.data, images, 1e-6)
        if dataset_format != "voc":  # VOC does not list classes without objects.
            assert report.data.classes == tuple(classes)
        write_clean_copy(report, folder / "data", folder / "copy")
        copy = load_detection_dataset(folder / "copy")
        assert (copy.format, copy.classes) == ("yolo", report.data.classes)
        assert_dataset(copy, images, 1e-6)
        shutil.rmtree(folder)

    check()


Change = Callable[[Path], None]


def edit(pattern: str, old: str, new: str) -> Change:
    """Return a function that replaces the first occurrence of a text in the first file with this pattern."""

    def change(folder: Path) -> None:
        path = next(iter(sorted(folder.rglob(pattern))))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def on_first(pattern: str, function: Callable[[Path], object]) -> Change:
    """Return a function that applies a function to the first file with this pattern."""
    return lambda folder: function(next(iter(sorted(folder.rglob(pattern))))) and None


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


#: Changes for each format. Each damages one file, in an image or in a label of an image.
ANY_FORMAT: dict[str, Change] = {
    "image deleted": on_first("*.png", Path.unlink),
    "image truncated": on_first("*.png", halve),
    "image empty": on_first("*.png", lambda path: path.write_bytes(b"")),
    "image is text": on_first("*.png", lambda path: path.write_text("no image")),
    "image renamed": on_first("*.png", lambda path: path.rename(path.with_name("other name.png"))),
    "image with an unknown suffix": on_first("*.png", lambda path: path.rename(path.with_suffix(".image"))),
    "second copy of an image": on_first("*.png", lambda path: shutil.copy(path, path.with_name("copy.png"))),
    "stray YOLO label": on_first("*.png", lambda path: path.with_name("stray.txt").write_text("0 0.5 0.5 0.2 0.2")),
    "stray VOC label": on_first(
        "*.png", lambda path: path.with_name("stray.xml").write_text(make_voc_xml(("cat", (1, 1, 5, 5))))
    ),
    "stray COCO file": lambda folder: (
        (folder / "old.json").write_text(
            '{"images": [{"id": 1, "file_name": "lost.png"}], "annotations": [], "categories": []}'
        )
        and None
    ),
}
CHANGES: dict[str, dict[str, Change]] = {
    "yolo": {
        "label deleted": on_first("labels/**/*.txt", Path.unlink),
        "label renamed": on_first("labels/**/*.txt", lambda path: path.rename(path.with_name("other.txt"))),
        "label not text": on_first("labels/**/*.txt", lambda path: path.write_bytes(b"\xff\xfe\x00")),
        "label repeated": on_first("labels/**/*.txt", lambda path: path.write_text(2 * path.read_text())),
        "number missing": on_first("labels/**/*.txt", lambda path: path.write_text("0 0.5 0.5 0.25\n")),
        "comma": edit("labels/**/*.txt", ".", ","),
        "class too high": on_first("labels/**/*.txt", lambda path: path.write_text(f"9{path.read_text()}")),
        "negative class": on_first("labels/**/*.txt", lambda path: path.write_text(f"-1{path.read_text()[1:]}")),
        "pixels": on_first("labels/**/*.txt", lambda path: path.write_text("0 25 25 10 10\n")),
        "no names": on_first("labels/**/*.txt", lambda path: path.with_name("z.txt").write_text("")),
    },
    "coco": {
        "truncated": on_first("*.json", halve),
        "deleted": on_first("*.json", Path.unlink),
        "unknown image": edit("*.json", '"image_id": 3', '"image_id": 4'),
        "unknown category": edit("*.json", '"category_id": ', '"category_id": 9'),
        "repeated image id": edit("*.json", '"images": [', '"images": [{"id": 3, "file_name": "second.png"}, '),
        "other file name": edit("*.json", '"file_name": "', '"file_name": "other '),
        "no box": edit("*.json", '"bbox"', '"box"'),
        "infinite number": edit("*.json", '"bbox": [', '"bbox": [1e999, '),
        "repeated annotation id": edit("*.json", '"annotations": [{"id": 1', '"annotations": [{"id": 2'),
        "repeated category": edit("*.json", '"categories": [', '"categories": [{"id": 2, "name": "second"}, '),
    },
    "voc": {
        "truncated": on_first("*.xml", halve),
        "deleted": on_first("*.xml", Path.unlink),
        "no name": edit("*.xml", "<name>", "<label>x</label><name/><!--"),
        "no number": edit("*.xml", "<xmin>", "<xmin>left "),
        "side missing": edit("*.xml", "xmax>", "max>"),
        "far outside": edit("*.xml", "<ymax>", "<ymax>9"),
        "swapped": edit("*.xml", "<xmax>", "<xmax>-"),
    },
}


@pytest.mark.parametrize(
    ("dataset_format", "case"), [(name, case) for name in FORMATS for case in (*ANY_FORMAT, *CHANGES[name])]
)
def test_any_single_change_is_reported(
    tmp_path_factory: pytest.TempPathFactory, dataset_format: str, case: str
) -> None:
    change = ANY_FORMAT.get(case) or CHANGES[dataset_format][case]

    @settings(cheap, max_examples=1)
    @given(datasets(min_objects=2))
    def check(dataset: tuple[list[LabelledImage], list[str]]) -> None:
        folder = tmp_path_factory.mktemp("data")
        write_dataset(folder, dataset_format, *dataset)
        before = validate_dataset(folder)
        change(folder)
        with contextlib.suppress(ChromaboxError):  # This is also a report.
            after = validate_dataset(folder)
            assert len(after.issues) > len(before.issues) or len(after.leaks) > len(before.leaks)
        shutil.rmtree(folder)

    check()
