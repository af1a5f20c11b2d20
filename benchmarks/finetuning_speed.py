"""What an epoch of fine-tuning YOLOv3-tiny costs: ours with its first ten layers cached, ours without, Ultralytics'.

    python benchmarks/finetuning_speed.py [--ultralytics VENV] [--threads N] [--turns N] [-o RESULTS.json]

COCO128, found as ``chromabox data check coco128`` finds it: 128 pictures train, 128 of val2017 judge after every
epoch; 416 pixels, batches of 16. Every side is a process (``finetuning_sides.py``) that trains an epoch when it is told
to. They take turns, in one order and in the other, so that what slows the machine slows all; the first turn warms up.

* cached: ``finetune`` with the first ten layers frozen, their outputs cached for four views of each picture.
* frozen: the same without the cache (``--views 0``): frozen layers run in every epoch, on fresh views.
* unfrozen: nothing frozen, no cache. As in all sides, decoded pictures stay in memory.
* ultralytics: its trainer on its own yolov3-tiny.yaml from random weights, freeze=10; else as it comes, which is on a
  processor float32 and no processes that load. The head of that yaml, and with it the loss, is another than YOLOv3's.
* ultralytics-layers: its code of the same layers with YOLOv3's heads in place of that head: nothing but passes, slopes
  and steps of SGD, and passes alone for validation. No training of YOLOv3-tiny with its layers can take less.

A ratio is the median over turns of a side's seconds divided by the cached side's of the same turn. Training and
validation are timed apart; saving is in neither. The processor's seconds stand beside the clock's: they hardly change
with what else runs on the machine.

Ultralytics is AGPL: it lives in an environment of its own, made at VENV if there is none (several gigabytes), works on
a copy of the data, because it writes beside them, and is kept from the network. Passed over where it cannot be had.
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

from chromabox.detect.classes import COCO_CLASSES
from chromabox.detect.data import find_set
from detector_speed import ultralytics_python
from machine import describe, write_results

Figures = dict[str, Any]
#: Of an epoch: by the clock and by the processor, training and validation.
PARTS = ("train_seconds", "val_seconds", "train_processor_seconds", "val_processor_seconds")
OURS, THEIRS = ("cached", "frozen", "unfrozen"), ("ultralytics", "ultralytics-layers")
CLAIM = "an epoch 3× faster than Ultralytics', 2× than unfrozen; validation 3×; filling repaid in 3 epochs; 2.5 GB"
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


class Side:
    """A process that trains an epoch when it is told to."""

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        self.process, self.name = process, name
        self.about = self.answer()
        self.epochs: list[Figures] = []

    def answer(self) -> Figures:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended before its time; its log says why")
        return json.loads(line)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def epoch(self) -> Figures:
        self.go_on()
        self.epochs.append(self.answer())
        return self.epochs[-1]


@contextmanager
def side(name: str, python: Path, threads: int, epochs: int, folder: Path, log: TextIO) -> Iterator[Side]:
    """A side that is ready for its first epoch."""
    script = Path(__file__).with_name("finetuning_sides.py")
    command = [str(python), str(script), name, str(threads), str(epochs), str(folder)]
    settings = {**os.environ, **OFFLINE, "YOLO_CONFIG_DIR": str(folder)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=settings
    ) as process:
        try:
            yield Side(process, name)
        finally:
            process.kill()


def copied_data(folder: Path) -> None:
    """COCO128 with a description of it as Ultralytics reads it."""
    copytree(find_set("coco128"), folder, dirs_exist_ok=True)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(COCO_CLASSES))
    splits = "train: images/train2017\nval: images/val2017\n"
    (folder / "data.yaml").write_text(f"path: {folder}\n{splits}names:\n{names}")


def measured(names: list[str], python: Path | None, threads: int, turns: int, folder: Path, log: TextIO) -> Figures:
    """All sides' epochs in turns, and what they tell in the end."""
    with ExitStack() as stack:
        sides = []
        for name in names:
            own = folder / name
            own.mkdir()
            if name == "ultralytics":
                copied_data(own)
            runs_on = Path(sys.executable) if name in OURS else python
            assert runs_on is not None
            sides.append(stack.enter_context(side(name, runs_on, threads, turns + 1, own, log)))
            print(f"{name}: {sides[-1].about}", flush=True)
        for turn in range(turns + 1):
            for one in sides if turn % 2 else reversed(sides):
                found = one.epoch()
                times = ", ".join(f"{part} {found[part]:.2f}" for part in PARTS)
                print(f"{f'turn {turn}' if turn else 'warm-up'}, {one.name}: {times}; {found['metrics']}", flush=True)
        for one in sides:
            if one.name in OURS:
                one.go_on()
                one.about |= one.answer()
        return {one.name: {**one.about, "epochs": one.epochs[1:]} for one in sides}


def summed_up(results: Figures) -> None:
    """Put medians, and ratios to the cached side, into the results."""
    cached = results["cached"]["epochs"]
    for found in results.values():
        found["ratio"] = {
            part: statistics.median(b[part] / a[part] for a, b in zip(cached, found["epochs"], strict=True))
            for part in PARTS
        }
        found["median"] = {part: statistics.median(epoch[part] for epoch in found["epochs"]) for part in PARTS}
        found["peak_memory"] = max(found.get("peak_memory", 0), found["epochs"][-1]["peak_memory"])


def repaid(results: Figures, name: str) -> float:
    """Epochs after which the time spent on filling the caches is saved, against another of our sides."""
    cached, other = (results[one]["median"] for one in ("cached", name))
    saved = sum(other[part] - cached[part] for part in ("train_seconds", "val_seconds"))
    return results["cached"]["filling_seconds"] / saved


def print_results(results: Figures) -> None:
    for name, found in results.items():
        ratio, median = found["ratio"], found["median"]
        print(
            f"{name}: an epoch {ratio['train_seconds']:.2f}× cached's ({ratio['train_processor_seconds']:.2f}× by the "
            f"processor), {median['train_seconds']:.2f} s; validation {ratio['val_seconds']:.2f}× "
            f"({ratio['val_processor_seconds']:.2f}×), {median['val_seconds']:.2f} s; "
            f"{found['peak_memory'] / 1e9:.2f} GB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ultralytics", type=Path, metavar="VENV", help="an environment for Ultralytics")
    parser.add_argument("--sides", nargs="+", choices=OURS + THEIRS, default=OURS + THEIRS, help="all of them")
    parser.add_argument("--threads", type=int, default=1, help="of every side")
    parser.add_argument("--turns", type=int, default=5, help="besides the warm-up")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    options = parser.parse_args()
    machine = describe()
    python = ultralytics_python(options.ultralytics)
    names = [name for name in options.sides if name in OURS or python is not None]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        try:
            results = measured(names, python, options.threads, options.turns, Path(folder), log)
        except RuntimeError:
            log.seek(0)
            print(log.read()[-3000:])
            raise
    summed_up(results)
    print_results(results)
    filling = {name: repaid(results, name) for name in ("frozen", "unfrozen") if name in results}
    for name, epochs in filling.items():
        seconds = results["cached"]["filling_seconds"]
        print(f"filling the caches took {seconds:.1f} s, repaid within {epochs:.1f} epochs of {name}")
    if options.output:
        told = {"claim": CLAIM, "machine": machine, "threads": options.threads, "turns": options.turns}
        write_results(options.output, {**told, "sides": results, "repaid_after_epochs": filling})


if __name__ == "__main__":
    main()
