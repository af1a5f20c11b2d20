"""How a fine-tuning run is best run on this machine, and how long it will take: measured on a few real pictures."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from chromabox.detect.finetune_config import FinetuneConfig
from chromabox.detect.finetune_job import losses_of
from chromabox.detect.loss import DetectionLoss
from chromabox.detect.nets import DetectorNet
from chromabox.detect.prefix_cache import PrefixCache, fill, plan_cache
from chromabox.detect.views import Views, chunks_of, targets_of
from chromabox.engine.execution import Execution, choose_execution
from chromabox.engine.machine import peak_memory
from chromabox.engine.options import ExecutionOptions

#: Pictures that the probe draws and computes.
_PROBED = 4


def probe(
    config: FinetuneConfig,
    options: ExecutionOptions,
    net: DetectorNet,
    until: int,
    loss: DetectionLoss,
    views: Views,
    say: Callable[[str], None],
) -> Execution:
    """How to run, by measuring real steps on copies; tells what the run will take."""
    begin = time.perf_counter()
    count = min(_PROBED, len(views))
    drawn = [views.draw(0, index) for index in range(count)]
    drawing = (time.perf_counter() - begin) / count
    begin = time.perf_counter()
    cached = bool(until and config.views)
    depth = until if cached else 0
    plan = plan_cache(net, depth, config.size, count, "float32")
    cache = PrefixCache(plan, None)
    fill(cache, net, depth, (torch.from_numpy(pixels) for pixels, _ in drawn))
    computing = (time.perf_counter() - begin) / count
    many = [place % count for place in range(min(config.recipe.batch_size, len(views)))]
    kept, targets = cache.read(many), targets_of([drawn[place][1] for place in many])
    batches = len(chunks_of(len(views), config.recipe.batch_size, config.seed, 0))
    run = losses_of(depth, loss)

    def step(call: Callable[[Tensor], Tensor]) -> Tensor:
        device = next(cast(nn.Module, call).parameters()).device
        return run(call, ({layer: one.to(device) for layer, one in kept.items()}, targets.to(device)))["loss"]

    # What is trained is a part of the net, called by a method of its own, which torch.compile does not reach.
    steps = batches * config.recipe.epochs
    execution = choose_execution(replace(options, compiled="no"), net, step, steps)
    twin = copy.deepcopy(net).train()
    execution.place(twin)
    with execution.autocast():
        begin = time.perf_counter()
        step(cast(Callable[[Tensor], Tensor], twin)).backward()
        seconds = time.perf_counter() - begin
    epoch = batches * seconds + (0 if cached else len(views) * drawing / execution.threads)
    filling = min(config.views, config.recipe.epochs) * len(views) * (drawing + computing) if cached else 0.0
    say(
        f"{len(views):,} pictures train, {batches} batches an epoch, running on {execution}; about "
        + (f"{filling:.0f} s to fill the cache, then " if cached else "")
        + f"{epoch:.1f} s an epoch besides validation, "
        f"{(filling + epoch * config.recipe.epochs) / 60:.1f} minutes in all, and {peak_memory() / 1e9:.1f} GB of "
        "memory besides the caches"
    )
    return execution
