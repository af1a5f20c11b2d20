"""Data splits for fine-tuning, and batches that are freshly augmented or read from a feature cache.

A batch consists of features and ground-truth boxes. The features are the input of ``DarknetModel.forward_from``: the
cached outputs of frozen layers, by layer index, or, without a cache, the images themselves (under index −1). Each row
of the boxes [boxes, 6] contains the index of the image in the batch, the class, and the centre, width and height as
fractions of the input size.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Real
from torch import Tensor

from chromabox.detect.data.augment import RgbImage, TrainBoxes, TrainImage, augment_sample, read_pixels
from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.detect.data.split import train_val_split
from chromabox.detect.data.validate import (
    MIN_BOXES_PER_CLASS,
    count_boxes,
    find_training_problem,
    issue_lines,
    train_and_val,
)
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.feature_cache import FeatureCache, fill_cache, to_image_batch
from chromabox.detect.training.run_images import RunImage, RunImages, labels_digest
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError
from chromabox.io.manifest import sha256_file
from chromabox.runtime.parallel import map_ordered

Item = TypeVar("Item")
DetectionBatch = tuple[dict[int, Tensor], Tensor]
ImageReader = Callable[[Path], RgbImage]
#: Class, centre, width and height of each box; the number of boxes differs between samples.
SampleBoxes = Float32[np.ndarray, "_ 5"]
#: Function that returns the pixels and boxes of an item.
ViewLoader = Callable[[Item], tuple[Real[np.ndarray, "3 side side"], SampleBoxes]]

#: Maximum total size, in bytes, of the decoded images that are kept in memory.
IMAGE_CACHE_BYTES = 400_000_000
#: Fraction of the training images that is held out for early stopping.
EARLY_STOPPING_FRACTION = 0.15


@dataclass(frozen=True)
class DataSplits:
    """Images for training, for early stopping (None: disabled) and for validation, with warnings about the dataset.

    ``digests`` contains the SHA-256 of the image files of the dataset, including those that no split contains.
    """

    train: DetectionDataset
    early_stopping: DetectionDataset | None
    val: DetectionDataset
    warnings: tuple[str, ...]
    digests: Mapping[Path, str]

    @property
    def images(self) -> RunImages:
        """The images of each split with their digests, and the warnings."""
        parts = {"train": self.train, "early_stopping": self.early_stopping, "val": self.val}
        splits = {
            name: None
            if part is None
            else [RunImage(str(each.path), self.digests[each.path], labels_digest(each)) for each in part.samples]
            for name, part in parts.items()
        }
        used = {sample.path for part in parts.values() if part is not None for sample in part.samples}
        unused = [digest for path, digest in self.digests.items() if path not in used]
        return RunImages(splits, self.warnings, unused)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contents and the boxes of the images of each split. It does not depend on their paths."""
        splits = {
            name: sorted((image.sha256, image.labels) for image in images or ())
            for name, images in self.images.splits.items()
        }
        return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path, data: DetectionDataset) -> "DataSplits":
        """Read the splits of ``data`` from a file written by :meth:`RunImages.write`.

        Images are recognised by their contents, so that the dataset may have been moved.

        Raise ChromaboxError if the file is damaged, or if images are missing or images or boxes have changed.
        """
        images = RunImages.read(path)
        digests = {sample.path: sha256_file(sample.path) for sample in data.samples}
        parts = {
            name: None if samples is None else replace(data, samples=samples)
            for name, samples in images.find(path, data, digests).items()
        }
        train, val = parts["train"], parts["val"]
        assert train is not None
        assert val is not None
        return cls(train, parts["early_stopping"], val, tuple(images.warnings), digests)


def split_dataset(data: DetectionDataset, seed: int, *, early_stopping: bool) -> DataSplits:
    """Split a dataset into its training and validation images.

    The validation images are the validation split of the dataset, otherwise its test split, otherwise a random fifth of
    all images. With ``early_stopping``, some of the training images are held out for early stopping, because stopping
    by the validation results would make these results optimistic. Images that cannot be decoded are excluded. The
    warnings report the issues of the dataset, these images, duplicates between the training and validation images, and
    classes with too few training boxes or without validation boxes.

    Raise UsageError for a dataset without labelled training images or without labelled validation images.
    """
    prints, corrupt = fingerprints([sample.path for sample in data.samples])
    warnings = [*issue_lines(data.issues), *(f"{reason}; excluded" for reason in corrupt.values())]
    data = replace(data, samples=tuple(sample for sample in data.samples if sample.path not in corrupt))
    digests = {image_print.path: image_print.sha256 for image_print in prints}
    digests |= {path: sha256_file(path) for path in corrupt if path.is_file()}
    train, val = train_and_val(data)
    if problem := find_training_problem(train, val):
        first_issue = f"; the first issue is: {data.issues[0]}" if data.issues else ""
        raise UsageError(f"{problem}{first_issue}")
    num_listed = sum(sample.split in train.splits for sample in data.samples)
    if num_listed > len(train.samples):
        count = num_listed - len(train.samples)
        warnings.append(f"training images that are also test images: {count}; not used for training")
    if val is None:
        train, val = _hold_out(data, seed, "validation")
        num_held_out, num_images = len(val.samples), len(data.samples)
        warnings.append(f"no validation split; images held out for validation: {num_held_out} of {num_images}")
    warnings += [*_warn_leakage(train, val, find_duplicates(prints)), *_warn_few_training_boxes(train)]
    if not early_stopping:
        return DataSplits(train, None, val, tuple(warnings), digests)
    train, held_out = _hold_out(train, seed, "early stopping", EARLY_STOPPING_FRACTION)
    return DataSplits(train, held_out, val, tuple(warnings), digests)


def _hold_out(
    data: DetectionDataset, seed: int, purpose: str, fraction: float = 0.2
) -> tuple[DetectionDataset, DetectionDataset]:
    """Divide images into training images and a random part that is held out.

    Raise UsageError if only one of the parts has boxes.
    """
    parts = train_val_split(data, val_fraction=fraction, seed=seed)
    train, held_out = parts.split("train"), parts.split("val")
    if not (count_boxes(train).any() and count_boxes(held_out).any()):
        raise UsageError(f"too few different images with boxes to hold out one of them for {purpose}: expected two")
    return train, held_out


def _warn_leakage(train: DetectionDataset, val: DetectionDataset, duplicates: Sequence[DuplicatePair]) -> list[str]:
    """Return a list with a warning if training images are identical or nearly identical to validation images."""
    train_paths, val_paths = ({sample.path for sample in part.samples} for part in (train, val))
    pairs = [pair for each in duplicates for pair in ((each.first, each.second), (each.second, each.first))]
    leaks = {second: first for first, second in pairs if first in train_paths and second in val_paths}
    leaks |= {path: path for path in train_paths & val_paths}
    if not leaks:
        return []
    val_path, train_path = min(leaks.items())
    count = f"validation images that also occur in the training set: {len(leaks)} of {len(val_paths)}"
    return [f"{count} (for example {val_path} as {train_path}); validation results are optimistic"]


def _warn_few_training_boxes(train: DetectionDataset) -> list[str]:
    """Return a list with a warning if classes have fewer than ``MIN_BOXES_PER_CLASS`` training boxes."""
    boxes = count_boxes(train)
    num_classes, num_rare = int((boxes > 0).sum()), int(((boxes > 0) & (boxes < MIN_BOXES_PER_CLASS)).sum())
    warning = f"classes with fewer than {MIN_BOXES_PER_CLASS} training boxes: {num_rare} of {num_classes}"
    return [warning] if num_rare else []


def cached_reader(max_bytes: int = IMAGE_CACHE_BYTES) -> ImageReader:
    """Return a function that reads images and caches up to ``max_bytes`` of decoded pixels in memory."""
    cache: dict[Path, RgbImage] = {}

    def read(path: Path) -> RgbImage:
        pixels = cache[path] if path in cache else read_pixels(path)
        if path not in cache and pixels.nbytes + sum(image.nbytes for image in cache.values()) <= max_bytes:
            cache[path] = pixels
        return pixels

    return read


@dataclass(frozen=True)
class AugmentedSamples:
    """Augmented views of a training set. A view depends only on ``seed``, the view number and the image index."""

    data: DetectionDataset
    recipe: str
    size: int
    seed: int
    read_image: ImageReader

    def sample(self, view: int, index: int) -> tuple[TrainImage, TrainBoxes]:
        """Return a view of an image: the uint8 RGB pixels [3, size, size] and the boxes [boxes, 5]."""
        return augment_sample(self.data, index, (self.seed, view), self.size, self.recipe, read_image=self.read_image)

    def __len__(self) -> int:
        return len(self.data.samples)


def epoch_batch_indices(num_images: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the image indices of each batch of an epoch. The order is random, and batch sizes are about equal."""
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    return [part.tolist() for part in np.array_split(order, -(-num_images // batch_size))]


def stream_batches(
    samples: AugmentedSamples, batch_size: int, *, device: str = "cpu", workers: int = 1
) -> Callable[[int, int], Iterator[DetectionBatch]]:
    """Return a function of the epoch and the number of batches to skip, which yields freshly augmented batches.

    The augmentation differs between epochs.
    """

    def batches(epoch: int, skip: int) -> Iterator[DetectionBatch]:
        batch_indices = epoch_batch_indices(len(samples), batch_size, samples.seed, epoch)[skip:]
        order = [index for indices in batch_indices for index in indices]
        # Worker threads augment the next images while the model is trained.
        augmented = map_ordered(order, lambda index: samples.sample(epoch, index), workers=workers)
        with closing(augmented):
            for indices in batch_indices:
                batch = [next(augmented) for _ in indices]
                images = to_image_batch([torch.from_numpy(pixels) for pixels, _ in batch])
                yield {-1: images.to(device)}, stack_targets([boxes for _, boxes in batch]).to(device)

    return batches


def cached_batches(
    cache: FeatureCache,
    boxes: Sequence[SampleBoxes],
    num_images: int,
    batch_size: int,
    seed: int,
    *,
    device: str = "cpu",
) -> Callable[[int, int], Iterator[DetectionBatch]]:
    """Return a function of the epoch and the number of batches to skip, which yields batches from a feature cache.

    The cache contains the first views of all ``num_images`` images, then the second views, and so on. ``boxes``
    contains the boxes of the views in the same order. Each epoch uses the next view of every image; the first view
    follows the last.
    """
    views_per_image = len(boxes) // num_images

    def batches(epoch: int, skip: int) -> Iterator[DetectionBatch]:
        for indices in epoch_batch_indices(num_images, batch_size, seed, epoch)[skip:]:
            view_indices = [epoch % views_per_image * num_images + index for index in indices]
            features = {layer: feature.to(device) for layer, feature in cache.read(view_indices).items()}
            yield features, stack_targets([boxes[index] for index in view_indices]).to(device)

    return batches


def fill_feature_cache(
    cache: FeatureCache, model: DarknetModel, items: Sequence[Item], load: ViewLoader[Item], *, workers: int = 1
) -> list[SampleBoxes]:
    """Fill a cache with one view per item and return the boxes of each view. ``load`` runs in ``workers`` threads."""
    boxes: list[SampleBoxes] = []

    def images() -> Iterator[Tensor]:
        with closing(map_ordered(items, load, workers=workers)) as views:
            for pixels, image_boxes in views:
                boxes.append(image_boxes)
                yield torch.from_numpy(pixels)

    with progress_bar("computing frozen layers", len(items), unit="views") as tick:
        fill_cache(cache, model, images(), on_progress=tick)
    return boxes


def stack_targets(boxes: Sequence[SampleBoxes]) -> Float32[Tensor, "all_boxes 6"]:
    """Concatenate the boxes of all images in a batch, with the image index as the first column."""
    indices = np.repeat(np.arange(len(boxes), dtype=np.float32), [len(image_boxes) for image_boxes in boxes])
    return torch.from_numpy(np.column_stack([indices, np.concatenate(boxes)]))
