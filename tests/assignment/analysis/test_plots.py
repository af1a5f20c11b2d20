"""Figures: size in pixels, size of the file, and colours of the plotted lines."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from chromabox.assignment.analysis.pixels import AccuracyByEdgeDistance, Predictions, calibrate
from chromabox.assignment.analysis.plots import (
    AGREEMENT_COLOURS,
    DPI,
    FIGURE_WIDTH,
    MODEL_COLOURS,
    agreement_map,
    plot_accuracy_by_edge_distance,
    plot_agreement,
    plot_all_curves,
    plot_calibration,
    plot_gradients,
    plot_samples,
)

RANDOM = np.random.default_rng(0)
NAMES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def history(epochs: int) -> list[dict]:
    offset = RANDOM.random(4)
    return [
        {"epoch": epoch, **{name: 1 / epoch + value for name, value in zip(NAMES, offset.tolist(), strict=True)}}
        for epoch in range(1, epochs + 1)
    ]


def colours_in(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == round(FIGURE_WIDTH * DPI)
    assert path.stat().st_size < 300_000
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def to_rgb_uint8(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * channel) for channel in to_rgb(colour))


@pytest.mark.parametrize("epochs", [1, 25])
def test_curves_contain_the_colour_of_every_model(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "curves.png"
    plot_all_curves({"unet": [history(epochs), history(epochs)], "conv-transpose": [history(epochs)]}, path)
    colours = colours_in(path)
    assert {to_rgb_uint8(MODEL_COLOURS[model]) for model in ("unet", "conv-transpose")} <= colours
    assert to_rgb_uint8(MODEL_COLOURS["pool-upsample"]) not in colours


def test_edge_gradient_and_calibration_plots_contain_the_model_colour(tmp_path: Path) -> None:
    # A bin without pixels has no accuracy.
    accuracy = AccuracyByEdgeDistance(np.array([0.3, 0.4, np.nan]), np.array([0.5, 0.5, 0.0]))
    plot_accuracy_by_edge_distance({"unet": accuracy}, (0, 1, 2, math.inf), tmp_path / "edges.png")
    layers = {"unet": {"block1": 0.01, "last": 0.2}, "pool-upsample": {"block1": 0.02, "last": 0.1}}
    plot_gradients(layers, layers, tmp_path / "gradients.png")
    calibration = calibrate(RANDOM.random(1000), RANDOM.random(1000) < 0.5)
    plot_calibration({"unet": calibration}, tmp_path / "calibration.png")
    for name in ("edges", "gradients", "calibration"):
        assert to_rgb_uint8(MODEL_COLOURS["unet"]) in colours_in(tmp_path / f"{name}.png")


def test_agreement_map_has_a_colour_for_each_case() -> None:
    first, second = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    [colours] = agreement_map(first, second).tolist()
    assert [tuple(colour) for colour in colours] == [to_rgb_uint8(colour) for colour in AGREEMENT_COLOURS]


def test_sample_grids_contain_the_images(tmp_path: Path) -> None:
    tiles = [np.full((8, 8, 3), value, np.uint8) for value in (37, 91)]
    plot_samples({"grey": tiles, "truth": tiles[:1]}, tmp_path / "samples.png")
    assert {(37, 37, 37), (91, 91, 91)} <= colours_in(tmp_path / "samples.png")
    shape = (2, 8, 8)
    empty = np.zeros(shape, np.float32)
    predictions = [
        Predictions(np.zeros(shape, np.uint8), empty, empty, np.full(shape, is_correct), np.ones(1))
        for is_correct in (True, False)
    ]
    path = tmp_path / "agreement.png"
    plot_agreement({"grey": tiles}, ("unet", "conv-transpose"), *predictions, path)
    assert {(37, 37, 37), to_rgb_uint8(AGREEMENT_COLOURS[1])} <= colours_in(path)
