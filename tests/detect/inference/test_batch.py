"""The verb's work from files to files, with a small net of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.inference.batch import Summary, detect_inputs, plan_detection
from chromabox.detect.inference.predict import Wanted, detect_picture
from chromabox.detect.inference.runtime import ReadyDetector, make_ready
from chromabox.errors import UsageError
from chromabox.io.images import read_picture, write_picture
from chromabox.io.video import frames_of
from detector_fixtures import small_detector
from video_fixtures import make_film


@pytest.fixture(scope="module")
def detector() -> ReadyDetector:
    return make_ready(small_detector())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        write_picture(tmp_path / "in" / name, pixels)
    return tmp_path / "in"


def run(detector: ReadyDetector, inputs: list[Path], output: Path, *formats: str) -> Summary:
    plan = plan_detection(inputs, output, formats)  # type: ignore[arg-type]
    return detect_inputs(plan, detector, Wanted.of(detector, 0.3, 0.45, None, None))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_in_every_format(folder: Path, tmp_path: Path, detector: ReadyDetector) -> None:
    (folder / "broken.png").write_bytes(b"broken")
    out = tmp_path / "out"
    summary = run(detector, [folder], out, "pictures", "json", "csv", "yolo")
    names = ["a.png", "b.jpg", "deep/c.png"]
    labels = ["labels/a.txt", "labels/b.txt", "labels/classes.txt", "labels/deep/c.txt"]
    assert files(out) == sorted([*names, *labels, "detections.csv", "detections.json"])
    assert summary.pictures == 3
    assert len(summary.failed) == 1
    assert "broken.png" in summary.failed[0]
    rows = json.loads((out / "detections.json").read_text())
    assert len(rows) == summary.boxes > 3
    expected = detect_picture(read_picture(folder / "a.png").pixels, detector, confidence=0.3)
    boxes = [row["bbox"] for row in rows if row["file_name"] == "a.png"]
    np.testing.assert_allclose(np.array(boxes)[:, :2], expected.xyxy[:, :2], atol=0.01)
    assert len((out / "labels" / "a.txt").read_text().splitlines()) == len(expected)
    assert (read_picture(out / "a.png").pixels != read_picture(folder / "a.png").pixels).any()


def test_one_picture_into_one_file(folder: Path, tmp_path: Path, detector: ReadyDetector) -> None:
    run(detector, [folder / "a.png"], tmp_path / "drawn.png")
    assert read_picture(tmp_path / "drawn.png").pixels.shape == (60, 80, 3)


def test_boxes_alone_into_one_file_beside_the_pictures(folder: Path, detector: ReadyDetector) -> None:
    before = files(folder)
    run(detector, [folder / "a.png", folder / "b.jpg"], folder / "found.json")
    assert files(folder) == sorted([*before, "found.json"])
    assert {row["file_name"] for row in json.loads((folder / "found.json").read_text())} == {"a.png", "b.jpg"}


def test_results_inside_the_folder_are_not_found_again(folder: Path, detector: ReadyDetector) -> None:
    for _ in range(2):
        assert run(detector, [folder], folder / "out").pictures == 3


def test_a_film(tmp_path: Path, detector: ReadyDetector) -> None:
    film = make_film(tmp_path / "film.mp4")
    summary = run(detector, [film], tmp_path / "out", "pictures", "json")
    assert summary.frames == 5
    assert files(tmp_path / "out") == ["detections.json", "film.mp4"]
    assert len(list(frames_of(tmp_path / "out" / "film.mp4"))) == 5
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(rows) == summary.boxes
    assert {row["frame"] for row in rows} <= set(range(5))


def test_a_film_drawn_into_a_file_or_only_listed(tmp_path: Path, detector: ReadyDetector) -> None:
    film = make_film(tmp_path / "film.mp4")
    run(detector, [film], tmp_path / "drawn.mkv")
    assert len(list(frames_of(tmp_path / "drawn.mkv"))) == 5
    run(detector, [film], tmp_path / "labels-only", "yolo")
    names = [f"labels/film_{number:06d}.txt" for number in range(5)]
    assert files(tmp_path / "labels-only") == ["labels/classes.txt", *names]


def test_a_broken_film_does_not_stop_the_rest(folder: Path, tmp_path: Path, detector: ReadyDetector) -> None:
    (tmp_path / "film.mp4").write_bytes(b"no film")
    summary = run(detector, [tmp_path / "film.mp4", folder], tmp_path / "out")
    assert (summary.pictures, len(summary.failed)) == (3, 1)


@pytest.mark.parametrize(
    ("inputs", "output", "formats", "sentence"),
    [
        ([], "out", (), "inputs: name at least one"),
        (["nowhere.png"], "out", (), "nowhere.png does not exist"),
        (["nowhere.mp4"], "out", (), "nowhere.mp4 does not exist"),
        (["a.png"], "a.png", (), "is the input"),
        (["film.mp4"], "film.mp4", (), "is the input"),
        (["a.png"], "b.json", ("csv",), "is a single file, which cannot hold csv"),
        (["a.png"], "b.png", ("pictures", "json"), "is a single file, which cannot hold json"),
        (["a.png", "a.jpg"], "out", ("yolo",), "would share a.txt"),
    ],
)
def test_refused(
    inputs: list[str],
    output: str,
    formats: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg", "film.mp4"):
        Path(name).write_bytes(b"x")
    with pytest.raises(UsageError, match=sentence):
        plan_detection([Path(name) for name in inputs], Path(output), formats)  # type: ignore[arg-type]
