"""Predicted distributions over chroma classes at every position of an image, and values derived from them."""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32

from chromabox.errors import ChromaboxError, UsageError

#: Maximum distance in the a*b* plane at which two colours count as the same when the confidence is computed.
SAME_COLOUR_RADIUS = 20.0
#: Lower bound of log-probabilities when predictions are merged, about the log of the smallest normal float32 number.
MIN_LOG_PROB = np.float32(-87.0)

ScalarMap = Float32[np.ndarray, "height width"]
ClassMaps = Float32[np.ndarray, "classes height width"]


def softmax(scores: Float32[np.ndarray, "*shape"], axis: int) -> Float32[np.ndarray, "*shape"]:
    """Return exp(scores), normalised to a sum of 1 along an axis."""
    result = np.exp(scores - scores.max(axis, keepdims=True))
    return result / result.sum(axis, keepdims=True)


def log_softmax(scores: Float32[np.ndarray, "*shape"], axis: int) -> Float32[np.ndarray, "*shape"]:
    """Return the logarithm of the softmax. Scores of −∞ stay −∞."""
    relative = scores - scores.max(axis, keepdims=True)
    return relative - np.log(np.exp(relative).sum(axis, keepdims=True))


@dataclass(frozen=True)
class ChromaDistribution:
    """Log-probabilities of the classes on a small map, merged over all scales of test-time augmentation.

    ``centres`` are a* and b* of the classes. ``lightness`` is L* (0 to 100) of the image on the same small map.
    """

    log_probabilities: ClassMaps
    centres: Float32[np.ndarray, "classes 2"]
    lightness: ScalarMap

    def anneal(self, temperature: float) -> ClassMaps:
        """Return softmax(log-probabilities / temperature); temperature 0 selects the most likely class.

        Source: Zhang et al. 2016, section 2.3. Raise UsageError for a negative or non-finite temperature.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"temperature is {temperature}: expected 0 (the most likely colour) to 1 (the mean)")
        if temperature == 0:
            best = self.log_probabilities.argmax(0)
            return (np.arange(len(self.centres))[:, None, None] == best).astype(np.float32)
        # Subtract the maximum first. Otherwise, a small temperature could cause overflow.
        relative = self.log_probabilities - self.log_probabilities.max(0)
        # Beyond these limits, float32 would compute 0/0 or ∞/∞, and the result would not change visibly.
        return softmax(relative / np.float32(min(max(temperature, 1e-6), 1e6)), 0)

    def chroma(self, temperature: float) -> Float32[np.ndarray, "height width 2"]:
        """Return a* and b* of the annealed mean at every position."""
        return np.tensordot(self.anneal(temperature), self.centres, axes=(0, 0))

    def decode(
        self, temperature: float, gain: float = 1.0, full_confidence: float = 0.0
    ) -> Float32[np.ndarray, "height width 2"]:
        """Return the annealed mean times ``gain``, faded to grey where the confidence is below ``full_confidence``.

        At confidence c, the factor for the fading is min(1, c / ``full_confidence``). An error costs less if the colour
        is pale.
        """
        chroma = self.chroma(temperature)
        if full_confidence > 0:
            chroma = chroma * np.minimum(self.confidence(chroma) / np.float32(full_confidence), 1)[..., None]
        return chroma * np.float32(gain)

    def confidence(self, chroma: Float[np.ndarray, "height width 2"]) -> ScalarMap:
        """Return the probability (0 to 1) that the true chroma is within ``SAME_COLOUR_RADIUS`` of ``chroma``."""
        a, b = (self.centres[:, axis, None, None] - chroma[..., axis] for axis in (0, 1))
        return np.where(a * a + b * b <= SAME_COLOUR_RADIUS**2, np.exp(self.log_probabilities), np.float32(0)).sum(0)

    def entropy(self) -> ScalarMap:
        """Return the entropy divided by its maximum: 0 if one class is certain, 1 if all classes are equally likely."""
        probabilities = np.exp(self.log_probabilities)
        # 0 · log 0 is 0: a banned class has log-probability −∞.
        finite = np.where(probabilities > 0, self.log_probabilities, np.float32(0))
        # For a single class, log 1 would give 0/0.
        return (probabilities * finite).sum(0) / np.float32(-math.log(max(2, len(self.centres))))


def merge_distributions(distributions: list[ChromaDistribution]) -> ChromaDistribution:
    """Return the weighted geometric mean of several predictions of the same size for one image.

    The weight of a prediction at a position is 1 minus its entropy, plus a small constant. The constant keeps the mean
    defined where all predictions are uniform. The merged distribution is sharper where the predictions agree, and stays
    broad where they differ. Raise ChromaboxError for an empty list.
    """
    if not distributions:
        raise ChromaboxError("no predictions to merge: expected at least one")
    weights = np.stack([np.float32(1.02) - distribution.entropy() for distribution in distributions])
    weights /= weights.sum(0)
    merged = np.zeros_like(distributions[0].log_probabilities)
    for weight, distribution in zip(weights, distributions, strict=True):
        # With probabilities of 0, the result would be undefined where the predictions have no class in common.
        merged += weight * np.maximum(distribution.log_probabilities, MIN_LOG_PROB)
    return replace(distributions[0], log_probabilities=log_softmax(merged, 0))
