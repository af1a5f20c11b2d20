"""Tests of recolouring: lightness is preserved for any chroma; expected values from scikit-image's rgb2lab."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage import data
from skimage.color import rgb2lab

from chromabox.colour.chroma import recolour
from chromabox.colour.chroma.recolour import apply_chroma, lightness

RNG = np.random.default_rng(5)
SIZES = [(1, 1), (1, 20000), (20000, 1), (2, 3), (3, 200), (67, 41)]
MAPS = [(1, 1), (3, 5), (40, 60)]


def random_pixels(shape: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    """Return random pixels [height, width, 3]."""
    return RNG.integers(0, np.iinfo(dtype).max + 1, (*shape, 3), dtype=dtype)


def random_chroma(shape: tuple[int, int], amplitude: float = 60) -> np.ndarray:
    """Return random a* and b*, float32 [height, width, 2]."""
    return RNG.uniform(-amplitude, amplitude, (*shape, 2)).astype(np.float32)


def to_lab(pixels: np.ndarray) -> np.ndarray:
    """Return the CIELAB of 8- or 16-bit pixels from scikit-image, in float64."""
    return rgb2lab(pixels / np.iinfo(pixels.dtype).max)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (300, 200)])
def test_lightness_matches_scikit_image(dtype: type, shape: tuple[int, int]) -> None:
    pixels = random_pixels(shape, dtype)
    result = lightness(pixels)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, to_lab(pixels)[..., 0], atol=2e-3)


# Hypothesis generates mostly equal pixels, and chroma far outside any display's gamut.
@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))),
    arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(2)),
        elements=st.floats(-500, 500, width=32),
    ),
)
def test_lightness_is_preserved_within_rounding_for_any_chroma(pixels: np.ndarray, chroma: np.ndarray) -> None:
    result = apply_chroma(pixels, chroma)
    assert result.dtype == np.uint8
    assert result.shape == pixels.shape
    # A step of 1/255 in all three channels changes L* by at most 0.27, near black.
    assert np.abs(to_lab(result)[..., 0] - to_lab(pixels)[..., 0]).max() <= 0.3


@pytest.mark.parametrize("amplitude", [0, 20, 60, 127, 1000])
def test_mean_lightness_of_photograph_is_preserved(amplitude: float) -> None:
    pixels = data.astronaut()[::2, ::2]
    result = apply_chroma(pixels, random_chroma((16, 16), amplitude))
    assert np.abs(to_lab(result)[..., 0] - to_lab(pixels)[..., 0]).mean() <= 0.15


@pytest.mark.parametrize("amplitude", [20, 127])
def test_16_bit_lightness_is_preserved_more_accurately(amplitude: float) -> None:
    pixels = random_pixels((60, 50), np.uint16)
    result = apply_chroma(pixels, random_chroma((8, 7), amplitude))
    assert result.dtype == np.uint16
    difference = np.abs(to_lab(result)[..., 0] - to_lab(pixels)[..., 0])
    assert difference.mean() < 0.005
    # The maximum occurs where a channel is clipped within the gamut tolerance.
    assert difference.max() < 0.08


def test_16_bit_result_uses_many_levels() -> None:
    grey = np.linspace(20000, 40000, 3000).astype(np.uint16)[None, :, None].repeat(3, -1)
    result = apply_chroma(grey, np.full((2, 2, 2), 5, np.float32))
    assert len(np.unique(result[..., 0])) > 2500


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_with_zero_chroma_is_unchanged(dtype: type) -> None:
    grey = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1, 1).repeat(3, -1)
    np.testing.assert_array_equal(apply_chroma(grey, np.zeros((4, 9, 2), np.float32)), grey)


def test_grey_is_unchanged_where_the_map_has_no_chroma() -> None:
    grey = RNG.integers(0, 256, (80, 80, 1), dtype=np.uint8).repeat(3, -1)
    chroma = np.zeros((8, 8, 2), np.float32)
    chroma[:, :3] = 40
    result = apply_chroma(grey, chroma)
    np.testing.assert_array_equal(result[:, 50:], grey[:, 50:])
    assert (result[:, :20] != grey[:, :20]).any()


def test_constant_map_gives_constant_colour() -> None:
    grey = np.full((40, 50, 3), 130, np.uint8)
    result = to_lab(apply_chroma(grey, np.broadcast_to(np.array([20, -15], np.float32), (6, 5, 2))))
    np.testing.assert_allclose(result[..., 1:], np.broadcast_to([20, -15], (40, 50, 2)), atol=0.7)


def test_hue_is_preserved_where_chroma_is_reduced() -> None:
    grey = np.linspace(10, 245, 100).astype(np.uint16)[None, :, None].repeat(3, -1) * np.uint16(257)
    for hue in np.radians(np.arange(0, 360, 15)):
        requested = 150 * np.array([np.cos(hue), np.sin(hue)], np.float32)
        result = to_lab(apply_chroma(grey, requested[None, None]))[0]
        across = np.abs(result[:, 1] * np.sin(hue) - result[:, 2] * np.cos(hue))
        assert across.max() < 0.3
        assert (result[:, 1:] @ requested > 0).all()


def test_colour_does_not_bleed_across_an_edge() -> None:
    left = np.arange(96) < 48
    pixels = np.where(left, 60, 190).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    truth = np.where(left[:, None], [25, 20], [-12, -20]).astype(np.float32)[None].repeat(8, 0)
    small = truth.reshape(8, 12, 8, 2).mean(axis=2)
    result = to_lab(apply_chroma(pixels, small))[..., 1:]
    assert np.abs(result - truth[:1]).max() < 6


@pytest.mark.parametrize("small", MAPS)
@pytest.mark.parametrize("shape", SIZES)
def test_any_image_size_with_any_map_size(shape: tuple[int, int], small: tuple[int, int]) -> None:
    pixels = random_pixels(shape)
    result = apply_chroma(pixels, random_chroma(small))
    assert result.shape == pixels.shape
    assert np.abs(to_lab(result)[..., 0] - to_lab(pixels)[..., 0]).max() <= 0.3


def test_input_is_not_modified() -> None:
    pixels, chroma = random_pixels((30, 20)), random_chroma((4, 4))
    copies = pixels.copy(), chroma.copy()
    pixels.setflags(write=False)
    chroma.setflags(write=False)
    apply_chroma(pixels, chroma)
    np.testing.assert_array_equal(pixels, copies[0])
    np.testing.assert_array_equal(chroma, copies[1])
    # Views with negative strides give the same result as contiguous arrays.
    flipped = apply_chroma(pixels[::-1, ::-1], chroma[::-1, ::-1])
    np.testing.assert_array_equal(flipped, apply_chroma(pixels[::-1, ::-1].copy(), chroma[::-1, ::-1].copy()))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_result_is_independent_of_bands_and_threads(dtype: type, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromabox.runtime.parallel.num_cores", lambda: threads)
    pixels, chroma = random_pixels((20, 33), dtype), random_chroma((7, 6), 100)
    expected, light = apply_chroma(pixels, chroma), lightness(pixels)
    for band_pixels in (1, 100, 33 * 19):
        monkeypatch.setattr(recolour, "BAND_PIXELS", band_pixels)
        np.testing.assert_array_equal(apply_chroma(pixels, chroma), expected)
        np.testing.assert_array_equal(lightness(pixels), light)


def test_chroma_hook_changes_the_rows_of_its_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recolour, "BAND_PIXELS", 1)
    grey = RNG.integers(90, 160, (12, 20, 1), dtype=np.uint8).repeat(3, -1)
    bands = []

    def hook(chroma: np.ndarray, band: slice) -> np.ndarray:
        assert chroma.shape == (band.stop - band.start, 20, 2)
        assert chroma.dtype == np.float32
        bands.append(band)
        chroma = chroma.copy()
        chroma[:, 10:] = np.array([band.start, -10], np.float32)
        return chroma

    result = apply_chroma(grey, np.zeros((3, 4, 2), np.float32), chroma_hook=hook)
    assert sorted(row for band in bands for row in range(band.start, band.stop)) == list(range(12))
    np.testing.assert_array_equal(result[:, :10], grey[:, :10])
    result_lab = to_lab(result)[:, 10:]
    np.testing.assert_allclose(result_lab[..., 1], np.arange(12)[:, None].repeat(10, 1), atol=0.8)
    np.testing.assert_allclose(result_lab[..., 2], -10, atol=0.8)
    assert np.abs(result_lab[..., 0] - to_lab(grey)[:, 10:, 0]).max() <= 0.3


def test_chroma_of_hook_is_mapped_into_the_gamut() -> None:
    grey = random_pixels((9, 9))[..., :1].repeat(3, -1)
    result = apply_chroma(grey, np.zeros((2, 2, 2), np.float32), chroma_hook=lambda chroma, _: chroma + 300)
    assert np.abs(to_lab(result)[..., 0] - to_lab(grey)[..., 0]).max() <= 0.3


def test_exception_in_chroma_hook_is_propagated() -> None:
    def fail(chroma: np.ndarray, band: slice) -> np.ndarray:
        raise ValueError(f"rows {band.start}")

    with pytest.raises(ValueError, match="rows 0"):
        apply_chroma(random_pixels((4, 4)), random_chroma((2, 2)), chroma_hook=fail)
