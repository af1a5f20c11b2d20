"""Bootstrap of AP: resampled AP against faster-coco-eval on repeated images; coverage, seeds and paired differences."""

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
def test_weighted_ap_equals_ap_of_repeated_images(seed: int, weights: list[int]) -> None:
    """All scores are distinct: equal scores are ordered by image, and repeated images have other positions."""
    predictions, truth = make_predictions(seed, 5)
    rng = np.random.default_rng(seed)
    predictions = [ImagePredictions(each.boxes, rng.random(len(each.scores)), each.class_ids) for each in predictions]
    repeated = [index for index, weight in enumerate(weights) for _ in range(weight)]
    weighted = weighted_average_precision(match_coco(predictions, truth, NUM_CLASSES), np.array([weights]))[0]
    expected = coco_average_precision([predictions[i] for i in repeated], [truth[i] for i in repeated], NUM_CLASSES)
    np.testing.assert_allclose(weighted, expected.table, atol=1e-12)


def test_interval_has_its_nominal_coverage() -> None:
    """Means of 30 normal values: the interval contains the true mean in about 95 % of cases (85 to 99.5 % allowed)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = rng.normal(size=30)
        resampled_means = rng.choice(sample, (500, 30)).mean(axis=1)
        low, high = bias_corrected_interval(resampled_means, float(sample.mean()))
        hits += low <= 0 <= high
    assert 170 <= hits <= 199


def test_bootstrap_is_seeded_and_its_interval_contains_the_estimate() -> None:
    predictions, truth = make_predictions(1, 40)
    matches = match_coco(predictions, truth, NUM_CLASSES)
    first, repeated, other_seed = (bootstrap_ap(matches, num_resamples=150, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["ap"], repeated["ap"])
    assert not np.array_equal(first["ap"], other_seed["ap"])
    ap = coco_average_precision(predictions, truth, NUM_CLASSES).ap
    low, high = bias_corrected_interval(first["ap"], ap)
    assert low < ap < high


def test_paired_difference_of_equal_detectors_is_zero_and_of_a_better_one_positive() -> None:
    predictions, truth = make_predictions(1, 40)
    worse = [each.select(np.arange(len(each.scores)) % 4 > 0) for each in predictions]
    before, after = (match_coco(each, truth, NUM_CLASSES) for each in (worse, predictions))
    assert paired_difference(after, after, num_resamples=100)["ap"] == (0, (0, 0))
    value, interval = paired_difference(before, after, num_resamples=300)["ap50"]
    expected = (
        coco_average_precision(predictions, truth, NUM_CLASSES).ap50
        - coco_average_precision(worse, truth, NUM_CLASSES).ap50
    )
    assert value == pytest.approx(expected)
    assert interval[0] < expected < interval[1]
