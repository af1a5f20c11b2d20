"""Class names of YOLO datasets, wherever other programs write them.

The places and formats are those of the exports: data.yaml of Ultralytics (names as a list or by index, nc),
`_darknet.labels` of Roboflow, classes.txt of LabelImg and Label Studio, obj.names of Darknet and CVAT (one name per
line). YAML 1.2 defines yes, no and off as text.
"""

import json
from pathlib import Path

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset, write_clean_copy
from chromabox.errors import ChromaboxError
from detection_fixtures import make_image, make_yolo_dataset

BOX = "0 0.5 0.5 0.5 0.4\n1 0.3 0.3 0.2 0.2\n"
SPLITS = "train: images/train\nval: images/val\n"
FOUND = {
    "a list": {"data.yaml": f"{SPLITS}nc: 2\nnames: [helmet, head]"},
    "names by index": {"data.yaml": f"{SPLITS}names:\n  1: head\n  0: helmet"},
    "quoted indices": {"data.yaml": f"{SPLITS}names: {{'0': helmet, '1': head}}"},
    "byte order mark": {"data.yaml": f"\ufeff{SPLITS}names: [helmet, head]"},
    "no splits in the description": {"data.yaml": "nc: 2\nnames: [helmet, head]"},
    "a text file named in the description": {"data.yaml": f"{SPLITS}names: all.txt", "all.txt": "helmet\nhead\n"},
    "text file and description without names": {"data.yaml": f"{SPLITS}nc: 2", "classes.txt": "helmet\nhead\n"},
    "empty key": {"data.yaml": f"{SPLITS}names: null\nnc: ~", "classes.txt": "helmet\nhead\n"},
    "top folder": {"classes.txt": "helmet\r\nhead\r\n\r\n"},
    "beside the image folders": {"images/classes.txt": "helmet\nhead"},
    "description beside the image folders": {"images/data.yaml": "names: [helmet, head]"},
    "beside the label folders": {"labels/classes.txt": "helmet\nhead"},
    "in each label folder": {"labels/train/classes.txt": "helmet\nhead", "labels/val/classes.txt": "helmet\nhead"},
    "in each image folder": {
        "images/train/_darknet.labels": "helmet\nhead",
        "images/val/_darknet.labels": "helmet\nhead",
    },
    "another name of the file": {"wear.names": "helmet\nhead\n"},
    "description of a network in the folder": {"yolov5s.yaml": "nc: 80\nbackbone: []", "classes.txt": "helmet\nhead"},
}


def make_dataset(folder: Path, files: dict[str, str]) -> Path:
    make_yolo_dataset(folder, {"train/a": BOX, "train/b": BOX, "val/c": BOX}, names=None)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", FOUND)
def test_class_names_are_found(tmp_path: Path, case: str) -> None:
    data = load_detection_dataset(make_dataset(tmp_path, FOUND[case]))
    assert (data.classes, data.has_class_names, data.issues) == (("helmet", "head"), True, ())
    assert data.splits == ("train", "val")


def test_folders_for_each_split_with_labels_beside_the_images(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "valid")):
        make_image(tmp_path / split / "a.png", seed).with_suffix(".txt").write_text(BOX)
        (tmp_path / split / "_darknet.labels").write_text("helmet\nhead\n")
    data = load_detection_dataset(tmp_path)
    assert (data.classes, data.splits, data.issues) == (("helmet", "head"), ("train", "valid"), ())


@pytest.mark.parametrize("names", ["yes, no", "on, off", "1.10, 1e3", "2001-01-01, 0x1F", "true, null"])
def test_names_remain_text(tmp_path: Path, names: str) -> None:
    data = load_detection_dataset(make_dataset(tmp_path, {"data.yaml": f"{SPLITS}names: [{names}]"}))
    assert ", ".join(data.classes) == names


def test_unnamed_classes_are_numbered(tmp_path: Path) -> None:
    data = load_detection_dataset(make_dataset(tmp_path, {}))
    assert (data.classes, data.has_class_names, data.issues) == (("class 0", "class 1"), False, ())
    (tmp_path / "data.yaml").write_text(f"{SPLITS}nc: 3\n")
    assert load_detection_dataset(tmp_path).classes == ("class 0", "class 1", "class 2")
    (tmp_path / "data.yaml").write_text(f"{SPLITS}nc: 1\n")
    assert [issue.issue_type for issue in load_detection_dataset(tmp_path).issues] == ["unknown class"] * 3


def test_merged_datasets_need_the_same_names(tmp_path: Path) -> None:
    for part, names in (("a", "[fox, hen]"), ("b", "[hen, fox]")):
        make_yolo_dataset(tmp_path / part, {"train/a": BOX, "val/b": BOX}, names=None)
        (tmp_path / part / "data.yaml").write_text(f"{SPLITS}names: {names}")
    with pytest.raises(
        ChromaboxError, match=r"b.data\.yaml: the class names \(hen, fox\) differ from those in .*a.data"
    ):
        load_detection_dataset(tmp_path)


def test_label_file_of_an_image_contains_no_names(tmp_path: Path) -> None:
    make_image(tmp_path / "classes.png").with_suffix(".txt").write_text(BOX)
    assert load_detection_dataset(tmp_path).classes == ("class 0", "class 1")


def test_other_names_than_those_of_the_description_are_an_issue(tmp_path: Path) -> None:
    files = {"data.yaml": f"{SPLITS}names: [helmet, head]", "labels/classes.txt": "head\nhelmet\n"}
    data = load_detection_dataset(make_dataset(tmp_path, files))
    assert data.classes == ("helmet", "head")
    (issue,) = data.issues
    assert str(issue).startswith(f"{tmp_path}/labels/classes.txt: other class names: the class names (head, helmet)")


def test_cleaned_copy_of_unnamed_classes_has_the_same_classes(tmp_path: Path) -> None:
    source = make_dataset(tmp_path / "set", {"data.yaml": f"{SPLITS}nc: 5"})
    write_clean_copy(validate_dataset(source), source, tmp_path / "copy")
    copy = load_detection_dataset(tmp_path / "copy")
    assert (copy.classes, copy.has_class_names) == (tuple(f"class {index}" for index in range(5)), False)


REJECTED = {
    "too few names": ({"data.yaml": f"{SPLITS}nc: 3\nnames: [helmet, head]"}, "nc is 3, but "),
    "too few names in a text file": ({"data.yaml": f"{SPLITS}nc: 3", "classes.txt": "a\nb"}, "contains 2 class names"),
    "equal names": ({"classes.txt": "helmet\nhelmet\n"}, "two classes have the names 'helmet' and 'helmet'"),
    "names that differ in case": ({"data.yaml": f"{SPLITS}names: [Red_Fox, red fox]"}, "'Red_Fox' and 'red fox'"),
    "empty name": ({"data.yaml": f"{SPLITS}names: [helmet, ' ']"}, "class 1 has an empty name"),
    "empty line": ({"classes.txt": "helmet\n\nhead\n"}, "class 1 has an empty name"),
    "different names": (
        {"images/train/classes.txt": "helmet\nhead", "images/val/classes.txt": "head\nhelmet"},
        "val/classes.txt: the class names (head, helmet) differ from those in ",
    ),
    "other encoding": ({"wear.names": "helmet\nhead\udcff\n"}, "wear.names: is not UTF-8 text"),
    "repeated index": ({"data.yaml": f"{SPLITS}names: {{0: helmet, 0: head}}"}, "a key is repeated"),
    "repeated key": ({"data.yaml": f"{SPLITS}train: images\nnames: [helmet, head]"}, "a key is repeated"),
    "number of classes as a word": ({"data.yaml": f"{SPLITS}nc: two"}, "nc is two; expected a number of classes"),
    "no such file": ({"data.yaml": f"{SPLITS}names: all.txt"}, "names: all.txt does not exist"),
    "description that is not YAML": ({"data.yaml": "names: [helmet"}, "data.yaml: cannot be read as YAML"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_invalid_or_contradictory_names_are_rejected(tmp_path: Path, case: str) -> None:
    files, message = REJECTED[case]
    make_dataset(tmp_path, {})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ChromaboxError) as caught:
        load_detection_dataset(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_escaped_characters_of_json_are_read(tmp_path: Path) -> None:
    """JSON escapes U+1F43E as a pair of surrogates (RFC 8259, section 7)."""
    folder = make_yolo_dataset(tmp_path, {"train/a": BOX, "val/b": BOX}, None)
    description = json.dumps({"train": "images/train", "val": "images/val", "names": ["\U0001f43e"]})
    (folder / "data.yaml").write_text(description)
    assert load_detection_dataset(folder).classes == ("\U0001f43e",)
