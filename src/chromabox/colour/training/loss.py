"""Cross-entropy losses and accuracy for the classification of pixels into palette colours or chroma bins."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.data.datasets import PaletteBatch


def pixel_cross_entropy(
    logits: Float[Tensor, "batch colours height width"], labels: UInt8[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats over all pixels. Logits of any precision are converted to float32."""
    return F.cross_entropy(logits.float(), labels.long())


def compute_losses(forward: Callable[[Tensor], Tensor], batch: PaletteBatch) -> dict[str, Tensor]:
    """Return the training losses of one batch by name. Training minimises ``loss``, the pixel cross-entropy."""
    grey, labels = batch
    return {"loss": pixel_cross_entropy(forward(grey), labels)}


@torch.no_grad()
def loss_and_accuracy(
    forward: Callable[[Tensor], Tensor],
    grey: Float[Tensor, "images 1 height width"],
    labels: UInt8[Tensor, "images height width"],
    batch_size: int = 250,
) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the accuracy in [0, 1] over all pixels of all images."""
    loss, num_correct = 0.0, 0
    for grey_batch, label_batch in zip(grey.split(batch_size), labels.split(batch_size), strict=True):
        logits = forward(grey_batch).float()
        loss += F.cross_entropy(logits, label_batch.long(), reduction="sum").item()
        num_correct += int((logits.argmax(1) == label_batch).sum().item())
    return loss / labels.numel(), num_correct / labels.numel()


BinScores = Float[Tensor, "batch bins height width"]
ChromaTensor = Float[Tensor, "batch 2 height width"]


@lru_cache(maxsize=8)
def _bin_tensors(bins: ChromaBins, device: torch.device) -> tuple[Tensor, ...]:
    """Return the grid of the nearest bins, its start, its size and the centres of the bins.

    The result is cached, because copying from the CPU to a GPU in every step would wait for the previous steps.
    """
    nearest_bin, first = bins.nearest_bin_grid
    arrays = nearest_bin, first, np.array(nearest_bin.shape), bins.centres
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def soft_encode(
    chroma: ChromaTensor, bins: ChromaBins
) -> tuple[Int64[Tensor, "batch 4 height width"], Float[Tensor, "batch 4 height width"]]:
    """Return the indices of the four bins around each pixel's chroma and their bilinear weights, which sum to 1.

    Grid points that are not bins are replaced by their nearest bins. Chroma outside the bounding box of the bins is
    moved to the edge of the box.
    """
    nearest_bin, first, size, _ = _bin_tensors(bins, chroma.device)
    position = chroma / bins.spacing - first[:, None, None]
    position = torch.minimum(position.clamp(min=0), (size - 1)[:, None, None] - 1e-4)
    corner = position.floor()
    offset = position - corner
    row, column = corner.long().unbind(1)
    (top, bottom), (left, right) = ((1 - part, part) for part in offset.unbind(1))
    corners = [nearest_bin[row + down, column + across] for down in (0, 1) for across in (0, 1)]
    return torch.stack(corners, 1), torch.stack([top * left, top * right, bottom * left, bottom * right], 1)


def decode_mean(probabilities: BinScores, bins: ChromaBins) -> ChromaTensor:
    """Return the mean chroma (a*, b*) of the bins at every position, weighted by their probabilities."""
    centres = _bin_tensors(bins, probabilities.device)[-1]
    return torch.einsum("bkhw,kc->bchw", probabilities, centres.to(probabilities.dtype))


def soft_cross_entropy(scores: BinScores, chroma: ChromaTensor, bins: ChromaBins) -> Float[Tensor, ""]:
    """Return the cross-entropy in nats of the logits ``scores`` with the soft-encoded chroma as the target.

    The loss is computed in float32 and averaged over all positions.
    """
    indices, weights = soft_encode(chroma, bins)
    log_probabilities = scores.float().log_softmax(1).gather(1, indices)
    return -(log_probabilities * weights).sum(1).mean()


def photo_loss(scores: BinScores, chroma: ChromaTensor, bins: ChromaBins, mean_weight: float) -> dict[str, Tensor]:
    """Return the training losses of one batch by name. Training minimises ``loss``.

    ``loss`` is ``cross_entropy``, the soft cross-entropy, plus ``mean_weight`` times the mean squared distance between
    the predicted mean chroma and the true chroma, in units of 10 in a* and b*. The expectations of both terms are
    minimal for the true distribution. The second term weights errors like PSNR does: by their squared distance.
    """
    cross_entropy = soft_cross_entropy(scores, chroma, bins)
    error = (decode_mean(scores.float().softmax(1), bins) - chroma) / 10
    return {
        "loss": cross_entropy + mean_weight * error.square().sum(1).mean(),
        "cross_entropy": cross_entropy.detach(),
    }
