"""Training task of about a second with BatchNorm and dropout on random 8 × 8 images; also a script that can be killed.

The randomness of a batch is derived from the epoch, as the training loop requires.
"""

import argparse
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.distributed import DistInfo, convert_sync_batchnorm
from chromabox.engine.logger import read_metrics
from chromabox.engine.optim import Muon
from chromabox.engine.trainer import TrainSchedule, TrainTask, fit

NUM_IMAGES = 24
BATCH_SIZE = 4
BATCHES_PER_EPOCH = NUM_IMAGES // BATCH_SIZE
SINGLE_PROCESS = DistInfo()
ONE_THREAD = RuntimeConfig(threads=1)


def make_model(dropout: float = 0.25, batch_norm: bool = True) -> nn.Module:
    torch.manual_seed(3)
    norm: nn.Module = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), norm, nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(6, 4, 3, padding=1)
    )


def make_optimizers(name: str, model: nn.Module) -> list[torch.optim.Optimizer]:
    if name == "muon":
        kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
        other_parameters = [parameter for parameter in model.parameters() if parameter.ndim != 4]
        return [Muon(kernels, lr=0.02, weight_decay=0.1), torch.optim.AdamW(other_parameters, lr=0.01)]
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return [classes[name](model.parameters(), lr=0.01)]


def compute_losses(model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    scores = model(batch[0])
    return {
        "loss": functional.cross_entropy(scores, batch[1]),
        "accuracy": (scores.argmax(1) == batch[1]).float().mean(),
    }


def make_task(
    optimizer: str = "adam",
    *,
    model: nn.Module | None = None,
    batch_size: int = BATCH_SIZE,
    before_batch: Callable[[int, int], None] = lambda epoch, batch: None,
    dist: DistInfo = SINGLE_PROCESS,
    **overrides: Any,
) -> TrainTask:
    """Return a new task from a fixed seed.

    ``before_batch(epoch, batch)`` can send signals or raise; ``overrides`` replace fields of the task.
    """
    random = torch.Generator().manual_seed(5)
    images = torch.randn(NUM_IMAGES, 2, 8, 8, generator=random)
    labels = torch.randint(4, (NUM_IMAGES, 8, 8), generator=random)
    torch.manual_seed(3)
    model = make_model() if model is None else model
    convert_sync_batchnorm(model, dist)
    optimizers = make_optimizers(optimizer, model)
    initial_lrs = [[group["lr"] for group in each.param_groups] for each in optimizers]

    def batches(epoch: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(epoch)).split(batch_size)
        for number, indices in list(enumerate(order))[skip:]:
            before_batch(epoch, number)
            local_indices = indices[dist.rank :: dist.world_size]
            yield images[local_indices], labels[local_indices]

    def validate(candidate: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"val_loss": compute_losses(candidate, (images[:8], labels[:8]))["loss"].item()}

    fields = {
        "model": model,
        "optimizers": optimizers,
        "batches": batches,
        "compute_loss": compute_losses,
        "validate": validate,
        "lr_schedule": lambda step: [[{"lr": lr / (1 + 0.1 * step)} for lr in group] for group in initial_lrs],
        "checkpoint_metadata": lambda: {"job": "tiny"},
    }
    return TrainTask(**{**fields, **overrides})


def make_schedule(epochs: int = 4, **settings: Any) -> TrainSchedule:
    return TrainSchedule(**{"epochs": epochs, "batches_per_epoch": BATCHES_PER_EPOCH, **settings})


def main() -> None:
    """Train until killed: wait in the middle of an epoch, or kill this process between metrics and checkpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wait-in-epoch", type=int)
    parser.add_argument("--die-after-metrics-of", type=int)
    options = parser.parse_args()

    def wait(epoch: int, batch: int) -> None:
        if (epoch + 1, batch) == (options.wait_in_epoch, 3):
            signal.pause()

    def metadata() -> dict[str, str]:
        # The metadata of an epoch's checkpoint is requested after the metrics have been written.
        if len(read_metrics(options.folder)) == options.die_after_metrics_of:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"job": "tiny"}

    task = replace(make_task(before_batch=wait), checkpoint_metadata=metadata)
    fit(task, make_schedule(ema_decay=0.9, accumulate=2), folder=options.folder, runtime=ONE_THREAD)


if __name__ == "__main__":
    main()
