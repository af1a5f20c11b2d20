"""Cache for the features of a detector's frozen layers, in memory or in a memory-mapped file.

Frozen layers return the same outputs for the same image in every epoch. For a few fixed augmented views of each image,
the cache stores the outputs that later layers read, by default in half precision. Training then runs only the
remaining layers.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.config import CachePrecision
from chromabox.errors import ChromaboxError

log = logging.getLogger(__name__)

#: Disk space in bytes that must remain free.
_MIN_FREE_DISK_BYTES = 500_000_000


class FeatureCache:
    """Cached features of the first ``num_frozen`` layers of a model for ``num_views`` views.

    ``size`` is the side length of the square network input in pixels. Call :meth:`open` to allocate the cache and
    :func:`fill_cache` to fill it.
    """

    def __init__(
        self, model: DarknetModel, num_frozen: int, size: int, num_views: int, precision: CachePrecision = "float16"
    ) -> None:
        with torch.device("meta"):  # The shapes are inferred without computing features.
            meta_model = DarknetModel(model.architecture, model.variant).eval()
            features = meta_model.forward_features(torch.empty(1, model.architecture.channels, size, size), num_frozen)
        self.num_frozen, self.num_views, self.dtype = num_frozen, num_views, getattr(torch, precision)
        #: Output shape, without the batch dimension, of each cached layer; layer −1 is the image.
        self.shapes = {layer: tuple(output.shape[1:]) for layer, output in features.items()}
        self.num_bytes = num_views * sum(map(prod, self.shapes.values())) * self.dtype.itemsize

    @contextmanager
    def open(self, folder: Path, max_memory: int) -> Iterator["FeatureCache"]:
        """Allocate the cache in memory if it takes at most ``max_memory`` bytes, otherwise in a file in ``folder``.

        The file is deleted at the end of the context. Raise ChromaboxError if the disk does not have enough free space.
        """
        sizes = [self.num_views * prod(shape) for shape in self.shapes.values()]
        file = folder / "prefix-cache.bin"
        if self.num_bytes <= max_memory:
            values = torch.empty(sum(sizes), dtype=self.dtype)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            free = max(shutil.disk_usage(folder).free - _MIN_FREE_DISK_BYTES, 0)
            needed = f"the feature cache takes {self.num_bytes / 1e9:.2f} GB"
            if self.num_bytes > free:
                remedy = "use fewer --cached-views (0 disables the cache) or a smaller --size"
                raise ChromaboxError(f"{folder}: {needed}, but the disk has only {free / 1e9:.2f} GB free; {remedy}")
            log.info(f"{needed}, but only {max_memory / 1e9:.2f} GB of --cache-memory are left; storing it in {file}")
            values = torch.from_file(str(file), shared=True, size=sum(sizes), dtype=self.dtype)
        parts = zip(self.shapes.items(), values.split(sizes), strict=True)
        self._outputs = {layer: part.view(self.num_views, *shape) for (layer, shape), part in parts}
        try:
            yield self
        finally:
            file.unlink(missing_ok=True)

    def write(self, start: int, features: Mapping[int, Tensor]) -> None:
        """Store the features of consecutive views, the first of which has index ``start``.

        In a float16 cache, the features are clipped to the range of float16.
        """
        for layer, stored in self._outputs.items():
            output = features[layer].clamp(-65504, 65504) if stored.dtype == torch.float16 else features[layer]
            stored[start : start + len(output)].copy_(output)

    def read(self, indices: Sequence[int]) -> dict[int, Tensor]:
        """Return the features [views, …] of the given views by layer, in float32, for ``DarknetModel.forward_from``."""
        index = torch.tensor(list(indices), dtype=torch.int64)
        return {layer: stored.index_select(0, index).float() for layer, stored in self._outputs.items()}


@torch.no_grad()
def fill_cache(
    cache: FeatureCache,
    model: DarknetModel,
    images: Iterable[UInt8[Tensor, "3 side side"] | Float[Tensor, "3 side side"]],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], object] = lambda views: None,
) -> None:
    """Run the frozen layers on all views in evaluation mode, and store the features in the cache.

    ``images`` yields the views in order: RGB, uint8 or float in [0, 1]. ``on_progress`` is called with the number of
    views of each batch. Afterwards, the model is returned to its previous mode.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    remaining, start = iter(images), 0
    while batch := list(islice(remaining, batch_size)):
        cache.write(start, model.forward_features(to_image_batch(batch).to(device), cache.num_frozen))
        start += len(batch)
        on_progress(len(batch))
    model.train(was_training)


def to_image_batch(tensors: Sequence[Tensor]) -> Float[Tensor, "batch 3 side side"]:
    """Stack images (uint8, or float in [0, 1]) into a float batch in [0, 1]."""
    images = torch.stack(list(tensors))
    return images.float() / 255 if images.dtype == torch.uint8 else images
