"""The same three pictures in every format and layout are read as the same set; boxes worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.detect.data.dataset import DetectionDataset, Sample, remap_classes
from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset, read_all_files

#: Pictures are 100 × 50: a cat at (10, 5)–(30, 25) and a dog at (40, 0)–(100, 50) on train/a; a dog on val/b; val/c.
LINES = {"train/a": "0 0.2 0.3 0.2 0.4\n1 0.7 0.5 0.6 1\n", "val/b": "1 0.5 0.5 0.5 0.5\n", "val/c": ""}
CAT, LARGE_DOG, DOG = (10, 5, 30, 25), (40, 0, 100, 50), (25, 12.5, 75, 37.5)


def is_the_set(data: DetectionDataset, splits: tuple[str, ...] = ("train", "val")) -> None:
    assert data.issues == ()
    assert data.splits == splits
    assert [one.path.stem for one in data.samples] == ["a", "b", "c"]
    assert [one.split for one in data.samples] == [splits[0], splits[-1], splits[-1]]
    assert [one.size for one in data.samples] == [(50, 100)] * 3
    assert [one.class_ids.tolist() for one in data.samples] == [[0, 1], [1], []]
    for one, boxes in zip(data.samples, ([CAT, LARGE_DOG], [DOG], []), strict=True):
        np.testing.assert_allclose(one.boxes, np.reshape(boxes, (-1, 4)), atol=1e-9)


def test_yolo_described_by_a_yaml(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, LINES))
    is_the_set(data)
    assert (data.format, data.has_class_names, data.classes) == ("yolo", True, ("cat", "dog"))
    is_the_set(load_detection_dataset(tmp_path / "data.yaml"))


DESCRIPTIONS = {
    "path and numbered names": "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}",
    "another path": "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]",
    "a script nobody runs": "train: images/train\nval: images/val\nnames: [cat, dog]\ndownload: rm -rf ~",
    "several folders": "train: [images/train]\nval: [images/val]\nnames: [cat, dog]",
    "one picture": "train: images/train/a.png\nval: images/val\nnames: [cat, dog]",
    "folders above": "train: ../images/train\nval: ../images/val\nnames: [cat, dog]",
    "a list": "train: train.txt\nval: images/val\nnames: [cat, dog]",
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_yaml_in_its_dialects(tmp_path: Path, case: str) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    (folder / "train.txt").write_text("./images/train/a.png\n")
    (folder / "data.yaml").write_text(DESCRIPTIONS[case])
    is_the_set(load_detection_dataset(folder))


def test_yolo_folders_without_a_yaml(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, LINES, names=None))
    is_the_set(data)
    assert (data.has_class_names, data.classes) == (False, ("0", "1"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_detection_dataset(tmp_path).classes == ("cat", "dog")


def test_yolo_with_the_split_outside(tmp_path: Path) -> None:
    for seed, (place, lines) in enumerate(LINES.items()):
        split, name = place.split("/")
        make_image(tmp_path / split / "images" / f"{name}.png", seed)
        (tmp_path / split / "labels").mkdir(exist_ok=True)
        (tmp_path / split / "labels" / f"{name}.txt").write_text(lines)
    is_the_set(load_detection_dataset(tmp_path))


def test_yolo_with_labels_beside_the_pictures(tmp_path: Path) -> None:
    for seed, (place, lines) in enumerate(LINES.items()):
        picture = make_image(tmp_path / f"{place.split('/')[1]}.png", seed)
        picture.with_suffix(".txt").write_text(lines)
    is_the_set(load_detection_dataset(tmp_path), ("",))


def test_polygons_become_the_boxes_around_them(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": "1 0.25 0.5 0.5 0.25 0.75 0.75\n", "val/b": ""})
    np.testing.assert_allclose(load_detection_dataset(folder, "train").samples[0].boxes, [(25, 12.5, 75, 37.5)])


def coco(pictures: dict[str, list[tuple[int, tuple[float, ...]]]]) -> str:
    """COCO's JSON: category ids 5 and 90, image ids from 100, boxes as left, top, width, height."""
    images = [{"id": 100 + index, "file_name": name} for index, name in enumerate(pictures)]
    found = [
        (100 + index, category, (box[0], box[1], box[2] - box[0], box[3] - box[1]))
        for index, boxes in enumerate(pictures.values())
        for category, box in boxes
    ]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box}
        for number, (image, category, box) in enumerate(found)
    ]
    categories = [{"id": 90, "name": "dog"}, {"id": 5, "name": "cat"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def test_coco(tmp_path: Path) -> None:
    for seed, place in enumerate(LINES):
        make_image(tmp_path / f"{place}.png", seed)
    (tmp_path / "annotations").mkdir()
    said = {"train": {"a.png": [(5, CAT), (90, LARGE_DOG)]}, "val": {"b.png": [(90, DOG)], "c.png": []}}
    for split, pictures in said.items():
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(coco(pictures))
        (tmp_path / "annotations" / f"person_keypoints_{split}.json").write_text(coco(pictures))
    data = load_detection_dataset(tmp_path)
    is_the_set(data)
    assert (data.format, data.classes) == ("coco", ("cat", "dog"))
    assert load_detection_dataset(tmp_path / "annotations" / "instances_val.json").splits == ("val",)


def test_coco_in_a_folder_for_each_split(tmp_path: Path) -> None:
    said = {"train": {"a.png": [(5, CAT), (90, LARGE_DOG)]}, "valid": {"b.png": [(90, DOG)], "c.png": []}}
    for split, pictures in said.items():
        for seed, name in enumerate(pictures):
            make_image(tmp_path / split / name, seed)
        (tmp_path / split / "_annotations.coco.json").write_text(coco(pictures))
    is_the_set(load_detection_dataset(tmp_path), ("train", "valid"))


def test_crowds_are_marked(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    said = json.loads(coco({"a.png": [(5, CAT), (90, LARGE_DOG)]}))
    said["annotations"][1]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(said))
    assert load_detection_dataset(tmp_path).samples[0].is_crowd.tolist() == [False, True]


def test_coco_files_that_disagree_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(coco({}))
    (tmp_path / "val.json").write_text(coco({}).replace('"cat"', '"horse"'))
    with pytest.raises(ChromaboxError, match=r"val\.json: its categories differ"):
        load_detection_dataset(tmp_path)


def voc_set(folder: Path) -> Path:
    """VOC counts pixels from 1, its corners inside: left and top are one more than here."""
    for seed, name in enumerate("abc"):
        make_image(folder / "JPEGImages" / f"{name}.png", seed)
    (folder / "Annotations").mkdir()
    said = {"a": (("cat", (11, 6, 30, 25)), ("dog", (41, 1, 100, 50))), "b": (("dog", (26, 13.5, 75, 37.5)),), "c": ()}
    for name, objects in said.items():
        (folder / "Annotations" / f"{name}.xml").write_text(make_voc_xml(*objects))
    return folder


def test_voc_with_lists(tmp_path: Path) -> None:
    lists = voc_set(tmp_path) / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\nc\n")
    (lists / "dog_train.txt").write_text("b -1\nc 1\n")
    data = load_detection_dataset(tmp_path)
    is_the_set(data)
    assert (data.format, data.classes) == ("voc", ("cat", "dog"))


def test_voc_with_tables(tmp_path: Path) -> None:
    voc_set(tmp_path)
    (tmp_path / "train_labels.csv").write_text("filename,class\na.jpg,cat\na.jpg,dog\n")
    (tmp_path / "test_labels.csv").write_text("filename,class\nb.jpg,dog\nc.jpg,dog\n")
    (tmp_path / "labels.csv").write_text("filename,class\na.jpg,cat\nb.jpg,dog\n")
    is_the_set(load_detection_dataset(tmp_path), ("train", "test"))


def test_turned_pictures_are_as_they_are_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 100)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 1\n")
    one = load_detection_dataset(tmp_path).samples[0]
    assert one.size == (50, 100)
    np.testing.assert_allclose(one.boxes, [(25, 0, 75, 50)])


def test_a_split_is_taken_or_refused(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    assert [one.path.stem for one in load_detection_dataset(folder, "val").samples] == ["b", "c"]
    with pytest.raises(UsageError, match="split: test is not in the data; there are train, val"):
        load_detection_dataset(folder, "test")


def test_known_sets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_yolo_dataset(tmp_path / "coco128", LINES)
    monkeypatch.chdir(tmp_path / "coco128")
    monkeypatch.setenv("CHROMABOX_MIRROR", tmp_path.as_uri())
    is_the_set(load_detection_dataset("coco128"))


def test_nothing_is_written(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    before = read_all_files(folder)
    load_detection_dataset(folder)
    assert read_all_files(folder) == before


def labelled(classes: list[int]) -> Sample:
    boxes = np.arange(4.0 * len(classes)).reshape(-1, 4)
    return Sample(Path("a.png"), boxes, np.array(classes, np.int64), (50, 100))


def test_classes_are_matched_by_name() -> None:
    data = DetectionDataset((labelled([0, 1, 2]),), ("Hot-Dog", "raccoon", "cat"), ("",))
    own, unknown = remap_classes(data, ("cat", "dog", "hot dog"))
    assert unknown == ("raccoon",)
    assert own.samples[0].class_ids.tolist() == [2, 0]
    np.testing.assert_array_equal(own.samples[0].boxes, labelled([0, 1, 2]).boxes[[0, 2]])
    with pytest.raises(ChromaboxError, match="knows none of the data's classes"):
        remap_classes(data, ("boat",))


def test_unnamed_classes_count_as_the_nets() -> None:
    data = DetectionDataset((labelled([0, 2]),), ("0", "1", "2"), ("",), has_class_names=False)
    own, unknown = remap_classes(data, ("cat", "dog", "boat", "bird"))
    assert (own.classes, own.has_class_names, unknown) == (("cat", "dog", "boat", "bird"), True, ())
    assert own.samples[0].class_ids.tolist() == [0, 2]
    with pytest.raises(ChromaboxError, match="numbers up to 2; the net knows 2 classes"):
        remap_classes(data, ("cat", "dog"))


def test_other_json_is_passed_over_and_broken_labels_are_not(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    (folder / "data.yaml").unlink()
    (folder / "settings.json").write_text('{"images": 3}')
    (folder / "empty.json").touch()
    is_the_set(load_detection_dataset(folder))
    (folder / "labels.json").write_text('{"images": [], "annotations": [], "categories": [')
    with pytest.raises(ChromaboxError, match=r"labels\.json: cannot be read as JSON"):
        load_detection_dataset(folder)
