"""Photographs as the photo net's training sees them: lightness in, soft chroma targets out.

Every picture is kept small in memory (its short side at ``KEPT_SIDE``), and each time it is shown another square of it
is cut out, mirrored or not, and brought to the net's working size. Lightness is L*/100; targets are the mean a* and
b* of each patch that the net answers for.
"""

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
from chromabox.engine.distributed import DistInfo
from chromabox.engine.logger import progress_bar
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import find_images, read_image

#: Short side, in pixels, to which pictures are brought when they are read.
STORED_SIDE = 128
#: Long side at most, in pixels: a panorama is cut to its middle.
MAX_SIDE = 256
#: One in so many pictures of a folder without ``train`` and ``val`` inside is kept to choose by.
VAL_EVERY_NTH = 20

Photo = UInt8[np.ndarray, "_ _ 3"]
PhotoBatch = tuple[Float[Tensor, "batch 1 height width"], Float[Tensor, "batch 2 small_height small_width"]]


@dataclass(frozen=True)
class PhotoDataset:
    """What is trained on and what is chosen by, each picture with its short side at ``KEPT_SIDE``."""

    train: Sequence[Photo]
    val: Sequence[Photo]


def load_photos(folder: Path, log: Callable[[str], None] = print) -> PhotoDataset:
    """Read all pictures of a folder: its ``train`` and ``val`` folders where it has both, else every 20th is val.

    Pictures that cannot be read, and those whose middle holds no colours, are left out, and ``say`` is told how many.
    Raises UsageError for what is no folder of at least two coloured pictures.
    """
    if not folder.is_dir():
        raise UsageError(f"data {str(folder)!r}: not a folder; a photo net trains on a folder of photographs")
    given = [folder / split for split in ("train", "val")]
    folders = given if all(split.is_dir() for split in given) else [folder]
    paths = [[path for path, _ in find_images([part])] for part in folders]
    with progress_bar("reading", sum(map(len, paths)), unit="pictures") as tick:
        splits = [
            [photograph for path in part if (photograph := _load_resized(path, tick)) is not None] for part in paths
        ]
    left_out = sum(map(len, paths)) - sum(map(len, splits))
    if left_out:
        log(f"{folder}: {left_out} pictures are left out, being damaged or without colours")
    if len(splits) == 1:
        splits = _train_val_split(splits[0])
    if not all(splits):
        raise UsageError(f"{folder}: holds too few coloured pictures; at least one to train on and one to choose by")
    return PhotoDataset(*splits)


def _train_val_split(photos: list[Photo]) -> list[list[Photo]]:
    """The pictures to train on and the ones to choose by, at least one, drawn by lot but always the same."""
    order = np.random.default_rng(0).permutation(len(photos))
    held = max(1, len(photos) // VAL_EVERY_NTH)
    return [[photos[index] for index in np.sort(part)] for part in (order[held:], order[:held])]


def _load_resized(path: Path, tick: Callable[[], None]) -> Photo | None:
    """The picture brought to its small size; None for one that cannot be read or has no colours."""
    tick()
    try:
        picture = read_image(path)
    except ChromaboxError:
        return None
    pixels = picture.pixels if picture.bit_depth == 8 else (picture.pixels >> 8).astype(np.uint8)
    image = Image.fromarray(pixels)
    scale = STORED_SIDE / min(image.size)
    if scale != 1:
        way = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
        # Of a strip only the middle is ever enlarged: a line of pixels would become gigabytes.
        image = _crop_long_side(image, max(1, round(MAX_SIDE / scale) + 2))
        width, height = (max(STORED_SIDE, round(side * scale)) for side in image.size)
        # Reducing first by whole numbers is quick, and with this gap makes no visible difference.
        image = image.resize((width, height), way, reducing_gap=3.0)
    small = np.ascontiguousarray(_crop_long_side(image, MAX_SIDE))
    # The middle is what epochs are judged by: there a grey one would be infinitely well coloured by grey.
    return None if np.ptp(center_crop(small).astype(np.int16), axis=2).max() == 0 else small


def _crop_long_side(image: Image.Image, max_side: int) -> Image.Image:
    """The image with what its sides have beyond ``longest`` cut off at both ends."""
    width, height = (min(side, max_side) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def make_photo_batch(crops: Sequence[Photo], size: int, stride: int) -> PhotoBatch:
    """Lightness [batch, 1, size, size] in [0, 1] and chroma [batch, 2, size/stride, size/stride] of square pictures."""
    lightness, chroma = [], []
    for square in crops:
        lab = rgb_to_lab(torch.from_numpy(square.copy())[None])
        side = lab.shape[-1]
        lightness.append(F.interpolate(lab[:, :1], (size, size), mode="bilinear", antialias=side > size) / 100)
        chroma.append(F.adaptive_avg_pool2d(lab[:, 1:], size // stride))
    return torch.cat(lightness), torch.cat(chroma)


def center_crop(photo: Photo) -> Photo:
    """The middle of a picture, as large as its short side."""
    side = min(photo.shape[:2])
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    return photo[top : top + side, left : left + side]


def make_photo_batches(
    photos: Sequence[Photo],
    batch_size: int,
    *,
    size: int,
    stride: int,
    seed: int,
    world: DistInfo | None = None,
    device: str = "cpu",
) -> Callable[[int, int], Iterator[PhotoBatch]]:
    """A function (epoch, batches to pass over) → the epoch's batches, as the training loop wants it.

    Order, squares and mirroring are drawn from ``(seed, epoch)`` alone. Two squares in five are as large as the
    picture's short side, the others 0.6 to 1 of it. The pictures that do not fill the last batch are left out.
    """
    world = world or DistInfo()
    whole = batch_size * world.world_size
    steps = num_photo_batches(len(photos), batch_size, world)

    def epoch_batches(epoch: int, passed: int) -> Iterator[PhotoBatch]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(photos), generator=generator)
        draws = torch.rand(len(photos), 5, generator=generator).numpy()
        for step in range(passed, steps):
            mine = order[step * whole : (step + 1) * whole][world.rank :: world.world_size].tolist()
            lightness, chroma = make_photo_batch(
                [_random_crop(photos[index], draws[index]) for index in mine], size, stride
            )
            yield lightness.to(device), chroma.to(device)

    return epoch_batches


def num_photo_batches(num_photos: int, batch_size: int, world: DistInfo | None = None) -> int:
    """How many batches an epoch has; UsageError if the pictures do not fill one."""
    whole = batch_size * (world or DistInfo()).world_size
    if num_photos < whole:
        raise UsageError(
            f"batch size {whole} is more than the {num_photos} training pictures; give a smaller --batch-size"
        )
    return num_photos // whole


def _random_crop(photo: Photo, uniforms: Float[np.ndarray, "5"]) -> Photo:
    """A square cut out of a picture, mirrored or not, as five random numbers in [0, 1) say."""
    short = min(photo.shape[:2])
    side = short if uniforms[0] < 0.4 else round(short * (0.6 + 0.4 * uniforms[1]))
    top, left = (int(part * (length - side + 1)) for part, length in zip(uniforms[2:4], photo.shape, strict=False))
    square = photo[top : top + side, left : left + side]
    return square[:, ::-1] if uniforms[4] < 0.5 else square
