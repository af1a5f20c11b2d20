"""Tests of exclusion zones; expected distances from an exhaustive search of all edges in small steps."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from chromabox.colour.constraints.pixel_rules import ExclusionZones

RADIUS = 20.0
ANGLES = np.linspace(0, 2 * np.pi, 720, endpoint=False)


def brute_force(centres: np.ndarray, point: np.ndarray) -> float:
    """Return the distance of a point to the nearest point of any edge that is in no other disc."""
    edges = (centres[:, None] + RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)).reshape(-1, 2)
    free = (np.hypot(*(edges[:, None] - centres).transpose(2, 0, 1)) > RADIUS - 1e-6).all(1)
    return float(np.hypot(*(edges[free] - point).T).min())


chroma_points = st.tuples(st.floats(-60, 60), st.floats(-60, 60))


@settings(max_examples=40, deadline=None)
@given(st.lists(chroma_points, min_size=1, max_size=6, unique=True), st.integers(0, 2**32 - 1))
def test_push_out_moves_points_to_the_nearest_allowed_point(centres: list[tuple[float, float]], seed: int) -> None:
    zones = ExclusionZones(np.array(centres), RADIUS)
    points = np.random.default_rng(seed).uniform(-80, 80, (5, 8, 2)).astype(np.float32)
    points[0, : len(centres)] = centres[:8]
    pushed = zones.push_out(points)
    distance = np.hypot(*(pushed[..., None, :] - zones.centres).transpose(3, 0, 1, 2))
    assert distance.min() >= RADIUS - 1e-3
    before = np.hypot(*(points[..., None, :] - zones.centres).transpose(3, 0, 1, 2)).min(-1)
    np.testing.assert_array_equal(pushed[before >= RADIUS], points[before >= RADIUS])
    for point, moved in zip(points[before < RADIUS - 1e-3], pushed[before < RADIUS - 1e-3], strict=True):
        # The search samples the edges in steps of 0.2.
        assert np.hypot(*(moved - point)) <= brute_force(zones.centres, point) + 0.01


def test_centre_is_pushed_towards_positive_a() -> None:
    zones = ExclusionZones(np.zeros((1, 2)), RADIUS)
    np.testing.assert_allclose(zones.push_out(np.zeros((1, 2), np.float32)), [[RADIUS, 0]])


def test_point_between_two_discs_is_pushed_to_their_intersection() -> None:
    # Circles of radius 20 around (±12, 0) intersect at (0, ±16).
    zones = ExclusionZones(np.array([[-12.0, 0.0], [12.0, 0.0]]), RADIUS)
    np.testing.assert_allclose(zones.push_out(np.array([[0.0, 1.0]], np.float32)), [[0, 16]], atol=1e-5)


def test_without_discs_points_are_unchanged() -> None:
    points = np.ones((2, 3, 2), np.float32)
    assert ExclusionZones(np.zeros((0, 2)), RADIUS).push_out(points) is points
