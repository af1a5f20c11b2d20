"""Preparation of the lightness for the network, and colours of images; degraded images are made with NumPy and Pillow.

The photographs are those of scikit-image. Their lightness and the chroma of images are computed by its ``rgb2lab``.
"""

import numpy as np
import pytest
from PIL import Image
from skimage import data
from skimage.color import rgb2lab

from chromabox.colour.inference.network_input import (
    STRETCHED_RANGE,
    estimate_noise,
    is_in_colour,
    is_nearly_grey,
    prepare_lightness,
)

PHOTOGRAPHS = {
    "astronaut": np.asarray(Image.fromarray(data.astronaut()).resize((256, 256))),
    "cat": np.asarray(Image.fromarray(data.chelsea()).resize((320, 213))),
    "coffee": np.asarray(Image.fromarray(data.coffee()).resize((300, 200))),
}
LIGHTNESS = {name: rgb2lab(pixels)[..., 0].astype(np.float32) for name, pixels in PHOTOGRAPHS.items()}
#: Sepia tone of the specification Filter Effects Module Level 1 (W3C), section "sepia", with amount 1.
SEPIA = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
RNG = np.random.default_rng(11)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("sigma", [0.5, 5.0, 10.0])
def test_noise_estimate_is_the_standard_deviation_of_noise_on_a_gradient(sigma: float) -> None:
    rows, columns = np.indices((200, 240))
    gradient = 0.2 * rows + 0.1 * columns + 0.001 * rows**2
    noisy = (gradient + RNG.normal(0, sigma, gradient.shape)).astype(np.float32)
    assert estimate_noise(noisy) == pytest.approx(sigma, rel=0.03)


@pytest.mark.parametrize("name", LIGHTNESS)
def test_photographs_are_unchanged(name: str) -> None:
    np.testing.assert_array_equal(prepare_lightness(LIGHTNESS[name]), LIGHTNESS[name])


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 200), (64, 64)])
@pytest.mark.parametrize("value", [0.0, 40.0, 100.0])
def test_uniform_images_are_unchanged(shape: tuple[int, int], value: float) -> None:
    plane = np.full(shape, value, np.float32)
    np.testing.assert_array_equal(prepare_lightness(plane), plane)


@pytest.mark.parametrize("name", LIGHTNESS)
def test_one_bit_scan_becomes_continuous(name: str) -> None:
    light = LIGHTNESS[name]
    dithered = np.asarray(Image.fromarray((2.55 * light).astype(np.uint8)).convert("1"), np.float32) * 100
    prepared = prepare_lightness(dithered)
    assert prepared.shape == light.shape
    assert prepared.dtype == np.float32
    assert correlation(prepared, light) > 0.85 > correlation(dithered, light)


@pytest.mark.parametrize("period", [4, 5, 6, 7])
def test_dots_of_a_screen_disappear(period: int) -> None:
    rows, columns = np.indices((240, 300))
    wave = np.cos(np.sqrt(2) * np.pi / period * (rows + columns)) + np.cos(
        np.sqrt(2) * np.pi / period * (rows - columns)
    )
    prepared = prepare_lightness(np.where(wave > 0, 100, 0).astype(np.float32))
    assert prepared[24:-24, 24:-24].std() < 20  # The standard deviation of the dots is 50.


def test_dots_too_large_to_be_removed_are_unchanged() -> None:
    rows, columns = np.indices((100, 100)) // 4
    checks = ((rows + columns) % 2 * 100).astype(np.float32)
    light = np.kron(checks[::4, ::4], np.ones((9, 9), np.float32))
    np.testing.assert_array_equal(prepare_lightness(light), light)


def test_prepared_image_keeps_its_aspect_ratio() -> None:
    dots = RNG.choice(np.array([0, 100], np.float32), (600, 800))
    height, width = prepare_lightness(dots).shape
    assert width / height == pytest.approx(800 / 600, rel=0.01)


def test_faded_print_is_stretched_inside_its_border() -> None:
    faded = 35 + 0.35 * LIGHTNESS["astronaut"]
    framed = np.pad(faded, 16, constant_values=97)
    prepared = prepare_lightness(framed)
    inside = framed.shape[0] // 10
    assert np.percentile(prepared[inside:-inside, inside:-inside], (1, 99)) == pytest.approx(STRETCHED_RANGE, abs=0.1)
    assert correlation(prepared[16:-16, 16:-16], faded) > 0.99
    assert prepared.max() <= 100


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photograph_is_in_colour_and_its_toned_print_is_not(name: str) -> None:
    pixels = PHOTOGRAPHS[name]
    assert is_in_colour(pixels)
    assert is_in_colour(pixels.astype(np.uint16) * 257)
    toned = (pixels @ SEPIA.T).clip(0, 255).astype(np.uint8)
    noisy = (toned + RNG.normal(0, 2, toned.shape)).clip(0, 255).astype(np.uint8)
    grey = np.repeat(pixels[..., 1:2], 3, axis=-1)
    yellowed = (grey * np.array([1, 0.95, 0.8])).astype(np.uint8)
    assert [is_in_colour(image) for image in (toned, noisy, grey, yellowed)] == [False] * 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 4)])
def test_tiny_images_can_be_examined(shape: tuple[int, int]) -> None:
    grey = np.full((*shape, 3), 90, np.uint8)
    assert not is_in_colour(grey)
    assert is_nearly_grey(grey)


def test_colours_below_the_just_noticeable_difference_are_nearly_grey() -> None:
    pixels = np.full((40, 40, 3), (120, 120, 120), np.uint8)
    for blue in range(120, 90, -1):
        pixels[..., 2] = blue
        assert is_nearly_grey(pixels) == (np.hypot(*rgb2lab(pixels)[0, 0, 1:]) < 2.3)
