"""Train/validation splits: class fractions, duplicates on one side, and determinism."""

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
def image_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    return [make_image(folder / f"{seed:03}.png", seed) for seed in range(100)]


def make_dataset(paths: list[Path], labels: list[list[int]], num_classes: int) -> DetectionDataset:
    """Return a dataset of images with boxes of the given classes."""
    samples = [
        Sample(
            path, np.tile([1.0, 2.0, 30.0, 40.0], (len(class_ids), 1)), np.array(class_ids, np.int64), (50, 100), "old"
        )
        for path, class_ids in zip(paths, labels, strict=True)
    ]
    return DetectionDataset(tuple(samples), tuple("abcd"[:num_classes]), ("old",))


def count_boxes(data: DetectionDataset, split: str) -> Counter:
    return Counter(int(class_id) for sample in data.split(split).samples for class_id in sample.class_ids)


def test_fraction_of_each_class_is_held_out(image_paths: list[Path]) -> None:
    """Images with one or two of three classes, and images without boxes."""
    labels = [[0]] * 40 + [[0, 1]] * 10 + [[1]] * 10 + [[1, 2]] * 5 + [[2, 2]] * 5 + [[]] * 30
    data = train_val_split(make_dataset(image_paths, labels, 3), val_fraction=0.2, seed=3)
    val, train = count_boxes(data, "val"), count_boxes(data, "train")
    for class_id, total in Counter(itertools.chain(*labels)).items():
        assert abs(val[class_id] - 0.2 * total) <= 1
        assert val[class_id] + train[class_id] == total
    assert sum(len(sample.class_ids) == 0 for sample in data.split("val").samples) == pytest.approx(6, abs=1)
    assert len(data.split("val").samples) == pytest.approx(20, abs=2)
    assert [sample.path for sample in data.samples] == image_paths
    assert data.splits == ("train", "val")


def test_split_is_determined_by_the_seed(image_paths: list[Path]) -> None:
    data = make_dataset(image_paths[:30], [[0], [1], []] * 10, 2)
    first, repeated, other = (train_val_split(data, val_fraction=0.3, seed=seed) for seed in (1, 1, 2))
    assert [sample.split for sample in first.samples] == [sample.split for sample in repeated.samples]
    assert [sample.split for sample in first.samples] != [sample.split for sample in other.samples]


def test_near_duplicates_are_in_the_same_split(image_paths: list[Path], tmp_path: Path) -> None:
    """Each image in three versions, one of them resized and saved as JPEG, for several seeds."""
    paths = []
    for path in image_paths[:10]:
        with Image.open(path) as image:
            image.resize((200, 100)).save(tmp_path / f"{path.stem}.jpg", quality=90)
            image.save(tmp_path / f"{path.stem}.bmp")
        paths += [tmp_path / f"{path.stem}.bmp", path, tmp_path / f"{path.stem}.jpg"]
    for seed in range(5):
        data = train_val_split(
            make_dataset(paths, [[index % 2] for index in range(30)], 2), val_fraction=0.3, seed=seed
        )
        splits = [sample.split for sample in data.samples]
        assert all(len(set(splits[index : index + 3])) == 1 for index in range(0, 30, 3))
        assert splits.count("val") == pytest.approx(9, abs=3)


def test_given_duplicates_are_used_without_decoding(image_paths: list[Path], tmp_path: Path) -> None:
    """The files do not exist; four are duplicates, each of the next, and one is a duplicate of an image outside."""
    paths = [tmp_path / f"{index}.png" for index in range(10)]
    duplicates = [DuplicatePair(first, second, False, 3) for first, second in itertools.pairwise(paths[:4])]
    duplicates.append(DuplicatePair(paths[4], tmp_path / "elsewhere.png", False, 3))
    data = train_val_split(make_dataset(paths, [[0]] * 10, 1), val_fraction=0.4, duplicates=duplicates)
    splits = [sample.split for sample in data.samples]
    assert len(set(splits[:4])) == 1
    assert splits.count("val") == 4
    assert data.issues == ()


def test_repeated_image_is_in_one_split(image_paths: list[Path]) -> None:
    data = train_val_split(make_dataset([*image_paths[:5], *image_paths[:5]], [[0]] * 10, 1), val_fraction=0.4)
    splits = [sample.split for sample in data.samples]
    assert splits[:5] == splits[5:]
    assert set(splits) == {"train", "val"}


def test_class_with_one_image_is_in_the_training_split(image_paths: list[Path]) -> None:
    data = train_val_split(make_dataset(image_paths[:11], [[0]] * 10 + [[1]], 2), val_fraction=0.2)
    assert count_boxes(data, "train")[1] == 1


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_neither_split_is_empty(image_paths: list[Path], fraction: float) -> None:
    data = train_val_split(make_dataset(image_paths[:3], [[0], [0], []], 1), val_fraction=fraction)
    assert {sample.split for sample in data.samples} == {"train", "val"}


def test_damaged_images_are_dropped_and_reported(image_paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(image_paths[0].read_bytes()[:100])
    data = train_val_split(make_dataset([*image_paths[:4], broken], [[0]] * 5, 1))
    assert [sample.path for sample in data.samples] == image_paths[:4]
    assert [(issue.issue_type, issue.path, issue.dropped) for issue in data.issues] == [
        ("damaged picture", broken, True)
    ]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_invalid_fraction_is_rejected(image_paths: list[Path], fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        train_val_split(make_dataset(image_paths[:2], [[0], [0]], 1), val_fraction=fraction)


def test_too_few_images_are_rejected(image_paths: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(image_paths[0].read_bytes())
    with pytest.raises(ChromaboxError, match=r"dataset too small to split \(images: 2\)"):
        train_val_split(make_dataset([image_paths[0], copy], [[0], [0]], 1))
