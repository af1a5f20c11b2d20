"""Optimisers by name, and Muon for convolution kernels.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") takes a momentum step whose
matrix has been brought close to an orthogonal one by a Newton–Schulz iteration. PyTorch's ``torch.optim.Muon`` takes
matrices only; a convolution kernel is one once its input channels and positions are laid out in a row.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class KernelMuon(torch.optim.Optimizer):
    """``torch.optim.Muon`` on convolution kernels [out, in, height, width], each seen as [out, in·height·width].

    The memory layout of a kernel makes no difference, nor does moving the net to another device between two steps.
    Momentum buffers and settings are those of the Muon inside, whose parameter groups these are. Raises ValueError for
    a parameter that is not a kernel.
    """

    def __init__(
        self, kernels: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        if any(kernel.ndim != 4 for kernel in kernels):
            raise ValueError("KernelMuon takes convolution kernels of four dimensions only")
        super().__init__(kernels, {"lr": lr})
        self._kernels = list(kernels)
        self._matrices = [nn.Parameter(kernel.detach().flatten(1).clone()) for kernel in kernels]
        self._muon = torch.optim.Muon(self._matrices, lr=lr, weight_decay=weight_decay, momentum=momentum)
        self.param_groups = self._muon.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One Muon step on every kernel that has a gradient."""
        self._look_at_kernels()
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        self._muon.step()
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            if matrix.data_ptr() != kernel.data_ptr():  # else the matrix is a view, and the kernel has moved with it
                kernel.copy_(matrix.view(kernel.shape))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the kernels' gradients."""
        for kernel in self._kernels:
            kernel.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Muon's own state."""
        return self._muon.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._look_at_kernels()  # Momentum goes to where the kernels are now.
        self._muon.load_state_dict(state_dict)
        self.param_groups = self._muon.param_groups

    def _look_at_kernels(self) -> None:
        """Let every matrix be its kernel as it is now; optimisers are made before the net goes to its device."""
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.data = kernel.detach().flatten(1)
