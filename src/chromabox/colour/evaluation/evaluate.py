"""Evaluation of a trained palette model, compared with baselines and with the upper bound set by the palette."""

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

LabelMaps = UInt8[np.ndarray, "images height width"]
RgbImages = UInt8[np.ndarray, "images height width 3"]

#: Number of images per forward pass. It limits memory use, whatever the size of the split.
EVAL_BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One row of the evaluation table. A metric that does not apply to the row is None."""

    name: str
    loss: float | None = None
    """Mean cross-entropy per pixel, in nats."""
    accuracy: float | None = None
    """Fraction of pixels with the correct label, in [0, 1]."""
    balanced_accuracy: float | None = None
    """Mean recall over the colours, in [0, 1]."""
    psnr: float
    """PSNR in dB between the images of the row and the ground-truth images, over all pixels."""
    delta_e: float
    """Mean CIEDE2000 difference from the ground-truth images."""
    colourfulness: float
    """Mean colourfulness of the images (Hasler and Süsstrunk 2003), to be compared with that of the row ``truth``."""


@dataclass(frozen=True)
class Evaluation:
    """All rows of the evaluation table, and the confusion matrix of the model."""

    rows: list[EvaluationRow]
    confusion: Int64[np.ndarray, "truth prediction"]

    def row(self, name: str) -> EvaluationRow:
        """Return the row with this name."""
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> dict[str, Any]:
        """Return the rows by name and the confusion matrix as JSON values. An infinite PSNR becomes None."""
        rows = {
            row.name: {key: None if value == math.inf else value for key, value in asdict(row).items()}
            for row in self.rows
        }
        return {"rows": rows, "confusion": self.confusion.tolist()}


def evaluate(model: PaletteModel, data: ColourDataset, *, temperature: float = 0.38) -> Evaluation:
    """Evaluate a model, the baselines and the upper bound on the test split, in float32.

    The rows are:

    * ``net``: the most likely colour of every pixel;
    * ``net, annealed mean``: the logits decoded with ``annealed_mean`` at ``temperature``;
    * ``majority colour``: a baseline, the most frequent colour of all training pixels;
    * ``grey value's colour``: a baseline, the most frequent colour of the training pixels with the same grey value;
    * ``grey``: the greyscale input;
    * ``palette oracle``: the true label of every pixel, which gives the upper bound for this palette;
    * ``truth``: the ground-truth images.
    """
    train, test, palette = data.train, data.test, model.palette
    truth, train_labels, true_labels = _channels_last(test.rgb), train.labels.numpy(), test.labels.numpy()

    def make_row(name: str, images: np.ndarray, loss: float | None = None) -> EvaluationRow:
        """Compute the metrics of a row. ``images`` are labels if ``loss`` is given, and RGB images otherwise."""
        counts = None if loss is None else metrics.confusion_matrix(images, true_labels, len(palette))
        rgb = images if loss is None else decode_labels(images, palette)
        return EvaluationRow(
            name=name,
            loss=loss,
            accuracy=None if loss is None else metrics.accuracy(images, true_labels),
            balanced_accuracy=None if counts is None else metrics.balanced_accuracy(counts),
            psnr=metrics.psnr(rgb, truth),
            delta_e=metrics.delta_e(rgb, truth),
            colourfulness=float(np.mean([metrics.colourfulness(image) for image in rgb])),
        )

    loss, labels, annealed = _predict(model, test, temperature)
    train_grey, test_grey = train.grey_sum.numpy(), test.grey_sum.numpy()
    majority, by_grey = (
        metrics.grey_lookup_baseline(factor * train_grey, train_labels, factor * test_grey, true_labels, len(palette))
        for factor in (0, 1)  # Factor 0 makes all grey values equal, which gives the majority colour.
    )
    rows = [
        make_row("net", labels, loss),
        make_row("net, annealed mean", annealed),
        make_row("majority colour", majority.labels, majority.loss),
        make_row("grey value's colour", by_grey.labels, by_grey.loss),
        make_row("grey", _grey_images(test)),
        make_row("palette oracle", true_labels, 0.0),
        make_row("truth", truth),
    ]
    return Evaluation(rows, metrics.confusion_matrix(labels, true_labels, len(palette)))


@torch.no_grad()
def _predict(model: PaletteModel, test: LabelledImages, temperature: float) -> tuple[float, LabelMaps, RgbImages]:
    """Return the mean loss, the most likely labels, and the images decoded with the annealed mean."""
    total_loss, labels, annealed = 0.0, [], []
    for start in range(0, len(test), EVAL_BATCH_SIZE):
        batch = test.select(slice(start, start + EVAL_BATCH_SIZE))
        logits = model.network(batch.grey)
        total_loss += F.cross_entropy(logits, batch.labels.long(), reduction="sum").item()
        labels.append(logits.argmax(1).to(torch.uint8).numpy())
        colours = annealed_mean(logits, model.palette, temperature)
        annealed.append(_channels_last((colours * 256).round().clamp(0, 255).to(torch.uint8).numpy()))
    return total_loss / test.labels.numel(), np.concatenate(labels), np.concatenate(annealed)


def _channels_last(rgb: UInt8[np.ndarray, "images 3 height width"]) -> RgbImages:
    return np.ascontiguousarray(rgb.transpose(0, 2, 3, 1))


def _grey_images(images: LabelledImages) -> RgbImages:
    return np.repeat(np.rint(images.grey_sum.numpy() / 3).astype(np.uint8)[..., None], 3, axis=-1)


def sample_grid(
    model: torch.nn.Module, test: LabelledImages, palette: Palette, num_images: int = 10
) -> list[list[UInt8[np.ndarray, "height width 3"]]]:
    """Return three rows of images for the first ``num_images`` test images: greyscale, ground truth and prediction."""
    samples = test.select(slice(0, num_images))
    predicted = decode_labels(predict_labels(model, samples.grey), palette)
    return [list(_grey_images(samples)), list(_channels_last(samples.rgb)), list(predicted)]


@torch.no_grad()
def predict_labels(model: torch.nn.Module, grey: Float32[torch.Tensor, "images 1 height width"]) -> LabelMaps:
    """Return the index of the most likely palette colour of every pixel.

    ``grey`` is in [0, 1). The model predicts in evaluation mode on its own device. The previous mode is restored
    afterwards.
    """
    was_training = model.training
    device = next(model.parameters()).device
    labels: LabelMaps = model.eval()(grey.to(device)).argmax(1).to(torch.uint8).cpu().numpy()
    model.train(was_training)
    return labels
