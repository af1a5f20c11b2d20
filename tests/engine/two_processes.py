"""What two processes under torchrun do; each leaves its results in the folder for ``test_distributed.py`` to judge."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tiny_training import make_job, make_net, make_plan
from torch import Tensor, nn

from chromabox.engine.autotune import Execution
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.engine.distributed import World, any_process, from_main, join_world, mean_across, synchronise_batch_norm
from chromabox.engine.trainer import Interrupted, fit

ONE_THREAD = Execution(threads=1)


def words(world: World) -> dict[str, Any]:
    """What the processes tell each other."""
    return {
        "rank": world.rank,
        "size": world.size,
        "is_main": world.is_main,
        "any": [any_process(flag, world) for flag in (False, world.rank == 0, world.rank == 1, True)],
        "from_main": from_main({"rank": world.rank, "list": [1, None]}, world),
        "mean": mean_across(torch.tensor([1.0 + world.rank, 10.0 * world.rank], dtype=torch.float64), world),
    }


def normalised(world: World, given: dict[str, Tensor], **settings: Any) -> dict[str, Any]:
    """Two training steps and one evaluation of a batch normalisation, each process on its half of the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3, **settings))
    synchronise_batch_norm(net, world)
    half = given["batch"].chunk(world.size)[world.rank].clone().requires_grad_()
    weights = given["weights"].chunk(world.size)[world.rank]
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


def train(world: World, folder: Path) -> None:
    """Three epochs in a row."""
    job = make_job("sgd", net=make_net(dropout=0.0), world=world)
    fit(job, make_plan(3, average_decay=0.5), folder=folder, execution=ONE_THREAD, world=world)


def stop_and_go_on(world: World, folder: Path) -> str:
    """The same, but the process that is not the main one is asked to stop in epoch 2; returns what was said.

    The main process is slow to save: the other must not go on from the file of the epoch before.
    """

    def describe_slowly() -> dict[str, Any]:
        time.sleep(0.5)
        return {}

    def ask(epoch: int, batch: int) -> None:
        if world.rank == 1 and (epoch, batch) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    said = "nothing"
    for resume in (False, True):
        job = make_job(
            "sgd",
            net=make_net(dropout=0.0),
            world=world,
            before_batch=ask if not resume else lambda *_: None,
            describe=describe_slowly,
        )
        try:
            plan = make_plan(3, average_decay=0.5)
            fit(job, plan, folder=folder, execution=ONE_THREAD, world=world, resume=resume)
        except Interrupted as error:
            said = str(error)
    return said


def main() -> None:
    folder = Path(sys.argv[1])
    random = torch.Generator().manual_seed(1)
    given = {
        "batch": torch.randn(4, 3, 5, 5, generator=random) * 3 + 50,
        "weights": torch.randn(4, 3, 5, 5, generator=random),
    }
    with join_world() as world:
        results = {
            "given": given,
            "words": words(world),
            "plain": normalised(world, given),
            "cumulative": normalised(world, given, momentum=None),
            "bare": normalised(world, given, affine=False, track_running_stats=False),
        }
        train(world, folder / "row")
        results["said"] = stop_and_go_on(world, folder / "stopped")
        save_checkpoint(folder / f"rank{world.rank}.safetensors", results, {})


if __name__ == "__main__":
    main()
