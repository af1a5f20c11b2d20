"""Tests of the losses; expected values from scikit-learn and PyTorch. The mean of soft targets is the chroma."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss
from torch.nn import functional as F

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.training.loss import (
    compute_losses,
    decode_mean,
    loss_and_accuracy,
    pixel_cross_entropy,
    soft_cross_entropy,
    soft_encode,
)

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


def full_grid(radius: int = 4, spacing: float = 10.0) -> ChromaBins:
    """Return bins at all grid points with both coordinates at most ``radius`` steps from grey, equally frequent."""
    cells = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
    frequencies = np.full(len(cells), 1 / len(cells), np.float32)
    return ChromaBins((cells * spacing).astype(np.float32), frequencies, spacing)


GRID = full_grid()
CHROMA = st.lists(st.tuples(*[st.floats(-40, 40, width=32)] * 2), min_size=1, max_size=40)


def to_tensor(chroma: list[tuple[float, float]]) -> torch.Tensor:
    """Return a chroma tensor [1, 2, 1, count]."""
    return torch.tensor(chroma, dtype=torch.float32).T[None, :, None]


@settings(max_examples=100, deadline=None)
@given(CHROMA)
def test_mean_under_targets_is_the_chroma(chroma: list[tuple[float, float]]) -> None:
    expected = to_tensor(chroma)
    bins, weights = soft_encode(expected, GRID)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
    probabilities = torch.zeros(1, len(GRID), *expected.shape[2:]).scatter_add_(1, bins, weights)
    torch.testing.assert_close(decode_mean(probabilities, GRID), expected, atol=2e-3, rtol=0)
    # Only the corners of the cell that contains the chroma have weight.
    centres = torch.from_numpy(GRID.centres)[bins].movedim(-1, 1)
    far = (centres - expected[:, :, None]).abs().amax(1) > GRID.spacing * 1.001
    assert (weights[far] < 1e-3).all()


def test_target_of_grid_point_is_that_bin() -> None:
    inner = np.abs(GRID.centres).max(1) < 40
    bins, weights = soft_encode(to_tensor(GRID.centres[inner].tolist()), GRID)
    heaviest = bins.gather(1, weights.argmax(1, keepdim=True)).flatten().numpy()
    assert heaviest.tolist() == np.flatnonzero(inner).tolist()
    assert weights.amax(1).min() == 1


@pytest.mark.parametrize("chroma", [(200.0, 0.0), (41.0, -41.0), (-90.0, 300.0), (0.0, -40.0)])
def test_chroma_outside_bins_moves_to_nearest_bin(chroma: tuple[float, float]) -> None:
    bins, weights = soft_encode(to_tensor([chroma]), GRID)
    mean = (torch.from_numpy(GRID.centres)[bins[0, :, 0, 0]] * weights[0, :, 0, 0, None]).sum(0)
    np.testing.assert_allclose(mean, np.clip(chroma, -40, 40), atol=2e-3)


def test_missing_grid_points_map_to_nearest_bin() -> None:
    subset = np.hypot(*GRID.centres.T) <= 25
    bins = ChromaBins(GRID.centres[subset], GRID.frequencies[subset], GRID.spacing)
    indices, weights = soft_encode(to_tensor([(40.0, 0.0), (0.0, -40.0), (20.0, 10.0)]), bins)
    assert indices.max() < len(bins)
    mean = (torch.from_numpy(bins.centres)[indices[0, :, 0]] * weights[0, :, 0, :, None]).sum(0)
    np.testing.assert_allclose(mean, [[20, 0], [0, -20], [20, 10]], atol=2e-3)


def test_bins_on_a_line_are_valid() -> None:
    line = ChromaBins(np.array([[0, -10], [0, 0], [0, 10]], np.float32), np.full(3, 0.3, np.float32), 10.0)
    bins, weights = soft_encode(to_tensor([(0.0, 5.0), (7.0, -5.0)]), line)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 1, 2))
    mean = (torch.from_numpy(line.centres)[bins[0, :, 0]] * weights[0, :, 0, :, None]).sum(0)
    np.testing.assert_allclose(mean, [[0, 5], [0, -5]], atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_cross_entropy_equals_that_of_pytorch_with_soft_targets(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    bins = full_grid(1, 20.0)
    scores = (torch.randn(2, 9, 3, 4, generator=random) * 3).to(dtype)
    chroma = torch.rand(2, 2, 3, 4, generator=random) * 40 - 20
    distances = (chroma[:, None] / 20 - torch.from_numpy(bins.centres / 20)[:, :, None, None]).abs()
    bilinear_weights = (1 - distances).clamp(min=0)
    loss = soft_cross_entropy(scores, chroma, bins)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(scores.float(), bilinear_weights.prod(2))
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-3)
