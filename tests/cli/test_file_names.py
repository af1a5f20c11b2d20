r"""File names of any bytes, on terminals of any encoding.

Expected names: the bytes that were written, and Python's escapes (``\xNN``, ``\uNNNN``) of unprintable characters.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.detect.detections import Detections
from chromabox.detect.inference.outputs import ImageDetections, write_coco_results, write_csv
from chromabox.errors import escape_unprintable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")

# Bytes of the name, and how it is shown on a terminal that can show all letters.
NAMES = {
    b"caf\xe9.png": r"caf\xe9.png",
    b"\x80\xfe.png": r"\x80\xfe.png",
    "你好.png".encode(): "你好.png",
    b"two\nlines.png": r"two\nlines.png",
    b"\x1b[31mred.png": r"\x1b[31mred.png",
    b"\xc2\x9b31m.png": r"\x9b31m.png",
    "\u202egnp.a.png".encode(): r"\u202egnp.a.png",
    b"[bold]-o.png": "[bold]-o.png",
    b"\\.png": "\\.png",
    b"x" * 251 + b".png": "x" * 251 + ".png",
}


def make_folder(tmp_path: Path, names: list[bytes]) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in names:
        Image.fromarray(np.full((8, 8), len(name), np.uint8)).save(folder / os.fsdecode(name))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_on_one_line_without_control_characters(name: bytes) -> None:
    assert escape_unprintable(os.fsdecode(name)) == NAMES[name]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_are_shown_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    names = list(NAMES)[2:5]
    folder = make_folder(tmp_path, names)
    (folder / os.fsdecode(b"bad\xff\n.png")).write_bytes(b"")
    command = [sys.executable, "-m", "chromabox", "colour", str(folder), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 1
    shown = done.stdout.decode(encoding).splitlines()
    expected = [f"{tmp_path}/out/{NAMES[name]}".encode(encoding, "backslashreplace").decode(encoding) for name in names]
    assert sorted(line for line in shown if line.startswith("/")) == sorted(expected)
    assert done.stderr.decode(encoding) == (
        rf"chromabox: failed: {folder}/bad\xff\n.png is empty: expected an image or a video" + "\n"
    )
    assert {os.fsencode(path.name) for path in (tmp_path / "out").glob("*.png")} == set(names)


def test_names_in_a_locale_without_utf8(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, list(NAMES))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "chromabox", "colour", str(folder), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert {os.fsencode(path.name) for path in (tmp_path / "out").glob("*.png")} == set(NAMES)


def test_matplotlib_prints_nothing_about_its_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "from chromabox.cli import run_cli\ntry: run_cli(['palette', '--help'])\nfinally: import matplotlib"
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "file" / "folder")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_detections_of_files_with_any_name_are_written(tmp_path: Path) -> None:
    boxes, scores, classes = np.array([[1, 2, 3, 4]], np.float32), np.array([0.5], np.float32), np.array([0])
    results = [
        ImageDetections(os.fsdecode(name), (8, 8), Detections(boxes, scores, classes, np.array(["dog"])))
        for name in NAMES
    ]
    write_coco_results(tmp_path / "boxes.json", results, ["dog"])
    rows = json.loads((tmp_path / "boxes.json").read_text("utf-8"))
    assert [os.fsencode(row["file_name"]) for row in rows] == list(NAMES)
    write_csv(tmp_path / "boxes.csv", results)
    with (tmp_path / "boxes.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert [os.fsencode(row["file"]) for row in csv.DictReader(file)] == list(NAMES)
