"""Muon for convolution kernels.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") takes a momentum step whose
matrix has been brought close to an orthogonal one by a Newton–Schulz iteration. PyTorch's ``torch.optim.Muon`` takes
matrices only; a convolution kernel is one once its input channels and positions are laid out in a row. Steps are the
same as its steps on such matrices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor, nn

#: The quintic of every iteration, as published.
_NS_A, _NS_B, _NS_C = 3.4445, -4.775, 2.0315
_NS_STEPS = 5
#: Rows of symmetric products that are computed at once.
_BLOCK_ROWS = 256


class Muon(torch.optim.Optimizer):
    """Muon on convolution kernels [out, in, height, width], each seen as [out, in·height·width].

    The memory layout of a kernel makes no difference, nor does moving the net before the first step.
    Momentum is Nesterov's, weight decay is decoupled; matrices with more rows than columns are given longer steps, by
    the root of the ratio. Raises ValueError for a parameter that is not a kernel.
    """

    def __init__(
        self, kernels: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        if any(kernel.ndim != 4 for kernel in kernels):
            raise ValueError("KernelMuon takes convolution kernels of four dimensions only")
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One Muon step on every kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    update = newton_schulz(self._nesterov_direction(kernel, kernel.grad, group["momentum"]).flatten(1))
                    kernel.mul_(1 - group["lr"] * group["weight_decay"])
                    longer = math.sqrt(max(1, update.shape[0] / update.shape[1]))
                    kernel.add_(update.view(kernel.shape), alpha=-group["lr"] * longer)

    def _nesterov_direction(
        self, kernel: nn.Parameter, gradient: Tensor, momentum: float
    ) -> BFloat16[Tensor, "out in height width"]:
        state = self.state[kernel]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        # Checkpoints of earlier versions hold it as a matrix.
        mean = state["momentum_buffer"].view(kernel.shape)
        mean.lerp_(gradient, 1 - momentum)
        return gradient.lerp(mean, momentum).bfloat16()


def newton_schulz(matrix: BFloat16[Tensor, "rows columns"]) -> BFloat16[Tensor, "rows columns"]:
    """The matrix with its singular values brought to about 1, between 0.7 and 1.2, by five steps of Newton–Schulz."""
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(_NS_STEPS):
        matrix = torch.addmm(matrix, _ns_polynomial(_gram_matrix(matrix)), matrix, beta=_NS_A)
    return matrix


def _gram_matrix(matrix: BFloat16[Tensor, "rows columns"]) -> BFloat16[Tensor, "rows rows"]:
    """The matrix times its transpose."""
    return _symmetric_blocks(lambda rows, right: matrix[rows] @ matrix[right].T, matrix)


def _ns_polynomial(gram: BFloat16[Tensor, "rows rows"]) -> BFloat16[Tensor, "rows rows"]:
    """_THIRD times a symmetric matrix plus _FIFTH times its square."""

    def part(rows: slice, right: slice) -> Tensor:
        return torch.addmm(gram[rows, right], gram[rows], gram[:, right], beta=_NS_B, alpha=_NS_C)

    return _symmetric_blocks(part, gram)


def _symmetric_blocks(compute_block: Callable[[slice, slice], Tensor], like: Tensor) -> Tensor:
    """A symmetric matrix of which ``part`` computes some rows, and of these the columns from the diagonal on."""
    size = len(like)
    whole = like.new_empty(size, size)
    for begin in range(0, size, _BLOCK_ROWS):
        rows, below = slice(begin, begin + _BLOCK_ROWS), slice(begin + _BLOCK_ROWS, size)
        whole[rows, begin:] = compute_block(rows, slice(begin, size))
        whole[below, rows] = whole[rows, below].T
    return whole
