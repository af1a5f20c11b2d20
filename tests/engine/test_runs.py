"""What a run is made with and takes: Python's own sources say it a second time."""

import platform
import subprocess
import sys
from importlib.metadata import version

import numpy as np

from chromabox.engine.runs import package_versions


def test_versions_are_those_of_the_installed_packages() -> None:
    found = package_versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["safetensors"] == version("safetensors")
    assert list(found) == ["python", "chromabox", "torch", "numpy", "scikit-image", "safetensors"]


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    program = """
from chromabox.engine.runs import peak_memory
before = peak_memory()
block = b"x" * 100_000_000
after = peak_memory()
del block
print(before, after, peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, after, later = map(int, done.stdout.split())
    # Pages that Python had already are used again.
    assert 80_000_000 < after - before < 120_000_000
    assert later >= after - 1_000_000  # Linux counts in steps.
