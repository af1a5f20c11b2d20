"""Shared helpers of the benchmarks: description of the machine, paired timing, and result files."""

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


def describe_machine() -> dict[str, object]:
    """Return CPU model, cores, memory (GB), load, system, Python version and package versions."""
    return {
        "cpu": _read_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        # Load in the last minute before the benchmark. On an idle machine, it is far below the number of cores.
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _package_version(package) for package in PACKAGES},
    }


@dataclass(frozen=True)
class PairedTiming:
    """Timings of two alternating functions. Seconds are medians. A ratio above 1 means that `a` is faster."""

    a_seconds: float
    b_seconds: float
    ratio: float
    """Median of the ratios b / a per pair: a temporary slowdown of the machine affects both."""
    ratios: list[float]


def time_paired(a: Callable[[], object], b: Callable[[], object], pairs: int = 5, warm_up: int = 1) -> PairedTiming:
    """Time `a` and `b` in `pairs` pairs after `warm_up` untimed pairs. The order within the pairs alternates."""
    for _ in range(warm_up):
        a()
        b()
    times = []
    for index in range(pairs):
        if index % 2:
            b_time, a_time = time_call(b), time_call(a)
        else:
            a_time, b_time = time_call(a), time_call(b)
        times.append((a_time, b_time))
    ratios = [b_time / a_time for a_time, b_time in times]
    a_times, b_times = zip(*times, strict=True)
    return PairedTiming(statistics.median(a_times), statistics.median(b_times), statistics.median(ratios), ratios)


def time_call(call: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], times: int = 5, warm_up: int = 1) -> float:
    """Return the median wall-clock seconds of ``times`` calls."""
    for _ in range(warm_up):
        call()
    return statistics.median(time_call(call) for _ in range(times))


def write_results(path: Path, results: dict[str, object]) -> None:
    """Write results as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temp_path:
        temp_path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_field(path: str, name: str) -> str | None:
    """Return the value of the first `name: value` line of a file, or None if there is none (Linux)."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _memory_gb() -> float | None:
    """Return the physical memory in GB, or None if the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _package_version(package: str) -> str | None:
    """Return the installed version without importing the package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
