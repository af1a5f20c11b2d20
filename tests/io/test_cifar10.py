"""CIFAR-10 loader on six small generated files: order, selection of classes, errors for unknown names."""

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
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write six files of 20 random rows, pinned instead of the real ones; return the rows by file name."""
    rng = np.random.default_rng(1)
    files = {name: rng.integers(0, 256, (ROWS, 3073), np.uint8) for name in "abcdet"}
    for name, rows in files.items():
        rows[:, 0] %= 10
        rows.tofile(tmp_path / name)
    pins = [PinnedFile(name, hashlib.sha256(rows.tobytes()).hexdigest(), rows.size) for name, rows in files.items()]
    monkeypatch.setattr(cifar10, "TRAIN_FILES", tuple(pins[:5]))
    monkeypatch.setattr(cifar10, "TEST_FILES", tuple(pins[5:]))
    monkeypatch.setattr(cifar10, "IMAGES_PER_FILE", ROWS)
    monkeypatch.setattr(cifar10, "SOURCES", ())
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)
    return files


def test_images_are_in_file_order(files: dict[str, np.ndarray], tmp_path: Path) -> None:
    images, labels = load_cifar10("train", folder=tmp_path)
    rows = np.concatenate([files[name] for name in "abcde"])
    assert np.array_equal(labels, rows[:, 0])
    assert np.array_equal(images, rows[:, 1:].reshape(-1, 3, 32, 32))
    assert np.array_equal(load_cifar10("test", folder=tmp_path)[1], files["t"][:, 0])


@pytest.mark.parametrize("classes", [["horse", "cat"], {"cat", "horse"}, ("cat", "horse", "cat"), "horse"])
def test_selected_classes_are_in_file_order(
    files: dict[str, np.ndarray], tmp_path: Path, classes: Collection[str]
) -> None:
    images, labels = load_cifar10("train", classes, tmp_path)
    rows = np.concatenate([files[name] for name in "abcde"])
    rows = rows[np.isin(rows[:, 0], [7] if classes == "horse" else [3, 7])]
    assert np.array_equal(labels, rows[:, 0])
    assert np.array_equal(images.reshape(len(rows), -1), rows[:, 1:])


def test_channels_are_red_green_blue(files: dict[str, np.ndarray], tmp_path: Path) -> None:
    images, _ = load_cifar10("test", folder=tmp_path)
    assert images[3, 1, 2, 5] == files["t"][3, 1 + 1024 + 2 * 32 + 5]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["horse", "zebra"], "CIFAR-10 has no class 'zebra': choose from airplane, automobile, bird, cat, deer, dog,"),
        ([], "no class selected: choose from airplane"),
    ],
)
def test_unknown_classes_are_rejected_with_a_list(tmp_path: Path, classes: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_cifar10("train", classes, tmp_path)


def test_missing_file_without_source_is_reported(files: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "c").unlink()
    with pytest.raises(ChromaboxError, match="cannot fetch c: "):
        load_cifar10("train", folder=tmp_path)


def test_class_names_and_file_sizes() -> None:
    assert len(CIFAR10_CLASSES) == 10
    assert (CIFAR10_CLASSES[0], CIFAR10_CLASSES[7], CIFAR10_CLASSES[9]) == ("airplane", "horse", "truck")
    assert {pin.size for pin in (*cifar10.TRAIN_FILES, *cifar10.TEST_FILES)} == {30_730_000}
