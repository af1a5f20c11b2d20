"""What every benchmark needs: the machine it ran on, two things timed side by side, and a result file."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from chromabox.io.atomic import atomic_write

PACKAGES = ("torch", "numpy", "scipy", "pillow", "scikit-image", "scikit-learn")


def describe() -> dict[str, object]:
    """CPU model, cores, memory (GB), load, system, Python and the packages' versions."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        # Of the last minute, before the benchmark itself: well under the cores on a quiet machine.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


@dataclass(frozen=True)
class Paired:
    """Two contenders timed in turns. Seconds are medians; a ratio above 1 means that `a` is the faster."""

    a_seconds: float
    b_seconds: float
    ratio: float
    """Median of the ratios b / a, taken pair by pair: what slows the machine for a while slows both."""
    ratios: list[float]


def paired(a: Callable[[], object], b: Callable[[], object], pairs: int = 5, warm_up: int = 1) -> Paired:
    """Time `a` and `b` in `pairs` pairs after `warm_up` untimed ones; who goes first changes from pair to pair."""
    for _ in range(warm_up):
        a()
        b()
    times = []
    for number in range(pairs):
        if number % 2:
            b_time, a_time = seconds(b), seconds(a)
        else:
            a_time, b_time = seconds(a), seconds(b)
        times.append((a_time, b_time))
    ratios = [b_time / a_time for a_time, b_time in times]
    a_times, b_times = zip(*times, strict=True)
    return Paired(statistics.median(a_times), statistics.median(b_times), statistics.median(ratios), ratios)


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], times: int = 5, warm_up: int = 1) -> float:
    """Median wall-clock seconds of a call."""
    for _ in range(warm_up):
        call()
    return statistics.median(seconds(call) for _ in range(times))


def write_results(path: Path, results: dict[str, object]) -> None:
    """Write results as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _field(path: str, name: str) -> str | None:
    """Value of the first `name: value` line of a file, where there is one (Linux)."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _memory_gb() -> float | None:
    """Physical memory, where the system tells it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    """Installed version, read without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
