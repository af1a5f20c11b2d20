"""The processes that ``finetuning_speed.py`` lets take turns: each trains one epoch for every line that it reads.

    python benchmarks/finetuning_sides.py NAME THREADS EPOCHS FOLDER

Each keeps to as many cores as it is given threads, so that nothing is done beside. What a process has to tell (what it
is, each epoch's seconds, what it comes to in the end) it writes as lines of JSON; anything else that is printed goes to
the standard error output. Those named ``ultralytics…`` run in an environment where that is installed, and nothing of
chromabox in them.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZE, BATCH, FREEZE, PICTURES = 416, 16, 10, 128

OURS = {
    "cached": {"freeze": FREEZE, "views": 4},
    "frozen": {"freeze": FREEZE, "views": 0},
    "unfrozen": {"freeze": 0, "views": 0},
}
#: What is timed of an epoch, from one mark to another.
PARTS = {
    "train": ("begin", "trained"),
    "val": ("judge", "judged"),
    "evaluation": ("judged", "evaluated"),
}


class Turns:
    """The way in for "go on", the way out for figures, and the clock between both."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.times: dict[str, tuple[float, float]] = {}

    def wait(self) -> None:
        """Until it is our turn; the process ends where nobody is there any more."""
        if not sys.stdin.readline():
            os._exit(0)

    def mark(self, name: str) -> None:
        self.times[name] = time.perf_counter(), time.process_time()

    def tell(self, **figures: Any) -> None:
        print(json.dumps(figures), file=self.out)

    def tell_epoch(self, **figures: Any) -> None:
        """Of each part that there is the seconds of the clock and of the processor."""
        for name, (begin, end) in PARTS.items():
            if end in self.times:
                clock, processor = (b - a for a, b in zip(self.times[begin], self.times[end], strict=True))
                figures |= {f"{name}_seconds": clock, f"{name}_processor_seconds": processor}
        self.tell(**figures, peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def ours(turns: Turns, threads: int, epochs: int, folder: Path, freeze: int, views: int) -> None:
    """The whole of ``finetune``, as ``chromabox finetune`` calls it, with marks around batches and validation."""
    from chromabox.detect.training import finetune as room
    from chromabox.detect.training.recipes import make_finetune_recipe
    from chromabox.engine.runs import peak_memory_bytes
    from chromabox.engine.runtime_options import RuntimeOptions

    job_and_plan = room.build_finetune_task

    def marked(config: Any, begun: Any, net: Any, until: int, loss: Any, judge: Any, *rest: Any) -> Any:
        job, plan = job_and_plan(config, begun, net, until, loss, judge, *rest)

        def batches(epoch: int, skip: int) -> Iterator[Any]:
            if epoch == 0:
                turns.tell(execution=str(config.runtime), torch=torch.__version__)
            turns.wait()
            turns.mark("begin")
            yield from job.batches(epoch, skip)

        def validate(net: nn.Module) -> dict[str, float]:
            turns.mark("trained")
            turns.mark("judge")
            metrics = job.validate(net)
            turns.mark("judged")
            if not until:
                evaluate(replace(begun.trained, net=net), judge.data)
                turns.mark("evaluated")
            return metrics

        return replace(job, batches=batches, validate=validate), plan

    def after_epoch(record: Any) -> None:
        turns.tell_epoch(metrics=dict(record))
        if record["epoch"] == epochs:
            turns.wait()  # What follows the last epoch must not disturb the others'.

    room.build_finetune_task = marked
    recipe = make_finetune_recipe("default", epochs=epochs, batch_size=BATCH)
    config = room.FinetuneConfig(data="coco128", recipe=recipe, size=SIZE, freeze=freeze, num_cached_views=views)
    outcome = room.finetune(config, folder, options=RuntimeOptions(threads=threads), on_epoch_end=after_epoch)
    turns.tell(filling_seconds=outcome.summary["seconds_filling"], views=views, peak_memory=peak_memory_bytes())


def evaluate(trained: Any, data: Any) -> None:
    """As ``chromabox evaluate`` does, which keeps nothing, but for the intervals."""
    from chromabox.detect.evaluation.evaluate import evaluate_detector
    from chromabox.detect.inference.runtime import optimize_for_inference

    with torch.autocast("cpu", enabled=False):
        evaluate_detector(optimize_for_inference(trained), data, size=SIZE, num_resamples=2)


def ultralytics(turns: Turns, threads: int, epochs: int, folder: Path) -> None:
    """Its trainer as it comes, but for what it would download, draw, and read again from disk."""
    from ultralytics import YOLO, __version__

    model = YOLO("yolov3-tiny.yaml")
    parameters = sum(parameter.numel() for parameter in model.model.parameters())

    def begin(trainer: Any) -> None:
        if trainer.epoch == 0:
            turns.tell(ultralytics=__version__, torch=torch.__version__, parameters=parameters)
        turns.wait()
        torch.set_num_threads(threads)
        turns.mark("begin")

    def tell(trainer: Any) -> None:
        metrics = {**trainer.label_loss_items(trainer.tloss, prefix="train"), **trainer.metrics}
        turns.tell_epoch(metrics={name: float(value) for name, value in metrics.items()})
        if trainer.epoch == epochs - 1:
            turns.wait()  # Nothing of what follows is measured.

    model.add_callback("on_train_epoch_start", begin)
    model.add_callback("on_train_epoch_end", lambda _: turns.mark("trained"))
    model.add_callback("on_val_start", lambda _: turns.mark("judge"))
    model.add_callback("on_val_end", lambda _: turns.mark("judged"))
    model.add_callback("on_fit_epoch_end", tell)
    settings = {"epochs": epochs, "imgsz": SIZE, "batch": BATCH, "freeze": FREEZE, "device": "cpu", "cache": "ram"}
    off = {"pretrained": False, "amp": False, "plots": False, "save": False}
    model.train(data=str(folder / "data.yaml"), project=str(folder), **settings, **off)


class Heads(nn.Module):
    """YOLOv3-tiny's own two heads, in the place of Ultralytics' ``Detect``."""

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(256, 255, 1), nn.Conv2d(512, 255, 1)])
        self.i, self.f, self.type, self.np = replaced.i, replaced.f, "heads", 0

    def forward(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        return [convolution(one) for convolution, one in zip(self.convolutions, given, strict=True)]


def ultralytics_layers(turns: Turns, threads: int) -> None:
    """Its layers with YOLOv3's heads: bare passes, slopes and steps on random pictures."""
    from ultralytics.nn.tasks import DetectionModel

    torch.set_num_threads(threads)
    net = DetectionModel("yolov3-tiny.yaml", verbose=False).float()
    net.model[-1] = Heads(net.model[-1])
    net.model[:FREEZE].requires_grad_(False)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, nesterov=True)
    images = torch.rand(BATCH, 3, SIZE, SIZE)
    turns.tell(torch=torch.__version__, parameters=sum(parameter.numel() for parameter in net.parameters()))
    net.train()
    net.model[:FREEZE].eval()
    while True:
        turns.wait()
        turns.mark("begin")
        for _ in range(PICTURES // BATCH):
            optimiser.zero_grad()
            loss = torch.stack([head.square().mean() for head in net(images)]).sum()
            loss.backward()
            optimiser.step()
        turns.mark("trained")
        turns.tell_epoch(metrics={"stand-in for the loss": float(loss)})


def main() -> None:
    name, threads, epochs, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    turns = Turns()
    if name in OURS:
        ours(turns, threads, epochs, folder, **OURS[name])
    elif name == "ultralytics":
        ultralytics(turns, threads, epochs, folder)
    else:
        ultralytics_layers(turns, threads)


if __name__ == "__main__":
    main()
