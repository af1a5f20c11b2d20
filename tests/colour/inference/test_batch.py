"""Folders of real small pictures, inverted by a work that reads and writes files; stops, crashes and damage."""

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


def tree(folder: Path, *names: str) -> Path:
    """Small pictures, each another one, under the given names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(CAT ^ RNG.integers(0, 8, CAT.shape, dtype=np.uint8)).save(path)
    return folder


def invert(source: Path, target: Path) -> Mapping[str, Any]:
    pixels = 255 - read_image(source).pixels
    write_image(target, pixels)
    return {"mean": float(pixels.mean())}


class Counting:
    """``invert`` that remembers for which sources it was called."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, source: Path, target: Path) -> Mapping[str, Any]:
        self.done.append(source.name)
        return invert(source, target)


def run(
    pairs: list[tuple[Path, Path]], record: Path | None, **settings: Any
) -> tuple[list[str], list[ColouriseResult]]:
    """Names of the sources that were worked on, and the outcomes in the sources' order."""
    work = Counting()
    outcomes = list(colourise_batch(pairs, work, settings=settings, workers=2, manifest_path=record))
    return sorted(work.done), sorted(outcomes, key=lambda outcome: outcome.source)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_picture_is_worked_on_once_and_a_bad_one_does_not_stop_the_rest(tmp_path: Path, workers: int) -> None:
    source = tree(tmp_path / "in", *(f"{number}.png" for number in range(12)), "inner/b.png")
    (source / "m.png").write_bytes(b"no picture")
    pairs = map_outputs([source], tmp_path / "out")
    outcomes = list(colourise_batch(pairs, invert, settings={}, workers=workers))
    assert sorted((outcome.source, outcome.target) for outcome in outcomes) == sorted(pairs)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert [outcome.source.name for outcome in failed] == ["m.png"]
    assert "m.png is not an image" in failed[0].error
    good = [outcome for outcome in outcomes if outcome.error is None]
    assert len(good) == 13
    for outcome in good:
        with Image.open(outcome.source) as before, Image.open(outcome.target) as after:
            np.testing.assert_array_equal(np.asarray(after), 255 - np.asarray(before))
            assert outcome.metadata == {"mean": np.asarray(after).mean()}
    written = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {outcome.target for outcome in outcomes} - {failed[0].target}


def test_what_is_done_is_skipped_and_what_changed_is_done_anew(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", "a.png", "b.png", "c.png", "inner/d.png"), tmp_path / "out"
    pairs, record = map_outputs([source], out), out / MANIFEST_NAME
    assert run(pairs, record, net="one")[0] == ["a.png", "b.png", "c.png", "d.png"]
    contents = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    done, outcomes = run(pairs, record, net="one")
    assert done == []
    assert all(outcome.skipped and outcome.error is None for outcome in outcomes)
    assert all(
        outcome.metadata == {"mean": pytest.approx(read_image(outcome.target).pixels.mean())} for outcome in outcomes
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == contents

    tree(source, "a.png")  # another source
    (out / "b.png").write_bytes(contents[out / "b.png"][:-20])  # a damaged target
    (out / "c.png").unlink()  # a removed target
    assert run(pairs, record, net="one")[0] == ["a.png", "b.png", "c.png"]
    assert run(pairs, record, net="one")[0] == []
    assert (out / "b.png").read_bytes() == contents[out / "b.png"]
    assert run(pairs, record, net="two")[0] == ["a.png", "b.png", "c.png", "d.png"]
    assert run(pairs, record, net="two")[0] == []
    # The folder may be moved; without a record all is done.
    moved = out.rename(tmp_path / "moved")
    assert run(map_outputs([source], moved), moved / MANIFEST_NAME, net="two")[0] == []
    assert len(run(map_outputs([source], moved), None, net="two")[0]) == 4


@pytest.mark.parametrize("kept", [0, 1, 30, -1])
def test_a_torn_last_line_costs_one_picture(tmp_path: Path, kept: int) -> None:
    source, out = tree(tmp_path / "in", "a.png", "b.png", "c.png"), tmp_path / "out"
    pairs, record = map_outputs([source], out), out / MANIFEST_NAME
    list(colourise_batch(pairs, invert, settings={}, workers=1, manifest_path=record))
    *whole, last = record.read_bytes().splitlines(keepends=True)
    assert len(whole) == 2
    # Cut off, all but the line's end included: that line is whole, and the next one must not be joined to it.
    record.write_bytes(b"".join(whole) + last[:kept])
    assert run(pairs, record)[0] == ([] if kept == -1 else ["c.png"])
    tree(source, "d.png")
    assert run(map_outputs([source], out), record)[0] == ["d.png"]
    assert run(map_outputs([source], out), record)[0] == []


def test_lines_that_say_something_else_are_passed_over(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", "a.png"), tmp_path / "out"
    pairs, record = map_outputs([source], out), out / MANIFEST_NAME
    run(pairs, record)
    entry = json.loads(record.read_text())
    wrong = [b"\xff\xfe", b"[]", b"{}", b"null", json.dumps({**entry, "target": 3}).encode()]
    wrong += [json.dumps({**entry, "facts": []}).encode(), json.dumps({**entry, "written": None}).encode()]
    record.write_bytes(b"\n".join([*wrong, record.read_bytes()]))
    assert run(pairs, record)[0] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a name be other than UTF-8")
def test_any_name_is_remembered(tmp_path: Path) -> None:
    """Names of files are bytes: a line's end, letters of other scripts, and what is not UTF-8."""
    source, out = tree(tmp_path / "in", "line\nend.png", "你好 ü.png", os.fsdecode(b"\xff.png")), tmp_path / "out"
    pairs, record = map_outputs([source], out), out / MANIFEST_NAME
    assert len(run(pairs, record)[0]) == 3
    assert run(pairs, record)[0] == []


def test_a_record_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", "a.png"), tmp_path / "out"
    pairs = map_outputs([source], out)
    out.mkdir()
    with pytest.raises(ChromaboxError, match="cannot read the manifest"):
        colourise_batch(pairs, invert, settings={}, manifest_path=out)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ChromaboxError, match="cannot record"):
        list(colourise_batch(pairs, invert, settings={}, manifest_path=tmp_path / "file" / MANIFEST_NAME))
    with pytest.raises(UsageError, match="workers is 0"):
        colourise_batch(pairs, invert, settings={}, workers=0)


def test_a_stop_finishes_what_is_under_way_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Ctrl-C while the fourth outcome is dealt with: the rest is done by the second run, and none twice."""
    names = [f"{number:02}.png" for number in range(20)]
    source, out = tree(tmp_path / "in", *names), tmp_path / "out"
    pairs, record = map_outputs([source], out), out / MANIFEST_NAME
    first, said = Counting(), []

    def stopped() -> None:
        options = {"settings": {}, "workers": 2, "manifest_path": record, "log": said.append}
        with contextlib.closing(colourise_batch(pairs, first, **options)) as outcomes:
            for count, _ in enumerate(outcomes, start=1):
                if count == 4:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert 4 <= len(first.done) <= 4 + 2 * 2
    assert said == [f"{len(first.done)} of 20 pictures are done; the same command goes on with the rest"]
    written = sorted(path.name for path in out.iterdir())
    assert written == sorted([MANIFEST_NAME, *first.done])  # Nothing half-written.
    second, outcomes = run(pairs, record)
    assert sorted([*first.done, *second]) == names
    assert sum(outcome.skipped for outcome in outcomes) == len(first.done)


def test_an_interrupt_while_waiting_is_a_stop_too(tmp_path: Path) -> None:
    """A real SIGINT, sent by the third picture's work while the main thread waits."""
    source = tree(tmp_path / "in", *(f"{number}.png" for number in range(9)))
    counting, said = Counting(), []

    def work(source: Path, target: Path) -> Mapping[str, Any]:
        if source.name == "2.png":
            os.kill(os.getpid(), signal.SIGINT)
        return counting(source, target)

    pairs = map_outputs([source], tmp_path / "out")
    # Whoever starts the tests in the background may have left SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(colourise_batch(pairs, work, settings={}, workers=1, log=said.append))
    finally:
        signal.signal(signal.SIGINT, before)
    assert said == [f"{len(counting.done)} of 9 pictures are done; the same command begins with the first"]
    assert 3 <= len(counting.done) < 9
    assert sorted(path.name for path in (tmp_path / "out").glob("*")) == sorted(counting.done)


def test_few_pictures_are_under_way_however_many_there_are(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", *(f"{number}.png" for number in range(30)))
    lock, now, most = threading.Lock(), 0, 0

    def work(source: Path, target: Path) -> Mapping[str, Any]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            return invert(source, target)
        finally:
            with lock:
                now -= 1

    begun = Counting()
    outcomes = colourise_batch(map_outputs([source], tmp_path / "a"), begun, settings={}, workers=3)
    next(outcomes)
    outcomes.close()
    assert len(begun.done) <= 6
    assert len(list(colourise_batch(map_outputs([source], tmp_path / "b"), work, settings={}, workers=3))) == 30
    assert most <= 3


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied"), "cannot be coloured into .*Permission denied"),
        (MemoryError(), "more memory than there is"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "more memory"),
        (ChromaboxError("a.png is too blue"), "a.png is too blue"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_what_a_picture_can_be_guilty_of_is_its_error(
    tmp_path: Path, error: Exception, says: str, recorded: bool
) -> None:
    source, out = tree(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"

    def work(source: Path, target: Path) -> Mapping[str, Any]:
        if source.name == "a.png":
            raise error
        return invert(source, target)

    pairs, record = map_outputs([source], out), out / MANIFEST_NAME if recorded else None
    bad, good = sorted(
        colourise_batch(pairs, work, settings={}, manifest_path=record), key=lambda outcome: outcome.source
    )
    assert good.error is None
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(bad.error)
    if recorded:  # What failed is tried again.
        assert run(pairs, record)[0] == ["a.png"]


def test_a_mistake_in_the_work_is_not_hidden(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "a.png", "b.png")

    def work(source: Path, target: Path) -> Mapping[str, Any]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(colourise_batch(map_outputs([source], tmp_path / "out"), work, settings={}))


def test_a_source_that_vanished_is_named(tmp_path: Path) -> None:
    source, out = tree(tmp_path / "in", "a.png", "b.png"), tmp_path / "out"
    pairs = map_outputs([source], out)
    (source / "a.png").unlink()
    _, (gone, there) = run(pairs, out / MANIFEST_NAME)
    assert "a.png cannot be coloured" in gone.error
    assert there.error is None


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
def test_patterns_choose_among_the_pictures_of_a_folder(
    tmp_path: Path, match: tuple[str, ...], recursive: bool, expected: list[str]
) -> None:
    source = tree(tmp_path / "in", "a.png", "b.JPG", "inner/a.png", "inner/deep/c.bmp")
    found = expand_inputs([source], match=match, recursive=recursive)
    assert [place.as_posix() for _, place in found] == expected
    assert all(path == source / place for path, place in found)


def test_a_file_given_is_taken_whatever_the_pattern(tmp_path: Path) -> None:
    source = tree(tmp_path, "a.png", "in/b.jpg", "in/c.png")
    found = expand_inputs([source / "a.png", source / "in"], match=["*.jpg"])
    assert [place.as_posix() for _, place in found] == ["a.png", "b.jpg"]


def test_results_inside_the_folder_are_not_coloured_again(tmp_path: Path) -> None:
    source = tree(tmp_path / "in", "a.png", "inner/b.png")
    pairs = map_outputs([source], source / "out")
    assert len(list(colourise_batch(pairs, invert, settings={}))) == 2
    assert map_outputs([source], source / "out") == pairs
    for path, _ in pairs:
        path.unlink()
    with pytest.raises(UsageError, match="contains no images except those in"):
        map_outputs([source], source / "out")


def test_a_picture_is_its_own_kind_or_png(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpeg", "c.png", "d.tif", "e.tiff", "f.webp", "g.BMP"]
    source = tree(tmp_path / "in", *names, "h.gif", "i.ppm")
    targets = [target.name for _, target in map_outputs([source], tmp_path / "out")]
    assert targets == [*names, "h.png", "i.png"]


@pytest.mark.parametrize(
    ("inputs", "output", "error"),
    [
        (["a.png"], "a.png", "is the input"),
        (["."], ".", "is the input"),
        (["a.png", "inner/b.jpg"], ".", "is the input"),
        (["a.png", "inner/a.png"], "out", "have the same output"),
        (["a.png", "a.png"], "out", "have the same output"),
        (["twins"], "out", "have the same output"),
        (["a.png", "inner/b.jpg"], "taken.png", "is a file, but there are 2 images"),
        (["nowhere.png"], "out", "does not exist"),
        (["empty"], "out", "contains no images"),
        (["a.png"], "out.gif", "unsupported output format"),
        (["a.png"], "link.png", "is the input"),
        (["inner/b.jpg", "taken.png"], "linked", "is the input"),
    ],
)
def test_plans_that_would_lose_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], output: str, error: str
) -> None:
    monkeypatch.chdir(tree(tmp_path, "a.png", "inner/b.jpg", "inner/a.png", "twins/x.gif", "twins/x.png", "taken.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b.jpg").hardlink_to("taken.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(UsageError, match=error):
        map_outputs([Path(name) for name in inputs], Path(output))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_pattern_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--match: no image in .* matches \*.tif or x/\*"):
        map_outputs([tree(tmp_path, "a.png")], tmp_path / "out", match=["*.tif", "x/*"])


def test_one_picture_goes_to_the_file_named(tmp_path: Path) -> None:
    source = tree(tmp_path, "a.png") / "a.png"
    assert map_outputs([source], tmp_path / "new.jpg") == [(source, tmp_path / "new.jpg")]
    assert map_outputs([source], tmp_path / "new") == [(source, tmp_path / "new" / "a.png")]
