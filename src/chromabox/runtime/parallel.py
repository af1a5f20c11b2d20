"""TODO."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_at(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads, also in threads begun meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
