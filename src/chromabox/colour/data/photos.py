"""Photographs for training the photo model, with lightness as the input and chroma as the target.

Images are kept in memory at reduced size (with a short side of ``STORED_SIDE``). Each time an image is used, a random
square is cropped, randomly flipped horizontally and resized to the model's input size. Lightness is L*/100. The
targets are the means of a* and b* over the patch that each output position of the model covers.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.data.datasets import center_crop, hold_out, num_batches
from chromabox.colour.models.photonet import PhotoNet
from chromabox.engine.distributed import DistInfo
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import find_images, read_image

log = logging.getLogger(__name__)

#: Short side, in pixels, to which images are resized when they are read.
STORED_SIDE = 128
#: Maximum long side, in pixels. A panorama is cropped to its centre.
MAX_SIDE = 256
#: One in this many images of a folder without subfolders ``train`` and ``val`` is held out for validation.
VAL_EVERY_NTH = 20
#: Maximum number of omitted images whose paths are logged.
MAX_LOGGED_PATHS = 5

Photo = UInt8[np.ndarray, "_ _ 3"]
PhotoBatch = tuple[Float[Tensor, "batch 1 height width"], Float[Tensor, "batch 2 small_height small_width"]]


@dataclass(frozen=True)
class PhotoDataset:
    """Training and validation images, each with a short side of ``STORED_SIDE``."""

    train: Sequence[Photo]
    val: Sequence[Photo]


def load_photos(folder: Path) -> PhotoDataset:
    """Read all images in a folder.

    The splits are the subfolders ``train`` and ``val``. Without these subfolders, 1 in 20 images is held out for
    validation. Images that cannot be read and images without colours in the centre crop are omitted, and the first
    omitted paths are logged. Raise UsageError if the path is not a folder with at least two colour images.
    """
    if not folder.is_dir():
        raise UsageError(f"--data {str(folder)!r}: not a folder; expected a folder of photographs")
    split_folders = [folder / split for split in ("train", "val")]
    folders = split_folders if all(split.is_dir() for split in split_folders) else [folder]
    paths = [[path for path, _ in find_images([part])] for part in folders]
    with progress_bar("reading", sum(map(len, paths)), unit="images") as tick:
        loaded = [[(path, _load_resized(path, tick)) for path in part] for part in paths]
    omitted = [str(path.relative_to(folder)) for part in loaded for path, photo in part if photo is None]
    if omitted:
        names = ", ".join(omitted[:MAX_LOGGED_PATHS])
        more = f" and {len(omitted) - MAX_LOGGED_PATHS} more" if len(omitted) > MAX_LOGGED_PATHS else ""
        log.warning(f"{folder}: omitted images that are corrupt or have no colours ({len(omitted)}): {names}{more}")
    splits = [[photo for _, photo in part if photo is not None] for part in loaded]
    train, val = splits if len(splits) == 2 else hold_out(splits[0], VAL_EVERY_NTH)
    if not (train and val):
        raise UsageError(f"{folder}: has too few colour images; expected at least one each for training and validation")
    return PhotoDataset(train, val)


def _load_resized(path: Path, tick: Callable[[], None]) -> Photo | None:
    """Read an image and resize it to its stored size. Return None if it cannot be read or has no colours."""
    tick()
    try:
        data = read_image(path)
    except ChromaboxError:
        return None
    pixels = data.pixels if data.bit_depth == 8 else (data.pixels >> 8).astype(np.uint8)
    scale = STORED_SIDE / min(pixels.shape[:2])
    # Crop before upsampling. An upsampled strip one pixel high would take gigabytes.
    pixels = center_crop(pixels, max(1, round(MAX_SIDE / scale) + 2))
    width, height = (max(STORED_SIDE, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    # Reducing by an integer factor first is fast. With this gap, the difference is not visible.
    resized = Image.fromarray(pixels).resize((width, height), resample, reducing_gap=3.0)
    small = np.ascontiguousarray(center_crop(np.asarray(resized), MAX_SIDE))
    # Validation uses the centre crop. If it is grey, the PSNR of the greyscale baseline is infinite.
    return None if np.ptp(center_crop(small).astype(np.int16), axis=2).max() == 0 else small


def make_photo_batch(crops: Sequence[Photo], size: int) -> PhotoBatch:
    """Return lightness [batch, 1, size, size] in [0, 1] and chroma [batch, 2, size/8, size/8] of square crops."""
    lightness, chroma = [], []
    for square in crops:
        lab = torch.from_numpy(rgb_to_lab(square)).permute(2, 0, 1)[None]
        side = lab.shape[-1]
        lightness.append(F.interpolate(lab[:, :1], (size, size), mode="bilinear", antialias=side > size) / 100)
        chroma.append(F.adaptive_avg_pool2d(lab[:, 1:], size // PhotoNet.stride))
    return torch.cat(lightness), torch.cat(chroma)


def make_photo_batches(
    photos: Sequence[Photo], batch_size: int, size: int, seed: int, dist_info: DistInfo, device: str = "cpu"
) -> Callable[[int, int], Iterator[PhotoBatch]]:
    """Return a function that yields the batches of an epoch, given the epoch and the number of batches to skip.

    Order, crops and horizontal flips depend only on ``(seed, epoch)``. The side length of a crop is the short side of
    the image with probability 0.4, and otherwise 0.6 to 1 times the short side. The images left over after the last
    full batch are omitted.
    """
    global_batch_size = batch_size * dist_info.world_size
    steps = num_batches(len(photos), batch_size, dist_info=dist_info)

    def epoch_batches(epoch: int, first_batch: int) -> Iterator[PhotoBatch]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(photos), generator=generator)
        uniforms = torch.rand(len(photos), 5, generator=generator).numpy()
        for step in range(first_batch, steps):
            batch_indices = order[step * global_batch_size : (step + 1) * global_batch_size]
            indices = batch_indices[dist_info.rank :: dist_info.world_size].tolist()
            crops = [_random_crop(photos[index], uniforms[index]) for index in indices]
            lightness, chroma = make_photo_batch(crops, size)
            yield lightness.to(device), chroma.to(device)

    return epoch_batches


def _random_crop(photo: Photo, uniforms: Float[np.ndarray, "5"]) -> Photo:
    """Crop a random square of an image and flip it at random, determined by five uniform numbers in [0, 1)."""
    short = min(photo.shape[:2])
    side = short if uniforms[0] < 0.4 else round(short * (0.6 + 0.4 * uniforms[1]))
    top, left = (int(part * (length - side + 1)) for part, length in zip(uniforms[2:4], photo.shape, strict=False))
    square = photo[top : top + side, left : left + side]
    return square[:, ::-1] if uniforms[4] < 0.5 else square
