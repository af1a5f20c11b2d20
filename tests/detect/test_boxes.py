"""Formats, overlaps, suppression, letterboxes. Expected values: supervision's own suppression and overlaps, scipy's
bilinear interpolation, darknet's rules written out in the tests' own words, and arithmetic by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from chromabox.detect.boxes import (
    Letterbox,
    cxcywh_to_xyxy,
    darknet_letterbox,
    iou,
    nms,
    resize_bilinear,
    ultralytics_letterbox,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from chromabox.detect.detections import supervision
from chromabox.errors import UsageError


def some_boxes(count: int, seed: int = 0, spread: float = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, spread, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 80, (count, 2))], axis=1).astype(np.float32)


def test_formats_by_hand() -> None:
    box = np.array([[10.0, 20.0, 40.0, 80.0]])
    assert xyxy_to_xywh(box).tolist() == [[10, 20, 30, 60]]
    assert xyxy_to_cxcywh(box).tolist() == [[25, 50, 30, 60]]


def test_formats_there_and_back() -> None:
    boxes = some_boxes(50).astype(np.float64)
    np.testing.assert_allclose(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes, rtol=1e-12)
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, rtol=1e-12)


def test_iou_is_supervisions() -> None:
    some, others = some_boxes(40), some_boxes(30, seed=1)
    np.testing.assert_allclose(iou(some, others), supervision.box_iou_batch(some, others), atol=1e-6)


def test_iou_of_empty_boxes_is_nought() -> None:
    empty, box = np.zeros((1, 4)), np.array([[0.0, 0.0, 1.0, 1.0]])
    assert iou(empty, np.concatenate([empty, box])).tolist() == [[0, 0]]
    assert iou(np.zeros((0, 4)), box).shape == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 40, 255, 256, 257, 700])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.8])
def test_nms_keeps_what_supervision_keeps(count: int, classes: int, threshold: float) -> None:
    rng = np.random.default_rng(count)
    boxes, scores = some_boxes(count, seed=count, spread=150), rng.permutation(count).astype(np.float32) / count
    numbers = rng.integers(0, classes, count)
    rows = np.column_stack([boxes, scores, numbers])
    expected = np.flatnonzero(supervision.box_non_max_suppression(rows, threshold))
    kept = nms(boxes, scores, numbers, threshold)
    assert sorted(kept.tolist()) == expected.tolist()
    assert (np.diff(scores[kept]) < 0).all()


def test_nms_of_equal_scores_keeps_the_first() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    assert nms(boxes, np.full(3, 0.5), np.array([0, 0, 1])).tolist() == [0, 2]


def test_a_box_that_is_gone_strikes_out_nothing() -> None:
    # The second overlaps both its neighbours by 0.5, the first and the third do not touch: greedy keeps those.
    boxes = np.array([[0, 0, 9, 3], [3, 0, 12, 3], [9, 0, 15, 3]], np.float32)
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64), 0.2).tolist() == [0, 2]


def test_nms_of_nothing() -> None:
    assert nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_nms_refuses_thresholds(threshold: float) -> None:
    with pytest.raises(UsageError, match="iou is"):
        nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), threshold)


sides = st.integers(1, 5000)
MAKERS = st.sampled_from([darknet_letterbox, ultralytics_letterbox])


@given(sides, sides, st.integers(1, 20).map(lambda count: 32 * count), MAKERS, st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_letterbox_there_and_back(height: int, width: int, side: int, make: object, seed: int) -> None:
    box: Letterbox = make((height, width), side)  # type: ignore[operator]
    corners = np.random.default_rng(seed).random((5, 4)) * [width, height, width, height]
    laid = box.apply_boxes(corners)
    np.testing.assert_allclose(box.invert_boxes(laid), corners, atol=1e-9 * max(height, width))
    whole = box.apply_boxes(np.array([[0.0, 0.0, width, height]]))[0]
    assert whole.tolist() == pytest.approx(
        [box.left, box.top, box.left + box.inner_size[1], box.top + box.inner_size[0]], abs=1e-9
    )
    assert max(box.inner_size) == side
    assert min(box.top, box.left, side - box.inner_size[0] - box.top, side - box.inner_size[1] - box.left) >= 0


# (height, width), side, inner height and width, top, left: darknet's integer arithmetic by hand.
@pytest.mark.parametrize(
    ("picture", "side", "inner", "top", "left"),
    [
        ((480, 640), 416, (312, 416), 52, 0),
        ((576, 768), 416, (312, 416), 52, 0),
        ((333, 500), 416, (277, 416), 69, 0),
        ((500, 333), 416, (416, 277), 0, 69),
        ((1, 1000), 416, (1, 416), 207, 0),
        ((416, 416), 416, (416, 416), 0, 0),
    ],
)
def test_darknet_letterbox(picture: tuple[int, int], side: int, inner: tuple[int, int], top: int, left: int) -> None:
    box = darknet_letterbox(picture, side)
    assert (box.inner_size, box.top, box.left, box.fill) == (inner, top, left, 0.5)


def test_rounding_letterbox_rounds() -> None:
    # 333 · 416 / 500 = 277.06 and 427 · 640 / 640: 418 · 416 / 640 = 271.7 rounds up.
    assert ultralytics_letterbox((333, 500), 416).inner_size == (277, 416)
    assert ultralytics_letterbox((418, 640), 416).inner_size == (272, 416)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(13, 29), (60, 90), (1, 1), (31, 47)])
@pytest.mark.parametrize("sampling", ["corners", "edges"])
def test_resizing_is_bilinear(kind: type, size: tuple[int, int], sampling: str) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (31, 47, 3), endpoint=True).astype(kind)
    places = []
    for old, new in zip(pixels.shape[:2], size, strict=True):
        if sampling == "corners":
            places.append(np.linspace(0, old - 1, new) if new > 1 else np.array([old - 1.0]))
        else:
            places.append(np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1))
    grid = np.meshgrid(*places, indexing="ij")
    expected = [map_coordinates(pixels[..., c].astype(np.float64), grid, order=1, mode="nearest") for c in range(3)]
    expected = np.stack(expected) / np.iinfo(kind).max
    np.testing.assert_allclose(resize_bilinear(pixels, size, sampling), expected, atol=2e-6)  # type: ignore[arg-type]


def test_a_picture_of_the_squares_size_is_not_changed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for make in (darknet_letterbox, ultralytics_letterbox):
        laid = make((64, 64), 64).apply_image(pixels)
        np.testing.assert_allclose(laid, pixels.transpose(2, 0, 1) / 255, atol=1e-7)


def test_grey_is_around() -> None:
    laid = ultralytics_letterbox((10, 64), 64, fill=0.25).apply_image(np.zeros((10, 64, 3), np.uint8))
    assert (laid[:, :27] == 0.25).all()
    assert (laid[:, 27:37] == 0).all()
    assert (laid[:, 37:] == 0.25).all()
