"""Evaluation against scikit-learn's metrics and scikit-image's PSNR and colour difference."""

import json
import math

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, log_loss

from chromabox.colour.data.datasets import ColourDataset, encode_images
from chromabox.colour.evaluation.evaluate import Evaluation, evaluate, predict_labels, sample_grid
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.weights.checkpoint import PaletteModel, model_metadata

HORSE24 = load_palette("horse24")
SETTINGS = {"num_filters": 4, "num_colours": 24}


def make_images(count: int, seed: int) -> np.ndarray:
    """Return 8-bit images [count, 3, 16, 16] whose grey values correlate with their colours."""
    rng = np.random.default_rng(seed)
    level = rng.integers(30, 226, (count, 4, 4)).repeat(4, 1).repeat(4, 2) + rng.integers(-9, 10, (count, 16, 16))
    tint = rng.integers(-30, 31, (count, 3, 1, 1))
    return (level[:, None] + tint * (level[:, None] > 120)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data() -> ColourDataset:
    # 260 test images are more than one forward pass processes.
    return ColourDataset(encode_images(make_images(60, 0), HORSE24), encode_images(make_images(260, 1), HORSE24))


@pytest.fixture(scope="module")
def palette_model() -> PaletteModel:
    torch.manual_seed(0)
    network = build_model("unet", **SETTINGS)
    with torch.no_grad():
        network.last.weight.mul_(5)  # otherwise the most likely colour is the same for every pixel
    return PaletteModel(network.eval(), HORSE24, model_metadata("unet", SETTINGS, HORSE24))


@pytest.fixture(scope="module")
def result(palette_model: PaletteModel, data: ColourDataset) -> Evaluation:
    return evaluate(palette_model, data)


@pytest.fixture(scope="module")
def logits(palette_model: PaletteModel, data: ColourDataset) -> np.ndarray:
    with torch.no_grad():
        return palette_model.network(data.test.grey).permute(0, 2, 3, 1).reshape(-1, 24).double().numpy()


def test_model_row_equals_scikit_learn(result: Evaluation, logits: np.ndarray, data: ColourDataset) -> None:
    truth, labels = data.test.labels.numpy().ravel(), logits.argmax(1)
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    row = result.row("net")
    assert len(set(labels.tolist())) > 2
    assert row.loss == pytest.approx(log_loss(truth, probability, labels=range(24)), rel=1e-5)
    assert row.accuracy == pytest.approx(accuracy_score(truth, labels))
    # scikit-learn warns about predicted colours that never occur, therefore recall is computed for each colour.
    recall = [accuracy_score(truth[truth == k], labels[truth == k]) for k in np.unique(truth)]
    assert row.balanced_accuracy == pytest.approx(np.mean(recall))
    np.testing.assert_array_equal(result.confusion, confusion_matrix(truth, labels, labels=range(24)))


def test_accuracies_of_majority_baseline_equal_scikit_learn(result: Evaluation, data: ColourDataset) -> None:
    truth = data.test.labels.numpy().ravel()
    majority = np.full_like(truth, np.bincount(data.train.labels.numpy().ravel()).argmax())
    row = result.row("majority colour")
    assert row.accuracy == pytest.approx(accuracy_score(truth, majority))
    assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, majority))


@pytest.mark.parametrize("name", ["net", "grey", "palette oracle"])
def test_psnr_and_delta_e_equal_scikit_image(
    result: Evaluation, logits: np.ndarray, data: ColourDataset, name: str
) -> None:
    truth = data.test.rgb.transpose(0, 2, 3, 1)
    colours = np.rint(HORSE24.colours * 256).astype(np.uint8)
    images = {
        "net": colours[logits.argmax(1)].reshape(truth.shape),
        "grey": np.repeat(np.rint(truth.mean(-1, keepdims=True)).astype(np.uint8), 3, -1),
        "palette oracle": colours[data.test.labels.numpy()],
    }
    row = result.row(name)
    assert row.psnr == pytest.approx(peak_signal_noise_ratio(truth, images[name], data_range=255), rel=1e-9)
    difference = deltaE_ciede2000(rgb2lab(truth / 255), rgb2lab(images[name] / 255)).mean()
    assert row.delta_e == pytest.approx(difference, rel=1e-4)


def test_baselines_and_upper_bound_are_in_order(result: Evaluation) -> None:
    majority, lookup, upper_bound = map(result.row, ("majority colour", "grey value's colour", "palette oracle"))
    assert majority.accuracy <= lookup.accuracy <= upper_bound.accuracy == 1
    assert majority.loss >= lookup.loss >= upper_bound.loss == 0
    assert majority.psnr < upper_bound.psnr
    assert lookup.psnr < upper_bound.psnr
    assert majority.delta_e > lookup.delta_e > upper_bound.delta_e
    assert result.row("net").psnr < upper_bound.psnr
    assert result.row("grey").colourfulness == 0


def test_annealed_mean_at_temperature_zero_is_the_most_likely_colour(
    palette_model: PaletteModel, data: ColourDataset
) -> None:
    evaluation = evaluate(palette_model, ColourDataset(data.train, data.test.select(slice(0, 20))), temperature=0.0)
    most_likely, annealed = evaluation.row("net"), evaluation.row("net, annealed mean")
    assert (annealed.psnr, annealed.delta_e) == (most_likely.psnr, most_likely.delta_e)
    assert annealed.loss is None
    assert annealed.accuracy is None


def test_infinite_psnr_is_null_in_json(palette_model: PaletteModel) -> None:
    # The row "grey" reproduces grey images exactly: its PSNR is infinite, which JSON cannot represent.
    grey = encode_images(np.repeat(make_images(4, 2)[:, :1], 3, axis=1), HORSE24)
    evaluation = evaluate(palette_model, ColourDataset(grey, grey))
    assert evaluation.row("grey").psnr == math.inf
    written = json.loads(json.dumps(evaluation.as_json(), allow_nan=False))
    assert written["rows"]["grey"]["psnr"] is None
    assert written["rows"]["net"]["psnr"] == evaluation.row("net").psnr
    assert np.array(written["confusion"]).sum() == 4 * 16 * 16


def test_sample_grid_contains_greyscale_truth_and_prediction(palette_model: PaletteModel, data: ColourDataset) -> None:
    greys, truths, predictions = sample_grid(palette_model.network, data.test, HORSE24, num_images=3)
    assert len(greys) == len(truths) == len(predictions) == 3
    for index in range(3):
        truth = data.test.rgb[index].transpose(1, 2, 0)
        np.testing.assert_array_equal(truths[index], truth)
        np.testing.assert_array_equal(greys[index][..., 1], np.rint(truth.astype(float).mean(-1)))
        colours = {tuple(colour) for colour in predictions[index].reshape(-1, 3).tolist()}
        assert colours <= {tuple(colour) for colour in HORSE24.rgb.tolist()}


@pytest.mark.parametrize("training", [True, False])
def test_predict_labels_keeps_mode_and_batch_norm_statistics(data: ColourDataset, training: bool) -> None:
    network = build_model("unet", **SETTINGS).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    labels = predict_labels(network, data.test.grey[:5])
    assert labels.shape == (5, 16, 16)
    assert network.training is training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
