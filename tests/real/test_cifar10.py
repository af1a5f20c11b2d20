"""The real CIFAR-10, from the cache, the mirror or the network: what was fetched is what its authors published."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from chromabox.errors import ChromaboxError
from chromabox.io.cifar10 import CIFAR10_CLASSES, TEST_FILES, download_cifar10, load_cifar10

# The MD5 of the six files of the authors' binary version.
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
        pytest.skip(f"THE REAL CIFAR-10 CANNOT BE REACHED, SO NOTHING OF IT IS TESTED: {error}")


def test_the_files_are_the_published_ones(folder: Path) -> None:
    assert {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in MD5} == MD5


def test_test_labels_begin_as_published(folder: Path) -> None:
    pictures, labels = load_cifar10("test", folder=folder)
    assert labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert np.bincount(labels).tolist() == [1000] * 10
    assert pictures.shape == (10_000, 3, 32, 32)


@pytest.mark.parametrize(("split", "count"), [("train", 5000), ("test", 1000)])
def test_horses(folder: Path, split: str, count: int) -> None:
    pictures, labels = load_cifar10(split, ["horse"], folder)
    assert pictures.shape == (count, 3, 32, 32)
    assert set(labels.tolist()) == {CIFAR10_CLASSES.index("horse")}


def test_a_flipped_byte_is_refused_and_the_file_fetched_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in MD5:
        os.symlink(folder / name, tmp_path / name)
    [pin] = TEST_FILES
    damaged = bytearray((folder / pin.name).read_bytes())
    damaged[12_345] ^= 1
    (tmp_path / pin.name).unlink()
    (tmp_path / pin.name).write_bytes(damaged)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(folder))
    _, labels = load_cifar10("test", folder=tmp_path)
    told = capsys.readouterr().err
    assert f"{tmp_path / pin.name} is corrupt: expected SHA-256 {pin.sha256}" in told
    assert f"found {hashlib.sha256(damaged).hexdigest()}" in told
    assert (tmp_path / pin.name).read_bytes() == (folder / pin.name).read_bytes()
    assert labels[:3].tolist() == [3, 8, 8]
