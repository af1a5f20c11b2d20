"""Cross-entropy loss and accuracy of pixel classification."""

from collections.abc import Callable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from chromabox.colour.data.datasets import PaletteBatch


def pixel_cross_entropy(
    logits: Float[Tensor, "batch colours height width"], labels: UInt8[Tensor, "batch height width"]
) -> Float[Tensor, ""]:
    """Return the cross-entropy in nats, averaged over all pixels; logits of any precision are converted to float32."""
    return F.cross_entropy(logits.float(), labels.long())


def compute_losses(forward: Callable[[Tensor], Tensor], batch: PaletteBatch) -> dict[str, Tensor]:
    """Return the training losses of one batch: ``loss``, the pixel cross-entropy, is minimised."""
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
