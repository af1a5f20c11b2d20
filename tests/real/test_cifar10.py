"""Tests of the real CIFAR-10 from the cache, the mirror or the network, against the checksums of its authors."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from chromabox.errors import ChromaboxError
from chromabox.io.cifar10 import CIFAR10_CLASSES, TEST_FILES, download_cifar10, load_cifar10

# MD5 of the six files of the binary version, as published by the authors.
MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return download_cifar10()
    except ChromaboxError as error:
        pytest.skip(f"THE REAL CIFAR-10 IS NOT AVAILABLE, SO ITS TESTS ARE SKIPPED: {error}")


def test_files_have_the_published_checksums(folder: Path) -> None:
    assert {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in MD5} == MD5


def test_first_test_labels_are_the_published_ones(folder: Path) -> None:
    images, labels = load_cifar10("test", folder=folder)
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(labels).tolist() == [1000] * 10
    assert images.shape == (10_000, 3, 32, 32)


@pytest.mark.parametrize(("split", "count"), [("train", 5000), ("test", 1000)])
def test_horse_class_has_the_published_size(folder: Path, split: str, count: int) -> None:
    images, labels = load_cifar10(split, ["horse"], folder)
    assert images.shape == (count, 3, 32, 32)
    assert set(labels.tolist()) == {CIFAR10_CLASSES.index("horse")}


def test_corrupt_file_is_rejected_and_downloaded_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in MD5:
        os.symlink(folder / name, tmp_path / name)
    [test_file] = TEST_FILES
    damaged = bytearray((folder / test_file.name).read_bytes())
    damaged[12_345] ^= 1
    (tmp_path / test_file.name).unlink()
    (tmp_path / test_file.name).write_bytes(damaged)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(folder))
    _, labels = load_cifar10("test", folder=tmp_path)
    stderr = capsys.readouterr().err
    assert f"{tmp_path / test_file.name} is corrupt: expected SHA-256 {test_file.sha256}" in stderr
    assert f"found {hashlib.sha256(damaged).hexdigest()}" in stderr
    assert (tmp_path / test_file.name).read_bytes() == (folder / test_file.name).read_bytes()
    assert labels[:3].tolist() == [3, 8, 8]
