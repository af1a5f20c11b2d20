"""Muon, compared with torch.optim.Muon, singular value decompositions in float64, and direct formulas."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.optim import Muon

SHAPES = [(8, 3, 3, 3), (32, 2, 3, 3), (5, 5, 1, 1)]
LR = 0.1


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def well_conditioned(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a kernel with singular values from 0.3 to 1, for which five Newton–Schulz steps are sufficient."""
    left, values, right = torch.linalg.svd(random_tensor(*shape, seed=seed).flatten(1), full_matrices=False)
    return (left * torch.linspace(1, 0.3, len(values)) @ right).view(shape)


def take_step(optimizer: Muon, kernel: nn.Parameter, gradient: Tensor) -> Tensor:
    """Take one step; return the change of the kernel divided by the negative learning rate."""
    before = kernel.detach().clone()
    kernel.grad = gradient.clone()
    optimizer.step()
    return (before - kernel.detach()) / optimizer.param_groups[0]["lr"]


def assert_orthogonalised(update: Tensor, matrix: Tensor) -> None:
    """Assert that the update is diagonal in the singular bases of the matrix, with values in the Newton–Schulz range.

    The range is about [0.7, 1.2] (Jordan et al. 2024), slightly wider in bfloat16. Tall matrices are scaled by
    √(rows/columns).
    """
    update, matrix = update.flatten(1).double(), matrix.flatten(1).double()
    update = update / math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    projected = left.T @ update @ right.T
    assert (projected.diagonal() > 0.6).all()
    assert (projected.diagonal() < 1.3).all()
    torch.testing.assert_close(projected - projected.diagonal().diag(), torch.zeros_like(projected), rtol=0, atol=0.03)
    torch.testing.assert_close(left @ projected @ right, update, rtol=0, atol=0.03)


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("shape", SHAPES)
def test_step_is_the_orthogonalised_gradient_in_both_precisions(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], capability: str
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    kernel = nn.Parameter(random_tensor(*shape))
    gradient = well_conditioned(shape, 1) * 1e-3  # The scale of the gradient has no effect.
    assert_orthogonalised(take_step(Muon([kernel], lr=LR), kernel, gradient), gradient)


@pytest.mark.parametrize(("capability", "dtype"), [("AVX2", torch.float32), ("AVX512", torch.bfloat16)])
def test_bfloat16_is_used_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    dtypes = []

    def record(matrix: Tensor) -> Tensor:
        dtypes.append(matrix.dtype)
        return matrix

    monkeypatch.setattr("chromabox.engine.optim.newton_schulz", record)
    take_step(Muon([kernel := nn.Parameter(random_tensor(4, 3, 3, 3))], lr=LR), kernel, random_tensor(4, 3, 3, 3))
    assert dtypes == [dtype]


def test_momentum_is_nesterov() -> None:
    """Expect buffer ← m·buffer + (1 − m)·gradient and a step along (1 − m)·gradient + m·buffer."""
    shape, momentum = SHAPES[0], 0.8
    kernel = nn.Parameter(random_tensor(*shape))
    optimizer = Muon([kernel], lr=LR, momentum=momentum)
    buffer = torch.zeros(shape)
    for seed in (1, 2, 3):
        gradient = well_conditioned(shape, seed)
        buffer = momentum * buffer + (1 - momentum) * gradient
        assert_orthogonalised(take_step(optimizer, kernel, gradient), (1 - momentum) * gradient + momentum * buffer)


def test_weight_decay_is_decoupled() -> None:
    kernels = [nn.Parameter(random_tensor(4, 3, 3, 3)) for _ in range(2)]
    before = kernels[0].detach().clone()
    optimizer = Muon(kernels, lr=LR, weight_decay=0.5)
    kernels[0].grad = torch.zeros_like(kernels[0])
    optimizer.step()
    torch.testing.assert_close(kernels[0].detach(), before * (1 - LR * 0.5))
    assert torch.equal(kernels[1].detach(), before)  # Parameters without gradients are not changed.


def test_learning_rate_of_the_group_is_used() -> None:
    kernels = [nn.Parameter(random_tensor(4, 3, 3, 3)) for _ in range(2)]
    for kernel, lr in zip(kernels, (LR, LR / 4), strict=True):
        optimizer = Muon([kernel], lr=LR)
        optimizer.param_groups[0]["lr"] = lr
        kernel.grad = random_tensor(4, 3, 3, 3, seed=1)
        optimizer.step()
    changes = [kernel.detach() - random_tensor(4, 3, 3, 3) for kernel in kernels]
    torch.testing.assert_close(changes[0], 4 * changes[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (2, 2, 2, 2, 2), ()])
def test_other_parameters_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected convolution kernels with four dimensions"):
        Muon([nn.Parameter(random_tensor(2, 2, 3, 3)), nn.Parameter(random_tensor(*shape))], lr=LR)


@pytest.mark.parametrize("shape", [*SHAPES, (300, 40, 3, 3), (520, 58, 3, 3), (520, 40, 2, 2)])
def test_steps_equal_torch_muon_on_matrices(shape: tuple[int, ...]) -> None:
    """Compare up to bfloat16 rounding, for wide and tall matrices and for several blocks."""
    kernel = nn.Parameter(random_tensor(*shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    optimizer = Muon([kernel], lr=LR, weight_decay=0.1, momentum=0.9)
    torch_optimizer = torch.optim.Muon([matrix], lr=LR, weight_decay=0.1, momentum=0.9)
    for seed in (1, 2):
        kernel.grad = random_tensor(*shape, seed=seed)
        matrix.grad = kernel.grad.flatten(1)
        optimizer.step()
        torch_optimizer.step()
    change = matrix.detach() - random_tensor(*shape).flatten(1)
    torch.testing.assert_close(
        kernel.detach().flatten(1), matrix.detach(), rtol=0, atol=0.02 * float(change.abs().max())
    )


def test_state_of_torch_muon_is_loaded() -> None:
    """Checkpoints of earlier versions contain the state of ``torch.optim.Muon``."""
    kernel = nn.Parameter(random_tensor(8, 3, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    torch_optimizer = torch.optim.Muon([matrix], lr=LR, weight_decay=0.1)
    matrix.grad = random_tensor(8, 27, seed=1)
    torch_optimizer.step()
    kernel.data = matrix.detach().view(8, 3, 3, 3).clone()
    optimizer = Muon([kernel], lr=1.0)
    optimizer.load_state_dict(copy.deepcopy(torch_optimizer.state_dict()))
    matrix.grad = random_tensor(8, 27, seed=2)
    kernel.grad = matrix.grad.view(8, 3, 3, 3)
    torch_optimizer.step()
    optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach(), rtol=0, atol=1e-3)


def test_zero_grad_removes_gradients() -> None:
    kernel = nn.Parameter(random_tensor(2, 2, 3, 3))
    kernel.grad = torch.ones_like(kernel)
    Muon([kernel], lr=LR).zero_grad()
    assert kernel.grad is None


def test_state_round_trip_through_a_checkpoint(tmp_path: Path) -> None:
    kernels = [nn.Parameter(random_tensor(4, 3, 3, 3)) for _ in range(2)]
    optimizers = [Muon([kernel], lr=LR, weight_decay=0.1) for kernel in kernels]
    for seed in (1, 2):
        take_step(optimizers[0], kernels[0], random_tensor(4, 3, 3, 3, seed=seed))
    optimizers[0].param_groups[0]["lr"] = 0.03
    save_checkpoint(tmp_path / "a.safetensors", {"kernel": kernels[0], "muon": optimizers[0].state_dict()}, {})
    state, _ = load_checkpoint(tmp_path / "a.safetensors")
    with torch.no_grad():
        kernels[1].copy_(state["kernel"])
    optimizers[1].load_state_dict(state["muon"])
    assert optimizers[1].param_groups[0]["lr"] == 0.03
    for seed in (3, 4):
        for kernel, optimizer in zip(kernels, optimizers, strict=True):
            take_step(optimizer, kernel, random_tensor(4, 3, 3, 3, seed=seed))
    assert torch.equal(kernels[0], kernels[1])


def test_memory_layout_has_no_effect() -> None:
    contiguous = nn.Parameter(random_tensor(8, 3, 3, 3))
    channels_last = nn.Parameter(random_tensor(8, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizers = [Muon([kernel], lr=LR, weight_decay=0.1) for kernel in (contiguous, channels_last)]
    for seed in (1, 2, 3):
        gradient = random_tensor(8, 3, 3, 3, seed=seed)
        take_step(optimizers[0], contiguous, gradient)
        take_step(optimizers[1], channels_last, gradient.contiguous(memory_format=torch.channels_last))
    assert torch.equal(contiguous, channels_last)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


def test_model_can_be_moved_after_the_optimizer_is_created() -> None:
    """Convert to another dtype, as a replacement for a move to another device."""
    model = nn.Conv2d(3, 8, 3, bias=False)
    optimizer = Muon([model.weight], lr=LR)
    model.to(torch.float64)
    gradient = well_conditioned((8, 3, 3, 3), 1).double()
    assert_orthogonalised(take_step(optimizer, model.weight, gradient), gradient)
    assert model.weight.dtype == torch.float64
