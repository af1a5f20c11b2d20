"""Photographs for training the photo model, with lightness as the input and chroma as the target.

Photographs stay encoded and are decoded whenever they are used, so that large datasets do not have to fit in memory.
They come from a folder of images, which are shrunk to a short side of at most ``STORED_SIDE`` and kept in memory as
JPEG, or from tar shards, from which they are read as they are. Every time an image is used, a random square is cropped,
randomly flipped horizontally and resized to the model's input size. Lightness is L*/100, degraded at random (see
:func:`~chromabox.colour.data.degradation.degrade`). The targets are the means of a* and b* over the patch that each
output position of the model covers.
"""

import io
import logging
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.chroma.lab import luminance_root, rgb_to_lab
from chromabox.colour.data.datasets import center_crop, hold_out, num_batches
from chromabox.colour.data.degradation import degrade
from chromabox.colour.models.photonet import PhotoNet
from chromabox.engine.distributed import DistInfo
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import IMAGE_SUFFIXES, find_images, read_image, to_uint8
from chromabox.runtime.parallel import map_ordered

log = logging.getLogger(__name__)

#: Maximum short side, in pixels, of stored images.
STORED_SIDE = 256
#: Maximum long side, in pixels. A panorama is cropped to its centre.
MAX_SIDE = 512
#: One in this many images of a dataset without the splits ``train`` and ``val`` is held out for validation.
VAL_EVERY_NTH = 20
#: Maximum number of omitted images whose paths are logged.
MAX_LOGGED_PATHS = 5
#: Maximum size of a file in a shard, in bytes.
MAX_MEMBER_BYTES = 32 << 20

Photo = UInt8[np.ndarray, "_ _ 3"]
PhotoBatch = tuple[Float[Tensor, "batch 1 height width"], Float[Tensor, "batch 2 small_height small_width"]]


class Member(NamedTuple):
    """An image file in a tar shard."""

    shard: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the contents of the file."""
        with self.shard.open("rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)


class StoredPhotos:
    """Encoded images, which are decoded when they are indexed."""

    def __init__(self, files: Sequence[bytes | Member]) -> None:
        self.files = files
        self.damaged: set[Member] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Photo]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredPhotos": ...
    def __getitem__(self, index: int | slice) -> "Photo | StoredPhotos":
        """Return one image or the images of a slice.

        If a file in a shard is damaged, log a warning and return the next image instead. Raise ChromaboxError if all
        files are damaged.
        """
        if isinstance(index, slice):
            return StoredPhotos(self.files[index])
        if not -len(self.files) <= index < len(self.files):
            raise IndexError(f"index {index} of {len(self.files)} images")
        for offset in range(len(self.files)):
            file = self.files[(index + offset) % len(self.files)]
            if isinstance(file, bytes):
                return _decode(file)
            try:
                return _resize(_decode(file.read()))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                message = f"{file.shard}: the image {file.name} is damaged ({error})"
                if file not in self.damaged:
                    log.warning(f"{message}; the next image is used instead")
                    self.damaged.add(file)
        raise ChromaboxError(f"{message}, and so are all others")


Photos = StoredPhotos | Sequence[Photo]
"""Images that are decoded when they are indexed, or images in memory."""


@dataclass(frozen=True)
class PhotoDataset:
    """Training and validation images."""

    train: Photos
    val: Photos


def load_photos(source: Path) -> PhotoDataset:
    """Return the photographs in a folder of images, in a folder of tar shards or in a single shard.

    The splits are the subfolders ``train`` and ``val``, inside the shards if there are any. Without these subfolders,
    1 in 20 images is held out for validation. Images in a folder that cannot be read or have no colours in the centre
    crop are omitted, and the first omitted paths are logged. Raise UsageError if there are not at least two images.
    """
    shards = [source] if source.suffix == ".tar" and source.is_file() else sorted(source.glob("*.tar"))
    if shards:
        members = [member for shard in shards for member in _shard_members(shard)]
        splits = [[m for m in members if PurePosixPath(m.name).parts[0] == split] for split in ("train", "val")]
        parts: list[list[bytes | Member]] = [list(part) for part in (splits if all(splits) else [members])]
    elif source.is_dir():
        parts = _read_folder(source)
    else:
        raise UsageError(f"--data {str(source)!r}: not a folder; expected a folder of photographs or of tar shards")
    train, val = parts if len(parts) == 2 else hold_out(parts[0], VAL_EVERY_NTH) if parts[0] else ([], [])
    if not (train and val):
        raise UsageError(f"{source}: has too few colour images; expected at least one each for training and validation")
    return PhotoDataset(StoredPhotos(train), StoredPhotos(val))


def _shard_members(shard: Path) -> Iterator[Member]:
    """Yield the image files in a tar file. Raise ChromaboxError if it is damaged."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                suffix = PurePosixPath(entry.name).suffix.lower()
                if entry.isreg() and suffix in IMAGE_SUFFIXES and entry.size <= MAX_MEMBER_BYTES:
                    yield Member(shard, entry.name, entry.offset_data, entry.size)
    except (OSError, tarfile.TarError) as error:
        raise ChromaboxError(f"{shard}: not an uncompressed tar file, or damaged ({error})") from error


def _read_folder(folder: Path) -> list[list[bytes | Member]]:
    """Return the encoded images of the subfolders ``train`` and ``val``, or of the folder if there are none."""
    split_folders = [folder / split for split in ("train", "val")]
    folders = split_folders if all(split.is_dir() for split in split_folders) else [folder]
    paths = [[path for path, _ in find_images([part])] for part in folders]
    with progress_bar("reading", sum(map(len, paths)), unit="images") as tick:
        loaded = [[(path, _encode_file(path, tick)) for path in part] for part in paths]
    omitted = [str(path.relative_to(folder)) for part in loaded for path, photo in part if photo is None]
    if omitted:
        names = ", ".join(omitted[:MAX_LOGGED_PATHS])
        more = f" and {len(omitted) - MAX_LOGGED_PATHS} more" if len(omitted) > MAX_LOGGED_PATHS else ""
        log.warning(f"{folder}: omitted images that are corrupt or have no colours ({len(omitted)}): {names}{more}")
    return [[photo for _, photo in part if photo is not None] for part in loaded]


def _encode_file(path: Path, tick: Callable[[], None]) -> bytes | None:
    """Read, resize and encode an image. Return None if it cannot be read or has no colours."""
    tick()
    try:
        pixels = _resize(to_uint8(read_image(path).pixels))
    except ChromaboxError:
        return None
    # Validation uses the centre crop. If it is grey, the PSNR of the greyscale baseline is infinite.
    if np.ptp(center_crop(pixels).astype(np.int16), axis=2).max() == 0:
        return None
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def _decode(data: bytes) -> Photo:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _resize(pixels: Photo) -> Photo:
    """Crop an image to the centre and shrink it, so that the sides are at most ``STORED_SIDE`` and ``MAX_SIDE``."""
    scale = min(1.0, STORED_SIDE / min(pixels.shape[:2]))
    cropped = center_crop(pixels, max(1, round(MAX_SIDE / scale)))
    if scale == 1:
        return cropped
    width, height = (max(1, round(side * scale)) for side in (cropped.shape[1], cropped.shape[0]))
    # Reducing by an integer factor first is fast. With this gap, the difference is not visible.
    resized = Image.fromarray(cropped).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(resized)


def make_photo_batch(crops: Sequence[Photo], size: int) -> PhotoBatch:
    """Return lightness [batch, 1, size, size] in [0, 1] and chroma [batch, 2, size/4, size/4] of square crops."""
    squares = [resize_square(crop, size) for crop in crops]
    return _to_batch([_lightness(square) for square in squares], squares)


def resize_square(crop: Photo, size: int) -> Photo:
    """Resize a square crop to ``size`` × ``size`` pixels."""
    return np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))


def _lightness(pixels: Photo) -> Float[np.ndarray, "_ _"]:
    """Return L*/100."""
    return np.float32(1.16) * luminance_root(pixels) - np.float32(0.16)


def _to_batch(inputs: Sequence[Float[np.ndarray, "size size"]], squares: Sequence[Photo]) -> PhotoBatch:
    """Return the tensors of a batch, given the lightness of the inputs and the RGB values at the input size."""
    # Averaging two by two RGB values first makes the conversion to CIELAB four times faster.
    halves = np.stack([np.asarray(Image.fromarray(square).reduce(2)) for square in squares])
    chroma = torch.from_numpy(rgb_to_lab(halves)[..., 1:]).movedim(-1, 1)
    return torch.from_numpy(np.stack(inputs))[:, None], F.avg_pool2d(chroma, PhotoNet.stride // 2)


@dataclass(frozen=True)
class PhotoBatches:
    """The training batches of one epoch. A batch depends only on ``seed``, ``epoch`` and its index."""

    photos: Photos
    batch_size: int
    sizes: tuple[int, int]
    """Smallest and largest side length of the model's input in pixels. The side of a batch is a random multiple of 32
    between them."""
    seed: int
    epoch: int
    dist_info: DistInfo
    degraded_fraction: float = 0.0
    """Fraction of the inputs that are degraded."""

    @cached_property
    def order(self) -> Int64[np.ndarray, " images"]:
        """Indices of all images in random order."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.photos))

    def __getitem__(self, step: int) -> PhotoBatch:
        """Return the batch with this index."""
        global_batch_size = self.batch_size * self.dist_info.world_size
        indices = self.order[step * global_batch_size : (step + 1) * global_batch_size]
        low, high = (side // PhotoNet.size_divisor for side in self.sizes)
        rng = np.random.default_rng((self.seed, self.epoch, step))
        size = PhotoNet.size_divisor * int(rng.integers(low, high, endpoint=True))
        squares, inputs = [], []
        for index in indices[self.dist_info.rank :: self.dist_info.world_size].tolist():
            rng = np.random.default_rng((self.seed, self.epoch, step, index))
            square = resize_square(_random_crop(self.photos[index], rng), size)
            lightness = _lightness(square)
            squares.append(square)
            inputs.append(degrade(lightness, rng) if rng.random() < self.degraded_fraction else lightness)
        return _to_batch(inputs, squares)


def _random_crop(photo: Photo, rng: np.random.Generator) -> Photo:
    """Return a random square of an image, flipped horizontally with probability 1/2.

    The side of the square is the short side of the image with probability 0.4, and otherwise 0.6 to 1 times the short
    side.
    """
    short = min(photo.shape[:2])
    side = short if rng.random() < 0.4 else round(short * rng.uniform(0.6, 1))
    top, left = (int(rng.integers(length - side, endpoint=True)) for length in photo.shape[:2])
    square = photo[top : top + side, left : left + side]
    return square[:, ::-1] if rng.random() < 0.5 else square


def make_photo_batches(
    photos: Photos,
    batch_size: int,
    sizes: tuple[int, int],
    seed: int,
    dist_info: DistInfo,
    device: str = "cpu",
    degraded_fraction: float = 0.0,
) -> Callable[[int, int], Iterator[PhotoBatch]]:
    """Return a function that yields the batches of an epoch, given the epoch and the number of batches to skip.

    See :class:`PhotoBatches` for the arguments. The images left over after the last full batch are omitted. Batches are
    prepared in background threads: one for training on the CPU, which needs the cores itself, or one per core.
    """
    steps = num_batches(len(photos), batch_size, dist_info=dist_info)

    def epoch_batches(epoch: int, first_batch: int) -> Iterator[PhotoBatch]:
        batches = PhotoBatches(photos, batch_size, sizes, seed, epoch, dist_info, degraded_fraction)
        workers = 1 if device == "cpu" else None
        for lightness, chroma in map_ordered(range(first_batch, steps), batches.__getitem__, workers=workers):
            yield lightness.to(device, non_blocking=True), chroma.to(device, non_blocking=True)

    return epoch_batches
