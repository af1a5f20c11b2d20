"""The same three images are loaded from all formats and layouts; the expected boxes are computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.detect.data.dataset import DetectionDataset, Sample, remap_classes
from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset, read_all_files

#: Images of 100 × 50: train/a has a cat at (10, 5)–(30, 25) and a dog at (40, 0)–(100, 50); val/b a dog; val/c nothing.
LINES = {"train/a": "0 0.2 0.3 0.2 0.4\n1 0.7 0.5 0.6 1\n", "val/b": "1 0.5 0.5 0.5 0.5\n", "val/c": ""}
CAT, LARGE_DOG, DOG = (10, 5, 30, 25), (40, 0, 100, 50), (25, 12.5, 75, 37.5)


def check_dataset(data: DetectionDataset, splits: tuple[str, ...] = ("train", "val")) -> None:
    assert data.issues == ()
    assert data.splits == splits
    assert [sample.path.stem for sample in data.samples] == ["a", "b", "c"]
    assert [sample.split for sample in data.samples] == [splits[0], splits[-1], splits[-1]]
    assert [sample.size for sample in data.samples] == [(50, 100)] * 3
    assert [sample.class_ids.tolist() for sample in data.samples] == [[0, 1], [1], []]
    for sample, boxes in zip(data.samples, ([CAT, LARGE_DOG], [DOG], []), strict=True):
        np.testing.assert_allclose(sample.boxes, np.reshape(boxes, (-1, 4)), atol=1e-9)


def test_yolo_with_yaml(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, LINES))
    check_dataset(data)
    assert (data.format, data.has_class_names, data.classes) == ("yolo", True, ("cat", "dog"))
    check_dataset(load_detection_dataset(tmp_path / "data.yaml"))


DESCRIPTIONS = {
    "path and numbered names": "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}",
    "another path": "path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames: [cat, dog]",
    "download script": "train: images/train\nval: images/val\nnames: [cat, dog]\ndownload: rm -rf ~",
    "several folders": "train: [images/train]\nval: [images/val]\nnames: [cat, dog]",
    "one image": "train: images/train/a.png\nval: images/val\nnames: [cat, dog]",
    "parent folders": "train: ../images/train\nval: ../images/val\nnames: [cat, dog]",
    "a list": "train: train.txt\nval: images/val\nnames: [cat, dog]",
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_yolo_yaml_variations(tmp_path: Path, case: str) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    (folder / "train.txt").write_text("./images/train/a.png\n")
    (folder / "data.yaml").write_text(DESCRIPTIONS[case])
    check_dataset(load_detection_dataset(folder))


def test_yolo_without_yaml(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, LINES, names=None))
    check_dataset(data)
    assert (data.has_class_names, data.classes) == (False, ("class 0", "class 1"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert load_detection_dataset(tmp_path).classes == ("cat", "dog")


def test_yolo_with_a_folder_for_each_split(tmp_path: Path) -> None:
    for seed, (path, lines) in enumerate(LINES.items()):
        split, name = path.split("/")
        make_image(tmp_path / split / "images" / f"{name}.png", seed)
        (tmp_path / split / "labels").mkdir(exist_ok=True)
        (tmp_path / split / "labels" / f"{name}.txt").write_text(lines)
    check_dataset(load_detection_dataset(tmp_path))


def test_yolo_with_labels_next_to_images(tmp_path: Path) -> None:
    for seed, (path, lines) in enumerate(LINES.items()):
        image_path = make_image(tmp_path / f"{path.split('/')[1]}.png", seed)
        image_path.with_suffix(".txt").write_text(lines)
    check_dataset(load_detection_dataset(tmp_path), ("",))


def test_polygons_become_their_bounding_boxes(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": "1 0.25 0.5 0.5 0.25 0.75 0.75\n", "val/b": ""})
    np.testing.assert_allclose(load_detection_dataset(folder, "train").samples[0].boxes, [(25, 12.5, 75, 37.5)])


def make_coco_json(boxes_by_image: dict[str, list[tuple[int, tuple[float, ...]]]]) -> str:
    """Return COCO JSON with category ids 5 and 90, image ids from 100, and boxes as left, top, width, height."""
    images = [{"id": 100 + index, "file_name": name} for index, name in enumerate(boxes_by_image)]
    rows = [
        (100 + index, category_id, (box[0], box[1], box[2] - box[0], box[3] - box[1]))
        for index, boxes in enumerate(boxes_by_image.values())
        for category_id, box in boxes
    ]
    annotations = [
        {"id": number, "image_id": image_id, "category_id": category_id, "bbox": box}
        for number, (image_id, category_id, box) in enumerate(rows)
    ]
    categories = [{"id": 90, "name": "dog"}, {"id": 5, "name": "cat"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def test_coco_with_annotations_folder(tmp_path: Path) -> None:
    for seed, path in enumerate(LINES):
        make_image(tmp_path / f"{path}.png", seed)
    (tmp_path / "annotations").mkdir()
    splits = {"train": {"a.png": [(5, CAT), (90, LARGE_DOG)]}, "val": {"b.png": [(90, DOG)], "c.png": []}}
    for split, boxes_by_image in splits.items():
        content = make_coco_json(boxes_by_image)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(content)
        (tmp_path / "annotations" / f"person_keypoints_{split}.json").write_text(content)
    data = load_detection_dataset(tmp_path)
    check_dataset(data)
    assert (data.format, data.classes) == ("coco", ("cat", "dog"))
    assert load_detection_dataset(tmp_path / "annotations" / "instances_val.json").splits == ("val",)


def test_coco_with_a_folder_for_each_split(tmp_path: Path) -> None:
    splits = {"train": {"a.png": [(5, CAT), (90, LARGE_DOG)]}, "valid": {"b.png": [(90, DOG)], "c.png": []}}
    for split, boxes_by_image in splits.items():
        for seed, name in enumerate(boxes_by_image):
            make_image(tmp_path / split / name, seed)
        (tmp_path / split / "_annotations.coco.json").write_text(make_coco_json(boxes_by_image))
    check_dataset(load_detection_dataset(tmp_path), ("train", "valid"))


def test_coco_crowds_are_marked(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    content = json.loads(make_coco_json({"a.png": [(5, CAT), (90, LARGE_DOG)]}))
    content["annotations"][1]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert load_detection_dataset(tmp_path).samples[0].is_crowd.tolist() == [False, True]


def test_coco_files_with_different_categories_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(make_coco_json({}))
    (tmp_path / "val.json").write_text(make_coco_json({}).replace('"cat"', '"horse"'))
    with pytest.raises(ChromaboxError, match=r"val\.json: the categories differ"):
        load_detection_dataset(tmp_path)


def make_voc_dataset(folder: Path) -> Path:
    """Write a VOC dataset. VOC counts pixels from 1 and includes corners, so left and top are larger by 1."""
    for seed, name in enumerate("abc"):
        make_image(folder / "JPEGImages" / f"{name}.png", seed)
    (folder / "Annotations").mkdir()
    objects_by_image = {
        "a": (("cat", (11, 6, 30, 25)), ("dog", (41, 1, 100, 50))),
        "b": (("dog", (26, 13.5, 75, 37.5)),),
        "c": (),
    }
    for name, objects in objects_by_image.items():
        (folder / "Annotations" / f"{name}.xml").write_text(make_voc_xml(*objects))
    return folder


def test_voc_with_lists(tmp_path: Path) -> None:
    lists = make_voc_dataset(tmp_path) / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\nc\n")
    (lists / "dog_train.txt").write_text("b -1\nc 1\n")
    data = load_detection_dataset(tmp_path)
    check_dataset(data)
    assert (data.format, data.classes) == ("voc", ("cat", "dog"))


def test_voc_with_tables(tmp_path: Path) -> None:
    make_voc_dataset(tmp_path)
    (tmp_path / "train_labels.csv").write_text("filename,class\na.jpg,cat\na.jpg,dog\n")
    (tmp_path / "test_labels.csv").write_text("filename,class\nb.jpg,dog\nc.jpg,dog\n")
    (tmp_path / "labels.csv").write_text("filename,class\na.jpg,cat\nb.jpg,dog\n")
    check_dataset(load_detection_dataset(tmp_path), ("train", "test"))


def test_boxes_refer_to_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 100)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 1\n")
    sample = load_detection_dataset(tmp_path).samples[0]
    assert sample.size == (50, 100)
    np.testing.assert_allclose(sample.boxes, [(25, 0, 75, 50)])


def test_split_is_selected_or_unknown_split_is_rejected(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    assert [sample.path.stem for sample in load_detection_dataset(folder, "val").samples] == ["b", "c"]
    with pytest.raises(UsageError, match="split test is not in the dataset: expected train, val"):
        load_detection_dataset(folder, "test")


def test_known_dataset_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_yolo_dataset(tmp_path / "coco128", LINES)
    monkeypatch.chdir(tmp_path / "coco128")
    monkeypatch.setenv("CHROMABOX_MIRROR", tmp_path.as_uri())
    check_dataset(load_detection_dataset("coco128"))


def test_loading_does_not_modify_files(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    before = read_all_files(folder)
    load_detection_dataset(folder)
    assert read_all_files(folder) == before


def make_sample(class_ids: list[int]) -> Sample:
    boxes = np.arange(4.0 * len(class_ids)).reshape(-1, 4)
    return Sample(Path("a.png"), boxes, np.array(class_ids, np.int64), (50, 100))


def test_classes_are_matched_by_name() -> None:
    data = DetectionDataset((make_sample([0, 1, 2]),), ("Hot-Dog", "raccoon", "cat"), ("",))
    remapped, unknown = remap_classes(data, ("cat", "dog", "hot dog"))
    assert unknown == ("raccoon",)
    assert remapped.samples[0].class_ids.tolist() == [2, 0]
    np.testing.assert_array_equal(remapped.samples[0].boxes, make_sample([0, 1, 2]).boxes[[0, 2]])
    with pytest.raises(ChromaboxError, match="the model has none of the dataset's classes"):
        remap_classes(data, ("boat",))


def test_classes_without_names_are_matched_by_number() -> None:
    data = DetectionDataset((make_sample([0, 2]),), ("0", "1", "2"), ("",), has_class_names=False)
    remapped, unknown = remap_classes(data, ("cat", "dog", "boat", "bird"))
    assert (remapped.classes, remapped.has_class_names, unknown) == (("cat", "dog", "boat", "bird"), True, ())
    assert remapped.samples[0].class_ids.tolist() == [0, 2]
    with pytest.raises(ChromaboxError, match="class numbers up to 2; expected numbers below 2, as in the model"):
        remap_classes(data, ("cat", "dog"))


def test_other_json_is_ignored_and_invalid_annotations_are_rejected(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, LINES)
    (folder / "data.yaml").unlink()
    (folder / "settings.json").write_text('{"images": 3}')
    (folder / "empty.json").touch()
    check_dataset(load_detection_dataset(folder))
    (folder / "labels.json").write_text('{"images": [], "annotations": [], "categories": [')
    with pytest.raises(ChromaboxError, match=r"labels\.json: cannot be read as JSON"):
        load_detection_dataset(folder)
