"""Ordered processing in worker threads."""

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
    """Set the number of PyTorch threads within the context, also for threads started in it."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(
    items: Iterable[Item], func: Callable[[Item], Result], *, workers: int | None = None
) -> Generator[Result, None, None]:
    """Yield the results of ``func`` in the order of the items.

    Each of ``workers`` threads (None: PyTorch's number of threads) processes one item completely, with PyTorch limited
    to a single thread. Some workers read while others compute, and workers do not synchronise within a layer, which
    makes several threads per image slow on a busy machine. At most twice as many items as workers are started or
    finished before their results are consumed.

    Raise UsageError if ``workers`` is below 1. An exception in ``func`` is raised at the position of its item.
    """
    count = torch.get_num_threads() if workers is None else workers
    if count < 1:
        raise UsageError(f"workers is {workers}: expected at least 1")
    return _map_ordered(iter(items), func, count)


def _map_ordered(items: Iterator[Item], func: Callable[[Item], Result], workers: int) -> Generator[Result, None, None]:
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    # The setting of the workers also applies to threads started later and must be restored.
    with num_threads(torch.get_num_threads()):
        try:
            pending = deque(pool.submit(func, item) for item in islice(items, 2 * workers))
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(func, item) for item in islice(items, 1))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)
