"""KernelMuon against torch.optim.Muon, singular value decompositions in float64, and plain arithmetic."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.optim import Muon

SHAPES = [(8, 3, 3, 3), (32, 2, 3, 3), (5, 5, 1, 1)]
RATE = 0.1


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioned(shape: tuple[int, ...], seed: int) -> Tensor:
    """A kernel whose matrix has singular values from 0.3 to 1: five Newton–Schulz steps bring these into the band."""
    left, values, right = torch.linalg.svd(random(*shape, seed=seed).flatten(1), full_matrices=False)
    return (left * torch.linspace(1, 0.3, len(values)) @ right).view(shape)


def step_of(optimiser: Muon, kernel: nn.Parameter, gradient: Tensor) -> Tensor:
    """What one step takes away from the kernel, in units of the learning rate."""
    before = kernel.detach().clone()
    kernel.grad = gradient.clone()
    optimiser.step()
    return (before - kernel.detach()) / optimiser.param_groups[0]["lr"]


def assert_orthogonalised(update: Tensor, matrix: Tensor) -> None:
    """In the matrix's own singular bases the update is diagonal, within the band that Newton–Schulz reaches.

    Jordan et al. (2024) give the band as about [0.7, 1.2]; bfloat16 widens it a little. Tall matrices are scaled by
    √(rows/columns).
    """
    update, matrix = update.flatten(1).double(), matrix.flatten(1).double()
    update = update / math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ update @ right.T
    assert (inside.diagonal() > 0.6).all()
    assert (inside.diagonal() < 1.3).all()
    torch.testing.assert_close(inside - inside.diagonal().diag(), torch.zeros_like(inside), rtol=0, atol=0.03)
    torch.testing.assert_close(left @ inside @ right, update, rtol=0, atol=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_the_gradient_made_orthogonal(shape: tuple[int, ...]) -> None:
    kernel = nn.Parameter(random(*shape))
    gradient = conditioned(shape, 1) * 1e-3  # The size of a gradient does not matter.
    assert_orthogonalised(step_of(Muon([kernel], lr=RATE), kernel, gradient), gradient)


def test_momentum_is_nesterovs() -> None:
    """buffer ← m·buffer + (1 − m)·gradient; the step is along (1 − m)·gradient + m·buffer."""
    shape, momentum = SHAPES[0], 0.8
    kernel = nn.Parameter(random(*shape))
    optimiser = Muon([kernel], lr=RATE, momentum=momentum)
    buffer = torch.zeros(shape)
    for seed in (1, 2, 3):
        gradient = conditioned(shape, seed)
        buffer = momentum * buffer + (1 - momentum) * gradient
        assert_orthogonalised(step_of(optimiser, kernel, gradient), (1 - momentum) * gradient + momentum * buffer)


def test_weight_decay_is_decoupled() -> None:
    kernels = [nn.Parameter(random(4, 3, 3, 3)) for _ in range(2)]
    before = kernels[0].detach().clone()
    optimiser = Muon(kernels, lr=RATE, weight_decay=0.5)
    kernels[0].grad = torch.zeros_like(kernels[0])
    optimiser.step()
    torch.testing.assert_close(kernels[0].detach(), before * (1 - RATE * 0.5))
    assert torch.equal(kernels[1].detach(), before)  # Without a gradient nothing happens.


def test_the_learning_rate_of_the_group_is_obeyed() -> None:
    kernels = [nn.Parameter(random(4, 3, 3, 3)) for _ in range(2)]
    for kernel, rate in zip(kernels, (RATE, RATE / 4), strict=True):
        optimiser = Muon([kernel], lr=RATE)
        optimiser.param_groups[0]["lr"] = rate
        kernel.grad = random(4, 3, 3, 3, seed=1)
        optimiser.step()
    moved = [kernel.detach() - random(4, 3, 3, 3) for kernel in kernels]
    torch.testing.assert_close(moved[0], 4 * moved[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (2, 2, 2, 2, 2), ()])
def test_what_is_no_kernel_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="convolution kernels of four dimensions only"):
        Muon([nn.Parameter(random(2, 2, 3, 3)), nn.Parameter(random(*shape))], lr=RATE)


@pytest.mark.parametrize("shape", [*SHAPES, (300, 40, 3, 3), (600, 80, 3, 3), (520, 40, 2, 2)])
def test_steps_are_those_of_torch_on_matrices(shape: tuple[int, ...]) -> None:
    """Up to bfloat16's rounding, also where matrices are computed in several blocks; wide and tall."""
    kernel = nn.Parameter(random(*shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    mine = Muon([kernel], lr=RATE, weight_decay=0.1, momentum=0.9)
    torchs = torch.optim.Muon([matrix], lr=RATE, weight_decay=0.1, momentum=0.9)
    for seed in (1, 2):
        kernel.grad = random(*shape, seed=seed)
        matrix.grad = kernel.grad.flatten(1)
        mine.step()
        torchs.step()
    moved = matrix.detach() - random(*shape).flatten(1)
    torch.testing.assert_close(
        kernel.detach().flatten(1), matrix.detach(), rtol=0, atol=0.02 * float(moved.abs().max())
    )


def test_goes_on_from_the_state_of_torchs() -> None:
    """Checkpoints of earlier versions hold it."""
    kernel = nn.Parameter(random(8, 3, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    torchs = torch.optim.Muon([matrix], lr=RATE, weight_decay=0.1)
    matrix.grad = random(8, 27, seed=1)
    torchs.step()
    kernel.data = matrix.detach().view(8, 3, 3, 3).clone()
    mine = Muon([kernel], lr=1.0)
    mine.load_state_dict(copy.deepcopy(torchs.state_dict()))
    matrix.grad = random(8, 27, seed=2)
    kernel.grad = matrix.grad.view(8, 3, 3, 3)
    torchs.step()
    mine.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), rtol=0, atol=1e-3)


def test_gradients_are_forgotten() -> None:
    kernel = nn.Parameter(random(2, 2, 3, 3))
    kernel.grad = torch.ones_like(kernel)
    Muon([kernel], lr=RATE).zero_grad()
    assert kernel.grad is None


def test_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    kernels = [nn.Parameter(random(4, 3, 3, 3)) for _ in range(2)]
    optimisers = [Muon([kernel], lr=RATE, weight_decay=0.1) for kernel in kernels]
    for seed in (1, 2):
        step_of(optimisers[0], kernels[0], random(4, 3, 3, 3, seed=seed))
    optimisers[0].param_groups[0]["lr"] = 0.03
    save_checkpoint(tmp_path / "a.safetensors", {"kernel": kernels[0], "muon": optimisers[0].state_dict()}, {})
    state, _ = load_checkpoint(tmp_path / "a.safetensors")
    with torch.no_grad():
        kernels[1].copy_(state["kernel"])
    optimisers[1].load_state_dict(state["muon"])
    assert optimisers[1].param_groups[0]["lr"] == 0.03
    for seed in (3, 4):
        for kernel, optimiser in zip(kernels, optimisers, strict=True):
            step_of(optimiser, kernel, random(4, 3, 3, 3, seed=seed))
    assert torch.equal(kernels[0], kernels[1])


def test_memory_layout_makes_no_difference() -> None:
    plain = nn.Parameter(random(8, 3, 3, 3))
    last = nn.Parameter(random(8, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    optimisers = [Muon([kernel], lr=RATE, weight_decay=0.1) for kernel in (plain, last)]
    for seed in (1, 2, 3):
        gradient = random(8, 3, 3, 3, seed=seed)
        step_of(optimisers[0], plain, gradient)
        step_of(optimisers[1], last, gradient.contiguous(memory_format=torch.channels_last))
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_a_net_may_be_moved_after_the_optimiser_was_made() -> None:
    """As a net that goes to its device does, here to another type, which needs no second device."""
    net = nn.Conv2d(3, 8, 3, bias=False)
    optimiser = Muon([net.weight], lr=RATE)
    net.to(torch.float64)
    gradient = conditioned((8, 3, 3, 3), 1).double()
    assert_orthogonalised(step_of(optimiser, net.weight, gradient), gradient)
    assert net.weight.dtype == torch.float64
