"""How strongly the loss pulls at each layer: gradients where training started and where it ended.

Gradients *vanish* where the layers near the input get a gradient that is smaller by orders of magnitude than that of
the layers near the loss (Bengio, Simard and Frasconi 1994; Glorot and Bengio 2010, section 4). A layer counts as one
kernel; biases and batch normalisation's parameters are left out.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from chromabox.colour.loss import Batch, training_losses
from chromabox.colour.nets import build_net
from chromabox.colour.palette import Palette
from chromabox.colour.train import TrainConfig


@dataclass(frozen=True)
class LayerGradient:
    """What reaches one layer's kernel."""

    gradient: float
    """Norm (Euclidean) of the loss's gradient with respect to the kernel: root mean square over the batches."""
    weight: float
    """Norm of the kernel itself."""

    @property
    def relative(self) -> float:
        """Gradient over weight: how fast, for its size, the kernel would move under plain gradient descent."""
        return self.gradient / self.weight


def layer_gradients(net: nn.Module, batches: Iterable[Batch]) -> dict[str, LayerGradient]:
    """Gradients of the training loss at every kernel, by the layer's name, from the input to the output.

    In training mode (batch normalisation uses the batch's own statistics), on a copy: the net stays as it is. At least
    one batch is needed.
    """
    net = copy.deepcopy(net).train()
    kernels = _kernels(net)
    squares: dict[str, list[float]] = {name: [] for name in kernels}
    for batch in batches:
        net.zero_grad()
        training_losses(net, batch)["loss"].backward()
        for name, kernel in kernels.items():
            assert kernel.grad is not None, f"{name} takes no part in the loss"
            squares[name].append(kernel.grad.square().sum().item())
    return {
        name: LayerGradient(float(np.mean(squares[name]) ** 0.5), kernel.detach().norm().item())
        for name, kernel in kernels.items()
    }


def moved(start: nn.Module, end: nn.Module) -> dict[str, float]:
    """How far each kernel has gone between two states of a net, as a part of its norm at the start."""
    before, after = _kernels(start), _kernels(end)
    with torch.no_grad():
        return {name: ((after[name] - kernel).norm() / kernel.norm()).item() for name, kernel in before.items()}


def net_at_start(config: TrainConfig, palette: Palette) -> nn.Module:
    """The net as training began with it: its seed decides it. Torch's own random numbers stay where they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_net(config.net, **{"num_colours": len(palette.colours), **config.settings})


def _kernels(net: nn.Module) -> dict[str, nn.Parameter]:
    """Kernels by layer: ``block1.0.weight``, the first of a sequence, is called ``block1``."""
    return {
        name.removesuffix(".weight").removesuffix(".0"): parameter
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1
    }
