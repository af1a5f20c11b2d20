"""Cross-entropy and accuracy, compared with scikit-learn's log_loss and accuracy_score."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from chromabox.colour.training.loss import compute_losses, loss_and_accuracy, pixel_cross_entropy

RNG = np.random.default_rng(3)
LOGITS = torch.from_numpy(3 * RNG.standard_normal((7, 5, 4, 6), dtype=np.float32))
LABELS = torch.from_numpy(RNG.integers(0, 5, (7, 4, 6), dtype=np.uint8))


def flatten_pixels() -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities in scikit-learn's layout, one row for each pixel."""
    logits = LOGITS.double().permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    return LABELS.numpy().ravel(), probabilities / probabilities.sum(1, keepdims=True)


def test_cross_entropy_matches_scikit_learn() -> None:
    labels, probabilities = flatten_pixels()
    assert pixel_cross_entropy(LOGITS, LABELS).item() == pytest.approx(log_loss(labels, probabilities), rel=1e-6)


def test_bfloat16_logits_give_a_float32_loss() -> None:
    low_precision = LOGITS.bfloat16()
    loss = pixel_cross_entropy(low_precision, LABELS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pixel_cross_entropy(low_precision.float(), LABELS), rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_loss_and_accuracy_do_not_depend_on_batch_size(batch_size: int) -> None:
    labels, probabilities = flatten_pixels()
    index = torch.arange(7.0)[:, None, None, None].expand(7, 1, 4, 6)

    def model(grey: torch.Tensor) -> torch.Tensor:
        return LOGITS[grey[:, 0, 0, 0].long()]

    loss, accuracy = loss_and_accuracy(model, index, LABELS, batch_size)
    assert loss == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    assert accuracy == pytest.approx(accuracy_score(labels, probabilities.argmax(1)))


def test_training_loss_has_gradient_and_evaluation_has_none() -> None:
    weight = torch.ones(1, requires_grad=True)
    losses = compute_losses(lambda grey: LOGITS * weight, (torch.zeros(7, 1, 4, 6), LABELS))
    assert list(losses) == ["loss"]
    losses["loss"].backward()
    assert weight.grad is not None
    assert weight.grad.abs() > 0
    loss_and_accuracy(
        lambda grey: (LOGITS * weight).requires_grad_(torch.is_grad_enabled()), torch.zeros(7, 1, 4, 6), LABELS
    )
