"""Label validation of arbitrary numbers: kept boxes are inside the image and unique; all other labels are reported."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chromabox.detect.data.dataset import BOX_EDGE_TOLERANCE, RawLabel, validate_labels

NUMBERS = st.floats(-300, 300, width=32) | st.sampled_from([0.0, float("nan"), float("inf"), float("-inf")])
LABELS = st.lists(st.tuples(st.integers(0, 3), st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)), max_size=8)


@given(LABELS, st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_kept_boxes_are_valid_and_dropped_labels_are_reported(
    rows: list[tuple[int, tuple[float, float, float, float]]], size: tuple[int, int]
) -> None:
    labels = [RawLabel(line, class_id, corners) for line, (class_id, corners) in enumerate(rows, 1)]
    sample, issues = validate_labels(labels, Path("a.png"), size, "train", Path("a.txt"))
    height, width = size
    assert ((sample.boxes >= 0) & (sample.boxes <= [width, height, width, height])).all()
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    rounded = sample.boxes.round(2).tolist()
    unique = {(class_id, *box) for class_id, box in zip(sample.class_ids.tolist(), rounded, strict=True)}
    assert len(unique) == len(sample.boxes)
    assert len(sample.boxes) + len({issue.line for issue in issues if issue.dropped}) == len(rows)


@given(st.floats(0, BOX_EDGE_TOLERANCE), st.floats(0, BOX_EDGE_TOLERANCE))
def test_box_slightly_beyond_the_edge_is_clipped_without_an_issue(left: float, bottom: float) -> None:
    labels = [RawLabel(1, 0, (-left, 10.0, 20.0, 50.0 + bottom))]
    sample, issues = validate_labels(labels, Path("a.png"), (50, 100), "", Path("a.txt"))
    assert issues == []
    np.testing.assert_array_equal(sample.boxes, [(0, 10, 20, 50)])
