"""Under test, and only there, beartype checks every jaxtyping signature of the package."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image

install_import_hook("chromabox", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Nets as small as the tests' only lose by more threads, and much where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _keep_denormals() -> None:
    """What torch.compile links may switch off denormal numbers for the whole process; later tests draw such ones."""
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty small pictures, three of them to test on."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(30):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return str(folder)
