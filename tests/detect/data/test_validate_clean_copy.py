"""A cleaned copy is valid, lists its changes, and is written atomically; the original is unchanged."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset, write_clean_copy
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image, make_voc_xml, make_yolo_dataset, read_all_files

DOG = "1 0.5 0.5 0.5 0.4\n"


def make_invalid_dataset(folder: Path) -> Path:
    """a has two invalid lines; b is truncated; the training image c equals the validation image d."""
    lines = f"{DOG}{DOG}1 0.9 0.5 0.4 0.2\n"
    make_yolo_dataset(folder, {"train/a": lines, "train/b": DOG, "train/c": DOG, "val/d": DOG, "val/e": ""})
    images = folder / "images"
    content = (images / "train" / "b.png").read_bytes()
    (images / "train" / "b.png").write_bytes(content[: len(content) // 2])
    (images / "val" / "d.png").write_bytes((images / "train" / "c.png").read_bytes())
    return folder


def test_copy_of_an_invalid_dataset_is_valid(tmp_path: Path) -> None:
    source = make_invalid_dataset(tmp_path / "data")
    before = read_all_files(source)
    copy = tmp_path / "new" / "copy"
    result = write_clean_copy(validate_dataset(source), source, copy)
    assert read_all_files(source) == before
    validated = validate_dataset(copy)
    assert validated.is_valid
    assert validated.data.classes == ("cat", "dog")
    assert [(sample.split, sample.path.name) for sample in validated.data.samples] == [
        ("train", "a.png"),
        ("val", "d.png"),
        ("val", "e.png"),
    ]
    np.testing.assert_allclose(validated.data.samples[0].boxes, [(25, 15, 75, 35), (70, 20, 100, 30)], atol=1e-5)
    assert (result["pictures"], result["boxes"]) == (3, 3)
    assert json.loads((copy / "repair.json").read_text()) == result
    locations = [line.split(": ")[0].removeprefix(str(source)) for line in result["changes"]]
    assert locations == ["/labels/train/a.txt:2", "/labels/train/a.txt:3", "/images/train/b.png", "/images/train/c.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["copy"]


def test_copy_shares_no_file_with_the_original(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    copy = tmp_path / "copy"
    write_clean_copy(validate_dataset(source), source, copy)
    names = ("images/train/a.png", "labels/train/a.txt")
    assert not [name for name in names if os.path.samefile(source / name, copy / name)]


def test_output_that_exists_or_is_inside_the_source_is_rejected(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    report = validate_dataset(source)
    before = read_all_files(tmp_path)
    for output, message in ((tmp_path, "exists"), (source / "deep" / "copy", "is inside"), (source, "exists")):
        with pytest.raises(UsageError, match=message):
            write_clean_copy(report, source, output)
    (tmp_path / "file").touch()
    with pytest.raises(ChromaboxError, match="copy: cannot be written"):
        write_clean_copy(report, source, tmp_path / "file" / "copy")
    (tmp_path / "file").unlink()
    assert read_all_files(tmp_path) == before


def test_images_with_the_same_name_are_both_kept(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/one/a": DOG, "train/two/a": "", "val/b": DOG})
    copy = tmp_path / "copy"
    write_clean_copy(validate_dataset(source), source, copy)
    data = load_detection_dataset(copy, "train")
    assert [(sample.path.name, len(sample.boxes)) for sample in data.samples] == [("a-2.png", 0), ("a.png", 1)]


def repair(source: Path, copy: Path) -> tuple[list[tuple[str, str, int]], list[str]]:
    """Return split, name and number of boxes of the images in a cleaned copy, and the lines of its report."""
    result = write_clean_copy(validate_dataset(source), source, copy)
    samples = load_detection_dataset(copy).samples
    assert not validate_dataset(copy).leaks
    return [(sample.split, sample.path.name, len(sample.boxes)) for sample in samples], result["changes"]


def test_one_of_each_image_is_kept_if_training_and_validation_images_are_the_same(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "train/b": DOG})
    (source / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    report = validate_dataset(source)
    assert not report.is_valid
    assert report.issue_counts == {"picture in several splits": 1}
    samples, changes = repair(source, tmp_path / "copy")
    assert samples == [("train", "a.png", 1), ("train", "b.png", 1)]
    path = source / "images" / "train" / "a.png"
    assert f"{path}: exact duplicate of {path} in train; dropped" in changes


def test_validation_images_are_kept_if_training_images_are_left(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "train/b": DOG, "train/c": DOG, "val/d": ""})
    for name in ("train/b", "val/d"):
        shutil.copy(source / "images" / "train" / "a.png", source / "images" / f"{name}.png")
    (source / "data.yaml").write_text("train: images/train\nval: [images/val, images/train]\nnames: [cat, dog]\n")
    samples, _ = repair(source, tmp_path / "all in val")
    assert samples == [("train", "a.png", 1), ("train", "c.png", 1)]
    (source / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    samples, changes = repair(source, tmp_path / "copy")
    assert samples == [("train", "c.png", 1), ("val", "d.png", 0)]
    kept = source / "images" / "val" / "d.png"
    dropped = [line for line in changes if "exact duplicate" in line]
    assert dropped == [
        f"{source}/images/train/{name}.png: exact duplicate of {kept} in val, whose labels differ; dropped"
        for name in "ab"
    ]


def test_dataset_without_splits_remains_without_splits(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_image(tmp_path / "data" / f"{name}.png", seed)
        xml = make_voc_xml((f"{name} &amp; b", (1, 1, 20, 20))).replace("a.png", f"{name}.png")
        (tmp_path / "data" / f"{name}.xml").write_text(xml)
    samples, changes = repair(tmp_path / "data", tmp_path / "copy")
    assert (samples, changes) == ([("", "a.png", 1), ("", "b.png", 1)], [])
    assert load_detection_dataset(tmp_path / "copy").classes == ("a & b", "b & b")


def test_images_are_renamed_if_their_names_would_not_be_found_again(tmp_path: Path) -> None:
    make_image(tmp_path / "data" / "a.png").rename(tmp_path / "data" / "a.image")
    make_image(tmp_path / "data" / "x" / "b.png", 1).rename(tmp_path / "data" / "x" / ".b.png")
    images = [{"id": 1, "file_name": "a.image"}, {"id": 2, "file_name": "x/.b.png"}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "data" / "labels.json").write_text(json.dumps(content))
    samples, changes = repair(tmp_path / "data", tmp_path / "copy")
    assert samples == [("", "a.image.png", 0), ("", "b.png", 0)]
    assert changes == [
        f"{tmp_path}/data/a.image: copied as images/a.image.png",
        f"{tmp_path}/data/x/.b.png: copied as images/b.png",
    ]


def test_copy_that_is_not_read_back_equal_is_not_written(tmp_path: Path) -> None:
    """classes.txt has one name per line, so that a name with a line break cannot be stored."""
    source = tmp_path / "data"
    make_image(source / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat\ndog"}]}
    annotations = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}]
    (source / "labels.json").write_text(json.dumps(content | {"annotations": annotations}))
    with pytest.raises(ChromaboxError, match=r"the copy in .*/copy would differ from the dataset .* was not written"):
        write_clean_copy(validate_dataset(source), source, tmp_path / "copy")
    report = validate_dataset(make_yolo_dataset(tmp_path / "two", {"train/a": DOG, "val/b": DOG}))
    make_image(tmp_path / "two" / "images" / "val" / "b.png", 1, (40, 40))  # The image changes after the check.
    with pytest.raises(ChromaboxError, match=r"images/val/b\.png: the split, the size or the boxes differ"):
        write_clean_copy(report, tmp_path / "two", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "two"]


def test_copy_without_images_is_not_written(tmp_path: Path) -> None:
    source = make_yolo_dataset(tmp_path / "data", {"train/a": DOG, "val/b": DOG})
    for path in (source / "images").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ChromaboxError, match="contains no valid image"):
        write_clean_copy(validate_dataset(source), source, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.tuples(*(st.floats(0.1, 0.9, allow_nan=False) for _ in range(2)), *(st.floats(0.02, 0.2) for _ in range(2))),
        max_size=5,
    )
)
def test_valid_boxes_are_unchanged(
    tmp_path_factory: pytest.TempPathFactory, labels: list[tuple[float, float, float, float]]
) -> None:
    folder = tmp_path_factory.mktemp("valid")
    lines = "".join(f"1 {x!r} {y!r} {width!r} {height!r}\n" for x, y, width, height in labels)
    source = make_yolo_dataset(folder / "data", {"train/a": lines, "val/b": DOG})
    report = validate_dataset(source)
    write_clean_copy(report, source, folder / "copy")
    original, copied = report.data.samples[0], load_detection_dataset(folder / "copy", "train").samples[0]
    np.testing.assert_allclose(copied.boxes, original.boxes, atol=1e-5)
