"""Pictures as training sees them: grey in, palette labels out.

The conventions are the assignment's: RGB is divided by 256 (not 255), grey is the plain mean of R, G and B, and a
pixel's target is the palette colour nearest in RGB. Grey is kept as the exact integer sum R + G + B (0 … 765) and
becomes sum / 768 when a batch is taken, so sixty thousand pictures stay small in memory.
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
from chromabox.io.http import PinnedFile, QuietProgress
from chromabox.io.images import find_images, read_image, to_uint8

PaletteBatch = tuple[Float[Tensor, "batch 1 height width"], UInt8[Tensor, "batch height width"]]

#: The assignment's own 24 colours as plain float32 RGB/256. No public address serves this file; a mirror may.
COURSE_PALETTE = PinnedFile(
    "colour_kmeans24_cat7_plain_f32.npy",
    sha256="b27de7a2e354fa1cd13776dee08248a000ea21c82f2df0545f15fa8231d8faf6",
    size=416,
)

#: Before the number of colours, the name of a palette that is fitted to the training pictures.
FITTED_PREFIX = "fitted:"

#: One in so many pictures of a user's own folder is set aside as its test split.
FOLDER_TEST_EVERY_NTH = 10


@dataclass(frozen=True)
class LabelledImages:
    """One split: what the net sees, what it should say, and for measuring in colour the pictures themselves."""

    grey_sum: Int16[Tensor, "pictures height width"]
    labels: UInt8[Tensor, "pictures height width"]
    rgb: UInt8[np.ndarray, "colours 3 height width"]
    """As many pictures, or none where colours are not needed."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def grey(self) -> Float[Tensor, "pictures 1 height width"]:
        """Grey of all pictures, in [0, 1)."""
        return to_grey(self.grey_sum)

    def select(self, rows: slice) -> "LabelledImages":
        """Some of the pictures (views, nothing is copied)."""
        return LabelledImages(self.grey_sum[rows], self.labels[rows], self.rgb[rows])

    def drop_rgb(self) -> "LabelledImages":
        """The same for training alone, which needs no colours."""
        return replace(self, rgb=np.empty((0, *self.rgb.shape[1:]), np.uint8))


@dataclass(frozen=True)
class ColourDataset:
    """The splits of one data set under one palette."""

    train: LabelledImages
    test: LabelledImages
    val: LabelledImages | None = None
    """Part of the training pictures that is not trained on, to choose by; None if none was asked for."""
    auxiliary: LabelledImages | None = None
    """Training pictures of CIFAR-10's other classes; None if none were asked for or there are none."""


def to_grey(grey_sum: Int16[Tensor, "pictures height width"]) -> Float[Tensor, "pictures 1 height width"]:
    """R + G + B as the mean of RGB/256, exact in float32."""
    return grey_sum[:, None].float() / 768


def encode_images(rgb: UInt8[np.ndarray, "pictures 3 height width"], palette: Palette) -> LabelledImages:
    """Grey sums and nearest-colour labels of 8-bit pictures."""
    grey_sum = rgb.sum(axis=1, dtype=np.int16)
    labels = assign_labels(rgb, palette, axis=1)
    return LabelledImages(torch.from_numpy(grey_sum), torch.from_numpy(labels), rgb)


def load_colour_dataset(
    spec: str, palette: Palette, *, val_fraction: float = 0.0, size: int = 32, with_auxiliary: bool = False
) -> ColourDataset:
    """Load a data set by name: ``cifar10:horse`` (any class, or several joined by ``+``), ``cifar10:all``, or a folder.

    CIFAR-10 keeps its own split and order. A folder's pictures are cut to the central square, brought to
    ``size`` × ``size``, and every tenth of a fixed shuffle is the test split. ``hold_out`` is the fraction of the
    training pictures (the last ones) set aside to choose by; 0 sets none aside. ``others`` asks for the training
    pictures of CIFAR-10's other classes too.

    Raises UsageError for an unknown name or class, or a folder with too few pictures.
    """
    if not 0 <= val_fraction <= 0.5:
        raise UsageError(f"hold-out is {val_fraction}: give a fraction of the training pictures from 0 to 0.5")
    train_rgb, test_rgb = _load_rgb(spec, size)
    rest = _remaining_classes(spec) if with_auxiliary else ()
    companions = encode_images(load_cifar10("train", rest)[0], palette).drop_rgb() if rest else None
    data = ColourDataset(encode_images(train_rgb, palette), encode_images(test_rgb, palette), auxiliary=companions)
    if val_fraction == 0:
        return data
    kept = len(data.train) - max(1, round(len(data.train) * val_fraction))
    if kept < 1:
        raise UsageError(
            f"hold-out of {val_fraction} leaves no picture to train on; {spec} has too few to set any aside"
        )
    return replace(data, train=data.train.select(slice(0, kept)), val=data.train.select(slice(kept, None)))


def resolve_palette(name: str, spec: str, *, size: int = 32) -> Palette:
    """The palette of that name, or for ``auto`` the one that suits the data.

    fitted:K: K colours fitted to the training pictures.
    auto: for CIFAR-10's horses the assignment's own (``course``) where a mirror offers it, else ours (``horse24``); for
    other CIFAR-10 data ``cifar24``; for a folder 24 colours fitted to its training pictures.

    Raises UsageError where K is not 2 to 256.
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
    """The palette ``fitted:K``."""
    count = name.removeprefix(FITTED_PREFIX)
    if not (count.isdecimal() and 2 <= int(count) <= MAX_COLOURS):
        raise UsageError(
            f"palette {name}: a palette has 2 to {MAX_COLOURS} colours; give for example {FITTED_PREFIX}24"
        )
    title = f"{int(count)} colours fitted to {Path(spec).name}"
    return fit_palette(_load_rgb(spec, size)[0], int(count), name=title, axis=1)


def course_palette() -> Palette:
    """The assignment's own palette, from the cache or a mirror; ChromaboxError where neither has it."""
    path = fetch([COURSE_PALETTE], [], cache_folder(), progress=QuietProgress())[0]
    return Palette(load_palette(path).colours, "course")


def fit_palette_to_images(sources: Sequence[str], num_colours: int, *, seed: int, name: str) -> tuple[Palette, float]:
    """A palette fitted to pictures, folders and CIFAR-10 sets together, and a pixel's mean distance to it."""
    if not 2 <= num_colours <= 256:
        raise UsageError(f"colours is {num_colours}: a palette has 2 to 256")
    pixels = []
    for item in sources:
        if item.startswith("cifar10:"):
            pixels.append(_load_rgb(item, 32)[0].transpose(0, 2, 3, 1).reshape(-1, 3))
        else:
            pixels += [_read_subsampled(path).reshape(-1, 3) for path, _ in find_images([Path(item)])]
    together = np.concatenate(pixels)
    palette = fit_palette(together, num_colours, seed=seed, name=name)
    return palette, quantisation_error(together, palette)


def _read_subsampled(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A picture in 8 bits, large ones thinned to about a megapixel: colours, not detail, are wanted."""
    pixels = read_image(path).pixels
    step = max(1, round((pixels.shape[0] * pixels.shape[1] / 1e6) ** 0.5))
    return to_uint8(pixels[::step, ::step])


def _load_rgb(spec: str, size: int) -> tuple[UInt8[np.ndarray, "train 3 h w"], UInt8[np.ndarray, "test 3 h w"]]:
    name, colon, classes = spec.partition(":")
    if name == "cifar10" and colon:
        wanted = None if classes == "all" else tuple(classes.split("+"))
        return load_cifar10("train", wanted)[0], load_cifar10("test", wanted)[0]
    if not Path(spec).is_dir():
        raise UsageError(
            f"data {spec!r}: neither a folder nor a known set; give cifar10:all, cifar10:CLASS "
            f"(one of {', '.join(CIFAR10_CLASSES)}) or a folder of pictures"
        )
    return _load_folder(Path(spec), size)


def _remaining_classes(spec: str) -> tuple[str, ...]:
    """The CIFAR-10 classes that ``spec`` leaves out; none for other data."""
    name, _, classes = spec.partition(":")
    if name != "cifar10" or classes == "all":
        return ()
    return tuple(known for known in CIFAR10_CLASSES if known not in classes.split("+"))


def _load_folder(folder: Path, size: int) -> tuple[UInt8[np.ndarray, "train 3 h w"], UInt8[np.ndarray, "test 3 h w"]]:
    if size < 8 or size % 8:
        raise UsageError(f"size is {size}: the nets need a multiple of 8, at least 8")
    paths = [path for path, _ in find_images([folder])]
    if len(paths) < 2:
        raise UsageError(f"{folder}: holds {len(paths)} picture; training needs at least two, one of them to test on")
    rgb = np.stack([_center_crop(path, size) for path in paths])
    order = np.random.default_rng(0).permutation(len(rgb))
    tests = max(1, len(rgb) // FOLDER_TEST_EVERY_NTH)
    return rgb[np.sort(order[tests:])], rgb[np.sort(order[:tests])]


def _center_crop(path: Path, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The central square of a picture, resampled to ``size``."""
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
    """Pictures of other kinds that share the batches, so that a large net sees more than its own few."""

    images: LabelledImages
    fraction: float
    """Of each batch, in [0, 1)."""


def make_batches(
    images: LabelledImages,
    batch_size: int,
    *,
    shuffle: bool,
    hflip: bool,
    seed: int,
    auxiliary: AuxiliaryImages | None = None,
    world: DistInfo | None = None,
    device: str = "cpu",
) -> Callable[[int, int], Iterator[PaletteBatch]]:
    """A function (epoch, batches to pass over) → the epoch's batches, as the training loop wants it.

    Order and mirroring are drawn from ``(seed, epoch)`` alone, so an epoch can be entered anywhere and is the same
    whatever the number of processes; each process takes its share of every batch of ``batch_size`` × ``world.size``
    pictures. Where batches are shuffled, the pictures that do not fill the last one are left out (others each epoch).
    Companions, which need shuffling, take the place of some of a batch's own pictures.
    """
    world = world or DistInfo()
    whole = batch_size * world.world_size
    everything = images if auxiliary is None else _concat(images, auxiliary.images)

    def epoch_batches(epoch: int, passed: int) -> Iterator[PaletteBatch]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(images), generator=generator) if shuffle else torch.arange(len(images))
        if auxiliary is not None:
            order = _mix_in_auxiliary(order, len(auxiliary.images), whole, auxiliary.fraction, generator)
        mirrored = torch.rand(len(order), generator=generator) < 0.5 if hflip else torch.zeros(len(order)).bool()
        steps = num_batches(len(images), batch_size, shuffle=shuffle, world=world)
        for step in range(passed, steps):
            rows = slice(step * whole, (step + 1) * whole)
            chosen, flip = order[rows], mirrored[rows]
            even = len(chosen) - len(chosen) % world.world_size  # every process must have as many
            mine = slice(world.rank, even, world.world_size)
            yield gather_batch(everything, chosen[mine], flip[mine], device)

    return epoch_batches


def _concat(images: LabelledImages, auxiliary: LabelledImages) -> LabelledImages:
    """Both after each other, without colours: batches need none."""
    grey_sum, labels = torch.cat([images.grey_sum, auxiliary.grey_sum]), torch.cat([images.labels, auxiliary.labels])
    return LabelledImages(grey_sum, labels, images.drop_rgb().rgb)


def _mix_in_auxiliary(
    order: Int64[Tensor, " own"],
    num_auxiliary: int,
    global_batch_size: int,
    fraction: float,
    generator: torch.Generator,
) -> Int64[Tensor, " batches_times_whole"]:
    """The order in which the last of every ``whole`` pictures are companions (numbered after the own ones)."""
    steps, guests = len(order) // global_batch_size, round(fraction * global_batch_size)
    chosen = torch.randperm(num_auxiliary, generator=generator)[: steps * guests] + len(order)
    hosts = order[: steps * (global_batch_size - guests)].view(steps, global_batch_size - guests)
    return torch.cat([hosts, chosen.view(steps, guests)], dim=1).flatten()


def num_batches(num_images: int, batch_size: int, *, shuffle: bool, world: DistInfo | None = None) -> int:
    """How many batches :func:`batches` gives an epoch."""
    world = world or DistInfo()
    whole = batch_size * world.world_size
    # A last batch too small to give every process a picture is left out: an empty batch has no mean loss.
    steps = num_images // whole + (not shuffle and num_images % whole >= world.world_size)
    if steps == 0:
        raise UsageError(
            f"batch size {whole} is more than the {num_images} training pictures; give a smaller --batch-size"
        )
    return steps


def gather_batch(images: LabelledImages, indices: Tensor, flip: Tensor, device: str = "cpu") -> PaletteBatch:
    """The chosen pictures' grey and labels, those with ``flip`` mirrored left to right."""
    grey_sum, labels = images.grey_sum[indices], images.labels[indices]
    if flip.any():
        grey_sum[flip], labels[flip] = grey_sum[flip].flip(-1), labels[flip].flip(-1)
    return to_grey(grey_sum).to(device), labels.to(device)
