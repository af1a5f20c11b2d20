"""Temporal smoothing of chroma: compared with SciPy's recursive filter, and on synthetic scenes with known results."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.signal import lfilter
from skimage import data

from chromabox.colour.chroma.recolour import lightness
from chromabox.colour.inference.video import TemporalSmoother, is_scene_cut
from chromabox.errors import UsageError

RNG = np.random.default_rng(5)
SCENE = RNG.uniform(10, 90, (12, 16)).astype(np.float32)
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "camera", "moon", "brick", "grass", "immunohistochemistry")


def smooth(chroma: np.ndarray, light: np.ndarray, smoothing: float = 0.8) -> np.ndarray:
    smoother = TemporalSmoother(smoothing)
    return np.stack([smoother(c, plane) for c, plane in zip(chroma, light, strict=True)])


def chroma_noise(frames: int = 40) -> np.ndarray:
    return RNG.normal(0, 10, (frames, *SCENE.shape, 2)).astype(np.float32)


def small_lightness(name: str) -> np.ndarray:
    """Return L* of one of scikit-image's images at 24 × 32 pixels."""
    pixels = Image.fromarray(getattr(data, name)()).convert("RGB").resize((32, 24), Image.Resampling.BOX)
    return lightness(np.asarray(pixels))


@pytest.mark.parametrize("smoothing", [0.5, 0.8, 0.95])
def test_static_scene_is_averaged_exponentially(smoothing: float) -> None:
    chroma = chroma_noise()
    result = smooth(chroma, np.stack([SCENE] * 40), smoothing)
    # scipy: y[t] = (1 - s) x[t] + s y[t-1], with the steady state of the first frame as the initial state.
    expected, _ = lfilter([1 - smoothing], [1, -smoothing], chroma, axis=0, zi=smoothing * chroma[:1])
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_flicker_of_noise_decreases_by_the_theoretical_factor() -> None:
    chroma = chroma_noise(300)
    result = smooth(chroma, np.stack([SCENE] * 300))[50:]
    # Exponential averaging of white noise reduces its differences by the factor w / sqrt(2 - w); w is 0.2.
    ratio = np.diff(result, axis=0).std() / np.diff(chroma, axis=0).std()
    assert ratio == pytest.approx(0.2 / np.sqrt(1.8), rel=0.03)


def test_noise_in_the_lightness_is_not_detected_as_movement() -> None:
    chroma = chroma_noise()
    light = SCENE + RNG.normal(0, 1.5, (40, *SCENE.shape)).astype(np.float32)
    np.testing.assert_allclose(smooth(chroma, light), smooth(chroma, np.stack([SCENE] * 40)), atol=0.5)


def test_flickering_exposure_is_not_detected_as_movement() -> None:
    chroma = chroma_noise()
    light = SCENE + RNG.uniform(-9, 9, (40, 1, 1)).astype(np.float32)
    np.testing.assert_allclose(smooth(chroma, light), smooth(chroma, np.stack([SCENE] * 40)), atol=1e-3)


def test_smoothing_of_0_leaves_frames_unchanged() -> None:
    chroma = chroma_noise(5)
    np.testing.assert_allclose(
        smooth(chroma, RNG.uniform(0, 100, (5, 12, 16)).astype(np.float32), 0.0), chroma, atol=1e-5
    )


def test_scene_cut_resets_the_average() -> None:
    chroma = np.zeros((10, 24, 32, 2), np.float32)
    chroma[:5] = 60
    light = np.stack([small_lightness("astronaut")] * 5 + [small_lightness("coffee")] * 5)
    smoother = TemporalSmoother()
    result = np.stack([smoother(c, plane) for c, plane in zip(chroma, light, strict=True)])
    np.testing.assert_array_equal(result, chroma)


@pytest.mark.parametrize("pair", [*combinations(NAMES, 2)], ids="-".join)
def test_change_to_another_image_is_a_scene_cut(pair: tuple[str, str]) -> None:
    assert is_scene_cut(small_lightness(pair[0]), small_lightness(pair[1]))


@pytest.mark.parametrize("name", NAMES)
def test_noise_flash_fade_and_small_movement_are_not_scene_cuts(name: str) -> None:
    light = small_lightness(name)
    assert not is_scene_cut(light, light + RNG.normal(0, 3, light.shape).astype(np.float32))
    assert not is_scene_cut(light, 100 - 0.4 * (100 - light))  # a flash
    assert not is_scene_cut(light, 0.3 * light)  # a fade
    if name not in ("brick", "grass"):  # their texture is as fine as the movement
        assert not is_scene_cut(light[:, 1:], light[:, :-1])


def test_change_from_black_is_a_scene_cut() -> None:
    assert is_scene_cut(np.zeros_like(SCENE), SCENE)


def test_moving_object_leaves_no_trail() -> None:
    """A light red square crosses a dark grey background by one position per frame."""
    frames, size = 30, 4
    chroma, light = np.zeros((frames, 16, 40, 2), np.float32), np.full((frames, 16, 40), 30, np.float32)
    for t in range(frames):
        chroma[t, 6 : 6 + size, t : t + size] = 70, 50
        light[t, 6 : 6 + size, t : t + size] = 70
    error = np.linalg.norm(smooth(chroma, light) - chroma, axis=-1)
    assert error[:, 7:9].max() < 1  # immediately in the middle rows, where the square's edge is straight
    # At the corners, the 3 × 3 mean includes static neighbours; three frames after the square, the colour is gone.
    for t in range(8, frames):
        assert error[t, :, : t - 3].max() < 0.05 * np.hypot(70, 50)


def test_movement_without_a_change_of_lightness_decays_by_the_smoothing_factor() -> None:
    chroma = np.zeros((12, 6, 6, 2), np.float32)
    chroma[0] = 50
    result = smooth(chroma, np.full((12, 6, 6), 50, np.float32))
    np.testing.assert_allclose(result[:, 3, 3, 0], 50 * 0.8 ** np.arange(12), rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, (6, 3, 4, 2), elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, (6, 3, 4), elements=st.floats(0, 100, width=32)),
    st.floats(0, 0.99),
)
def test_result_is_within_the_range_of_past_chroma(chroma: np.ndarray, light: np.ndarray, amount: float) -> None:
    result = smooth(chroma, light, amount)
    for t in range(6):
        assert (result[t] >= chroma[: t + 1].min(axis=0) - 1e-3).all()
        assert (result[t] <= chroma[: t + 1].max(axis=0) + 1e-3).all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 7.0, float("nan")])
def test_smoothing_out_of_range_is_rejected(smoothing: float) -> None:
    with pytest.raises(UsageError, match="smoothing is"):
        TemporalSmoother(smoothing)
