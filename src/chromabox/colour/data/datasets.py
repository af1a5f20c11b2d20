"""Datasets for the palette models, with grey images as inputs and palette labels as targets.

The conventions are those of the assignment. RGB is divided by 256 (not 255), grey is the plain mean of R, G and B, and
the target of a pixel is the palette colour nearest in RGB. Grey is stored as the exact integer sum R + G + B (0 to 765)
and converted to sum / 768 when a batch is gathered, which keeps sixty thousand images small in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import MAX_COLOURS, Palette, assign_labels, fit_palette, quantisation_error
from chromabox.engine.distributed import DistInfo
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.cifar10 import CIFAR10_CLASSES, load_cifar10
from chromabox.io.fetch import cache_folder, fetch
from chromabox.io.http import PinnedFile, quiet
from chromabox.io.images import find_images, read_image, to_uint8

PaletteBatch = tuple[Float[Tensor, "batch 1 height width"], UInt8[Tensor, "batch height width"]]

#: The assignment's 24 colours as plain float32 RGB/256. The file has no public URL; a mirror can provide it.
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
    """One split: grey inputs, target labels and, for colour metrics, the RGB images."""

    grey_sum: Int16[Tensor, "images height width"]
    labels: UInt8[Tensor, "images height width"]
    rgb: UInt8[np.ndarray, "rgb_images 3 height width"]
    """RGB images for all label maps, or no images where colours are not used."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def grey(self) -> Float[Tensor, "images 1 height width"]:
        """Grey values of all images, in [0, 1)."""
        return to_grey(self.grey_sum)

    def select(self, rows: slice) -> "LabelledImages":
        """Return a slice of the images as views, without copying them."""
        return LabelledImages(self.grey_sum[rows], self.labels[rows], self.rgb[rows])

    def drop_rgb(self) -> "LabelledImages":
        """Return the same images without RGB, for training only."""
        return replace(self, rgb=np.empty((0, *self.rgb.shape[1:]), np.uint8))


@dataclass(frozen=True)
class ColourDataset:
    """The splits of a dataset, encoded with one palette."""

    train: LabelledImages
    test: LabelledImages
    val: LabelledImages | None = None
    """Training images held out for model selection; None without a validation set."""
    auxiliary: LabelledImages | None = None
    """Training images of CIFAR-10's other classes; None if they are not requested or do not exist."""


def to_grey(grey_sum: Int16[Tensor, "images height width"]) -> Float[Tensor, "images 1 height width"]:
    """Convert R + G + B (8-bit values) to the mean of RGB/256, exactly in float32."""
    return grey_sum[:, None].float() / 768


def encode_images(rgb: UInt8[np.ndarray, "images 3 height width"], palette: Palette) -> LabelledImages:
    """Compute the grey sums and nearest-colour labels of 8-bit images."""
    grey_sum = rgb.sum(axis=1, dtype=np.int16)
    labels = assign_labels(rgb, palette, axis=1)
    return LabelledImages(torch.from_numpy(grey_sum), torch.from_numpy(labels), rgb)


def load_colour_dataset(
    spec: str, palette: Palette, *, val_fraction: float = 0.0, size: int = 32, with_auxiliary: bool = False
) -> ColourDataset:
    """Load a dataset by name: ``cifar10:horse`` (any class, or several joined by ``+``), ``cifar10:all``, or a folder.

    CIFAR-10 keeps its split and order. The images of a folder are cropped to the central square and resized to
    ``size`` × ``size``. A tenth of them, chosen by a fixed shuffle, belongs to the test split.

    Args:
        spec: name of the dataset or path of the folder.
        palette: palette of the labels.
        val_fraction: fraction of the training images (the last ones) held out for validation, 0 to 0.5; 0: none.
        size: side length, in pixels, to which images from a folder are resized.
        with_auxiliary: also load the training images of CIFAR-10's other classes.

    Raise UsageError for an unknown name or class, a fraction out of range, or a folder with too few images.
    """
    if not 0 <= val_fraction <= 0.5:
        raise UsageError(f"--val-fraction is {val_fraction}: expected a fraction of the training images from 0 to 0.5")
    train_rgb, test_rgb = _load_rgb(spec, size)
    other_classes = _remaining_classes(spec) if with_auxiliary else ()
    auxiliary = encode_images(load_cifar10("train", other_classes)[0], palette).drop_rgb() if other_classes else None
    data = ColourDataset(encode_images(train_rgb, palette), encode_images(test_rgb, palette), auxiliary=auxiliary)
    if val_fraction == 0:
        return data
    num_train = len(data.train) - max(1, round(len(data.train) * val_fraction))
    if num_train < 1:
        raise UsageError(
            f"--val-fraction is {val_fraction}: {spec} has too few images; use 0 or a dataset with more images"
        )
    return replace(data, train=data.train.select(slice(0, num_train)), val=data.train.select(slice(num_train, None)))


def resolve_palette(name: str, spec: str, *, size: int = 32) -> Palette:
    """Return the palette with this name. ``auto`` selects a palette for the data.

    fitted:K: K colours fitted to the training images.
    auto: for CIFAR-10's horses, the assignment's palette (``course``) if a mirror provides it, else ``horse24``; for
    other CIFAR-10 data, ``cifar24``; for a folder, 24 colours fitted to its training images.

    Raise UsageError if K is not 2 to 256.
    """
    if name == "course":
        return course_palette()
    if name.startswith(FITTED_PREFIX):
        return _fit_named_palette(name, spec, size)
    if name != "auto":
        return load_palette(name)
    if spec == "cifar10:horse":
        try:
            return course_palette()
        except ChromaboxError:
            return load_palette("horse24")
    if spec.startswith("cifar10:"):
        return load_palette("cifar24")
    return fit_palette(_load_rgb(spec, size)[0].transpose(0, 2, 3, 1), name=f"fitted to {Path(spec).name}")


def _fit_named_palette(name: str, spec: str, size: int) -> Palette:
    """Fit the palette ``fitted:K``."""
    count = name.removeprefix(FITTED_PREFIX)
    if not (count.isdecimal() and 2 <= int(count) <= MAX_COLOURS):
        raise UsageError(
            f"--palette {name}: expected 2 to {MAX_COLOURS} colours, for example --palette {FITTED_PREFIX}24"
        )
    title = f"{int(count)} colours fitted to {Path(spec).name}"
    return fit_palette(_load_rgb(spec, size)[0], int(count), name=title, axis=1)


def course_palette() -> Palette:
    """Return the assignment's palette from the cache or a mirror. Raise ChromaboxError if neither has it."""
    path = fetch([COURSE_PALETTE], [], cache_folder(), progress=quiet)[0]
    return Palette(load_palette(path).colours, "course")


def fit_palette_to_images(sources: Sequence[str], num_colours: int, *, seed: int, name: str) -> tuple[Palette, float]:
    """Fit one palette to images, folders and CIFAR-10 sets. Return it and the mean distance from a pixel to it.

    The distance is the Euclidean distance to the nearest colour in RGB/256. Raise UsageError if the number of colours
    is not 2 to 256.
    """
    if not 2 <= num_colours <= 256:
        raise UsageError(f"--colours is {num_colours}: expected 2 to 256")
    pixels = []
    for source in sources:
        if source.startswith("cifar10:"):
            pixels.append(_load_rgb(source, 32)[0].transpose(0, 2, 3, 1).reshape(-1, 3))
        else:
            pixels += [_read_subsampled(path).reshape(-1, 3) for path, _ in find_images([Path(source)])]
    all_pixels = np.concatenate(pixels)
    palette = fit_palette(all_pixels, num_colours, seed=seed, name=name)
    return palette, quantisation_error(all_pixels, palette)


def _read_subsampled(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read an 8-bit image, subsampled to about one megapixel. Only the distribution of colours matters."""
    pixels = read_image(path).pixels
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
    return to_uint8(pixels[::step, ::step])


def _load_rgb(spec: str, size: int) -> tuple[UInt8[np.ndarray, "train 3 h w"], UInt8[np.ndarray, "test 3 h w"]]:
    name, colon, classes = spec.partition(":")
    if name == "cifar10" and colon:
        selected = None if classes == "all" else tuple(classes.split("+"))
        return load_cifar10("train", selected)[0], load_cifar10("test", selected)[0]
    if not Path(spec).is_dir():
        raise UsageError(
            f"--data {spec!r}: unknown dataset; expected cifar10:all, cifar10:CLASS "
            f"(one of {', '.join(CIFAR10_CLASSES)}) or a folder of images"
        )
    return _load_folder(Path(spec), size)


def _remaining_classes(spec: str) -> tuple[str, ...]:
    """Return the CIFAR-10 classes that ``spec`` does not contain. For other data, there are none."""
    name, _, classes = spec.partition(":")
    if name != "cifar10" or classes == "all":
        return ()
    return tuple(label for label in CIFAR10_CLASSES if label not in classes.split("+"))


def _load_folder(folder: Path, size: int) -> tuple[UInt8[np.ndarray, "train 3 h w"], UInt8[np.ndarray, "test 3 h w"]]:
    if size < 8 or size % 8:
        raise UsageError(f"--size is {size}: expected a multiple of 8, at least 8")
    paths = [path for path, _ in find_images([folder])]
    if len(paths) < 2:
        raise UsageError(f"{folder}: has {len(paths)} image; expected at least two, of which one is for testing")
    rgb = np.stack([_center_crop(path, size) for path in paths])
    order = np.random.default_rng(0).permutation(len(rgb))
    num_test = max(1, len(rgb) // FOLDER_TEST_EVERY_NTH)
    return rgb[np.sort(order[num_test:])], rgb[np.sort(order[:num_test])]


def _center_crop(path: Path, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """Read an image, crop it to its central square and resize it to ``size``."""
    from PIL import Image

    pixels = read_image(path).pixels
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = to_uint8(pixels[top : top + side, left : left + side])
    small = Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))


@dataclass(frozen=True)
class AuxiliaryImages:
    """Images of other classes that are mixed into the batches, to give a large model more training images."""

    images: LabelledImages
    fraction: float
    """Fraction of each batch, in [0, 1)."""


def make_batches(
    images: LabelledImages,
    batch_size: int,
    *,
    shuffle: bool,
    hflip: bool,
    seed: int,
    auxiliary: AuxiliaryImages | None = None,
    dist_info: DistInfo | None = None,
    device: str = "cpu",
) -> Callable[[int, int], Iterator[PaletteBatch]]:
    """Return a function (epoch, number of batches to skip) → the batches of the epoch, for the training loop.

    Order and horizontal flips depend only on ``(seed, epoch)``. An epoch can therefore be resumed at any batch and
    does not depend on the number of processes. Each process gets its share of every batch of ``batch_size`` ×
    ``dist_info.world_size`` images. With shuffling, the images that do not fill the last batch are omitted. These
    images differ between epochs. Auxiliary images, which require shuffling, replace some of the images of each batch.
    """
    dist_info = dist_info or DistInfo()
    global_batch_size = batch_size * dist_info.world_size
    all_images = images if auxiliary is None else _concat(images, auxiliary.images)

    def epoch_batches(epoch: int, first_batch: int) -> Iterator[PaletteBatch]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator) if shuffle else torch.arange(len(images))
        if auxiliary is not None:
            order = _mix_in_auxiliary(order, len(auxiliary.images), global_batch_size, auxiliary.fraction, generator)
        flips = torch.rand(len(order), generator=generator) < 0.5 if hflip else torch.zeros(len(order)).bool()
        steps = num_batches(len(images), batch_size, shuffle=shuffle, dist_info=dist_info)
        for step in range(first_batch, steps):
            rows = slice(step * global_batch_size, (step + 1) * global_batch_size)
            indices, flip = order[rows], flips[rows]
            divisible = len(indices) - len(indices) % dist_info.world_size  # every process must get the same number
            rank_rows = slice(dist_info.rank, divisible, dist_info.world_size)
            yield gather_batch(all_images, indices[rank_rows], flip[rank_rows], device)

    return epoch_batches


def _concat(images: LabelledImages, auxiliary: LabelledImages) -> LabelledImages:
    """Concatenate images and auxiliary images. Their RGB values are left out because batches do not use them."""
    grey_sum, labels = torch.cat([images.grey_sum, auxiliary.grey_sum]), torch.cat([images.labels, auxiliary.labels])
    return LabelledImages(grey_sum, labels, images.drop_rgb().rgb)


def _mix_in_auxiliary(
    order: Int64[Tensor, " images"],
    num_auxiliary: int,
    global_batch_size: int,
    fraction: float,
    generator: torch.Generator,
) -> Int64[Tensor, " samples"]:
    """Return the order with auxiliary images as the last images of every batch, numbered after the other images."""
    steps, num_mixed_in = len(order) // global_batch_size, round(fraction * global_batch_size)
    mixed_in = torch.randperm(num_auxiliary, generator=generator)[: steps * num_mixed_in] + len(order)
    remaining = order[: steps * (global_batch_size - num_mixed_in)].view(steps, global_batch_size - num_mixed_in)
    return torch.cat([remaining, mixed_in.view(steps, num_mixed_in)], dim=1).flatten()


def num_batches(num_images: int, batch_size: int, *, shuffle: bool, dist_info: DistInfo | None = None) -> int:
    """Return the number of batches per epoch of :func:`make_batches`. Raise UsageError if the images fill no batch."""
    dist_info = dist_info or DistInfo()
    global_batch_size = batch_size * dist_info.world_size
    # A last batch with fewer images than processes is omitted, because the mean loss of an empty batch is undefined.
    steps = num_images // global_batch_size + (not shuffle and num_images % global_batch_size >= dist_info.world_size)
    if steps == 0:
        raise UsageError(
            f"--batch-size: {global_batch_size} is more than the {num_images} training images; use a smaller batch size"
        )
    return steps


def gather_batch(images: LabelledImages, indices: Tensor, flip: Tensor, device: str = "cpu") -> PaletteBatch:
    """Return the grey inputs and labels of the given images, horizontally flipped where ``flip`` is true."""
    grey_sum, labels = images.grey_sum[indices], images.labels[indices]
    if flip.any():
        grey_sum[flip], labels[flip] = grey_sum[flip].flip(-1), labels[flip].flip(-1)
    return to_grey(grey_sum).to(device), labels.to(device)
