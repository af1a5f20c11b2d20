"""CIFAR-10's reader on six small files made here: order, classes, and what it says to wrong names."""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io import cifar10
from chromabox.io.cifar10 import CIFAR10_CLASSES, load_cifar10
from chromabox.io.http import PinnedFile

ROWS = 20


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Six files of 20 random rows, pinned in place of the real ones; the rows by file name."""
    rng = np.random.default_rng(1)
    files = {name: rng.integers(0, 256, (ROWS, 3073), np.uint8) for name in "abcdet"}
    for name, rows in files.items():
        rows[:, 0] %= 10
        rows.tofile(tmp_path / name)
    pins = [PinnedFile(name, hashlib.sha256(rows.tobytes()).hexdigest(), rows.size) for name, rows in files.items()]
    monkeypatch.setattr(cifar10, "TRAIN_FILES", tuple(pins[:5]))
    monkeypatch.setattr(cifar10, "TEST_FILES", tuple(pins[5:]))
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", ROWS)
    monkeypatch.setattr(cifar10, "PROBE_LAYERS", ())
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)
    return files


def test_files_come_in_order(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    pictures, labels = load_cifar10("train", folder=tmp_path)
    rows = np.concatenate([small[name] for name in "abcde"])
    assert np.array_equal(labels, rows[:, 0])
    assert np.array_equal(pictures, rows[:, 1:].reshape(-1, 3, 32, 32))
    assert np.array_equal(load_cifar10("test", folder=tmp_path)[1], small["t"][:, 0])


@pytest.mark.parametrize("classes", [["horse", "cat"], {"cat", "horse"}, ("cat", "horse", "cat"), "horse"])
def test_classes_are_kept_in_the_files_order(
    small: dict[str, np.ndarray], tmp_path: Path, classes: Collection[str]
) -> None:
    pictures, labels = load_cifar10("train", classes, tmp_path)
    rows = np.concatenate([small[name] for name in "abcde"])
    rows = rows[np.isin(rows[:, 0], [7] if classes == "horse" else [3, 7])]
    assert np.array_equal(labels, rows[:, 0])
    assert np.array_equal(pictures.reshape(len(rows), -1), rows[:, 1:])


def test_planes_are_red_green_blue(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    pictures, _ = load_cifar10("test", folder=tmp_path)
    assert pictures[3, 1, 2, 5] == small["t"][3, 1 + 1024 + 2 * 32 + 5]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (["horse", "zebra"], "CIFAR-10 has no class 'zebra': choose from airplane, automobile, bird, cat, deer, dog,"),
        ([], "no class is named: choose from airplane"),
    ],
)
def test_wrong_classes_list_the_right_ones(tmp_path: Path, classes: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load_cifar10("train", classes, tmp_path)


def test_a_missing_file_without_any_source_names_it(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "c").unlink()
    with pytest.raises(ChromaboxError, match="cannot fetch c: "):
        load_cifar10("train", folder=tmp_path)


def test_names_and_sizes_are_the_datasets_own() -> None:
    assert len(CIFAR10_CLASSES) == 10
    assert (CIFAR10_CLASSES[0], CIFAR10_CLASSES[7], CIFAR10_CLASSES[9]) == ("airplane", "horse", "truck")
    assert {pin.size for pin in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)} == {30_730_000}
