"""Tests of CIELAB and sRGB.

Expected values come from scikit-image and round trips; the gamut boundary is found by a fine scan of the scale.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab, xyz2rgb
from skimage.color.colorconv import rgb_from_xyz

from chromabox.colour.chroma import lab

RNG = np.random.default_rng(3)
COLOURS = st.lists(
    st.tuples(*(st.floats(low, high, width=32) for low, high in ((0, 100), (-180, 180), (-180, 180)))),
    min_size=1,
    max_size=40,
)


def planes(colours: list[tuple[float, float, float]] | np.ndarray) -> tuple[np.ndarray, ...]:
    """Return root, a* and b* of L*, a*, b*."""
    light, a, b = np.array(colours, np.float32).T
    return (light + 16) / 116, a.copy(), b.copy()


def map_to_gamut(colours: list[tuple[float, float, float]] | np.ndarray) -> np.ndarray:
    """Return encoded sRGB in [0, 1], float64, of colours mapped into the gamut."""
    root, a, b = planes(colours)
    scale = lab.max_chroma_scale(root, a, b)
    return lab.linear_to_srgb(lab.lab_to_linear_rgb(root, a * scale, b * scale), np.dtype(np.uint16)) / 65535


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_luminance_root_matches_scikit_image(dtype: type) -> None:
    highest = np.iinfo(dtype).max
    pixels = np.concatenate([RNG.integers(0, highest + 1, (4000, 3)), RNG.integers(0, 30, (500, 3))]).astype(dtype)
    expected = rgb2lab(pixels / highest)[:, 0]
    # scikit-image has more digits in its luminance weights: 0.212671 instead of 0.2126.
    np.testing.assert_allclose(116 * lab.luminance_root(pixels) - 16, expected, atol=2e-3)


def test_lightness_of_black_and_white_is_0_and_100() -> None:
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    np.testing.assert_allclose(116 * lab.luminance_root(pixels) - 16, [0, 100], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 3), min_size=1, max_size=60))
def test_in_gamut_colours_match_scikit_image_and_are_not_changed(colours: list[tuple[float, ...]]) -> None:
    expected = rgb2lab(np.array(colours, np.float64))
    root, a, b = planes(expected)
    rgb = lab.linear_to_srgb(lab.lab_to_linear_rgb(root, a, b), np.dtype(np.uint16)) / 65535
    np.testing.assert_allclose(rgb, lab2rgb(expected), atol=2e-3)
    assert lab.max_chroma_scale(root, a, b).min() > 0.99


def test_8_bit_table_is_the_rounded_transfer_function() -> None:
    linear = np.linspace(-0.1, 1.1, 60001, dtype=np.float32)
    # scikit-image applies the transfer function only inside xyz2rgb; its matrices do not change grey.
    grey = np.clip(linear, 0, 1)[:, None] * np.array([0.95047, 1, 1.08883])
    expected = xyz2rgb(grey).mean(axis=-1) * 255
    result = lab.linear_to_srgb(np.stack([linear] * 3), np.dtype(np.uint8))
    assert (result == result[:, :1]).all()
    assert np.abs(result[:, 0] - expected).max() < 0.53


def test_16_bit_values_are_the_rounded_transfer_function() -> None:
    levels = np.arange(65536)
    encoded = levels / 65535
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)
    result = lab.linear_to_srgb(np.stack([linear] * 3), np.dtype(np.uint16))
    np.testing.assert_array_equal(result, np.stack([levels] * 3, axis=-1))


@settings(max_examples=60, deadline=None)
@given(COLOURS)
def test_gamut_mapping_preserves_lightness_and_hue(colours: list[tuple[float, float, float]]) -> None:
    requested = np.array(colours)
    mapped = rgb2lab(map_to_gamut(colours))
    np.testing.assert_allclose(mapped[:, 0], requested[:, 0], atol=0.1)
    chroma, mapped_chroma = np.hypot(*requested[:, 1:].T), np.hypot(*mapped[:, 1:].T)
    assert (mapped_chroma <= chroma + 0.6).all()
    # Distance from the line of constant hue, in units of a* and b*.
    across = np.abs(mapped[:, 1] * requested[:, 2] - mapped[:, 2] * requested[:, 1]) / np.maximum(chroma, 1)
    assert across.max() < 0.6


def linear_rgb(root: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return linear sRGB, channels last, of colours, in float64 with scikit-image's matrix."""
    y = root.astype(np.float64)
    xyz = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = np.where(xyz > 6 / 29, xyz**3, 3 * (6 / 29) ** 2 * (xyz - 4 / 29)) * [0.95047, 1, 1.08883]
    return xyz @ rgb_from_xyz.T


def in_gamut(root: np.ndarray, a: np.ndarray, b: np.ndarray, scales: np.ndarray, tolerance: float) -> np.ndarray:
    """Return a mask [colours, scales] of the in-gamut combinations."""
    linear = linear_rgb(np.repeat(root[:, None], len(scales), 1), a[:, None] * scales, b[:, None] * scales)
    return ((linear >= -tolerance) & (linear <= 1 + tolerance)).all(axis=-1)


def largest(mask: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.where(mask.any(axis=1), scales[len(scales) - 1 - mask[:, ::-1].argmax(axis=1)], 0)


def test_max_chroma_scale_is_the_largest_in_gamut() -> None:
    number = 600
    light = np.concatenate([RNG.uniform(1, 99, number), RNG.uniform(88, 99, number)])
    # The second part covers the hues around yellow, where the gamut has gaps.
    hue = np.concatenate([RNG.uniform(0, 2 * np.pi, number), RNG.uniform(1.6, 2.1, number)])
    chroma = RNG.uniform(0, 180, len(light))
    root, a, b = planes(np.stack([light, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1))
    scales = np.linspace(0, 1, 1501)
    result = lab.max_chroma_scale(root, a, b)
    inside = in_gamut(root, a, b, scales, 0.3 * float(lab.GAMUT_TOLERANCE))
    nearly = in_gamut(root, a, b, scales, 1.1 * float(lab.GAMUT_TOLERANCE))
    assert (result >= largest(inside, scales) - 1e-3).all()
    assert (result <= largest(nearly, scales) + 1e-3).all()
    gaps = (~nearly & (scales < largest(inside, scales)[:, None])).any(axis=1)
    assert gaps.sum() >= 3, "no tested colour is beyond a gap"


def test_gamut_mapping_keeps_the_chroma_of_yellow() -> None:
    # Between grey and yellow, at this lightness, some colours are outside the gamut.
    yellow = rgb2lab(np.array([[1.0, 1.0, 0.0]]))
    np.testing.assert_allclose(rgb2lab(map_to_gamut(yellow)), yellow, atol=0.3)
    np.testing.assert_allclose(rgb2lab(map_to_gamut(yellow * [1, 1.4, 1.4])), yellow, atol=0.3)
    assert not in_gamut(*planes(yellow), np.linspace(0, 1, 101), 0.02).all()


@pytest.mark.parametrize(
    "boundary", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 0.5, 0), (0.2, 0, 0.1)]
)
def test_excess_chroma_is_reduced_to_the_gamut_boundary(boundary: tuple[float, float, float]) -> None:
    colour = rgb2lab(np.array([boundary], np.float64))
    result = rgb2lab(map_to_gamut(colour * [1, 1.3, 1.3]))
    np.testing.assert_allclose(result, colour, atol=0.5)


def test_zero_chroma_is_exactly_grey() -> None:
    linear = lab.lab_to_linear_rgb(*planes(np.stack([np.linspace(0, 100, 999), np.zeros(999), np.zeros(999)], axis=-1)))
    np.testing.assert_array_equal(linear[0], linear[1])
    np.testing.assert_array_equal(linear[0], linear[2])


IMAGES = RNG.integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
#: Greys, the corners of the RGB cube and values next to them, where the formulas change branches.
EDGES = np.stack(np.meshgrid([0, 1, 9, 10, 11, 254, 255], [0, 2, 255], [0, 3, 255], indexing="ij"), -1).astype(np.uint8)
GREYS = np.arange(256, dtype=np.uint8)[:, None].repeat(3, -1)


@pytest.mark.parametrize("pixels", [IMAGES, EDGES, GREYS, IMAGES[0, 0, 0]], ids=["random", "edges", "greys", "colour"])
def test_lab_of_8_bit_pixels_matches_scikit_image(pixels: np.ndarray) -> None:
    # The matrices differ in the sixth decimal (IEC 61966-2-1 and scikit-image), the white points in the fifth digit.
    np.testing.assert_allclose(lab.rgb_to_lab(pixels), rgb2lab(pixels), atol=0.02)


def test_greys_have_no_chroma_and_white_has_lightness_100() -> None:
    light, *chroma = lab.rgb_to_lab(GREYS).T
    assert not np.any(chroma)
    assert light[0] == pytest.approx(0, abs=1e-4)
    assert light[255] == pytest.approx(100, abs=1e-4)
    assert (np.diff(light) > 0).all()
    # Grey pixels beside coloured ones also have no chroma.
    mixed = np.concatenate([GREYS, IMAGES[0, 0]])
    np.testing.assert_array_equal(lab.rgb_to_lab(mixed)[:256], lab.rgb_to_lab(GREYS))


def test_lightness_of_both_conversions_is_equal() -> None:
    light = 116 * lab.luminance_root(IMAGES) - 16
    np.testing.assert_allclose(lab.rgb_to_lab(IMAGES)[..., 0], light, atol=2e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=50))
def test_lab_round_trip_restores_8_bit_values(colours: list[tuple[int, int, int]]) -> None:
    rgb = np.array(colours, np.uint8)
    np.testing.assert_array_equal(lab.lab_to_rgb(lab.rgb_to_lab(rgb)), rgb)


def test_lab_to_rgb_matches_scikit_image_in_gamut() -> None:
    in_gamut_lab = rgb2lab(RNG.random((40, 50, 3)))
    result = lab.lab_to_rgb(in_gamut_lab.astype(np.float32))
    assert result.dtype == np.uint8
    # Half of a level is the rounding.
    assert np.abs(result - 255 * lab2rgb(in_gamut_lab)).max() < 0.6


@settings(max_examples=100, deadline=None)
@given(COLOURS)
def test_out_of_gamut_colours_are_clipped(colours: list[tuple[float, float, float]]) -> None:
    linear = linear_rgb(*planes(colours)).clip(0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(lab.lab_to_rgb(np.array(colours, np.float32)) - expected).max() < 0.7


def test_lightness_to_grey_is_the_inverse_of_rgb_to_lab() -> None:
    light = lab.rgb_to_lab(GREYS)[:, 0]
    values = lab.lightness_to_grey(light)
    assert values.dtype == np.float32
    np.testing.assert_allclose(255 * values, np.arange(256), atol=2e-3)
    np.testing.assert_array_equal(np.rint(255 * values), np.arange(256))
    # The result has the shape of the input; values beyond black and white are clipped.
    np.testing.assert_array_equal(lab.lightness_to_grey(light.reshape(16, 16)), values.reshape(16, 16))
    np.testing.assert_allclose(lab.lightness_to_grey(np.array([-5, 105], np.float32)), [0, 1], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=50))
def test_lightness_to_grey_matches_scikit_image(light: list[float]) -> None:
    values = np.array(light, np.float32)
    expected = lab2rgb(np.stack([values, 0 * values, 0 * values], -1).astype(np.float64)).mean(-1)
    np.testing.assert_allclose(lab.lightness_to_grey(values), expected, atol=1e-4)
