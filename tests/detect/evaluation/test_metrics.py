"""AP against pycocotools, the reference program, on made detections; the rest against cases worked out by hand."""

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


def truth_of(boxes: list[tuple[float, ...]], classes: list[int], crowd: list[bool] | None = None) -> Sample:
    marks = None if crowd is None else np.array(crowd, bool)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Sample(Path("a.png"), corners, np.array(classes, np.int64), (100, 100), "", marks)


def predicted_of(boxes: list[tuple[float, ...]], scores: list[float], classes: list[int]) -> ImagePredictions:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return ImagePredictions(corners, np.array(scores, np.float64), np.array(classes, np.int64))


def reference(predicted: list[ImagePredictions], truth: list[Sample]) -> np.ndarray:
    """AP of each threshold and class by pycocotools; not-a-number for classes without boxes."""
    labels = [
        (index, box, category, crowd)
        for index, one in enumerate(truth)
        for box, category, crowd in zip(one.boxes.tolist(), one.class_ids.tolist(), one.is_crowd.tolist(), strict=True)
    ]
    results = [
        {
            "image_id": index,
            "category_id": category,
            "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for index, here in enumerate(predicted)
        for box, score, category in zip(here.boxes.tolist(), here.scores.tolist(), here.class_ids.tolist(), strict=True)
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
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]
    return np.where(precision.min(axis=1) < 0, np.nan, precision.mean(axis=1))


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_that_of_pycocotools(seed: int) -> None:
    predicted, truth = make_predictions(seed)
    expected = reference(predicted, truth)
    library = coco_average_precision(predicted, truth, NUM_CLASSES)
    np.testing.assert_allclose(library.table, expected, atol=1e-12)
    assert library.ap == pytest.approx(np.nanmean(expected))
    assert library.ap50 == pytest.approx(np.nanmean(expected[0]))
    once = np.ones((1, len(truth)), np.int64)
    own = weighted_average_precision(match_coco(predicted, truth, NUM_CLASSES), once)[0]
    np.testing.assert_allclose(own, expected, atol=1e-12)


def test_hand_worked_precision() -> None:
    """Two boxes; right, wrong, right: precision 1 up to recall 0.5, then 2/3: (51 · 1 + 50 · 2/3) / 101."""
    truth = [truth_of([(0, 0, 10, 10), (50, 50, 70, 70)], [0, 0])]
    boxes = [(0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 70, 70)]
    predicted = [predicted_of(boxes, [0.9, 0.8, 0.7], [0, 0, 0])]
    found = coco_average_precision(predicted, truth, 1)
    assert found.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    # Read at 0, 0.01, …: 1 up to 0.49, 2/3 from 0.5 up to 0.99, and 0 at 1; trapezoids between.
    course = course_average_precision(match_course(predicted, truth, 1))
    assert course.ap50 == pytest.approx((49 + 5 / 6 + 49 * 2 / 3 + 1 / 3) / 100)


def test_the_two_variants_differ_where_they_should() -> None:
    """The surer detection overlaps the box less: COCO's rule gives it the box, the course's gives it to the better one.

    At 0.5 COCO counts right, wrong; the course wrong, right, so precision 1/2.
    """
    truth = [truth_of([(0, 0, 10, 10)], [0])]
    predicted = [predicted_of([(0, 0, 10, 6), (0, 0, 10, 9)], [0.9, 0.8], [0, 0])]
    assert match_coco(predicted, truth, 1).is_match[0].tolist() == [True, False]
    assert match_course(predicted, truth, 1).is_match[0].tolist() == [False, True]
    # At 0.65 the surer one is not enough for COCO, whose matching is done for each threshold apart.
    assert match_coco(predicted, truth, 1).is_match[3].tolist() == [False, True]


def test_a_perfect_detector_and_one_that_finds_nothing() -> None:
    """The course's curve ends at precision 0, so its trapezoids give a perfect detector 0.995."""
    _, truth = make_predictions(3, with_crowds=False)
    perfect = [ImagePredictions(one.boxes, np.ones(len(one.boxes)), one.class_ids) for one in truth]
    nothing = [predicted_of([], [], []) for _ in truth]
    assert coco_average_precision(perfect, truth, NUM_CLASSES).ap == pytest.approx(1)
    assert course_average_precision(match_course(perfect, truth, NUM_CLASSES)).ap == pytest.approx(0.995)
    assert coco_average_precision(nothing, truth, NUM_CLASSES).ap == 0
    assert course_average_precision(match_course(nothing, truth, NUM_CLASSES)).ap == 0
    empty = [truth_of([], [])] * 2
    assert np.isnan(coco_average_precision(nothing[:2], empty, NUM_CLASSES).ap)


def test_curves_at_hand_worked_confidences() -> None:
    """One class: right at 0.91, wrong at 0.81, right at 0.71, of two boxes."""
    truth = [truth_of([(0, 0, 10, 10), (50, 50, 70, 70)], [1, 1])]
    boxes = [(0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 70, 70)]
    found = precision_recall_curves(
        match_coco([predicted_of(boxes, [0.91, 0.81, 0.71], [1, 1, 1])], truth, NUM_CLASSES), num_thresholds=11
    )
    assert found.class_ids.tolist() == [1]
    np.testing.assert_allclose(found.precision[0], [2 / 3] * 8 + [1 / 2, 1, 1])
    np.testing.assert_allclose(found.recall[0], [1] * 8 + [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(found.f1[0], [0.8] * 8 + [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(found.precision_envelope[0], [1] * 51 + [2 / 3] * 50)
    assert found.best_f1 == pytest.approx((0, 2 / 3, 1, 0.8))


def test_confusion_by_hand() -> None:
    """A cat taken for a dog, a dog missed, a boat found where nothing is, an unsure detection left out."""
    truth = [truth_of([(0, 0, 10, 10), (50, 50, 70, 70)], [0, 1])]
    boxes = [(0, 0, 10, 9), (80, 80, 90, 90), (50, 50, 70, 70)]
    table = detection_confusion_matrix([predicted_of(boxes, [0.9, 0.8, 0.1], [1, 2, 1])], truth, NUM_CLASSES)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 1] = expected[1, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(table, expected)
