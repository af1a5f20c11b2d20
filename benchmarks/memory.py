"""Peak memory of training on all 60,000 CIFAR-10 images, and of colourising folders of 5 and of 50 files.

Each job is a separate process. The operating system measures its peak memory.

    python benchmarks/memory.py [-o benchmarks/results/memory.json]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from environment import describe_machine, write_results

TRAIN_ARGUMENTS = [
    "train",
    "unet",
    "--data",
    "cifar10:all",
    "--palette",
    "cifar24",
    "--epochs",
    "1",
    "--batch-size",
    "100",
]


def peak_megabytes(arguments: list[str]) -> float:
    """Return the peak resident memory of one chromabox process in megabytes (10⁶ bytes)."""
    process = subprocess.Popen([sys.executable, "-m", "chromabox", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"chromabox {' '.join(arguments)} failed")
    return usage.ru_maxrss * 1024 / 1e6


def write_images(folder: Path, count: int) -> Path:
    """Write images of noise with 1600 × 1200 pixels. The content does not affect the memory."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(generator.integers(0, 256, (1200, 1600), np.uint8)).save(folder / f"{index:02d}.jpg")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peaks["train on all of CIFAR-10"] = peak_megabytes([*TRAIN_ARGUMENTS, "-o", str(folder / "run")])
        for count in (5, 50):
            source = write_images(folder / f"in{count}", count)
            peaks[f"colour {count} files"] = peak_megabytes(["colour", str(source), "-o", str(folder / f"out{count}")])
    for job, megabytes in peaks.items():
        print(f"{megabytes:7.0f} MB peak: {job}")
    if options.output:
        write_results(options.output, {"peak_megabytes": peaks, "machine": describe_machine()})
        print(options.output)


if __name__ == "__main__":
    main()
