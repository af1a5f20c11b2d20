"""What a run is made with and takes: Python's own sources say it a second time."""

import platform
from importlib.metadata import version

import numpy as np

from chromabox.engine.machine import peak_memory, versions


def test_versions_are_those_of_the_installed_packages() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["safetensors"] == version("safetensors")
    assert list(found) == ["python", "chromabox", "torch", "numpy", "scikit-image", "safetensors"]


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory()
    block = np.ones(before // 4)  # float64: twice what the process ever had, all of it touched
    after = peak_memory()
    assert after > before + block.nbytes // 2
    del block
    assert peak_memory() >= after
