"""Mutated files are read, or rejected with one line, by the readers of Chromabox."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import chromabox

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="scripts/fuzz.py requires Linux")
@pytest.mark.parametrize(
    ("inputs", "kinds"),
    [
        (1000, ["image"]),
        (60, ["hints", "palette", "manifest"]),
        (200, ["cfg", "yaml", "labels", "darknet", "pickle"]),
    ],
)
def test_mutated_files_are_read_or_rejected_with_one_line(inputs: int, kinds: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--inputs", str(inputs), "--kind", *kinds]
    environment = {**os.environ, "PYTHONPATH": str(Path(chromabox.__file__).parents[1]), "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(" inputs, ")[0] for line in lines] == [f"{kind}: {inputs}" for kind in kinds]
    assert all(", 0 fault; " in line for line in lines)
