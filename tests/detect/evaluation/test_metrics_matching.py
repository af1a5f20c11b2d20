"""Matches worked out by hand from COCO's rules; that whole APs equal pycocotools' is tested in test_metrics.py."""

from pathlib import Path

import numpy as np

from chromabox.detect.data.dataset import Sample
from chromabox.detect.evaluation.metrics import (
    IOU_THRESHOLDS,
    ImagePredictions,
    crowd_overlap,
    greedy_pairs,
    match_coco,
)

BOX = (0.0, 0.0, 10.0, 10.0)


def labelled(boxes: list[tuple[float, ...]], crowd: list[bool] | None = None) -> Sample:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    marks = None if crowd is None else np.array(crowd, bool)
    return Sample(Path("a.png"), corners, np.zeros(len(boxes), np.int64), (100, 100), "", marks)


def predicted(boxes: list[tuple[float, ...]], scores: list[float]) -> ImagePredictions:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return ImagePredictions(corners, np.array(scores, np.float64), np.zeros(len(boxes), np.int64))


def test_an_overlap_is_right_up_to_its_threshold() -> None:
    """10 × 7 of 10 × 10 overlap by 0.7: right at 0.5, 0.55, 0.6, 0.65 and 0.7."""
    matches = match_coco([predicted([(0, 0, 10, 7)], [0.5])], [labelled([BOX])], 1)
    np.testing.assert_array_equal(matches.is_match[:, 0], IOU_THRESHOLDS <= 0.7)
    assert matches.is_counted.all()


def test_a_box_is_found_once() -> None:
    matches = match_coco([predicted([BOX, BOX], [0.4, 0.9])], [labelled([BOX])], 1)
    assert matches.scores.tolist() == [0.9, 0.4]
    assert matches.is_match[0].tolist() == [True, False]


def test_on_a_crowd_is_neither_right_nor_wrong() -> None:
    """All of the small box lies in the crowd, half of the other one: only the first does not count, at 0.55 and up."""
    crowd = labelled([(0, 0, 100, 100)], [True])
    matches = match_coco([predicted([BOX, (95, 0, 105, 10)], [0.9, 0.8])], [crowd], 1)
    assert not matches.is_match.any()
    assert not matches.is_counted[:, 0].any()
    assert matches.is_counted[:, 1].tolist() == [False] + [True] * 9
    assert matches.num_truths.tolist() == [[0]]


def test_a_hundred_of_a_class_count_in_a_picture() -> None:
    boxes = [(float(x), 0.0, x + 1.0, 1.0) for x in range(120)]
    matches = match_coco([predicted(boxes, np.linspace(0, 1, 120).tolist())], [labelled([BOX])], 1)
    assert len(matches.scores) == 100
    assert matches.scores.min() > 0.16


def test_pictures_without_anything() -> None:
    matches = match_coco([predicted([], [])] * 2, [labelled([]), labelled([BOX])], 3)
    assert matches.is_match.shape == (10, 0)
    assert matches.num_truths.tolist() == [[0, 0, 0], [1, 0, 0]]


def test_shares_inside_by_hand() -> None:
    shares = crowd_overlap(np.array([BOX, (3.0, 3.0, 3.0, 3.0)]), np.array([(5.0, 0.0, 20.0, 20.0)]))
    np.testing.assert_allclose(shares, [[0.5], [0.0]])


def test_pairs_take_the_greatest_first() -> None:
    shares = np.array([[0.6, 0.9], [0.7, 0.8], [0.2, 0.1]])
    assert greedy_pairs(shares, 0.5) == [(0, 1), (1, 0)]
