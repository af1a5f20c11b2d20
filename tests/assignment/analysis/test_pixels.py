"""Predictions compared with NumPy, agreement counted by hand, calibration by its definition and for known cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from chromabox.assignment.analysis.pixels import Predictions, calibrate, measure_agreement, predict
from chromabox.colour.data.datasets import encode_images
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.errors import ChromaboxError

RANDOM = np.random.default_rng(0)


def test_predictions_follow_from_the_probabilities() -> None:
    # More images than in one forward pass.
    images = encode_images(RANDOM.integers(0, 256, (260, 3, 8, 8), dtype=np.uint8), load_palette("horse24"))
    torch.manual_seed(0)
    model = build_model("unet", num_filters=2).eval()
    with torch.no_grad():
        logits = model(images.grey).double().numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predictions = predict(model, images)
    truth = images.labels.numpy()
    np.testing.assert_array_equal(predictions.labels, logits.argmax(1))
    np.testing.assert_allclose(predictions.confidence, probabilities.max(1), rtol=1e-5)
    np.testing.assert_array_equal(predictions.is_correct, logits.argmax(1) == truth)
    np.testing.assert_allclose(predictions.mean_probabilities, probabilities.mean((0, 2, 3)), rtol=1e-5)
    flat = probabilities.transpose(0, 2, 3, 1).reshape(-1, 24)
    assert predictions.loss.mean() == pytest.approx(log_loss(truth.ravel(), flat, labels=range(24)), rel=1e-5)


def make_predictions(labels: list[int], truth: list[int]) -> Predictions:
    predicted, true = (np.array(values, np.uint8).reshape(1, 1, -1) for values in (labels, truth))
    empty = np.zeros(predicted.shape, np.float32)
    return Predictions(predicted, empty, empty, predicted == true, np.ones(10))


def test_agreement_is_counted() -> None:
    truth = [0, 1, 2, 3, 4, 5, 6, 7]
    first = make_predictions([0, 1, 2, 3, 9, 9, 9, 9], truth)
    second = make_predictions([0, 1, 9, 9, 4, 9, 8, 8], truth)
    agreement = measure_agreement(first, second)
    assert agreement == {
        "both_correct": 2 / 8, "both_wrong": 3 / 8, "only_first": 2 / 8, "only_second": 1 / 8, "different": 5 / 8
    }  # fmt: skip
    with pytest.raises(ChromaboxError, match="the same images"):
        measure_agreement(make_predictions([0], [0]), make_predictions([0, 1], [0, 1]))


def test_calibration_is_counted_by_bin() -> None:
    confidence, is_correct = RANDOM.random((3, 40, 20)), RANDOM.random((3, 40, 20)) < 0.4
    calibration = calibrate(confidence, is_correct, num_bins=7)
    expected = 0.0
    for index in range(7):
        inside = (confidence >= index / 7) & (confidence < (index + 1) / 7)
        assert calibration.fraction[index] == pytest.approx(inside.mean())
        assert calibration.accuracy[index] == pytest.approx(is_correct[inside].mean())
        assert calibration.confidence[index] == pytest.approx(confidence[inside].mean())
        expected += inside.mean() * abs(is_correct[inside].mean() - confidence[inside].mean())
    assert calibration.error == pytest.approx(expected)
    assert calibration.overconfidence == pytest.approx(confidence.mean() - is_correct.mean())


def test_calibration_of_known_cases() -> None:
    # Calibrated; confidence 1 with accuracy 1/2; confidence 1 with accuracy 1.
    confidence = np.repeat([0.25, 0.75], 400)
    calibrated = calibrate(confidence, np.arange(800) % 4 < confidence * 4)
    assert calibrated.error == pytest.approx(0)
    overconfident = calibrate(np.ones(100), np.arange(100) % 2 == 0)
    assert (overconfident.error, overconfident.overconfidence) == (pytest.approx(0.5), pytest.approx(0.5))
    assert np.isnan(overconfident.accuracy[:-1]).all()
    assert calibrate(np.ones(10), np.ones(10, bool)).error == 0
