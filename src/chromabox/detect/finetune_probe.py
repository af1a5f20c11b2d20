"""How a fine-tuning run is best run on this machine, and how long it will take: measured on a few real pictures."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from chromabox.detect.augment import read_pixels
from chromabox.detect.finetune_config import FinetuneConfig
from chromabox.detect.finetune_job import Beginning, losses_of, old_net_of
from chromabox.detect.judge import fill_judge
from chromabox.detect.labelled import DetectionSet
from chromabox.detect.loss import DetectionLoss
from chromabox.detect.nets import DetectorNet
from chromabox.detect.prefix_cache import PrefixCache, plan_cache
from chromabox.detect.rates import optimisers_of
from chromabox.detect.views import Batch, Views, chunks_of, fill_views, targets_of
from chromabox.engine.autotune import Execution, choose_execution, device_of
from chromabox.engine.runs import peak_memory
from chromabox.engine.runtime_options import ExecutionOptions

#: Pictures that are tried: as many as go through the frozen layers at once.
_PROBED = 8


@dataclass(frozen=True)
class Costs:
    """Seconds, each measured after a first time that warms up."""

    read: float
    """To decode a picture."""
    view: float
    """To draw a view of decoded pictures and compute the frozen layers for it."""
    step: float
    """Of training on a batch."""
    judged: float
    """To validate on a picture."""


@dataclass(frozen=True)
class Probe:
    """What is tried: a net whose first ``until`` layers stand still, the data, and the loss."""

    config: FinetuneConfig
    net: DetectorNet
    until: int
    loss: DetectionLoss
    views: Views
    begun: Beginning

    @property
    def depth(self) -> int:
        """The layers whose outputs for training views are kept."""
        return self.until if self.config.views else 0

    def choose(self, options: ExecutionOptions, say: Callable[[str], None]) -> Execution:
        """How to run, by measuring real steps on copies; tells what the run will take."""
        config, few = self.config, self._few(self.views.data)
        cache = self._cache(self.depth, len(few.pictures))
        boxes = fill_views(cache, self.net, self.depth, replace(self.views, data=few), 1)
        places = [place % len(boxes) for place in range(min(config.recipe.batch_size, len(self.views)))]
        batch = cache.read(places), targets_of([boxes[place] for place in places])
        # What is trained is a part of the net, called by a method of its own, which torch.compile does not reach.
        options = replace(options, compiled="no")
        steps = self._batches() * config.recipe.epochs
        loss = self._loss(torch.device(device_of(options)), batch)
        execution = choose_execution(options, self.net, loss, steps)
        self._tell(self.costs(execution, cache, loss), execution, say)
        return execution

    def costs(
        self, execution: Execution, cache: PrefixCache, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]
    ) -> Costs:
        """What things cost in the way of running that was chosen, on a copy of the net."""
        net = copy.deepcopy(self.net).train()
        execution.place(net)
        few = replace(self.views, data=self._few(self.views.data))
        read = _seconds(lambda: [read_pixels(one.path) for one in few.data.pictures]) / len(few)
        view = _seconds(lambda: fill_views(cache, net, self.depth, few, 1, workers=execution.threads)) / len(few)

        optimisers = optimisers_of(net, self.config.recipe)

        def backward() -> None:
            with execution.autocast():
                value = loss(cast(Callable[[Tensor], Tensor], net))
            value.backward()
            value.item()  # Waits for a graphics card to finish.

        step = _seconds(backward)
        step += _seconds(lambda: [one.step() for one in optimisers]) / self.config.recipe.accumulate
        data = self._few(self.begun.parts.watch or self.begun.parts.judge)
        own, size = self._cache(self.until, len(data.pictures)), self.config.size
        judge = fill_judge(own, net, self.until, data, size, self.views.read, workers=execution.threads)
        net.eval()
        return Costs(read, view, step, _seconds(lambda: judge.measure(net, self.loss)) / len(data.pictures))

    def _tell(self, costs: Costs, execution: Execution, say: Callable[[str], None]) -> None:
        config, parts = self.config, self.begun.parts
        watched = 0 if parts.watch is None else len(parts.watch.pictures)
        judged, count = len(parts.judge.pictures), len(self.views)
        views = min(config.views, config.recipe.epochs) * count if self.depth else 0
        filling = (views + judged + watched) * costs.view + (count + judged + watched) * costs.read
        epoch = self._batches() * costs.step + (watched or judged) * costs.judged
        # Without a cache views are drawn while the net computes, but not for nothing where cores are few.
        epoch += 0 if self.depth else count * costs.view
        say(
            f"{count:,} pictures train, {self._batches()} batches an epoch, running on {execution}; about "
            f"{filling:.0f} s to fill the caches, then {epoch:.1f} s an epoch, "
            f"{(filling + epoch * config.recipe.epochs) / 60:.1f} minutes in all, and {peak_memory() / 1e9:.1f} GB of "
            "memory besides the caches"
        )

    def _batches(self) -> int:
        return len(chunks_of(len(self.views), self.config.recipe.batch_size, self.config.seed, 0))

    def _cache(self, depth: int, views: int) -> PrefixCache:
        return PrefixCache(plan_cache(self.net, depth, self.config.size, views, "float32"), None)

    def _loss(self, device: torch.device, batch: Batch) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
        """The loss of a batch, as a function of what is called on it."""
        losses = losses_of(self.depth, self.loss, old_net_of(self.config, self.begun, self.loss, device))
        kept, targets = batch
        moved = {layer: one.to(device) for layer, one in kept.items()}, targets.to(device)
        return lambda call: losses(call, moved)["loss"]

    @staticmethod
    def _few(data: DetectionSet) -> DetectionSet:
        return replace(data, pictures=data.pictures[:_PROBED])


def _seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The middle of a few times after one that warms up."""
    durations = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        durations.append(time.perf_counter() - begin)
    return sorted(durations[1:])[repeats // 2]
