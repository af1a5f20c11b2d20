"""Answers against numpy, shares of two nets' by hand, calibration against its definition and of known cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from chromabox.assignment.analysis.predictions import Predictions, calibrate, measure_agreement, predict
from chromabox.colour.data.datasets import encode_images
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.errors import ChromaboxError

RANDOM = np.random.default_rng(0)


def test_answers_are_read_off_the_probabilities() -> None:
    # More pictures than one forward pass takes.
    pictures = encode_images(RANDOM.integers(0, 256, (260, 3, 8, 8), dtype=np.uint8), load_palette("horse24"))
    torch.manual_seed(0)
    net = build_model("unet", num_filters=2).eval()
    with torch.no_grad():
        logits = net(pictures.grey).double().numpy()
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = predict(net, pictures)
    truth = pictures.labels.numpy()
    np.testing.assert_array_equal(found.labels, logits.argmax(1))
    np.testing.assert_allclose(found.confidence, probability.max(1), rtol=1e-5)
    np.testing.assert_array_equal(found.is_correct, logits.argmax(1) == truth)
    np.testing.assert_allclose(found.mean_probabilities, probability.mean((0, 2, 3)), rtol=1e-5)
    flat = probability.transpose(0, 2, 3, 1).reshape(-1, 24)
    assert found.loss.mean() == pytest.approx(log_loss(truth.ravel(), flat, labels=range(24)), rel=1e-5)


def given(labels: list[int], truth: list[int]) -> Predictions:
    said, true = (np.array(values, np.uint8).reshape(1, 1, -1) for values in (labels, truth))
    empty = np.zeros(said.shape, np.float32)
    return Predictions(said, empty, empty, said == true, np.ones(10))


def test_who_is_right_where_two_differ() -> None:
    truth = [0, 1, 2, 3, 4, 5, 6, 7]
    found = measure_agreement(given([0, 1, 2, 3, 9, 9, 9, 9], truth), given([0, 1, 9, 9, 4, 9, 8, 8], truth))
    assert (found.both_correct, found.only_first, found.only_second, found.both_wrong) == (2 / 8, 2 / 8, 1 / 8, 3 / 8)
    assert found.different == 5 / 8
    with pytest.raises(ChromaboxError, match="the same pictures"):
        measure_agreement(given([0], [0]), given([0, 1], [0, 1]))


def test_calibration_is_counted_band_by_band() -> None:
    confidence, right = RANDOM.random((3, 40, 20)), RANDOM.random((3, 40, 20)) < 0.4
    found = calibrate(confidence, right, num_bins=7)
    expected = 0.0
    for band in range(7):
        inside = (confidence >= band / 7) & (confidence < (band + 1) / 7)
        assert found.fraction[band] == pytest.approx(inside.mean())
        assert found.accuracy[band] == pytest.approx(right[inside].mean())
        assert found.confidence[band] == pytest.approx(confidence[inside].mean())
        expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found.error == pytest.approx(expected)
    assert found.overconfidence == pytest.approx(confidence.mean() - right.mean())


def test_calibration_of_known_cases() -> None:
    # As sure as it is right; always sure and right half the time; always sure and always right.
    confidence = np.repeat([0.25, 0.75], 400)
    honest = calibrate(confidence, np.arange(800) % 4 < confidence * 4)
    assert honest.error == pytest.approx(0)
    boaster = calibrate(np.ones(100), np.arange(100) % 2 == 0)
    assert (boaster.error, boaster.overconfidence) == (pytest.approx(0.5), pytest.approx(0.5))
    assert np.isnan(boaster.accuracy[:-1]).all()
    assert calibrate(np.ones(10), np.ones(10, bool)).error == 0
