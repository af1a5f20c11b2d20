"""Probes compared with scikit-learn's Ridge and R², and for models that preserve all or part of an image."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import nn

from chromabox.assignment.analysis.pixels import compare_high_frequencies, high_pass, label_colours, remove_grey
from chromabox.assignment.analysis.probing import (
    block_features,
    from_blocks,
    predict_ridge,
    probe_layers,
    r_squared,
    to_blocks,
)
from chromabox.colour.data.datasets import encode_images
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette

HORSE24 = load_palette("horse24")
RANDOM = np.random.default_rng(0)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def test_ridge_equals_scikit_learn_on_standardised_features() -> None:
    inputs, outputs = RANDOM.normal(2, 3, (200, 7)), RANDOM.normal(1, 1, (200, 2))
    inputs[:, 4] = 5  # constant feature
    deviation = inputs.std(0)
    standardised = (inputs - inputs.mean(0)) / np.where(deviation > 0, deviation, 1)
    expected = Ridge(alpha=0.3 * 200).fit(standardised, outputs).predict(standardised)
    np.testing.assert_allclose(predict_ridge(*tensors(inputs, outputs, inputs), penalty=0.3), expected)


def test_r_squared_equals_scikit_learn() -> None:
    true, predicted = RANDOM.normal(0, 2, (50, 3)), RANDOM.normal(0, 1, (50, 3))
    weights = true.var(0)
    assert r_squared(*tensors(predicted, true)) == pytest.approx(r2_score(true, predicted, multioutput=weights))
    assert r_squared(*tensors(true, true)) == 1
    assert r_squared(*tensors(np.broadcast_to(true.mean(0), true.shape), true)) == pytest.approx(0)
    assert np.isnan(r_squared(*tensors(predicted, np.ones((50, 3)))))


def test_linear_map_is_recovered_and_noise_is_not() -> None:
    train, test, linear = (torch.from_numpy(RANDOM.normal(size=size)) for size in ((4000, 12), (1000, 12), (12, 5)))
    predicted = predict_ridge(train, train @ linear + 3, test)
    assert r_squared(predicted, test @ linear + 3) == pytest.approx(1, abs=1e-6)
    train_noise, test_noise = (torch.from_numpy(RANDOM.normal(size=(count, 5))) for count in (4000, 1000))
    assert r_squared(predict_ridge(train, train_noise, test), test_noise) == pytest.approx(0, abs=0.02)


def test_blocks_contain_the_pixels_of_an_image() -> None:
    maps = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12).float()
    rows = to_blocks(maps, 4)
    assert rows.shape == (2 * 2 * 3, 3 * 16)
    # Row 4: first image, second row of blocks, second block.
    np.testing.assert_array_equal(rows[4], maps[0, :, 4:8, 4:8].reshape(-1))
    np.testing.assert_array_equal(from_blocks(to_blocks(maps, 4), 2, 8, 12), maps)


def test_detail_is_the_difference_from_block_means() -> None:
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    detail = high_pass(maps)
    block = maps[1, 2, 4:8, :4]
    torch.testing.assert_close(detail[1, 2, 4:8, :4], block - block.mean())
    chroma = remove_grey(maps)
    torch.testing.assert_close(chroma[0, 1], maps[0, 1] - (maps[0, 0] + maps[0, 1] + maps[0, 2]) / 3)
    labels = torch.tensor([[[3, 0], [7, 23]]], dtype=torch.uint8)
    np.testing.assert_array_equal(label_colours(labels, HORSE24)[0, :, 1, 0], HORSE24.colours[7])


def test_high_frequencies_of_known_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, other = torch.rand(50, 1, 16, 16, generator=generator), torch.rand(50, 1, 16, 16, generator=generator)
    weaker = compare_high_frequencies(0.5 * truth + 3, truth)
    assert (weaker["energy"], weaker["correlation"]) == (pytest.approx(0.25), pytest.approx(1))
    unrelated = compare_high_frequencies(other, truth)
    assert unrelated["correlation"] == pytest.approx(0, abs=0.05)
    assert unrelated["energy"] == pytest.approx(1, abs=0.05)
    uniform = compare_high_frequencies(torch.ones(2, 1, 4, 4), truth[:2, :, :4, :4])
    assert uniform["energy"] == 0
    assert np.isnan(uniform["correlation"])


class Halving(nn.Module):
    """Two blocks that halve the size and preserve all values as more channels (``lossless``), or only block means."""

    def __init__(self, lossless: bool) -> None:
        super().__init__()
        self.block1, self.block2 = (nn.PixelUnshuffle(2) if lossless else nn.AvgPool2d(2) for _ in range(2))


@pytest.fixture(scope="module")
def image_sets() -> list:
    return [encode_images(RANDOM.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8), HORSE24) for count in (120, 30)]


def test_features_have_a_row_for_each_block(image_sets: list) -> None:
    model = build_model("unet", num_filters=3).eval()
    rows = block_features(model, image_sets[1].grey)
    assert {name: features.shape for name, features in rows.items()} == {
        "quarter": (30 * 4, 6),
        "half": (30 * 4, 3 * 4),
        "input": (30 * 4, 16),
    }
    with torch.no_grad():
        half = model.block1(image_sets[1].grey)
    # Block (1, 0) of image 2 covers rows 2 and 3, columns 0 and 1 of the map of half the size.
    np.testing.assert_allclose(rows["half"][2 * 4 + 2], half[2, :, 2:4, :2].reshape(-1))


def test_preserved_values_are_recovered_and_pooled_values_are_not(image_sets: list) -> None:
    lossless = probe_layers(Halving(lossless=True), *image_sets, HORSE24)
    pooled = probe_layers(Halving(lossless=False), *image_sets, HORSE24)
    for scores in (*lossless.values(), pooled["input"]):
        assert scores["grey"] == pytest.approx(1, abs=1e-5)
        assert scores["grey_detail"] == pytest.approx(1, abs=1e-5)
    # For independent pixels, a mean of 16 explains 1/16 of the variance, and a mean of 4 explains 1/4.
    assert pooled["quarter"]["grey"] == pytest.approx(1 / 16, abs=0.05)
    assert pooled["quarter"]["grey_detail"] == pytest.approx(0, abs=0.05)
    assert pooled["half"]["grey"] == pytest.approx(1 / 4, abs=0.05)
    assert (
        pooled["quarter"]["lookup_table_accuracy"]
        < pooled["half"]["lookup_table_accuracy"]
        < lossless["quarter"]["lookup_table_accuracy"]
    )


def test_lookup_table_accuracy_of_exact_grey_equals_the_baseline(image_sets: list) -> None:
    from chromabox.colour.evaluation.metrics import grey_lookup_baseline

    train, test = image_sets
    expected = grey_lookup_baseline(
        train.grey_sum.numpy(), train.labels.numpy(), test.grey_sum.numpy(), test.labels.numpy(), 24
    )
    scores = probe_layers(Halving(lossless=True), *image_sets, HORSE24)["input"]
    assert scores["lookup_table_accuracy"] == pytest.approx(expected.accuracy)
