"""Under test, and only there, beartype checks every jaxtyping signature of the package."""

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("chromabox", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Nets as small as the tests' only lose by more threads, and much where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _numbers_near_zero() -> None:
    """What torch.compile links may switch off denormal numbers for the whole process; later tests draw such ones."""
    torch.set_flush_denormal(False)
