"""Matches against hand calculations by COCO's rules; test_metrics.py compares AP with pycocotools."""

from pathlib import Path

import numpy as np

from chromabox.detect.data.dataset import Sample
from chromabox.detect.evaluation.metrics import (
    IOU_THRESHOLDS,
    ImagePredictions,
    greedy_pairs,
    match_coco,
)

BOX = (0.0, 0.0, 10.0, 10.0)


def make_truth(boxes: list[tuple[float, ...]], crowd: list[bool] | None = None) -> Sample:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    crowd_mask = None if crowd is None else np.array(crowd, bool)
    return Sample(Path("a.png"), corners, np.zeros(len(boxes), np.int64), (100, 100), "", crowd_mask)


def make_prediction(boxes: list[tuple[float, ...]], scores: list[float]) -> ImagePredictions:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return ImagePredictions(corners, np.array(scores, np.float64), np.zeros(len(boxes), np.int64))


def test_detection_matches_at_thresholds_up_to_its_iou() -> None:
    """Boxes of 10 × 7 and 10 × 10 have an IoU of 0.7: a match at 0.5, 0.55, 0.6, 0.65 and 0.7."""
    matches = match_coco([make_prediction([(0, 0, 10, 7)], [0.5])], [make_truth([BOX])], 1)
    np.testing.assert_array_equal(matches.is_match[:, 0], IOU_THRESHOLDS <= 0.7)
    assert matches.is_counted.all()


def test_box_matches_only_the_detection_with_the_highest_score() -> None:
    matches = match_coco([make_prediction([BOX, BOX], [0.4, 0.9])], [make_truth([BOX])], 1)
    assert matches.scores.tolist() == [0.9, 0.4]
    assert matches.is_match[0].tolist() == [True, False]


def test_detection_on_a_crowd_is_not_counted() -> None:
    """The first box lies completely in the crowd, the second half: the second is counted from 0.55 on."""
    crowd = make_truth([(0, 0, 100, 100)], [True])
    matches = match_coco([make_prediction([BOX, (95, 0, 105, 10)], [0.9, 0.8])], [crowd], 1)
    assert not matches.is_match.any()
    assert not matches.is_counted[:, 0].any()
    assert matches.is_counted[:, 1].tolist() == [False] + [True] * 9
    assert matches.num_truths.tolist() == [[0]]


def test_at_most_100_detections_per_class_and_image_are_used() -> None:
    boxes = [(float(x), 0.0, x + 1.0, 1.0) for x in range(120)]
    matches = match_coco([make_prediction(boxes, np.linspace(0, 1, 120).tolist())], [make_truth([BOX])], 1)
    assert len(matches.scores) == 100
    assert matches.scores.min() > 0.16


def test_images_without_detections_give_empty_matches() -> None:
    matches = match_coco([make_prediction([], [])] * 2, [make_truth([]), make_truth([BOX])], 3)
    assert matches.is_match.shape == (10, 0)
    assert matches.num_truths.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_detection_without_area_is_counted_on_a_crowd() -> None:
    crowd = make_truth([(0, 0, 100, 100)], [True])
    matches = match_coco([make_prediction([(3, 3, 3, 3)], [0.9])], [crowd], 1)
    assert matches.is_counted.all()


def test_greedy_pairs_start_with_the_highest_overlap() -> None:
    overlaps = np.array([[0.6, 0.9], [0.7, 0.8], [0.2, 0.1]])
    assert greedy_pairs(overlaps, 0.5) == [(0, 1), (1, 0)]
