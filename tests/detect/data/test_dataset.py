"""Whatever numbers stand in a label file: what is kept lies in the picture and is none twice, the rest is told."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from chromabox.detect.data.dataset import BOX_EDGE_TOLERANCE, RawLabel, validate_labels

NUMBERS = st.floats(-300, 300, width=32) | st.sampled_from([0.0, float("nan"), float("inf"), float("-inf")])
LABELS = st.lists(st.tuples(st.integers(0, 3), st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)), max_size=8)


@given(LABELS, st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_what_is_kept_is_sound_and_what_is_not_is_told(
    rows: list[tuple[int, tuple[float, float, float, float]]], size: tuple[int, int]
) -> None:
    labels = [RawLabel(line, category, corners) for line, (category, corners) in enumerate(rows, 1)]
    one, faults = validate_labels(labels, Path("a.png"), size, "train", Path("a.txt"))
    height, width = size
    assert ((one.boxes >= 0) & (one.boxes <= [width, height, width, height])).all()
    assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
    kept = {(category, *box) for category, box in zip(one.class_ids.tolist(), one.boxes.round(2).tolist(), strict=True)}
    assert len(kept) == len(one.boxes)
    assert len(one.boxes) + len({fault.line for fault in faults if fault.dropped}) == len(rows)


@given(st.floats(0, BOX_EDGE_TOLERANCE), st.floats(0, BOX_EDGE_TOLERANCE))
def test_rounding_over_the_edge_is_cut_without_a_word(left: float, bottom: float) -> None:
    labels = [RawLabel(1, 0, (-left, 10.0, 20.0, 50.0 + bottom))]
    one, faults = validate_labels(labels, Path("a.png"), (50, 100), "", Path("a.txt"))
    assert faults == []
    np.testing.assert_array_equal(one.boxes, [(0, 10, 20, 50)])
