"""What an epoch of fine-tuning YOLOv3-tiny costs: ours with its first ten layers cached, ours without, Ultralytics'.

    python benchmarks/finetuning_speed.py --ultralytics VENV [--threads N] [--turns N] [-o RESULTS.json]

COCO128, found as ``chromabox data check coco128`` finds it: 128 pictures train, 128 of val2017 judge after every
epoch; 416 pixels, batches of 16. Every side is a process (``finetuning_sides.py``) that trains an epoch when it is told
to. They take turns, in one order and in the other, so that what slows the machine slows all; the first turn warms up.
With one thread each and no loading aside, every side has one core to itself.

* cached: ``finetune`` with the first ten layers frozen, their outputs cached for four views of each picture.
* frozen: the same without that cache (``--views 0``): frozen layers run in every epoch, on fresh views. The validation
  pictures' cache is there.
* unfrozen: nothing frozen, no cache; as in all sides, decoded pictures stay in memory. Beside its validation stands
  ``evaluation``: the same pictures and weights as ``chromabox evaluate`` judges them, but for the intervals.
* ultralytics: its trainer on its own yolov3-tiny.yaml from random weights, freeze=10; else as it comes, which is on a
  processor float32 and no processes that load. The head of that yaml, and with it the loss, is another than YOLOv3's.
* ultralytics-layers: its code of the same layers with YOLOv3's heads in place of that head: nothing but passes, slopes
  and steps of SGD. No training of YOLOv3-tiny with its layers can take less.

Each of ours runs as its own probe chooses. A ratio is the median over turns of a side's seconds divided by the cached
side's of the same turn. Training and validation are timed apart; saving is in neither. The processor's seconds stand
beside the clock's: they hardly change with what else runs on the machine.

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

from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.load import resolve_dataset
from detector_speed import ultralytics_python
from finetuning_sides import OURS, PARTS
from machine import describe, write_results

Figures = dict[str, Any]
SIDES = (*OURS, "ultralytics", "ultralytics-layers")
CLAIM = "an epoch 3× faster than Ultralytics', 2× than unfrozen; validation 3×; filling repaid in 3 epochs; 2.5 GB"
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}


class EndedEarly(Exception):
    """A side that does not answer any more; its log says why."""


class Side:
    """A process that trains an epoch when it is told to, and what it has told."""

    def __init__(self, process: "subprocess.Popen[str]", name: str) -> None:
        self.process, self.name = process, name
        self.about = self.answer()
        self.epochs: list[Figures] = []

    def answer(self) -> Figures:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EndedEarly(f"{self.name} ended before its time")
        return json.loads(line)

    def go_on(self) -> Figures:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


@contextmanager
def side(name: str, python: str | Path, arguments: list[str], log: TextIO) -> Iterator[Side]:
    """A side that is ready for its first epoch; the third argument is its folder."""
    command = [str(python), str(Path(__file__).with_name("finetuning_sides.py")), name, *arguments]
    settings = {**os.environ, **OFFLINE, "YOLO_CONFIG_DIR": arguments[2]}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=settings
    ) as process:
        try:
            yield Side(process, name)
        finally:
            process.kill()


def copied_data(folder: Path) -> None:
    """COCO128 with a description of it as Ultralytics reads it."""
    copytree(resolve_dataset("coco128"), folder, dirs_exist_ok=True)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(COCO_CLASSES))
    splits = "train: images/train2017\nval: images/val2017\n"
    (folder / "data.yaml").write_text(f"path: {folder}\n{splits}names:\n{names}")


def take_turns(names: list[str], python: Path, threads: int, turns: int, folder: Path, log: TextIO) -> Figures:
    """All sides' epochs, and what they tell of themselves; only the cached one goes on to the end of its run."""
    sides: list[Side] = []
    with ExitStack() as stack:
        for name in names:
            own = folder / name
            own.mkdir()
            arguments = [str(threads), str(turns + 1), str(own)]
            if name == "ultralytics":
                copied_data(own)
            sides.append(stack.enter_context(side(name, sys.executable if name in OURS else python, arguments, log)))
            print(f"{name}: {sides[-1].about}", flush=True)
        for turn in range(turns + 1):
            for one in sides if turn % 2 else reversed(sides):
                found = one.go_on()
                one.epochs += [found] if turn else []
                print(f"{f'turn {turn}' if turn else 'warm-up'}, {one.name}: {found}", flush=True)
        sides[0].about |= sides[0].go_on()
    return {one.name: {**one.about, "epochs": one.epochs} for one in sides}


def summed_up(sides: Figures) -> Figures:
    """Of each side the medians of its parts' seconds, and of their ratios to the cached side's; the most memory."""
    cached = sides["cached"]["epochs"]
    summary: Figures = {}
    for name, found in sides.items():
        epochs = found["epochs"]
        summary[name] = {"peak_memory": max(found.get("peak_memory", 0), epochs[-1]["peak_memory"])}
        for part in (part for part in PARTS if f"{part}_seconds" in epochs[0]):
            against = "train" if part == "train" else "val"
            for clock in ("seconds", "processor_seconds"):
                times = [epoch[f"{part}_{clock}"] for epoch in epochs]
                ratios = [b / a[f"{against}_{clock}"] for a, b in zip(cached, times, strict=True)]
                summary[name][f"{part}_{clock}"] = statistics.median(times)
                summary[name][f"{part}_{clock}_ratio"] = statistics.median(ratios)
    return summary


def repaid_after(summary: Figures, filling: float) -> dict[str, float]:
    """Epochs, validation included, in which the cached side has saved what filling the caches cost."""
    spent = {name: found["train_seconds"] + found["val_seconds"] for name, found in summary.items() if name in OURS}
    return {name: filling / (seconds - spent["cached"]) for name, seconds in spent.items() if name != "cached"}


def print_summary(summary: Figures) -> None:
    for name, found in summary.items():
        print(f"{name}: {found['peak_memory'] / 1e9:.2f} GB")
        for part in PARTS:
            if f"{part}_seconds" in found:
                ratio, processor = found[f"{part}_seconds_ratio"], found[f"{part}_processor_seconds_ratio"]
                seconds = found[f"{part}_seconds"]
                print(f"    {part}: {ratio:.2f}× cached's, by the processor {processor:.2f}×; {seconds:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ultralytics", type=Path, metavar="VENV", help="an environment for Ultralytics")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="besides cached; all by default")
    parser.add_argument("--threads", type=int, default=1, help="of every side")
    parser.add_argument("--turns", type=int, default=3, help="besides the warm-up")
    parser.add_argument("-o", "--output", type=Path, help="write the results there, as JSON")
    options = parser.parse_args()
    machine = describe()
    python = ultralytics_python(options.ultralytics)
    names = [name for name in SIDES if name == "cached" or (name in options.sides and (name in OURS or python))]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        try:
            sides = take_turns(names, python or Path(), options.threads, options.turns, Path(folder), log)
        except EndedEarly as error:
            log.seek(0)
            sys.exit(f"{log.read()[-3000:]}\n{error}")
    summary = summed_up(sides)
    print_summary(summary)
    filling = sides["cached"]["filling_seconds"]
    repaid = repaid_after(summary, filling)
    for name, epochs in repaid.items():
        print(f"filling the caches took {filling:.1f} s, repaid against {name} within {epochs:.1f} epochs")
    if options.output:
        told = {"claim": CLAIM, "machine": machine, "threads": options.threads, "turns": options.turns}
        filled = {"filling_seconds": filling, "repaid_after_epochs": repaid}
        write_results(options.output, {**told, "summary": summary, **filled, "sides": sides})


if __name__ == "__main__":
    main()
