"""Process items in worker threads and return the results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

from chromabox.errors import UsageError


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads, also in threads begun meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(
    items: Iterable[Item], func: Callable[[Item], Result], *, workers: int | None = None
) -> Generator[Result, None, None]:
    """The results of ``work``, which runs a detector, in the order of the items.

    Each of ``workers`` threads (None: as many as torch would use) does one item from reading to the end, the net in a
    single thread: while one reads, others compute, and none waits for another within a layer, which is what makes
    several threads on one picture slow where the machine has other things to do. At most twice as many items as
    workers are under way, done, and not yet taken.
    """
    count = torch.get_num_threads() if workers is None else workers
    if count < 1:
        raise UsageError(f"workers is {workers}: give at least 1")
    return _map_ordered(iter(items), func, count)


def _map_ordered(items: Iterator[Item], func: Callable[[Item], Result], workers: int) -> Generator[Result, None, None]:
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with num_threads(torch.get_num_threads()):  # The workers' wish is also that of threads begun later.
        try:
            waiting = deque(pool.submit(func, item) for item in islice(items, 2 * workers))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(func, item) for item in islice(items, 1))
                yield done
        finally:
            pool.shutdown(cancel_futures=True)
