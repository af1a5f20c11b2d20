"""Ordered processing in threads: order and concurrency; expected results are those of a plain loop."""

from threading import Event

import pytest
import torch

from chromabox.errors import UsageError
from chromabox.runtime.parallel import map_ordered, num_threads


def test_only_a_few_items_are_started_ahead() -> None:
    started: list[int] = []
    results = map_ordered(range(100), lambda number: started.append(number) or number, workers=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()
    assert max(started) <= 5 + 2 * 2


def test_items_are_processed_concurrently() -> None:
    other_started = Event()

    def work(number: int) -> bool:
        # The first item waits for the second, which can only start if there are two workers.
        return other_started.wait(20) if number == 0 else bool(other_started.set()) or True

    assert list(map_ordered(range(2), work, workers=2)) == [True, True]


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_rejected_before_the_first_item(workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers is {workers}: expected at least 1"):
        map_ordered(range(2), str, workers=workers)


def test_error_is_raised_at_its_item_and_threads_are_restored() -> None:
    def work(number: int) -> float:
        assert torch.get_num_threads() == 1
        return 6 / number

    with num_threads(2):
        results = map_ordered((3, 2, 0, 1), work, workers=2)
        assert [next(results), next(results)] == [2.0, 3.0]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert torch.get_num_threads() == 2
