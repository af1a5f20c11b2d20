"""Batches of small real images, inverted by a function that reads and writes files: interruption, errors, corruption.

Expected pixels are computed with NumPy from the files, which Pillow reads.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.colour.inference.batch import ColouriseResult, colourise_batch
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import read_image, write_image
from chromabox.io.manifest import MANIFEST_NAME
from chromabox.io.paths import expand_inputs, map_outputs

CAT = np.ascontiguousarray(data.chelsea()[40:60, 60:90])
RNG = np.random.default_rng(8)


def make_images(folder: Path, *names: str) -> Path:
    """Write small, different images with the given names; return the folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(CAT ^ RNG.integers(0, 8, CAT.shape, dtype=np.uint8)).save(path)
    return folder


def invert(source: Path, target: Path) -> Mapping[str, Any]:
    pixels = 255 - read_image(source).pixels
    write_image(target, pixels)
    return {"mean": float(pixels.mean())}


class RecordingInvert:
    """``invert``, with a list of the sources for which it was called."""

    def __init__(self) -> None:
        self.processed: list[str] = []

    def __call__(self, source: Path, target: Path) -> Mapping[str, Any]:
        self.processed.append(source.name)
        return invert(source, target)


def run(
    pairs: list[tuple[Path, Path]], manifest: Path | None, **settings: Any
) -> tuple[list[str], list[ColouriseResult]]:
    """Return the names of the processed sources, and the results in the order of the sources."""
    process_file = RecordingInvert()
    results = list(colourise_batch(pairs, process_file, settings=settings, workers=2, manifest_path=manifest))
    return sorted(process_file.processed), sorted(results, key=lambda result: result.source)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_image_is_processed_once_and_an_invalid_one_does_not_stop_the_rest(tmp_path: Path, workers: int) -> None:
    source = make_images(tmp_path / "in", *(f"{number}.png" for number in range(12)), "inner/b.png")
    (source / "m.png").write_bytes(b"not an image")
    pairs = map_outputs([source], tmp_path / "out")
    results = list(colourise_batch(pairs, invert, settings={}, workers=workers))
    assert sorted((result.source, result.target) for result in results) == sorted(pairs)
    failed = [result for result in results if result.error is not None]
    assert [result.source.name for result in failed] == ["m.png"]
    assert "m.png is not an image" in failed[0].error
    good = [result for result in results if result.error is None]
    assert len(good) == 13
    for result in good:
        with Image.open(result.source) as before, Image.open(result.target) as after:
            np.testing.assert_array_equal(np.asarray(after), 255 - np.asarray(before))
            assert result.metadata == {"mean": np.asarray(after).mean()}
    written = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {result.target for result in results} - {failed[0].target}


def test_finished_images_are_skipped_and_changed_ones_processed_again(tmp_path: Path) -> None:
    source, out = make_images(tmp_path / "in", "a.png", "b.png", "c.png", "inner/d.png"), tmp_path / "out"
    pairs, manifest = map_outputs([source], out), out / MANIFEST_NAME
    assert run(pairs, manifest, model="one")[0] == ["a.png", "b.png", "c.png", "d.png"]
    contents = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    processed, results = run(pairs, manifest, model="one")
    assert processed == []
    assert all(result.skipped and result.error is None for result in results)
    assert all(
        result.metadata == {"mean": pytest.approx(read_image(result.target).pixels.mean())} for result in results
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == contents

    make_images(source, "a.png")  # changed source
    (out / "b.png").write_bytes(contents[out / "b.png"][:-20])  # truncated target
    (out / "c.png").unlink()  # deleted target
    assert run(pairs, manifest, model="one")[0] == ["a.png", "b.png", "c.png"]
    assert run(pairs, manifest, model="one")[0] == []
    assert (out / "b.png").read_bytes() == contents[out / "b.png"]
    assert run(pairs, manifest, model="two")[0] == ["a.png", "b.png", "c.png", "d.png"]
    assert run(pairs, manifest, model="two")[0] == []
    # The folder can be moved. Without a manifest, all images are processed.
    moved = out.rename(tmp_path / "moved")
    assert run(map_outputs([source], moved), moved / MANIFEST_NAME, model="two")[0] == []
    assert len(run(map_outputs([source], moved), None, model="two")[0]) == 4


@pytest.mark.parametrize("length", [0, 1, 30, -1])
def test_truncated_last_line_of_the_manifest_repeats_one_image(tmp_path: Path, length: int) -> None:
    source, out = make_images(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    pairs, manifest = map_outputs([source], out), out / MANIFEST_NAME
    list(colourise_batch(pairs, invert, settings={}, workers=1, manifest_path=manifest))
    *complete, last = manifest.read_bytes().splitlines(keepends=True)
    assert len(complete) == 2
    # With -1 only the line break is missing: the line is valid, and the next one must not be joined to it.
    manifest.write_bytes(b"".join(complete) + last[:length])
    assert run(pairs, manifest)[0] == ([] if length == -1 else ["c.png"])
    make_images(source, "d.png")
    assert run(map_outputs([source], out), manifest)[0] == ["d.png"]
    assert run(map_outputs([source], out), manifest)[0] == []


def test_invalid_lines_of_the_manifest_are_skipped(tmp_path: Path) -> None:
    source, out = make_images(tmp_path / "in", "a.png"), tmp_path / "out"
    pairs, manifest = map_outputs([source], out), out / MANIFEST_NAME
    run(pairs, manifest)
    entry = json.loads(manifest.read_text())
    invalid = [b"\xff\xfe", b"[]", b"{}", b"null", json.dumps({**entry, "target": 3}).encode()]
    invalid += [json.dumps({**entry, "facts": []}).encode(), json.dumps({**entry, "written": None}).encode()]
    manifest.write_bytes(b"\n".join([*invalid, manifest.read_bytes()]))
    assert run(pairs, manifest)[0] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows file names that are not UTF-8")
def test_manifest_stores_any_file_name(tmp_path: Path) -> None:
    """File names are bytes: with a line break, non-Latin letters, and invalid UTF-8."""
    names = ("line\nend.png", "你好 ü.png", os.fsdecode(b"\xff.png"))
    source, out = make_images(tmp_path / "in", *names), tmp_path / "out"
    pairs, manifest = map_outputs([source], out), out / MANIFEST_NAME
    assert len(run(pairs, manifest)[0]) == 3
    assert run(pairs, manifest)[0] == []


def test_unusable_manifest_and_invalid_workers_are_rejected(tmp_path: Path) -> None:
    source, out = make_images(tmp_path / "in", "a.png"), tmp_path / "out"
    pairs = map_outputs([source], out)
    out.mkdir()
    with pytest.raises(ChromaboxError, match="cannot read the manifest"):
        colourise_batch(pairs, invert, settings={}, manifest_path=out)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ChromaboxError, match="cannot record"):
        list(colourise_batch(pairs, invert, settings={}, manifest_path=tmp_path / "file" / MANIFEST_NAME))
    with pytest.raises(UsageError, match="workers is 0"):
        colourise_batch(pairs, invert, settings={}, workers=0)


def test_interrupted_batch_finishes_running_images_and_can_be_resumed(tmp_path: Path, messages: list[str]) -> None:
    """Ctrl-C while the fourth result is handled: the second run processes the rest, and no image twice."""
    names = [f"{number:02}.png" for number in range(20)]
    source, out = make_images(tmp_path / "in", *names), tmp_path / "out"
    pairs, manifest = map_outputs([source], out), out / MANIFEST_NAME
    first = RecordingInvert()

    def interrupt_after_four() -> None:
        options = {"settings": {}, "workers": 2, "manifest_path": manifest}
        with contextlib.closing(colourise_batch(pairs, first, **options)) as results:
            for count, _ in enumerate(results, start=1):
                if count == 4:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt_after_four()
    assert 4 <= len(first.processed) <= 4 + 2 * 2
    assert messages == [
        f"finished images: {len(first.processed)} of 20; run the same command to process the remaining images"
    ]
    written = sorted(path.name for path in out.iterdir())
    assert written == sorted([MANIFEST_NAME, *first.processed])  # No partial files.
    second, results = run(pairs, manifest)
    assert sorted([*first.processed, *second]) == names
    assert sum(result.skipped for result in results) == len(first.processed)


def test_sigint_while_waiting_stops_the_batch(tmp_path: Path, messages: list[str]) -> None:
    """A real SIGINT, sent while the third image is processed and the main thread waits."""
    source = make_images(tmp_path / "in", *(f"{number}.png" for number in range(9)))
    recorder = RecordingInvert()

    def process_file(source: Path, target: Path) -> Mapping[str, Any]:
        if source.name == "2.png":
            os.kill(os.getpid(), signal.SIGINT)
        return recorder(source, target)

    pairs = map_outputs([source], tmp_path / "out")
    # SIGINT can be ignored when the tests run in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(colourise_batch(pairs, process_file, settings={}, workers=1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert messages == [
        f"finished images: {len(recorder.processed)} of 9; run the same command to process all images again"
    ]
    assert 3 <= len(recorder.processed) < 9
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == sorted(recorder.processed)


def test_number_of_running_images_is_limited(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", *(f"{number}.png" for number in range(30)))
    lock, num_running, max_running = threading.Lock(), 0, 0

    def process_file(source: Path, target: Path) -> Mapping[str, Any]:
        nonlocal num_running, max_running
        with lock:
            num_running += 1
            max_running = max(max_running, num_running)
        try:
            return invert(source, target)
        finally:
            with lock:
                num_running -= 1

    started = RecordingInvert()
    results = colourise_batch(map_outputs([source], tmp_path / "a"), started, settings={}, workers=3)
    next(results)
    results.close()
    assert len(started.processed) <= 6
    assert len(list(colourise_batch(map_outputs([source], tmp_path / "b"), process_file, settings={}, workers=3))) == 30
    assert max_running <= 3


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "colourisation to .* failed .*Permission denied"),
        (MemoryError(), "a.png: out of memory; use a smaller image"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "a.png: out of memory",
        ),
        (ChromaboxError("a.png is too blue"), "a.png is too blue"),
    ],
)
@pytest.mark.parametrize("with_manifest", [False, True])
def test_file_errors_and_lack_of_memory_are_results_of_the_image(
    tmp_path: Path, error: Exception, message: str, with_manifest: bool
) -> None:
    source, out = make_images(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"

    def process_file(source: Path, target: Path) -> Mapping[str, Any]:
        if source.name == "a.png":
            raise error
        return invert(source, target)

    pairs, manifest = map_outputs([source], out), out / MANIFEST_NAME if with_manifest else None
    failed, good = sorted(
        colourise_batch(pairs, process_file, settings={}, manifest_path=manifest), key=lambda result: result.source
    )
    assert good.error is None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(failed.error)
    if with_manifest:  # The failed image is processed again.
        assert run(pairs, manifest)[0] == ["a.png"]


def test_other_exceptions_propagate(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", "a.png", "b.png")

    def process_file(source: Path, target: Path) -> Mapping[str, Any]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(colourise_batch(map_outputs([source], tmp_path / "out"), process_file, settings={}))


def test_missing_source_is_named_in_the_error(tmp_path: Path) -> None:
    source, out = make_images(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    pairs = map_outputs([source], out)
    (source / "a.png").unlink()
    _, (missing, present) = run(pairs, out / MANIFEST_NAME)
    assert "a.png does not exist: expected an image or a video" in missing.error
    assert present.error is None


@pytest.mark.parametrize(
    ("match", "recursive", "expected"),
    [
        ((), True, ["a.png", "b.JPG", "inner/a.png", "inner/deep/c.bmp"]),
        ((), False, ["a.png", "b.JPG"]),
        (("*.jpg",), True, ["b.JPG"]),
        (("*.jpg", "c*"), True, ["b.JPG", "inner/deep/c.bmp"]),
        (("inner/*",), True, ["inner/a.png", "inner/deep/c.bmp"]),
        (("a.*",), False, ["a.png"]),
        (("[ab].*",), True, ["a.png", "b.JPG", "inner/a.png"]),
    ],
)
def test_patterns_select_images_of_a_folder(
    tmp_path: Path, match: tuple[str, ...], recursive: bool, expected: list[str]
) -> None:
    source = make_images(tmp_path / "in", "a.png", "b.JPG", "inner/a.png", "inner/deep/c.bmp")
    files = expand_inputs([source], match=match, recursive=recursive)
    assert [name.as_posix() for _, name in files] == expected
    assert all(path == source / name for path, name in files)


def test_patterns_do_not_apply_to_files(tmp_path: Path) -> None:
    source = make_images(tmp_path, "a.png", "in/b.jpg", "in/c.png")
    files = expand_inputs([source / "a.png", source / "in"], match=["*.jpg"])
    assert [name.as_posix() for _, name in files] == ["a.png", "b.jpg"]


def test_outputs_inside_the_input_folder_are_not_inputs(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", "a.png", "inner/b.png")
    pairs = map_outputs([source], source / "out")
    assert len(list(colourise_batch(pairs, invert, settings={}))) == 2
    assert map_outputs([source], source / "out") == pairs
    for path, _ in pairs:
        path.unlink()
    with pytest.raises(
        ChromaboxError, match="contains no images to process; not processed: result of an earlier run: 2"
    ):
        map_outputs([source], source / "out")


def test_output_format_is_the_input_format_or_png(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpeg", "c.png", "d.tif", "e.tiff", "f.webp", "g.BMP"]
    source = make_images(tmp_path / "in", *names, "h.gif", "i.ppm")
    targets = [target.name for _, target in map_outputs([source], tmp_path / "out")]
    assert targets == [*names, "h.png", "i.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "error"),
    [
        (["a.png"], "a.png", "is the same file as the input"),
        (["."], ".", "is the same file as the input"),
        (["a.png", "inner/b.jpg"], ".", "is the same file as the input"),
        (["a.png", "inner/a.png"], "out", "would be written to the same file"),
        (["duplicates"], "out", "would be written to the same file"),
        (["a.png", "inner/b.jpg"], "taken.png", r"is a file; expected a folder for the outputs \(inputs: 2\)"),
        (["nowhere.png"], "out", "does not exist"),
        (["empty"], "out", "contains no images"),
        (["a.png"], "out.gif", "unsupported output format for an image; expected .bmp"),
        (["a.png"], "name.avif", "unsupported output format for an image; expected .bmp"),
        (["a.png", "inner/b.jpg"], "out.jpg", "2 inputs cannot be written to one file"),
        (["."], "out.png", "inputs cannot be written to one file"),
        (["a.png"], "link.png", "is the same file as the input"),
        (["inner/b.jpg", "taken.png"], "linked", "is the same file as the input"),
    ],
)
def test_outputs_that_would_overwrite_an_input_or_each_other_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str, error: str
) -> None:
    monkeypatch.chdir(
        make_images(
            tmp_path, "a.png", "inner/b.jpg", "inner/a.png", "duplicates/x.gif", "duplicates/x.png", "taken.png"
        )
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b.jpg").hardlink_to("taken.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(ChromaboxError, match=error) as caught:
        map_outputs([Path(name) for name in inputs], Path(output))
    assert isinstance(caught.value, UsageError) is (error != "contains no images")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_pattern_without_a_match_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--match: no image in .* matches \*.tif or x/\*"):
        map_outputs([make_images(tmp_path, "a.png")], tmp_path / "out", match=["*.tif", "x/*"])


def test_single_image_is_written_to_the_given_file_or_folder(tmp_path: Path) -> None:
    source = make_images(tmp_path, "a.png") / "a.png"
    assert map_outputs([source], tmp_path / "new.jpg") == [(source, tmp_path / "new.jpg")]
    assert map_outputs([source], tmp_path / "new") == [(source, tmp_path / "new" / "a.png")]
