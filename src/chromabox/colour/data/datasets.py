"""Datasets for the palette models, with grey images as inputs and palette labels as targets.

The conventions are those of the assignment. RGB is divided by 256 (not 255), grey is the plain mean of R, G and B, and
the target of a pixel is the palette colour nearest in RGB. Grey is stored as the exact integer sum R + G + B (0 to 765)
and converted to sum / 768 when a batch is gathered. CIFAR-10's 60,000 images therefore need little memory.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int16, UInt8
from PIL import Image
from torch import Tensor

from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import MAX_COLOURS, Palette, assign_labels, fit_palette, quantisation_error
from chromabox.engine.distributed import DistInfo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.cifar10 import CIFAR10_CLASSES, load_cifar10
from chromabox.io.fetch import cache_folder, fetch
from chromabox.io.http import PinnedFile, quiet
from chromabox.io.images import PixelValues, find_images, read_image, to_uint8

log = logging.getLogger(__name__)

Item = TypeVar("Item")
PaletteBatch = tuple[Float[Tensor, "batch 1 height width"], UInt8[Tensor, "batch height width"]]
RgbBatch = UInt8[np.ndarray, "_ 3 height width"]

#: The assignment's 24 colours: float32 RGB values divided by 256. The file has no public URL; a mirror can provide it.
COURSE_PALETTE = PinnedFile(
    "colour_kmeans24_cat7_plain_f32.npy",
    sha256="b27de7a2e354fa1cd13776dee08248a000ea21c82f2df0545f15fa8231d8faf6",
    size=416,
)

#: Prefix of the names of palettes fitted to the training images. The number of colours follows the prefix.
FITTED_PREFIX = "fitted:"

#: One in this many images in a user's folder belongs to the test split.
FOLDER_TEST_EVERY_NTH = 10


@dataclass(frozen=True)
class LabelledImages:
    """Images of one split, with their grey values, target labels and RGB values."""

    grey_sum: Int16[Tensor, "images height width"]
    labels: UInt8[Tensor, "images height width"]
    rgb: UInt8[np.ndarray, "rgb_images 3 height width"]
    """RGB values for colour metrics. The array may be empty if the images are used only for training."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def grey(self) -> Float[Tensor, "images 1 height width"]:
        """Grey values of all images, in [0, 1)."""
        return to_grey(self.grey_sum)

    def select(self, rows: slice) -> "LabelledImages":
        """Return a slice of the images as views, without copying them."""
        return LabelledImages(self.grey_sum[rows], self.labels[rows], self.rgb[rows])


@dataclass(frozen=True)
class ColourDataset:
    """The splits of a dataset, encoded with one palette."""

    train: LabelledImages
    test: LabelledImages
    val: LabelledImages | None = None
    """Training images held out for model selection; None without a validation set."""
    auxiliary: LabelledImages | None = None
    """Training images of CIFAR-10's other classes; None if they are not requested or there are no other classes."""


def to_grey(grey_sum: Int16[Tensor, "images height width"]) -> Float[Tensor, "images 1 height width"]:
    """Convert sums of 8-bit R, G and B to float32 grey values (mean / 256), without intermediate rounding."""
    return grey_sum[:, None].float() / 768


def encode_images(rgb: RgbBatch, palette: Palette) -> LabelledImages:
    """Compute the grey sums and nearest-colour labels of 8-bit images."""
    labels = torch.from_numpy(assign_labels(rgb, palette, axis=1))
    return LabelledImages(torch.from_numpy(rgb.sum(axis=1, dtype=np.int16)), labels, rgb)


def load_colour_dataset(
    spec: str, palette: Palette, *, val_fraction: float = 0.0, size: int = 32, with_auxiliary: bool = False
) -> ColourDataset:
    """Load a dataset: a folder of images, ``cifar10:all``, or classes of CIFAR-10, such as ``cifar10:horse+dog``.

    CIFAR-10 keeps its split and order. The images of a folder are cropped to the central square and resized to ``size``
    × ``size`` pixels. A tenth of them, chosen at random with a fixed seed, is the test split. The last training images,
    a fraction ``val_fraction`` (0 to 0.5), are held out for validation. With ``with_auxiliary``, the training images of
    CIFAR-10's other classes are also loaded.

    Raise UsageError for an unknown name or class, a fraction out of range, or a folder with too few images.
    """
    if not 0 <= val_fraction <= 0.5:
        raise UsageError(f"--val-fraction is {val_fraction}: expected a fraction of the training images from 0 to 0.5")
    train, test = (encode_images(rgb, palette) for rgb in _load_rgb(spec, size))
    num_val = max(1, round(len(train) * val_fraction)) if val_fraction else 0
    num_train = len(train) - num_val
    if num_train < 1:
        raise UsageError(
            f"--val-fraction is {val_fraction}: {spec} has too few images; use 0 or a dataset with more images"
        )
    val = train.select(slice(num_train, None)) if num_val else None
    auxiliary = None
    if with_auxiliary and (other_classes := _remaining_classes(spec)):
        auxiliary = encode_images(load_cifar10("train", other_classes)[0], palette)
        auxiliary = replace(auxiliary, rgb=auxiliary.rgb[:0].copy())  # A view would keep all RGB values in memory.
    return ColourDataset(train.select(slice(num_train)), test, val, auxiliary)


def resolve_palette(name: str, spec: str, *, size: int = 32) -> Palette:
    """Return the palette with this name: a palette file, a bundled palette, or one of the following.

    ``course``: the assignment's palette.
    ``fitted:K``: K colours fitted to the training images.
    ``auto``: for CIFAR-10's horses, the assignment's palette if a mirror provides it, otherwise ``horse24``; for other
    CIFAR-10 data, ``cifar24``; for a folder, 24 colours fitted to its training images.

    Raise UsageError if K is not 2 to 256.
    """
    if name == "course":
        return course_palette()
    if name.startswith(FITTED_PREFIX):
        count = name.removeprefix(FITTED_PREFIX)
        if not (count.isdecimal() and 2 <= int(count) <= MAX_COLOURS):
            raise UsageError(
                f"--palette {name}: expected 2 to {MAX_COLOURS} colours, for example --palette {FITTED_PREFIX}24"
            )
        title = f"{int(count)} colours fitted to {Path(spec).name}"
        return fit_palette(_load_rgb(spec, size)[0], int(count), name=title, axis=1)
    if name != "auto":
        return load_palette(name)
    if spec == "cifar10:horse":
        try:
            return course_palette()
        except ChromaboxError:
            return load_palette("horse24")
    if spec.startswith("cifar10:"):
        return load_palette("cifar24")
    return fit_palette(_load_rgb(spec, size)[0], name=f"fitted to {Path(spec).name}", axis=1)


def course_palette() -> Palette:
    """Return the assignment's palette from the cache or a mirror. Raise ChromaboxError if neither has it."""
    path = fetch([COURSE_PALETTE], [], cache_folder(), progress=quiet)[0]
    return Palette(load_palette(path).colours, "course")


def fit_palette_to_images(sources: Sequence[str], num_colours: int, *, seed: int, name: str) -> tuple[Palette, float]:
    """Fit one palette to image files, folders and CIFAR-10 data. Return the palette and its mean quantisation error.

    The quantisation error of a pixel is the Euclidean distance from the pixel to the nearest colour, for RGB values
    divided by 256. Large images are subsampled to about one megapixel. Images that cannot be read are skipped with a
    warning. Raise UsageError if there are no sources or the number of colours is not between 2 and 256, and
    ChromaboxError if no image can be read.
    """
    if not sources:
        raise UsageError("no images given: expected at least one image, folder, cifar10:CLASS or cifar10:all")
    if not 2 <= num_colours <= MAX_COLOURS:
        raise UsageError(f"--colours is {num_colours}: expected 2 to {MAX_COLOURS}")
    parts = []
    failed: list[ChromaboxError] = []
    for source in sources:
        if source.startswith("cifar10:"):
            parts.append(_load_rgb(source, 32)[0].transpose(0, 2, 3, 1).reshape(-1, 3))
            continue
        for path, _ in find_images([Path(source)]):
            try:
                pixels = read_image(path).pixels
            except ChromaboxError as error:
                failed.append(error)
                continue
            step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
            parts.append(to_uint8(pixels[::step, ::step]).reshape(-1, 3))
    if not parts:
        raise failed[0]
    for problem in failed:
        log.warning(f"skipped: {problem}")
    all_pixels = np.concatenate(parts)
    palette = fit_palette(all_pixels, num_colours, seed=seed, name=name)
    return palette, quantisation_error(all_pixels, palette)


def _load_rgb(spec: str, size: int) -> tuple[RgbBatch, RgbBatch]:
    """Return the training and test images of a dataset. The images of a folder are resized to ``size``."""
    name, colon, classes = spec.partition(":")
    if name == "cifar10" and colon:
        selected = None if classes == "all" else tuple(classes.split("+"))
        return load_cifar10("train", selected)[0], load_cifar10("test", selected)[0]
    folder = Path(spec)
    if not folder.is_dir():
        raise UsageError(
            f"--data {spec!r}: unknown dataset; expected cifar10:all, cifar10:CLASS "
            f"(one of {', '.join(CIFAR10_CLASSES)}) or a folder of images"
        )
    if size < 8 or size % 8:
        raise UsageError(f"--size is {size}: expected a multiple of 8, at least 8")
    paths = [path for path, _ in find_images([folder])]
    if len(paths) < 2:
        raise UsageError(
            f"{folder}: contains only one image; expected at least two, because one is held out for testing"
        )
    train_paths, test_paths = hold_out(paths, FOLDER_TEST_EVERY_NTH)
    return _load_squares(train_paths, size), _load_squares(test_paths, size)


def _load_squares(paths: Sequence[Path], size: int) -> RgbBatch:
    """Read images, crop them to their central squares and resize them to ``size``."""
    squares = (Image.fromarray(to_uint8(center_crop(read_image(path).pixels))) for path in paths)
    resized = [np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)) for square in squares]
    return np.ascontiguousarray(np.stack(resized).transpose(0, 3, 1, 2))


def _remaining_classes(spec: str) -> tuple[str, ...]:
    """Return the CIFAR-10 classes that ``spec`` does not contain, or an empty tuple for other datasets."""
    name, _, classes = spec.partition(":")
    if name != "cifar10" or classes == "all":
        return ()
    return tuple(label for label in CIFAR10_CLASSES if label not in classes.split("+"))


def hold_out(items: Sequence[Item], every_nth: int) -> tuple[list[Item], list[Item]]:
    """Split items at random with a fixed seed. Return the remaining and the held-out items, in the original order.

    One in ``every_nth`` items is held out, and at least one item in total.
    """
    order = np.random.default_rng(0).permutation(len(items))
    num_held_out = max(1, len(items) // every_nth)
    held_out, remaining = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
    return [items[index] for index in remaining], [items[index] for index in held_out]


def center_crop(pixels: PixelValues, max_side: int | None = None) -> PixelValues:
    """Crop each side of an image to at most ``max_side`` pixels around the centre. None stands for the short side."""
    sides = [min(length, max_side or min(pixels.shape[:2])) for length in pixels.shape[:2]]
    top, left = ((length - side) // 2 for length, side in zip(pixels.shape, sides, strict=False))
    return pixels[top : top + sides[0], left : left + sides[1]]


def make_batches(
    images: LabelledImages,
    batch_size: int,
    *,
    shuffle: bool,
    hflip: bool,
    seed: int,
    auxiliary: LabelledImages | None = None,
    auxiliary_fraction: float = 0.0,
    dist_info: DistInfo | None = None,
    device: str = "cpu",
) -> Callable[[int, int], Iterator[PaletteBatch]]:
    """Return a function that yields the batches of an epoch, given the epoch and the number of batches to skip.

    The order and the horizontal flips depend only on ``(seed, epoch)``. An epoch can therefore be resumed at any batch
    and does not depend on the number of processes. Each process gets its share of every batch of ``batch_size`` ×
    ``dist_info.world_size`` images. With shuffling, the images left over after the last full batch are omitted. These
    images differ between epochs.

    ``auxiliary`` contains images of other classes as additional training images for a large model. These images replace
    a fraction of the images in each batch, given by ``auxiliary_fraction`` in [0, 1), and require shuffling.
    """
    dist_info = dist_info or DistInfo()
    global_batch_size = batch_size * dist_info.world_size
    steps = num_batches(len(images), batch_size, shuffle=shuffle, dist_info=dist_info)
    all_images = images
    if auxiliary is not None:
        grey_sum = torch.cat([images.grey_sum, auxiliary.grey_sum])
        all_images = LabelledImages(grey_sum, torch.cat([images.labels, auxiliary.labels]), images.rgb[:0])

    def epoch_batches(epoch: int, first_batch: int) -> Iterator[PaletteBatch]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator) if shuffle else torch.arange(len(images))
        if auxiliary is not None:  # The last images of every batch are auxiliary images.
            num_mixed_in = round(auxiliary_fraction * global_batch_size)
            num_kept = global_batch_size - num_mixed_in
            mixed_in = torch.randperm(len(auxiliary), generator=generator)[: steps * num_mixed_in] + len(images)
            parts = order[: steps * num_kept].view(steps, num_kept), mixed_in.view(steps, num_mixed_in)
            order = torch.cat(parts, dim=1).flatten()
        flips = torch.rand(len(order), generator=generator) < 0.5 if hflip else torch.zeros(len(order)).bool()
        for step in range(first_batch, steps):
            rows = slice(step * global_batch_size, (step + 1) * global_batch_size)
            indices, flip = order[rows], flips[rows]
            divisible = len(indices) - len(indices) % dist_info.world_size  # Every process needs the same number.
            rank_rows = slice(dist_info.rank, divisible, dist_info.world_size)
            yield gather_batch(all_images, indices[rank_rows], flip[rank_rows], device)

    return epoch_batches


def num_batches(num_images: int, batch_size: int, *, shuffle: bool = True, dist_info: DistInfo | None = None) -> int:
    """Return the number of batches per epoch. Raise UsageError if there are too few images for one batch.

    With shuffling, the images left over after the last full batch are omitted.
    """
    world_size = (dist_info or DistInfo()).world_size
    global_batch_size = batch_size * world_size
    # A last batch with fewer images than processes is omitted, because the mean loss of an empty batch is undefined.
    steps = num_images // global_batch_size + (not shuffle and num_images % global_batch_size >= world_size)
    if steps == 0:
        raise UsageError(
            f"--batch-size: {global_batch_size} (all processes together); expected at most {num_images}, the number of "
            "training images"
        )
    return steps


def gather_batch(images: LabelledImages, indices: Tensor, flip: Tensor, device: str = "cpu") -> PaletteBatch:
    """Return the grey inputs and labels of the given images, horizontally flipped where ``flip`` is true."""
    grey_sum, labels = images.grey_sum[indices], images.labels[indices]
    if flip.any():
        grey_sum[flip], labels[flip] = grey_sum[flip].flip(-1), labels[flip].flip(-1)
    return to_grey(grey_sum).to(device), labels.to(device)
