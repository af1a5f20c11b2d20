"""Chroma over time against scipy's recursive filter, and on synthetic scenes whose right answer is known."""

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


def smoothed(chroma: np.ndarray, light: np.ndarray, smoothing: float = 0.8) -> np.ndarray:
    smoother = TemporalSmoother(smoothing)
    return np.stack([smoother(c, plane) for c, plane in zip(chroma, light, strict=True)])


def noise(frames: int = 40) -> np.ndarray:
    return RNG.normal(0, 10, (frames, *SCENE.shape, 2)).astype(np.float32)


def small(name: str) -> np.ndarray:
    """L* of one of scikit-image's pictures on 24 × 32 places."""
    pixels = Image.fromarray(getattr(data, name)()).convert("RGB").resize((32, 24), Image.Resampling.BOX)
    return lightness(np.asarray(pixels))


@pytest.mark.parametrize("smoothing", [0.5, 0.8, 0.95])
def test_a_still_scene_is_averaged_exponentially(smoothing: float) -> None:
    chroma = noise()
    found = smoothed(chroma, np.stack([SCENE] * 40), smoothing)
    # scipy: y[t] = (1 - s) x[t] + s y[t-1], begun as if the first frame had lasted for ever.
    expected, _ = lfilter([1 - smoothing], [1, -smoothing], chroma, axis=0, zi=smoothing * chroma[:1])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_flicker_of_noise_falls_as_theory_says() -> None:
    chroma = noise(300)
    found = smoothed(chroma, np.stack([SCENE] * 300))[50:]
    # Differences of an exponential average of white noise: w / sqrt(2 - w) of those of the noise; w is 0.2.
    ratio = np.diff(found, axis=0).std() / np.diff(chroma, axis=0).std()
    assert ratio == pytest.approx(0.2 / np.sqrt(1.8), rel=0.03)


def test_noise_in_the_lightness_does_not_look_like_movement() -> None:
    chroma = noise()
    light = SCENE + RNG.normal(0, 1.5, (40, *SCENE.shape)).astype(np.float32)
    np.testing.assert_allclose(smoothed(chroma, light), smoothed(chroma, np.stack([SCENE] * 40)), atol=0.5)


def test_flickering_exposure_does_not_look_like_movement() -> None:
    chroma = noise()
    light = SCENE + RNG.uniform(-9, 9, (40, 1, 1)).astype(np.float32)
    np.testing.assert_allclose(smoothed(chroma, light), smoothed(chroma, np.stack([SCENE] * 40)), atol=1e-3)


def test_without_smoothing_every_frame_stands_for_itself() -> None:
    chroma = noise(5)
    np.testing.assert_allclose(
        smoothed(chroma, RNG.uniform(0, 100, (5, 12, 16)).astype(np.float32), 0.0), chroma, atol=1e-5
    )


def test_a_cut_lets_no_colour_through() -> None:
    chroma = np.zeros((10, 24, 32, 2), np.float32)
    chroma[:5] = 60
    light = np.stack([small("astronaut")] * 5 + [small("coffee")] * 5)
    smoother = TemporalSmoother()
    found = np.stack([smoother(c, plane) for c, plane in zip(chroma, light, strict=True)])
    np.testing.assert_array_equal(found, chroma)
    assert smoother.num_cuts == 1


@pytest.mark.parametrize("pair", [*combinations(NAMES, 2)], ids="-".join)
def test_two_pictures_are_two_scenes(pair: tuple[str, str]) -> None:
    assert is_scene_cut(small(pair[0]), small(pair[1]))


@pytest.mark.parametrize("name", NAMES)
def test_noise_flashes_fades_and_small_steps_are_no_cuts(name: str) -> None:
    light = small(name)
    assert not is_scene_cut(light, light + RNG.normal(0, 3, light.shape).astype(np.float32))
    assert not is_scene_cut(light, 100 - 0.4 * (100 - light))  # a flash
    assert not is_scene_cut(light, 0.3 * light)  # a fade
    if name not in ("brick", "grass"):  # whose grain is as fine as the step
        assert not is_scene_cut(light[:, 1:], light[:, :-1])


def test_black_and_then_a_scene_is_a_cut() -> None:
    assert is_scene_cut(np.zeros_like(SCENE), SCENE)


def test_a_moving_thing_leaves_no_trail() -> None:
    """A light red square crosses a dark grey ground, one place a frame."""
    frames, size = 30, 4
    chroma, light = np.zeros((frames, 16, 40, 2), np.float32), np.full((frames, 16, 40), 30, np.float32)
    for t in range(frames):
        chroma[t, 6 : 6 + size, t : t + size] = 70, 50
        light[t, 6 : 6 + size, t : t + size] = 70
    error = np.linalg.norm(smoothed(chroma, light) - chroma, axis=-1)
    assert error[:, 7:9].max() < 1  # the middle rows, where the square's edge is straight, at once
    # At the corners the change is shared with still neighbours; three frames after the square has gone, it is over.
    for t in range(8, frames):
        assert error[t, :, : t - 3].max() < 0.05 * np.hypot(70, 50)


def test_what_moves_without_a_change_of_lightness_fades_by_the_stated_factor() -> None:
    chroma = np.zeros((12, 6, 6, 2), np.float32)
    chroma[0] = 50
    found = smoothed(chroma, np.full((12, 6, 6), 50, np.float32))
    np.testing.assert_allclose(found[:, 3, 3, 0], 50 * 0.8 ** np.arange(12), rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float32, (6, 3, 4, 2), elements=st.floats(-100, 100, width=32)),
    arrays(np.float32, (6, 3, 4), elements=st.floats(0, 100, width=32)),
    st.floats(0, 0.99),
)
def test_no_colour_is_made_that_was_not_between_those_seen(
    chroma: np.ndarray, light: np.ndarray, amount: float
) -> None:
    found = smoothed(chroma, light, amount)
    for t in range(6):
        assert (found[t] >= chroma[: t + 1].min(axis=0) - 1e-3).all()
        assert (found[t] <= chroma[: t + 1].max(axis=0) + 1e-3).all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 7.0, float("nan")])
def test_smoothing_out_of_range_is_refused(smoothing: float) -> None:
    with pytest.raises(UsageError, match="smoothing is"):
        TemporalSmoother(smoothing)
