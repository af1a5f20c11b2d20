"""Parallel processing in threads."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from chromabox.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_ordered(
    items: Iterable[Item], func: Callable[[Item], Result], *, workers: int | None = None
) -> Generator[Result, None, None]:
    """Yield the results of ``func`` in the order of the items.

    ``workers`` is the number of threads (None: one per core). A thread processes whole items, so that some threads can
    read while other threads compute. At most ``2 * workers`` items are in progress or have results that have not been
    yielded yet.

    Raise UsageError if ``workers`` is below 1. An exception in ``func`` is raised when the result of its item is due.
    """
    count = num_cores() if workers is None else workers
    if count < 1:
        raise UsageError(f"workers is {workers}: expected at least 1")
    return _map_ordered(iter(items), func, count)


def _map_ordered(items: Iterator[Item], func: Callable[[Item], Result], workers: int) -> Generator[Result, None, None]:
    pool = ThreadPoolExecutor(workers)
    try:
        pending = deque(pool.submit(func, item) for item in islice(items, 2 * workers))
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(func, item) for item in islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def map_row_bands(
    func: Callable[[slice], None], shape: tuple[int, ...], band_pixels: int, *, threads: int | None = None
) -> None:
    """Call ``func`` for bands of rows of an image with the given shape [height, width, …], in several threads.

    ``threads`` is the maximum number of threads (None: one per core). A band has about ``band_pixels`` pixels. Threads
    are faster than a loop because NumPy releases the GIL. An exception in ``func`` is raised in the caller.
    """
    rows = max(1, band_pixels // shape[1])
    bands = [slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows)]
    threads = min(num_cores() if threads is None else threads, len(bands))
    if threads <= 1:
        for band in bands:
            func(band)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(func, bands):
            pass
