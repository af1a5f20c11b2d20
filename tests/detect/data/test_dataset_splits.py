"""One rule for splits: names of folders, lists, keys and COCO files, and images in no split or in several splits.

The names are those of exports: Ultralytics and Roboflow (train, val, valid, test), COCO (val2017, test-dev2017), CVAT
(obj_Train_data), Pascal VOC (ImageSets/Main) and KITTI (training, testing).
"""

import json
from pathlib import Path

import pytest

from chromabox.detect.data.dataset import NOTES, split_role
from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset

BOX = "0 0.5 0.5 0.5 0.4\n"
ROLES = {
    "train": "train Train TRAIN training train2017 train_labels obj_train_data obj_Train_data images-train TrainImages "
    "trainset trainval",
    "val": "val Val valid validation Validation val2017 valid_01 obj_Validation_data valset eval",
    "test": "test Test TEST testing test-dev2017 test_images obj_Test_data testA",
    "": "images labels data trains latest minival contest value train_val train-test-split",
}


@pytest.mark.parametrize(("name", "role"), [(name, role) for role, names in ROLES.items() for name in names.split()])
def test_roles(name: str, role: str) -> None:
    assert split_role(name) == role


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("training", "validation", "testing"),
        ("train", "valid", "Test"),
        ("obj_Train_data", "obj_Validation_data", "obj_Test_data"),
    ],
)
def test_folders(tmp_path: Path, names: tuple[str, str, str]) -> None:
    data = load_detection_dataset(
        make_yolo_dataset(tmp_path / "test project", {f"{name}/a": BOX for name in names}, None)
    )
    assert (data.splits, data.issues) == (names, ())
    for role, name in zip(("train", "val", "test"), names, strict=True):
        assert [sample.split for sample in data.split(role).samples] == [name]


def test_folder_with_the_fewest_words_decides(tmp_path: Path) -> None:
    labels = {"test-camera/train/a": BOX, "val/train-camera/b": BOX}
    assert load_detection_dataset(make_yolo_dataset(tmp_path, labels, None)).splits == ("train", "val")


@pytest.mark.parametrize("key", ["val", "valid", "Val", "validation"])
def test_keys_of_a_description(tmp_path: Path, key: str) -> None:
    folder = make_yolo_dataset(tmp_path, {"a/x": BOX, "b/y": BOX, "c/z": BOX}, None)
    text = f"train: images/a\n{key}: images/b\ntest: images/c\nval_interval: 5\nnames: [cat]\n"
    (folder / "data.yaml").write_text(text)
    data = load_detection_dataset(folder)
    assert [(sample.split, sample.path.stem) for sample in data.samples] == [
        ("train", "x"),
        ("val", "y"),
        ("test", "z"),
    ]


def make_lists(folder: Path, lists: dict[str, str]) -> Path:
    for name, lines in lists.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines)
    return folder


def test_lists_of_yolo_images_and_paths_with_equal_names(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"one/0": BOX, "two/0": BOX, "two/my cat": BOX}, None)
    lists = {"train.txt": "data/images/one/0.png\n", "Test.txt": "data\\images\\two\\0.png\nimages/two/my cat.png\n"}
    data = load_detection_dataset(make_lists(folder, lists))
    found = {(sample.path.parent.name, sample.path.stem): sample.split for sample in data.samples}
    assert found == {("one", "0"): "train", ("two", "0"): "Test", ("two", "my cat"): "Test"}


def test_label_file_is_not_a_list(tmp_path: Path) -> None:
    for seed, name in enumerate(("0", "test")):
        make_image(tmp_path / f"{name}.png", seed).with_suffix(".txt").write_text(BOX)
    assert load_detection_dataset(tmp_path).splits == ("",)


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train.txt": "a\n", "val.txt": "b\n", "test.txt": "c\n", "trainval.txt": "a\nb\n"}, "train val test"),
        ({"trainval.txt": "a\nb\n", "test.txt": "c\n"}, "trainval trainval test"),
        ({"train.txt": "a\nb\n", "val.txt": "c\n", "cat_test.txt": "a 1\nb -1\n"}, "train train val"),
    ],
)
def test_voc_lists(tmp_path: Path, lists: dict[str, str], expected: str) -> None:
    for seed, name in enumerate("abc"):
        make_image(tmp_path / "JPEGImages" / f"{name}.png", seed)
    for name in "abc":
        make_lists(tmp_path, {f"Annotations/{name}.xml": make_voc_xml(("cat", (11, 6, 30, 25)))})
    make_lists(tmp_path, {f"ImageSets/Main/{name}": lines for name, lines in lists.items()})
    make_lists(tmp_path, {"ImageSets/Layout/val.txt": "a\nb\nc\n"})
    data = load_detection_dataset(tmp_path)
    assert ([sample.split for sample in data.samples], data.issues) == (expected.split(), ())


def test_voc_list_of_annotations_with_other_names_than_the_images(tmp_path: Path) -> None:
    make_image(tmp_path / "images" / "a.png")
    annotation = make_voc_xml(("cat", (11, 6, 30, 25))).replace("<object>", "<filename>a.png</filename><object>", 1)
    lists = {"first.xml": annotation, "test.txt": "first\n"}
    assert load_detection_dataset(make_lists(tmp_path, lists)).splits == ("test",)


def test_unreadable_list_is_rejected(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": BOX}, None)
    (folder / "test_labels.csv").write_text("filename\n" + "a" * 200_000)
    with pytest.raises(ChromaboxError, match=r"test_labels\.csv: cannot be read as a list of images"):
        load_detection_dataset(folder)


def test_coco_file_without_split_and_image_folders(tmp_path: Path) -> None:
    names = ["train/a.png", "valid/b.png", "Test/c.png"]
    for seed, name in enumerate(names):
        make_image(tmp_path / name, seed)
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9]} for i in range(3)]
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)], "annotations": annotations}
    (tmp_path / "labels.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "cat"}]}))
    assert load_detection_dataset(tmp_path).splits == ("train", "valid", "Test")


def test_images_outside_the_splits_are_reported_and_not_used(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {"train/a": BOX, "val/b": BOX, "holdout/c": BOX}, None))
    assert (data.splits, len(data.samples)) == (("train", "val"), 2)
    (issue,) = data.issues
    assert (issue.issue_type, issue.path.stem, issue.dropped) == ("picture without split", "c", True)


@pytest.mark.parametrize("val", ["images/train", "./images/../images/train", "link"])
def test_splits_that_name_the_same_images_are_reported(tmp_path: Path, val: str) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": BOX, "train/b": BOX}, None)
    if val == "link":
        (folder / "link").symlink_to("images/train")
    (folder / "data.yaml").write_text(f"train: images/train\nval: {val}\nnames: [cat]\n")
    (issue,) = (issue for issue in load_detection_dataset(folder).issues if issue.issue_type not in NOTES)
    assert issue.issue_type == "picture in several splits"
    assert "the splits train and val name the same images (2 of 2 in train, 2 of 2 in val)" in issue.message


def test_split_is_selected_by_name_or_role(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {"train/a": BOX, "val1/b": BOX, "val2/c": BOX}, None))
    assert [len(data.split(name).samples) for name in ("val1", "val", "valid", "TRAIN")] == [1, 2, 2, 1]
    for name in ("test", "all", ""):
        with pytest.raises(UsageError, match=f"split {name} is not in the dataset: expected train, val1, val2"):
            data.split(name)
