"""Batch detection from input relative_files to output relative_files, with a small detector of random weights."""

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset
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
    labels = ["labels/a.txt", "labels/b.txt", "labels/classes.txt", "labels/deep/c.txt", "data.yaml", "train.txt"]
    images = [f"images/{name}" for name in names]
    assert relative_files(out) == sorted([*names, *images, *labels, "detections.csv", "detections.json"])
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
    images = [f"images/{name}" for name in names]
    tables = ["labels/classes.txt", "data.yaml", "train.txt", "detections.csv", "detections.json"]
    assert relative_files(out) == sorted([*names, *images, *labels, *tables])
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


def test_video_is_written_to_a_file_or_as_a_dataset(tmp_path: Path, detector: Detector) -> None:
    video = make_video(tmp_path / "video.mp4")
    run(detector, [video], tmp_path / "drawn.mkv")
    assert len(list(iter_frames(tmp_path / "drawn.mkv"))) == 5
    run(detector, [video], tmp_path / "set", "yolo")
    assert [path for path in relative_files(tmp_path / "set") if path.startswith(("labels", "images"))] == [
        *(f"images/video_{index:06d}.jpg" for index in range(5)),
        "labels/classes.txt",
        *(f"labels/video_{index:06d}.txt" for index in range(5)),
    ]
    data = load_detection_dataset(tmp_path / "set")
    assert (len(data.samples), data.issues) == (5, ())
    frame = read_image(data.samples[0].path).pixels
    expected = next(iter_frames(video))
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 3  # JPEG


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "mpeg4"), (".webm", "libvpx-vp9")])
def test_other_video_formats_are_read_and_written_as_matroska(
    suffix: str, codec: str, tmp_path: Path, detector: Detector
) -> None:
    video = make_video(tmp_path / f"video{suffix}", codec=codec)
    assert run(detector, [video], tmp_path / "out").num_frames == 5
    assert relative_files(tmp_path / "out") == ["video.mkv"]
    with pytest.raises(
        UsageError, match=rf"other\{suffix}: unsupported output format for a video; expected \.m4v, \.mkv"
    ):
        plan_detection_outputs([video], tmp_path / f"other{suffix}")


@pytest.mark.parametrize("in_place", [False, True])
def test_yolo_output_is_a_valid_dataset(
    in_place: bool, folder: Path, tmp_path: Path, detector: Detector, messages: list[str]
) -> None:
    """The boxes read by Chromabox and by supervision equal those detected."""
    supervision = pytest.importorskip("supervision")
    out = folder.parent if in_place else tmp_path / "out"
    if in_place:
        folder = folder.rename(folder.parent / "images")
    else:  # Annotated copies do not become images of the dataset.
        shutil.copyfile(folder / "a.png", folder / "no suffix")
        (folder / "images").mkdir()
        write_image(folder / "images" / "d.png", np.random.default_rng(9).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    formats = ("yolo",) if in_place else ("yolo", "images")
    for _ in range(2):
        summary = run(detector, [folder], out, *formats)
        assert summary.errors == []
    assert {path: path.read_bytes() for path in before} == before
    report = validate_dataset(out)
    # The annotated copy images/d.png is in a folder with images of the dataset.
    unused = [] if in_place else [("unused picture", out / "images" / "d.png")]
    assert [(issue.issue_type, issue.path) for issue in report.issues] == unused
    assert report.data.classes == detector.classes
    assert report.data.splits == ("train",)
    assert len(report.data.samples) == len(before) == summary.num_images
    for sample in report.data.samples:
        expected = detect_image(read_image(sample.path).pixels, detector, confidence=0.3)
        np.testing.assert_allclose(sample.boxes, expected.xyxy, atol=0.01)
        np.testing.assert_array_equal(sample.class_ids, expected.class_id)
    read = supervision.DetectionDataset.from_yolo(str(out / "images"), str(out / "labels"), str(out / "data.yaml"))
    assert tuple(read.classes) == detector.classes
    (found,) = (boxes for path, boxes in read.annotations.items() if Path(path).name == "a.png")
    expected = detect_image(read_image(folder / "a.png").pixels, detector, confidence=0.3)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow these names")
def test_images_with_unusual_names_are_in_the_dataset(tmp_path: Path, detector: Detector) -> None:
    names = [
        "a b.png",
        "a\\b.png",
        "a\nb.png",
        " c.png",
        "$d.PNG",
        "猫.png",
        os.fsdecode(b"\xff.png"),
        "e.jpg.png",
        "~f",
    ]
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        write_image(tmp_path / "image.png", pixels)
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "image.png").rename(tmp_path / "in" / name)
    video = make_video(tmp_path / "v\\[x].mp4")
    for _ in range(2):
        assert run(detector, [tmp_path / "in", video], tmp_path / "out", "yolo").errors == []
    report = validate_dataset(tmp_path / "out")
    assert (report.is_valid, len(report.data.samples)) == (True, len(names) + 5)


def test_folders_of_splits_remain_splits_of_the_dataset(folder: Path, tmp_path: Path, detector: Detector) -> None:
    for name in ("train", "valid", "test"):
        (folder / name).mkdir()
        shutil.copyfile(folder / "b.jpg", folder / name / f"{name}.jpg")
    run(detector, [folder], tmp_path / "out", "yolo")
    data = load_detection_dataset(tmp_path / "out")
    found = {sample.path.stem: sample.split for sample in data.samples}
    assert found == {"a": "train", "b": "train", "c": "train", "train": "train", "valid": "val", "test": "test"}


def test_classes_that_the_font_lacks_are_mentioned_if_images_are_drawn(
    folder: Path, tmp_path: Path, detector: Detector, messages: list[str]
) -> None:
    chinese = replace(detector, classes=("猫", "dog", "кошка"))
    run(chinese, [folder / "a.png"], tmp_path / "a.json")
    assert not any("猫" in line for line in messages if "font" in line)
    run(chinese, [folder / "a.png"], tmp_path / "a.png")
    assert [line for line in messages if "font" in line] == [
        "the font of images lacks characters of these classes, which are drawn as numbers: class 0 is 猫"
    ]


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
