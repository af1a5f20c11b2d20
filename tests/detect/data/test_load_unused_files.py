"""Files in the folder of a dataset that are not part of it are reported: labels, images, other formats, repeated ids.

The base is a YOLO dataset with the images train/a and val/b; the added files follow the definitions of the formats.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset

DOG = "1 0.5 0.5 0.5 0.4\n"
#: The box of ``DOG`` in an image of 100 × 50 pixels, as left, top, width and height, and as VOC corners.
COCO_DOG, VOC_DOG = [25, 15, 50, 20], (26, 16, 75, 35)


def coco(file_names: list[str], box: list[float] | None = None, **changes: Any) -> str:
    """Return COCO JSON with a dog in each image."""
    images: list[dict[str, Any]] = [{"id": index, "file_name": name} for index, name in enumerate(file_names)]
    annotations = [
        {"id": index, "image_id": index, "category_id": 1, "bbox": box or COCO_DOG} for index in range(len(images))
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories} | changes)


def voc(name: str, *objects: tuple[str, tuple[float, float, float, float]]) -> str:
    """Return a VOC annotation of the image NAME.png."""
    return make_voc_xml(*objects).replace("a.png", f"{name}.png")


def write(name: str, content: str | bytes = "") -> Callable[[Path], object]:
    """Return a function that writes a file to a folder, which is created."""

    def function(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return function


def image(name: str, seed: int = 9) -> Callable[[Path], object]:
    return lambda folder: make_image(folder / name, seed)


def move(source: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / source).rename(folder / target)


LABEL, UNUSED, OTHER = "label without picture", "unused picture", "unused annotation"
#: How the dataset is changed, and the type, the file and whether it is dropped of each issue.
CASES: dict[str, tuple[Callable[[Path], object], list[tuple[str, str, bool]]]] = {
    "nothing": (lambda folder: None, []),
    "label without image": (write("labels/train/z.txt", DOG), [(LABEL, "labels/train/z.txt", True)]),
    "empty label without image": (write("labels/train/z.txt"), [(LABEL, "labels/train/z.txt", True)]),
    "label next to an image elsewhere": (write("z.txt", DOG), [(LABEL, "z.txt", True)]),
    "image without label": (image("images/val/z.png"), [("picture without label", "images/val", False)]),
    "label with another name": (
        move("labels/val/b.txt", "labels/val/label_b.txt"),
        [("picture without label", "images/val", False), (LABEL, "labels/val/label_b.txt", True)],
    ),
    "image in no split": (image("images/extra/z.png"), [(UNUSED, "images/extra/z.png", True)]),
    "test image of the same name": (image("images/test/a.png"), [(UNUSED, "images/test/a.png", True)]),
    "image without suffix": (
        lambda folder: shutil.copy(folder / "images/train/a.png", folder / "images/train/z"),
        [(UNUSED, "images/train/z", True)],
    ),
    "JPEG XL": (write("images/train/z.jxl", b"\xff\x0a" + bytes(20)), [(UNUSED, "images/train/z.jxl", True)]),
    "Photoshop": (write("images/z.psd", b"8BPS" + bytes(20)), [(UNUSED, "images/z.psd", True)]),
    "camera raw file": (write("images/z.cr2", b"II*\0\0\0\0\0CR"), [(UNUSED, "images/z.cr2", True)]),
    "LabelMe file": (write("images/train/a.json", '{"shapes": []}'), [(OTHER, "images/train/a.json", True)]),
    "VOC of one more image": (
        lambda folder: (
            make_image(folder / "images" / "train" / "z.png", 9),
            write("images/train/z.xml", voc("z", ("dog", VOC_DOG)))(folder),
        ),
        [(OTHER, "images/train/z.png", True)],
    ),
    "equal VOC": (write("images/train/a.xml", voc("a", ("dog", VOC_DOG))), []),
    "VOC of another class": (
        write("images/train/a.xml", voc("a", ("cat", VOC_DOG))),
        [(OTHER, "images/train/a.png", False)],
    ),
    "VOC with another box": (
        write("images/train/a.xml", voc("a", ("dog", (26, 16, 75, 45)))),
        [(OTHER, "images/train/a.png", False)],
    ),
    "VOC with one more box": (
        write("images/train/a.xml", voc("a", ("dog", VOC_DOG), ("cat", (1, 1, 9, 9)))),
        [(OTHER, "images/train/a.png", False)],
    ),
    "damaged VOC": (write("images/train/a.xml", "<annotation>"), [("unreadable label", "images/train/a.xml", True)]),
    "equal COCO": (write("labels.json", coco(["train/a.png", "val/b.png"])), []),
    "COCO with another box": (
        write("labels.json", coco(["val/b.png"], [0, 0, 9, 9])),
        [(OTHER, "images/val/b.png", False)],
    ),
    "damaged COCO": (
        write("labels.json", coco([])[:-1]),
        [(OTHER, "labels.json", True)],
    ),
    "masks": (image("masks/a.png"), []),
    "hidden files": (image("images/.thumbnails/z.png"), []),
    "other files": (
        lambda folder: [
            write(name, "text")(folder) for name in ("README.md", "LICENSE", "labels/train.cache", "settings.json")
        ],
        [],
    ),
    "linked folder": (
        lambda folder: (
            image("elsewhere/z.png")(folder.parent),
            (folder / "images" / "more").symlink_to(folder.parent / "elsewhere"),
        ),
        [("unused picture", "images/more/z.png", True)],
    ),
    "broken link": (lambda folder: (folder / "images" / "z.png").symlink_to("nothing"), []),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_belong_to_the_dataset_is_reported(tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    folder = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    change(folder)
    for source in (folder, folder / "data.yaml"):
        data = load_detection_dataset(source)
        issues = [(issue.issue_type, str(issue.path.relative_to(folder)), issue.dropped) for issue in data.issues]
        if source == folder:
            assert issues == expected
        elif "VOC" not in case:  # Given a file, other formats and other folders are not searched.
            found = [row for row in expected if row[0] != OTHER and row[1].startswith(("images", "labels/"))]
            assert [row for row in issues if row[0] != OTHER] == found
    is_note = {issue_type for issue_type, *_ in expected} <= {"picture without label"}
    assert validate_dataset(folder).is_valid == is_note


def test_only_one_of_several_descriptions_does_not_report_the_images_of_the_others(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": DOG, "val/b": DOG, "other/c": DOG})
    assert {issue.path.name for issue in load_detection_dataset(folder / "data.yaml").issues} == {"c.png", "c.txt"}
    (folder / "other.yaml").write_text("train: images/other\nval: images/val\nnames: [cat, dog]\n")
    assert load_detection_dataset(folder / "data.yaml").issues == ()
    with pytest.raises(UsageError, match="several dataset descriptions"):
        load_detection_dataset(folder)


def test_format_that_labels_the_most_images_is_used(tmp_path: Path) -> None:
    """One XML among five YOLO labels is not used, and its image is not trained on as an image without objects."""
    for seed, name in enumerate("abcdef"):
        make_image(tmp_path / f"{name}.png", seed)
        (tmp_path / f"{name}.txt").write_text(DOG)
    (tmp_path / "f.txt").unlink()
    (tmp_path / "f.xml").write_text(voc("f", ("dog", VOC_DOG)))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = load_detection_dataset(tmp_path)
    assert (data.format, [sample.path.stem for sample in data.samples]) == ("yolo", list("abcde"))
    assert [(issue.issue_type, issue.path.name, issue.dropped) for issue in data.issues] == [(OTHER, "f.png", True)]
    for name in "abcde":
        (tmp_path / f"{name}.xml").write_text(voc(name, ("dog", VOC_DOG)))
    data = load_detection_dataset(tmp_path)
    assert (data.format, len(data.samples), data.issues) == ("voc", 6, ())


def test_images_without_annotation_are_reported(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.png", "b.png", "c.jxl")):
        make_image(tmp_path / f"{name}.png", seed).rename(tmp_path / name)
    (tmp_path / "a.xml").write_text(voc("a", ("dog", VOC_DOG)))
    issues = load_detection_dataset(tmp_path).issues
    assert [(issue.issue_type, issue.path.name) for issue in issues] == [(UNUSED, "b.png"), (UNUSED, "c.jxl")]
    (tmp_path / "a.xml").unlink()
    (tmp_path / "labels.json").write_text(coco(["a.png"]))
    for source in (tmp_path, tmp_path / "labels.json"):
        names = [issue.path.name for issue in load_detection_dataset(source).issues]
        assert names == (["b.png", "c.jxl"] if source == tmp_path else [])


def test_outdated_coco_file_is_reported_but_not_those_of_other_tasks(tmp_path: Path) -> None:
    make_image(tmp_path / "train" / "a.png")
    for name in ("instances_train", "person_keypoints_train", "old"):
        write(f"annotations/{name}.json", coco(["a.png"]))(tmp_path)
    issues = load_detection_dataset(tmp_path).issues
    assert [(issue.issue_type, issue.path.name) for issue in issues] == [(OTHER, "old.json")]


def test_repeated_ids_in_coco_are_reported(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        make_image(tmp_path / f"{name}.png", seed)
    names = ["a.png", "b.png", "c.png"]
    images = [{"id": image_id, "file_name": name} for image_id, name in zip((0, 0, 1), names, strict=True)]
    (tmp_path / "labels.json").write_text(coco(names, images=images))
    data = load_detection_dataset(tmp_path)
    assert [sample.path.name for sample in data.samples] == ["c.png"]
    dropped = [issue for issue in data.issues if issue.issue_type == "ambiguous picture"]
    assert [(issue.path.name, issue.dropped) for issue in dropped] == [("a.png", True), ("b.png", True)]
    annotations = [{"id": 4, "image_id": image_id, "category_id": 1, "bbox": COCO_DOG} for image_id in range(3)]
    (tmp_path / "labels.json").write_text(coco(names, annotations=annotations))
    data = load_detection_dataset(tmp_path)
    assert [len(sample.boxes) for sample in data.samples] == [1, 1, 1]
    assert [(issue.issue_type, issue.dropped) for issue in data.issues] == [("duplicate id", False)]
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    (tmp_path / "labels.json").write_text(coco(names, categories=categories))
    with pytest.raises(ChromaboxError, match=r"labels\.json: several categories have the same id"):
        load_detection_dataset(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read every folder")
def test_folder_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": DOG, "val/b": DOG})
    (folder / "more").mkdir(mode=0)
    assert [issue.issue_type for issue in load_detection_dataset(folder).issues] == ["unused folder"]
