"""Time of a fine-tuning epoch of YOLOv3-tiny: with cached features, without a cache, and with Ultralytics.

    python benchmarks/finetuning_speed.py --ultralytics VENV [--threads N] [--turns N] [-o RESULTS.json]

The dataset is COCO128, found in the same way as by ``chromabox data check coco128``. It has 128 training images, and
128 images of val2017 for validation after every epoch. The input size is 416 pixels and the batch size is 16. Every
variant is a process (``finetuning_variants.py``) that trains one epoch per request. The processes alternate in forward
and reverse order, so that a slowdown of the machine affects all of them. The first turn is a warm-up. There are no
processes for data loading, so that with one thread, every variant uses one core.

* cached: ``finetune`` with the first ten layers frozen and their features cached for four views of each image.
* frozen: the same without that cache (``--cached-views 0``). The frozen layers are computed in every epoch on new
  views. The features of the validation images are cached.
* unfrozen: no frozen layers and no feature cache. As in all variants, decoded images stay in memory. In addition to the
  validation, ``chromabox evaluate`` (without confidence intervals) is timed with the same images and weights, as
  ``evaluation``.
* ultralytics: the trainer of Ultralytics with its yolov3-tiny.yaml, random weights, freeze=10, and otherwise default
  settings (on a CPU: float32 and no processes for data loading). The head in yolov3-tiny.yaml, and therefore the loss,
  differs from YOLOv3.
* ultralytics-layers: the layers of Ultralytics with the heads of YOLOv3. Only forward passes, backward passes and SGD
  steps are timed. This is a lower bound for training YOLOv3-tiny with the layers of Ultralytics.

The chromabox variants use automatically selected runtime settings. A ratio is the median over turns of a variant's
seconds divided by those of the cached variant in the same turn. Training and validation are timed separately, without
saving. Processor seconds are reported in addition to wall-clock seconds, because other programs hardly affect them.

Ultralytics is AGPL software. It therefore runs in a separate virtual environment, which is created at VENV if it does
not exist (several gigabytes). It runs without network access and on a copy of the data, because it writes files next to
the images. It is skipped if it is not available.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any, TextIO

from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.load import resolve_dataset
from detector_speed import ultralytics_python
from environment import describe_machine, write_results
from finetuning_variants import CHROMABOX_VARIANTS, PARTS

Measurements = dict[str, Any]
VARIANTS = (*CHROMABOX_VARIANTS, "ultralytics", "ultralytics-layers")
CLAIM = "an epoch 3× faster than Ultralytics', 2× than unfrozen; validation 3×; filling repaid in 3 epochs; 2.5 GB"
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


class WorkerExited(Exception):
    """A worker process exited early. Its log contains the reason."""


class Worker:
    """A process that trains one epoch per request, and its results."""

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        self.process, self.name = process, name
        self.description = self.read_result()
        self.epochs: list[Measurements] = []

    def read_result(self) -> Measurements:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerExited(f"{self.name} exited early")
        result: Measurements = json.loads(line)
        return result

    def request(self) -> Measurements:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read_result()


@contextmanager
def start_worker(name: str, python: str | Path, arguments: list[str], log: TextIO) -> Iterator[Worker]:
    """Start a worker that is ready for its first epoch. The third argument is the worker's folder."""
    command = [str(python), str(Path(__file__).with_name("finetuning_variants.py")), name, *arguments]
    settings = {**os.environ, **OFFLINE, "YOLO_CONFIG_DIR": arguments[2]}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=settings
    ) as process:
        try:
            yield Worker(process, name)
        finally:
            process.kill()


def copy_dataset(folder: Path) -> None:
    """Copy COCO128 and write its data.yaml for Ultralytics."""
    copytree(resolve_dataset("coco128"), folder, dirs_exist_ok=True)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(COCO_CLASSES))
    splits = "train: images/train2017\nval: images/val2017\n"
    (folder / "data.yaml").write_text(f"path: {folder}\n{splits}names:\n{names}")


def run_variants(names: list[str], python: Path, threads: int, turns: int, folder: Path, log: TextIO) -> Measurements:
    """Run all variants alternately, and return their descriptions and epochs. Only the cached run is completed."""
    workers: list[Worker] = []
    with ExitStack() as stack:
        for name in names:
            worker_folder = folder / name
            worker_folder.mkdir()
            arguments = [str(threads), str(turns + 1), str(worker_folder)]
            if name == "ultralytics":
                copy_dataset(worker_folder)
            interpreter = sys.executable if name in CHROMABOX_VARIANTS else python
            workers.append(stack.enter_context(start_worker(name, interpreter, arguments, log)))
            print(f"{name}: {workers[-1].description}", flush=True)
        for turn in range(turns + 1):
            for worker in workers if turn % 2 else reversed(workers):
                result = worker.request()
                worker.epochs += [result] if turn else []
                print(f"{f'turn {turn}' if turn else 'warm-up'}, {worker.name}: {result}", flush=True)
        workers[0].description |= workers[0].request()
    return {worker.name: {**worker.description, "epochs": worker.epochs} for worker in workers}


def summarise(variants: Measurements) -> Measurements:
    """Return for each variant the median seconds per part, the ratios to the cached variant, and the peak memory."""
    cached = variants["cached"]["epochs"]
    summary: Measurements = {}
    for name, measured in variants.items():
        epochs = measured["epochs"]
        summary[name] = {"peak_memory": max(measured.get("peak_memory", 0), epochs[-1]["peak_memory"])}
        for part in (part for part in PARTS if f"{part}_seconds" in epochs[0]):
            cached_part = "train" if part == "train" else "val"
            for clock in ("seconds", "processor_seconds"):
                times = [epoch[f"{part}_{clock}"] for epoch in epochs]
                ratios = [b / a[f"{cached_part}_{clock}"] for a, b in zip(cached, times, strict=True)]
                summary[name][f"{part}_{clock}"] = statistics.median(times)
                summary[name][f"{part}_{clock}_ratio"] = statistics.median(ratios)
    return summary


def break_even_epochs(summary: Measurements, fill_seconds: float) -> dict[str, float]:
    """Return the number of epochs, including validation, after which the caches have saved the time of filling them."""
    epoch_seconds = {
        name: measured["train_seconds"] + measured["val_seconds"]
        for name, measured in summary.items()
        if name in CHROMABOX_VARIANTS
    }
    return {
        name: fill_seconds / (seconds - epoch_seconds["cached"])
        for name, seconds in epoch_seconds.items()
        if name != "cached"
    }


def print_summary(summary: Measurements) -> None:
    for name, measured in summary.items():
        print(f"{name}: {measured['peak_memory'] / 1e9:.2f} GB")
        for part in PARTS:
            if f"{part}_seconds" in measured:
                ratio, processor = measured[f"{part}_seconds_ratio"], measured[f"{part}_processor_seconds_ratio"]
                seconds = measured[f"{part}_seconds"]
                print(f"    {part}: {ratio:.2f}× cached, processor time {processor:.2f}×; {seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ultralytics", type=Path, metavar="VENV", help="virtual environment for Ultralytics")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="in addition to cached (default: all)"
    )
    parser.add_argument("--threads", type=int, default=1, help="number of threads per variant")
    parser.add_argument("--turns", type=int, default=3, help="number of turns after the warm-up")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    machine = describe_machine()
    python = ultralytics_python(options.ultralytics)
    names = [
        name
        for name in VARIANTS
        if name == "cached" or (name in options.variants and (name in CHROMABOX_VARIANTS or python))
    ]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        try:
            variants = run_variants(names, python or Path(), options.threads, options.turns, Path(folder), log)
        except WorkerExited as error:
            log.seek(0)
            sys.exit(f"{log.read()[-3000:]}\n{error}")
    summary = summarise(variants)
    print_summary(summary)
    fill_seconds = variants["cached"]["filling_seconds"]
    break_even = break_even_epochs(summary, fill_seconds)
    for name, epochs in break_even.items():
        print(f"filling the caches took {fill_seconds:.1f} s, break-even with {name} after {epochs:.1f} epochs")
    if options.output:
        settings = {"claim": CLAIM, "machine": machine, "threads": options.threads, "turns": options.turns}
        filling = {"filling_seconds": fill_seconds, "repaid_after_epochs": break_even}
        write_results(options.output, {**settings, "summary": summary, **filling, "sides": variants})


if __name__ == "__main__":
    main()
