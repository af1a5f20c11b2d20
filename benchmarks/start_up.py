"""How long ``chromabox --help`` takes, against a Python that does nothing; medians of whole processes.

python benchmarks/start_up.py [-o benchmarks/results/start_up.json]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe, write_results


def seconds_of(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    commands = {
        "chromabox --help": [sys.executable, "-m", "chromabox", "--help"],
        "chromabox train --help": [sys.executable, "-m", "chromabox", "train", "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    medians = {}
    for name, command in commands.items():
        seconds_of(command)
        medians[name] = statistics.median(seconds_of(command) for _ in range(9))
        print(f"{medians[name]:.3f} s: {name}")
    if options.output:
        write_results(options.output, {"median_seconds": medians, "machine": describe()})
        print(options.output)


if __name__ == "__main__":
    main()
