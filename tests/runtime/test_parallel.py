"""Ordered processing in threads: order and concurrency; expected results are those of a plain loop."""

import threading
from threading import Event

import numpy as np
import pytest

from chromabox.errors import UsageError
from chromabox.runtime.parallel import map_ordered, map_row_bands


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


def test_error_is_raised_at_its_item() -> None:
    results = map_ordered((3, 2, 0, 1), lambda number: 6 / number, workers=2)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("threads", [None, 1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 10, 3), (3, 1000), (0, 4)])
@pytest.mark.parametrize("band_pixels", [1, 20, 10_000])
def test_bands_cover_each_row_once(shape: tuple[int, ...], band_pixels: int, threads: int | None) -> None:
    counts = np.zeros(shape, int)
    sizes: list[int] = []

    def work(rows: slice) -> None:
        counts[rows] += 1
        sizes.append(len(counts[rows]))

    map_row_bands(work, shape, band_pixels, threads=threads)
    assert (counts == 1).all()
    assert sum(sizes) == shape[0]
    assert all(size == 1 or size * shape[1] <= band_pixels for size in sizes)


@pytest.mark.parametrize("threads", [1, 2])
def test_error_in_a_band_is_raised(threads: int) -> None:
    def work(rows: slice) -> None:
        if rows.start == 4:
            raise ValueError("band 4")

    with pytest.raises(ValueError, match="band 4"):
        map_row_bands(work, (8, 10), 20, threads=threads)


def test_bands_are_processed_in_order_by_one_thread_and_concurrently_by_two() -> None:
    calls: list[tuple[int, threading.Thread]] = []
    map_row_bands(lambda rows: calls.append((rows.start, threading.current_thread())), (6, 10), 20, threads=1)
    assert calls == [(start, threading.current_thread()) for start in (0, 2, 4)]
    barrier = threading.Barrier(2, timeout=20)  # It breaks if the bands do not run at the same time.
    map_row_bands(lambda rows: barrier.wait() and None, (4, 10), 20, threads=2)
