"""Fixtures for all tests; beartype checks every jaxtyping signature of the package during tests only."""

import gc
import logging
import os
from collections.abc import Generator, Iterator

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image

install_import_hook("chromabox", "beartype.beartype")
# Processes that tests start use one thread too, because the tests already use all cores.
os.environ["OMP_NUM_THREADS"] = "1"
# The many objects of imported modules make garbage collection slow. It is disabled during the imports, and it ignores
# these objects afterwards.
gc.disable()


def pytest_collection_finish() -> None:
    """Enable garbage collection for the objects of the tests."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow tests on real data first, so that no other worker is idle while they run."""
    items.sort(key=lambda item: "real" not in item.path.parts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape file names that are not UTF-8 in captured output: workers cannot send them to the main process."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Use one thread: more threads slow the small test models down, especially on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _keep_denormals() -> None:
    """Enable denormal numbers, which torch.compile may disable for the process; later tests need them."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with thirty small images, three of which form the test split."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(30):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return str(folder)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """Messages that the package logs during a test."""
    collected: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: collected.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("chromabox")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield collected
    logger.removeHandler(handler)
    logger.setLevel(level)
