"""Synthetic datasets of objects of one colour each, which identify the boxes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.data import synthetic
from chromabox.detect.data.synthetic import (
    DEFAULT_COUNTS,
    Objects,
    load_cifar_objects,
    make_synthetic_dataset,
    paste_objects,
    sample_background,
)
from chromabox.detect.data.validate import validate_dataset
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_image
from detection_fixtures import read_all_files

CLASSES = ("horse", "ship")
COUNTS = {"train": 12, "val": 6, "test": 6}


def uniform_objects(colours: np.ndarray, class_ids: list[int]) -> Objects:
    """Return objects of one colour each."""
    images = np.broadcast_to(colours.astype(np.uint8)[:, :, None, None], (len(colours), 3, 32, 32))
    return Objects(np.ascontiguousarray(images), np.array(class_ids, np.int64))


@pytest.fixture(scope="module")
def objects() -> dict[str, Objects]:
    rng = np.random.default_rng(0)
    class_ids = [index % 2 for index in range(30)]
    return {split: uniform_objects(rng.integers(0, 256, (30, 3)), class_ids) for split in DEFAULT_COUNTS}


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_objects_fill_their_boxes_and_do_not_touch(seed: int, count: int) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])[:count]
    background = np.full((100, 100, 3), 90, np.uint8)
    objects = uniform_objects(colours, list(range(count)))
    pixels, boxes, class_ids = paste_objects(background, objects, np.random.default_rng(seed))
    assert len(boxes) >= 1
    is_background = np.ones((100, 100), bool)
    for (x0, y0, x1, y1), class_id in zip(boxes, class_ids, strict=True):
        assert (pixels[y0:y1, x0:x1] == colours[class_id]).all()
        assert 15 <= x1 - x0 <= 45
        is_background[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
    assert (pixels[is_background] == 90).all()
    assert (background == 90).all()


def test_dataset_is_valid_and_its_splits_share_no_images(objects: dict[str, Objects], tmp_path: Path) -> None:
    counts = make_synthetic_dataset(tmp_path / "set", classes=CLASSES, counts=COUNTS, size=96, seed=1, objects=objects)
    report = validate_dataset(tmp_path / "set")
    assert report.is_valid
    assert report.duplicates == ()
    assert report.issues == ()
    assert report.data.classes == CLASSES
    assert {split: sum(per_class.values()) for split, per_class in report.box_counts.items()} == counts
    assert {split: len(report.data.split(split).samples) for split in COUNTS} == COUNTS
    assert all(per_class[name] > 0 for per_class in report.box_counts.values() for name in CLASSES)


def test_labels_match_the_objects(objects: dict[str, Objects], tmp_path: Path) -> None:
    """Each box has, up to JPEG noise, the colour of an object of its class and split."""
    make_synthetic_dataset(tmp_path / "set", classes=CLASSES, counts=COUNTS, size=96, objects=objects)
    for sample in validate_dataset(tmp_path / "set").data.samples:
        pixels = read_image(sample.path).pixels.astype(float)
        for box, class_id in zip(sample.boxes, sample.class_ids, strict=True):
            assert np.abs(box - box.round()).max() < 0.001
            x0, y0, x1, y1 = box.round().astype(int) + np.array([2, 2, -2, -2])
            colour = np.median(pixels[y0:y1, x0:x1], (0, 1))
            candidates = objects[sample.split]
            distances = np.abs(candidates.images[:, :, 0, 0] - colour).max(1)
            assert distances[candidates.class_ids == class_id].min() < 12


def test_dataset_is_determined_by_the_seed(objects: dict[str, Objects], tmp_path: Path) -> None:
    contents = []
    for index, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(index)
        make_synthetic_dataset(folder, classes=CLASSES, counts=COUNTS, size=64, seed=seed, objects=objects)
        contents.append({path.relative_to(folder): content for path, content in read_all_files(folder).items()})
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_backgrounds_have_the_given_size_and_disjoint_strips() -> None:
    rng = np.random.default_rng(0)
    backgrounds = [sample_background("val", 64, rng) for _ in range(20)]
    assert {background.shape for background in backgrounds} == {(64, 64, 3)}
    num_plain = sum(len(np.unique(background.reshape(-1, 3), axis=0)) == 1 for background in backgrounds)
    assert 2 <= num_plain <= 12
    strips = sorted(synthetic.SPLIT_STRIPS.values())
    assert all(before[1] <= after[0] for before, after in pairwise(strips))


def test_splits_use_different_cifar_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten images of each class, identified by their brightness: 9 of 10 in train, the others in val, and a test set."""

    def load(split: str, classes: tuple[str, ...], progress: object = None) -> tuple[np.ndarray, np.ndarray]:
        labels = np.tile(np.array([8, 7], np.uint8), 10)  # In CIFAR-10, horse is 7 and ship is 8.
        values = np.arange(20, dtype=np.uint8) + (100 if split == "test" else 0)
        return np.broadcast_to(values[:, None, None, None], (20, 3, 32, 32)).copy(), labels

    monkeypatch.setattr(synthetic, "load_cifar10", load)
    objects_by_split = load_cifar_objects(CLASSES)
    values = {split: objects.images[:, 0, 0, 0].tolist() for split, objects in objects_by_split.items()}
    assert values == {"train": list(range(18)), "val": [18, 19], "test": list(range(100, 120))}
    assert objects_by_split["val"].class_ids.tolist() == [1, 0]
    with pytest.raises(UsageError, match="expected each name only once"):
        load_cifar_objects(("ship", "ship"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {"train": 1, "val": 1}}, "expected at least 1 image for each of train, val, test"),
        ({"counts": {"train": 0, "val": 1, "test": 1}}, "counts is"),
        ({"size": 40}, "--size is 40: expected at least 64"),
    ],
)
def test_invalid_option_is_rejected(options: dict, message: str, objects: dict[str, Objects], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_synthetic_dataset(tmp_path / "set", classes=CLASSES, objects=objects, **options)
    assert not list(tmp_path.iterdir())


def test_non_empty_folder_is_rejected_and_unchanged(objects: dict[str, Objects], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="already exists: choose a new or an empty folder"):
        make_synthetic_dataset(tmp_path / "mine", classes=CLASSES, counts=COUNTS, objects=objects)
    assert read_all_files(tmp_path) == {tmp_path / "mine" / "a.txt": b"mine"}


def test_no_partial_files_are_left_after_an_error(
    objects: dict[str, Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ChromaboxError("the disk is full")

    monkeypatch.setattr(synthetic, "write_image", fail)
    with pytest.raises(ChromaboxError, match="the disk is full"):
        make_synthetic_dataset(tmp_path / "set", classes=CLASSES, counts=COUNTS, objects=objects)
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match="set: cannot be written"):
        make_synthetic_dataset(tmp_path / "file" / "set", classes=CLASSES, counts=COUNTS, objects=objects)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
