"""Optimizers and learning rates of a recipe, and Muon for convolution kernels.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") approximately orthogonalises the
momentum update by a Newton–Schulz iteration. PyTorch's ``torch.optim.Muon`` accepts matrices only. This module flattens
every convolution kernel to a matrix [out, in·height·width]. The steps are equal to those of ``torch.optim.Muon`` for
this matrix. On a CPU without hardware support for bfloat16, the iteration is computed in float32, because PyTorch's
bfloat16 matmul is 25 to 60 times slower on these CPUs.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.engine.autotune import has_fast_bfloat16
from chromabox.engine.options import OptimConfig, lr_factor

#: Function of the step that returns, for every optimizer, the settings (such as ``lr``) of its parameter groups.
LrSchedule = Callable[[int], Sequence[Sequence[Mapping[str, float]]]]

#: Published coefficients of the quintic polynomial in the Newton–Schulz iteration.
_NS_A, _NS_B, _NS_C = 3.4445, -4.775, 2.0315
_NS_STEPS = 5
#: Number of rows of a symmetric product that are computed at a time.
_BLOCK_ROWS = 256


def split_kernels(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable parameters into convolution kernels, which Muon updates, and all other parameters.

    A kernel with a single input channel is in effect a vector and is returned with the other parameters.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    kernels = [parameter for parameter in trainable if parameter.ndim == 4 and parameter.shape[1] > 1]
    return kernels, [parameter for parameter in trainable if not (parameter.ndim == 4 and parameter.shape[1] > 1)]


def build_muon(
    config: OptimConfig, kernels: Sequence[nn.Parameter], adamw: torch.optim.AdamW
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a recipe: Muon for ``kernels`` (if there are any) and ``adamw``."""
    return [*([Muon(kernels, config.lr, config.weight_decay, config.momentum)] if kernels else []), adamw]


def lr_schedule(config: OptimConfig, optimizers: Sequence[torch.optim.Optimizer], total_steps: int) -> LrSchedule:
    """Return the learning rate of every parameter group as a function of the step.

    The current learning rates of the optimizers are used as the peak learning rates.
    """
    peak_lrs = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]

    def schedule(step: int) -> list[list[dict[str, float]]]:
        # With an offset of half a step, neither the first nor the last step has a learning rate of 0.
        factor = lr_factor(config, (step + 0.5) / total_steps)
        return [[{"lr": lr * factor} for lr in group_lrs] for group_lrs in peak_lrs]

    return schedule


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels [out, in, height, width], each flattened to [out, in·height·width].

    The optimizer uses Nesterov momentum and decoupled weight decay. For matrices with more rows than columns, the step
    is scaled by sqrt(rows / columns). The result does not depend on the memory layout of a kernel. The model may be
    moved to another device until the first step. Raise ValueError for a parameter that does not have four dimensions.
    """

    def __init__(
        self, kernels: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        if any(kernel.ndim != 4 for kernel in kernels):
            raise ValueError("Muon: expected convolution kernels with four dimensions")
        super().__init__(kernels, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every kernel that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(kernel.grad)
                # In checkpoints of earlier versions, the buffer is a matrix.
                mean = state["momentum_buffer"].view(kernel.shape)
                mean.lerp_(kernel.grad, 1 - group["momentum"])
                dtype = torch.bfloat16 if has_fast_bfloat16(kernel.device) else torch.float32
                update = newton_schulz(kernel.grad.lerp(mean, group["momentum"]).to(dtype).flatten(1))
                kernel.mul_(1 - group["lr"] * group["weight_decay"])
                scale = math.sqrt(max(1, update.shape[0] / update.shape[1]))
                kernel.add_(update.view(kernel.shape), alpha=-group["lr"] * scale)


def newton_schulz(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Return the matrix after five Newton–Schulz steps. Its singular values are then between about 0.7 and 1.2."""
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T).T
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(_NS_STEPS):
        gram = _symmetric_product(matrix, matrix.T)
        polynomial = _symmetric_product(gram, gram, is_polynomial=True)
        matrix = torch.addmm(matrix, polynomial, matrix, beta=_NS_A)
    return matrix


def _symmetric_product(left: Tensor, right: Tensor, *, is_polynomial: bool = False) -> Float[Tensor, "rows rows"]:
    """Return the symmetric ``left @ right`` or, with ``is_polynomial``, ``_NS_B * left + _NS_C * left @ right``.

    Blocks of rows are computed from the diagonal to the last column and then copied to the part below the diagonal.
    """
    size = len(left)
    result = left.new_empty(size, size)
    for start in range(0, size, _BLOCK_ROWS):
        rows, rows_below = slice(start, start + _BLOCK_ROWS), slice(start + _BLOCK_ROWS, size)
        factors = left[rows], right[:, start:]
        result[rows, start:] = (
            torch.addmm(left[rows, start:], *factors, beta=_NS_B, alpha=_NS_C) if is_polynomial else torch.mm(*factors)
        )
        result[rows_below, rows] = result[rows, rows_below].T
    return result
