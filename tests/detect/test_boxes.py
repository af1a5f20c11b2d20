"""Box formats, IoU, non-maximum suppression and letterboxing.

Expected values: supervision's non-maximum suppression and IoU, scipy's bilinear interpolation, Darknet's rules
implemented independently in the tests, and values computed by hand.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from chromabox.detect.boxes import (
    Letterbox,
    iou,
    letterbox_for,
    nms,
    resize_bilinear,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)
from chromabox.detect.models.architecture import DARKNET, ULTRALYTICS_9_0, Variant
from chromabox.errors import UsageError

supervision = pytest.importorskip("supervision", reason="the train extra installs supervision")


def random_boxes(count: int, seed: int = 0, spread: float = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, spread, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 80, (count, 2))], axis=1).astype(np.float32)


def test_formats_match_values_by_hand() -> None:
    box = np.array([[10.0, 20.0, 40.0, 80.0]])
    assert xyxy_to_xywh(box).tolist() == [[10, 20, 30, 60]]
    assert xyxy_to_cxcywh(box).tolist() == [[25, 50, 30, 60]]


def test_iou_matches_supervision() -> None:
    boxes1, boxes2 = random_boxes(40), random_boxes(30, seed=1)
    np.testing.assert_allclose(iou(boxes1, boxes2), supervision.box_iou_batch(boxes1, boxes2), atol=1e-6)


def test_iou_of_empty_boxes_is_zero() -> None:
    empty, box = np.zeros((1, 4)), np.array([[0.0, 0.0, 1.0, 1.0]])
    assert iou(empty, np.concatenate([empty, box])).tolist() == [[0, 0]]
    assert iou(np.zeros((0, 4)), box).shape == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 40, 255, 256, 257, 700])
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("threshold", [0.2, 0.45, 0.8])
def test_nms_matches_supervision(count: int, num_classes: int, threshold: float) -> None:
    rng = np.random.default_rng(count)
    boxes, scores = random_boxes(count, seed=count, spread=150), rng.permutation(count).astype(np.float32) / count
    class_ids = rng.integers(0, num_classes, count)
    rows = np.column_stack([boxes, scores, class_ids])
    expected = np.flatnonzero(supervision.box_non_max_suppression(rows, threshold))
    kept = nms(boxes, scores, class_ids, threshold)
    assert sorted(kept.tolist()) == expected.tolist()
    assert (np.diff(scores[kept]) < 0).all()


def test_nms_with_equal_scores_keeps_the_first_box() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    assert nms(boxes, np.full(3, 0.5), np.array([0, 0, 1])).tolist() == [0, 2]


def test_suppressed_box_does_not_suppress_others() -> None:
    # The second box overlaps both neighbours; the first and the third do not overlap. Greedy suppression keeps those.
    boxes = np.array([[0, 0, 9, 3], [3, 0, 12, 3], [9, 0, 15, 3]], np.float32)
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, np.int64), 0.2).tolist() == [0, 2]


def test_nms_without_boxes() -> None:
    assert nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_nms_with_invalid_threshold_is_rejected(threshold: float) -> None:
    with pytest.raises(UsageError, match="iou is"):
        nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), threshold)


sides = st.integers(1, 5000)
VARIANTS = st.sampled_from([DARKNET, ULTRALYTICS_9_0])


@given(sides, sides, st.integers(1, 20).map(lambda count: 32 * count), VARIANTS, st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_letterbox_boxes_round_trip(height: int, width: int, side: int, variant: Variant, seed: int) -> None:
    letterbox = letterbox_for((height, width), side, variant)
    corners = np.random.default_rng(seed).random((5, 4)) * [width, height, width, height]
    applied = letterbox.apply_boxes(corners)
    np.testing.assert_allclose(letterbox.invert_boxes(applied), corners, atol=1e-9 * max(height, width))
    whole = letterbox.apply_boxes(np.array([[0.0, 0.0, width, height]]))[0]
    assert whole.tolist() == pytest.approx(
        [
            letterbox.left,
            letterbox.top,
            letterbox.left + letterbox.inner_size[1],
            letterbox.top + letterbox.inner_size[0],
        ],
        abs=1e-9,
    )
    assert max(letterbox.inner_size) == side
    bottom, right = side - letterbox.inner_size[0] - letterbox.top, side - letterbox.inner_size[1] - letterbox.left
    assert min(letterbox.top, letterbox.left, bottom, right) >= 0


# (height, width), side, inner height and width, top, left: Darknet's integer arithmetic by hand.
@pytest.mark.parametrize(
    ("image_size", "side", "inner_size", "top", "left"),
    [
        ((480, 640), 416, (312, 416), 52, 0),
        ((576, 768), 416, (312, 416), 52, 0),
        ((333, 500), 416, (277, 416), 69, 0),
        ((500, 333), 416, (416, 277), 0, 69),
        ((1, 1000), 416, (1, 416), 207, 0),
        ((416, 416), 416, (416, 416), 0, 0),
    ],
)
def test_darknet_letterbox_rounds_down(
    image_size: tuple[int, int], side: int, inner_size: tuple[int, int], top: int, left: int
) -> None:
    letterbox = letterbox_for(image_size, side, DARKNET)
    assert (letterbox.inner_size, letterbox.top, letterbox.left, letterbox.fill) == (inner_size, top, left, 0.5)


def test_ultralytics_letterbox_rounds_to_nearest() -> None:
    # 333 · 416 / 500 = 277.06 and 427 · 640 / 640: 418 · 416 / 640 = 271.7 rounds up.
    assert letterbox_for((333, 500), 416, ULTRALYTICS_9_0).inner_size == (277, 416)
    assert letterbox_for((418, 640), 416, ULTRALYTICS_9_0).inner_size == (272, 416)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(13, 29), (60, 90), (1, 1), (31, 47)])
@pytest.mark.parametrize("sampling", ["corners", "edges"])
def test_resizing_matches_scipy(dtype: type, size: tuple[int, int], sampling: str) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (31, 47, 3), endpoint=True).astype(dtype)
    positions = []
    for old, new in zip(pixels.shape[:2], size, strict=True):
        if sampling == "corners":
            positions.append(np.linspace(0, old - 1, new) if new > 1 else np.array([old - 1.0]))
        else:
            positions.append(np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1))
    grid = np.meshgrid(*positions, indexing="ij")
    expected = [map_coordinates(pixels[..., c].astype(np.float64), grid, order=1, mode="nearest") for c in range(3)]
    expected = np.stack(expected) / np.iinfo(dtype).max
    np.testing.assert_allclose(resize_bilinear(pixels, size, sampling), expected, atol=2e-6)  # type: ignore[arg-type]


def test_image_of_canvas_size_is_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for variant in (DARKNET, ULTRALYTICS_9_0):
        letterboxed = letterbox_for((64, 64), 64, variant).apply_image(pixels)
        np.testing.assert_allclose(letterboxed, pixels.transpose(2, 0, 1) / 255, atol=1e-7)


def test_padding_has_the_fill_value() -> None:
    letterboxed = Letterbox((10, 64), 64, (10, 64), 0.25, "edges").apply_image(np.zeros((10, 64, 3), np.uint8))
    assert (letterboxed[:, :27] == 0.25).all()
    assert (letterboxed[:, 27:37] == 0).all()
    assert (letterboxed[:, 37:] == 0.25).all()
