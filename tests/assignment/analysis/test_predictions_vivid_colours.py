"""Vivid and dull colours against scikit-image's CIELab, and shares counted by hand."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from chromabox.assignment.analysis.predictions import Answers, vivid_colours, vividness
from chromabox.colour.palette.io import load_palette

HORSE24 = load_palette("horse24")


def test_the_vivid_half_has_the_greater_chroma() -> None:
    lab = rgb2lab(HORSE24.rgb[None] / 255)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    vivid = vivid_colours(HORSE24)
    assert vivid.sum() == 12
    assert chroma[vivid].min() > chroma[~vivid].max()


def test_shares_are_counted() -> None:
    vivid = np.array([True, False, False, True])
    truth = np.array([[[0, 0, 0, 0, 3, 1, 1, 2]]], np.uint8)
    labels = np.array([[[0, 1, 1, 3, 3, 1, 2, 0]]], np.uint8)
    zeros = np.zeros(truth.shape, np.float32)
    answers = Answers(labels, zeros, zeros, labels == truth, expected=np.array([0.25, 0.25, 0.125, 0.375]))
    found = vividness(answers, truth, vivid)
    assert (found.true, found.said, found.expected) == (5 / 8, 4 / 8, 0.625)
    assert (found.vivid_right, found.dull_right) == (2 / 5, 1 / 3)
    assert np.isnan(vividness(answers, np.ones_like(truth), vivid).vivid_right)
    assert vividness(answers, truth, np.ones(4, bool)).true == 1


def test_without_dull_pixels_there_is_no_share_of_them() -> None:
    truth = np.zeros((1, 1, 2), np.uint8)
    zeros = np.zeros(truth.shape, np.float32)
    answers = Answers(truth, zeros, zeros, truth == truth, expected=np.ones(1))
    found = vividness(answers, truth, np.array([True]))
    assert found.vivid_right == pytest.approx(1)
    assert np.isnan(found.dull_right)
