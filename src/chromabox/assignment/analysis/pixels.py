"""Analysis of per-pixel predictions.

* Predicted labels, confidence, calibration, and agreement between two models.
* Fine detail in colourised and true images: the deviation of each pixel from the mean of its 4 × 4 block.
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

#: Number of images per forward pass. A larger number requires more memory.
PREDICT_BATCH_SIZE = 250


@dataclass(frozen=True, eq=False)
class Predictions:
    """Per-pixel predictions of a model."""

    labels: UInt8[np.ndarray, "images height width"]
    """Index of the palette colour with the highest probability."""
    confidence: Float32[np.ndarray, "images height width"]
    """Probability of the predicted label."""
    loss: Float32[np.ndarray, "images height width"]
    """Cross-entropy in nats."""
    is_correct: Bool[np.ndarray, "images height width"]
    mean_probabilities: Float64[np.ndarray, " colours"]
    """Mean probability of each colour over all pixels."""


@torch.no_grad()
def predict(model: nn.Module, images: LabelledImages) -> Predictions:
    """Return the predictions of a model in evaluation mode."""
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

    ``both_correct``, ``both_wrong``, ``only_first`` and ``only_second`` add up to 1. ``different`` is the fraction of
    pixels for which the predictions of the models differ. Raise ChromaboxError if the predictions have different
    shapes.
    """
    if first.labels.shape != second.labels.shape:
        shapes = f"{list(first.labels.shape)} and {list(second.labels.shape)}"
        raise ChromaboxError(f"the predictions have shapes {shapes}: expected predictions for the same images")
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
    """Mean confidence, accuracy, and fraction of all pixels in every confidence bin. All bins have the same width.

    The confidence and accuracy of a bin without pixels are NaN.
    """

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    fraction: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """Expected calibration error (0 to 1): mean |accuracy − confidence|, weighted by the fractions of the bins."""
        return float(np.nansum(self.fraction * np.abs(self.accuracy - self.confidence)))

    @property
    def overconfidence(self) -> float:
        """Mean confidence minus accuracy, which is positive for an overconfident model."""
        return float(np.nansum(self.fraction * (self.confidence - self.accuracy)))


def calibrate(
    confidence: Float[np.ndarray, "..."], is_correct: Bool[np.ndarray, "..."], num_bins: int = 15
) -> Calibration:
    """Return the mean confidence and the accuracy in bins of confidence, which ranges from 0 to 1.

    Source: Guo, Pleiss, Sun and Weinberger 2017, section 2. The default number of bins is from the same paper.
    """
    bins = np.minimum((confidence.ravel() * num_bins).astype(int), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=values.ravel(), minlength=num_bins) for values in (confidence, is_correct)]
    mean, accuracy = (np.divide(total, count, out=np.full(num_bins, np.nan), where=count > 0) for total in sums)
    return Calibration(mean, accuracy, count / max(bins.size, 1))


#: Side length, in pixels, of the block that one bottleneck position of the assignment's models represents.
BLOCK = 4
ImageMaps = Float[Tensor, "images channels height width"]


def high_pass(maps: ImageMaps) -> ImageMaps:
    """Subtract from each pixel the mean of its 4 × 4 block. Height and width must be multiples of 4."""
    return maps - F.interpolate(F.avg_pool2d(maps, BLOCK), scale_factor=BLOCK)


def remove_grey(colours: ImageMaps) -> ImageMaps:
    """Subtract the mean of red, green and blue from each channel."""
    return colours - colours.mean(1, keepdim=True)


def label_colours(labels: UInt8[Tensor, "images height width"], palette: Palette) -> ImageMaps:
    """Return the palette colours of the labels as RGB values divided by 256."""
    colours = torch.tensor(palette.colours)
    return colours[labels.long()].permute(0, 3, 1, 2)


def compare_high_frequencies(images: ImageMaps, truth: ImageMaps) -> dict[str, float]:
    """Compare the fine detail of images with the fine detail of reference images.

    Return ``energy``, the sum of squares of the detail divided by that of the reference images, and ``correlation``,
    which is 1 if the detail equals the reference detail up to a positive factor. An energy below 1 means that the
    images have weaker detail. The correlation is NaN if either set of images has no detail.
    """
    detail, reference = (high_pass(maps.double()).flatten() for maps in (images, truth))
    energies = torch.stack([detail @ detail, reference @ reference])
    correlation = (detail @ reference) / energies.prod().sqrt()
    return {"energy": (energies[0] / energies[1]).item(), "correlation": correlation.item()}


EdgeMask = Bool[np.ndarray, "images height width"]
DistanceMap = Float64[np.ndarray, "images height width"]


def grey_edges(grey: Float[np.ndarray, "images height width"], edge_fraction: float = 0.1) -> EdgeMask:
    """Return a mask of the pixels with the largest Sobel gradients, which make up ``edge_fraction`` of all pixels."""
    from scipy.ndimage import sobel

    gradient = np.hypot(sobel(grey, axis=1, mode="nearest"), sobel(grey, axis=2, mode="nearest"))
    return np.asarray(gradient > np.quantile(gradient, 1 - edge_fraction))


def edge_distances(edges: EdgeMask) -> DistanceMap:
    """Return the distance in pixels from every pixel to the nearest edge pixel of the same image.

    The distance is 0 on edges and infinite in images without edges.
    """
    from scipy.ndimage import distance_transform_edt

    distances = np.full(edges.shape, np.inf)
    for image, distance in zip(edges, distances, strict=True):
        if image.any():
            distance[:] = distance_transform_edt(~image)
    return distances


@dataclass(frozen=True, eq=False)
class AccuracyByEdgeDistance:
    """Accuracy (NaN for empty bins) and fraction of all pixels, in bins of distance from the nearest edge."""

    accuracy: Float64[np.ndarray, " bins"]
    fraction: Float64[np.ndarray, " bins"]


def accuracy_by_edge_distance(
    is_correct: Bool[np.ndarray, "images height width"], distances: DistanceMap, bounds: Sequence[int | float]
) -> AccuracyByEdgeDistance:
    """Return the accuracy in bins of distance. A bin includes its lower bound and excludes its upper bound."""
    bins = np.searchsorted(np.asarray(bounds), distances.ravel(), side="right") - 1
    inside = (bins >= 0) & (bins < len(bounds) - 1)
    count = np.bincount(bins[inside], minlength=len(bounds) - 1)
    num_correct = np.bincount(bins[inside & is_correct.ravel()], minlength=len(bounds) - 1)
    accuracy = np.divide(num_correct, count, out=np.full(len(count), np.nan), where=count > 0)
    return AccuracyByEdgeDistance(accuracy, count / is_correct.size)


def vivid_colours(palette: Palette) -> Bool[np.ndarray, " colours"]:
    """Return a mask of the vivid colours, whose CIELAB chroma √(a*² + b*²) exceeds the median. All others are dull."""
    chroma = np.hypot(*rgb_to_lab(palette.rgb)[:, 1:].T)
    return np.asarray(chroma > np.median(chroma))


def vivid_colour_stats(
    predictions: Predictions, truth: UInt8[np.ndarray, "images height width"], is_vivid: Bool[np.ndarray, " colours"]
) -> dict[str, float]:
    """Compare predictions with the ground truth, separately for vivid and for dull colours.

    Return ``true_fraction`` and ``predicted_fraction``, the fractions of pixels with vivid colours;
    ``mean_probability``, the mean predicted probability of vivid colours; and ``vivid_accuracy`` and
    ``dull_accuracy``, the accuracies on the pixels with vivid and with dull true colours, NaN without such pixels.
    """
    vivid_truth = is_vivid[truth]
    accuracies = {
        f"{name}_accuracy": float(predictions.is_correct[mask].mean()) if mask.any() else float("nan")
        for name, mask in (("vivid", vivid_truth), ("dull", ~vivid_truth))
    }
    return {
        "true_fraction": float(vivid_truth.mean()),
        "predicted_fraction": float(is_vivid[predictions.labels].mean()),
        "mean_probability": float(predictions.mean_probabilities[is_vivid].sum()),
        **accuracies,
    }
