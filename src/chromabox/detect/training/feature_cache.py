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

from chromabox.detect.models.darknet import DetectorNet
from chromabox.detect.training.config import CachePrecision
from chromabox.errors import ChromaboxError

#: Bytes of a number.
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

#: Disk space, in bytes, that a cache leaves free.
_SPARE_DISK = 500_000_000


@dataclass(frozen=True)
class CachePlan:
    """What a cache will hold: of each view the outputs of ``shapes``, by layer; −1 is the picture itself."""

    shapes: dict[int, tuple[int, ...]]
    views: int
    precision: CachePrecision

    @property
    def bytes(self) -> int:
        """Its size, known before anything is computed."""
        return self.views * sum(prod(shape) for shape in self.shapes.values()) * _BYTES[self.precision]

    def __str__(self) -> str:
        each = self.bytes / max(self.views, 1) / 1e6
        return f"{self.views:,} views of {each:.2f} MB in {self.precision}, {self.bytes / 1e9:.2f} GB"


def plan_cache(net: DetectorNet, until: int, size: int, views: int, precision: CachePrecision = "float16") -> CachePlan:
    """The plan of a cache of the first ``until`` layers' outputs for squares of ``size`` pixels. Computes nothing."""
    with torch.device("meta"):
        shadow = DetectorNet(net.architecture, net.kind).eval()
        kept = shadow.forward_prefix(torch.empty(1, net.architecture.channels, size, size), until)
    return CachePlan({layer: tuple(output.shape[1:]) for layer, output in kept.items()}, views, precision)


class PrefixCache:
    """The outputs of frozen layers for many views; made by :func:`open_cache`, filled by :func:`fill`."""

    def __init__(self, plan: CachePlan, file: Path | None) -> None:
        self.plan = plan
        count = plan.bytes // _BYTES[plan.precision]
        kind = _TYPES[plan.precision]
        if file is None:
            memory = torch.empty(count, dtype=kind)
        else:
            memory = torch.from_file(str(file), shared=True, size=count, dtype=kind)
        self._parts: dict[int, Tensor] = {}
        at = 0
        for layer, shape in plan.shapes.items():
            long = plan.views * prod(shape)
            self._parts[layer] = memory[at : at + long].view(plan.views, *shape)
            at += long

    def write(self, first: int, kept: Mapping[int, Tensor]) -> None:
        """Keep the outputs of views ``first`` and following. What exceeds float16's range is cut to it."""
        for layer, part in self._parts.items():
            output = kept[layer]
            if self.plan.precision == "float16":
                output = output.clamp(-65504, 65504)
            part[first : first + len(output)].copy_(output)

    def read(self, views: Sequence[int]) -> dict[int, Tensor]:
        """The outputs of some views by layer [views, …], in float32, as ``DetectorNet.forward_rest`` takes them."""
        places = torch.tensor(list(views), dtype=torch.int64)
        return {layer: part.index_select(0, places).float() for layer, part in self._parts.items()}


@contextmanager
def open_cache(
    plan: CachePlan, folder: Path, most_memory: int, say: Callable[[str], None] = lambda line: None
) -> Iterator[PrefixCache]:
    """An empty cache: in memory if it takes at most ``most_memory`` bytes, else in a file in ``folder``.

    The file is gone afterwards. Raises ChromaboxError where the disk has no room for it.
    """
    if plan.bytes <= most_memory:
        say(f"cache of the frozen layers' outputs: {plan}, in memory")
        yield PrefixCache(plan, None)
        return
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free - _SPARE_DISK
    if plan.bytes > free:
        raise ChromaboxError(
            f"{folder}: the cache takes {plan.bytes / 1e9:.2f} GB and the disk has {max(free, 0) / 1e9:.2f} GB for it; "
            "take fewer --views, a smaller --size, or --views 0 for no cache"
        )
    file = folder / "prefix-cache.bin"
    say(
        f"cache of the frozen layers' outputs: {plan}; more than the {most_memory / 1e9:.2f} GB of --cache-memory, "
        f"so it lies in {file} while training runs"
    )
    try:
        yield PrefixCache(plan, file)
    finally:
        file.unlink(missing_ok=True)


@torch.no_grad()
def fill(
    cache: PrefixCache,
    net: DetectorNet,
    until: int,
    pictures: Iterable[UInt8[Tensor, "3 side side"] | Float[Tensor, "3 side side"]],
    *,
    batch: int = 8,
    tick: Callable[[int], object] = lambda views: None,
) -> None:
    """Compute the first ``until`` layers, in evaluation mode, for every view.

    ``pictures`` are the views in order, RGB, uint8 or floats in [0, 1]. ``tick`` is told of views done.
    """
    training = net.training
    net.eval()
    device = next(net.parameters()).device
    remaining = iter(pictures)
    first = 0
    while several := list(islice(remaining, batch)):
        cache.write(first, net.forward_prefix(as_images(several).to(device), until))
        first += len(several)
        tick(len(several))
    net.train(training)


def as_images(pictures: Sequence[Tensor]) -> Float[Tensor, "batch 3 side side"]:
    """Pictures of uint8, or of floats in [0, 1], as a batch of floats in [0, 1]."""
    images = torch.stack(list(pictures))
    return images.float() / 255 if images.dtype == torch.uint8 else images
