"""What two processes under torchrun do; each leaves its results in the folder for ``test_distributed.py`` to judge."""

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
    """What the processes tell each other."""
    return {
        "rank": dist.rank,
        "size": dist.world_size,
        "is_main": dist.is_main,
        "any": [all_reduce_any(flag, dist) for flag in (False, dist.rank == 0, dist.rank == 1, True)],
        "from_main": broadcast_object({"rank": dist.rank, "list": [1, None]}, dist),
        "mean": all_reduce_mean(torch.tensor([1.0 + dist.rank, 10.0 * dist.rank], dtype=torch.float64), dist),
    }


def run_batch_norm(dist: DistInfo, inputs: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    """Two training steps and one evaluation of a batch normalisation, each process on its half of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3, **settings))
    convert_sync_batchnorm(net, dist)
    half = inputs["batch"].chunk(dist.world_size)[dist.rank].clone().requires_grad_()
    weights = inputs["weights"].chunk(dist.world_size)[dist.rank]
    net(half * 2 + 1)
    output = net(half)
    (output * weights).sum().backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    return {
        "output": output,
        "gradient": half.grad,
        "gradients": gradients,
        "buffers": dict(net.named_buffers()),
        "evaluated": net.eval()(half.detach()),
    }


def train(dist: DistInfo, folder: Path) -> None:
    """Three epochs in a row."""
    job = make_task("sgd", model=make_model(dropout=0.0), dist=dist)
    fit(job, make_schedule(3, average_decay=0.5), folder=folder, runtime=ONE_THREAD, dist_info=dist)


def interrupt_and_resume(dist: DistInfo, folder: Path) -> str:
    """The same, but the process that is not the main one is asked to stop in epoch 2; returns what was said.

    The main process is slow to save: the other must not go on from the file of the epoch before.
    """

    def describe_slowly() -> dict[str, Any]:
        time.sleep(0.5)
        return {}

    def ask(epoch: int, batch: int) -> None:
        if dist.rank == 1 and (epoch, batch) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    said = "nothing"
    for resume in (False, True):
        job = make_task(
            "sgd",
            model=make_model(dropout=0.0),
            dist=dist,
            before_batch=ask if not resume else lambda *_: None,
            describe=describe_slowly,
        )
        try:
            plan = make_schedule(3, average_decay=0.5)
            fit(job, plan, folder=folder, runtime=ONE_THREAD, dist_info=dist, resume=resume)
        except TrainingInterrupted as error:
            said = str(error)
    return said


def main() -> None:
    folder = Path(sys.argv[1])
    random = torch.Generator().manual_seed(1)
    given = {
        "batch": torch.randn(4, 3, 5, 5, generator=random) * 3 + 50,
        "weights": torch.randn(4, 3, 5, 5, generator=random),
    }
    with init_distributed() as world:
        results = {
            "given": given,
            "words": run_collectives(world),
            "plain": run_batch_norm(world, given),
            "cumulative": run_batch_norm(world, given, momentum=None),
            "bare": run_batch_norm(world, given, affine=False, track_running_stats=False),
        }
        train(world, folder / "row")
        results["said"] = interrupt_and_resume(world, folder / "stopped")
        save_checkpoint(folder / f"rank{world.rank}.safetensors", results, {})


if __name__ == "__main__":
    main()
