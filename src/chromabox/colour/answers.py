"""What nets answer for every pixel, how sure they are, and who is right where two of them differ."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import nn
from torch.nn import functional as F

from chromabox.colour.data import Pictures
from chromabox.errors import ChromaboxError

#: Pictures a forward pass takes; bounds the memory whatever the number of pictures.
BATCH = 250


@dataclass(frozen=True, eq=False)
class Answers:
    """A net's answers, pixel by pixel."""

    labels: UInt8[np.ndarray, "pictures height width"]
    """The likeliest palette index."""
    confidence: Float32[np.ndarray, "pictures height width"]
    """Its probability."""
    loss: Float32[np.ndarray, "pictures height width"]
    """Cross-entropy in nats."""
    right: Bool[np.ndarray, "pictures height width"]
    expected: Float64[np.ndarray, " colours"]
    """Each colour's mean probability over all pixels."""


@torch.no_grad()
def answer(net: nn.Module, pictures: Pictures) -> Answers:
    """A net's answers to some pictures; it should be in evaluation mode."""
    parts, expected = [], torch.zeros(())
    for grey, truth in zip(pictures.grey.split(BATCH), pictures.labels.split(BATCH), strict=True):
        logarithms = F.log_softmax(net(grey).float(), dim=1)
        best, likeliest = logarithms.max(1)
        loss = F.nll_loss(logarithms, truth.long(), reduction="none")
        parts.append((likeliest.to(torch.uint8), best.exp(), loss, likeliest == truth))
        expected = expected + logarithms.exp().sum((0, 2, 3)).double() / pictures.labels.numel()
    labels, confidence, losses, right = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Answers(labels, confidence, losses, right, expected.numpy())


@dataclass(frozen=True)
class Disagreement:
    """How two nets stand to each other; shares of all pixels, which add to one."""

    both_right: float
    both_wrong: float
    """Whether with the same wrong colour or with two."""
    only_first: float
    only_second: float
    differ: float
    """Share of all pixels with two different answers, whoever is right; not a part of the sum."""


def disagreement(first: Answers, second: Answers) -> Disagreement:
    """Who is right where; raises ChromaboxError unless the answers are to the same pictures."""
    if first.labels.shape != second.labels.shape:
        shapes = f"{list(first.labels.shape)} and {list(second.labels.shape)}"
        raise ChromaboxError(f"answers of shapes {shapes}: give two to the same pictures")
    return Disagreement(
        both_right=float((first.right & second.right).mean()),
        both_wrong=float((~first.right & ~second.right).mean()),
        only_first=float((first.right & ~second.right).mean()),
        only_second=float((~first.right & second.right).mean()),
        differ=float((first.labels != second.labels).mean()),
    )


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often a net is right when it is so sure, in bands of equal width of confidence."""

    confidence: Float[np.ndarray, " bands"]
    """Mean confidence; not-a-number in a band without pixels, as in ``accuracy``."""
    accuracy: Float[np.ndarray, " bands"]
    share: Float[np.ndarray, " bands"]
    """Of all pixels."""

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over pixels of |accuracy − confidence| of their band, 0 to 1."""
        return float(np.nansum(self.share * np.abs(self.accuracy - self.confidence)))

    @property
    def surplus(self) -> float:
        """Mean confidence less accuracy: above 0, the net is surer than it should be."""
        return float(np.nansum(self.share * (self.confidence - self.accuracy)))


def calibrate(confidence: Float[np.ndarray, "..."], right: Bool[np.ndarray, "..."], bands: int = 15) -> Calibration:
    """Accuracy against confidence (0 to 1). Guo, Pleiss, Sun and Weinberger 2017, section 2, with their 15 bands."""
    band = np.minimum((confidence.ravel() * bands).astype(int), bands - 1)
    count = np.bincount(band, minlength=bands)
    sums = [np.bincount(band, weights=values.ravel(), minlength=bands) for values in (confidence, right)]
    mean, accuracy = (np.divide(total, count, out=np.full(bands, np.nan), where=count > 0) for total in sums)
    return Calibration(mean, accuracy, count / max(band.size, 1))
