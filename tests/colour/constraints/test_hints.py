"""Hints: reading, and spreading measured against closed formulas and scipy's dense solver."""

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
    """A transparent picture with single pixels painted."""
    pixels = np.zeros((height, width, 4), np.uint8)
    for place, colour in dots.items():
        pixels[place] = (*colour, alpha)
    return Image.fromarray(pixels)


def painted_places(hints: Hints) -> dict[tuple[int, int], tuple[int, int, int]]:
    return {
        (int(row), int(column)): tuple(hints.colours[int(hints.labels[row, column]) - 1].tolist())
        for row, column in np.argwhere(hints.labels)
    }


def test_painted_pixels_are_found_where_they_are(tmp_path: Path) -> None:
    dots = {(0, 0): RED, (5, 7): BLUE, (5, 8): (1, 2, 3)}
    layer(20, 30, dots).save(tmp_path / "hints.png")
    assert painted_places(read_hints(tmp_path / "hints.png", (20, 30))) == dots


@pytest.mark.parametrize(("alpha", "counts"), [(127, False), (128, True)])
def test_half_transparent_paint(tmp_path: Path, alpha: int, counts: bool) -> None:
    picture = layer(4, 4, {(1, 1): RED}, alpha)
    picture.putpixel((3, 3), (*BLUE, 255))
    picture.save(tmp_path / "hints.webp", lossless=True, exact=True)
    assert ((1, 1) in painted_places(read_hints(tmp_path / "hints.webp", (4, 4)))) == counts


def test_larger_and_smaller_layers(tmp_path: Path) -> None:
    layer(40, 60, {(39, 59): RED, (0, 0): BLUE}).save(tmp_path / "large.png")
    # Shrunk to a quarter no dot is lost.
    assert painted_places(read_hints(tmp_path / "large.png", (10, 15))) == {(9, 14): RED, (0, 0): BLUE}
    layer(10, 15, {(9, 14): RED}).save(tmp_path / "small.png")
    enlarged = read_hints(tmp_path / "small.png", (41, 60)).labels
    np.testing.assert_array_equal(np.argwhere(enlarged).min(0), (37, 56))
    assert enlarged.sum() == 4 * 4


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_every_painted_pixel_keeps_a_place(height: int, width: int, tall: int, wide: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    painted = np.zeros((height, width), bool)
    painted[random.integers(height), random.integers(width)] = True
    hints = hints_from_pixels(pixels, painted, (tall, wide))
    assert hints.labels.shape == (tall, wide)
    assert set(painted_places(hints).values()) == {tuple(pixels[painted][0].tolist())}


def test_what_is_no_hints_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "opaque.png")
    Image.new("RGBA", (8, 8)).save(tmp_path / "blank.png")
    layer(8, 12, {(0, 0): RED}).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, message, kind in (
        ("opaque", "opaque.png: has no transparency", UsageError),
        ("blank", "blank.png: nothing is painted", UsageError),
        ("wide", "wide.png: has 12×8 pixels; the same proportions as the photograph's 100×100", UsageError),
        ("text", "text.png is not an image", ChromaboxError),
        ("missing", "missing.png", ChromaboxError),
    ):
        with pytest.raises(kind, match=message):
            read_hints(tmp_path / f"{name}.png", (100, 100))


def hints_at(shape: tuple[int, int], dots: dict[tuple[int, int], tuple[int, int, int]]) -> Hints:
    layered = np.asarray(layer(*shape, dots))
    return hints_from_pixels(np.ascontiguousarray(layered[..., :3]), layered[..., 3] > 127, shape)


def lifted(met: np.ndarray) -> np.ndarray:
    """The documented lift of what all hints hold together."""
    return met * (1 + HALF_SATURATION) / (met.sum(0) + HALF_SATURATION)


def test_on_even_ground_colour_fades_as_a_screened_chain() -> None:
    # α(j) = cosh(θ(n − 1/2 − j)) / cosh(θ(n − 1/2)) solves α(j−1) − (2 + λ)α(j) + α(j+1) = 0 with 2 cosh θ = 2 + λ and
    # no flow out of the last cell, n − 1 … here the short side is 1 cell, so that λ = 1/FADE².
    length = 12
    influence = propagate_hints(
        hints_at((1, length), {(0, 0): RED}), np.zeros((1, length), np.float32), np.zeros((1, length, 2), np.float32)
    )
    theta = np.arccosh(1 + 0.5 / DECAY_LENGTH**2)
    alpha = np.cosh(theta * (length - 0.5 - np.arange(length))) / np.cosh(theta * (length - 0.5))
    np.testing.assert_allclose(influence.weights[0, 0], lifted(alpha[None])[0], atol=1e-6)


@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_the_hold_solves_the_documented_system(height: int, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    light = random.uniform(0, 10, (height, width)).astype(np.float32)
    chroma = random.uniform(-10, 10, (height, width, 2)).astype(np.float32)
    found = propagate_hints(hints_at((height, width), {(0, 0): RED, (height - 1, width - 1): BLUE}), light, chroma)
    cells = [(y, x) for y in range(height) for x in range(width)]
    matrix, right = np.zeros((len(cells), len(cells))), np.zeros((len(cells), 2))
    for i, (y, x) in enumerate(cells):
        matrix[i, i] = 1 / (DECAY_LENGTH * min(height, width)) ** 2
        for j, (v, u) in enumerate(cells):
            if abs(y - v) + abs(x - u) == 1:
                steps = (light[y, x] - light[v, u]) ** 2 / (2 * EDGE_LIGHTNESS_SIGMA**2)
                steps += ((chroma[y, x] - chroma[v, u]) ** 2).sum() / (2 * EDGE_CHROMA_SIGMA**2)
                weight = max(np.exp(-float(steps)), MIN_EDGE_WEIGHT)
                matrix[i, i] += weight
                matrix[i, j] -= weight
    order = [RED, BLUE] if tuple(found.colours[0].tolist()) == RED else [BLUE, RED]
    for i, colour in ((0, RED), (len(cells) - 1, BLUE)):
        matrix[i] = np.eye(len(cells))[i]
        right[i, order.index(colour)] = 1
    met = solve(matrix, right).T.reshape(2, height, width)
    np.testing.assert_allclose(found.weights, lifted(met), atol=1e-5)
    assert found.weights.min() >= 0
    assert found.weights.sum(0).max() <= 1 + 1e-6


def test_colour_stops_at_edges_of_lightness_and_of_the_nets_opinion() -> None:
    shape = (40, 40)
    for kind in ("lightness", "chroma"):
        light, chroma = np.full(shape, 50, np.float32), np.zeros((*shape, 2), np.float32)
        (light if kind == "lightness" else chroma)[:, 20:] += 40
        hold = propagate_hints(hints_at(shape, {(20, 10): RED}), light, chroma).weights[0]
        assert hold[20, 10] == 1
        assert hold[:, :20].min() > 0.4, kind
        assert hold[:, 20:].max() < 0.01, kind


def test_many_colours_spread_as_few_but_stay_themselves() -> None:
    random = np.random.default_rng(4)
    pixels = random.integers(0, 256, (30, 30, 3), np.uint8)
    hints = hints_from_pixels(pixels, np.ones((30, 30), bool), (30, 30))
    np.testing.assert_array_equal(hints.colours[hints.labels.astype(int) - 1], pixels)
    influence = propagate_hints(hints, np.zeros((10, 10), np.float32), np.zeros((10, 10, 2), np.float32))
    assert len(influence.colours) == MAX_GROUPS
    # Every cell is painted: each is held wholly by one colour.
    np.testing.assert_array_equal(np.sort(influence.weights, 0)[-1], 1)


def test_near_equal_colours_spread_as_the_most_frequent_one() -> None:
    dots = {(0, x): (200, 30, 30) for x in range(5)} | {(1, 1): (202, 32, 31), (9, 9): BLUE}
    influence = propagate_hints(
        hints_at((10, 10), dots), np.zeros((10, 10), np.float32), np.zeros((10, 10, 2), np.float32)
    )
    assert {tuple(colour) for colour in influence.colours.tolist()} == {(200, 30, 30), BLUE}
