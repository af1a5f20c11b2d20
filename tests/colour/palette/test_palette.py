"""Tests of palettes: construction, fitting, labels, decoding and drawing.

Expected values come from SciPy's cKDTree and softmax and scikit-learn's k-means.
"""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from scipy.special import softmax

from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import (
    Palette,
    annealed_mean,
    assign_labels,
    decode_labels,
    draw_palette,
    fit_palette,
    mask_logits,
    quantisation_error,
)
from chromabox.errors import ChromaboxError

THREE = np.array([[0, 0, 0], [0.5, 0.25, 0.125], [1, 1, 1]], np.float32)


def gradient_images(count=20, seed=3):
    """Return smooth colour gradients with noise: images with many colours, some of them frequent."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, 256, (2, count, 3, 1, 1))
    fraction = np.linspace(0, 1, 32)[:, None] * np.ones(32)
    clean = ends[0] * fraction + ends[1] * (1 - fraction)
    return np.clip(clean + rng.normal(0, 4, clean.shape), 0, 255).astype(np.uint8)


def test_import_loads_no_heavy_modules():
    heavy = {"torch", "sklearn", "skimage", "scipy", "PIL"}
    code = f"import sys, chromabox.colour.palette.palette; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        (THREE[:1], "has 1 colour; expected 2 to 256"),
        (np.zeros((257, 3), np.float32), "has 257 colours"),
        (THREE * np.nan, "values from nan to nan"),
        (THREE * 2, "from 0 to 2; expected values in .0, 1."),
        (THREE - 1, "from -1 to 0"),
    ],
)
def test_palette_with_invalid_colours_is_rejected(colours, message):
    with pytest.raises(ChromaboxError, match=f"palette bad: .*{message}"):
        Palette(colours, "bad")


def test_colours_are_read_only():
    colours = THREE.copy()
    palette = Palette(colours, "three")
    colours[:] = 0
    np.testing.assert_array_equal(palette.colours, THREE)
    with pytest.raises(ValueError, match="read-only"):
        palette.colours[0] = 1


def test_pickle_and_copy_omit_the_lookup_table():
    palette = Palette(THREE, "three")
    assign_labels(gradient_images(), palette, axis=1)
    stored = pickle.dumps(palette)
    assert len(stored) < 1000
    for restored in (pickle.loads(stored), copy.deepcopy(palette)):
        np.testing.assert_array_equal(restored.colours, THREE)
        assert restored.name == "three"


# --- fitting -----------------------------------------------------------------------------------------------


def test_fit_is_deterministic_and_sorted_darkest_first():
    first, second = (fit_palette(gradient_images(), 12, seed=5, axis=1) for _ in range(2))
    np.testing.assert_array_equal(first.colours, second.colours)
    luminance = first.colours @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luminance) >= 0).all()


def test_fit_has_lower_distance_than_scikit_learn_k_means():
    from sklearn.cluster import KMeans

    pixels = np.moveaxis(gradient_images(), 1, -1).reshape(-1, 3)
    reference = KMeans(12, n_init=3, random_state=0).fit(pixels / 256).cluster_centers_
    expected = cKDTree(reference).query(pixels / 256)[0].mean()
    assert quantisation_error(pixels, fit_palette(pixels, 12)) <= expected * 1.005


def test_fit_to_few_colours_returns_these_colours():
    colours = np.array([[0, 0, 0], [200, 30, 40], [10, 250, 90], [255, 255, 255]], np.uint8)
    palette = fit_palette(colours[np.arange(1000) % 4], 4)
    assert {tuple(row) for row in palette.rgb} == {tuple(row) for row in colours}
    assert quantisation_error(colours, palette) < 1e-6


@pytest.mark.parametrize(
    ("pixels", "k", "message"),
    [
        (
            np.zeros((10, 3), np.uint8),
            2,
            "the number of colours is 2; expected .* different colours in the images, 1",
        ),
        (gradient_images(), 1, "the number of colours is 1; expected 2 to 256"),
        (gradient_images(), 257, "the number of colours is 257"),
        (np.zeros((0, 3, 4, 4), np.uint8), 2, "no pixels"),
    ],
)
def test_fit_of_invalid_input_is_rejected(pixels, k, message):
    with pytest.raises(ChromaboxError, match=message):
        fit_palette(pixels, k, axis=1)


def test_quantisation_error_matches_scipy():
    colours = np.random.default_rng(0).random((24, 3)).astype(np.float32)
    expected = cKDTree(colours.astype(np.float64)).query(np.moveaxis(gradient_images(), 1, -1) / 256)[0].mean()
    assert quantisation_error(gradient_images(), Palette(colours, "random"), axis=1) == pytest.approx(
        expected, rel=1e-6
    )


# --- labels, logits and colours ----------------------------------------------------------------------------


def test_decode_labels_returns_rounded_colours():
    palette = Palette(THREE, "three")
    image = decode_labels(np.array([[0, 1], [2, 1]]), palette)
    assert image.tolist() == [[[0, 0, 0], [128, 64, 32]], [[255, 255, 255], [128, 64, 32]]]
    np.testing.assert_array_equal(assign_labels(image, palette), [[0, 1], [2, 1]])


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_palette_are_rejected(label):
    with pytest.raises(ChromaboxError, match="expected labels 0 to 2"):
        decode_labels(np.array([0, label]), Palette(THREE, "three"))


def logits(seed=0, scale=3.0):
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.05, 0.38, 1.0, 10.0])
def test_annealed_mean_matches_scipy_softmax(temperature):
    weight = softmax(logits().double().numpy() / temperature, axis=1)
    expected = np.einsum("bkhw,kc->bchw", weight, THREE)
    result = annealed_mean(logits(), Palette(THREE, "three"), temperature)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6])
def test_annealed_mean_near_temperature_zero_is_argmax(temperature):
    expected = THREE[logits().argmax(1).numpy()].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(annealed_mean(logits(), Palette(THREE, "three"), temperature), expected)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_invalid_temperature_is_rejected(temperature):
    with pytest.raises(ChromaboxError, match="temperature"):
        annealed_mean(logits(), Palette(THREE, "three"), temperature)


def test_logits_of_another_palette_are_rejected():
    with pytest.raises(ChromaboxError, match="palette two: expected 2 logits per pixel, got 3"):
        annealed_mean(logits(), Palette(THREE[:2], "two"))


@settings(max_examples=40, deadline=None)
@given(
    allowed=st.sets(st.integers(0, 2), min_size=1),
    temperature=st.sampled_from([0.0, 0.01, 0.38, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_masked_logits_decode_to_allowed_colours_only(allowed, temperature, dtype, seed):
    unmasked = logits(seed, scale=100).to(dtype)
    masked = mask_logits(unmasked, allowed)
    assert set(masked.argmax(1).unique().tolist()) <= allowed
    indices = sorted(allowed)
    assert torch.equal(masked[:, indices], unmasked[:, indices])
    colours = annealed_mean(masked, Palette(THREE, "three"), temperature)
    low, high = THREE[indices].min(0), THREE[indices].max(0)
    assert (colours >= torch.from_numpy(low)[:, None, None] - 1e-6).all()
    assert (colours <= torch.from_numpy(high)[:, None, None] + 1e-6).all()


@pytest.mark.parametrize(
    ("allowed", "message"),
    [([], r"colours \[\]: expected"), ([0, 3], r"\[0, 3\]: expected"), ([-1], r"\[-1\]: expected")],
)
def test_mask_logits_with_invalid_colours_is_rejected(allowed, message):
    with pytest.raises(ChromaboxError, match=message):
        mask_logits(logits(), allowed)


# --- drawing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [96, 40, 8])
def test_drawing_contains_every_colour(tile):
    palette = load_palette("horse24")
    image = draw_palette(palette, tile)
    drawn = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
    assert {tuple(rgb) for rgb in palette.rgb.tolist()} <= drawn
