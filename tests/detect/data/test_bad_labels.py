"""All label issues: each is reported with file and line, and fixed or dropped; the image and its other labels are kept.

The image has 100 × 50 pixels. The expected boxes are computed by hand from the definitions of the formats.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset, read_all_files

#: Valid line next to the invalid one: a dog in the centre, 50 × 20 pixels.
GOOD = "1 0.5 0.5 0.5 0.4"
GOOD_BOX = (25.0, 15.0, 75.0, 35.0)

#: Label of class 0, without which the classes could be counted from 1.
CLASS_0 = "0 0.5 0.5 0.2 0.2"


@dataclass
class BadLine:
    """Invalid line, its issue type, the resulting box (None if the label is dropped), and a part of the message."""

    line: str
    issue_type: str
    box: tuple[float, float, float, float] | None = None
    message: str = ""


YOLO = {
    "words": BadLine("cat 0.5 0.5 0.2 0.2", "unreadable label", message="is not a row of numbers"),
    "too few numbers": BadLine("0 0.5 0.5 0.2", "unreadable label", message="values is 4; expected 5"),
    "a sixth number": BadLine("0 0.5 0.5 0.2 0.2 0.9", "unreadable label", message="values is 6; expected 5"),
    "incomplete corner": BadLine("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "unreadable label", message="values is 8"),
    "commas": BadLine("0,0.5,0.5,0.2,0.2", "unreadable label"),
    "not a number": BadLine("0 nan 0.5 0.2 0.2", "unreadable label", message="a number is not finite"),
    "infinite": BadLine("0 0.5 0.5 inf 0.2", "unreadable label", message="a number is not finite"),
    "class too high": BadLine("2 0.5 0.5 0.2 0.2", "unknown class", message="class 2 is not defined; expected 0 to 1"),
    "class below 0": BadLine("-1 0.5 0.5 0.2 0.2", "unknown class", message="-1 is not a class number"),
    "fractional class": BadLine("0.5 0.5 0.5 0.2 0.2", "unknown class"),
    "no width": BadLine("0 0.5 0.5 0 0.2", "zero size", message="the box is 0 × 10 pixels"),
    "negative height": BadLine("0 0.5 0.5 0.2 -0.2", "zero size"),
    "outside": BadLine("0 1.5 0.5 0.2 0.2", "out of range", message="is outside the 100 × 50 image"),
    "pixels for fractions": BadLine("0 50 25 20 10", "out of range"),
    "beyond the right edge": BadLine("0 0.9 0.5 0.4 0.2", "out of range", (70, 20, 100, 30), "10.0 pixels beyond"),
    "beyond the upper left": BadLine("0 0 0 0.2 0.2", "out of range", (0, 0, 10, 5), "10.0 pixels beyond"),
    "duplicate": BadLine(GOOD, "duplicate label", message="same class and box as label 1"),
    "the whole image": BadLine("0 0.5 0.5 1 1", "huge box", (0, 0, 100, 50), "covers the whole image"),
}


@pytest.mark.parametrize("case", YOLO)
def test_invalid_line_does_not_affect_other_labels(tmp_path: Path, case: str) -> None:
    bad = YOLO[case]
    folder = make_yolo_dataset(tmp_path, {"train/a": f"{GOOD}\n{bad.line}\n", "train/b": GOOD, "train/c": CLASS_0})
    (folder / "images" / "val").mkdir()
    before = read_all_files(folder)
    data = load_detection_dataset(folder)
    assert read_all_files(folder) == before
    assert [issue.issue_type for issue in data.issues] == [bad.issue_type]
    issue = data.issues[0]
    assert (issue.path, issue.line) == (folder / "labels" / "train" / "a.txt", 2)
    assert issue.dropped == (bad.box is None)
    assert str(issue).startswith(f"{folder}/labels/train/a.txt:2: {bad.issue_type}: ")
    assert bad.message in issue.message
    expected = [GOOD_BOX] if bad.box is None else [GOOD_BOX, bad.box]
    np.testing.assert_allclose(data.samples[0].boxes, expected, atol=1e-9)
    np.testing.assert_allclose(data.samples[1].boxes, [GOOD_BOX])


VOC = {
    "not a number": (("dog", ("left", 1, 2, 3)), "unreadable label"),
    "empty number": (("dog", ("", 1, 2, 3)), "unreadable label"),
    "no name": (("", (1, 1, 20, 20)), "unknown class"),
    "left and right swapped": (("dog", (60, 10, 40, 20)), "zero size"),
    "no height": (("dog", (10, 10, 40, 10)), "zero size"),
    "beyond the edge": (("dog", (81, 11, 120, 20)), "out of range"),
    "outside": (("dog", (201, 11, 220, 20)), "out of range"),
    "duplicate": (("cat", (26, 16, 75, 35)), "duplicate label"),
}


@pytest.mark.parametrize("case", VOC)
def test_invalid_object_does_not_affect_other_objects(tmp_path: Path, case: str) -> None:
    bad, issue_type = VOC[case]
    make_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(make_voc_xml(("cat", (26, 16, 75, 35)), bad))
    data = load_detection_dataset(tmp_path)
    assert [(issue.issue_type, issue.path, issue.line) for issue in data.issues] == [
        (issue_type, tmp_path / "a.xml", 7)
    ]
    expected = [GOOD_BOX, (80, 10, 100, 20)] if case == "beyond the edge" else [GOOD_BOX]
    np.testing.assert_allclose(data.samples[0].boxes, expected)


def annotation(**changes: object) -> dict[str, object]:
    return {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], **changes}


COCO = {
    "three numbers": (annotation(bbox=[1, 2, 3]), "unreadable label", 7),
    "words": (annotation(bbox=["a", 1, 2, 3]), "unreadable label", 7),
    "null": (annotation(bbox=None), "unreadable label", 7),
    "no bbox": ({"id": 7, "image_id": 1, "category_id": 3}, "unreadable label", 7),
    "not an object": ("box", "unreadable label", 1),
    "unknown category": (annotation(category_id=4), "unknown class", 7),
    "list as category_id": (annotation(category_id=[3]), "unreadable label", 7),
    "list as image_id": (annotation(image_id=[1]), "unreadable label", 7),
    "unknown image": (annotation(image_id=9), "label without picture", 7),
    "no width": (annotation(bbox=[1, 1, 0, 5]), "zero size", 7),
    "not a number": (annotation(bbox=[1, 1, float("nan"), 5]), "unreadable label", 7),
    "duplicate": (annotation(bbox=[25, 15, 50, 20]), "duplicate label", 7),
    "outside": (annotation(bbox=[-50, 0, 20, 20]), "out of range", 7),
}


@pytest.mark.parametrize("case", COCO)
def test_invalid_annotation_does_not_affect_other_annotations(tmp_path: Path, case: str) -> None:
    bad, issue_type, line = COCO[case]
    make_image(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [annotation(id=2, bbox=[25, 15, 50, 20]), bad],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data = load_detection_dataset(tmp_path)
    assert [(issue.issue_type, issue.line) for issue in data.issues] == [(issue_type, line)]
    np.testing.assert_allclose(data.samples[0].boxes, [GOOD_BOX])


NOT_TEXT = {
    "bytes": (b"\xff\xfe\x00\xd8", "unreadable label"),
    "an image": (b"\x89PNG\r\n\x1a\n\x00", "unreadable label"),
}


@pytest.mark.parametrize("case", NOT_TEXT)
def test_label_file_that_is_not_text_is_reported(tmp_path: Path, case: str) -> None:
    content, issue_type = NOT_TEXT[case]
    folder = make_yolo_dataset(tmp_path, {"train/a": GOOD, "train/b": GOOD, "val/c": GOOD})
    (folder / "labels" / "train" / "a.txt").write_bytes(content)
    data = load_detection_dataset(folder)
    assert [(issue.issue_type, issue.path.name, issue.line) for issue in data.issues] == [(issue_type, "a.txt", None)]
    assert [len(sample.boxes) for sample in data.samples] == [0, 1, 1]


def test_damaged_and_missing_images_are_reported_and_dropped(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": GOOD, "train/b": GOOD, "val/c": GOOD}, names=None)
    (folder / "images" / "train" / "a.png").write_bytes(b"none")
    (folder / "images" / "val" / "c.png").unlink()
    data = load_detection_dataset(folder)
    assert {(issue.issue_type, issue.path.name) for issue in data.issues} == {
        ("damaged picture", "a.png"),
        ("label without picture", "c.txt"),
    }
    assert [sample.path.name for sample in data.samples] == ["b.png"]


BAD_XML = {
    "truncated": "<annotation><object>",
    "expanding entities": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
    # Names of codecs of Python that are unknown, not for text, only for Windows, or for domain names.
    **{
        f"encoding {name}": f'<?xml version="1.0" encoding="{name}"?><annotation></annotation>'
        for name in ("foo", "rot13", "mbcs", "idna", "utf-32", "undefined", "hex", "x" * 300)
    },
    "external entity": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>',
}


@pytest.mark.parametrize("case", BAD_XML)
def test_invalid_or_unsafe_xml_is_reported_and_dropped(tmp_path: Path, case: str) -> None:
    for name in ("a", "b"):
        make_image(tmp_path / f"{name}.png")
    (tmp_path / "a.xml").write_text(BAD_XML[case])
    (tmp_path / "b.xml").write_text(make_voc_xml(("cat", (26, 16, 75, 35))))
    data = load_detection_dataset(tmp_path)
    assert [(issue.issue_type, issue.path.name) for issue in data.issues] == [
        ("unreadable label", "a.xml"),
        ("unused picture", "a.png"),
    ]
    assert [sample.path.name for sample in data.samples] == ["b.png"]


BAD_FILES = {
    "duplicate names": ("data.yaml", "train: images\nnames: [cat, cat]", "two classes have the names 'cat' and 'cat'"),
    "names with a gap": (
        "data.yaml",
        "train: images\nnames: {0: cat, 2: dog}",
        "names: expected a list of different names",
    ),
    "no such folder": ("data.yaml", "train: pictures\nnames: [cat]", "train: pictures does not exist"),
    "aliases of aliases": (
        "data.yaml",
        "train: images\na: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        + "names: *i",
        "line 3: references (*) to lists and mappings are not supported",
    ),
    "merged aliases": (
        "data.yaml",
        "train: images\na: &a {x: 1}\n"
        + "".join(
            f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "line 3: references (*) to lists and mappings are not supported",
    ),
    "pairs of aliases": ("data.yaml", "train: images\na: &a [1]\nnames: !!pairs [x: *a]", "references (*) to lists"),
    "aliases as a path": ("data.yaml", "train: &a [[images]]\npath: *a", "references (*) to lists and mappings"),
    "nested list of paths": ("data.yaml", "train: [[images]]", "train: expected the path of a folder"),
    "line break in a path": ("data.yaml", 'train: "a\\nb"', r"train: a\nb does not exist or is no regular file"),
    "device": ("data.yaml", "train: /dev/zero", "train: /dev/zero does not exist or is no regular file"),
    "long path": ("data.yaml", f"train: {'a' * 5000}", "aaa does not exist or is no regular file"),
    "number with too many digits": (
        "data.yaml",
        f"train: images\nnc: {'9' * 5000}",
        "expected a number of classes from 1 to 9999",
    ),
    "invalid date": ("data.yaml", "train: 2001-99-99", "train: 2001-99-99 does not exist"),
    "text as a number": ("data.yaml", "train: images\nnc: !!bool x", "nc is x; expected a number of classes"),
    "large YAML": ("data.yaml", "train: images\n#" + "x" * (1 << 18), "dataset description of at most 262,144 bytes"),
    "deep JSON": ("labels.json", "[" * 100_000, "cannot be read as JSON"),
    "infinite category": (
        "labels.json",
        '{"images": [], "annotations": [], "categories": [{"id": 1e999, "name": "cat"}]}',
        "invalid categories; expected an id and a name for each",
    ),
    "no images": ("data.yaml", "names: [cat]", "does not describe a dataset"),
    "not YAML": ("data.yaml", "train: [", "cannot be read as YAML"),
    "YAML that creates objects": (
        "data.yaml",
        "train: !!python/object/apply:os.getcwd []",
        "does not describe a dataset",
    ),
    "not JSON": ("labels.json", "{", "cannot be read as JSON"),
    "other JSON": ("labels.json", "{}", "contains no COCO annotations"),
    "categories without names": (
        "labels.json",
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
        "invalid categories; expected an id and a name for each",
    ),
    "empty dataset": (
        "labels.json",
        '{"images": [], "annotations": [], "categories": []}',
        "contains no readable labelled image",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_invalid_description_is_rejected_with_one_line(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    make_image(tmp_path / "images" / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(ChromaboxError) as caught:
        load_detection_dataset(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["2000", "20230401", "1e9", "4294967296", "1e30", "1e308"])
def test_class_number_without_names_is_limited(tmp_path: Path, number: str) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": GOOD, "train/b": f"{number} 0.5 0.5 0.2 0.2\n"}, names=None)
    data = load_detection_dataset(folder)
    assert [str(issue.message) for issue in data.issues] == [
        f"class {number} is not defined; expected 0 to 1999; dropped"
    ]
    assert len(data.classes) < 10


def test_name_references_in_yaml_are_read(tmp_path: Path) -> None:
    make_yolo_dataset(tmp_path, {"train/a": GOOD, "val/b": GOOD}, names=None)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [&a cat, dog]\nx: *a\n")
    assert load_detection_dataset(tmp_path / "data.yaml").classes == ("cat", "dog")


@pytest.mark.parametrize("content", ["filename\n" + "x" * 200_000, "x" * 200_000 + "\na"])
def test_table_with_a_long_field_is_rejected(tmp_path: Path, content: str) -> None:
    make_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(make_voc_xml(("cat", (26, 16, 75, 35))))
    (tmp_path / "train_labels.csv").write_text(content)
    with pytest.raises(ChromaboxError, match=r"train_labels\.csv: cannot be read as a list of images"):
        load_detection_dataset(tmp_path)


def test_path_without_dataset_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path))
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path))
    make_image(tmp_path / "unlabelled" / "a.png")
    with pytest.raises(ChromaboxError, match="contains no labels in a known format"):
        load_detection_dataset(tmp_path / "unlabelled")
    with pytest.raises(UsageError, match="does not exist: expected the folder"):
        load_detection_dataset(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"unsupported file; expected a folder, a \.zip, a \.yaml"):
        load_detection_dataset(tmp_path / "unlabelled" / "a.png")
    with pytest.raises(UsageError, match="coco128 is neither in CHROMABOX_MIRROR nor in"):
        load_detection_dataset("coco128")
