"""Facts that label files state about images and boxes are compared with the images.

The position of boxes in resized and turned images is determined by Pillow from an image with a white rectangle.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.validate import validate_dataset, write_clean_copy
from chromabox.errors import ChromaboxError
from detection_fixtures import make_image

#: Left, top, right and bottom in the labelled image of 120 × 60 pixels.
BOX = (24, 12, 72, 36)


def draw_box(size: tuple[int, int] = (120, 60)) -> Image.Image:
    """Return a black image, in which the pixels of `BOX` are white, resized to `size`."""
    pixels = np.zeros((60, 120), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).convert("RGB")


def write_voc(folder: Path, size: tuple[object, object]) -> None:
    left, top, right, bottom = BOX
    box = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    (folder / "a.xml").write_text(
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    )


def write_coco(folder: Path, size: tuple[object, object]) -> None:
    left, top, right, bottom = BOX
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [left, top, right - left, bottom - top]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "labels.json").write_text(json.dumps(content))


FORMATS = {"voc": write_voc, "coco": write_coco}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [(60, 30), (240, 120), (120, 60), (62, 31)])
def test_boxes_of_a_resized_image_are_scaled(
    tmp_path: Path, write: Callable[[Path, tuple[object, object]], None], size: tuple[int, int]
) -> None:
    image = draw_box(size)
    image.save(tmp_path / "a.png")
    write(tmp_path, (120, 60))
    data = load_detection_dataset(tmp_path)
    np.testing.assert_allclose(data.samples[0].boxes, [image.getbbox()], atol=0 if 120 % size[0] == 0 else 0.51)
    expected = [] if size == (120, 60) else [("other picture size", False)]
    assert [(issue.issue_type, issue.dropped) for issue in data.issues] == expected


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 2])
def test_declared_size_states_whether_boxes_are_turned(
    tmp_path: Path, write: Callable[[Path, tuple[object, object]], None], orientation: int, scale: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    draw_box((120 * scale, 60 * scale)).save(tmp_path / "a.png", exif=exif)
    write(tmp_path, (120, 60))
    data = load_detection_dataset(tmp_path)
    with Image.open(tmp_path / "a.png") as image:
        upright = ImageOps.exif_transpose(image)
    assert data.samples[0].size == (upright.height, upright.width) == (120 * scale, 60 * scale)
    np.testing.assert_allclose(data.samples[0].boxes, [upright.getbbox()], atol=1e-9)
    (issue,) = data.issues
    assert issue.message.endswith(f"turned by the EXIF orientation {orientation}" + " and scaled" * (scale == 2))
    # Labels of the upright image are not changed.
    write(tmp_path, (60 * scale, 120 * scale))
    data = load_detection_dataset(tmp_path)
    np.testing.assert_array_equal(data.samples[0].boxes[:, :2], [BOX[:2]])
    assert "other picture size" not in {issue.issue_type for issue in data.issues}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [(100, 100), (60, 120), (1, 1), (-120, 60), ("wide", 60), (1e999, 60), (120, 0)])
def test_image_of_another_size_is_dropped(
    tmp_path: Path, write: Callable[[Path, tuple[object, object]], None], size: tuple[object, object]
) -> None:
    draw_box().save(tmp_path / "a.png")
    write(tmp_path, size)
    with pytest.raises(ChromaboxError, match=r"other picture size: a.png: the labels are for an image of .*; expected"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize("size", [(0, 0), ("", ""), ("0", "0")])
def test_missing_size_is_not_compared(tmp_path: Path, size: tuple[object, object]) -> None:
    draw_box().save(tmp_path / "a.png")
    write_voc(tmp_path, size)
    data = load_detection_dataset(tmp_path)
    assert data.issues == ()
    np.testing.assert_array_equal(data.samples[0].boxes, [BOX])


def test_cleaned_copy_contains_the_scaled_boxes(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    draw_box((60, 30)).save(folder / "a.png")
    write_voc(folder, (120, 60))
    report = validate_dataset(folder)
    assert not report.is_valid
    write_clean_copy(report, folder, tmp_path / "clean")
    data = load_detection_dataset(tmp_path / "clean")
    np.testing.assert_allclose(data.samples[0].boxes, [np.array(BOX) / 2], atol=1e-6)
    assert data.issues == ()


def test_boxes_in_fractions_are_rejected_where_pixels_are_expected(tmp_path: Path) -> None:
    draw_box().save(tmp_path / "a.png")
    write_coco(tmp_path, (120, 60))
    labels = tmp_path / "labels.json"
    content = json.loads(labels.read_text())
    content["annotations"][0]["bbox"] = [0.2, 0.2, 0.4, 0.5]
    labels.write_text(json.dumps(content))
    with pytest.raises(ChromaboxError, match=r"labels.json: all boxes lie between 0 and 1; expected pixels \(COCO\)"):
        load_detection_dataset(tmp_path)
    content["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]})
    labels.write_text(json.dumps(content))
    data = load_detection_dataset(tmp_path)
    assert [(issue.issue_type, issue.line, issue.dropped) for issue in data.issues] == [("tiny box", 1, True)]
    labels.unlink()
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>cat</name><bndbox><xmin>0.2</xmin><ymin>0.2</ymin><xmax>0.6</xmax><ymax>0.7</ymax>"
        "</bndbox></object></annotation>"
    )
    with pytest.raises(ChromaboxError, match=r"a.xml: all boxes lie between 0 and 1; expected pixels \(VOC\)"):
        load_detection_dataset(tmp_path)


@pytest.mark.parametrize(("width", "is_dropped"), [(0.009, True), (0.01, False), (0.00996, False)])
def test_box_below_a_pixel_is_dropped(tmp_path: Path, width: float, is_dropped: bool) -> None:
    make_image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"0 0.5 0.5 {width} 0.2\n0 0.5 0.5 0.5 0.5\n")
    data = load_detection_dataset(tmp_path)
    assert [issue.issue_type for issue in data.issues] == ["tiny box"] * is_dropped
    assert len(data.samples[0].boxes) == 2 - is_dropped
