"""Vivid and dull colours compared with scikit-image's CIELAB, and fractions counted by hand."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from chromabox.assignment.analysis.pixels import Predictions, vivid_colour_stats, vivid_colours
from chromabox.colour.palette.io import load_palette

HORSE24 = load_palette("horse24")


def test_vivid_colours_have_the_larger_chroma() -> None:
    lab = rgb2lab(HORSE24.rgb[None] / 255)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    vivid = vivid_colours(HORSE24)
    assert vivid.sum() == 12
    assert chroma[vivid].min() > chroma[~vivid].max()


def test_fractions_are_counted() -> None:
    vivid = np.array([True, False, False, True])
    truth = np.array([[[0, 0, 0, 0, 3, 1, 1, 2]]], np.uint8)
    labels = np.array([[[0, 1, 1, 3, 3, 1, 2, 0]]], np.uint8)
    zeros = np.zeros(truth.shape, np.float32)
    predictions = Predictions(
        labels, zeros, zeros, labels == truth, mean_probabilities=np.array([0.25, 0.25, 0.125, 0.375])
    )
    stats = vivid_colour_stats(predictions, truth, vivid)
    assert (stats["true_fraction"], stats["predicted_fraction"], stats["mean_probability"]) == (5 / 8, 4 / 8, 0.625)
    assert (stats["vivid_accuracy"], stats["dull_accuracy"]) == (2 / 5, 1 / 3)
    assert np.isnan(vivid_colour_stats(predictions, np.ones_like(truth), vivid)["vivid_accuracy"])
    assert vivid_colour_stats(predictions, truth, np.ones(4, bool))["true_fraction"] == 1


def test_accuracy_without_dull_pixels_is_nan() -> None:
    truth = np.zeros((1, 1, 2), np.uint8)
    zeros = np.zeros(truth.shape, np.float32)
    predictions = Predictions(truth, zeros, zeros, truth == truth, mean_probabilities=np.ones(1))
    stats = vivid_colour_stats(predictions, truth, np.array([True]))
    assert stats["vivid_accuracy"] == pytest.approx(1)
    assert np.isnan(stats["dull_accuracy"])
