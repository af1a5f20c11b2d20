"""The loss against scikit-learn's log_loss, accuracy against its accuracy_score."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from chromabox.colour.training.loss import compute_losses, loss_and_accuracy, pixel_cross_entropy

RNG = np.random.default_rng(3)
LOGITS = torch.from_numpy(3 * RNG.standard_normal((7, 5, 4, 6), dtype=np.float32))
LABELS = torch.from_numpy(RNG.integers(0, 5, (7, 4, 6), dtype=np.uint8))


def flat() -> tuple[np.ndarray, np.ndarray]:
    """True labels and probabilities as scikit-learn takes them, one pixel a row."""
    scores = LOGITS.double().permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    probability = np.exp(scores - scores.max(1, keepdims=True))
    return LABELS.numpy().ravel(), probability / probability.sum(1, keepdims=True)


def test_cross_entropy_is_scikit_learns() -> None:
    truth, probability = flat()
    assert pixel_cross_entropy(LOGITS, LABELS).item() == pytest.approx(log_loss(truth, probability), rel=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    rough = LOGITS.bfloat16()
    found = pixel_cross_entropy(rough, LABELS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pixel_cross_entropy(rough.float(), LABELS), rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_mean_over_all_pixels_whatever_the_batches(batch_size: int) -> None:
    truth, probability = flat()
    index = torch.arange(7.0)[:, None, None, None].expand(7, 1, 4, 6)

    def net(grey: torch.Tensor) -> torch.Tensor:
        return LOGITS[grey[:, 0, 0, 0].long()]

    loss, accuracy = loss_and_accuracy(net, index, LABELS, batch_size)
    assert loss == pytest.approx(log_loss(truth, probability), rel=1e-6)
    assert accuracy == pytest.approx(accuracy_score(truth, probability.argmax(1)))


def test_training_loss_has_a_gradient_and_measuring_has_none() -> None:
    weight = torch.ones(1, requires_grad=True)
    losses = compute_losses(lambda grey: LOGITS * weight, (torch.zeros(7, 1, 4, 6), LABELS))
    assert list(losses) == ["loss"]
    losses["loss"].backward()
    assert weight.grad is not None
    assert weight.grad.abs() > 0
    loss_and_accuracy(
        lambda grey: (LOGITS * weight).requires_grad_(torch.is_grad_enabled()), torch.zeros(7, 1, 4, 6), LABELS
    )
