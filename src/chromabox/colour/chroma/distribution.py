"""What a net thinks of a picture: a probability for every chroma class at every place, and what follows from it."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from chromabox.errors import ChromaboxError, UsageError

#: A colour within this distance in the a*b* plane counts as "about this colour" where confidence is told.
SAME_COLOUR_RADIUS = 20.0
#: The least logarithm of a probability of which looks are merged: about that of float32's smallest normal number.
MIN_LOG_PROB = -87.0

ScalarMap = Float[Tensor, "height width"]


@dataclass(frozen=True)
class ChromaDistribution:
    """The classes' log-probabilities at a small size, merged over all looks at the picture.

    ``centres`` are the classes' a* and b*; ``lightness`` is the picture's own L*, 0 to 100, at the same small size.
    """

    log_probabilities: Float[Tensor, "classes height width"]
    centres: Float[Tensor, "classes 2"]
    lightness: ScalarMap

    def reweight(self, log_weights: Float[Tensor, " classes"]) -> "ChromaDistribution":
        """The same with the classes' probabilities multiplied by weights (given as logarithms) and normalised."""
        return replace(self, log_probabilities=(self.log_probabilities + log_weights[:, None, None]).log_softmax(0))

    def anneal(self, temperature: float) -> Float[Tensor, "classes height width"]:
        """Probabilities under softmax(log-probabilities / temperature); 0 gives all to the likeliest class.

        Zhang et al. 2016, section 2.3. Raises UsageError for a temperature that is not 0 or more.
        """
        if not (math.isfinite(temperature) and temperature >= 0):
            raise UsageError(f"temperature is {temperature}: give 0 (the likeliest colour) to 1 (the mean)")
        if temperature == 0:
            best = self.log_probabilities.argmax(0, keepdim=True)
            return torch.zeros_like(self.log_probabilities).scatter_(0, best, 1.0)
        # The maximum leaves first, so that a small temperature cannot overflow.
        relative = self.log_probabilities - self.log_probabilities.amax(0, keepdim=True)
        # Beyond these float32 would make 0/0 and ∞/∞ of it, and nothing visible changes any more.
        return (relative / min(max(temperature, 1e-6), 1e6)).softmax(0)

    def chroma(self, temperature: float) -> Float[Tensor, "2 height width"]:
        """The annealed mean: a* and b* at every place."""
        return torch.einsum("khw,kc->chw", self.anneal(temperature), self.centres)

    def confidence(self, chroma: Float[Tensor, "2 height width"]) -> ScalarMap:
        """Probability, 0 to 1, that the true chroma is within ``NEAR`` of the given one."""
        distance = (self.centres[:, :, None, None] - chroma).square().sum(1)
        return (self.log_probabilities.exp() * (distance <= SAME_COLOUR_RADIUS**2)).sum(0)

    def entropy(self) -> ScalarMap:
        """Of the classes' probabilities, as a part of its maximum: 0 certain, 1 no idea."""
        probabilities = self.log_probabilities.exp()
        # 0 · log 0 is 0: a forbidden class has the logarithm −∞.
        terms = torch.where(probabilities > 0, probabilities * self.log_probabilities, 0.0)
        return -terms.sum(0) / math.log(max(2, len(self.centres)))  # a single class is certain, not 0/0


def merge_distributions(distributions: list[ChromaDistribution]) -> ChromaDistribution:
    """One opinion of several about the same picture at the same size, each weighing as much as it is certain.

    The weight of an opinion at a place is 1 minus its entropy (plus a little, so that all-ignorant ones still have a
    mean); the merged probabilities are the weighted geometric mean, which sharpens where the looks agree and stays
    open where they do not. Raises ChromaboxError for none.
    """
    if not distributions:
        raise ChromaboxError("merging needs at least one opinion")
    weights = torch.stack([1.02 - opinion.entropy() for opinion in distributions])
    weights /= weights.sum(0)
    # Two looks that each exclude what the other is sure of must still leave something: nothing is wholly impossible.
    known = [opinion.log_probabilities.clamp(min=MIN_LOG_PROB) for opinion in distributions]
    logarithms = sum(weight * part for weight, part in zip(weights, known, strict=True))
    assert isinstance(logarithms, Tensor)
    return replace(distributions[0], log_probabilities=logarithms.log_softmax(0))
