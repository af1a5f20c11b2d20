"""The caches of a fine-tuning run and the batches that come from them."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chromabox.detect.finetune_config import FinetuneConfig
from chromabox.detect.judge import Judge, fill_judge
from chromabox.detect.labelled import DetectionSet
from chromabox.detect.nets import DetectorNet
from chromabox.detect.prefix_cache import CachePrecision, PrefixCache, open_cache, plan_cache
from chromabox.detect.views import Views, cached_batches, fill_views, fresh_batches


class Caches:
    """The caches of a run, one after another from the memory that is allowed; they live as long as ``stack``."""

    def __init__(
        self,
        stack: ExitStack,
        config: FinetuneConfig,
        folder: Path,
        net: DetectorNet,
        until: int,
        say: Callable[[str], None],
    ) -> None:
        self.stack, self.config, self.folder, self.net, self.until, self.say = stack, config, folder, net, until, say
        assert config.execution is not None
        self.workers = config.execution.threads
        self.left = round(config.cache_memory * 1e9)
        #: Seconds that filling took.
        self.seconds = 0.0

    def open(self, pictures: int, precision: CachePrecision, name: str) -> PrefixCache:
        plan = plan_cache(self.net, self.until, self.config.size, pictures, precision)
        cache = self.stack.enter_context(open_cache(plan, self.folder / name, self.left, self.say))
        self.left -= plan.bytes if plan.bytes <= self.left else 0
        return cache

    def judge(self, data: DetectionSet, views: Views) -> Judge:
        """Plain views, exactly."""
        begin = time.perf_counter()
        cache = self.open(len(data.pictures), "float32", f"cache-{data.splits[0]}")
        judge = fill_judge(cache, self.net, self.until, data, self.config.size, views.read, workers=self.workers)
        self.seconds += time.perf_counter() - begin
        return judge

    def batches(self, views: Views) -> Callable[[int, int], Any]:
        """Training batches, from a cache where anything stands still and views are fixed."""
        config = self.config
        assert config.execution is not None
        device, batch = config.execution.device, config.recipe.batch_size
        if not self.until or not config.views:
            return fresh_batches(views, batch, device=device, workers=self.workers)
        begin = time.perf_counter()
        numbers = min(config.views, config.recipe.epochs)
        cache = self.open(numbers * len(views), config.cache_precision, "cache-train")
        boxes = fill_views(cache, self.net, self.until, views, numbers, workers=self.workers)
        self.seconds += time.perf_counter() - begin
        self.say(f"filling the caches took {self.seconds:.1f} s")
        return cached_batches(cache, boxes, len(views), batch, config.seed, device=device)
