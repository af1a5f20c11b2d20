"""What a trained net is worth: its scores beside floors that need no net and the ceiling that its palette sets."""

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

#: Pictures a forward pass takes; bounds the memory whatever the size of the split.
EVAL_BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One row of the table. What a row has no value for is None."""

    name: str
    loss: float | None = None
    """Cross-entropy in nats a pixel."""
    accuracy: float | None = None
    """Fraction of pixels whose label is the target's."""
    balanced_accuracy: float | None = None
    """Mean over colours of the fraction found."""
    psnr: float
    """Decibels, against the true pictures, over all pixels."""
    delta_e: float
    """Mean CIEDE2000 difference to the true pictures."""
    colourfulness: float
    """Hasler & Süsstrunk 2003, mean over pictures; compare with the truth's."""


@dataclass(frozen=True)
class Evaluation:
    """All rows, and where the net's colours went."""

    rows: list[EvaluationRow]
    confusion: Int64[np.ndarray, "truth prediction"]

    def row(self, name: str) -> EvaluationRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def as_json(self) -> dict[str, Any]:
        """Rows by name and the confusion matrix, as JSON values; an infinite PSNR, which JSON has not, becomes None."""
        rows = {
            row.name: {key: None if value in (math.inf, -math.inf) else value for key, value in asdict(row).items()}
            for row in self.rows
        }
        return {"rows": rows, "confusion": self.confusion.tolist()}


def evaluate(model: PaletteModel, data: ColourDataset, *, temperature: float = 0.38) -> Evaluation:
    """Measure a net on the test split, in float32, and beside it on the same split what no net and no palette beats.

    Rows: ``net`` (the likeliest colour of every pixel), ``net, annealed mean`` (the same scores blended, see
    ``annealed_mean``), the floors ``majority colour`` and ``grey value's colour`` (both learnt from the training
    split), ``grey`` (the input itself), the ceiling ``palette oracle`` (every pixel its true label), and the truth.
    """
    test, palette = data.test, model.palette
    truth = _channels_last(test.rgb)
    loss, labels, blended = _predict(model, test, temperature)
    confusion = metrics.confusion_matrix(labels, test.labels.numpy(), len(palette.colours))
    net = _row("net", decode_labels(labels, palette), truth, loss, labels, test, confusion)
    grey = np.repeat(np.rint(test.grey_sum.numpy() / 3).astype(np.uint8)[..., None], 3, axis=-1)
    oracle = test.labels.numpy()
    rows = [
        net,
        _row("net, annealed mean", blended, truth),
        *_baselines(data, palette, truth),
        _row("grey", grey, truth),
        _row("palette oracle", decode_labels(oracle, palette), truth, 0.0, oracle, test),
        _row("truth", truth, truth),
    ]
    return Evaluation(rows, confusion)


@torch.no_grad()
def _predict(
    model: PaletteModel, test: LabelledImages, temperature: float
) -> tuple[float, UInt8[np.ndarray, "pictures height width"], UInt8[np.ndarray, "pictures height width 3"]]:
    """Mean loss, likeliest labels, and the annealed-mean pictures."""
    total, labels, blended = 0.0, [], []
    for begin in range(0, len(test), EVAL_BATCH_SIZE):
        part = test.select(slice(begin, begin + EVAL_BATCH_SIZE))
        logits = model.network(part.grey)
        total += F.cross_entropy(logits, part.labels.long(), reduction="sum").item()
        labels.append(logits.argmax(1).to(torch.uint8).numpy())
        colours = annealed_mean(logits, model.palette, temperature)
        blended.append((colours * 256).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return total / test.labels.numel(), np.concatenate(labels), np.concatenate(blended)


def _baselines(
    data: ColourDataset, palette: Palette, truth: UInt8[np.ndarray, "pictures height width 3"]
) -> list[EvaluationRow]:
    """The two ways of answering without a net."""
    count = len(palette.colours)
    train, test = data.train, data.test
    train_labels, test_labels = train.labels.numpy(), test.labels.numpy()
    baselines = {
        "majority colour": metrics.majority_baseline(train_labels, test_labels, count),
        "grey value's colour": metrics.grey_lookup_baseline(
            train.grey_sum.numpy(), train_labels, test.grey_sum.numpy(), test_labels, count
        ),
    }
    return [
        _row(name, decode_labels(found.labels, palette), truth, found.loss, found.labels, test)
        for name, found in baselines.items()
    ]


def _row(
    name: str,
    rgb: UInt8[np.ndarray, "pictures height width 3"],
    truth: UInt8[np.ndarray, "pictures height width 3"],
    loss: float | None = None,
    labels: UInt8[np.ndarray, "pictures height width"] | None = None,
    test: LabelledImages | None = None,
    confusion: Int64[np.ndarray, "truth prediction"] | None = None,
) -> EvaluationRow:
    accuracy = balanced = None
    if labels is not None and test is not None:
        target = test.labels.numpy()
        accuracy = metrics.accuracy(labels, target)
        count = int(max(labels.max(), target.max())) + 1
        balanced = metrics.balanced_accuracy(
            metrics.confusion_matrix(labels, target, count) if confusion is None else confusion
        )
    return EvaluationRow(
        name=name,
        loss=loss,
        accuracy=accuracy,
        balanced_accuracy=balanced,
        psnr=metrics.psnr(rgb, truth),
        delta_e=metrics.delta_e(rgb, truth),
        colourfulness=float(np.mean([metrics.colourfulness(picture) for picture in rgb])),
    )


def _channels_last(rgb: UInt8[np.ndarray, "pictures 3 height width"]) -> UInt8[np.ndarray, "pictures height width 3"]:
    return np.ascontiguousarray(rgb.transpose(0, 2, 3, 1))


def sample_grid(
    model: torch.nn.Module, test: LabelledImages, palette: Palette, num_images: int = 10
) -> list[list[UInt8[np.ndarray, "height width 3"]]]:
    """Rows of pictures for the eye: (grey, truth, prediction) of the first ``count`` test pictures."""
    part = test.select(slice(0, num_images))
    labels = predict_labels(model, part.grey)
    grey = np.rint(part.grey_sum.numpy() / 3).astype(np.uint8)
    greys = [np.repeat(picture[..., None], 3, axis=-1) for picture in grey]
    return [greys, list(_channels_last(part.rgb)), list(decode_labels(labels, palette))]


@torch.no_grad()
def predict_labels(
    model: torch.nn.Module, grey: Float32[torch.Tensor, "pictures 1 height width"]
) -> UInt8[np.ndarray, "pictures height width"]:
    """The likeliest palette index of every pixel."""
    training = model.training
    device = next(model.parameters()).device
    labels: UInt8[np.ndarray, "pictures height width"] = (
        model.eval()(grey.to(device)).argmax(1).to(torch.uint8).cpu().numpy()
    )
    model.train(training)
    return labels
