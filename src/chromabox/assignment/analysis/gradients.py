"""How strongly the loss pulls at each layer: gradients where training started and where it ended.

Gradients *vanish* where the layers near the input get a gradient that is smaller by orders of magnitude than that of
the layers near the loss (Bengio, Simard and Frasconi 1994; Glorot and Bengio 2010, section 4). A layer counts as one
kernel; biases and batch normalisation's parameters are left out.

What a trained UNet's skips are worth to it: its score when what they carry is taken away or is another picture's.

This tells how much the net that was trained relies on a skip, not what a net trained without it would reach.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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
    """What reaches one layer's kernel."""

    gradient_norm: float
    """Norm (Euclidean) of the loss's gradient with respect to the kernel: root mean square over the batches."""
    weight_norm: float
    """Norm of the kernel itself."""

    @property
    def relative_norm(self) -> float:
        """Gradient over weight: how fast, for its size, the kernel would move under plain gradient descent."""
        return self.gradient_norm / self.weight_norm


def layer_gradients(model: nn.Module, batches: Iterable[PaletteBatch]) -> dict[str, LayerGradient]:
    """Gradients of the training loss at every kernel, by the layer's name, from the input to the output.

    In training mode (batch normalisation uses the batch's own statistics), on a copy: the net stays as it is. At least
    one batch is needed.
    """
    model = copy.deepcopy(model).train()
    kernels = _kernels_by_layer(model)
    squares: dict[str, list[float]] = {name: [] for name in kernels}
    for batch in batches:
        model.zero_grad()
        compute_losses(model, batch)["loss"].backward()
        for name, kernel in kernels.items():
            assert kernel.grad is not None, f"{name} takes no part in the loss"
            squares[name].append(kernel.grad.square().sum().item())
    return {
        name: LayerGradient(float(np.mean(squares[name]) ** 0.5), kernel.detach().norm().item())
        for name, kernel in kernels.items()
    }


def relative_weight_change(start: nn.Module, end: nn.Module) -> dict[str, float]:
    """How far each kernel has gone between two states of a net, as a part of its norm at the start."""
    before, after = _kernels_by_layer(start), _kernels_by_layer(end)
    with torch.no_grad():
        return {name: ((after[name] - kernel).norm() / kernel.norm()).item() for name, kernel in before.items()}


def initial_model(config: TrainConfig, palette: Palette) -> nn.Module:
    """The net as training began with it: its seed decides it. Torch's own random numbers stay where they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(config.model, **{"num_colours": len(palette.colours), **config.model_args})


def _kernels_by_layer(model: nn.Module) -> dict[str, nn.Parameter]:
    """Kernels by layer: ``block1.0.weight``, the first of a sequence, is called ``block1``."""
    return {
        name.removesuffix(".weight").removesuffix(".0"): parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


Ablation = Callable[[Tensor], Tensor]

#: What is done to what a skip carries. "shuffled": each picture of a batch gets the one before its own, so that the
#: values are as ever but say nothing of the picture (unless it is alone in its batch).
ABLATIONS: Mapping[str, Ablation] = {"zeroed": torch.zeros_like, "shuffled": lambda carried: carried.roll(1, 0)}

#: The skips: block 1's output, shown to block 4 ("half", for its resolution), and the input, shown to the last layer.
SKIPS = ("half", "input")


@contextmanager
def ablated_skips(model: UNet, ablations: Mapping[str, Ablation]) -> Iterator[None]:
    """Within, the named skips carry what their change makes of what they would carry."""
    readers = {"half": (model.block4, model.block3), "input": (model.last, model.block4)}
    hooks = []
    for skip, change in ablations.items():
        reader, before = readers[skip]
        own = _out_channels(before)  # The skip's channels come after those of the layer before.
        hooks.append(reader.register_forward_pre_hook(_ablation_hook(own, change)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _ablation_hook(num_own_channels: int, ablation: Ablation) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
    def changed(reader: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (features,) = inputs
        return torch.cat([features[:, :num_own_channels], ablation(features[:, num_own_channels:])], 1)

    return changed


def _out_channels(block: nn.Module) -> int:
    outputs: int = block.get_submodule("0").out_channels  # type: ignore[assignment]
    return outputs


def ablate_skips(model: UNet, images: LabelledImages) -> dict[tuple[str, str], tuple[float, float]]:
    """Loss (nats a pixel) and accuracy (0 to 1) by (skip, change); ("none", "intact") is the net as it is.

    Skips are "half", "input", and "both" of them. The net should be in evaluation mode.
    """
    found = {("none", "intact"): loss_and_accuracy(model, images.grey, images.labels)}
    for name, skips in (*((skip, (skip,)) for skip in SKIPS), ("both", SKIPS)):
        for how, change in ABLATIONS.items():
            with ablated_skips(model, dict.fromkeys(skips, change)):
                found[name, how] = loss_and_accuracy(model, images.grey, images.labels)
    return found
