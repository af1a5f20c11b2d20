"""Small chroma maps at full size: Pillow's bilinear resampling is the rival, averages over cells the measure."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.color import rgb2lab
from skimage.measure import block_reduce

from chromabox.colour.chroma.recolour import downsample, fit_local_linear

RNG = np.random.default_rng(4)


def upsample(chroma: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The whole map at full size, [2, height, width]."""
    guided = fit_local_linear(chroma, downsample(light, *chroma.shape[:2]), *light.shape)
    return guided.rows(slice(0, len(light)), light)


def bilinear(chroma: np.ndarray, height: int, width: int) -> np.ndarray:
    """Linear interpolation between the cells' centres by numpy.interp, one axis after the other."""
    for axis, full in enumerate((height, width)):
        small = chroma.shape[axis]
        places = (np.arange(full) + 0.5) * small / full - 0.5
        chroma = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, chroma)
    return np.moveaxis(chroma, -1, 0)


def photograph() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """L* and the true a*, b* of a photograph, and its chroma averaged over squares of 16 pixels."""
    lab = rgb2lab(data.astronaut()).astype(np.float32)
    light, chroma = lab[..., 0].copy(), lab[..., 1:]
    return light, np.moveaxis(chroma, -1, 0), block_reduce(chroma, (16, 16, 1), np.mean).astype(np.float32)


def test_a_photograph_is_nearer_to_its_colours_than_by_bilinear_interpolation() -> None:
    light, truth, small = photograph()
    error, rival = (
        np.square(found - truth).mean() for found in (upsample(small, light), bilinear(small, *light.shape))
    )
    assert error < 0.8 * rival


def test_averages_over_the_cells_are_the_map_again() -> None:
    light, _, small = photograph()
    error, rival = (
        np.abs(np.moveaxis(block_reduce(found, (1, 16, 16), np.mean), 0, -1) - small).mean()
        for found in (upsample(small, light), bilinear(small, *light.shape))
    )
    assert error < 0.5 * rival


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(9, 40), st.integers(9, 40)),
    st.floats(-128, 128, width=32),
    st.floats(-128, 128, width=32),
)
def test_a_constant_map_comes_back_constant(small: tuple[int, int], full: tuple[int, int], a: float, b: float) -> None:
    chroma = np.broadcast_to(np.array([a, b], np.float32), (*small, 2))
    found = upsample(chroma, RNG.uniform(0, 100, full).astype(np.float32))
    np.testing.assert_array_equal(found[0], np.float32(a))
    np.testing.assert_array_equal(found[1], np.float32(b))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(9, 40), st.integers(9, 40)))
def test_nothing_exceeds_the_map(small: tuple[int, int], full: tuple[int, int]) -> None:
    chroma = RNG.uniform(-90, 90, (*small, 2)).astype(np.float32)
    found = upsample(chroma, RNG.uniform(0, 100, full).astype(np.float32))
    assert (found.min(axis=(1, 2)) >= chroma.min(axis=(0, 1)) - 1e-4).all()
    assert (found.max(axis=(1, 2)) <= chroma.max(axis=(0, 1)) + 1e-4).all()


@pytest.mark.parametrize("edge", [48, 51, 55])
def test_colour_ends_at_the_edge_of_the_lightness(edge: int) -> None:
    # Left of the edge dark and red, right of it light and blue; cells are 8 pixels wide and the edge may cut one.
    across = np.arange(96) < edge
    light = np.where(across, 30, 80).astype(np.float32)[None].repeat(64, 0)
    truth = np.where(across[:, None], [50, 20], [-20, -40]).astype(np.float32)[None].repeat(64, 0)
    small = block_reduce(truth, (8, 8, 1), np.mean).astype(np.float32)
    found = upsample(small, light)
    error = np.abs(found - np.moveaxis(truth, -1, 0))
    rival = np.abs(bilinear(small, 64, 96) - np.moveaxis(truth, -1, 0))
    assert error.max() < 0.3 * rival.max()
    assert error.mean() < 0.3 * rival.mean()
    # Most of the step, 70 in a*, happens within one pixel; by interpolation it takes eight.
    assert found[0, 32, edge - 1] - found[0, 32, edge] > 0.7 * 70


def test_where_lightness_is_flat_it_is_linear_interpolation_of_the_sharpened_map() -> None:
    chroma = np.zeros((3, 15, 2), np.float32)
    chroma[:, :, 0] = np.linspace(-30, 30, 15)  # a slope has nothing to be sharpened
    found = upsample(chroma, np.full((9, 150), 50, np.float32))
    np.testing.assert_allclose(found[0, :, 30:-30], bilinear(chroma, 9, 150)[0, :, 30:-30], atol=1e-4)


def test_a_map_of_the_pictures_size_is_left_as_it_is() -> None:
    chroma = RNG.uniform(-60, 60, (20, 31, 2)).astype(np.float32)
    found = upsample(chroma, RNG.uniform(0, 100, (20, 31)).astype(np.float32))
    np.testing.assert_allclose(np.moveaxis(found, 0, -1), chroma, atol=1e-4)


def test_rows_may_be_asked_for_in_any_bands() -> None:
    light = RNG.uniform(0, 100, (37, 23)).astype(np.float32)
    guided = fit_local_linear(RNG.uniform(-60, 60, (5, 4, 2)).astype(np.float32), downsample(light, 5, 4), 37, 23)
    whole = guided.rows(slice(0, 37), light)
    for rows in (1, 2, 5, 36):
        parts = [guided.rows(slice(top, min(top + rows, 37)), light[top : top + rows]) for top in range(0, 37, rows)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_shrinking_averages() -> None:
    plane = RNG.uniform(0, 100, (64, 96)).astype(np.float32)
    small = downsample(plane, 4, 6)
    assert small.shape == (4, 6)
    assert small.mean() == pytest.approx(plane.mean(), abs=0.5)
    assert small.std() < 0.15 * plane.std()
    np.testing.assert_allclose(downsample(np.full((7, 5), 42, np.float32), 3, 2), 42, rtol=1e-6)
