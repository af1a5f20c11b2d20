"""The probe against scikit-learn's ridge and R², and on nets whose layers hold all, a part or none of a picture."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import nn

from chromabox.assignment.analysis.predictions import compare_high_frequencies, high_pass, label_colours, remove_grey
from chromabox.assignment.analysis.probing import (
    block_features,
    fit_ridge,
    from_blocks,
    probe_layers,
    r_squared,
    to_blocks,
)
from chromabox.colour.data.datasets import encode_images
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette

HORSE24 = load_palette("horse24")
RANDOM = np.random.default_rng(0)
SOURCES = {"quarter": ("quarter",), "half": ("half",), "all": ("quarter", "half", "input")}


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def test_a_ridge_is_scikit_learns_on_standardised_features() -> None:
    inputs, outputs = RANDOM.normal(2, 3, (200, 7)), RANDOM.normal(1, 1, (200, 2))
    inputs[:, 4] = 5  # does not vary
    deviation = inputs.std(0)
    standard = (inputs - inputs.mean(0)) / np.where(deviation > 0, deviation, 1)
    expected = Ridge(alpha=0.3 * 200).fit(standard, outputs).predict(standard)
    np.testing.assert_allclose(fit_ridge(*tensors(inputs, outputs), penalty=0.3)(tensors(inputs)[0]), expected)


def test_r_squared_is_scikit_learns() -> None:
    true, predicted = RANDOM.normal(0, 2, (50, 3)), RANDOM.normal(0, 1, (50, 3))
    weights = true.var(0)
    assert r_squared(*tensors(predicted, true)) == pytest.approx(r2_score(true, predicted, multioutput=weights))
    assert r_squared(*tensors(true, true)) == 1
    assert r_squared(*tensors(np.broadcast_to(true.mean(0), true.shape), true)) == pytest.approx(0)
    assert np.isnan(r_squared(*tensors(predicted, np.ones((50, 3)))))


def test_a_linear_map_is_recovered_and_noise_is_not() -> None:
    fitted, judged, linear = (torch.from_numpy(RANDOM.normal(size=size)) for size in ((4000, 12), (1000, 12), (12, 5)))
    found = fit_ridge(fitted, fitted @ linear + 3)
    assert r_squared(found(judged), judged @ linear + 3) == pytest.approx(1, abs=1e-6)
    noise, more = (torch.from_numpy(RANDOM.normal(size=(count, 5))) for count in (4000, 1000))
    assert r_squared(fit_ridge(fitted, noise)(judged), more) == pytest.approx(0, abs=0.02)


def test_blocks_hold_the_squares_of_a_picture() -> None:
    maps = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12).float()
    rows = to_blocks(maps, 4)
    assert rows.shape == (2 * 2 * 3, 3 * 16)
    # The fifth row: first picture, second line of squares, second square of it.
    np.testing.assert_array_equal(rows[4], maps[0, :, 4:8, 4:8].reshape(-1))
    np.testing.assert_array_equal(from_blocks(to_blocks(maps, 4), 2, 8, 12), maps)


def test_detail_is_what_is_left_of_block_means() -> None:
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    detail = high_pass(maps)
    square = maps[1, 2, 4:8, :4]
    torch.testing.assert_close(detail[1, 2, 4:8, :4], square - square.mean())
    grey = remove_grey(maps)
    torch.testing.assert_close(grey[0, 1], maps[0, 1] - (maps[0, 0] + maps[0, 1] + maps[0, 2]) / 3)
    labels = torch.tensor([[[3, 0], [7, 23]]], dtype=torch.uint8)
    np.testing.assert_array_equal(label_colours(labels, HORSE24)[0, :, 1, 0], HORSE24.colours[7])


def test_kept_detail_of_known_cases() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, other = torch.rand(50, 1, 16, 16, generator=generator), torch.rand(50, 1, 16, 16, generator=generator)
    fainter = compare_high_frequencies(0.5 * truth + 3, truth)
    assert (fainter.energy, fainter.correlation) == (pytest.approx(0.25), pytest.approx(1))
    strange = compare_high_frequencies(other, truth)
    assert strange.correlation == pytest.approx(0, abs=0.05)
    assert strange.energy == pytest.approx(1, abs=0.05)
    flat = compare_high_frequencies(torch.ones(2, 1, 4, 4), truth[:2, :, :4, :4])
    assert flat.energy == 0
    assert np.isnan(flat.correlation)


class Halving(nn.Module):
    """Two blocks that keep everything (``keep``), as more channels at a smaller size, or the means of the squares."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.block1, self.block2 = (nn.PixelUnshuffle(2) if keep else nn.AvgPool2d(2) for _ in range(2))


@pytest.fixture(scope="module")
def pictures() -> list:
    return [encode_images(RANDOM.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8), HORSE24) for count in (120, 30)]


def test_layers_give_a_row_for_each_square(pictures: list) -> None:
    net = build_model("unet", num_filters=3).eval()
    rows = block_features(net, pictures[1].grey)
    assert {name: one.shape for name, one in rows.items()} == {
        "quarter": (30 * 4, 6),
        "half": (30 * 4, 3 * 4),
        "input": (30 * 4, 16),
    }
    with torch.no_grad():
        half = net.block1(pictures[1].grey)
    # Square (1, 0) of picture 2 covers rows 2 and 3, columns 0 and 1 of the map of half the size.
    np.testing.assert_allclose(rows["half"][2 * 4 + 2], half[2, :, 2:4, :2].reshape(-1))


def test_what_is_kept_can_be_read_and_what_is_pooled_cannot(pictures: list) -> None:
    kept = probe_layers(Halving(keep=True), *pictures, HORSE24, SOURCES)
    pooled = probe_layers(Halving(keep=False), *pictures, HORSE24, SOURCES)
    for found in (*kept.values(), pooled["all"]):
        assert found.grey == pytest.approx(1, abs=1e-5)
        assert found.grey_detail == pytest.approx(1, abs=1e-5)
    # Of independent pixels a mean of 16 holds 1/16 of the variance, and a mean of 4 holds 1/4.
    assert pooled["quarter"].grey == pytest.approx(1 / 16, abs=0.05)
    assert pooled["quarter"].grey_detail == pytest.approx(0, abs=0.05)
    assert pooled["half"].grey == pytest.approx(1 / 4, abs=0.05)
    assert (
        pooled["quarter"].lookup_table_accuracy
        < pooled["half"].lookup_table_accuracy
        < kept["quarter"].lookup_table_accuracy
    )


def test_the_table_reads_exact_grey_as_the_floor_does(pictures: list) -> None:
    from chromabox.colour.evaluation.metrics import grey_lookup_baseline

    train, test = pictures
    expected = grey_lookup_baseline(
        train.grey_sum.numpy(), train.labels.numpy(), test.grey_sum.numpy(), test.labels.numpy(), 24
    )
    found = probe_layers(Halving(keep=True), *pictures, HORSE24, {"input": ("input",)})["input"]
    assert found.lookup_table_accuracy == pytest.approx(expected.accuracy)
