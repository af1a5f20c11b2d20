"""Tests of nearest colours; expected labels from SciPy's cKDTree and, for ties, from the NumPy formula in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import cKDTree

from chromabox.colour.palette.palette import Palette, assign_labels
from chromabox.errors import ChromaboxError

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (40_000, 3), dtype=np.uint8)


def brute_force(pixels, colours):
    """Return the labels by definition: the first of the lowest squared distances, in float64."""
    labels = [
        ((part[:, None] / 256 - colours.astype(np.float64)) ** 2).sum(-1).argmin(-1)
        for part in np.array_split(pixels.reshape(-1, 3), 1 + pixels.size // 30_000)
    ]
    return np.concatenate(labels).reshape(pixels.shape[:-1])


@pytest.mark.parametrize("k", [2, 8, 24, 100, 255, 256])
def test_labels_match_scipy_tree(k):
    colours = RNG.random((k, 3)).astype(np.float32)
    expected = cKDTree(colours.astype(np.float64)).query(PIXELS / 256)[1]
    palette = Palette(colours, "random")
    np.testing.assert_array_equal(assign_labels(PIXELS, palette), expected)
    np.testing.assert_array_equal(assign_labels(PIXELS[::-1], palette), expected[::-1])  # now with a filled table


def test_labels_of_whole_planes_of_the_colour_cube():
    """Compare one plane of the cube at a time with the formula; the palette has ties on whole planes of pixels."""
    colours = np.array([[100, 100, 100], [120, 100, 100], [110, 130, 90], [0, 0, 0]], np.float32) / 256
    grid = np.indices((256, 256), np.uint8)
    palette = Palette(colours, "lattice")
    for red in (0, 55, 105, 109, 110, 111, 255):
        pixels = np.stack([np.full((256, 256), red, np.uint8), *grid], -1)
        np.testing.assert_array_equal(assign_labels(pixels, palette), brute_force(pixels, colours))


# Difficult palettes: exact 8-bit values (exact ties), duplicates, and neighbours that differ by one rounding step.
LATTICE = st.integers(0, 255).map(lambda value: value / 256)
VALUES = st.one_of(
    LATTICE, st.floats(0, 1, width=32), st.sampled_from([0.25, np.nextafter(np.float32(0.25), 1).item()])
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=40),
    copies=st.lists(st.integers(0, 39), min_size=1, max_size=6),
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 50), st.just(3))),
)
def test_labels_match_formula_for_difficult_palettes(rows, copies, pixels):
    colours = np.array(rows + [rows[copy % len(rows)] for copy in copies], np.float32)
    on_palette = np.minimum(colours * 256, 255).astype(np.uint8)  # pixels with ties and near ties
    middles = ((on_palette.astype(int) + on_palette[::-1]) // 2).astype(np.uint8)
    pixels = np.concatenate([pixels, on_palette, middles])
    np.testing.assert_array_equal(assign_labels(pixels, Palette(colours, "drawn")), brute_force(pixels, colours))


def test_near_duplicate_colours_are_distinguished():
    colour = np.float32(0.4)
    colours = np.array(
        [[np.nextafter(colour, np.float32(1)), 0.4, 0.4], [colour, 0.4, 0.4], [0.9, 0.9, 0.9]], np.float32
    )
    pixels = RNG.integers(90, 116, (3000, 3), dtype=np.uint8)
    np.testing.assert_array_equal(assign_labels(pixels, Palette(colours, "near")), brute_force(pixels, colours))


def test_tie_goes_to_lower_index():
    colours = np.array([[0.75, 0, 0], [0.25, 0, 0], [0.25, 0, 0]], np.float32)
    palette = Palette(colours, "tie")
    assert assign_labels(np.array([[128, 0, 0], [64, 0, 0]], np.uint8), palette).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3,), 0),
        ((5, 3), -1),
        ((3, 5, 7), 0),
        ((4, 3, 5, 7), 1),
        ((2, 4, 5, 3), -1),
        ((1, 500, 400, 3), 3),
        ((0, 3), 1),
    ],
)
def test_memory_layouts(shape, axis):
    colours = RNG.random((9, 3)).astype(np.float32)
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    labels = assign_labels(pixels, Palette(colours, "layout"), axis)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, brute_force(np.moveaxis(pixels, axis, -1), colours))


def test_planar_images_in_several_chunks():
    images = RNG.integers(0, 256, (300, 3, 32, 32), dtype=np.uint8)
    colours = RNG.random((24, 3)).astype(np.float32)
    labels = assign_labels(images, Palette(colours, "chunks"), axis=1)
    np.testing.assert_array_equal(labels, brute_force(np.moveaxis(images, 1, -1), colours))


@pytest.mark.parametrize(("shape", "axis"), [((600, 3, 32, 32), 1), ((1, 900, 700, 3), -1), ((3, 900, 700), 0)])
def test_threads_give_the_same_labels(shape, axis):
    """Compare with lookups of parts too small for threads, which the tests above cover."""
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    colours = RNG.random((24, 3)).astype(np.float32)
    planes = np.moveaxis(pixels, axis, -1).reshape(-1, 3)
    single = Palette(colours, "single")
    expected = np.concatenate([assign_labels(part, single) for part in np.array_split(planes, 10)])
    np.testing.assert_array_equal(assign_labels(pixels, Palette(colours, "shared"), axis).reshape(-1), expected)


@pytest.mark.parametrize(("shape", "axis"), [((4, 4), -1), ((3, 4), -1), ((4, 3), 5), ((2, 3, 4, 4), -1)])
def test_pixels_without_three_channels_are_rejected(shape, axis):
    palette = Palette(np.array([[0, 0, 0], [0.5, 0.5, 0.5]], np.float32), "two")
    with pytest.raises(ChromaboxError, match="expected 3 channels"):
        assign_labels(np.zeros(shape, np.uint8), palette, axis)
