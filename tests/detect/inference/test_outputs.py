"""Output of detections, against the published formats (COCO results, YOLO text files) and hand calculations."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.detections import Detections
from chromabox.detect.inference.outputs import (
    ImageDetections,
    annotate,
    coco_results,
    write_class_names,
    write_coco_results,
    write_csv,
    write_yolo_labels,
)
from chromabox.errors import ChromaboxError

DETECTIONS = Detections(
    xyxy=np.array([[10, 20, 50, 100], [100, 40, 180, 90]], np.float32),
    confidence=np.array([0.9, 0.6], np.float32),
    class_id=np.array([16, 79]),
    data={"class_name": np.array(["dog", "toothbrush"])},
)
NO_DETECTIONS = Detections(
    xyxy=np.zeros((0, 4), np.float32),
    confidence=np.zeros(0, np.float32),
    class_id=np.zeros(0, int),
    data={"class_name": np.zeros(0, str)},
)


def test_coco_results_have_category_ids_of_coco_and_xywh_boxes(tmp_path: Path) -> None:
    rows = coco_results([ImageDetections("val/000000000139.jpg", (120, 200), DETECTIONS)], COCO_CLASSES)
    # instances_val2017.json: dog is 18, toothbrush is 90.
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (139, 18, [10, 20, 40, 80]),
        (139, 90, [100, 40, 80, 50]),
    ]
    path = tmp_path / "new" / "found.json"
    write_coco_results(path, rows)
    assert json.loads(path.read_text(encoding="utf-8")) == rows
    assert [path.name for path in path.parent.iterdir()] == ["found.json"]


def test_other_classes_are_numbered_from_one_and_image_ids_are_names() -> None:
    names = tuple(f"class {index}" for index in range(80))
    (first, _) = coco_results([ImageDetections("in/dog.jpg", (120, 200), DETECTIONS)], names)
    assert (first["image_id"], first["category_id"], first["file_name"]) == ("in/dog", 17, "in/dog.jpg")


def test_coco_results_without_detections_are_an_empty_list(tmp_path: Path) -> None:
    write_coco_results(
        tmp_path / "none.json", coco_results([ImageDetections("a.jpg", (1, 1), NO_DETECTIONS)], COCO_CLASSES)
    )
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_csv_has_frames_and_corners(tmp_path: Path) -> None:
    results = [
        ImageDetections("ä, b.jpg", (120, 200), DETECTIONS),
        ImageDetections("video.mp4", (120, 200), DETECTIONS, frame=7),
    ]
    write_csv(tmp_path / "found.csv", results)
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["", "", "7", "7"]
    assert rows[0]["file"] == "ä, b.jpg"
    assert (rows[1]["class"], rows[1]["class_id"], rows[1]["right"]) == ("toothbrush", "79", "180.000")


def test_yolo_labels_equal_hand_calculation(tmp_path: Path) -> None:
    write_yolo_labels(tmp_path / "labels" / "a.txt", ImageDetections("a.jpg", (120, 200), DETECTIONS))
    first = (tmp_path / "labels" / "a.txt").read_text().splitlines()[0].split()
    # Centre (30, 60) and size (40, 80) in an image of 200 × 120 pixels.
    assert [int(first[0]), *map(float, first[1:])] == pytest.approx([16, 0.15, 0.5, 0.2, 2 / 3, 0.9], abs=1e-6)
    write_yolo_labels(tmp_path / "b.txt", ImageDetections("b.jpg", (120, 200), NO_DETECTIONS))
    assert (tmp_path / "b.txt").read_text() == ""
    write_class_names(tmp_path / "classes.txt", COCO_CLASSES)
    assert (tmp_path / "classes.txt").read_text().splitlines()[16] == "dog"


def test_unwritable_path_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match="cannot be written"):
        write_csv(tmp_path / "file" / "found.csv", [])


def test_names_of_frames_and_summaries_of_images() -> None:
    assert ImageDetections("a/video.mp4", (1, 1), DETECTIONS, frame=3).stem == "a/video_000003"
    assert ImageDetections("a.jpg", (1, 1), DETECTIONS).summary() == "dog 1, toothbrush 1"
    assert ImageDetections("a.jpg", (1, 1), NO_DETECTIONS).summary() == "nothing"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [1, 8])
def test_boxes_are_drawn_on_a_copy_of_the_image(dtype: type, scale: int) -> None:
    pixels = np.full((120 * scale, 200 * scale, 3), np.iinfo(dtype).max // 2, dtype)
    before = pixels.copy()
    scaled = Detections(
        DETECTIONS.xyxy * scale, confidence=DETECTIONS.confidence, class_id=DETECTIONS.class_id, data=DETECTIONS.data
    )
    annotated = annotate(pixels, scaled)
    assert (pixels == before).all()
    assert (annotated.dtype, annotated.shape) == (np.uint8, pixels.shape)
    changed = (annotated != annotated[-1, -1]).any(axis=2)
    # The right edge of the first box is annotated at half its height; its interior and the opposite corner are not.
    assert changed[60 * scale, 48 * scale : 52 * scale].any()
    assert not changed[60 * scale, 20 * scale : 40 * scale].any()
    assert not changed[110 * scale :, 100 * scale :].any()


def test_image_without_detections_is_unchanged() -> None:
    pixels = np.full((20, 30, 3), 100, np.uint8)
    assert (annotate(pixels, NO_DETECTIONS) == pixels).all()
