"""Images of a run in datasets that were moved or changed; SHA-256 of files by hashlib."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.training.batches import DataSplits, split_dataset
from chromabox.detect.training.run_images import RunImages, find_trained_images
from chromabox.errors import ChromaboxError
from detection_fixtures import make_image, make_yolo_dataset

DOG = "1 0.5 0.5 0.4 0.6\n"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    labels = {"train/a": DOG, "train/b": DOG, "train/c": DOG + "0 0.3 0.3 0.2 0.2\n", "val/x": DOG, "val/y": DOG}
    return make_yolo_dataset(tmp_path / "set", labels)


@pytest.fixture
def splits_file(dataset: Path, tmp_path: Path) -> Path:
    split_dataset(load_detection_dataset(dataset), 0, early_stopping=False).images.write(tmp_path / "splits.json")
    return tmp_path / "splits.json"


def test_file_contains_the_hash_of_each_image(dataset: Path, splits_file: Path) -> None:
    (first, *_) = json.loads(splits_file.read_text())["train"]
    assert first["path"] == str(dataset / "images/train/a.png")
    assert first["sha256"] == hashlib.sha256((dataset / "images/train/a.png").read_bytes()).hexdigest()


def test_moved_and_renamed_images_are_recognised(dataset: Path, splits_file: Path, tmp_path: Path) -> None:
    original = DataSplits.load(splits_file, load_detection_dataset(dataset))
    shutil.move(dataset, tmp_path / "moved")
    for folder, suffix in (("images", "png"), ("labels", "txt")):
        path = tmp_path / "moved" / folder / "train"
        (path / f"a.{suffix}").rename(path / f"renamed.{suffix}")
    moved = DataSplits.load(splits_file, load_detection_dataset(tmp_path / "moved"))
    assert [sample.path.name for sample in moved.train.samples] == ["renamed.png", "b.png", "c.png"]
    assert all(sample.path.is_relative_to(tmp_path / "moved") for sample in (*moved.train.samples, *moved.val.samples))
    assert moved.fingerprint == original.fingerprint


def test_identical_images_keep_their_labels_and_places(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(
        tmp_path / "set", {"train/a": DOG, "train/b": DOG + "0 0.3 0.3 0.2 0.2\n", "val/a": DOG}
    )
    for name in ("train/b", "val/a"):
        make_image(dataset / "images" / f"{name}.png", seed=0)  # the image of train/a
    split_dataset(load_detection_dataset(dataset), 0, early_stopping=False).images.write(tmp_path / "splits.json")
    shutil.move(dataset, tmp_path / "moved")
    splits = DataSplits.load(tmp_path / "splits.json", load_detection_dataset(tmp_path / "moved"))
    assert [f"{sample.path.parent.name}/{sample.path.name}" for sample in splits.train.samples] == [
        "train/a.png",
        "train/b.png",
    ]
    assert [len(sample.boxes) for sample in splits.train.samples] == [1, 2]
    assert splits.val.samples[0].path == tmp_path / "moved/images/val/a.png"


def _remove(dataset: Path) -> None:
    (dataset / "images/train/b.png").unlink()


def _change_image(dataset: Path) -> None:
    make_image(dataset / "images/train/b.png", seed=9)


def _change_labels(dataset: Path) -> None:
    (dataset / "labels/train/b.txt").write_text("1 0.5 0.5 0.4 0.5\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, r"missing images: 1 \(.*b\.png\); restore the dataset or start a new run"),
        (_change_image, r"changed images: 1 \(.*b\.png\)"),
        (_change_labels, r"images with changed labels: 1 \(.*b\.png\)"),
    ],
)
def test_changes_of_the_dataset_are_named(change: object, message: str, dataset: Path, splits_file: Path) -> None:
    change(dataset)
    with pytest.raises(ChromaboxError, match=rf"splits\.json: the dataset has changed since the run .*: {message}"):
        DataSplits.load(splits_file, load_detection_dataset(dataset))


def test_added_images_are_not_used(dataset: Path, splits_file: Path, messages: list[str]) -> None:
    make_image(dataset / "images/train/new.png", seed=9)
    splits = DataSplits.load(splits_file, load_detection_dataset(dataset))
    assert len(splits.train.samples) == 3
    assert messages == [
        f"images added since the run was started, which are not used: 1 ({dataset}/images/train/new.png)"
    ]


def test_images_of_unused_splits_are_not_added_images(tmp_path: Path, messages: list[str]) -> None:
    dataset = make_yolo_dataset(tmp_path / "set", {"train/a": DOG, "val/x": DOG, "test/z": DOG})
    (dataset / "data.yaml").write_text("train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]\n")
    data = load_detection_dataset(dataset)
    split_dataset(data, 0, early_stopping=False).images.write(tmp_path / "splits.json")
    DataSplits.load(tmp_path / "splits.json", data)
    assert messages == []


def test_files_of_earlier_versions_contain_only_paths(dataset: Path, tmp_path: Path) -> None:
    data = load_detection_dataset(dataset)
    paths = {split: [str(sample.path) for sample in data.split(split).samples] for split in ("train", "val")}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**paths, "early_stopping": None, "warnings": ["one"]}))
    splits = DataSplits.load(path, data)
    assert (len(splits.train.samples), len(splits.val.samples), splits.warnings) == (3, 2, ("one",))
    assert find_trained_images(path, data.split("train")) == [sample.path for sample in data.split("train").samples]
    assert find_trained_images(path, data.split("val")) == []
    _remove(dataset)
    with pytest.raises(ChromaboxError, match=r"missing images: 1 \(.*b\.png\)"):
        DataSplits.load(path, load_detection_dataset(dataset))


def test_images_with_which_a_run_was_trained_are_found_in_another_dataset(
    dataset: Path, splits_file: Path, tmp_path: Path
) -> None:
    other = make_yolo_dataset(tmp_path / "other", {"train/z": DOG, "val/new": DOG, "val/copy": DOG})
    shutil.copy(dataset / "images/train/c.png", other / "images/val/copy.png")
    for seed, name in enumerate(("train/z", "val/new"), 8):
        make_image(other / "images" / f"{name}.png", seed)
    found = find_trained_images(splits_file, load_detection_dataset(other))
    assert found == [other / "images/val/copy.png"]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[]",
        '{"train": 3, "early_stopping": null, "val": [], "warnings": []}',
        '{"train": null, "early_stopping": null, "val": [], "warnings": []}',
        '{"train": [{"path": 1}], "early_stopping": null, "val": [], "warnings": []}',
        '{"train": [{"name": "a"}], "early_stopping": null, "val": [], "warnings": []}',
        '{"train": [], "early_stopping": null, "val": [], "warnings": 3}',
    ],
)
def test_damaged_file_is_rejected(content: str, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(ChromaboxError, match=r"splits\.json: the file is damaged"):
        RunImages.read(tmp_path / "splits.json")
