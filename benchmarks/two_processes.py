"""Throughput of two processes under torchrun, compared with one process with the same total batch size.

Each process has one thread.

python benchmarks/two_processes.py [--pairs 5] [-o benchmarks/results/two_processes.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import describe_machine, write_results

TRAIN_OPTIONS = ["--threads", "1", "--compile", "off", "--channels-last", "on"]
TRAIN_OPTIONS += ["--precision", "float32", "--recipe", "course", "--epochs", "2"]


def images_per_second(folder: Path, num_processes: int, batch_size: int, model: str) -> float:
    """Return the throughput of the second epoch, which the run logs. The first epoch is a warm-up."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if num_processes == 2 else []
    command = [
        sys.executable,
        *launcher,
        "-m",
        "chromabox",
        "train",
        model,
        "--batch-size",
        str(batch_size),
        *TRAIN_OPTIONS,
    ]
    subprocess.run([*command, "-o", str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return 5000 / last["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", default="unet")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        for index in range(options.pairs):
            two = images_per_second(Path(name) / f"two{index}", 2, 50, options.model)
            one = images_per_second(Path(name) / f"one{index}", 1, 100, options.model)
            pairs.append({"ratio": two / one, "two_processes": two, "one_process": one})
            print(f"{two / one:.2f}×: {two:.0f} images/s compared with {one:.0f}", flush=True)
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    print(f"median {ratio:.2f}× the throughput of one process (2 would be ideal)")
    if options.output:
        result = {"median_ratio": ratio, "net": options.model, "pairs": pairs, "machine": describe_machine()}
        write_results(options.output, result)
        print(options.output)


if __name__ == "__main__":
    main()
