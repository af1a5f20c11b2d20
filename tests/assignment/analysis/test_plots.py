"""Figures: of the promised size, light enough for a write-up, and with the lines and colours that were asked for."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

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
from chromabox.assignment.analysis.predictions import AccuracyByEdgeDistance, Predictions, calibrate

RANDOM = np.random.default_rng(0)
NAMES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def history(epochs: int) -> list[dict]:
    offset = RANDOM.random(4)
    return [
        {"epoch": epoch, **{name: 1 / epoch + start for name, start in zip(NAMES, offset.tolist(), strict=True)}}
        for epoch in range(1, epochs + 1)
    ]


def colours_in(path: Path) -> set[tuple[int, int, int]]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == round(FIGURE_WIDTH * DPI)
    assert path.stat().st_size < 300_000
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def eight_bits(colour: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(colour))


@pytest.mark.parametrize("epochs", [1, 25])
def test_every_net_has_its_colour_in_the_curves(tmp_path: Path, epochs: int) -> None:
    path = tmp_path / "curves.png"
    plot_all_curves({"unet": [history(epochs), history(epochs)], "conv-transpose": [history(epochs)]}, path)
    found = colours_in(path)
    assert {eight_bits(MODEL_COLOURS[net]) for net in ("unet", "conv-transpose")} <= found
    assert eight_bits(MODEL_COLOURS["pool-upsample"]) not in found


def test_lines_of_bands_layers_and_confidence(tmp_path: Path) -> None:
    # A band without pixels has no accuracy.
    bands = AccuracyByEdgeDistance(np.array([0.3, 0.4, np.nan]), np.array([0.5, 0.5, 0.0]))
    plot_accuracy_by_edge_distance({"unet": bands}, (0, 1, 2, math.inf), tmp_path / "edges.png")
    layers = {"unet": {"block1": 0.01, "last": 0.2}, "pool-upsample": {"block1": 0.02, "last": 0.1}}
    plot_gradients(layers, layers, tmp_path / "gradients.png")
    calibration = calibrate(RANDOM.random(1000), RANDOM.random(1000) < 0.5)
    plot_calibration({"unet": calibration}, tmp_path / "calibration.png")
    for name in ("edges", "gradients", "calibration"):
        assert eight_bits(MODEL_COLOURS["unet"]) in colours_in(tmp_path / f"{name}.png")


def test_the_map_of_who_is_right() -> None:
    first, second = np.array([[True, True, False, False]]), np.array([[True, False, True, False]])
    [colours] = agreement_map(first, second).tolist()
    assert [tuple(colour) for colour in colours] == [eight_bits(colour) for colour in AGREEMENT_COLOURS]


def test_sheets_show_the_pictures(tmp_path: Path) -> None:
    tiles = [np.full((8, 8, 3), value, np.uint8) for value in (37, 91)]
    plot_samples({"grey": tiles, "truth": tiles[:1]}, tmp_path / "sheet.png")
    assert {(37, 37, 37), (91, 91, 91)} <= colours_in(tmp_path / "sheet.png")
    shape = (2, 8, 8)
    empty = np.zeros(shape, np.float32)
    answers = [
        Predictions(np.zeros(shape, np.uint8), empty, empty, np.full(shape, right), np.ones(1))
        for right in (True, False)
    ]
    path = tmp_path / "who.png"
    plot_agreement({"grey": tiles}, ("unet", "conv-transpose"), *answers, path)
    assert {(37, 37, 37), eight_bits(AGREEMENT_COLOURS[1])} <= colours_in(path)
