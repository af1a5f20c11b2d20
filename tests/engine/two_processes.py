"""Script for two processes under torchrun; each writes its results to the folder for ``test_distributed.py``."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny_training import make_model, make_schedule, make_task
from torch import Tensor, nn

from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.engine.distributed import (
    DistInfo,
    all_reduce_any,
    all_reduce_mean,
    broadcast_object,
    convert_sync_batchnorm,
    init_distributed,
)
from chromabox.engine.trainer import TrainingInterrupted, fit

ONE_THREAD = RuntimeConfig(threads=1)


def run_collectives(dist: DistInfo) -> dict[str, Any]:
    """Return the results of the collective operations."""
    return {
        "rank": dist.rank,
        "world_size": dist.world_size,
        "is_main": dist.is_main,
        "any": [all_reduce_any(flag, dist) for flag in (False, dist.rank == 0, dist.rank == 1, True)],
        "broadcast": broadcast_object({"rank": dist.rank, "list": [1, None]}, dist),
        "mean": all_reduce_mean(torch.tensor([1.0 + dist.rank, 10.0 * dist.rank], dtype=torch.float64), dist),
    }


def run_batch_norm(dist: DistInfo, inputs: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    """Run two training steps and one evaluation of BatchNorm, each process on its half of the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, **settings))
    convert_sync_batchnorm(model, dist)
    half = inputs["batch"].chunk(dist.world_size)[dist.rank].clone().requires_grad_()
    weights = inputs["weights"].chunk(dist.world_size)[dist.rank]
    model(half * 2 + 1)
    output = model(half)
    (output * weights).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return {
        "output": output,
        "gradient": half.grad,
        "gradients": gradients,
        "buffers": dict(model.named_buffers()),
        "evaluated": model.eval()(half.detach()),
    }


def train(dist: DistInfo, folder: Path) -> None:
    """Train three epochs without interruption."""
    task = make_task("sgd", model=make_model(dropout=0.0), dist=dist)
    fit(task, make_schedule(3, ema_decay=0.5), folder=folder, runtime=ONE_THREAD, dist_info=dist)


def interrupt_and_resume(dist: DistInfo, folder: Path) -> str:
    """Train the same, interrupt the second process in epoch 2 and resume; return the error message.

    The main process saves slowly: the other process must not resume from the file of the previous epoch.
    """

    def slow_metadata() -> dict[str, Any]:
        time.sleep(0.5)
        return {}

    def send_signal(epoch: int, batch: int) -> None:
        if dist.rank == 1 and (epoch, batch) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    message = ""
    for resume in (False, True):
        task = make_task(
            "sgd",
            model=make_model(dropout=0.0),
            dist=dist,
            before_batch=send_signal if not resume else lambda *_: None,
            checkpoint_metadata=slow_metadata,
        )
        try:
            schedule = make_schedule(3, ema_decay=0.5)
            fit(task, schedule, folder=folder, runtime=ONE_THREAD, dist_info=dist, resume=resume)
        except TrainingInterrupted as error:
            message = str(error)
    return message


def main() -> None:
    folder = Path(sys.argv[1])
    random = torch.Generator().manual_seed(1)
    inputs = {
        "batch": torch.randn(4, 3, 5, 5, generator=random) * 3 + 50,
        "weights": torch.randn(4, 3, 5, 5, generator=random),
    }
    with init_distributed() as dist:
        results = {
            "inputs": inputs,
            "collectives": run_collectives(dist),
            "plain": run_batch_norm(dist, inputs),
            "cumulative": run_batch_norm(dist, inputs, momentum=None),
            "no affine": run_batch_norm(dist, inputs, affine=False, track_running_stats=False),
        }
        train(dist, folder / "uninterrupted")
        results["message"] = interrupt_and_resume(dist, folder / "resumed")
        save_checkpoint(folder / f"rank{dist.rank}.safetensors", results, {})


if __name__ == "__main__":
    main()
