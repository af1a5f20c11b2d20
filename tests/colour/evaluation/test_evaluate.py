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


def natural(count: int, seed: int) -> np.ndarray:
    """Pictures whose grey says something of their colour, 8 bits, [count, 3, 16, 16]."""
    random = np.random.default_rng(seed)
    level = random.integers(30, 226, (count, 4, 4)).repeat(4, 1).repeat(4, 2) + random.integers(-9, 10, (count, 16, 16))
    tint = random.integers(-30, 31, (count, 3, 1, 1))
    return (level[:, None] + tint * (level[:, None] > 120)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data() -> ColourDataset:
    # 260 test pictures: more than one forward pass takes.
    return ColourDataset(encode_images(natural(60, 0), HORSE24), encode_images(natural(260, 1), HORSE24))


@pytest.fixture(scope="module")
def trained() -> PaletteModel:
    torch.manual_seed(0)
    net = build_model("unet", **SETTINGS)
    with torch.no_grad():
        net.last.weight.mul_(5)  # so that not every pixel has the same likeliest colour
    return PaletteModel(net.eval(), HORSE24, model_metadata("unet", SETTINGS, HORSE24))


@pytest.fixture(scope="module")
def result(trained: PaletteModel, data: ColourDataset) -> Evaluation:
    return evaluate(trained, data)


@pytest.fixture(scope="module")
def logits(trained: PaletteModel, data: ColourDataset) -> np.ndarray:
    with torch.no_grad():
        return trained.network(data.test.grey).permute(0, 2, 3, 1).reshape(-1, 24).double().numpy()


def test_the_nets_row_is_scikit_learns(result: Evaluation, logits: np.ndarray, data: ColourDataset) -> None:
    truth, labels = data.test.labels.numpy().ravel(), logits.argmax(1)
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    row = result.row("net")
    assert len(set(labels.tolist())) > 2
    assert row.loss == pytest.approx(log_loss(truth, probability, labels=range(24)), rel=1e-5)
    assert row.accuracy == pytest.approx(accuracy_score(truth, labels))
    # scikit-learn warns of predicted colours that are never true, so recall is averaged over those that are.
    recall = [accuracy_score(truth[truth == k], labels[truth == k]) for k in np.unique(truth)]
    assert row.balanced_accuracy == pytest.approx(np.mean(recall))
    np.testing.assert_array_equal(result.confusion, confusion_matrix(truth, labels, labels=range(24)))


def test_balanced_accuracy_of_a_floor_is_scikit_learns(result: Evaluation, data: ColourDataset) -> None:
    truth = data.test.labels.numpy().ravel()
    majority = np.full_like(truth, np.bincount(data.train.labels.numpy().ravel()).argmax())
    row = result.row("majority colour")
    assert row.accuracy == pytest.approx(accuracy_score(truth, majority))
    assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, majority))


@pytest.mark.parametrize("name", ["net", "grey", "palette oracle"])
def test_pictures_are_measured_as_scikit_image_does(
    result: Evaluation, logits: np.ndarray, data: ColourDataset, name: str
) -> None:
    truth = data.test.rgb.transpose(0, 2, 3, 1)
    colours = np.rint(HORSE24.colours * 256).astype(np.uint8)
    pictures = {
        "net": colours[logits.argmax(1)].reshape(truth.shape),
        "grey": np.repeat(np.rint(truth.mean(-1, keepdims=True)).astype(np.uint8), 3, -1),
        "palette oracle": colours[data.test.labels.numpy()],
    }
    row = result.row(name)
    assert row.psnr == pytest.approx(peak_signal_noise_ratio(truth, pictures[name], data_range=255), rel=1e-9)
    difference = deltaE_ciede2000(rgb2lab(truth / 255), rgb2lab(pictures[name] / 255)).mean()
    assert row.delta_e == pytest.approx(difference, rel=1e-4)


def test_floors_and_ceiling_are_in_order(result: Evaluation) -> None:
    majority, lookup, oracle = map(result.row, ("majority colour", "grey value's colour", "palette oracle"))
    assert majority.accuracy <= lookup.accuracy <= oracle.accuracy == 1
    assert majority.loss >= lookup.loss >= oracle.loss == 0
    assert majority.psnr < oracle.psnr
    assert lookup.psnr < oracle.psnr
    assert majority.delta_e > lookup.delta_e > oracle.delta_e
    assert result.row("net").psnr < oracle.psnr
    assert result.row("grey").colourfulness == 0


def test_the_annealed_mean_at_zero_is_the_likeliest_colour(trained: PaletteModel, data: ColourDataset) -> None:
    found = evaluate(trained, ColourDataset(data.train, data.test.select(slice(0, 20))), temperature=0.0)
    net, blended = found.row("net"), found.row("net, annealed mean")
    assert (blended.psnr, blended.delta_e) == (net.psnr, net.delta_e)
    assert blended.loss is None
    assert blended.accuracy is None


def test_a_perfect_score_can_be_written_as_json(trained: PaletteModel) -> None:
    # Grey pictures are what the row "grey" gives, so its PSNR is infinite, which JSON cannot say.
    grey = encode_images(np.repeat(natural(4, 2)[:, :1], 3, axis=1), HORSE24)
    found = evaluate(trained, ColourDataset(grey, grey))
    assert found.row("grey").psnr == math.inf
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written["rows"]["grey"]["psnr"] is None
    assert written["rows"]["net"]["psnr"] == found.row("net").psnr
    assert np.array(written["confusion"]).sum() == 4 * 16 * 16


def test_a_sheet_shows_grey_truth_and_prediction(trained: PaletteModel, data: ColourDataset) -> None:
    greys, truths, predictions = sample_grid(trained.network, data.test, HORSE24, num_images=3)
    assert len(greys) == len(truths) == len(predictions) == 3
    for index in range(3):
        truth = data.test.rgb[index].transpose(1, 2, 0)
        np.testing.assert_array_equal(truths[index], truth)
        np.testing.assert_array_equal(greys[index][..., 1], np.rint(truth.astype(float).mean(-1)))
        colours = {tuple(colour) for colour in predictions[index].reshape(-1, 3).tolist()}
        assert colours <= {tuple(colour) for colour in HORSE24.rgb.tolist()}


@pytest.mark.parametrize("training", [True, False])
def test_predicting_leaves_the_nets_mode_and_statistics(data: ColourDataset, training: bool) -> None:
    net = build_model("unet", **SETTINGS).train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    labels = predict_labels(net, data.test.grey[:5])
    assert labels.shape == (5, 16, 16)
    assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
