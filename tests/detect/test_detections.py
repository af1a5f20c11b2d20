"""Selection of detections, and their conversion to supervision's type."""

import sys

import numpy as np
import pytest

from chromabox.detect.detections import Detections
from chromabox.errors import UsageError

DETECTIONS = Detections(
    xyxy=np.arange(12, dtype=np.float32).reshape(3, 4),
    confidence=np.array([0.9, 0.7, 0.5], np.float32),
    class_id=np.array([2, 0, 2]),
    class_names=np.array(["dog", "person", "dog"]),
)


def assert_rows(detections: Detections, rows: list[int]) -> None:
    """Check all fields against these rows of ``DETECTIONS``."""
    assert isinstance(detections, Detections)
    assert len(detections) == len(rows)
    for name in ("xyxy", "confidence", "class_id", "class_names"):
        value, expected = getattr(detections, name), getattr(DETECTIONS, name)[rows]
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(5, 9), []),
        ([2, 0], [2, 0]),
        (np.array([1, 1]), [1, 1]),
        (np.array([], np.int64), []),
        (np.array([True, False, True]), [0, 2]),
        (DETECTIONS.class_names == "dog", [0, 2]),
        (DETECTIONS.confidence > 0.95, []),
        ((DETECTIONS.class_names == "dog") & (DETECTIONS.confidence > 0.6), [0]),
    ],
)
def test_index_selects_rows(index: object, rows: list[int]) -> None:
    assert_rows(DETECTIONS[index], rows)


@pytest.mark.parametrize("index", [3, -4, [0, 3], np.array([True, False])])
def test_index_out_of_range_is_rejected(index: object) -> None:
    with pytest.raises(IndexError):
        DETECTIONS[index]


def test_iteration_yields_single_detections() -> None:
    singles = list(DETECTIONS)
    assert len(singles) == len(DETECTIONS) == 3
    for row, single in enumerate(singles):
        assert_rows(single, [row])
    assert list(DETECTIONS[:0]) == []


def test_conversion_to_supervision() -> None:
    supervision = pytest.importorskip("supervision", reason="the train extra installs supervision")
    for detections in (DETECTIONS, DETECTIONS[:0]):
        converted = detections.to_supervision()
        assert isinstance(converted, supervision.Detections)
        assert len(converted) == len(detections)
        np.testing.assert_array_equal(converted.xyxy, detections.xyxy)
        np.testing.assert_array_equal(converted.confidence, detections.confidence)
        np.testing.assert_array_equal(converted.class_id, detections.class_id)
        np.testing.assert_array_equal(converted.data["class_name"], detections.class_names)
        assert converted.mask is None
        assert converted.tracker_id is None


def test_conversion_without_supervision_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match=r"requires supervision, .*pip install 'chromabox\[train\]'"):
        DETECTIONS.to_supervision()
