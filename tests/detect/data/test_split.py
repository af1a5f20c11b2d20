"""Held-out parts: shares of classes, copies on one side, and everything decided by the seed."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.detect.data.dataset import DetectionDataset, Sample
from chromabox.detect.data.duplicates import DuplicatePair
from chromabox.detect.data.split import train_val_split
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_image


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("drawn")
    return [make_image(folder / f"{seed:03}.png", seed) for seed in range(100)]


def labelled(paths: list[Path], labels: list[list[int]], classes: int) -> DetectionDataset:
    """Pictures with boxes of the given classes."""
    pictures = [
        Sample(path, np.tile([1.0, 2.0, 30.0, 40.0], (len(own), 1)), np.array(own, np.int64), (50, 100), "old")
        for path, own in zip(paths, labels, strict=True)
    ]
    return DetectionDataset(tuple(pictures), tuple("abcd"[:classes]), ("old",))


def boxes_of(data: DetectionDataset, split: str) -> Counter:
    return Counter(int(category) for one in data.split(split).samples for category in one.class_ids)


def test_every_class_gives_its_share(drawn: list[Path]) -> None:
    """50, 20 and 10 pictures of classes that also come together, and 20 empty ones."""
    labels = [[0]] * 40 + [[0, 1]] * 10 + [[1]] * 10 + [[1, 2]] * 5 + [[2, 2]] * 5 + [[]] * 30
    data = train_val_split(labelled(drawn, labels, 3), val_fraction=0.2, seed=3)
    val, train = boxes_of(data, "val"), boxes_of(data, "train")
    for category, total in Counter(itertools.chain(*labels)).items():
        assert abs(val[category] - 0.2 * total) <= 1
        assert val[category] + train[category] == total
    assert sum(len(one.class_ids) == 0 for one in data.split("val").samples) == pytest.approx(6, abs=1)
    assert len(data.split("val").samples) == pytest.approx(20, abs=2)
    assert [one.path for one in data.samples] == drawn
    assert data.splits == ("train", "val")


def test_the_seed_decides(drawn: list[Path]) -> None:
    data = labelled(drawn[:30], [[0], [1], []] * 10, 2)
    first, again, other = (train_val_split(data, val_fraction=0.3, seed=seed) for seed in (1, 1, 2))
    assert [one.split for one in first.samples] == [one.split for one in again.samples]
    assert [one.split for one in first.samples] != [one.split for one in other.samples]


def test_copies_stay_together(drawn: list[Path], tmp_path: Path) -> None:
    """Every picture in three versions, at other sizes and as JPEG: all of one on the same side, whatever the seed."""
    paths = []
    for path in drawn[:10]:
        with Image.open(path) as image:
            image.resize((200, 100)).save(tmp_path / f"{path.stem}.jpg", quality=90)
            image.save(tmp_path / f"{path.stem}.bmp")
        paths += [tmp_path / f"{path.stem}.bmp", path, tmp_path / f"{path.stem}.jpg"]
    for seed in range(5):
        data = train_val_split(labelled(paths, [[index % 2] for index in range(30)], 2), val_fraction=0.3, seed=seed)
        sides = [one.split for one in data.samples]
        assert all(len(set(sides[index : index + 3])) == 1 for index in range(0, 30, 3))
        assert sides.count("val") == pytest.approx(9, abs=3)


def test_twins_that_are_known_are_not_looked_for(drawn: list[Path], tmp_path: Path) -> None:
    """Nobody could decode these; four are told to be alike, each to the next, and one to a picture outside the set."""
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    alike = [DuplicatePair(first, second, False, 3) for first, second in itertools.pairwise(paths[:4])]
    alike.append(DuplicatePair(paths[4], tmp_path / "elsewhere.png", False, 3))
    data = train_val_split(labelled(paths, [[0]] * 10, 1), val_fraction=0.4, duplicates=alike)
    sides = [one.split for one in data.samples]
    assert len(set(sides[:4])) == 1
    assert sides.count("val") == 4
    assert data.issues == ()


def test_a_picture_named_twice_is_on_one_side(drawn: list[Path]) -> None:
    data = train_val_split(labelled([*drawn[:5], *drawn[:5]], [[0]] * 10, 1), val_fraction=0.4)
    sides = [one.split for one in data.samples]
    assert sides[:5] == sides[5:]
    assert set(sides) == {"train", "val"}


def test_a_class_of_one_picture_is_learnt(drawn: list[Path]) -> None:
    data = train_val_split(labelled(drawn[:11], [[0]] * 10 + [[1]], 2), val_fraction=0.2)
    assert boxes_of(data, "train")[1] == 1


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_neither_side_is_empty(drawn: list[Path], share: float) -> None:
    data = train_val_split(labelled(drawn[:3], [[0], [0], []], 1), val_fraction=share)
    assert {one.split for one in data.samples} == {"train", "val"}


def test_damaged_pictures_are_left_out_and_told(drawn: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(drawn[0].read_bytes()[:100])
    data = train_val_split(labelled([*drawn[:4], broken], [[0]] * 5, 1))
    assert [one.path for one in data.samples] == drawn[:4]
    assert [(fault.issue_type, fault.path, fault.dropped) for fault in data.issues] == [
        ("damaged picture", broken, True)
    ]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none(drawn: list[Path], share: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        train_val_split(labelled(drawn[:2], [[0], [0]], 1), val_fraction=share)


def test_too_few_pictures(drawn: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(drawn[0].read_bytes())
    with pytest.raises(ChromaboxError, match="2 pictures are too few"):
        train_val_split(labelled([drawn[0], copy], [[0], [0]], 1))
