"""What fine-tuning looks at: the parts of a set, and batches of training views, fresh ones or those of a cache.

A batch is what ``DetectorNet.forward_rest`` takes (the cached outputs of frozen layers, or the pictures themselves as
the output of layer −1) and the true boxes [boxes, 6]: picture of the batch, class, centre, width and height as parts
of the square's sides.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from chromabox.detect.data.augment import RgbImage, TrainBoxes, TrainImage, augment_sample, read_pixels
from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.duplicates import DuplicatePair, find_duplicates, fingerprints
from chromabox.detect.data.split import train_val_split
from chromabox.detect.data.validate import MIN_BOXES_PER_CLASS
from chromabox.detect.evaluation.evaluate import default_split
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.feature_cache import FeatureCache, fill_cache, to_image_batch
from chromabox.engine.logger import progress_bar
from chromabox.errors import UsageError
from chromabox.runtime.parallel import map_ordered

DetectionBatch = tuple[dict[int, Tensor], Tensor]
ImageReader = Callable[[Path], RgbImage]
#: Several of them differ in how many boxes they have.
SampleBoxes = Float32[np.ndarray, "_ 5"]

#: Bytes of decoded pictures that are kept for further views.
IMAGE_CACHE_BYTES = 400_000_000
#: Share of the training pictures that is kept apart to stop by, where that is asked for.
EARLY_STOPPING_FRACTION = 0.15


@dataclass(frozen=True)
class DataSplits:
    """Pictures to train on, to stop by (None: nothing stops training) and to judge by; and what is remarkable."""

    train: DetectionDataset
    early_stopping: DetectionDataset | None
    val: DetectionDataset
    warnings: tuple[str, ...]


def split_dataset(data: DetectionDataset, seed: int, *, early_stopping: bool) -> DataSplits:
    """The parts of a set by its own splits; where it has none, a fifth is held out by us.

    Judged is by the validation pictures, else the test pictures; to ``watch`` a part of the training pictures is kept
    apart, since whoever stops by the pictures that he is judged by, flatters himself. Pictures that cannot be decoded
    are left out and told; told is also how many pictures training and judging share, and how many classes have hardly
    a box to learn from. Raises UsageError for a set without training pictures.
    """
    prints, damaged = fingerprints([one.path for one in data.samples])
    told = [f"{why}; left out" for why in damaged.values()]
    data = replace(data, samples=tuple(one for one in data.samples if one.path not in damaged))
    chosen = default_split(data)
    if chosen is None:
        data = train_val_split(data, seed=seed)
        chosen = "val"
        held = len(data.split(chosen).samples)
        told.append(f"the data has no validation pictures: {held} of {len(data.samples)} are held out")
    judge = data.split(chosen)
    names = [name for name in data.splits if not name.startswith(("val", "test"))]
    train = replace(data, samples=tuple(one for one in data.samples if one.split in names), splits=tuple(names))
    if not train.samples or not any(len(one.boxes) for one in train.samples):
        raise UsageError(f"the data has no labelled training pictures; its splits are {', '.join(data.splits)}")
    told += [*_warn_leakage(train, judge, find_duplicates(prints)), *_warn_few_training_boxes(train)]
    if not early_stopping:
        return DataSplits(train, None, judge, tuple(told))
    both = train_val_split(train, val_fraction=EARLY_STOPPING_FRACTION, seed=seed)
    return DataSplits(both.split("train"), both.split("val"), judge, tuple(told))


def _warn_leakage(train: DetectionDataset, val: DetectionDataset, duplicates: Sequence[DuplicatePair]) -> list[str]:
    """What flatters: judging pictures that are training pictures as well, or nearly."""
    mine, theirs = ({one.path for one in part.samples} for part in (train, val))
    pairs = [
        (one, other) for pair in duplicates for one, other in ((pair.first, pair.second), (pair.second, pair.first))
    ]
    found = {other: one for one, other in pairs if one in mine and other in theirs}
    found |= {path: path for path in mine & theirs}
    if not found:
        return []
    judged, trained = min(found.items())
    return [
        f"{len(found)} of {len(theirs)} pictures that judge are the same as training pictures or nearly, {judged} as "
        f"{trained} for one: what is measured flatters"
    ]


def _warn_few_training_boxes(train: DetectionDataset) -> list[str]:
    """Whether some classes are hardly to be learnt."""
    numbers = [one.class_ids[~one.is_crowd] for one in train.samples]
    boxes = np.bincount(np.concatenate(numbers), minlength=len(train.classes))
    known, thin = int((boxes > 0).sum()), int(((boxes > 0) & (boxes < MIN_BOXES_PER_CLASS)).sum())
    return [f"{thin} of {known} classes have under {MIN_BOXES_PER_CLASS} boxes to learn from"] if thin else []


def cached_reader(max_bytes: int = IMAGE_CACHE_BYTES) -> ImageReader:
    """A reader of pictures that keeps what it has decoded, as far as so many bytes go."""
    kept: dict[Path, RgbImage] = {}

    def read(path: Path) -> RgbImage:
        if path in kept:
            return kept[path]
        pixels = read_pixels(path)
        if pixels.nbytes + sum(one.nbytes for one in kept.values()) <= max_bytes:
            kept[path] = pixels
        return pixels

    return read


@dataclass(frozen=True)
class AugmentedSamples:
    """The training views of a set: view ``number`` of picture ``index``, drawn from ``seed`` and both."""

    data: DetectionDataset
    recipe: str
    size: int
    seed: int
    read_image: ImageReader

    def sample(self, view: int, index: int) -> tuple[TrainImage, TrainBoxes]:
        """RGB from 0 to 255 [3, side, side], and its boxes."""
        return augment_sample(self.data, index, (self.seed, view), self.size, self.recipe, read_image=self.read_image)

    def __len__(self) -> int:
        return len(self.data.samples)


def epoch_batch_indices(num_images: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The pictures of each batch of an epoch: all of them in an order drawn from both, in parts of about equal size."""
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    return [part.tolist() for part in np.array_split(order, -(-num_images // batch_size))]


def stream_batches(
    samples: AugmentedSamples, batch_size: int, *, device: str = "cpu", workers: int = 1
) -> Callable[[int, int], Iterator[DetectionBatch]]:
    """For the training loop: (epoch, batches to pass over) → batches of views that no other epoch shows."""

    def batches(epoch: int, skip: int) -> Iterator[DetectionBatch]:
        chunks = epoch_batch_indices(len(samples), batch_size, samples.seed, epoch)[skip:]
        order = [index for chunk in chunks for index in chunk]
        # Drawn by other threads while the net computes.
        drawn = map_ordered(order, lambda index: samples.sample(epoch, index), workers=workers)
        with closing(drawn):
            for chunk in chunks:
                several = [next(drawn) for _ in chunk]
                images = to_image_batch([torch.from_numpy(pixels) for pixels, _ in several])
                yield {-1: images.to(device)}, stack_targets([boxes for _, boxes in several]).to(device)

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
    """The same from a cache of some views of each of ``count`` pictures, all first views, then all second ones, …

    Epochs take the views in turn. ``boxes`` are those of every view of the cache.
    """
    numbers = len(boxes) // num_images

    def batches(epoch: int, skip: int) -> Iterator[DetectionBatch]:
        for chunk in epoch_batch_indices(num_images, batch_size, seed, epoch)[skip:]:
            places = [epoch % numbers * num_images + index for index in chunk]
            kept = {layer: output.to(device) for layer, output in cache.read(places).items()}
            yield kept, stack_targets([boxes[place] for place in places]).to(device)

    return batches


def fill_feature_cache(
    cache: FeatureCache,
    model: DarknetModel,
    num_frozen: int,
    samples: AugmentedSamples,
    views_per_image: int,
    *,
    workers: int = 1,
) -> list[SampleBoxes]:
    """Fill a cache with ``numbers`` views of each picture as :func:`cached_batches` reads it; returns the boxes."""
    order = [(number, index) for number in range(views_per_image) for index in range(len(samples))]
    boxes: list[SampleBoxes] = []

    def pictures() -> Iterator[Tensor]:
        with closing(map_ordered(order, lambda place: samples.sample(*place), workers=workers)) as drawn:
            for pixels, own in drawn:
                boxes.append(own)
                yield torch.from_numpy(pixels)

    with progress_bar("computing frozen layers", len(order), unit="views") as tick:
        fill_cache(cache, model, num_frozen, pictures(), on_progress=tick)
    return boxes


def stack_targets(boxes: Sequence[SampleBoxes]) -> Float32[Tensor, "all_boxes 6"]:
    """The boxes of a batch's pictures as one table."""
    numbered = [np.concatenate([np.full((len(own), 1), at, np.float32), own], 1) for at, own in enumerate(boxes)]
    return torch.from_numpy(np.concatenate([np.zeros((0, 6), np.float32), *numbered]))
