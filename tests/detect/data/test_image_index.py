"""Which image a label belongs to, in all formats. Each image has one box whose left edge states the expected image.

The expected images follow from the folders and names by hand.
"""

import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from chromabox.detect.data.image_index import ImageIndex
from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError
from detection_fixtures import make_image


@dataclass
class Case:
    """Images and label files of a dataset: the number of each label, or of each image name in a .json file.

    `expected` are the numbers of the images, and `issues` the types of the issues.
    """

    images: str
    labels: dict[str, int | dict[str, int]]
    expected: dict[str, int | None]
    issues: list[str] = field(default_factory=list)


def write_label(path: Path, name: str, number: int) -> None:
    """Write a box with the left edge `number` for an image of 100 × 50 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text(f"0 {(number + 10) / 100} 0.5 0.2 0.2\n")
        return
    box = f"<xmin>{number + 1}</xmin><ymin>21</ymin><xmax>{number + 20}</xmax><ymax>30</ymax>"
    path.write_text(
        f"<annotation><filename>{name}</filename><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    )


def write_coco(path: Path, numbers: dict[str, int]) -> None:
    images = [{"id": number, "file_name": name} for name, number in numbers.items()]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [number, 20, 20, 10]}
        for number in numbers.values()
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


CASES = {
    "VOC, splits with equal names": Case(
        "train/0.jpg test/0.jpg",
        {"train/0.xml": 1, "test/0.xml": 2},
        {"train/0.jpg": 1, "test/0.jpg": 2},
    ),
    "VOC, annotations in other folders": Case(
        "images/train/0.jpg images/valid/0.jpg",
        {"annotations/val/0.xml": 2, "annotations/train/0.xml": 1},
        {"images/train/0.jpg": 1, "images/valid/0.jpg": 2},
    ),
    "VOC, folders without splits": Case(
        "a/images/0.jpg b/images/0.jpg",
        {"b/xml/0.xml": 2, "a/xml/0.xml": 1},
        {"a/images/0.jpg": 1, "b/images/0.jpg": 2},
    ),
    "VOC, image only in another split": Case(
        "train/0.jpg test/1.jpg",
        {"train/0.xml": 1, "test/0.xml": 2, "test/1.xml": 3},
        {"train/0.jpg": 1, "test/1.jpg": 3},
        ["missing picture"],
    ),
    "VOC, the suffix decides": Case("0.jpg 0.png", {"0.xml": 1}, {"0.jpg": 1}, ["unused picture"]),
    "VOC, the name is ambiguous": Case(
        "a/0.jpg b/0.jpg b/1.jpg", {"xml/0.xml": 1, "xml/1.xml": 2}, {"b/1.jpg": 2}, ["ambiguous picture"]
    ),
    "VOC, two annotations of an image": Case(
        "images/0.jpg images/1.jpg",
        {"a/0.xml": 1, "b/0.xml": 2, "a/1.xml": 3},
        {"images/1.jpg": 3},
        ["ambiguous picture"],
    ),
    "VOC, two equal annotations": Case(
        "images/0.jpg", {"a/0.xml": 1, "b/0.xml": 1}, {"images/0.jpg": 1}, ["duplicate label"]
    ),
    "COCO, a file for each split": Case(
        "images/train/0.jpg images/val/0.jpg",
        {"annotations/instances_train.json": {"0.jpg": 1}, "annotations/instances_val.json": {"0.jpg": 2}},
        {"images/train/0.jpg": 1, "images/val/0.jpg": 2},
    ),
    "COCO, files in the folders of the images": Case(
        "train/0.jpg valid/0.jpg",
        {"train/_annotations.coco.json": {"0.jpg": 1}, "valid/_annotations.coco.json": {"0.jpg": 2}},
        {"train/0.jpg": 1, "valid/0.jpg": 2},
    ),
    "COCO, names with folders": Case(
        "images/train/0.jpg images/val/0.jpg",
        {"labels.json": {"train/0.jpg": 1, "val/0.jpg": 2}},
        {"images/train/0.jpg": 1, "images/val/0.jpg": 2},
    ),
    "COCO, paths of another computer": Case(
        "images/a/0.jpg images/b/0.jpg",
        {"labels.json": {"C:\\data\\a\\0.jpg": 1, "/data/b/0.jpg": 2}},
        {"images/a/0.jpg": 1, "images/b/0.jpg": 2},
    ),
    "COCO, the name is ambiguous": Case(
        "images/a/0.jpg images/b/0.jpg images/1.jpg",
        {"labels.json": {"0.jpg": 1, "1.jpg": 2}},
        {"images/1.jpg": 2},
        ["ambiguous picture"],
    ),
    "COCO, another suffix": Case(
        "0.png 1.jpg", {"labels.json": {"0.jpg": 1, "1.jpg": 2}}, {"1.jpg": 2}, ["missing picture", "unused picture"]
    ),
    "COCO, all images in one folder": Case(
        "train/0.jpg train/1.jpg",
        {"train.json": {"0.jpg": 1}, "val.json": {"1.jpg": 2}},
        {"train/0.jpg": 1, "train/1.jpg": 2},
    ),
    "COCO, two entries of an image": Case(
        "0.jpg 1.jpg",
        {"labels.json": {"0.jpg": 1, "./0.jpg": 2, "1.jpg": 3}},
        {"1.jpg": 3},
        ["ambiguous picture"],
    ),
    "YOLO, splits with equal names": Case(
        "train/images/0.jpg test/images/0.jpg",
        {"train/labels/0.txt": 1, "test/labels/0.txt": 2},
        {"train/images/0.jpg": 1, "test/images/0.jpg": 2},
    ),
    "YOLO, labels in a folder next to the images": Case("0.jpg", {"labels/0.txt": 1}, {"0.jpg": 1}),
    "YOLO, labels in a folder next to the folder": Case(
        "JPEGImages/0.jpg", {"labels/0.txt": 1}, {"JPEGImages/0.jpg": 1}
    ),
    "YOLO, labels in folders for each split": Case(
        "train/0.jpg val/0.jpg",
        {"labels/train/0.txt": 1, "labels/val/0.txt": 2},
        {"train/0.jpg": 1, "val/0.jpg": 2},
    ),
    "YOLO, two images with one label file": Case(
        "0.jpg 0.png 1.jpg", {"0.txt": 1, "1.txt": 2}, {"1.jpg": 2}, ["ambiguous picture"] * 2
    ),
    "YOLO, two background images": Case(
        "0.jpg 0.png 1.jpg", {"1.txt": 2}, {"0.jpg": None, "0.png": None, "1.jpg": 2}, ["picture without label"]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_labels_belong_to_the_right_image_or_the_ambiguity_is_reported(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    for seed, image in enumerate(case.images.split()):
        make_image(tmp_path / image, seed)
    for file, numbers in case.labels.items():
        if isinstance(numbers, dict):
            write_coco(tmp_path / file, numbers)
        else:
            write_label(tmp_path / file, f"{Path(file).stem}.jpg", numbers)
    data = load_detection_dataset(tmp_path)
    found = {
        sample.path.relative_to(tmp_path).as_posix(): round(float(sample.boxes[0, 0])) if len(sample.boxes) else None
        for sample in data.samples
    }
    assert found == case.expected
    assert sorted(issue.issue_type for issue in data.issues) == sorted(case.issues)


def test_coco_file_in_a_folder_of_annotations_finds_its_images(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val")):
        make_image(tmp_path / "images" / split / "0.jpg", seed)
    write_coco(tmp_path / "annotations" / "instances_val.json", {"0.jpg": 2})
    (sample,) = load_detection_dataset(tmp_path / "annotations" / "instances_val.json").samples
    assert sample.path == tmp_path / "images" / "val" / "0.jpg"


def test_id_of_several_images_is_reported(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        make_image(tmp_path / f"{name}.png", seed)
    images = [{"id": number, "file_name": f"{name}.png"} for name, number in (("a", 0), ("b", 0), ("c", 1))]
    annotations = [{"id": 5, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data = load_detection_dataset(tmp_path)
    assert [sample.path.name for sample in data.samples] == ["c.png"]
    assert [(issue.issue_type, issue.path.name) for issue in data.issues] == [
        ("ambiguous picture", "a.png"),
        ("ambiguous picture", "b.png"),
    ]
    message = "labels.json: the id 0 denotes 2 images (a.png, b.png), with 1 labels; expected one; dropped"
    assert data.issues[0].message == message
    images[2]["id"] = 0
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ChromaboxError, match=r"contains no readable labelled images; the first issue is: .*the id 0"):
        load_detection_dataset(tmp_path)


def test_filename_of_another_image_is_reported(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_image(tmp_path / f"{name}.jpg", seed)
        write_label(tmp_path / f"{name}.xml", "a.jpg", 1)
    data = load_detection_dataset(tmp_path)
    assert [sample.path.name for sample in data.samples] == ["a.jpg", "b.jpg"]
    assert [(issue.issue_type, issue.path.name, issue.dropped) for issue in data.issues] == [
        ("ambiguous picture", "b.xml", False)
    ]


def test_list_of_images_is_not_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image(tmp_path / "other" / "a.png")
    make_image(tmp_path / "set" / "images" / "b.png")
    (tmp_path / "set" / "data.yaml").write_text("train: train.txt\nnames: [cat]")
    (tmp_path / "set" / "train.txt").write_text("a.png\nimages/b.png\n")
    monkeypatch.chdir(tmp_path / "other")
    data = load_detection_dataset(tmp_path / "set")
    assert [sample.path.name for sample in data.samples] == ["b.png"]
    assert [issue.issue_type for issue in data.issues] == ["missing picture", "picture without label"]


@pytest.mark.parametrize("name", ["Größe.jpg", unicodedata.normalize("NFD", "Größe.jpg"), "GRÖSSE.JPG"])
def test_case_and_unicode_normalisation_are_ignored(tmp_path: Path, name: str) -> None:
    path = make_image(tmp_path / "images" / "Größe.jpg")
    assert ImageIndex(tmp_path).find(name, tmp_path / "labels.json") == [path]


def test_exact_name_precedes_the_same_name_in_another_case(tmp_path: Path) -> None:
    paths = [make_image(tmp_path / "images" / name) for name in ("a.JPG", "a.jpg")]
    if len({path.read_bytes() for path in paths}) == len(list((tmp_path / "images").iterdir())) == 1:
        pytest.skip("the file system ignores case")
    index = ImageIndex(tmp_path)
    assert index.find("a.jpg", tmp_path / "labels.json") == [paths[1]]
    assert index.find("A.jpg", tmp_path / "labels.json") == paths
    assert index.find("b.jpg", tmp_path / "labels.json") == []
