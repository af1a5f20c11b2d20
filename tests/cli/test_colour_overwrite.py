"""Files that exist already are replaced only if an earlier run wrote them, or with ``--overwrite``.

The expected contents are the bytes that the test wrote before the command.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.__main__ import main
from chromabox.io.manifest import MANIFEST_NAME, Manifest

Result = tuple[int, str, str]
MINE = b"a file of the user"


@pytest.fixture
def chromabox(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Result]:
    """Return a function that runs the command line in a folder with in/x.jpg, in/x.png, in/x.tif and in/deep/y.png."""
    monkeypatch.chdir(tmp_path)
    Path("in", "deep").mkdir(parents=True)
    for seed, name in enumerate(("x.jpg", "x.png", "x.tif", "deep/y.png")):
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(Path("in", name))

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["chromabox", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return call


def files(folder: str = ".") -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("existing", "line"),
    [
        ("out/x.png", "colour in -o out"),
        ("out/deep/y.png", "colour in -o out --workers 2"),
        ("new.jpg", "colour in/x.png -o new.jpg"),
        ("out/x.jpg.explained.png", "colour in -o out --explain"),
        ("sheet.jpg", "colour in -o out --contact-sheet sheet.jpg"),
        ("out/x.tif", "detect in -o out --weights detector.onnx"),
        ("out/labels/y.txt", "detect in/deep -o out --format yolo --weights detector.onnx"),
        ("out/detections.json", "detect in -o out --format json --weights detector.onnx"),
        ("boxes.csv", "detect in -o boxes.csv --weights detector.onnx"),
        ("out/scores.csv", "score in in -o out"),
        ("a.json", "palette fit in -k 2 -o a.json"),
        ("a.png", "palette show horse24 -o a.png"),
        ("a.onnx", "export yolov3-tiny --onnx a.onnx"),
        ("a.safetensors", "weights yolov3-tiny -o a.safetensors"),
        ("a.json", "check nets.py --json a.json"),
    ],
)
@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_existing_files_are_not_replaced(chromabox: Callable[..., Result], existing: str, line: str, mode: int) -> None:
    path = Path(existing)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MINE)
    path.chmod(mode)
    before = files()
    code, out, err = chromabox(*line.split())
    assert (code, out) == (2, "")
    found = err.removeprefix(f"chromabox: {existing}: exists").removeprefix(" and was not written by this command")
    assert found.startswith("; use --overwrite to replace it")
    assert err.count("\n") == 1
    assert files() == before


def test_own_files_are_replaced_and_other_files_only_with_overwrite(chromabox: Callable[..., Result]) -> None:
    command = ("colour", "in", "-o", "out", "--contact-sheet", "sheet.jpg")
    assert chromabox(*command)[0] == 0
    first = files()
    images = {f"{folder}/{name}" for folder in ("in", "out") for name in ("x.jpg", "x.png", "x.tif", "deep/y.png")}
    assert set(first) == {"sheet.jpg", f"out/{MANIFEST_NAME}", *images}
    # Other settings: the results and the sheet of the earlier run are replaced.
    code, _, err = chromabox(*command, "--style", "vivid")
    assert (code, err) == (0, "")
    assert files()["out/x.png"] != first["out/x.png"]
    # The manifest does not name a new file in the output folder.
    Image.new("L", (8, 8), 90).save("in/new.png")
    Path("out/new.png").write_bytes(MINE)
    assert chromabox(*command)[0] == 2
    assert Path("out/new.png").read_bytes() == MINE
    assert chromabox(*command, "--overwrite")[0] == 0
    assert Path("out/new.png").read_bytes() != MINE
    # Files that were written with --overwrite are recorded, too.
    code, out, err = chromabox(*command)
    assert (code, err) == (0, "")
    assert out.count("(up to date)") == 5


def test_write_protected_result_is_replaced_only_with_overwrite(chromabox: Callable[..., Result]) -> None:
    """A rename replaces a read-only file if its folder is writable."""
    assert chromabox("colour", "in", "-o", "out")[0] == 0
    Path("out/x.png").chmod(0o444)
    before = files()
    code, out, err = chromabox("colour", "in", "-o", "out")
    assert (code, out.count("(up to date)"), err) == (0, 4, "")
    code, _, err = chromabox("colour", "in", "-o", "out", "--style", "vivid")
    assert code == 1
    assert err == (
        "chromabox: failed: out/x.png: is write-protected; use --overwrite to replace it, or another output path\n"
    )
    assert files()["out/x.png"] == before["out/x.png"]
    assert chromabox("colour", "in", "-o", "out", "--style", "vivid", "--overwrite")[0] == 0
    assert files()["out/x.png"] != before["out/x.png"]


def test_result_of_a_killed_run_is_replaced(chromabox: Callable[..., Result]) -> None:
    """A run that is killed after it wrote a file leaves the line that names the file, but not its digests."""
    Path("out").mkdir()
    Manifest(Path("out", MANIFEST_NAME), {}).claim(Path("out/x.png"))
    Path("out/x.png").write_bytes(b"half of an image")
    code, out, err = chromabox("colour", "in", "-o", "out")
    assert (code, out.count("(up to date)"), err) == (0, 0, "")
    with Image.open("out/x.png") as image:
        image.load()


def test_missing_explanations_of_finished_images_are_written(chromabox: Callable[..., Result]) -> None:
    command = ("colour", "in", "-o", "out", "--match", "x.jpg", "x.png")
    assert chromabox(*command)[0] == 0
    images = files("out")
    assert chromabox(*command, "--explain")[1].count("(up to date)") == 0
    explained = files("out")
    assert {name for name in explained if name not in images} == {
        "out/x.jpg.explained.png",
        "out/x.png.explained.png",
    }
    assert len(set(explained.values())) == 5  # Two different figures.
    assert (images["out/x.jpg"], images["out/x.png"]) == (explained["out/x.jpg"], explained["out/x.png"])
    Path("out/x.jpg.explained.png").unlink()
    assert chromabox(*command, "--explain")[1].count("(up to date)") == 1
    assert chromabox(*command, "--explain")[1].count("(up to date)") == 2
    assert Path("out/x.jpg.explained.png").is_file()


@pytest.mark.parametrize(
    "line",
    [
        "colour in/x.png -o hints.png --hints hints.png",
        "colour in/x.png -o in/x.jpg --palette in/x.jpg",
        "colour in/x.png -o new.png --contact-sheet new.png",
        "colour in/x.png -o new.png --contact-sheet ./new.png",
        "colour in -o out --contact-sheet out/x.png",
        "colour in -o out --contact-sheet in/x.jpg",
        "colour in/x.png -o new.png --explain --contact-sheet new.png.explained.png",
        "detect in/x.png -o in/x.png --weights detector.onnx",
        "check nets.py --json nets.py",
        "data check set.json -o set.json",
        "palette fit in/x.png -o in/x.png",
        "palette show palette.gpl -o palette.gpl",
        "weights in/x.safetensors -o in/x.safetensors",
        "export in/x.onnx --onnx in/x.onnx",
    ],
)
def test_outputs_that_are_inputs_or_other_outputs_are_refused(
    chromabox: Callable[..., Result], tmp_path: Path, line: str
) -> None:
    for name in ("nets.py", "set.json", "palette.gpl", "in/x.safetensors", "in/x.onnx"):
        Path(name).write_bytes(MINE)
    Image.new("RGBA", (24, 24), "red").save("hints.png")
    before = files()
    code, out, err = chromabox(*line.split(), "--overwrite")
    assert (code, out) == (2, "")
    assert "is the same file as the input" in err or "two outputs would be written to this file" in err
    assert files() == before


def test_contact_sheet_format_is_checked_before_the_work(chromabox: Callable[..., Result]) -> None:
    code, out, err = chromabox("colour", "in", "-o", "out", "--contact-sheet", "sheet.tif")
    assert (code, out) == (2, "")
    assert "sheet.tif: unsupported contact sheet format; expected .jpg, .jpeg, .png" in err
    assert not Path("out").exists()
