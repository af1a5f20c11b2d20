"""Worker process of ``finetuning_speed.py``, which trains one epoch for every line of standard input.

    python benchmarks/finetuning_variants.py NAME THREADS EPOCHS FOLDER

Each process is limited to as many cores as it has threads. Results (description, seconds of each epoch, final values)
are written to standard output as lines of JSON. All other output is written to standard error. Variants whose names
start with ``ultralytics`` run in the environment of Ultralytics and do not use chromabox.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIZE, BATCH_SIZE, NUM_FROZEN, NUM_IMAGES = 416, 16, 10, 128

CHROMABOX_VARIANTS = {
    "cached": {"freeze": NUM_FROZEN, "views": 4},
    "frozen": {"freeze": NUM_FROZEN, "views": 0},
    "unfrozen": {"freeze": 0, "views": 0},
}
#: Timed parts of an epoch, from one mark to another.
PARTS = {
    "train": ("train_start", "train_end"),
    "val": ("val_start", "val_end"),
    "evaluation": ("val_end", "evaluation_end"),
}


class WorkerIO:
    """Commands from standard input, results as JSON on standard output, and timing marks."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.times: dict[str, tuple[float, float]] = {}

    def wait(self) -> None:
        """Wait for the next command. Exit if standard input is closed."""
        if not sys.stdin.readline():
            os._exit(0)

    def mark(self, name: str) -> None:
        self.times[name] = time.perf_counter(), time.process_time()

    def send(self, **values: Any) -> None:
        print(json.dumps(values), file=self.out)

    def send_epoch(self, **values: Any) -> None:
        """Send values with the wall-clock and processor seconds of each completed part."""
        for name, (start, end) in PARTS.items():
            if end in self.times:
                wall, processor = (b - a for a, b in zip(self.times[start], self.times[end], strict=True))
                values |= {f"{name}_seconds": wall, f"{name}_processor_seconds": processor}
        self.send(**values, peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def run_chromabox(worker: WorkerIO, threads: int, epochs: int, folder: Path, freeze: int, views: int) -> None:
    """Run ``finetune`` as ``chromabox finetune`` does, with marks around training and validation."""
    from chromabox.detect.training.config import FinetuneConfig
    from chromabox.detect.training.finetune import FinetuneJob, finetune
    from chromabox.detect.training.recipes import make_finetune_recipe
    from chromabox.engine.options import RuntimeOptions
    from chromabox.engine.runs import peak_memory_bytes

    open_task = FinetuneJob.open_task

    @contextmanager
    def open_marked_task(job: FinetuneJob, run: Any, runtime: Any) -> Iterator[Any]:
        with open_task(job, run, runtime) as (task, schedule):
            yield mark_parts(job, runtime, task), schedule

    def mark_parts(job: FinetuneJob, runtime: Any, task: Any) -> Any:
        def batches(epoch: int, skip: int) -> Iterator[Any]:
            if epoch == 0:
                worker.send(execution=str(runtime), torch=torch.__version__)
            worker.wait()
            worker.mark("train_start")
            yield from task.batches(epoch, skip)

        def validate(model: nn.Module) -> dict[str, float]:
            worker.mark("train_end")
            worker.mark("val_start")
            metrics = task.validate(model)
            worker.mark("val_end")
            if not job.num_frozen:
                evaluate(replace(job.initial.detector, model=model), job.validator.data)
                worker.mark("evaluation_end")
            return metrics

        return replace(task, batches=batches, validate=validate)

    def on_epoch_end(record: Any, model: nn.Module) -> None:
        worker.send_epoch(metrics=dict(record))
        if record["epoch"] == epochs:
            worker.wait()  # Work after the last epoch must not disturb the other processes.

    FinetuneJob.open_task = open_marked_task  # type: ignore[method-assign, assignment]
    recipe = make_finetune_recipe("default", epochs=epochs, batch_size=BATCH_SIZE)
    config = FinetuneConfig(data="coco128", recipe=recipe, size=SIZE, freeze=freeze, num_cached_views=views)
    result = finetune(config, folder, options=RuntimeOptions(threads=threads), callbacks=(on_epoch_end,))
    worker.send(filling_seconds=result.summary["seconds_filling"], views=views, peak_memory=peak_memory_bytes())


def evaluate(detector: Any, data: Any) -> None:
    """Evaluate as ``chromabox evaluate`` does, without a cache and without confidence intervals."""
    from chromabox.detect.evaluation.evaluate import evaluate_detector
    from chromabox.engine.autotune import num_threads

    with torch.autocast("cpu", enabled=False), num_threads(1):
        evaluate_detector(detector.fused(), data, size=SIZE, num_resamples=2)


def run_ultralytics(worker: WorkerIO, threads: int, epochs: int, folder: Path) -> None:
    """Run the Ultralytics trainer with default settings, without downloads, plots and repeated reading from disk."""
    from ultralytics import YOLO, __version__

    model = YOLO("yolov3-tiny.yaml")
    parameters = sum(parameter.numel() for parameter in model.model.parameters())

    def on_epoch_start(trainer: Any) -> None:
        if trainer.epoch == 0:
            worker.send(ultralytics=__version__, torch=torch.__version__, parameters=parameters)
        worker.wait()
        torch.set_num_threads(threads)
        worker.mark("train_start")

    def on_epoch_end(trainer: Any) -> None:
        metrics = {**trainer.label_loss_items(trainer.tloss, prefix="train"), **trainer.metrics}
        worker.send_epoch(metrics={name: float(value) for name, value in metrics.items()})
        if trainer.epoch == epochs - 1:
            worker.wait()  # Later work is not measured.

    model.add_callback("on_train_epoch_start", on_epoch_start)
    model.add_callback("on_train_epoch_end", lambda _: worker.mark("train_end"))
    model.add_callback("on_val_start", lambda _: worker.mark("val_start"))
    model.add_callback("on_val_end", lambda _: worker.mark("val_end"))
    model.add_callback("on_fit_epoch_end", on_epoch_end)
    settings = {
        "epochs": epochs,
        "imgsz": SIZE,
        "batch": BATCH_SIZE,
        "freeze": NUM_FROZEN,
        "device": "cpu",
        "cache": "ram",
    }
    disabled = {"pretrained": False, "amp": False, "plots": False, "save": False}
    model.train(data=str(folder / "data.yaml"), project=str(folder), **settings, **disabled)


class Heads(nn.Module):
    """The two heads of YOLOv3-tiny, in place of Ultralytics' ``Detect``."""

    def __init__(self, replaced: Any) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(256, 255, 1), nn.Conv2d(512, 255, 1)])
        self.i, self.f, self.type, self.np = replaced.i, replaced.f, "heads", 0  # type: ignore[method-assign, assignment]

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        return [convolution(x) for convolution, x in zip(self.convolutions, features, strict=True)]


def run_ultralytics_layers(worker: WorkerIO, threads: int) -> None:
    """Train Ultralytics' layers with YOLOv3's heads on random images (only forward passes, backward passes, steps)."""
    from ultralytics.nn.tasks import DetectionModel

    torch.set_num_threads(threads)
    model = DetectionModel("yolov3-tiny.yaml", verbose=False).float()
    model.model[-1] = Heads(model.model[-1])
    model.model[:NUM_FROZEN].requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1e-6, momentum=0.9, nesterov=True)
    images = torch.rand(BATCH_SIZE, 3, SIZE, SIZE)
    worker.send(torch=torch.__version__, parameters=sum(parameter.numel() for parameter in model.parameters()))
    model.train()
    model.model[:NUM_FROZEN].eval()
    while True:
        worker.wait()
        worker.mark("train_start")
        for _ in range(NUM_IMAGES // BATCH_SIZE):
            optimizer.zero_grad()
            loss = torch.stack([head.square().mean() for head in model(images)]).sum()
            loss.backward()
            optimizer.step()
        worker.mark("train_end")
        worker.send_epoch(metrics={"stand-in for the loss": float(loss)})


def main() -> None:
    name, threads, epochs, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    worker = WorkerIO()
    if name in CHROMABOX_VARIANTS:
        run_chromabox(worker, threads, epochs, folder, **CHROMABOX_VARIANTS[name])
    elif name == "ultralytics":
        run_ultralytics(worker, threads, epochs, folder)
    else:
        run_ultralytics_layers(worker, threads)


if __name__ == "__main__":
    main()
