"""Tests on the horses of the real CIFAR-10: data conventions and baselines, which scipy computes independently."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from chromabox.colour.data.datasets import ColourDataset, course_palette, load_colour_dataset
from chromabox.colour.evaluation.evaluate import evaluate
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.palette.palette import quantisation_error
from chromabox.colour.weights.checkpoint import PaletteModel
from chromabox.errors import ChromaboxError
from chromabox.io.cifar10 import load_cifar10

HORSE24 = load_palette("horse24")


@pytest.fixture(scope="module")
def horses() -> ColourDataset:
    try:
        return load_colour_dataset("cifar10:horse", HORSE24)
    except ChromaboxError as error:
        pytest.skip(f"THE REAL CIFAR-10 IS NOT AVAILABLE, SO TRAINING ON IT IS NOT TESTED: {error}")


def independent_baselines(colours: np.ndarray) -> tuple[float, float]:
    """Compute the accuracies of the majority colour and of a grey lookup table with scipy's cKDTree and NumPy."""
    tree = cKDTree(colours.astype(np.float64) * 256)
    splits = []
    for split in ("train", "test"):
        pixels = load_cifar10(split, ["horse"])[0].transpose(0, 2, 3, 1).reshape(-1, 3)
        splits += [pixels.sum(1, dtype=np.int64), tree.query(pixels.astype(np.float64))[1]]
    train_grey, train_label, test_grey, test_label = splits
    table = np.zeros((766, len(colours)), np.int64)
    np.add.at(table, (train_grey, train_label), 1)
    majority = table.sum(0).argmax()
    return (test_label == majority).mean(), (table.argmax(1)[test_grey] == test_label).mean()


def test_data_conventions_of_the_assignment(horses: ColourDataset) -> None:
    rgb = load_cifar10("test", ["horse"])[0]
    assert (len(horses.train), len(horses.test)) == (5000, 1000)
    np.testing.assert_allclose(horses.test.grey.numpy()[:, 0], (rgb / 256).mean(axis=1), atol=1e-7)
    assert quantisation_error(horses.train.rgb, HORSE24, axis=1) < 0.0728  # the value of the palette of the assignment


def test_baselines_match_an_independent_implementation(horses: ColourDataset) -> None:
    model = PaletteModel(build_model("pool-upsample", num_colours=len(HORSE24)), HORSE24, {})
    result = evaluate(model, horses)
    majority, lookup = independent_baselines(HORSE24.colours)
    assert result.row("majority colour").accuracy == pytest.approx(majority, abs=1e-9)
    assert result.row("grey value's colour").accuracy == pytest.approx(lookup, abs=1e-9)
    assert majority < lookup < result.row("palette oracle").accuracy


def test_baselines_of_the_assignment_palette(horses: ColourDataset) -> None:
    try:
        course = course_palette()
    except ChromaboxError as error:
        pytest.skip(f"THE PALETTE OF THE ASSIGNMENT IS NOT AVAILABLE, SO ITS BASELINES ARE NOT TESTED: {error}")
    majority, lookup = independent_baselines(course.colours)
    # With this palette, the grey lookup table scores more than any published model (at most 59.3 %).
    assert lookup == pytest.approx(0.62172, abs=1e-4)
    assert majority < 0.1
    assert quantisation_error(horses.train.rgb, course, axis=1) == pytest.approx(0.0728, abs=1e-4)
