"""Resampled AP is the library's AP of the resampled pictures; intervals cover, are seeded, and are paired."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.detect.evaluation.bootstrap import (
    bias_corrected_interval,
    bootstrap_ap,
    paired_difference,
    weighted_average_precision,
)
from chromabox.detect.evaluation.metrics import ImagePredictions, coco_average_precision, match_coco
from detection_fixtures import NUM_CLASSES, make_predictions


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), weights=st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_weights_are_pictures_taken_so_many_times(seed: int, weights: list[int]) -> None:
    """Scores differ: among equal ones the order of the pictures decides, and repeated pictures stand elsewhere."""
    predicted, truth = make_predictions(seed, 5)
    rng = np.random.default_rng(seed)
    predicted = [ImagePredictions(one.boxes, rng.random(len(one.scores)), one.class_ids) for one in predicted]
    repeated = [index for index, weight in enumerate(weights) for _ in range(weight)]
    own = weighted_average_precision(match_coco(predicted, truth, NUM_CLASSES), np.array([weights]))[0]
    again = coco_average_precision([predicted[i] for i in repeated], [truth[i] for i in repeated], NUM_CLASSES)
    np.testing.assert_allclose(own, again.table, atol=1e-12)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Means of 30 normal numbers: the interval holds the true mean in about 95 of 100 cases (85 to 99.5 here)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = rng.normal(size=30)
        draws = rng.choice(sample, (500, 30)).mean(axis=1)
        low, high = bias_corrected_interval(draws, float(sample.mean()))
        hits += low <= 0 <= high
    assert 170 <= hits <= 199


def test_resampling_is_seeded_and_lies_around_the_measure() -> None:
    predicted, truth = make_predictions(1, 40)
    matches = match_coco(predicted, truth, NUM_CLASSES)
    first, again, other = (bootstrap_ap(matches, num_resamples=150, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.ap, again.ap)
    assert not np.array_equal(first.ap, other.ap)
    ap = coco_average_precision(predicted, truth, NUM_CLASSES).ap
    low, high = bias_corrected_interval(first.ap, ap)
    assert low < ap < high


def test_a_paired_difference_knows_what_is_common() -> None:
    predicted, truth = make_predictions(1, 40)
    worse = [one.select(np.arange(len(one.scores)) % 4 > 0) for one in predicted]
    before, after = (match_coco(one, truth, NUM_CLASSES) for one in (worse, predicted))
    same = paired_difference(after, after, num_resamples=100)["ap"]
    assert (same.value, same.interval) == (0, (0, 0))
    better = paired_difference(before, after, num_resamples=300)
    expected = (
        coco_average_precision(predicted, truth, NUM_CLASSES).ap50
        - coco_average_precision(worse, truth, NUM_CLASSES).ap50
    )
    assert better["ap50"].value == pytest.approx(expected)
    assert better["ap50"].interval[0] < expected < better["ap50"].interval[1]
