"""Analysis of per-pixel predictions.

* Predicted labels, confidence, calibration, and agreement between two models.
* Fine detail: the differences between the pixels of a 4 × 4 block, and how much of them a colourised image preserves.
* Edges of images, distances of pixels from edges, and accuracy by distance.
* Accuracy for vivid and for dull colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.palette.palette import Palette
from chromabox.errors import ChromaboxError

#: Number of images per forward pass, which limits memory.
PREDICT_BATCH_SIZE = 250


@dataclass(frozen=True, eq=False)
class Predictions:
    """Per-pixel predictions of a model."""

    labels: UInt8[np.ndarray, "images height width"]
    """Palette index with the highest probability."""
    confidence: Float32[np.ndarray, "images height width"]
    """Probability of the predicted label."""
    loss: Float32[np.ndarray, "images height width"]
    """Cross-entropy in nats."""
    is_correct: Bool[np.ndarray, "images height width"]
    mean_probabilities: Float64[np.ndarray, " colours"]
    """Mean probability of each colour over all pixels."""


@torch.no_grad()
def predict(model: nn.Module, images: LabelledImages) -> Predictions:
    """Return a model's predictions for some images; the model should be in evaluation mode."""
    batches, mean_probabilities = [], torch.zeros(())
    for grey, truth in zip(images.grey.split(PREDICT_BATCH_SIZE), images.labels.split(PREDICT_BATCH_SIZE), strict=True):
        log_probabilities = F.log_softmax(model(grey).float(), dim=1)
        best, predicted = log_probabilities.max(1)
        loss = F.nll_loss(log_probabilities, truth.long(), reduction="none")
        batches.append((predicted.to(torch.uint8), best.exp(), loss, predicted == truth))
        sums = log_probabilities.exp().sum((0, 2, 3)).double()
        mean_probabilities = mean_probabilities + sums / images.labels.numel()
    labels, confidence, loss_map, is_correct = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
    return Predictions(labels, confidence, loss_map, is_correct, mean_probabilities.numpy())


def measure_agreement(first: Predictions, second: Predictions) -> dict[str, float]:
    """Return the agreement between two models as fractions of all pixels.

    The first four add up to one; ``both_wrong`` contains equal and different predictions. ``different`` is the fraction
    of pixels with two different predictions, correct or not. Raise ChromaboxError if the shapes of the predictions
    differ.
    """
    if first.labels.shape != second.labels.shape:
        shapes = f"{list(first.labels.shape)} and {list(second.labels.shape)}"
        raise ChromaboxError(f"predictions of shapes {shapes}: expected predictions for the same images")
    masks = {
        "both_correct": first.is_correct & second.is_correct,
        "both_wrong": ~first.is_correct & ~second.is_correct,
        "only_first": first.is_correct & ~second.is_correct,
        "only_second": ~first.is_correct & second.is_correct,
        "different": first.labels != second.labels,
    }
    return {name: float(mask.mean()) for name, mask in masks.items()}


@dataclass(frozen=True, eq=False)
class Calibration:
    """Accuracy by confidence, in bins of equal width."""

    confidence: Float[np.ndarray, " bins"]
    """Mean confidence; NaN in bins without pixels, as in ``accuracy``."""
    accuracy: Float[np.ndarray, " bins"]
    fraction: Float[np.ndarray, " bins"]
    """Fraction of all pixels."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean over pixels of |accuracy − confidence| of their bin, 0 to 1."""
        return float(np.nansum(self.fraction * np.abs(self.accuracy - self.confidence)))

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy; positive for an overconfident model."""
        return float(np.nansum(self.fraction * (self.confidence - self.accuracy)))


def calibrate(
    confidence: Float[np.ndarray, "..."], is_correct: Bool[np.ndarray, "..."], num_bins: int = 15
) -> Calibration:
    """Return accuracy by confidence (0 to 1).

    Source: Guo, Pleiss, Sun and Weinberger 2017, section 2; the default of 15 bins is theirs.
    """
    bins = np.minimum((confidence.ravel() * num_bins).astype(int), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=values.ravel(), minlength=num_bins) for values in (confidence, is_correct)]
    mean, accuracy = (np.divide(total, count, out=np.full(num_bins, np.nan), where=count > 0) for total in sums)
    return Calibration(mean, accuracy, count / max(bins.size, 1))


#: Side length in pixels of the block covered by one bottleneck position: the assignment's models halve images twice.
BLOCK = 4
ImageMaps = Float[Tensor, "images channels height width"]


def high_pass(maps: ImageMaps) -> ImageMaps:
    """Subtract the mean of its 4 × 4 block from each pixel. Height and width must be multiples of 4."""
    return maps - F.interpolate(F.avg_pool2d(maps, BLOCK), scale_factor=BLOCK)


def remove_grey(colours: ImageMaps) -> ImageMaps:
    """Subtract the mean of red, green and blue from each channel."""
    return colours - colours.mean(1, keepdim=True)


def label_colours(labels: UInt8[Tensor, "images height width"], palette: Palette) -> ImageMaps:
    """Return the palette colours of labels as RGB/256, channels first."""
    colours = torch.tensor(palette.colours)
    return colours[labels.long()].permute(0, 3, 1, 2)


def compare_high_frequencies(images: ImageMaps, truth: ImageMaps) -> dict[str, float]:
    """Compare the fine detail of images with that of reference images; NaN if either has none.

    Return ``energy``, the sum of squares divided by that of the reference (below 1 if the detail is weaker), and
    ``correlation`` with the detail of the reference (1 if equal up to a factor, 0 if unrelated).
    """
    detail, reference = (high_pass(maps.double()).flatten() for maps in (images, truth))
    energies = torch.stack([detail @ detail, reference @ reference])
    correlation = (detail @ reference) / energies.prod().sqrt()
    return {"energy": (energies[0] / energies[1]).item(), "correlation": correlation.item()}


EdgeMask = Bool[np.ndarray, "images height width"]
DistanceMap = Float64[np.ndarray, "images height width"]


def grey_edges(grey: Float[np.ndarray, "images height width"], edge_fraction: float = 0.1) -> EdgeMask:
    """Return the mask of the ``edge_fraction`` of pixels with the largest Sobel gradient; uniform images have none."""
    from scipy.ndimage import sobel

    gradient = np.hypot(sobel(grey, axis=1, mode="nearest"), sobel(grey, axis=2, mode="nearest"))
    return np.asarray(gradient > np.quantile(gradient, 1 - edge_fraction))


def edge_distances(edges: EdgeMask) -> DistanceMap:
    """Return the distance in pixels from every pixel to the nearest edge pixel of its image; 0 on edges.

    Infinite in images without edges.
    """
    from scipy.ndimage import distance_transform_edt

    # One transform for all images, spaced so far apart that the nearest edge is always in the same image.
    spacing = float(2 * sum(edges.shape[1:]))
    if not edges.any():
        return np.full(edges.shape, np.inf)
    distances = np.asarray(distance_transform_edt(~edges, sampling=(spacing, 1.0, 1.0)))
    distances[~edges.any((1, 2))] = np.inf
    return distances


@dataclass(frozen=True, eq=False)
class AccuracyByEdgeDistance:
    """Accuracy (NaN without pixels) and fraction of all pixels, in bins of distance from the nearest edge."""

    accuracy: Float64[np.ndarray, " bins"]
    fraction: Float64[np.ndarray, " bins"]


def accuracy_by_edge_distance(
    is_correct: Bool[np.ndarray, "images height width"], distances: DistanceMap, bounds: Sequence[int | float]
) -> AccuracyByEdgeDistance:
    """Return the accuracy in the bins between neighbouring ``bounds``, at least two increasing numbers.

    Lower bounds are inclusive, upper bounds exclusive.
    """
    bins = np.searchsorted(np.asarray(bounds), distances.ravel(), side="right") - 1
    inside = (bins >= 0) & (bins < len(bounds) - 1)
    count = np.bincount(bins[inside], minlength=len(bounds) - 1)
    num_correct = np.bincount(bins[inside & is_correct.ravel()], minlength=len(bounds) - 1)
    accuracy = np.divide(num_correct, count, out=np.full(len(count), np.nan), where=count > 0)
    return AccuracyByEdgeDistance(accuracy, count / is_correct.size)


def vivid_colours(palette: Palette) -> Bool[np.ndarray, " colours"]:
    """Return the mask of the half of a palette with the larger chroma √(a*² + b*²) in CIELab; the rest are dull."""
    chroma = np.hypot(*rgb_to_lab(palette.rgb)[:, 1:].T)
    return np.asarray(chroma > np.median(chroma))


def vivid_colour_stats(
    predictions: Predictions, truth: UInt8[np.ndarray, "images height width"], is_vivid: Bool[np.ndarray, " colours"]
) -> dict[str, float]:
    """Compare predictions with the ground truth, separately for vivid and for dull colours.

    Return fractions of the pixels, 0 to 1: ``true_fraction`` and ``predicted_fraction`` of vivid colours, their
    ``mean_probability``, and the accuracy on pixels of each kind of true colour, ``vivid_accuracy`` and
    ``dull_accuracy`` (NaN without such pixels).
    """
    is_correct, vivid_truth = predictions.is_correct, is_vivid[truth]
    vivid_correct, vivid_count = int(is_correct[vivid_truth].sum()), int(vivid_truth.sum())
    dull_correct, dull_count = int(is_correct.sum()) - vivid_correct, vivid_truth.size - vivid_count
    return {
        "true_fraction": vivid_count / vivid_truth.size,
        "predicted_fraction": float(is_vivid[predictions.labels].mean()),
        "mean_probability": float(predictions.mean_probabilities[is_vivid].sum()),
        "vivid_accuracy": vivid_correct / vivid_count if vivid_count else float("nan"),
        "dull_accuracy": dull_correct / dull_count if dull_count else float("nan"),
    }
