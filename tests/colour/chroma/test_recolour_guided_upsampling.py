"""Tests of guided upsampling of chroma maps, and of resizing and averaging.

The baseline is bilinear interpolation with NumPy; averages over cells come from scikit-image. Resized and averaged
planes are compared with PyTorch's.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from skimage.color import rgb2lab
from skimage.measure import block_reduce
from torch.nn import functional as F

from chromabox.colour.chroma.recolour import RADIUS, box_filter, downsample, fit_local_linear, resize_planes

RNG = np.random.default_rng(4)


def upsample(chroma: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return the full-size map [2, height, width]."""
    guided = fit_local_linear(chroma, downsample(light, *chroma.shape[:2]), *light.shape)
    return guided.rows(slice(0, len(light)), light)


def bilinear(chroma: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate linearly between the cells' centres with numpy.interp, axis by axis."""
    for axis, full in enumerate((height, width)):
        small = chroma.shape[axis]
        positions = (np.arange(full) + 0.5) * small / full - 0.5
        chroma = np.apply_along_axis(lambda line, x=positions: np.interp(x, np.arange(len(line)), line), axis, chroma)
    return np.moveaxis(chroma, -1, 0)


def photograph() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return L* and the true a*, b* of a photograph, and its chroma averaged over squares of 16 × 16 pixels."""
    lab = rgb2lab(data.astronaut()).astype(np.float32)
    light, chroma = lab[..., 0].copy(), lab[..., 1:]
    return light, np.moveaxis(chroma, -1, 0), block_reduce(chroma, (16, 16, 1), np.mean).astype(np.float32)


def test_error_on_photograph_is_below_bilinear_interpolation() -> None:
    light, truth, small = photograph()
    error, baseline = (
        np.square(result - truth).mean() for result in (upsample(small, light), bilinear(small, *light.shape))
    )
    assert error < 0.8 * baseline


def test_cell_averages_are_the_map() -> None:
    light, _, small = photograph()
    error, baseline = (
        np.abs(np.moveaxis(block_reduce(result, (1, 16, 16), np.mean), 0, -1) - small).mean()
        for result in (upsample(small, light), bilinear(small, *light.shape))
    )
    assert error < 0.5 * baseline


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(9, 40), st.integers(9, 40)),
    st.floats(-128, 128, width=32),
    st.floats(-128, 128, width=32),
)
def test_constant_map_stays_constant(small: tuple[int, int], full: tuple[int, int], a: float, b: float) -> None:
    chroma = np.broadcast_to(np.array([a, b], np.float32), (*small, 2))
    result = upsample(chroma, RNG.uniform(0, 100, full).astype(np.float32))
    np.testing.assert_array_equal(result[0], np.float32(a))
    np.testing.assert_array_equal(result[1], np.float32(b))


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(9, 40), st.integers(9, 40)))
def test_result_stays_in_the_range_of_the_map(small: tuple[int, int], full: tuple[int, int]) -> None:
    chroma = RNG.uniform(-90, 90, (*small, 2)).astype(np.float32)
    result = upsample(chroma, RNG.uniform(0, 100, full).astype(np.float32))
    assert (result.min(axis=(1, 2)) >= chroma.min(axis=(0, 1)) - 1e-4).all()
    assert (result.max(axis=(1, 2)) <= chroma.max(axis=(0, 1)) + 1e-4).all()


@pytest.mark.parametrize("edge", [48, 51, 55])
def test_colour_ends_at_the_edge_of_lightness(edge: int) -> None:
    # Dark red left of the edge, light blue right of it; cells are 8 pixels wide and the edge may cut one.
    left = np.arange(96) < edge
    light = np.where(left, 30, 80).astype(np.float32)[None].repeat(64, 0)
    truth = np.where(left[:, None], [50, 20], [-20, -40]).astype(np.float32)[None].repeat(64, 0)
    small = block_reduce(truth, (8, 8, 1), np.mean).astype(np.float32)
    result = upsample(small, light)
    error = np.abs(result - np.moveaxis(truth, -1, 0))
    baseline = np.abs(bilinear(small, 64, 96) - np.moveaxis(truth, -1, 0))
    assert error.max() < 0.3 * baseline.max()
    assert error.mean() < 0.3 * baseline.mean()
    # Most of the step of 70 in a* is within one pixel; bilinear interpolation spreads it over eight.
    assert result[0, 32, edge - 1] - result[0, 32, edge] > 0.7 * 70


def test_constant_lightness_gives_bilinear_interpolation() -> None:
    chroma = np.zeros((3, 15, 2), np.float32)
    chroma[:, :, 0] = np.linspace(-30, 30, 15)  # sharpening does not change a linear gradient
    result = upsample(chroma, np.full((9, 150), 50, np.float32))
    np.testing.assert_allclose(result[0, :, 30:-30], bilinear(chroma, 9, 150)[0, :, 30:-30], atol=1e-4)


def test_map_of_image_size_is_unchanged() -> None:
    chroma = RNG.uniform(-60, 60, (20, 31, 2)).astype(np.float32)
    result = upsample(chroma, RNG.uniform(0, 100, (20, 31)).astype(np.float32))
    np.testing.assert_allclose(np.moveaxis(result, 0, -1), chroma, atol=1e-4)


def test_rows_in_any_bands_give_the_same_result() -> None:
    light = RNG.uniform(0, 100, (37, 23)).astype(np.float32)
    guided = fit_local_linear(RNG.uniform(-60, 60, (5, 4, 2)).astype(np.float32), downsample(light, 5, 4), 37, 23)
    expected = guided.rows(slice(0, 37), light)
    for rows in (1, 2, 5, 36):
        parts = [guided.rows(slice(top, min(top + rows, 37)), light[top : top + rows]) for top in range(0, 37, rows)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


def test_downsample_averages() -> None:
    plane = RNG.uniform(0, 100, (64, 96)).astype(np.float32)
    small = downsample(plane, 4, 6)
    assert small.shape == (4, 6)
    assert small.mean() == pytest.approx(plane.mean(), abs=0.5)
    assert small.std() < 0.15 * plane.std()
    np.testing.assert_allclose(downsample(np.full((7, 5), 42, np.float32), 3, 2), 42, rtol=1e-6)


shapes = st.tuples(*[st.integers(1, 12)] * 2)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3), shapes, st.tuples(*[st.integers(1, 40)] * 2), st.integers(0, 2**16))
def test_resized_planes_match_pytorch(count: int, shape: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    planes = np.random.default_rng(seed).uniform(-100, 100, (count, *shape)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(planes)[None], size, mode="bilinear", align_corners=False)[0]
    result = resize_planes(planes, *size)
    assert result.shape == (count, *size)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    np.testing.assert_array_equal(resize_planes(planes, *shape), planes)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), shapes, st.sampled_from([np.float32, np.float64]), st.integers(0, 2**16))
def test_box_filter_matches_pytorch(count: int, shape: tuple[int, int], dtype: type, seed: int) -> None:
    planes = np.random.default_rng(seed).uniform(-100, 100, (count, *shape)).astype(dtype)
    expected = F.avg_pool2d(
        torch.from_numpy(planes)[None], 2 * RADIUS + 1, stride=1, padding=RADIUS, count_include_pad=False
    )[0]
    result = box_filter(planes)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=1e-4)
