"""Evaluation of a trained model with a palette: its metrics, baselines, and the upper bound set by the palette."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch.nn import functional as F

from chromabox.colour.data.datasets import ColourDataset, LabelledImages
from chromabox.colour.evaluation import metrics
from chromabox.colour.palette.palette import Palette, annealed_mean, decode_labels
from chromabox.colour.weights.checkpoint import PaletteModel

#: Number of images per forward pass, which bounds memory use for a split of any size.
EVAL_BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One row of the table. A metric that does not apply to the row is None."""

    name: str
    loss: float | None = None
    """Mean cross-entropy per pixel, in nats."""
    accuracy: float | None = None
    """Fraction of pixels with the correct label, in [0, 1]."""
    balanced_accuracy: float | None = None
    """Mean recall over the colours, in [0, 1]."""
    psnr: float
    """PSNR in dB between the row and the ground-truth images, over all pixels."""
    delta_e: float
    """Mean CIEDE2000 difference from the ground-truth images."""
    colourfulness: float
    """Colourfulness (Hasler and Süsstrunk 2003), mean over the images; compare it with that of the row ``truth``."""


@dataclass(frozen=True)
class Evaluation:
    """All rows, and the confusion matrix of the model."""

    rows: list[EvaluationRow]
    confusion: Int64[np.ndarray, "truth prediction"]

    def row(self, name: str) -> EvaluationRow:
        """Return the row with this name."""
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> dict[str, Any]:
        """Return the rows by name and the confusion matrix as JSON values; an infinite PSNR becomes None."""
        rows = {
            row.name: {key: None if value in (math.inf, -math.inf) else value for key, value in asdict(row).items()}
            for row in self.rows
        }
        return {"rows": rows, "confusion": self.confusion.tolist()}


def evaluate(model: PaletteModel, data: ColourDataset, *, temperature: float = 0.38) -> Evaluation:
    """Evaluate a model, the baselines and the upper bound on the test split, in float32.

    The rows are:

    * ``net``: the most likely colour of every pixel;
    * ``net, annealed mean``: the logits decoded with ``annealed_mean`` at ``temperature``;
    * ``majority colour`` and ``grey value's colour``: baselines, computed from the training split;
    * ``grey``: the greyscale input;
    * ``palette oracle``: the true label of every pixel, the upper bound for this palette;
    * ``truth``: the ground-truth images.
    """
    test, palette = data.test, model.palette
    truth = _channels_last(test.rgb)
    loss, labels, annealed = _predict(model, test, temperature)
    confusion = metrics.confusion_matrix(labels, test.labels.numpy(), len(palette.colours))
    model_row = _make_row("net", decode_labels(labels, palette), truth, loss, labels, test, confusion)
    grey = np.repeat(np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)[..., None], 3, axis=-1)
    true_labels = test.labels.numpy()
    rows = [
        model_row,
        _make_row("net, annealed mean", annealed, truth),
        *_baselines(data, palette, truth),
        _make_row("grey", grey, truth),
        _make_row("palette oracle", decode_labels(true_labels, palette), truth, 0.0, true_labels, test),
        _make_row("truth", truth, truth),
    ]
    return Evaluation(rows, confusion)


@torch.no_grad()
def _predict(
    model: PaletteModel, test: LabelledImages, temperature: float
) -> tuple[float, UInt8[np.ndarray, "images height width"], UInt8[np.ndarray, "images height width 3"]]:
    """Return the mean loss, the most likely labels, and the images decoded with the annealed mean."""
    total_loss, labels, annealed = 0.0, [], []
    for start in range(0, len(test), EVAL_BATCH_SIZE):
        batch = test.select(slice(start, start + EVAL_BATCH_SIZE))
        logits = model.network(batch.grey)
        total_loss += F.cross_entropy(logits, batch.labels.long(), reduction="sum").item()
        labels.append(logits.argmax(1).to(torch.uint8).numpy())
        colours = annealed_mean(logits, model.palette, temperature)
        annealed.append((colours * 256).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return total_loss / test.labels.numel(), np.concatenate(labels), np.concatenate(annealed)


def _baselines(
    data: ColourDataset, palette: Palette, truth: UInt8[np.ndarray, "images height width 3"]
) -> list[EvaluationRow]:
    """Return the rows of the two baselines."""
    num_colours = len(palette.colours)
    train, test = data.train, data.test
    train_labels, test_labels = train.labels.numpy(), test.labels.numpy()
    baselines = {
        "majority colour": metrics.majority_baseline(train_labels, test_labels, num_colours),
        "grey value's colour": metrics.grey_lookup_baseline(
            train.grey_sum.numpy(), train_labels, test.grey_sum.numpy(), test_labels, num_colours
        ),
    }
    return [
        _make_row(name, decode_labels(baseline.labels, palette), truth, baseline.loss, baseline.labels, test)
        for name, baseline in baselines.items()
    ]


def _make_row(
    name: str,
    rgb: UInt8[np.ndarray, "images height width 3"],
    truth: UInt8[np.ndarray, "images height width 3"],
    loss: float | None = None,
    labels: UInt8[np.ndarray, "images height width"] | None = None,
    test: LabelledImages | None = None,
    confusion: Int64[np.ndarray, "truth prediction"] | None = None,
) -> EvaluationRow:
    """Compute the metrics of one row; the accuracies require ``labels`` and ``test``."""
    accuracy = balanced = None
    if labels is not None and test is not None:
        true_labels = test.labels.numpy()
        accuracy = metrics.accuracy(labels, true_labels)
        num_colours = int(max(labels.max(), true_labels.max())) + 1
        balanced = metrics.balanced_accuracy(
            metrics.confusion_matrix(labels, true_labels, num_colours) if confusion is None else confusion
        )
    return EvaluationRow(
        name=name,
        loss=loss,
        accuracy=accuracy,
        balanced_accuracy=balanced,
        psnr=metrics.psnr(rgb, truth),
        delta_e=metrics.delta_e(rgb, truth),
        colourfulness=float(np.mean([metrics.colourfulness(image) for image in rgb])),
    )


def _channels_last(rgb: UInt8[np.ndarray, "images 3 height width"]) -> UInt8[np.ndarray, "images height width 3"]:
    return np.ascontiguousarray(rgb.transpose(0, 2, 3, 1))


def sample_grid(
    model: torch.nn.Module, test: LabelledImages, palette: Palette, num_images: int = 10
) -> list[list[UInt8[np.ndarray, "height width 3"]]]:
    """Return three rows of images for the first ``num_images`` test images: greyscale, ground truth and prediction."""
    samples = test.select(slice(0, num_images))
    labels = predict_labels(model, samples.grey)
    grey = np.rint(samples.grey_sum.numpy() / 3).astype(np.uint8)
    grey_images = [np.repeat(image[..., None], 3, axis=-1) for image in grey]
    return [grey_images, list(_channels_last(samples.rgb)), list(decode_labels(labels, palette))]


@torch.no_grad()
def predict_labels(
    model: torch.nn.Module, grey: Float32[torch.Tensor, "images 1 height width"]
) -> UInt8[np.ndarray, "images height width"]:
    """Return the index of the most likely palette colour of every pixel.

    ``grey`` is in [0, 1). The model predicts in evaluation mode on its device; its mode is restored afterwards.
    """
    was_training = model.training
    device = next(model.parameters()).device
    labels: UInt8[np.ndarray, "images height width"] = (
        model.eval()(grey.to(device)).argmax(1).to(torch.uint8).cpu().numpy()
    )
    model.train(was_training)
    return labels
