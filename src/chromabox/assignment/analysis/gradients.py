"""Gradients of layers before and after training, and ablation of skip connections.

Gradients *vanish* if they are orders of magnitude smaller in the layers near the input than in the layers near the
loss (Bengio, Simard and Frasconi 1994; Glorot and Bengio 2010, section 4). Only the gradients of kernels are measured.

The ablation evaluates a trained UNet whose skip connections carry zeros or the features of other images. It measures
how much the trained model depends on a skip connection. A model trained without this skip connection may perform better
than the ablated model.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from chromabox.colour.data.datasets import LabelledImages, PaletteBatch
from chromabox.colour.models import build_model
from chromabox.colour.models.baselines import UNet
from chromabox.colour.palette.palette import Palette
from chromabox.colour.training.loss import compute_losses, loss_and_accuracy
from chromabox.colour.training.train import TrainConfig


@dataclass(frozen=True)
class LayerGradient:
    """Euclidean norms of the kernel of one layer and of the loss gradient with respect to this kernel."""

    gradient_norm: float
    """Root mean square of the gradient norms over the batches."""
    weight_norm: float

    @property
    def relative_norm(self) -> float:
        """Gradient norm divided by weight norm. SGD changes a kernel by this fraction times the learning rate."""
        return self.gradient_norm / self.weight_norm


def layer_gradients(model: nn.Module, batches: Iterable[PaletteBatch]) -> dict[str, LayerGradient]:
    """Return the gradient norm and the weight norm of every kernel, keyed by layer name, from input to output.

    The gradients of the training loss are computed on a copy of the model in training mode. At least one batch is
    required.
    """
    model = copy.deepcopy(model).train()
    kernels = _kernels_by_layer(model)
    squares: dict[str, list[float]] = {name: [] for name in kernels}
    for batch in batches:
        model.zero_grad()
        compute_losses(model, batch)["loss"].backward()
        for name, kernel in kernels.items():
            assert kernel.grad is not None
            squares[name].append(kernel.grad.square().sum().item())
    return {
        name: LayerGradient(float(np.mean(squares[name]) ** 0.5), kernel.detach().norm().item())
        for name, kernel in kernels.items()
    }


def relative_weight_change(start: nn.Module, end: nn.Module) -> dict[str, float]:
    """Return the norm of the change in every kernel, divided by the norm of the kernel in ``start``."""
    before, after = _kernels_by_layer(start), _kernels_by_layer(end)
    with torch.no_grad():
        return {name: ((after[name] - kernel).norm() / kernel.norm()).item() for name, kernel in before.items()}


def initial_model(config: TrainConfig, palette: Palette) -> nn.Module:
    """Return the model of a run with its initial weights. The global random number generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(config.model, **{"num_colours": len(palette.colours), **config.model_args})


def _kernels_by_layer(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the kernels, keyed by layer name.

    The key of the first layer of a block, such as ``block1.0``, is the name of the block, ``block1``.
    """
    return {
        name.removesuffix(".weight").removesuffix(".0"): parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


#: Changes to the features of a skip connection. With "shuffled", each image receives the features of the previous image
#: in the batch. These features have the same distribution but are unrelated to the image.
ABLATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "zeroed": torch.zeros_like,
    "shuffled": lambda features: features.roll(1, 0),
}


def ablate_skips(model: UNet, images: LabelledImages) -> dict[tuple[str, str], tuple[float, float]]:
    """Return loss (nats per pixel) and accuracy (0 to 1), keyed by ablated skip connection and ablation.

    The skip connections are "half" (from block 1 to block 4, at half the resolution), "input" (from the input to the
    last layer) and "both". The key of the unchanged model is ("none", "intact"). The model should be in evaluation
    mode.
    """
    scores = {("none", "intact"): loss_and_accuracy(model, images.grey, images.labels)}
    for skip, (name, ablation) in product(("half", "input", "both"), ABLATIONS.items()):

        def forward(grey: Tensor, skip: str = skip, ablation: Callable[[Tensor], Tensor] = ablation) -> Tensor:
            half = model.block1(grey)
            skipped_half = half if skip == "input" else ablation(half)
            skipped_input = grey if skip == "half" else ablation(grey)
            decoded = model.block4(torch.cat([model.block3(model.block2(half)), skipped_half], 1))
            return cast(Tensor, model.last(torch.cat([decoded, skipped_input], 1)))

        scores[skip, name] = loss_and_accuracy(forward, images.grey, images.labels)
    return scores
