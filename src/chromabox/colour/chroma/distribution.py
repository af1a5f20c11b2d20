"""Predicted distributions over chroma classes at every position of an image, and values derived from them."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from chromabox.errors import ChromaboxError, UsageError

#: Maximum distance in the a*b* plane at which two colours count as the same colour for confidence.
SAME_COLOUR_RADIUS = 20.0
#: Lower bound of log-probabilities when predictions are merged: about that of float32's smallest normal number.
MIN_LOG_PROB = -87.0

ScalarMap = Float[Tensor, "height width"]


@dataclass(frozen=True)
class ChromaDistribution:
    """Log-probabilities of the classes on a small map, merged over all scales of test-time augmentation.

    ``centres`` are the classes' a* and b*; ``lightness`` is the image's L*, 0 to 100, on the same small map.
    """

    log_probabilities: Float[Tensor, "classes height width"]
    centres: Float[Tensor, "classes 2"]
    lightness: ScalarMap

    def reweight(self, log_weights: Float[Tensor, " classes"]) -> "ChromaDistribution":
        """Multiply the classes' probabilities by weights, given as logarithms, and normalise them."""
        return replace(self, log_probabilities=(self.log_probabilities + log_weights[:, None, None]).log_softmax(0))

    def anneal(self, temperature: float) -> Float[Tensor, "classes height width"]:
        """Return the probabilities softmax(log-probabilities / temperature); 0 selects the most likely class.

        Source: Zhang et al. 2016, section 2.3. Raise UsageError for a negative or non-finite temperature.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"temperature is {temperature}: expected 0 (the most likely colour) to 1 (the mean)")
        if temperature == 0:
            best = self.log_probabilities.argmax(0, keepdim=True)
            return torch.zeros_like(self.log_probabilities).scatter_(0, best, 1.0)
        # Subtract the maximum first: a small temperature could overflow otherwise.
        relative = self.log_probabilities - self.log_probabilities.amax(0, keepdim=True)
        # Outside this range, float32 would compute 0/0 or ∞/∞, and the result no longer changes visibly.
        return (relative / min(max(temperature, 1e-6), 1e6)).softmax(0)

    def chroma(self, temperature: float) -> Float[Tensor, "2 height width"]:
        """Return the annealed mean: a* and b* at every position."""
        return torch.einsum("khw,kc->chw", self.anneal(temperature), self.centres)

    def confidence(self, chroma: Float[Tensor, "2 height width"]) -> ScalarMap:
        """Return the probability, 0 to 1, that the true chroma is within ``SAME_COLOUR_RADIUS`` of the given one."""
        distance = (self.centres[:, :, None, None] - chroma).square().sum(1)
        return (self.log_probabilities.exp() * (distance <= SAME_COLOUR_RADIUS**2)).sum(0)

    def entropy(self) -> ScalarMap:
        """Return the entropy of the classes' probabilities as a fraction of its maximum: 0 certain, 1 uniform."""
        probabilities = self.log_probabilities.exp()
        # 0 · log 0 is 0: a banned class has the logarithm −∞.
        terms = torch.where(probabilities > 0, probabilities * self.log_probabilities, 0.0)
        return -terms.sum(0) / math.log(max(2, len(self.centres)))  # log 1 would give 0/0 for a single class


def merge_distributions(distributions: list[ChromaDistribution]) -> ChromaDistribution:
    """Merge predictions of the same image and size into one, weighted by their certainty.

    The weight of a prediction at a position is 1 minus its entropy, plus a small constant, which keeps the mean defined
    where all predictions are uniform. The merged probabilities are the weighted geometric mean. It sharpens the
    distribution where the predictions agree and keeps it broad where they differ. Raise ChromaboxError for an empty
    list.
    """
    if not distributions:
        raise ChromaboxError("cannot merge predictions: expected at least one")
    weights = torch.stack([1.02 - distribution.entropy() for distribution in distributions])
    weights /= weights.sum(0)
    # Keep all probabilities above 0: the result must be defined where each prediction excludes the class of another.
    clamped = [distribution.log_probabilities.clamp(min=MIN_LOG_PROB) for distribution in distributions]
    log_probabilities = sum(weight * part for weight, part in zip(weights, clamped, strict=True))
    assert isinstance(log_probabilities, Tensor)
    return replace(distributions[0], log_probabilities=log_probabilities.log_softmax(0))
