"""Edges and distances compared with brute force over all pixels; bins by counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from chromabox.assignment.analysis.pixels import accuracy_by_edge_distance, edge_distances, grey_edges

SHAPE = (2, 5, 6)


@given(arrays(bool, SHAPE))
def test_distances_are_the_smallest_to_any_edge_of_the_image(edges: np.ndarray) -> None:
    expected = np.full(SHAPE, np.inf)
    for image, row, column in np.ndindex(SHAPE):
        for r, c in np.argwhere(edges[image]):
            expected[image, row, column] = min(expected[image, row, column], np.hypot(r - row, c - column))
    np.testing.assert_allclose(edge_distances(edges), expected)


def test_grey_edges_are_at_the_step() -> None:
    grey = np.zeros((1, 20, 20))
    grey[:, :, 10:] = 0.5
    edges = grey_edges(grey, edge_fraction=0.1)
    # The Sobel gradient is non-zero in the two columns next to the step.
    expected = np.zeros((1, 20, 20), bool)
    expected[:, :, 9:11] = True
    np.testing.assert_array_equal(grey_edges(grey, edge_fraction=0.2), expected)
    assert edges.sum() <= expected.sum()
    assert not grey_edges(np.full((2, 8, 8), 0.3)).any()


def test_edges_are_the_given_fraction_of_pixels() -> None:
    grey = np.random.default_rng(0).random((4, 30, 30))
    assert grey_edges(grey).mean() == pytest.approx(0.1, abs=1e-3)


def test_accuracy_is_counted_by_bin() -> None:
    distances = np.array([[[0.0, 0.0, 1.0], [1.4, 2.0, np.inf]]])
    is_correct = np.array([[[True, False, True], [True, False, True]]])
    result = accuracy_by_edge_distance(is_correct, distances, (0, 1, 2, 3, 4))
    np.testing.assert_allclose(result.accuracy, [0.5, 1.0, 0.0, np.nan])
    np.testing.assert_allclose(result.fraction, [2 / 6, 2 / 6, 1 / 6, 0])
    last = accuracy_by_edge_distance(is_correct, distances, (1, np.inf))
    assert last.fraction[0] == pytest.approx(3 / 6)  # An infinite distance is in no bin.
