"""Palettes: made, fitted, read, written, drawn, and turned back into colours."""

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


def pictures(count=20, seed=3):
    """Smooth colour gradients with noise: pictures with many colours, some frequent."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, 256, (2, count, 3, 1, 1))
    share = np.linspace(0, 1, 32)[:, None] * np.ones(32)
    clean = ends[0] * share + ends[1] * (1 - share)
    return np.clip(clean + rng.normal(0, 4, clean.shape), 0, 255).astype(np.uint8)


def test_importing_it_imports_nothing_heavy():
    heavy = {"torch", "sklearn", "skimage", "scipy", "PIL"}
    code = f"import sys, chromabox.colour.palette.palette; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("colours", "says"),
    [
        (THREE[:1], "has 1 colour; a palette has 2 to 256"),
        (np.zeros((257, 3), np.float32), "has 257 colours"),
        (THREE * np.nan, "not finite"),
        (THREE * 2, "from 0 to 2; a palette's lie in .0, 1."),
        (THREE - 1, "from -1 to 0"),
    ],
)
def test_bad_colours_are_refused_where_the_palette_is_made(colours, says):
    with pytest.raises(ChromaboxError, match=f"palette bad: .*{says}"):
        Palette(colours, "bad")


def test_colours_cannot_change_under_the_table():
    colours = THREE.copy()
    palette = Palette(colours, "three")
    colours[:] = 0
    np.testing.assert_array_equal(palette.colours, THREE)
    with pytest.raises(ValueError, match="read-only"):
        palette.colours[0] = 1


def test_it_travels_without_its_table():
    palette = Palette(THREE, "three")
    assign_labels(pictures(), palette, axis=1)
    stored = pickle.dumps(palette)
    assert len(stored) < 1000
    for other in (pickle.loads(stored), copy.deepcopy(palette)):
        np.testing.assert_array_equal(other.colours, THREE)
        assert other.name == "three"


# --- fitting -----------------------------------------------------------------------------------------------


def test_fit_is_repeatable_and_darkest_first():
    first, second = (fit_palette(pictures(), 12, seed=5, axis=1) for _ in range(2))
    np.testing.assert_array_equal(first.colours, second.colours)
    luminance = first.colours @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luminance) >= 0).all()


def test_fit_comes_nearer_than_scikit_learns_k_means():
    from sklearn.cluster import KMeans

    pixels = np.moveaxis(pictures(), 1, -1).reshape(-1, 3)
    theirs = KMeans(12, n_init=3, random_state=0).fit(pixels / 256).cluster_centers_
    expected = cKDTree(theirs).query(pixels / 256)[0].mean()
    assert quantisation_error(pixels, fit_palette(pixels, 12)) <= expected * 1.005


def test_fit_finds_the_colours_that_are_there():
    colours = np.array([[0, 0, 0], [200, 30, 40], [10, 250, 90], [255, 255, 255]], np.uint8)
    palette = fit_palette(colours[np.arange(1000) % 4], 4)
    assert {tuple(row) for row in palette.rgb} == {tuple(row) for row in colours}
    assert quantisation_error(colours, palette) < 1e-6


@pytest.mark.parametrize(
    ("pixels", "k", "says"),
    [
        (np.zeros((10, 3), np.uint8), 2, "2 colours asked for, but the pictures have only 1"),
        (pictures(), 1, "1 colours asked for; a palette has 2 to 256"),
        (pictures(), 257, "257 colours asked for"),
        (np.zeros((0, 3, 4, 4), np.uint8), 2, "no pixels"),
    ],
)
def test_fit_refuses(pixels, k, says):
    with pytest.raises(ChromaboxError, match=says):
        fit_palette(pixels, k, axis=1)


def test_mean_distance_is_scipys():
    colours = np.random.default_rng(0).random((24, 3)).astype(np.float32)
    expected = cKDTree(colours.astype(np.float64)).query(np.moveaxis(pictures(), 1, -1) / 256)[0].mean()
    assert quantisation_error(pictures(), Palette(colours, "random"), axis=1) == pytest.approx(expected, rel=1e-6)


# --- labels, logits and colours ----------------------------------------------------------------------------


def test_labels_become_the_rounded_colours():
    palette = Palette(THREE, "three")
    picture = decode_labels(np.array([[0, 1], [2, 1]]), palette)
    assert picture.tolist() == [[[0, 0, 0], [128, 64, 32]], [[255, 255, 255], [128, 64, 32]]]
    np.testing.assert_array_equal(assign_labels(picture, palette), [[0, 1], [2, 1]])


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_palette_are_refused(label):
    with pytest.raises(ChromaboxError, match="has the labels 0 to 2"):
        decode_labels(np.array([0, label]), Palette(THREE, "three"))


def logits(seed=0, scale=3.0):
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("temperature", [0.05, 0.38, 1.0, 10.0])
def test_annealed_mean_is_scipys_softmax(temperature):
    weight = softmax(logits().double().numpy() / temperature, axis=1)
    expected = np.einsum("bkhw,kc->bchw", weight, THREE)
    found = annealed_mean(logits(), Palette(THREE, "three"), temperature)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6])
def test_annealed_mean_without_temperature_is_argmax(temperature):
    expected = THREE[logits().argmax(1).numpy()].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(annealed_mean(logits(), Palette(THREE, "three"), temperature), expected)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_strange_temperatures_are_refused(temperature):
    with pytest.raises(ChromaboxError, match="temperature"):
        annealed_mean(logits(), Palette(THREE, "three"), temperature)


def test_logits_of_another_palette_are_refused():
    with pytest.raises(ChromaboxError, match="palette two: has 2 colours, the logits 3"):
        annealed_mean(logits(), Palette(THREE[:2], "two"))


@settings(max_examples=40, deadline=None)
@given(
    allowed=st.sets(st.integers(0, 2), min_size=1),
    temperature=st.sampled_from([0.0, 0.01, 0.38, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_constrain_is_a_guarantee(allowed, temperature, dtype, seed):
    given_logits = logits(seed, scale=100).to(dtype)
    masked = mask_logits(given_logits, allowed)
    assert set(masked.argmax(1).unique().tolist()) <= allowed
    kept = sorted(allowed)
    assert torch.equal(masked[:, kept], given_logits[:, kept])
    colours = annealed_mean(masked, Palette(THREE, "three"), temperature)
    low, high = THREE[kept].min(0), THREE[kept].max(0)
    assert (colours >= torch.from_numpy(low)[:, None, None] - 1e-6).all()
    assert (colours <= torch.from_numpy(high)[:, None, None] + 1e-6).all()


@pytest.mark.parametrize(("allowed", "says"), [([], "none is left"), ([0, 3], "3 is not one"), ([-1], "-1 is not one")])
def test_constrain_refuses(allowed, says):
    with pytest.raises(ChromaboxError, match=says):
        mask_logits(logits(), allowed)


# --- swatch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tile", "columns"), [(96, None), (40, 2), (8, 100)])
def test_swatch_shows_every_colour(tile, columns):
    palette = load_palette("horse24")
    picture = draw_palette(palette, tile, columns)
    shown = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert {tuple(rgb) for rgb in palette.rgb.tolist()} <= shown
