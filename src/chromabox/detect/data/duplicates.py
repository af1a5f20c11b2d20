"""Duplicate and near-duplicate images, the usual cause of leakage between training and validation sets.

Near-duplicates are found with a 64-bit difference hash. The image is resized to 9 × 8 grey pixels, and each bit is set
if a pixel is darker than its right neighbour. Similar images differ in few bits, but the bits of an image with little
contrast are random. Near-duplicates must therefore also have correlated grey values when resized to 16 × 16 pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.images import Pixels, read_image, to_uint8
from chromabox.io.manifest import sha256_file

#: Maximum number of different bits (of 64) and minimum correlation of near-duplicates. Of the 103,740 pairs of 256 COCO
#: images and 200 raccoon images, nine meet these thresholds: six copies, one copy of a different size, one copy with
#: text added, and two photographs of the same scene. One pair of different images differs in 7 bits but has a
#: correlation of -0.35. Copies at JPEG quality 50 differ in at most 6 bits.
MAX_HASH_DISTANCE, MIN_CORRELATION = 10, 0.7
#: Number of fingerprints that are compared with all others at a time. A small number limits memory use.
_BLOCK_SIZE = 2048


@dataclass(frozen=True)
class Fingerprint:
    """Features of an image that are compared to find duplicates."""

    path: Path
    sha256: str
    hash_bits: Bool[np.ndarray, "64"]
    thumbnail: Float32[np.ndarray, "256"]
    """The grey image at 16 × 16 pixels with mean 0 and norm 1, or zeros for an image with a single grey value."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that are duplicates or near-duplicates. ``exact`` is True for identical files."""

    first: Path
    second: Path
    exact: bool
    hash_distance: int
    """Number of bits in which the difference hashes differ."""


def dhash(pixels: Pixels) -> Bool[np.ndarray, "64"]:
    """Compute the difference hash: whether each of 8 × 8 pixels is darker than its right neighbour.

    Source: Krawetz 2013, “Kind of like that”.
    """
    grey = Image.fromarray(to_uint8(pixels)).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey)
    return (values[:, 1:] > values[:, :-1]).ravel()


def fingerprints(
    paths: Sequence[Path], on_progress: Callable[[], object] = lambda: None
) -> tuple[list[Fingerprint], dict[Path, str]]:
    """Return the fingerprints of all images that can be decoded, and the error messages of the others, keyed by path.

    ``on_progress`` is called after each image.
    """
    image_prints: list[Fingerprint] = []
    errors: dict[Path, str] = {}
    for path in paths:
        try:
            pixels = read_image(path).pixels
            grey = Image.fromarray(to_uint8(pixels)).convert("L").resize((16, 16), Image.Resampling.BOX)
            thumbnail = np.asarray(grey, np.float32).ravel()
            thumbnail = thumbnail - thumbnail.mean()
            norm = float(np.linalg.norm(thumbnail))
            thumbnail = thumbnail / norm if norm > 1 else np.zeros_like(thumbnail)
            image_prints.append(Fingerprint(path, sha256_file(path), dhash(pixels), thumbnail))
        except ChromaboxError as error:
            errors[path] = str(error)
        on_progress()
    return image_prints, errors


def find_duplicates(image_prints: Sequence[Fingerprint]) -> list[DuplicatePair]:
    """Return all pairs of duplicates and near-duplicates, in the order of the images."""
    if not image_prints:
        return []
    signs = np.where(np.stack([image_print.hash_bits for image_print in image_prints]), np.float32(1), np.float32(-1))
    thumbnails = np.stack([image_print.thumbnail for image_print in image_prints])
    digests = np.array([image_print.sha256 for image_print in image_prints])
    pairs = []
    for top in range(0, len(image_prints), _BLOCK_SIZE):
        block = slice(top, top + _BLOCK_SIZE)
        distances = (64 - signs[block] @ signs.T) / 2
        is_similar = (distances <= MAX_HASH_DISTANCE) & (thumbnails[block] @ thumbnails.T >= MIN_CORRELATION)
        # For images with a single grey value, the correlation is undefined, so that only identical files are found.
        is_identical = digests[block, None] == digests
        for row, column in np.argwhere(is_similar | is_identical).tolist():
            if top + row < column:
                first, second = image_prints[top + row].path, image_prints[column].path
                exact, distance = bool(is_identical[row, column]), int(distances[row, column])
                pairs.append(DuplicatePair(first, second, exact, distance))
    return pairs
