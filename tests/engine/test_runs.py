"""Package versions and memory use; expected values from Python and the packages."""

import platform
import subprocess
import sys
from importlib.metadata import version

import numpy as np

from chromabox.engine.runs import package_versions


def test_versions_equal_the_installed_packages() -> None:
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == np.__version__
    assert versions["safetensors"] == version("safetensors")
    assert list(versions) == ["python", "chromabox", "torch", "numpy", "scikit-image", "safetensors"]


def test_peak_memory_is_in_bytes_and_does_not_decrease() -> None:
    program = """
from chromabox.engine.runs import peak_memory_bytes
before = peak_memory_bytes()
block = b"x" * 100_000_000
after = peak_memory_bytes()
del block
print(before, after, peak_memory_bytes())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, after, later = map(int, result.stdout.split())
    # Python reuses memory pages that it already has.
    assert 80_000_000 < after - before < 120_000_000
    assert later >= after - 1_000_000  # Linux updates the counter in steps.
