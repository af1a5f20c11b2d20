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

from chromabox.detect.data.augment import Pixels, View, ViewBoxes, augmented_view, read_pixels
from chromabox.detect.data.dataset import DetectionSet
from chromabox.detect.data.duplicates import Twins, find_twins, fingerprints
from chromabox.detect.data.split import held_out
from chromabox.detect.data.validate import FEW_BOXES
from chromabox.detect.evaluation.evaluate import held_out_split
from chromabox.detect.models.darknet import DetectorNet
from chromabox.detect.training.feature_cache import PrefixCache, as_images, fill
from chromabox.engine.logger import progress
from chromabox.errors import UsageError
from chromabox.runtime.parallel import in_order

Batch = tuple[dict[int, Tensor], Tensor]
Reader = Callable[[Path], Pixels]
#: Several of them differ in how many boxes they have.
OwnBoxes = Float32[np.ndarray, "_ 5"]

#: Bytes of decoded pictures that are kept for further views.
REMEMBERED = 400_000_000
#: Share of the training pictures that is kept apart to stop by, where that is asked for.
WATCHED = 0.15


@dataclass(frozen=True)
class Parts:
    """Pictures to train on, to stop by (None: nothing stops training) and to judge by; and what is remarkable."""

    train: DetectionSet
    watch: DetectionSet | None
    judge: DetectionSet
    told: tuple[str, ...]


def parts_of(data: DetectionSet, seed: int, *, watch: bool) -> Parts:
    """The parts of a set by its own splits; where it has none, a fifth is held out by us.

    Judged is by the validation pictures, else the test pictures; to ``watch`` a part of the training pictures is kept
    apart, since whoever stops by the pictures that he is judged by, flatters himself. Pictures that cannot be decoded
    are left out and told; told is also how many pictures training and judging share, and how many classes have hardly
    a box to learn from. Raises UsageError for a set without training pictures.
    """
    prints, damaged = fingerprints([one.path for one in data.pictures])
    told = [f"{why}; left out" for why in damaged.values()]
    data = replace(data, pictures=tuple(one for one in data.pictures if one.path not in damaged))
    chosen = held_out_split(data)
    if chosen is None:
        data = held_out(data, seed=seed)
        chosen = "val"
        held = len(data.split(chosen).pictures)
        told.append(f"the data has no validation pictures: {held} of {len(data.pictures)} are held out")
    judge = data.split(chosen)
    names = [name for name in data.splits if not name.startswith(("val", "test"))]
    train = replace(data, pictures=tuple(one for one in data.pictures if one.split in names), splits=tuple(names))
    if not train.pictures or not any(len(one.boxes) for one in train.pictures):
        raise UsageError(f"the data has no labelled training pictures; its splits are {', '.join(data.splits)}")
    told += [*_shared(train, judge, find_twins(prints)), *_thin(train)]
    if not watch:
        return Parts(train, None, judge, tuple(told))
    both = held_out(train, share=WATCHED, seed=seed)
    return Parts(both.split("train"), both.split("val"), judge, tuple(told))


def _shared(train: DetectionSet, judge: DetectionSet, twins: Sequence[Twins]) -> list[str]:
    """What flatters: judging pictures that are training pictures as well, or nearly."""
    mine, theirs = ({one.path for one in part.pictures} for part in (train, judge))
    pairs = [(one, other) for pair in twins for one, other in ((pair.first, pair.second), (pair.second, pair.first))]
    found = {other: one for one, other in pairs if one in mine and other in theirs}
    found |= {path: path for path in mine & theirs}
    if not found:
        return []
    judged, trained = min(found.items())
    return [
        f"{len(found)} of {len(theirs)} pictures that judge are the same as training pictures or nearly, {judged} as "
        f"{trained} for one: what is measured flatters"
    ]


def _thin(train: DetectionSet) -> list[str]:
    """Whether some classes are hardly to be learnt."""
    numbers = [one.classes[~one.is_crowd] for one in train.pictures]
    boxes = np.bincount(np.concatenate(numbers), minlength=len(train.classes))
    known, thin = int((boxes > 0).sum()), int(((boxes > 0) & (boxes < FEW_BOXES)).sum())
    return [f"{thin} of {known} classes have under {FEW_BOXES} boxes to learn from"] if thin else []


def remembering(most: int = REMEMBERED) -> Reader:
    """A reader of pictures that keeps what it has decoded, as far as so many bytes go."""
    kept: dict[Path, Pixels] = {}

    def read(path: Path) -> Pixels:
        if path in kept:
            return kept[path]
        pixels = read_pixels(path)
        if pixels.nbytes + sum(one.nbytes for one in kept.values()) <= most:
            kept[path] = pixels
        return pixels

    return read


@dataclass(frozen=True)
class Views:
    """The training views of a set: view ``number`` of picture ``index``, drawn from ``seed`` and both."""

    data: DetectionSet
    recipe: str
    size: int
    seed: int
    read: Reader

    def draw(self, number: int, index: int) -> tuple[View, ViewBoxes]:
        """RGB from 0 to 255 [3, side, side], and its boxes."""
        return augmented_view(self.data, index, (self.seed, number), self.size, self.recipe, read=self.read)

    def __len__(self) -> int:
        return len(self.data.pictures)


def chunks_of(count: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The pictures of each batch of an epoch: all of them in an order drawn from both, in parts of about equal size."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [part.tolist() for part in np.array_split(order, -(-count // batch))]


def fresh_batches(
    views: Views, batch: int, *, device: str = "cpu", workers: int = 1
) -> Callable[[int, int], Iterator[Batch]]:
    """For the training loop: (epoch, batches to pass over) → batches of views that no other epoch shows."""

    def batches(epoch: int, skip: int) -> Iterator[Batch]:
        chunks = chunks_of(len(views), batch, views.seed, epoch)[skip:]
        order = [index for chunk in chunks for index in chunk]
        # Drawn by other threads while the net computes.
        drawn = in_order(order, lambda index: views.draw(epoch, index), workers=workers)
        with closing(drawn):
            for chunk in chunks:
                several = [next(drawn) for _ in chunk]
                images = as_images([torch.from_numpy(pixels) for pixels, _ in several])
                yield {-1: images.to(device)}, targets_of([boxes for _, boxes in several]).to(device)

    return batches


def cached_batches(
    cache: PrefixCache, boxes: Sequence[OwnBoxes], count: int, batch: int, seed: int, *, device: str = "cpu"
) -> Callable[[int, int], Iterator[Batch]]:
    """The same from a cache of some views of each of ``count`` pictures, all first views, then all second ones, …

    Epochs take the views in turn. ``boxes`` are those of every view of the cache.
    """
    numbers = len(boxes) // count

    def batches(epoch: int, skip: int) -> Iterator[Batch]:
        for chunk in chunks_of(count, batch, seed, epoch)[skip:]:
            places = [epoch % numbers * count + index for index in chunk]
            kept = {layer: output.to(device) for layer, output in cache.read(places).items()}
            yield kept, targets_of([boxes[place] for place in places]).to(device)

    return batches


def fill_views(
    cache: PrefixCache, net: DetectorNet, until: int, views: Views, numbers: int, *, workers: int = 1
) -> list[OwnBoxes]:
    """Fill a cache with ``numbers`` views of each picture as :func:`cached_batches` reads it; returns the boxes."""
    order = [(number, index) for number in range(numbers) for index in range(len(views))]
    boxes: list[OwnBoxes] = []

    def pictures() -> Iterator[Tensor]:
        with closing(in_order(order, lambda place: views.draw(*place), workers=workers)) as drawn:
            for pixels, own in drawn:
                boxes.append(own)
                yield torch.from_numpy(pixels)

    with progress("computing frozen layers", len(order), unit="views") as tick:
        fill(cache, net, until, pictures(), tick=tick)
    return boxes


def targets_of(boxes: Sequence[OwnBoxes]) -> Float32[Tensor, "all_boxes 6"]:
    """The boxes of a batch's pictures as one table."""
    numbered = [np.concatenate([np.full((len(own), 1), at, np.float32), own], 1) for at, own in enumerate(boxes)]
    return torch.from_numpy(np.concatenate([np.zeros((0, 6), np.float32), *numbered]))
