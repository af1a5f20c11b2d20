"""Boxes of polygons in COCO and VOC files, and ids of COCO files as text. Extents of polygons are matplotlib's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as PolygonPath

from chromabox.detect.data.dataset import DetectionDataset
from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError
from detection_fixtures import make_image

CORNERS = np.array([(20.5, 10), (60, 12.5), (70, 40), (30, 45)])
EXTENTS = PolygonPath(CORNERS).get_extents().extents


def load_coco(folder: Path, *annotations: dict[str, Any], image_id: object = 1) -> DetectionDataset:
    make_image(folder / "a.png")
    rows = [{"id": number, "image_id": 1, "category_id": 3, **row} for number, row in enumerate(annotations)]
    images, categories = [{"id": image_id, "file_name": "a.png"}], [{"id": 3, "name": "cat"}]
    content = {"images": images, "annotations": rows, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))
    return load_detection_dataset(folder)


@pytest.mark.parametrize("row", [{}, {"bbox": None}, {"bbox": []}])
def test_coco_polygons_without_a_box(tmp_path: Path, row: dict[str, Any]) -> None:
    polygon = CORNERS.ravel().tolist()
    other = [80, 20, 90, 20, 90, 30]
    data = load_coco(tmp_path, {**row, "segmentation": [polygon]}, {**row, "segmentation": [polygon, other]})
    assert data.issues == ()
    both = PolygonPath(np.vstack([CORNERS, np.reshape(other, (-1, 2))])).get_extents().extents
    np.testing.assert_allclose(data.samples[0].boxes, [EXTENTS, both])


def test_box_of_a_coco_annotation_precedes_its_polygons(tmp_path: Path) -> None:
    data = load_coco(tmp_path, {"bbox": [10, 10, 20, 20], "segmentation": [CORNERS.ravel().tolist()]})
    np.testing.assert_allclose(data.samples[0].boxes, [(10, 10, 30, 30)])


BAD_SEGMENTATIONS = {
    "run lengths": {"counts": [10, 20], "size": [50, 100]},
    "two corners": [[1, 2, 3, 4]],
    "half a corner": [[1, 2, 3, 4, 5, 6, 7]],
    "words": [["a", 2, 3, 4, 5, 6]],
    "no list": [5],
    "text": "1 2 3 4 5 6",
    "huge": [[10**400, 2, 3, 4, 5, 6]],
}


@pytest.mark.parametrize("case", BAD_SEGMENTATIONS)
def test_invalid_segmentation_is_reported(tmp_path: Path, case: str) -> None:
    data = load_coco(tmp_path, {"segmentation": BAD_SEGMENTATIONS[case]}, {"bbox": [10, 10, 20, 20]})
    assert [(issue.issue_type, issue.line) for issue in data.issues] == [("unreadable label", 0)]
    assert len(data.samples[0].boxes) == 1


@pytest.mark.parametrize("entry", [None, "x", 5, [1, 2], {"image_id": 1, "category_id": 3, "bbox": "1234"}])
def test_annotation_that_is_no_object_is_reported(tmp_path: Path, entry: object) -> None:
    make_image(tmp_path / "a.png")
    good = {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "iscrowd": "0"}
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [entry, good]}
    (tmp_path / "labels.json").write_text(json.dumps({**content, "categories": [{"id": 3, "name": "cat"}]}))
    data = load_detection_dataset(tmp_path)
    assert [issue.issue_type for issue in data.issues] == ["unreadable label"]
    assert len(data.samples[0].without_crowds.boxes) == 1


@pytest.mark.parametrize("image_id", ["1", " 1", 1.0, 1])
@pytest.mark.parametrize("category_id", ["3", 3.0, 3])
def test_coco_ids_as_text_are_the_same_ids(tmp_path: Path, image_id: object, category_id: object) -> None:
    data = load_coco(tmp_path, {"bbox": [10, 10, 20, 20], "category_id": category_id}, image_id=image_id)
    assert (data.issues, len(data.samples[0].boxes), data.category_ids) == ((), 1, (3,))


@pytest.mark.parametrize("entry", [{"id": 2}, {"id": 2, "file_name": 5}, {"file_name": "a.png"}, 7])
def test_invalid_image_entry_is_reported(tmp_path: Path, entry: object) -> None:
    make_image(tmp_path / "a.png")
    images, categories = [entry, {"id": 1, "file_name": "a.png"}], [{"id": 3, "name": "cat"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    data = load_detection_dataset(tmp_path)
    assert ([issue.issue_type for issue in data.issues], len(data.samples)) == (["missing picture"], 1)


def test_categories_with_the_same_id_are_rejected(tmp_path: Path) -> None:
    make_image(tmp_path / "a.png")
    categories = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]
    (tmp_path / "labels.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    with pytest.raises(ChromaboxError, match=r"labels.json: several categories have the same id"):
        load_detection_dataset(tmp_path)


#: Corners as Roboflow and LabelMe write them. Like the corners of a bndbox, they are counted from 1.
VOC_POLYGONS = {
    "numbered": "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(CORNERS.tolist(), 1)),
    "points": "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in CORNERS.tolist()),
}


@pytest.mark.parametrize("case", VOC_POLYGONS)
def test_voc_polygon_without_a_box(tmp_path: Path, case: str) -> None:
    make_image(tmp_path / "a.png")
    item = f"<object><name>cat</name><polygon>{VOC_POLYGONS[case]}</polygon></object>"
    (tmp_path / "a.xml").write_text(f"<annotation>{item}</annotation>")
    data = load_detection_dataset(tmp_path)
    assert data.issues == ()
    np.testing.assert_allclose(data.samples[0].boxes, [EXTENTS - [1, 1, 0, 0]])


@pytest.mark.parametrize("polygon", ["", "<x1>1</x1>", "<x1>a</x1><y1>2</y1>", "<pt><x>1</x></pt>"])
def test_invalid_voc_polygon_is_reported(tmp_path: Path, polygon: str) -> None:
    make_image(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(
        f"<annotation><object><name>cat</name><polygon>{polygon}</polygon></object></annotation>"
    )
    data = load_detection_dataset(tmp_path)
    assert [issue.issue_type for issue in data.issues] == ["unreadable label"]
