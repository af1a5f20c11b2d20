"""Throughput of two processes under torchrun against one, the same pictures a step in all, one thread each.

python benchmarks/two_processes.py [--pairs 5] [-o benchmarks/results/two_processes.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe, write_results

FIXED = ["--threads", "1", "--compiled", "no", "--channels-last", "yes"]
FIXED += ["--precision", "float32", "--recipe", "course", "--epochs", "2"]


def pictures_per_second(folder: Path, processes: int, batch: int, net: str) -> float:
    """Of the second epoch, as the run itself logs it (the first one warms up)."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    command = [sys.executable, *launcher, "-m", "chromabox", "train", net, "--batch-size", str(batch), *FIXED]
    subprocess.run([*command, "-o", str(folder)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return 5000 / last["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--net", default="unet")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        for index in range(options.pairs):
            two = pictures_per_second(Path(name) / f"two{index}", 2, 50, options.net)
            one = pictures_per_second(Path(name) / f"one{index}", 1, 100, options.net)
            pairs.append({"ratio": two / one, "two_processes": two, "one_process": one})
            print(f"{two / one:.2f}×: {two:.0f} pictures/s against {one:.0f}", flush=True)
    ratio = statistics.median(pair["ratio"] for pair in pairs)
    print(f"median {ratio:.2f}× the throughput of one process (2 would be ideal)")
    if options.output:
        result = {"median_ratio": ratio, "net": options.net, "pairs": pairs, "machine": describe()}
        write_results(options.output, result)
        print(options.output)


if __name__ == "__main__":
    main()
