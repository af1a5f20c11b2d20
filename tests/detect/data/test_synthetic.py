"""The set pasted together, from made-up things of one colour each, so that every box can be found again."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.data import synthetic as collages
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
SMALL = {"train": 12, "val": 6, "test": 6}


def flat(colours: np.ndarray, classes: list[int]) -> Objects:
    """Things of one colour each."""
    pictures = np.broadcast_to(colours.astype(np.uint8)[:, :, None, None], (len(colours), 3, 32, 32))
    return Objects(np.ascontiguousarray(pictures), np.array(classes, np.int64))


@pytest.fixture(scope="module")
def things() -> dict[str, Objects]:
    draw = np.random.default_rng(0)
    return {split: flat(draw.integers(0, 256, (30, 3)), [index % 2 for index in range(30)]) for split in DEFAULT_COUNTS}


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_things_lie_in_their_boxes_and_apart(seed: int, count: int) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])[:count]
    ground = np.full((100, 100, 3), 90, np.uint8)
    pixels, boxes, classes = paste_objects(ground, flat(colours, list(range(count))), np.random.default_rng(seed))
    assert len(boxes) >= 1
    left = np.ones((100, 100), bool)
    for (x0, y0, x1, y1), category in zip(boxes, classes, strict=True):
        assert (pixels[y0:y1, x0:x1] == colours[category]).all()
        assert 15 <= x1 - x0 <= 45
        left[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
    assert (pixels[left] == 90).all()
    assert (ground == 90).all()


def test_the_set_is_sound_and_its_splits_share_nothing(things: dict[str, Objects], tmp_path: Path) -> None:
    counts = make_synthetic_dataset(tmp_path / "set", classes=CLASSES, counts=SMALL, size=96, seed=1, objects=things)
    check = validate_dataset(tmp_path / "set")
    assert check.is_valid
    assert check.duplicates == ()
    assert check.issues == ()
    assert check.data.classes == CLASSES
    assert {split: sum(of_class.values()) for split, of_class in check.box_counts.items()} == counts
    assert {split: len(check.data.split(split).samples) for split in SMALL} == SMALL
    assert all(of_class[name] > 0 for of_class in check.box_counts.values() for name in CLASSES)


def test_labels_say_where_the_things_are(things: dict[str, Objects], tmp_path: Path) -> None:
    """Every box is of one colour, up to JPEG's noise, and that of a thing of its class and split."""
    make_synthetic_dataset(tmp_path / "set", classes=CLASSES, counts=SMALL, size=96, objects=things)
    for one in validate_dataset(tmp_path / "set").data.samples:
        pixels = read_image(one.path).pixels.astype(float)
        for box, category in zip(one.boxes, one.class_ids, strict=True):
            assert np.abs(box - box.round()).max() < 0.001
            x0, y0, x1, y1 = box.round().astype(int) + np.array([2, 2, -2, -2])
            middle = np.median(pixels[y0:y1, x0:x1], (0, 1))
            known = things[one.split]
            nearest = np.abs(known.images[:, :, 0, 0] - middle).max(1)
            assert nearest[known.class_ids == category].min() < 12


def test_the_seed_decides_everything(things: dict[str, Objects], tmp_path: Path) -> None:
    sets = []
    for index, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(index)
        make_synthetic_dataset(folder, classes=CLASSES, counts=SMALL, size=64, seed=seed, objects=things)
        sets.append({path.relative_to(folder): content for path, content in read_all_files(folder).items()})
    assert sets[0] == sets[1]
    assert sets[0] != sets[2]


def test_grounds_are_of_the_size_and_of_strips_apart() -> None:
    draw = np.random.default_rng(0)
    grounds = [sample_background("val", 64, draw) for _ in range(20)]
    assert {ground.shape for ground in grounds} == {(64, 64, 3)}
    plain = sum(len(np.unique(ground.reshape(-1, 3), axis=0)) == 1 for ground in grounds)
    assert 2 <= plain <= 12
    edges = sorted(collages.SPLIT_STRIPS.values())
    assert all(before[1] <= after[0] for before, after in pairwise(edges))


def test_cifar_pictures_of_splits_are_different(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pictures of each class, numbered by their brightness: 9 of 10 train, the others val, and test its own."""

    def load(split: str, classes: tuple[str, ...], progress: object = None) -> tuple[np.ndarray, np.ndarray]:
        labels = np.tile(np.array([8, 7], np.uint8), 10)  # CIFAR-10 counts horse 7 and ship 8.
        values = np.arange(20, dtype=np.uint8) + (100 if split == "test" else 0)
        return np.broadcast_to(values[:, None, None, None], (20, 3, 32, 32)).copy(), labels

    monkeypatch.setattr(collages, "load_cifar10", load)
    parts = load_cifar_objects(CLASSES)
    values = {split: part.images[:, 0, 0, 0].tolist() for split, part in parts.items()}
    assert values == {"train": list(range(18)), "val": [18, 19], "test": list(range(100, 120))}
    assert parts["val"].class_ids.tolist() == [1, 0]
    with pytest.raises(UsageError, match="each is named once"):
        load_cifar_objects(("ship", "ship"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {"train": 1, "val": 1}}, "at least 1 picture for each of train, val, test"),
        ({"counts": {"train": 0, "val": 1, "test": 1}}, "counts is"),
        ({"size": 40}, "size is 40: pictures need a side of at least 64"),
    ],
)
def test_wrong_options(options: dict, message: str, things: dict[str, Objects], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        make_synthetic_dataset(tmp_path / "set", classes=CLASSES, objects=things, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(things: dict[str, Objects], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        make_synthetic_dataset(tmp_path / "mine", classes=CLASSES, counts=SMALL, objects=things)
    assert read_all_files(tmp_path) == {tmp_path / "mine" / "a.txt": b"mine"}


def test_nothing_half_written_is_left(
    things: dict[str, Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ChromaboxError("the disk is full")

    monkeypatch.setattr(collages, "write_image", fail)
    with pytest.raises(ChromaboxError, match="the disk is full"):
        make_synthetic_dataset(tmp_path / "set", classes=CLASSES, counts=SMALL, objects=things)
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match="set: cannot be written"):
        make_synthetic_dataset(tmp_path / "file" / "set", classes=CLASSES, counts=SMALL, objects=things)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
