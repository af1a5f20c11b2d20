"""What nets answer for every pixel, how sure they are, and who is right where two of them differ.

Fine detail: what makes the pixels of one 4 × 4 block differ, and how much of it a coloured picture has kept.

Where a picture has edges, how far each pixel is from one, and how often a net is right at each distance.

How a net fares with vivid colours and with dull ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Integer, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.chroma.lab import rgb_to_lab_array
from chromabox.colour.data.datasets import LabelledImages
from chromabox.colour.palette.palette import Palette
from chromabox.errors import ChromaboxError

#: Pictures a forward pass takes; bounds the memory whatever the number of pictures.
PREDICT_BATCH_SIZE = 250


@dataclass(frozen=True, eq=False)
class Predictions:
    """A net's answers, pixel by pixel."""

    labels: UInt8[np.ndarray, "pictures height width"]
    """The likeliest palette index."""
    confidence: Float32[np.ndarray, "pictures height width"]
    """Its probability."""
    loss: Float32[np.ndarray, "pictures height width"]
    """Cross-entropy in nats."""
    is_correct: Bool[np.ndarray, "pictures height width"]
    mean_probabilities: Float64[np.ndarray, " colours"]
    """Each colour's mean probability over all pixels."""


@torch.no_grad()
def predict(model: nn.Module, images: LabelledImages) -> Predictions:
    """A net's answers to some pictures; it should be in evaluation mode."""
    parts, expected = [], torch.zeros(())
    for grey, truth in zip(images.grey.split(PREDICT_BATCH_SIZE), images.labels.split(PREDICT_BATCH_SIZE), strict=True):
        logarithms = F.log_softmax(model(grey).float(), dim=1)
        best, likeliest = logarithms.max(1)
        loss = F.nll_loss(logarithms, truth.long(), reduction="none")
        parts.append((likeliest.to(torch.uint8), best.exp(), loss, likeliest == truth))
        expected = expected + logarithms.exp().sum((0, 2, 3)).double() / images.labels.numel()
    labels, confidence, losses, right = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Predictions(labels, confidence, losses, right, expected.numpy())


@dataclass(frozen=True)
class Agreement:
    """How two nets stand to each other; shares of all pixels, which add to one."""

    both_correct: float
    both_wrong: float
    """Whether with the same wrong colour or with two."""
    only_first: float
    only_second: float
    different: float
    """Share of all pixels with two different answers, whoever is right; not a part of the sum."""


def measure_agreement(first: Predictions, second: Predictions) -> Agreement:
    """Who is right where; raises ChromaboxError unless the answers are to the same pictures."""
    if first.labels.shape != second.labels.shape:
        shapes = f"{list(first.labels.shape)} and {list(second.labels.shape)}"
        raise ChromaboxError(f"answers of shapes {shapes}: give two to the same pictures")
    return Agreement(
        both_correct=float((first.is_correct & second.is_correct).mean()),
        both_wrong=float((~first.is_correct & ~second.is_correct).mean()),
        only_first=float((first.is_correct & ~second.is_correct).mean()),
        only_second=float((~first.is_correct & second.is_correct).mean()),
        different=float((first.labels != second.labels).mean()),
    )


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often a net is right when it is so sure, in bands of equal width of confidence."""

    confidence: Float[np.ndarray, " bands"]
    """Mean confidence; not-a-number in a band without pixels, as in ``accuracy``."""
    accuracy: Float[np.ndarray, " bands"]
    fraction: Float[np.ndarray, " bands"]
    """Of all pixels."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over pixels of |accuracy − confidence| of their band, 0 to 1."""
        return float(np.nansum(self.fraction * np.abs(self.accuracy - self.confidence)))

    @property
    def overconfidence(self) -> float:
        """Mean confidence less accuracy: above 0, the net is surer than it should be."""
        return float(np.nansum(self.fraction * (self.confidence - self.accuracy)))


def calibrate(
    confidence: Float[np.ndarray, "..."], is_correct: Bool[np.ndarray, "..."], num_bins: int = 15
) -> Calibration:
    """Accuracy against confidence (0 to 1). Guo, Pleiss, Sun and Weinberger 2017, section 2, with their 15 bands."""
    band = np.minimum((confidence.ravel() * num_bins).astype(int), num_bins - 1)
    count = np.bincount(band, minlength=num_bins)
    sums = [np.bincount(band, weights=values.ravel(), minlength=num_bins) for values in (confidence, is_correct)]
    mean, accuracy = (np.divide(total, count, out=np.full(num_bins, np.nan), where=count > 0) for total in sums)
    return Calibration(mean, accuracy, count / max(band.size, 1))


#: Pixels along the side of what one place of the bottleneck stands for: the assignment's nets halve a picture twice.
BLOCK = 4
FeatureMaps = Float[Tensor, "pictures channels height width"]


def high_pass(maps: FeatureMaps) -> FeatureMaps:
    """Each pixel less the mean of its 4 × 4 block. Sides are multiples of 4."""
    return maps - F.interpolate(F.avg_pool2d(maps, BLOCK), scale_factor=BLOCK)


def remove_grey(colours: FeatureMaps) -> FeatureMaps:
    """Red, green and blue less their own mean: what of a colour is not grey."""
    return colours - colours.mean(1, keepdim=True)


def label_colours(labels: UInt8[Tensor, "pictures height width"], palette: Palette) -> FeatureMaps:
    """The palette's colours of labels, in RGB/256, channels first."""
    colours = torch.tensor(palette.colours)
    return colours[labels.long()].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class HighFrequencyStats:
    """The fine detail of pictures beside that of others."""

    energy: float
    """Sum of its squares as a part of the others': below 1 it is fainter, above 1 there is more of it."""
    correlation: float
    """1 where it is the same but for its strength, 0 where the two have nothing to do with each other."""


def compare_high_frequencies(images: FeatureMaps, truth: FeatureMaps) -> HighFrequencyStats:
    """Compare the fine detail of corresponding pictures; not-a-number where either has none."""
    ours, true = (high_pass(maps.double()).flatten() for maps in (images, truth))
    energies = torch.stack([ours @ ours, true @ true])
    return HighFrequencyStats((energies[0] / energies[1]).item(), ((ours @ true) / energies.prod().sqrt()).item())


#: The part of all pixels that count as edges of grey pictures: those where grey changes most.
EDGE_FRACTION = 0.1
EdgeMask = Bool[np.ndarray, "pictures height width"]
DistanceMap = Float64[np.ndarray, "pictures height width"]


def label_edges(labels: Integer[np.ndarray, "pictures height width"]) -> EdgeMask:
    """Pixels with a pixel of another label above, below, left or right of them."""
    edges = np.zeros(labels.shape, bool)
    across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges


def grey_edges(grey: Float[np.ndarray, "pictures height width"], edge_fraction: float = EDGE_FRACTION) -> EdgeMask:
    """The ``steepest`` part of all pixels by the length of Sobel's gradient; flat pictures may have none."""
    from scipy.ndimage import sobel

    steepness = np.hypot(sobel(grey, axis=1, mode="nearest"), sobel(grey, axis=2, mode="nearest"))
    return np.asarray(steepness > np.quantile(steepness, 1 - edge_fraction))


def edge_distances(edges: EdgeMask) -> DistanceMap:
    """Distance, in pixels, of every pixel's centre to the nearest edge pixel of its picture: 0 on one.

    Infinite in a picture without edges.
    """
    from scipy.ndimage import distance_transform_edt

    # One transform for all pictures: so far apart that the nearest edge is always one's own picture's.
    apart = float(2 * sum(edges.shape[1:]))
    if not edges.any():
        return np.full(edges.shape, np.inf)
    distances = np.asarray(distance_transform_edt(~edges, sampling=(apart, 1.0, 1.0)))
    distances[~edges.any((1, 2))] = np.inf
    return distances


@dataclass(frozen=True, eq=False)
class AccuracyByEdgeDistance:
    """How often a net is right, in bands of distance from an edge; not-a-number in a band without pixels."""

    accuracy: Float64[np.ndarray, " bands"]
    """Share of the band's pixels that are right."""
    fraction: Float64[np.ndarray, " bands"]
    """Share of all pixels that are in the band."""


def accuracy_by_edge_distance(
    is_correct: Bool[np.ndarray, "pictures height width"], distances: DistanceMap, bounds: Sequence[int | float]
) -> AccuracyByEdgeDistance:
    """Accuracy in the bands between neighbouring ``bounds``, each with its lower bound and without its upper one.

    Raises ChromaboxError for fewer than two bounds or such as do not grow.
    """
    if len(bounds) < 2 or any(low >= high for low, high in pairwise(bounds)):
        raise ChromaboxError(f"bounds {list(bounds)}: bands take at least two, each greater than the one before")
    band = np.searchsorted(np.asarray(bounds), distances.ravel(), side="right") - 1
    inside = (band >= 0) & (band < len(bounds) - 1)
    count = np.bincount(band[inside], minlength=len(bounds) - 1)
    hits = np.bincount(band[inside & is_correct.ravel()], minlength=len(bounds) - 1)
    accuracy = np.divide(hits, count, out=np.full(len(count), np.nan), where=count > 0)
    return AccuracyByEdgeDistance(accuracy, count / is_correct.size)


def vivid_colours(palette: Palette) -> Bool[np.ndarray, " colours"]:
    """The half of a palette with the greater chroma, √(a*² + b*²) in CIELab; the rest are dull."""
    chroma = np.hypot(*rgb_to_lab_array(palette.rgb)[:, 1:].T)
    return np.asarray(chroma > np.median(chroma))


@dataclass(frozen=True)
class VividColourStats:
    """Shares, 0 to 1; not-a-number where there is nothing to share."""

    true_fraction: float
    """Pixels whose true colour is vivid."""
    predicted_fraction: float
    """Pixels to which the net gives a vivid colour."""
    mean_probability: float
    """The probability that the net gives to vivid colours, mean over the pixels."""
    vivid_accuracy: float
    """Of the pixels of vivid colour those that are right."""
    dull_accuracy: float
    """Of the pixels of dull colour those that are right."""


def vivid_colour_stats(
    predictions: Predictions, truth: UInt8[np.ndarray, "pictures height width"], is_vivid: Bool[np.ndarray, " colours"]
) -> VividColourStats:
    """Compare a net's answers with the truth, for the colours that are ``vivid`` and for the others."""
    right, lively = predictions.is_correct, is_vivid[truth]
    hits, count = int(right[lively].sum()), int(lively.sum())
    dull_hits, dull_count = int(right.sum()) - hits, lively.size - count
    return VividColourStats(
        true_fraction=count / lively.size,
        predicted_fraction=float(is_vivid[predictions.labels].mean()),
        mean_probability=float(predictions.mean_probabilities[is_vivid].sum()),
        vivid_accuracy=hits / count if count else float("nan"),
        dull_accuracy=dull_hits / dull_count if dull_count else float("nan"),
    )
