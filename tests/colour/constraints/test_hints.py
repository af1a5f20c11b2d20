"""Tests of hints: reading and propagation; expected weights from analytic formulas and SciPy's dense solver."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import solve

from chromabox.colour.constraints.hints import (
    DECAY_LENGTH,
    EDGE_CHROMA_SIGMA,
    EDGE_LIGHTNESS_SIGMA,
    HALF_SATURATION,
    MAX_GROUPS,
    MIN_EDGE_WEIGHT,
    Hints,
    hints_from_pixels,
    propagate_hints,
    read_hints,
)
from chromabox.errors import ChromaboxError, UsageError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def layer(height: int, width: int, dots: dict[tuple[int, int], tuple[int, int, int]], alpha: int = 255) -> Image.Image:
    """Return a transparent image with single painted pixels."""
    pixels = np.zeros((height, width, 4), np.uint8)
    for position, colour in dots.items():
        pixels[position] = (*colour, alpha)
    return Image.fromarray(pixels)


def painted_pixels(hints: Hints) -> dict[tuple[int, int], tuple[int, int, int]]:
    return {
        (int(row), int(column)): tuple(hints.colours[int(hints.labels[row, column]) - 1].tolist())
        for row, column in np.argwhere(hints.labels)
    }


def test_painted_pixels_are_read_at_their_positions(tmp_path: Path) -> None:
    dots = {(0, 0): RED, (5, 7): BLUE, (5, 8): (1, 2, 3)}
    layer(20, 30, dots).save(tmp_path / "hints.png")
    assert painted_pixels(read_hints(tmp_path / "hints.png", (20, 30))) == dots


@pytest.mark.parametrize(("alpha", "is_painted"), [(127, False), (128, True)])
def test_alpha_threshold_of_painted_pixels(tmp_path: Path, alpha: int, is_painted: bool) -> None:
    image = layer(4, 4, {(1, 1): RED}, alpha)
    image.putpixel((3, 3), (*BLUE, 255))
    image.save(tmp_path / "hints.webp", lossless=True, exact=True)
    assert ((1, 1) in painted_pixels(read_hints(tmp_path / "hints.webp", (4, 4)))) == is_painted


def test_layers_of_other_sizes_are_resized(tmp_path: Path) -> None:
    layer(40, 60, {(39, 59): RED, (0, 0): BLUE}).save(tmp_path / "large.png")
    # Downsizing to a quarter keeps every dot.
    assert painted_pixels(read_hints(tmp_path / "large.png", (10, 15))) == {(9, 14): RED, (0, 0): BLUE}
    layer(10, 15, {(9, 14): RED}).save(tmp_path / "small.png")
    enlarged = read_hints(tmp_path / "small.png", (41, 60)).labels
    np.testing.assert_array_equal(np.argwhere(enlarged).min(0), (37, 56))
    assert enlarged.sum() == 4 * 4


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_resizing_keeps_every_painted_colour(
    height: int, width: int, full_height: int, full_width: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    mask = np.zeros((height, width), bool)
    mask[random.integers(height), random.integers(width)] = True
    hints = hints_from_pixels(pixels, mask, (full_height, full_width))
    assert hints.labels.shape == (full_height, full_width)
    assert set(painted_pixels(hints).values()) == {tuple(pixels[mask][0].tolist())}


def test_invalid_hints_are_rejected(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "blank.png")
    layer(8, 12, {(0, 0): RED}).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no image")
    for name, message, error in (
        ("opaque", "hints: .*opaque.png has no transparency", UsageError),
        ("blank", "hints: .*blank.png has no painted pixels", UsageError),
        ("wide", "hints: the size of .*wide.png is 12 × 8 pixels; expected the aspect ratio .*, 100 × 100", UsageError),
        ("text", "hints: .*text.png is not an image", ChromaboxError),
        ("missing", "missing.png", ChromaboxError),
    ):
        with pytest.raises(error, match=message):
            read_hints(tmp_path / f"{name}.png", (100, 100))


def hints_at(shape: tuple[int, int], dots: dict[tuple[int, int], tuple[int, int, int]]) -> Hints:
    layered = np.asarray(layer(*shape, dots))
    return hints_from_pixels(np.ascontiguousarray(layered[..., :3]), layered[..., 3] > 127, shape)


def saturated(probabilities: np.ndarray) -> np.ndarray:
    """Apply the documented saturation of the total probability."""
    return probabilities * (1 + HALF_SATURATION) / (probabilities.sum(0) + HALF_SATURATION)


def test_weight_in_a_uniform_region_decays_like_the_analytic_solution() -> None:
    # α(j) = cosh(θ(n − 1/2 − j)) / cosh(θ(n − 1/2)) solves α(j−1) − (2 + λ)α(j) + α(j+1) = 0 with 2 cosh θ = 2 + λ and
    # no flow out of the last cell, n − 1. Here the short side is one cell, and λ = 1/DECAY_LENGTH².
    length = 12
    weights, _ = propagate_hints(
        hints_at((1, length), {(0, 0): RED}), np.zeros((1, length), np.float32), np.zeros((1, length, 2), np.float32)
    )
    theta = np.arccosh(1 + 0.5 / DECAY_LENGTH**2)
    alpha = np.cosh(theta * (length - 0.5 - np.arange(length))) / np.cosh(theta * (length - 0.5))
    np.testing.assert_allclose(weights[0, 0], saturated(alpha[None])[0], atol=1e-6)


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_weights_solve_the_documented_system(height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    light = random.uniform(0, 10, (height, width)).astype(np.float32)
    chroma = random.uniform(-10, 10, (height, width, 2)).astype(np.float32)
    weights, colours = propagate_hints(
        hints_at((height, width), {(0, 0): RED, (height - 1, width - 1): BLUE}), light, chroma
    )
    cells = [(y, x) for y in range(height) for x in range(width)]
    matrix, right = np.zeros((len(cells), len(cells))), np.zeros((len(cells), 2))
    for i, (y, x) in enumerate(cells):
        matrix[i, i] = 1 / (DECAY_LENGTH * min(height, width)) ** 2
        for j, (v, u) in enumerate(cells):
            if abs(y - v) + abs(x - u) == 1:
                exponent = (light[y, x] - light[v, u]) ** 2 / (2 * EDGE_LIGHTNESS_SIGMA**2)
                exponent += ((chroma[y, x] - chroma[v, u]) ** 2).sum() / (2 * EDGE_CHROMA_SIGMA**2)
                edge = max(np.exp(-float(exponent)), MIN_EDGE_WEIGHT)
                matrix[i, i] += edge
                matrix[i, j] -= edge
    order = [RED, BLUE] if tuple(colours[0].tolist()) == RED else [BLUE, RED]
    for i, colour in ((0, RED), (len(cells) - 1, BLUE)):
        matrix[i] = np.eye(len(cells))[i]
        right[i, order.index(colour)] = 1
    probabilities = solve(matrix, right).T.reshape(2, height, width)
    np.testing.assert_allclose(weights, saturated(probabilities), atol=1e-5)
    assert weights.min() >= 0
    assert weights.sum(0).max() <= 1 + 1e-6


def test_propagation_stops_at_edges_of_lightness_and_predicted_chroma() -> None:
    shape = (40, 40)
    for edge in ("lightness", "chroma"):
        light, chroma = np.full(shape, 50, np.float32), np.zeros((*shape, 2), np.float32)
        (light if edge == "lightness" else chroma)[:, 20:] += 40
        weights = propagate_hints(hints_at(shape, {(20, 10): RED}), light, chroma)[0][0]
        assert weights[20, 10] == 1
        assert weights[:, :20].min() > 0.4, edge
        assert weights[:, 20:].max() < 0.01, edge


def test_many_colours_are_propagated_as_groups() -> None:
    random = np.random.default_rng(4)
    pixels = random.integers(0, 256, (30, 30, 3), np.uint8)
    hints = hints_from_pixels(pixels, np.ones((30, 30), bool), (30, 30))
    np.testing.assert_array_equal(hints.colours[hints.labels.astype(int) - 1], pixels)
    weights, colours = propagate_hints(hints, np.zeros((10, 10), np.float32), np.zeros((10, 10, 2), np.float32))
    assert len(colours) == MAX_GROUPS
    # Every cell is painted: one group has the full weight.
    np.testing.assert_array_equal(np.sort(weights, 0)[-1], 1)


def test_similar_colours_are_propagated_as_the_most_frequent_one() -> None:
    dots = {(0, x): (200, 30, 30) for x in range(5)} | {(1, 1): (202, 32, 31), (9, 9): BLUE}
    _, colours = propagate_hints(
        hints_at((10, 10), dots), np.zeros((10, 10), np.float32), np.zeros((10, 10, 2), np.float32)
    )
    assert {tuple(colour) for colour in colours.tolist()} == {(200, 30, 30), BLUE}
