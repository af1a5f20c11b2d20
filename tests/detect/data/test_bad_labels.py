"""Every fault of a label file: told with file and line, mended or left out by itself, the picture and the rest kept.

The picture is 100 × 50 pixels; what must be left is worked out by hand from the formats' definitions.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset, read_all_files

#: A sound line beside the bad one: a dog in the middle, 50 × 20 pixels.
GOOD = "1 0.5 0.5 0.5 0.4"
GOOD_BOX = (25.0, 15.0, 75.0, 35.0)


@dataclass
class Bad:
    """A bad line, what it is called, and the box that is made of it; None if nothing is."""

    line: str
    kind: str
    box: tuple[float, float, float, float] | None = None
    said: str = ""


YOLO = {
    "words": Bad("cat 0.5 0.5 0.2 0.2", "unreadable label", said="is not a row of numbers"),
    "too few numbers": Bad("0 0.5 0.5 0.2", "unreadable label", said="4 numbers; 5 are right"),
    "a sixth number": Bad("0 0.5 0.5 0.2 0.2 0.9", "unreadable label", said="6 numbers; 5 are right"),
    "half a corner": Bad("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "unreadable label", said="8 numbers"),
    "commas": Bad("0,0.5,0.5,0.2,0.2", "unreadable label"),
    "not a number": Bad("0 nan 0.5 0.2 0.2", "unreadable label", said="a number is not finite"),
    "infinite": Bad("0 0.5 0.5 inf 0.2", "unreadable label", said="a number is not finite"),
    "class too high": Bad("2 0.5 0.5 0.2 0.2", "unknown class", said="class 2 of 2; 0 to 1 are right"),
    "class below 0": Bad("-1 0.5 0.5 0.2 0.2", "unknown class", said="-1 is not a class number"),
    "class in between": Bad("0.5 0.5 0.5 0.2 0.2", "unknown class"),
    "no width": Bad("0 0.5 0.5 0 0.2", "zero size", said="the box is 0 × 10 pixels"),
    "negative height": Bad("0 0.5 0.5 0.2 -0.2", "zero size"),
    "outside": Bad("0 1.5 0.5 0.2 0.2", "out of range", said="lies outside of the 100 × 50 picture"),
    "pixels for fractions": Bad("0 50 25 20 10", "out of range"),
    "over the right edge": Bad("0 0.9 0.5 0.4 0.2", "out of range", (70, 20, 100, 30), "10.0 pixels over the edge"),
    "over the upper left": Bad("0 0 0 0.2 0.2", "out of range", (0, 0, 10, 5), "10.0 pixels over the edge"),
    "twice": Bad(GOOD, "duplicate label", said="the same as 1"),
    "the whole picture": Bad("0 0.5 0.5 1 1", "huge box", (0, 0, 100, 50), "covers the whole picture"),
}


@pytest.mark.parametrize("case", YOLO)
def test_a_bad_line_costs_itself_only(tmp_path: Path, case: str) -> None:
    bad = YOLO[case]
    folder = make_yolo_dataset(tmp_path, {"train/a": f"{GOOD}\n{bad.line}\n", "train/b": GOOD})
    (folder / "images" / "val").mkdir()
    before = read_all_files(folder)
    data = load_detection_dataset(folder)
    assert read_all_files(folder) == before
    assert [fault.issue_type for fault in data.issues] == [bad.kind]
    fault = data.issues[0]
    assert (fault.path, fault.line) == (folder / "labels" / "train" / "a.txt", 2)
    assert fault.dropped == (bad.box is None)
    assert str(fault).startswith(f"{folder}/labels/train/a.txt:2: {bad.kind}: ")
    assert bad.said in fault.message
    expected = [GOOD_BOX] if bad.box is None else [GOOD_BOX, bad.box]
    np.testing.assert_allclose(data.samples[0].boxes, expected, atol=1e-9)
    np.testing.assert_allclose(data.samples[1].boxes, [GOOD_BOX])


VOC = {
    "no number": (("dog", ("left", 1, 2, 3)), "unreadable label"),
    "nothing for a number": (("dog", ("", 1, 2, 3)), "unreadable label"),
    "no name": (("", (1, 1, 20, 20)), "unknown class"),
    "left and right exchanged": (("dog", (60, 10, 40, 20)), "zero size"),
    "no height": (("dog", (10, 10, 40, 10)), "zero size"),
    "over the edge": (("dog", (81, 11, 120, 20)), "out of range"),
    "outside": (("dog", (201, 11, 220, 20)), "out of range"),
    "twice": (("cat", (26, 16, 75, 35)), "duplicate label"),
}


@pytest.mark.parametrize("case", VOC)
def test_a_bad_object_costs_itself_only(tmp_path: Path, case: str) -> None:
    bad, kind = VOC[case]
    make_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(make_voc_xml(("cat", (26, 16, 75, 35)), bad))
    data = load_detection_dataset(tmp_path)
    assert [(fault.issue_type, fault.path, fault.line) for fault in data.issues] == [(kind, tmp_path / "a.xml", 7)]
    expected = [GOOD_BOX, (80, 10, 100, 20)] if case == "over the edge" else [GOOD_BOX]
    np.testing.assert_allclose(data.samples[0].boxes, expected)


def annotation(**other: object) -> dict[str, object]:
    return {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5], **other}


COCO = {
    "three numbers": (annotation(bbox=[1, 2, 3]), "unreadable label", 7),
    "words": (annotation(bbox=["a", 1, 2, 3]), "unreadable label", 7),
    "null": (annotation(bbox=None), "unreadable label", 7),
    "no box": ({"id": 7, "image_id": 1, "category_id": 3}, "unreadable label", 7),
    "not an object": ("box", "unreadable label", 1),
    "unknown category": (annotation(category_id=4), "unknown class", 7),
    "list for a category": (annotation(category_id=[3]), "unreadable label", 7),
    "list for an image": (annotation(image_id=[1]), "unreadable label", 7),
    "unknown image": (annotation(image_id=9), "label without picture", 7),
    "no width": (annotation(bbox=[1, 1, 0, 5]), "zero size", 7),
    "not a number": (annotation(bbox=[1, 1, float("nan"), 5]), "unreadable label", 7),
    "twice": (annotation(bbox=[25, 15, 50, 20]), "duplicate label", 7),
    "outside": (annotation(bbox=[-50, 0, 20, 20]), "out of range", 7),
}


@pytest.mark.parametrize("case", COCO)
def test_a_bad_annotation_costs_itself_only(tmp_path: Path, case: str) -> None:
    bad, kind, line = COCO[case]
    make_image(tmp_path / "a.png")
    said = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [annotation(id=2, bbox=[25, 15, 50, 20]), bad],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(said))
    data = load_detection_dataset(tmp_path)
    assert [(fault.issue_type, fault.line) for fault in data.issues] == [(kind, line)]
    np.testing.assert_allclose(data.samples[0].boxes, [GOOD_BOX])


WITHOUT_LABELS = {
    "bytes": (b"\xff\xfe\x00\xd8", "unreadable label"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "unreadable label"),
}


@pytest.mark.parametrize("case", WITHOUT_LABELS)
def test_a_label_file_that_is_no_text_is_told(tmp_path: Path, case: str) -> None:
    content, kind = WITHOUT_LABELS[case]
    folder = make_yolo_dataset(tmp_path, {"train/a": GOOD, "train/b": GOOD, "val/c": GOOD})
    (folder / "labels" / "train" / "a.txt").write_bytes(content)
    data = load_detection_dataset(folder)
    assert [(fault.issue_type, fault.path.name, fault.line) for fault in data.issues] == [(kind, "a.txt", None)]
    assert [len(one.boxes) for one in data.samples] == [0, 1, 1]


def test_pictures_that_are_damaged_or_missing_are_told_and_left_out(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": GOOD, "train/b": GOOD, "val/c": GOOD}, names=None)
    (folder / "images" / "train" / "a.png").write_bytes(b"none")
    (folder / "images" / "val" / "c.png").unlink()
    data = load_detection_dataset(folder)
    assert {(fault.issue_type, fault.path.name) for fault in data.issues} == {
        ("damaged picture", "a.png"),
        ("label without picture", "c.txt"),
    }
    assert [one.path.name for one in data.samples] == ["b.png"]


BAD_XML = {
    "cut short": "<annotation><object>",
    "entities that grow": '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>',
    "another file's text": '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]><annotation>&b;</annotation>',
}


@pytest.mark.parametrize("case", BAD_XML)
def test_xml_that_is_broken_or_bad_is_told_and_left_out(tmp_path: Path, case: str) -> None:
    for name in ("a", "b"):
        make_image(tmp_path / f"{name}.png")
    (tmp_path / "a.xml").write_text(BAD_XML[case])
    (tmp_path / "b.xml").write_text(make_voc_xml(("cat", (26, 16, 75, 35))))
    data = load_detection_dataset(tmp_path)
    assert [(fault.issue_type, fault.path.name) for fault in data.issues] == [("unreadable label", "a.xml")]
    assert [one.path.name for one in data.samples] == ["b.png"]


BAD_FILES = {
    "names twice": ("data.yaml", "train: images\nnames: [cat, cat]", "names: a list of different names"),
    "names with a gap": ("data.yaml", "train: images\nnames: {0: cat, 2: dog}", "names: a list of different names"),
    "no such folder": ("data.yaml", "train: pictures\nnames: [cat]", "train: pictures is not there"),
    "no pictures named": ("data.yaml", "names: [cat]", "does not describe data"),
    "not YAML": ("data.yaml", "train: [", "cannot be read as YAML"),
    "YAML that makes objects": ("data.yaml", "train: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    "not JSON": ("labels.json", "{", "cannot be read as JSON"),
    "JSON of something else": ("labels.json", "{}", "holds no COCO labels"),
    "categories without names": (
        "labels.json",
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
        "categories need an id and a name each",
    ),
    "no picture at all": ("labels.json", '{"images": [], "annotations": [], "categories": []}', "holds no labelled"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_descriptions_that_mean_nothing_give_one_sentence(tmp_path: Path, case: str) -> None:
    name, content, sentence = BAD_FILES[case]
    make_image(tmp_path / "images" / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(ChromaboxError) as caught:
        load_detection_dataset(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_places_that_hold_no_data_give_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path))
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path))
    make_image(tmp_path / "lone" / "a.png")
    with pytest.raises(ChromaboxError, match="holds no labels that are known"):
        load_detection_dataset(tmp_path / "lone")
    with pytest.raises(UsageError, match="does not exist: a folder"):
        load_detection_dataset(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"data is a folder, a \.yaml"):
        load_detection_dataset(tmp_path / "lone" / "a.png")
    with pytest.raises(UsageError, match="coco128 is neither in CHROMABOX_MIRROR nor in"):
        load_detection_dataset("coco128")
