"""Programs in a fresh Python process in which some packages cannot be imported, as if they were not installed."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import chromabox

#: Packages that inference does not need.
NOT_FOR_INFERENCE = ("torch", "scipy", "matplotlib", "sklearn", "skimage", "supervision", "onnx")

_FINDER = """
import sys

class MissingPackages:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, MissingPackages())
"""


def run_without(
    packages: Iterable[str], program: str, *arguments: object, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python program with arguments, without the packages; return its exit code and outputs."""
    code = _FINDER.format(missing=set(packages)) + program
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(chromabox.__file__).parents[1])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
