"""YOLO labels with key points: `kpt_shape` of the .yaml file decides between key points and polygons.

The lines follow Ultralytics' definition of the pose format: class, box, and 2 or 3 values for each key point.
"""

from pathlib import Path

import numpy as np
import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.errors import ChromaboxError
from detection_fixtures import make_yolo_dataset

BOX_LINE, BOX = "0 0.5 0.5 0.2 0.4", (40, 15, 60, 35)


def load_lines(folder: Path, shape: str, *lines: str) -> tuple[list[list[float]], list[str]]:
    """Return the boxes in an image with these labels, and the messages of the issues."""
    make_yolo_dataset(folder, {"train/a": "\n".join(lines), "val/b": ""})
    with (folder / "data.yaml").open("a") as file:
        file.write(f"kpt_shape: {shape}\n")
    data = load_detection_dataset(folder)
    return data.samples[0].boxes.round(6).tolist(), [issue.message for issue in data.issues]


@pytest.mark.parametrize(("num_points", "num_values"), [(4, 2), (2, 3), (3, 3), (17, 3), (1, 2)])
def test_box_of_key_points_is_the_stated_box(tmp_path: Path, num_points: int, num_values: int) -> None:
    points = np.random.default_rng(0).random(num_points * num_values).round(3)
    line = f"{BOX_LINE} {' '.join(map(str, points))}"
    boxes, issues = load_lines(tmp_path, f"[{num_points}, {num_values}]", line)
    assert (boxes, issues) == ([list(BOX)], [])


def test_line_with_another_number_of_values_is_reported(tmp_path: Path) -> None:
    polygon = "0 0.1 0.1 0.2 0.1 0.2 0.2"
    boxes, issues = load_lines(tmp_path, "[4, 2]", BOX_LINE, polygon)
    assert boxes == [list(BOX)]
    assert issues == ["the number of values is 7; expected 5, or 13 (kpt_shape: 4 key points of 2 values); dropped"]


@pytest.mark.parametrize("shape", ["4", "[4]", "[4, 5]", "[0, 2]", "[a, b]", "[1e9, 2]", "[1000000000, 2]", "{a: 1}"])
def test_invalid_shape_is_rejected(tmp_path: Path, shape: str) -> None:
    with pytest.raises(ChromaboxError, match=r"data.yaml: kpt_shape: expected the number of key points"):
        load_lines(tmp_path, shape, BOX_LINE)
