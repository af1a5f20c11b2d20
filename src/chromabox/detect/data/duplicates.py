"""Pictures that are the same, byte for byte or nearly: the classic leak between training and validation.

Near-duplicates are found by a difference hash: 64 bits, each whether the picture, made 9 × 8 pixels of grey, gets
lighter from one pixel to its right neighbour. Few different bits mean alike pictures, except where a picture is so flat
that its bits are chance; so the pictures at 16 × 16 must also correlate.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, UInt8, UInt16
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.images import read_image, to_uint8

#: Bits of 64 that may differ, and the least correlation. Among the 103,740 pairs of 256 COCO pictures and 200 raccoons
#: these find nine: six copies, one at another size, one with words on it, and two photographs of one scene. One wrong
#: pair differs in 7 bits, with a correlation of -0.35. A copy at JPEG quality 50 differs in at most 6 bits.
MAX_HASH_DISTANCE, MIN_CORRELATION = 10, 0.7
#: Fingerprints compared at once, which bounds memory.
_BLOCK_SIZE = 2048


@dataclass(frozen=True)
class Fingerprint:
    """What a picture is recognised by."""

    path: Path
    sha256: str
    hash_bits: Bool[np.ndarray, "64"]
    thumbnail: Float32[np.ndarray, "256"]
    """The grey picture at 16 × 16, of mean 0 and length 1; of length 0 if it is all one grey."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two pictures that are the same or nearly."""

    first: Path
    second: Path
    exact: bool
    hash_distance: int
    """Bits of the difference hash that differ."""


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a picture, which is decoded whole. Raises ChromaboxError if it cannot be."""
    pixels = read_image(path).pixels
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    grey = Image.fromarray(to_uint8(pixels)).convert("L")
    small = np.asarray(grey.resize((16, 16), Image.Resampling.BOX), np.float32).ravel()
    small = small - small.mean()
    length = float(np.linalg.norm(small))
    return Fingerprint(path, digest, dhash(pixels), small / length if length > 1 else np.zeros_like(small))


def dhash(
    pixels: UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"],
) -> Bool[np.ndarray, "64"]:
    """Whether each of 8 × 8 places is darker than its right neighbour (Krawetz 2013, “Kind of like that”)."""
    grey = Image.fromarray(to_uint8(pixels)).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey)
    return (values[:, 1:] > values[:, :-1]).ravel()


def fingerprints(
    paths: Sequence[Path], on_progress: Callable[[], object] = lambda: None
) -> tuple[list[Fingerprint], dict[Path, str]]:
    """The fingerprints of all pictures that can be decoded, and the reason of each of the others."""
    found: list[Fingerprint] = []
    damaged: dict[Path, str] = {}
    for path in paths:
        try:
            found.append(fingerprint(path))
        except ChromaboxError as error:
            damaged[path] = str(error)
        on_progress()
    return found, damaged


def find_duplicates(image_prints: Sequence[Fingerprint]) -> list[DuplicatePair]:
    """All pairs that are the same or nearly, in the order of the pictures."""
    if not image_prints:
        return []
    signs = np.where(np.stack([one.hash_bits for one in image_prints]), np.float32(1), np.float32(-1))
    small = np.stack([one.thumbnail for one in image_prints])
    twins = []
    for top in range(0, len(image_prints), _BLOCK_SIZE):
        bits = (64 - signs[top : top + _BLOCK_SIZE] @ signs.T) / 2
        alike = (bits <= MAX_HASH_DISTANCE) & (small[top : top + _BLOCK_SIZE] @ small.T >= MIN_CORRELATION)
        for row, column in np.argwhere(alike).tolist():
            first, second = image_prints[top + row], image_prints[column]
            if top + row < column:
                twins.append(
                    DuplicatePair(first.path, second.path, first.sha256 == second.sha256, int(bits[row, column]))
                )
    return [*twins, *_flat_duplicates(image_prints)]


def _flat_duplicates(image_prints: Sequence[Fingerprint]) -> list[DuplicatePair]:
    """Equal files among pictures of one grey, which correlate with nothing."""
    flat = [one for one in image_prints if not one.thumbnail.any()]
    return [
        DuplicatePair(first.path, second.path, True, 0)
        for index, first in enumerate(flat)
        for second in flat[index + 1 :]
        if first.sha256 == second.sha256
    ]
