"""Median time of the process ``chromabox --help``, compared with an empty Python program.

python benchmarks/startup_time.py [-o benchmarks/results/startup_time.json]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from environment import describe_machine, write_results


def time_command(command: list[str]) -> float:
    start_time = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start_time


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
        time_command(command)
        medians[name] = statistics.median(time_command(command) for _ in range(9))
        print(f"{medians[name]:.3f} s: {name}")
    if options.output:
        write_results(options.output, {"median_seconds": medians, "machine": describe_machine()})
        print(options.output)


if __name__ == "__main__":
    main()
