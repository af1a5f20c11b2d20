"""Batch detection from input relative_files to output relative_files, with a small detector of random weights."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.inference.batch import BatchSummary, plan_detection_outputs, run_detection
from chromabox.detect.inference.predict import InferenceOptions, detect_image
from chromabox.detect.weights.load import Detector
from chromabox.errors import UsageError
from chromabox.io.images import read_image, write_image
from chromabox.io.manifest import MANIFEST_NAME
from chromabox.io.video import iter_frames
from detector_fixtures import make_small_detector
from video_fixtures import make_video


@pytest.fixture(scope="module")
def detector() -> Detector:
    return make_small_detector()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate(("a.png", "b.jpg", "deep/c.png")):
        pixels = np.random.default_rng(index).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        write_image(tmp_path / "in" / name, pixels)
    return tmp_path / "in"


def run(detector: Detector, inputs: list[Path], output: Path, *formats: str) -> BatchSummary:
    plan = plan_detection_outputs(inputs, output, formats)  # type: ignore[arg-type]
    return run_detection(plan, detector, InferenceOptions.for_detector(detector, 0.3, 0.45, None, None))


def relative_files(folder: Path) -> list[str]:
    """Return the paths of all files except the manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_folder_is_written_in_every_format(folder: Path, tmp_path: Path, detector: Detector) -> None:
    (folder / "broken.png").write_bytes(b"broken")
    out = tmp_path / "out"
    summary = run(detector, [folder], out, "images", "json", "csv", "yolo")
    names = ["a.png", "b.jpg", "deep/c.png"]
    labels = ["labels/a.txt", "labels/b.txt", "labels/classes.txt", "labels/deep/c.txt"]
    assert relative_files(out) == sorted([*names, *labels, "detections.csv", "detections.json"])
    assert summary.num_images == 3
    assert len(summary.errors) == 1
    assert "broken.png" in summary.errors[0]
    rows = json.loads((out / "detections.json").read_text())
    assert len(rows) == summary.num_boxes > 3
    expected = detect_image(read_image(folder / "a.png").pixels, detector, confidence=0.3)
    boxes = [row["bbox"] for row in rows if row["file_name"] == "a.png"]
    np.testing.assert_allclose(np.array(boxes)[:, :2], expected.xyxy[:, :2], atol=0.01)
    assert len((out / "labels" / "a.txt").read_text().splitlines()) == len(expected)
    assert (out / "labels" / "classes.txt").read_text().splitlines() == list(detector.classes)
    assert (read_image(out / "a.png").pixels != read_image(folder / "a.png").pixels).any()


def test_results_of_inputs_with_equal_names_are_told_apart(
    tmp_path: Path, detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for name in ("x/a/1.png", "x/b/1.png", "y/2.png"):
        write_image(tmp_path / name, rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    out = tmp_path / "out"
    inputs = [tmp_path / "x" / "a", tmp_path / "x" / "b" / "1.png", tmp_path / "y"]
    with caplog.at_level("INFO"):
        run(detector, inputs, out, "images", "json", "csv", "yolo")
    assert f"equal names; the results contain their paths in {tmp_path}" in caplog.text
    names = ["x/a/1.png", "x/b/1.png", "y/2.png"]
    labels = [f"labels/{Path(name).with_suffix('.txt')}" for name in names]
    assert relative_files(out) == sorted([*names, *labels, "labels/classes.txt", "detections.csv", "detections.json"])
    rows = json.loads((out / "detections.json").read_text())
    ids = {(row["file_name"], row["image_id"]) for row in rows}
    assert ids == {("x/a/1.png", "x/a/1"), ("x/b/1.png", "x/b/1"), ("y/2.png", "y/2")}
    with (out / "detections.csv").open(newline="") as file:
        assert {row["file"] for row in csv.DictReader(file)} == set(names)
    expected = detect_image(read_image(tmp_path / "x" / "b" / "1.png").pixels, detector, confidence=0.3)
    assert len((out / "labels" / "x" / "b" / "1.txt").read_text().splitlines()) == len(expected)
    # Equal names of files in one folder, which differ by their suffixes, are not replaced by longer names.
    write_image(tmp_path / "y" / "2.bmp", rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    run(detector, [tmp_path / "y"], tmp_path / "boxes.json")
    found = {(row["file_name"], row["image_id"]) for row in json.loads((tmp_path / "boxes.json").read_text())}
    assert found == {("2.bmp", "2.bmp"), ("2.png", "2.png")}


def test_single_image_is_written_to_a_file(folder: Path, tmp_path: Path, detector: Detector) -> None:
    run(detector, [folder / "a.png"], tmp_path / "drawn.png")
    assert read_image(tmp_path / "drawn.png").pixels.shape == (60, 80, 3)


def test_json_file_next_to_its_input_images(folder: Path, detector: Detector) -> None:
    before = relative_files(folder)
    run(detector, [folder / "a.png", folder / "b.jpg"], folder / "found.json")
    assert relative_files(folder) == sorted([*before, "found.json"])
    assert {row["file_name"] for row in json.loads((folder / "found.json").read_text())} == {"a.png", "b.jpg"}


def test_outputs_inside_the_input_folder_are_not_inputs(folder: Path, detector: Detector) -> None:
    for _ in range(2):
        assert run(detector, [folder], folder / "out").num_images == 3


def test_video_is_annotated_and_listed(tmp_path: Path, detector: Detector) -> None:
    video = make_video(tmp_path / "video.mp4")
    summary = run(detector, [video], tmp_path / "out", "images", "json")
    assert summary.num_frames == 5
    assert relative_files(tmp_path / "out") == ["detections.json", "video.mp4"]
    assert len(list(iter_frames(tmp_path / "out" / "video.mp4"))) == 5
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(rows) == summary.num_boxes
    assert {row["frame"] for row in rows} <= set(range(5))


def test_video_is_written_to_a_file_or_as_labels_only(tmp_path: Path, detector: Detector) -> None:
    video = make_video(tmp_path / "video.mp4")
    run(detector, [video], tmp_path / "drawn.mkv")
    assert len(list(iter_frames(tmp_path / "drawn.mkv"))) == 5
    run(detector, [video], tmp_path / "labels-only", "yolo")
    names = [f"labels/video_{index:06d}.txt" for index in range(5)]
    assert relative_files(tmp_path / "labels-only") == ["labels/classes.txt", *names]


def test_corrupt_video_does_not_stop_other_inputs(folder: Path, tmp_path: Path, detector: Detector) -> None:
    (tmp_path / "video.mp4").write_bytes(b"not a video")
    summary = run(detector, [tmp_path / "video.mp4", folder], tmp_path / "out")
    assert (summary.num_images, len(summary.errors)) == (3, 1)


@pytest.mark.parametrize(
    ("inputs", "output", "formats", "message"),
    [
        ([], "out", (), "no input given: expected at least one"),
        (["nowhere.png"], "out", (), "nowhere.png does not exist"),
        (["nowhere.mp4"], "out", (), "nowhere.mp4 does not exist"),
        (["https://example.org/a.jpg"], "out", (), "^https://example.org/a.jpg is a URL, and URLs are not"),
        (["a.png"], "a.png", (), "is the same file as the input"),
        (["video.mp4"], "video.mp4", (), "is the same file as the input"),
        (["a.png"], "b.json", ("csv",), "a single file cannot contain csv"),
        (["a.png"], "b.png", ("images", "json"), "a single file cannot contain json"),
        (["a.png", "a.jpg"], "out", ("yolo",), "would be written to the same label file a.txt"),
        (["video.mp4", "video.mkv"], "out", ("yolo",), r"written to the same label file video_\*.txt"),
        (["video.mp4", "video_000012.png"], "out", ("yolo",), "to the same label file video_000012.txt"),
    ],
)
def test_invalid_inputs_and_outputs_are_rejected(
    inputs: list[str],
    output: str,
    formats: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.jpg", "video.mp4", "video.mkv", "video_000012.png"):
        Path(name).write_bytes(b"x")
    with pytest.raises(UsageError, match=message):
        plan_detection_outputs([Path(name) for name in inputs], Path(output), formats)  # type: ignore[arg-type]


def test_folder_of_detections_can_be_written_again_but_other_files_are_not_replaced(
    folder: Path, tmp_path: Path, detector: Detector
) -> None:
    out, video = tmp_path / "out", make_video(tmp_path / "video.mp4")
    run(detector, [folder, video], out, "images", "json", "csv", "yolo")
    first = relative_files(out)
    run(detector, [folder, video], out, "images", "json", "csv", "yolo")
    assert relative_files(out) == first
    mine = out / "labels" / "video_000009.txt"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"video_000009.txt: exists and was not written by this command"):
        plan_detection_outputs([folder, video], out, ["yolo"])
    assert plan_detection_outputs([folder, video], out, ["images"]).label_folder is None
    assert plan_detection_outputs([folder, video], out, ["yolo"], overwrite=True).label_folder == out / "labels"
    assert mine.read_text() == "mine"
