"""Time and memory of processes (colourisation, detection, ``--help``), compared with another version of chromabox.

    git worktree add ../baseline COMMIT
    python benchmarks/inference_processes.py --baseline ../baseline [-o benchmarks/results/inference_processes.json]

Both versions run with the interpreter of this script, in alternating order. The first pair is not counted. A ratio is
the median over the pairs of the baseline's value divided by this version's value. A ratio above 1 means that this
version is faster or needs less memory.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from chromabox.detect.weights.convert import export_detector
from chromabox.detect.weights.load import load_detector
from environment import describe_machine, write_results

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Process:
    """Duration in seconds and peak memory in bytes of a process."""

    seconds: float
    peak_bytes: int


#: A small process that is started first, because the peak memory of a child process includes that of its parent.
_MEASURE = """
import resource, subprocess, sys, time
start_time = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(time.perf_counter() - start_time, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


OUTPUTS = ("small-out.jpg", "large-out.jpg", "detected.jpg", "hundred-detected")


def run(source: Path, folder: Path, arguments: list[str]) -> Process:
    """Run ``chromabox`` from a source tree in a folder, without the output of the previous run.

    Raise CalledProcessError if it fails.
    """
    for output in (folder / name for name in OUTPUTS):
        shutil.rmtree(output, ignore_errors=True)
        with contextlib.suppress(OSError):
            output.unlink()
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    command = [sys.executable, "-c", _MEASURE, sys.executable, "-m", "chromabox", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak_bytes = result.stdout.split()
    return Process(float(seconds), int(peak_bytes))


def write_image(path: Path, width: int, height: int, seed: int = 0) -> None:
    """Write a JPEG file that resembles a photograph: smooth structures with edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 64 + 2, width // 64 + 2), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = smooth + rng.normal(0, 4, smooth.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB").save(path, quality=90)


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write the inputs and return the arguments of each command."""
    write_image(folder / "small.jpg", 640, 480)
    write_image(folder / "large.jpg", 4000, 3000)
    (folder / "hundred").mkdir()
    for index in range(100):
        write_image(folder / "hundred" / f"{index:03d}.jpg", 640, 480, index)
    export_detector(load_detector("yolov3-tiny"), folder / "detector.onnx")
    detect = ["--weights", "detector.onnx", "--confidence", "0.3"]
    return {
        "colour, JPEG of 0.3 megapixels": ["colour", "small.jpg", "-o", "small-out.jpg"],
        "colour, JPEG of 12 megapixels": ["colour", "large.jpg", "-o", "large-out.jpg"],
        "colour, folder of 100 images": ["colour", "hundred", "-o", "hundred-out", "OVERWRITE"],
        "detect, one image": ["detect", "small.jpg", "-o", "detected.jpg", *detect],
        "detect, folder of 100 images": ["detect", "hundred", "-o", "hundred-detected", *detect],
        "--help": ["--help"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="checkout of another version")
    parser.add_argument("--overwrite", default="--overwrite", help="name of that option in the other version")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for label, arguments in prepare(Path(name)).items():
            pairs = []
            for index in range(options.pairs + 1):
                order = [(options.baseline.resolve(), options.overwrite), (ROOT, "--overwrite")]
                sides = order if index % 2 else order[::-1]
                measured = {
                    source: run(source, Path(name), [overwrite if part == "OVERWRITE" else part for part in arguments])
                    for source, overwrite in sides
                }
                pairs.append((measured[order[0][0]], measured[ROOT]))
            counted = pairs[1:]
            results[label] = {
                "ratio": statistics.median(baseline.seconds / ours.seconds for baseline, ours in counted),
                "seconds": statistics.median(ours.seconds for _, ours in counted),
                "baseline_seconds": statistics.median(baseline.seconds for baseline, _ in counted),
                "memory_ratio": statistics.median(baseline.peak_bytes / ours.peak_bytes for baseline, ours in counted),
                "peak_mb": statistics.median(ours.peak_bytes for _, ours in counted) / 1e6,
                "baseline_peak_mb": statistics.median(baseline.peak_bytes for baseline, _ in counted) / 1e6,
            }
            row = results[label]
            print(
                f"{label}: {row['ratio']:.2f}x ({row['seconds']:.2f} s, baseline {row['baseline_seconds']:.2f} s); "
                f"memory {row['memory_ratio']:.2f}x "
                f"({row['peak_mb']:.0f} MB, baseline {row['baseline_peak_mb']:.0f} MB)",
                flush=True,
            )
    if options.output:
        write_results(options.output, {"pairs": options.pairs, "results": results, "machine": describe_machine()})
        print(options.output)


if __name__ == "__main__":
    main()
