"""Time to the accuracy of the best published UNet: the quick recipe compared with the assignment's training.

The two processes alternate on the same machine and are timed from start to exit. The time includes imports, reading and
labelling of the data, selection of the runtime settings, compilation if selected, training, and all images and curves.
The baseline (``course_baseline.py``) trains for 25 epochs. The quick recipe trains the same network. Its test accuracy
must be at least 59.3 %, which is the best accuracy of the public solutions.

    python benchmarks/time_to_accuracy.py [--pairs 3] [-o benchmarks/results/time_to_accuracy.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from chromabox.colour.data.datasets import resolve_palette
from chromabox.io.cifar10 import download_cifar10
from environment import describe_machine, write_results

BEST_PUBLISHED = 0.593


def time_command(command: list[str]) -> float:
    start_time = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start_time


def run_pair(folder: Path, data: Path, palette: Path, seed: int) -> dict[str, float]:
    course, ours = folder / f"course-{seed}", folder / f"ours-{seed}"
    script = Path(__file__).with_name("course_baseline.py")
    course_seconds = time_command([sys.executable, str(script), str(data), str(palette), str(course), "25", str(seed)])
    train = [sys.executable, "-m", "chromabox", "train", "unet", "--recipe", "quick", "--seed", str(seed)]
    our_seconds = time_command([*train, "--palette", str(palette), "-o", str(ours)])
    history = json.loads((course / "history.json").read_text())
    return {
        "seed": seed,
        "ratio": course_seconds / our_seconds,
        "course_seconds": course_seconds,
        "our_seconds": our_seconds,
        "course_accuracy": history[-1]["test_accuracy"],
        "course_best_accuracy": max(entry["test_accuracy"] for entry in history),
        "our_accuracy": json.loads((ours / "summary.json").read_text())["test_accuracy"],
        "our_execution": json.loads((ours / "config.json").read_text())["runtime"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    data = download_cifar10()
    selected = resolve_palette("auto", "cifar10:horse")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        palette = folder / "palette.npy"
        np.save(palette, selected.colours)
        pairs = [run_pair(folder, data, palette, seed) for seed in range(options.pairs)]
    for pair in pairs:
        print(
            f"{pair['ratio']:.1f}× faster: {pair['our_seconds']:.0f} s to {pair['our_accuracy']:.2%} compared with "
            f"{pair['course_seconds']:.0f} s to {pair['course_accuracy']:.2%} "
            f"(best epoch {pair['course_best_accuracy']:.2%})"
        )
    reached = all(pair["our_accuracy"] >= BEST_PUBLISHED for pair in pairs)
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    print(f"median {ratio:.1f}×; all quick runs reached {BEST_PUBLISHED:.1%}: {'yes' if reached else 'NO'}")
    if options.output:
        result = {
            "median_ratio": ratio,
            "all_reached": reached,
            "palette": selected.name,
            "pairs": pairs,
            "machine": describe_machine(),
        }
        write_results(options.output, result)
        print(options.output)


if __name__ == "__main__":
    main()
