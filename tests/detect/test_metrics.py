"""AP against pycocotools, the reference program, on made detections; the rest against cases worked out by hand."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from chromabox.detect.intervals import interval, paired_difference, resample, weighted_average_precision
from chromabox.detect.labelled import Labelled
from chromabox.detect.matching import Predicted, match_coco, match_course
from chromabox.detect.metrics import (
    coco_average_precision,
    confusion,
    course_average_precision,
    curves,
)

CLASSES = 3


def truth_of(boxes: list[tuple[float, ...]], classes: list[int], crowd: list[bool] | None = None) -> Labelled:
    marks = None if crowd is None else np.array(crowd, bool)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Labelled(Path("a.png"), corners, np.array(classes, np.int64), (100, 100), "", marks)


def predicted_of(boxes: list[tuple[float, ...]], scores: list[float], classes: list[int]) -> Predicted:
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    return Predicted(corners, np.array(scores, np.float64), np.array(classes, np.int64))


def made(seed: int, pictures: int = 12, *, crowds: bool = True) -> tuple[list[Predicted], list[Labelled]]:
    """Pictures with boxes on a coarse grid and detections near them; some scores and overlaps are equal."""
    rng = np.random.default_rng(seed)
    predicted, truth = [], []
    for _ in range(pictures):
        count = int(rng.integers(0, 7))
        corners = rng.integers(0, 12, (count, 2)) * 5.0
        boxes = np.hstack([corners, corners + rng.integers(2, 8, (count, 2)) * 5.0])
        classes = rng.integers(0, CLASSES, count)
        near = boxes[rng.integers(0, count, 2 * count)] if count else boxes
        shift = np.tile(rng.integers(-2, 3, (len(near), 2)) * 2.0, 2)
        kinds = (
            rng.integers(0, CLASSES, len(near)) if rng.random() < 0.3 else classes[rng.integers(0, count, len(near))]
        )
        scores = rng.integers(1, 20, len(near)) / 20
        predicted.append(Predicted(near + shift, scores, kinds.astype(np.int64)))
        marks = rng.random(count) < 0.15 if crowds else np.zeros(count, bool)
        truth.append(Labelled(Path("a.png"), boxes, classes.astype(np.int64), (100, 100), "", marks))
    return predicted, truth


def reference(predicted: list[Predicted], truth: list[Labelled]) -> np.ndarray:
    """AP of each threshold and class by pycocotools; not-a-number for classes without boxes."""
    labels = [
        (index, box, category, crowd)
        for index, one in enumerate(truth)
        for box, category, crowd in zip(one.boxes.tolist(), one.classes.tolist(), one.is_crowd.tolist(), strict=True)
    ]
    results = [
        {
            "image_id": index,
            "category_id": category,
            "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for index, here in enumerate(predicted)
        for box, score, category in zip(here.boxes.tolist(), here.scores.tolist(), here.classes.tolist(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": index} for index in range(len(truth))],
            "categories": [{"id": index} for index in range(CLASSES)],
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
    predicted, truth = made(seed)
    expected = reference(predicted, truth)
    library = coco_average_precision(predicted, truth, CLASSES)
    np.testing.assert_allclose(library.table, expected, atol=1e-12)
    assert library.ap == pytest.approx(np.nanmean(expected))
    assert library.ap50 == pytest.approx(np.nanmean(expected[0]))
    once = np.ones((1, len(truth)), np.int64)
    own = weighted_average_precision(match_coco(predicted, truth, CLASSES), once)[0]
    np.testing.assert_allclose(own, expected, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), weights=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weights_are_pictures_taken_so_many_times(seed: int, weights: list[int]) -> None:
    """Scores differ: among equal ones the order of the pictures decides, and repeated pictures stand elsewhere."""
    predicted, truth = made(seed, 5)
    rng = np.random.default_rng(seed)
    predicted = [Predicted(one.boxes, rng.random(len(one.scores)), one.classes) for one in predicted]
    repeated = [index for index, weight in enumerate(weights) for _ in range(weight)]
    own = weighted_average_precision(match_coco(predicted, truth, CLASSES), np.array([weights]))[0]
    again = coco_average_precision([predicted[i] for i in repeated], [truth[i] for i in repeated], CLASSES)
    np.testing.assert_allclose(own, again.table, atol=1e-12)


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
    assert match_coco(predicted, truth, 1).right[0].tolist() == [True, False]
    assert match_course(predicted, truth, 1).right[0].tolist() == [False, True]
    # At 0.65 the surer one is not enough for COCO, whose matching is done for each threshold apart.
    assert match_coco(predicted, truth, 1).right[3].tolist() == [False, True]


def test_a_perfect_detector_and_one_that_finds_nothing() -> None:
    """The course's curve ends at precision 0, so its trapezoids give a perfect detector 0.995."""
    _, truth = made(3, crowds=False)
    perfect = [Predicted(one.boxes, np.ones(len(one.boxes)), one.classes) for one in truth]
    nothing = [predicted_of([], [], []) for _ in truth]
    assert coco_average_precision(perfect, truth, CLASSES).ap == pytest.approx(1)
    assert course_average_precision(match_course(perfect, truth, CLASSES)).ap == pytest.approx(0.995)
    assert coco_average_precision(nothing, truth, CLASSES).ap == 0
    assert course_average_precision(match_course(nothing, truth, CLASSES)).ap == 0
    empty = [truth_of([], [])] * 2
    assert np.isnan(coco_average_precision(nothing[:2], empty, CLASSES).ap)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Means of 30 normal numbers: the interval holds the true mean in about 95 of 100 cases (85 to 99.5 here)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = rng.normal(size=30)
        draws = rng.choice(sample, (500, 30)).mean(axis=1)
        low, high = interval(draws, float(sample.mean()))
        hits += low <= 0 <= high
    assert 170 <= hits <= 199


def test_resampling_is_seeded_and_lies_around_the_measure() -> None:
    predicted, truth = made(1, 40)
    matches = match_coco(predicted, truth, CLASSES)
    first, again, other = (resample(matches, draws=150, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.ap, again.ap)
    assert not np.array_equal(first.ap, other.ap)
    ap = coco_average_precision(predicted, truth, CLASSES).ap
    low, high = interval(first.ap, ap)
    assert low < ap < high


def test_a_paired_difference_knows_what_is_common() -> None:
    predicted, truth = made(1, 40)
    worse = [one.take(np.arange(len(one.scores)) % 4 > 0) for one in predicted]
    before, after = (match_coco(one, truth, CLASSES) for one in (worse, predicted))
    same = paired_difference(after, after, draws=100)["ap"]
    assert (same.value, same.interval) == (0, (0, 0))
    better = paired_difference(before, after, draws=300)
    expected = (
        coco_average_precision(predicted, truth, CLASSES).ap50 - coco_average_precision(worse, truth, CLASSES).ap50
    )
    assert better["ap50"].value == pytest.approx(expected)
    assert better["ap50"].interval[0] < expected < better["ap50"].interval[1]


def test_curves_at_hand_worked_confidences() -> None:
    """One class: right at 0.91, wrong at 0.81, right at 0.71, of two boxes."""
    truth = [truth_of([(0, 0, 10, 10), (50, 50, 70, 70)], [1, 1])]
    boxes = [(0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 70, 70)]
    found = curves(match_coco([predicted_of(boxes, [0.91, 0.81, 0.71], [1, 1, 1])], truth, CLASSES), steps=11)
    assert found.categories.tolist() == [1]
    np.testing.assert_allclose(found.precision[0], [2 / 3] * 8 + [1 / 2, 1, 1])
    np.testing.assert_allclose(found.recall[0], [1] * 8 + [1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(found.f1[0], [0.8] * 8 + [1 / 2, 2 / 3, 0])
    np.testing.assert_allclose(found.ceiling[0], [1] * 51 + [2 / 3] * 50)
    assert found.best == pytest.approx((0, 2 / 3, 1, 0.8))


def test_confusion_by_hand() -> None:
    """A cat taken for a dog, a dog missed, a boat found where nothing is, an unsure detection left out."""
    truth = [truth_of([(0, 0, 10, 10), (50, 50, 70, 70)], [0, 1])]
    boxes = [(0, 0, 10, 9), (80, 80, 90, 90), (50, 50, 70, 70)]
    table = confusion([predicted_of(boxes, [0.9, 0.8, 0.1], [1, 2, 1])], truth, CLASSES)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 1] = expected[1, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(table, expected)
