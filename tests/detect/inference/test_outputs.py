"""Output of detections, against the published formats (COCO results, YOLO text files) and hand calculations."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from chromabox.detect.boxes import iou
from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.detections import Detections
from chromabox.detect.inference.outputs import (
    ImageDetections,
    annotate,
    describe_numbered_classes,
    drawable_name,
    write_coco_results,
    write_csv,
    write_yolo_labels,
)
from chromabox.errors import ChromaboxError
from chromabox.io.images import _font_file, can_draw

NUMBERED = "the font of images lacks characters of these classes, which are drawn as numbers"

DETECTIONS = Detections(
    xyxy=np.array([[10, 20, 50, 100], [100, 40, 180, 90]], np.float32),
    confidence=np.array([0.9, 0.6], np.float32),
    class_id=np.array([16, 79]),
    class_names=np.array(["dog", "toothbrush"]),
)
NO_DETECTIONS = Detections(
    xyxy=np.zeros((0, 4), np.float32),
    confidence=np.zeros(0, np.float32),
    class_id=np.zeros(0, int),
    class_names=np.zeros(0, str),
)


def write_and_read_coco(
    folder: Path, name: str, detections: Detections, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Write the COCO results of an image and return the rows of the file."""
    path = folder / "new" / "found.json"
    write_coco_results(path, [ImageDetections(name, (120, 200), detections)], classes)
    assert [path.name for path in path.parent.iterdir()] == ["found.json"]
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def test_coco_results_have_category_ids_of_coco_and_xywh_boxes(tmp_path: Path) -> None:
    rows = write_and_read_coco(tmp_path, "val/000000000139.jpg", DETECTIONS, COCO_CLASSES)
    # instances_val2017.json: dog is 18, toothbrush is 90.
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (139, 18, [10, 20, 40, 80]),
        (139, 90, [100, 40, 80, 50]),
    ]


def test_other_classes_are_numbered_from_one_and_image_ids_are_names(tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(80))
    (first, _) = write_and_read_coco(tmp_path, "in/dog.jpg", DETECTIONS, names)
    assert (first["image_id"], first["category_id"], first["file_name"]) == ("in/dog", 17, "in/dog.jpg")


IMAGE_IDS = {
    "digits": (["val/01.jpg", "val/2.jpg", "cat.jpg"], [1, 2, "cat"]),
    "equal numbers": (["01.jpg", "1.jpg"], ["01", "1"]),
    "folders": (["a/1.jpg", "b/1.jpg", "b/2.jpg"], ["a/1", "b/1", "b/2"]),
    "suffixes": (["a/1.jpg", "a/1.png"], ["a/1.jpg", "a/1.png"]),
    "frames": (["v.mp4:0", "v.mp4:12", "1.jpg"], ["v_000000", "v_000012", 1]),
    "image with the name of a frame": (["v.mp4:12", "v_000012.jpg"], ["v.mp4/000012", "v_000012.jpg"]),
    "videos": (["v.mp4:0", "v.mkv:0"], ["v.mp4/000000", "v.mkv/000000"]),
}


@pytest.mark.parametrize("case", IMAGE_IDS)
def test_every_image_has_its_own_id(tmp_path: Path, case: str) -> None:
    names, expected = IMAGE_IDS[case]
    frames = [(name.split(":")[0], int(name.split(":")[1]) if ":" in name else None) for name in names]
    results = [ImageDetections(name, (120, 200), DETECTIONS, frame) for name, frame in frames]
    write_coco_results(tmp_path / "found.json", results, COCO_CLASSES)
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["image_id"] for row in rows] == [image_id for image_id in expected for _ in range(2)]


def test_category_ids_of_the_dataset_are_written(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools reads the results")
    detections = replace(DETECTIONS, class_id=np.array([1, 0]), class_names=np.array(["dog", "cat"]))
    results = [ImageDetections(name, (120, 200), detections) for name in ("a/1.jpg", "b/1.jpg")]
    write_coco_results(tmp_path / "found.json", results, ("cat", "dog"), (5, 90))
    truth = coco.COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": "a/1"}, {"id": "b/1"}],
        "annotations": [],
        "categories": [{"id": 5, "name": "cat"}, {"id": 90, "name": "dog"}],
    }
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "found.json"))
    assert [len(found.getAnnIds(imgIds=[image_id])) for image_id in ("a/1", "b/1")] == [2, 2]
    assert [row["bbox"] for row in found.loadAnns(found.getAnnIds(catIds=[90]))] == [[10, 20, 40, 80]] * 2


def test_coco_results_without_detections_are_an_empty_list(tmp_path: Path) -> None:
    assert write_and_read_coco(tmp_path, "a.jpg", NO_DETECTIONS, COCO_CLASSES) == []


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
    assert [int(first[0]), *map(float, first[1:])] == pytest.approx([16, 0.15, 0.5, 0.2, 2 / 3], abs=1e-9)
    write_yolo_labels(tmp_path / "b.txt", ImageDetections("b.jpg", (120, 200), NO_DETECTIONS))
    assert (tmp_path / "b.txt").read_text() == ""


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
    scaled = replace(DETECTIONS, xyxy=DETECTIONS.xyxy * np.float32(scale))
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


def test_sides_of_a_box_at_the_edge_of_the_image_are_drawn() -> None:
    pixels = np.full((60, 80, 3), 100, np.uint8)
    whole = replace(DETECTIONS[0], xyxy=np.array([[0, 0, 80, 60]], np.float32))
    changed = (annotate(pixels, whole) != pixels).any(axis=2)
    assert changed[-1].all()
    assert changed[:, -1].all()


def label_boxes(monkeypatch: pytest.MonkeyPatch, boxes: list[tuple[float, ...]]) -> np.ndarray:
    """Annotate an image of 320 × 240 pixels; return the first and last column and row of each label."""
    drawn: list[tuple[float, ...]] = []
    original = ImageDraw.ImageDraw.rectangle

    def record(draw: ImageDraw.ImageDraw, box: tuple[float, ...], fill: str | None = None, **options: Any) -> None:
        if fill is not None:
            drawn.append(box)
        original(draw, box, fill=fill, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", record)
    count = len(boxes)
    names = np.array(["toothbrush", "dog", "traffic light", "cat"])[np.arange(count) % 4]
    class_ids, scores = np.arange(count, dtype=np.int64), np.full(count, 0.9, np.float32)
    annotate(np.zeros((240, 320, 3), np.uint8), Detections(np.array(boxes, np.float32), scores, class_ids, names))
    return np.array(drawn)


def test_labels_are_inside_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [(0, 0, 320, 240), (250, 100, 319, 200), (5, 220, 60, 238), (300, 2, 318, 20), (160, 120, 160.2, 120.3)]
    labels = label_boxes(monkeypatch, boxes)
    assert len(labels) == len(boxes)
    assert (labels >= 0).all()
    assert (labels[:, [0, 2]] < 320).all()
    assert (labels[:, [1, 3]] < 240).all()


# Bitmaps are compared with those of the same names drawn without Chromabox by Pillow. DejaVu's list of characters
# (DejaVuSans.txt of the project) has Latin, Greek and Cyrillic, but neither Chinese nor Devanagari nor most emoji.
@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        *((name, name) for name in ("Straßenbahn", "Łódź", "γάτα", "кошка", "O'Brien & co.", "ﬁn")),
        ("cafe\u0301", "café"),
        *(
            (name, "class 7")
            for name in ("猫", "ネコ", "고양이", "cat 猫", "हाथी", "🦊", "a\nb", "a\u2029b", "a\ud800b")
        ),
    ],
)
def test_class_names_are_drawn_in_scripts_of_the_font_and_otherwise_as_numbers(name: str, drawn: str) -> None:
    pixels = np.full((120, 400, 3), 90, np.uint8)
    one = replace(DETECTIONS[0], class_id=np.array([7]), class_names=np.array([name], object))
    expected = replace(one, class_names=np.array([drawn], object))
    assert drawable_name(name, 7) == drawn
    assert (annotate(pixels, one) == annotate(pixels, expected)).all()
    note = describe_numbered_classes(["dog", name])
    assert note == ([] if drawn != "class 7" else [f"{NUMBERED}: class 1 is {name}"])


def test_glyphs_are_those_in_the_character_map_of_the_font() -> None:
    ttf = pytest.importorskip("fontTools.ttLib")
    characters = ttf.TTFont(io.BytesIO(_font_file())).getBestCmap()
    codes = [*range(0x20, 0x7F), *range(0x370, 0x700, 5), *range(0x3040, 0x3100, 7), *range(0x1F600, 0x1F680, 5)]
    drawable = {code for code in codes if can_draw(chr(code))}
    assert drawable == {code for code in codes if code in characters}


def test_many_numbered_classes_are_listed_in_part() -> None:
    (line,) = describe_numbered_classes([f"猫{index}" for index in range(12)])
    assert line.endswith("class 9 is 猫9 (and 2 more)")


def test_labels_do_not_overlap_if_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [(20, 60, 200, 180), (20, 60, 200, 180), (22, 62, 210, 170), (21, 60, 150, 200), (0, 0, 320, 240)]
    labels = label_boxes(monkeypatch, boxes).astype(np.float64)
    labels[:, 2:] += 1
    assert (iou(labels, labels) == np.eye(len(boxes))).all()


def test_label_is_above_its_box_and_overlaps_others_only_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = label_boxes(monkeypatch, [(100, 60, 200, 180)] * 12)
    left, _, _, bottom = labels[0]
    assert (left, bottom) == (100, 59)
    assert (labels[-1, [0, 3]] == labels[0, [0, 3]]).all()
