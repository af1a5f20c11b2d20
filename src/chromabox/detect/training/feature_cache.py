"""Cache for the features of a detector's frozen layers, in memory or in a memory-mapped file.

Frozen layers return the same outputs for the same image in every epoch. For a few fixed augmented views of each image,
the cache stores those outputs that later layers read, by default in half precision. Training then computes only the
remaining layers.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class CacheSpec:
    """Contents of a cache: output shape (without batch) of each cached layer, number of views, and precision.

    Layer −1 is the image itself.
    """

    shapes: dict[int, tuple[int, ...]]
    num_views: int
    precision: CachePrecision

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.precision)

    @property
    def num_bytes(self) -> int:
        """Size of the cache in bytes."""
        return self.num_views * sum(map(prod, self.shapes.values())) * self.dtype.itemsize

    def __str__(self) -> str:
        view_megabytes = self.num_bytes / max(self.num_views, 1) / 1e6
        return f"{self.num_views:,} views of {view_megabytes:.2f} MB in {self.precision}, {self.num_bytes / 1e9:.2f} GB"


def plan_cache(
    model: DarknetModel, num_frozen: int, size: int, num_views: int, precision: CachePrecision = "float16"
) -> CacheSpec:
    """Return the specification of a cache for the features of the first ``num_frozen`` layers.

    ``size`` is the side length of the square network input in pixels. The shapes are inferred on the meta device,
    without computing features.
    """
    with torch.device("meta"):
        meta_model = DarknetModel(model.architecture, model.variant).eval()
        features = meta_model.forward_features(torch.empty(1, model.architecture.channels, size, size), num_frozen)
    return CacheSpec({layer: tuple(output.shape[1:]) for layer, output in features.items()}, num_views, precision)


class FeatureCache:
    """Features of the frozen layers for all views. Open it with :func:`open_cache`; fill it with :func:`fill_cache`."""

    def __init__(self, spec: CacheSpec, file: Path | None) -> None:
        sizes = [spec.num_views * prod(shape) for shape in spec.shapes.values()]
        if file is None:
            values = torch.empty(sum(sizes), dtype=spec.dtype)
        else:
            values = torch.from_file(str(file), shared=True, size=sum(sizes), dtype=spec.dtype)
        self._outputs = {
            layer: part.view(spec.num_views, *shape)
            for (layer, shape), part in zip(spec.shapes.items(), values.split(sizes), strict=True)
        }

    def write(self, start: int, features: Mapping[int, Tensor]) -> None:
        """Store the features of consecutive views, the first with index ``start``, clipped to the range of float16."""
        for layer, stored in self._outputs.items():
            output = features[layer].clamp(-65504, 65504) if stored.dtype == torch.float16 else features[layer]
            stored[start : start + len(output)].copy_(output)

    def read(self, indices: Sequence[int]) -> dict[int, Tensor]:
        """Return each layer's features of the given views [views, …] in float32, for ``DarknetModel.forward_from``."""
        index = torch.tensor(list(indices), dtype=torch.int64)
        return {layer: stored.index_select(0, index).float() for layer, stored in self._outputs.items()}


@contextmanager
def open_cache(spec: CacheSpec, folder: Path, max_memory: int) -> Iterator[FeatureCache]:
    """Open an empty cache in memory if it takes at most ``max_memory`` bytes, else in a file in ``folder``.

    The file is deleted at the end of the context. Raise ChromaboxError if the disk does not have enough free space.
    """
    if spec.num_bytes <= max_memory:
        yield FeatureCache(spec, None)
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free - _MIN_FREE_DISK_BYTES
    if spec.num_bytes > free:
        raise ChromaboxError(
            f"{folder}: the feature cache takes {spec.num_bytes / 1e9:.2f} GB, but the disk has only "
            f"{max(free, 0) / 1e9:.2f} GB free; use fewer --cached-views (0 disables the cache) or a smaller --size"
        )
    file = folder / "prefix-cache.bin"
    log.info(
        f"the feature cache ({spec}) exceeds the remaining {max_memory / 1e9:.2f} GB of --cache-memory and is stored "
        f"in the temporary file {file}"
    )
    try:
        yield FeatureCache(spec, file)
    finally:
        file.unlink(missing_ok=True)


@torch.no_grad()
def fill_cache(
    cache: FeatureCache,
    model: DarknetModel,
    num_frozen: int,
    images: Iterable[UInt8[Tensor, "3 side side"] | Float[Tensor, "3 side side"]],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], object] = lambda views: None,
) -> None:
    """Compute the first ``num_frozen`` layers in evaluation mode for all views and store their features.

    ``images`` yields the views in order: RGB, uint8 or float in [0, 1]. ``on_progress`` is called with the number of
    views of each batch. Afterwards, the model is returned to its previous mode.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    remaining, start = iter(images), 0
    while batch := list(islice(remaining, batch_size)):
        cache.write(start, model.forward_features(to_image_batch(batch).to(device), num_frozen))
        start += len(batch)
        on_progress(len(batch))
    model.train(was_training)


def to_image_batch(tensors: Sequence[Tensor]) -> Float[Tensor, "batch 3 side side"]:
    """Stack images (uint8, or float in [0, 1]) into a float batch in [0, 1]."""
    images = torch.stack(list(tensors))
    return images.float() / 255 if images.dtype == torch.uint8 else images
