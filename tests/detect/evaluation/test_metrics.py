"""AP against pycocotools, the reference implementation, on synthetic detections; the rest against hand calculations."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from chromabox.detect.data.dataset import Sample
from chromabox.detect.evaluation.bootstrap import weighted_average_precision
from chromabox.detect.evaluation.metrics import (
    ImagePredictions,
    coco_average_precision,
    course_average_precision,
    detection_confusion_matrix,
    match_coco,
    match_course,
    precision_recall_curves,
)
from detection_fixtures import NUM_CLASSES, make_predictions


def make_truth(boxes: list[tuple[float, ...]], classes: list[int], crowd: list[bool] | None = None) -> Sample:
    crowd_mask = None if crowd is None else np.array(crowd, bool)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Sample(Path("a.png"), corners, np.array(classes, np.int64), (100, 100), "", crowd_mask)


def make_prediction(boxes: list[tuple[float, ...]], scores: list[float], classes: list[int]) -> ImagePredictions:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return ImagePredictions(corners, np.array(scores, np.float64), np.array(classes, np.int64))


def pycocotools_ap(predictions: list[ImagePredictions], truth: list[Sample]) -> np.ndarray:
    """Compute the AP of each threshold and class with pycocotools; NaN for classes without ground truth."""
    labels = [
        (index, box, category, crowd)
        for index, sample in enumerate(truth)
        for box, category, crowd in zip(
            sample.boxes.tolist(), sample.class_ids.tolist(), sample.is_crowd.tolist(), strict=True
        )
    ]
    results = [
        {
            "image_id": index,
            "category_id": category,
            "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for index, prediction in enumerate(predictions)
        for box, score, category in zip(
            prediction.boxes.tolist(), prediction.scores.tolist(), prediction.class_ids.tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": index} for index in range(len(truth))],
            "categories": [{"id": index} for index in range(NUM_CLASSES)],
            "annotations": [
                {
                    "id": number,
                    "image_id": index,
                    "category_id": category,
                    "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
                    "area": (box[2] - box[0]) * (box[3] - box[1]),
                    "iscrowd": int(crowd),
                }
                for number, (index, box, category, crowd) in enumerate(labels, 1)
            ],
        }
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    return np.where(precision.min(axis=1) < 0, np.nan, precision.mean(axis=1))


@pytest.mark.parametrize("seed", range(6))
def test_coco_ap_and_weighted_ap_equal_pycocotools(seed: int) -> None:
    predictions, truth = make_predictions(seed)
    expected = pycocotools_ap(predictions, truth)
    average_precision = coco_average_precision(predictions, truth, NUM_CLASSES)
    np.testing.assert_allclose(average_precision.table, expected, atol=1e-12)
    assert average_precision.ap == pytest.approx(np.nanmean(expected))
    assert average_precision.ap50 == pytest.approx(np.nanmean(expected[0]))
    unit_weights = np.ones((1, len(truth)), np.int64)
    weighted = weighted_average_precision(match_coco(predictions, truth, NUM_CLASSES), unit_weights)[0]
    np.testing.assert_allclose(weighted, expected, atol=1e-12)


def test_ap50_equals_hand_calculation() -> None:
    """Two boxes; true, false, true positive: precision 1 up to recall 0.5, then 2/3: (51 · 1 + 50 · 2/3) / 101."""
    truth = [make_truth([(0, 0, 10, 10), (50, 50, 70, 70)], [0, 0])]
    boxes = [(0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 70, 70)]
    predictions = [make_prediction(boxes, [0.9, 0.8, 0.7], [0, 0, 0])]
    assert coco_average_precision(predictions, truth, 1).ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    # Sampled at 0, 0.01, …: 1 up to 0.49, 2/3 from 0.5 to 0.99, and 0 at 1; trapezoidal rule in between.
    course = course_average_precision(match_course(predictions, truth, 1))
    assert course.ap50 == pytest.approx((49 + 5 / 6 + 49 * 2 / 3 + 1 / 3) / 100)


def test_coco_matches_by_score_and_course_by_overlap() -> None:
    """The detection with the higher score has the lower IoU with the box.

    At 0.5, COCO's rule gives true positive, false positive; the course's gives false positive, true positive.
    """
    truth = [make_truth([(0, 0, 10, 10)], [0])]
    predictions = [make_prediction([(0, 0, 10, 6), (0, 0, 10, 9)], [0.9, 0.8], [0, 0])]
    assert match_coco(predictions, truth, 1).is_match[0].tolist() == [True, False]
    assert match_course(predictions, truth, 1).is_match[0].tolist() == [False, True]
    # COCO matches each threshold separately: at 0.65, the IoU of the first detection is too low.
    assert match_coco(predictions, truth, 1).is_match[3].tolist() == [False, True]


def test_ap_of_perfect_and_of_empty_predictions() -> None:
    """The course's curve ends at precision 0: the trapezoidal rule gives a perfect detector 0.995."""
    _, truth = make_predictions(3, with_crowds=False)
    perfect = [ImagePredictions(sample.boxes, np.ones(len(sample.boxes)), sample.class_ids) for sample in truth]
    nothing = [make_prediction([], [], []) for _ in truth]
    assert coco_average_precision(perfect, truth, NUM_CLASSES).ap == pytest.approx(1)
    assert course_average_precision(match_course(perfect, truth, NUM_CLASSES)).ap == pytest.approx(0.995)
    assert coco_average_precision(nothing, truth, NUM_CLASSES).ap == 0
    assert course_average_precision(match_course(nothing, truth, NUM_CLASSES)).ap == 0
    empty = [make_truth([], [])] * 2
    assert np.isnan(coco_average_precision(nothing[:2], empty, NUM_CLASSES).ap)


def test_precision_recall_curves_equal_hand_calculation() -> None:
    """One class with two boxes: true positive at 0.91, false positive at 0.81, true positive at 0.71."""
    truth = [make_truth([(0, 0, 10, 10), (50, 50, 70, 70)], [1, 1])]
    boxes = [(0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 70, 70)]
    predictions = [make_prediction(boxes, [0.91, 0.81, 0.71], [1, 1, 1])]
    curves = precision_recall_curves(match_coco(predictions, truth, NUM_CLASSES), num_thresholds=11)
    assert curves.class_ids.tolist() == [1]
    np.testing.assert_allclose(curves.precision[0], [2 / 3] * 8 + [1 / 2, 1, 1])
    np.testing.assert_allclose(curves.recall[0], [1] * 8 + [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(curves.f1[0], [0.8] * 8 + [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(curves.precision_envelope[0], [1] * 51 + [2 / 3] * 50)
    assert curves.best_f1 == pytest.approx((0, 2 / 3, 1, 0.8))


def test_confusion_matrix_equals_hand_calculation() -> None:
    """A cat predicted as dog, a missed dog, a boat on the background; a detection below the threshold is ignored."""
    truth = [make_truth([(0, 0, 10, 10), (50, 50, 70, 70)], [0, 1])]
    boxes = [(0, 0, 10, 9), (80, 80, 90, 90), (50, 50, 70, 70)]
    table = detection_confusion_matrix([make_prediction(boxes, [0.9, 0.8, 0.1], [1, 2, 1])], truth, NUM_CLASSES)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 1] = expected[1, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(table, expected)
