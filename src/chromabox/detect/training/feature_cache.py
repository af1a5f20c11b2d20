"""What a detector's frozen layers compute, computed once: kept in memory or in a mapped file, in half precision.

Layers that stand still give the same outputs for the same picture in every epoch. Of those outputs only the ones that
later layers read are kept, for a few fixed views of each picture, and training runs only the rest of the net.
"""

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

#: Bytes of a number.
_BYTES_PER_VALUE = {"float32": 4, "float16": 2, "bfloat16": 2}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Disk space, in bytes, that a cache leaves free.
_MIN_FREE_DISK_BYTES = 500_000_000


@dataclass(frozen=True)
class CacheSpec:
    """What a cache will hold: of each view the outputs of ``shapes``, by layer; −1 is the picture itself."""

    shapes: dict[int, tuple[int, ...]]
    num_views: int
    precision: CachePrecision

    @property
    def num_bytes(self) -> int:
        """Its size, known before anything is computed."""
        return self.num_views * sum(prod(shape) for shape in self.shapes.values()) * _BYTES_PER_VALUE[self.precision]

    def __str__(self) -> str:
        each = self.num_bytes / max(self.num_views, 1) / 1e6
        return f"{self.num_views:,} views of {each:.2f} MB in {self.precision}, {self.num_bytes / 1e9:.2f} GB"


def plan_cache(
    model: DarknetModel, num_frozen: int, size: int, num_views: int, precision: CachePrecision = "float16"
) -> CacheSpec:
    """The plan of a cache of the first ``until`` layers' outputs for squares of ``size`` pixels. Computes nothing."""
    with torch.device("meta"):
        shadow = DarknetModel(model.architecture, model.variant).eval()
        kept = shadow.forward_features(torch.empty(1, model.architecture.channels, size, size), num_frozen)
    return CacheSpec({layer: tuple(output.shape[1:]) for layer, output in kept.items()}, num_views, precision)


class FeatureCache:
    """The outputs of frozen layers for many views; made by :func:`open_cache`, filled by :func:`fill`."""

    def __init__(self, spec: CacheSpec, file: Path | None) -> None:
        self.spec = spec
        count = spec.num_bytes // _BYTES_PER_VALUE[spec.precision]
        kind = _DTYPES[spec.precision]
        if file is None:
            memory = torch.empty(count, dtype=kind)
        else:
            memory = torch.from_file(str(file), shared=True, size=count, dtype=kind)
        self._outputs: dict[int, Tensor] = {}
        at = 0
        for layer, shape in spec.shapes.items():
            long = spec.num_views * prod(shape)
            self._outputs[layer] = memory[at : at + long].view(spec.num_views, *shape)
            at += long

    def write(self, start: int, features: Mapping[int, Tensor]) -> None:
        """Keep the outputs of views ``first`` and following. What exceeds float16's range is cut to it."""
        for layer, part in self._outputs.items():
            output = features[layer]
            if self.spec.precision == "float16":
                output = output.clamp(-65504, 65504)
            part[start : start + len(output)].copy_(output)

    def read(self, indices: Sequence[int]) -> dict[int, Tensor]:
        """The outputs of some views by layer [views, …], in float32, as ``DetectorNet.forward_rest`` takes them."""
        places = torch.tensor(list(indices), dtype=torch.int64)
        return {layer: part.index_select(0, places).float() for layer, part in self._outputs.items()}


@contextmanager
def open_cache(
    spec: CacheSpec, folder: Path, max_memory: int, log: Callable[[str], None] = lambda line: None
) -> Iterator[FeatureCache]:
    """An empty cache: in memory if it takes at most ``most_memory`` bytes, else in a file in ``folder``.

    The file is gone afterwards. Raises ChromaboxError where the disk has no room for it.
    """
    if spec.num_bytes <= max_memory:
        log(f"cache of the frozen layers' outputs: {spec}, in memory")
        yield FeatureCache(spec, None)
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free - _MIN_FREE_DISK_BYTES
    if spec.num_bytes > free:
        raise ChromaboxError(
            f"{folder}: the cache takes {spec.num_bytes / 1e9:.2f} GB and the disk has {max(free, 0) / 1e9:.2f} GB for it; "
            "take fewer --views, a smaller --size, or --views 0 for no cache"
        )
    file = folder / "prefix-cache.bin"
    log(
        f"cache of the frozen layers' outputs: {spec}; more than the {max_memory / 1e9:.2f} GB of --cache-memory, "
        f"so it lies in {file} while training runs"
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
    """Compute the first ``until`` layers, in evaluation mode, for every view.

    ``pictures`` are the views in order, RGB, uint8 or floats in [0, 1]. ``tick`` is told of views done.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    remaining = iter(images)
    first = 0
    while several := list(islice(remaining, batch_size)):
        cache.write(first, model.forward_features(to_image_batch(several).to(device), num_frozen))
        first += len(several)
        on_progress(len(several))
    model.train(training)


def to_image_batch(tensors: Sequence[Tensor]) -> Float[Tensor, "batch 3 side side"]:
    """Pictures of uint8, or of floats in [0, 1], as a batch of floats in [0, 1]."""
    images = torch.stack(list(tensors))
    return images.float() / 255 if images.dtype == torch.uint8 else images
