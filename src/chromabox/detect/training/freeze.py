"""Freezing of the first layers of a detector for fine-tuning.

The parameters of a frozen layer have ``requires_grad=False`` and belong to no optimizer. By default, the BatchNorm
statistics of the layer are also frozen: its BatchNorm stays in evaluation mode even if the model is put into training
mode. With ``update_bn_stats``, the statistics are still updated, as in the assignment's fine-tuning script.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from chromabox.detect.models.architecture import Architecture, Convolution
from chromabox.detect.models.darknet import ConvolutionLayer, DarknetModel
from chromabox.errors import UsageError


@dataclass(frozen=True)
class FreezeReport:
    """Numbers of frozen layers and parameters, and the computation that freezing saves.

    ``flops_fraction`` is the fraction, in [0, 1], of the multiplications in a forward pass that the frozen layers
    perform. With cached features, freezing saves the same fraction of the computation in a training step.
    """

    num_layers: int
    frozen_parameters: int
    total_parameters: int
    flops_fraction: float
    update_bn_stats: bool
    freeze_all_bn: bool = False
    """Whether BatchNorm is also frozen in the layers that are trained."""

    @property
    def step_savings(self) -> float:
        """Fraction of the computation in a training step that freezing saves without cached features, in [0, 2/3].

        A backward pass costs about twice as much as a forward pass: one half for the gradients of the weights, the
        other half for the gradients of the layer inputs. Frozen layers need no backward pass.
        """
        return 2 * self.flops_fraction / 3

    def __str__(self) -> str:
        if not self.num_layers:
            return f"nothing frozen: all {self.total_parameters:,} parameters are trained"
        statistics = "are still updated" if self.update_bn_stats else "are frozen"
        statistics += ", and BatchNorm is frozen in all other layers" if self.freeze_all_bn else ""
        return (
            f"frozen layers: {self.num_layers}, with {self.frozen_parameters:,} of {self.total_parameters:,} "
            f"parameters and {100 * self.flops_fraction:.0f} % of the computation of a forward pass; expected time "
            f"saved per training step: {100 * self.step_savings:.0f} %, or {100 * self.flops_fraction:.0f} % with "
            f"cached features; the BatchNorm statistics of these layers {statistics}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the values for ``summary.json``."""
        return {
            "layers": self.num_layers,
            "parameters": self.frozen_parameters,
            "all_parameters": self.total_parameters,
            "share_of_work": round(self.flops_fraction, 4),
            "moving_statistics": self.update_bn_stats,
            "still_normalisation": self.freeze_all_bn,
        }


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always stays in evaluation mode, so that its running statistics never change."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Ignore ``mode`` and stay in evaluation mode."""
        return super().train(False)


def num_layers_to_freeze(architecture: Architecture, num_frozen: int | str) -> int:
    """Return the number of layers to freeze. ``num_frozen`` is a number, ``none`` or ``backbone``.

    ``backbone`` ends before the 1×1 convolution that starts the first detection head.

    Raise UsageError for an unknown name, and for a number that leaves no layer to train.
    """
    if num_frozen == "backbone":
        return num_backbone_layers(architecture)
    if isinstance(num_frozen, str) and not (num_frozen == "none" or num_frozen.isdecimal()):
        raise UsageError(f"--freeze is {num_frozen}: expected a number of layers, auto, none or backbone")
    depth = 0 if num_frozen == "none" else int(num_frozen)
    last = max(index for index, layer in enumerate(architecture.layers) if isinstance(layer, Convolution))
    if not 0 <= depth <= last:
        raise UsageError(
            f"--freeze is {depth}: expected 0 to {last} of the {len(architecture.layers)} layers of "
            f"{architecture.name}, so that at least one convolution is trained"
        )
    return depth


def num_backbone_layers(architecture: Architecture) -> int:
    """Return the number of layers before the first detection head: 75 for YOLOv3 (Darknet-53), 13 for YOLOv3-tiny."""
    start = head = architecture.head_indices[0]
    while start and isinstance(architecture.layers[start - 1], Convolution):
        start -= 1
    # The head starts at the first 1×1 convolution in the sequence of convolutions before its yolo layer.
    sizes = [cast(Convolution, layer).size for layer in architecture.layers[start:head]]
    return start + (sizes.index(1) if 1 in sizes else 0)


def freeze(
    model: DarknetModel, num_frozen: int | str, *, update_bn_stats: bool = False, freeze_all_bn: bool = False
) -> FreezeReport:
    """Freeze the first layers of a model in place.

    Parameters of frozen layers get ``requires_grad=False``, and all other parameters ``requires_grad=True``. BatchNorm
    modules whose statistics are to be frozen are replaced by :class:`FrozenBatchNorm2d`. The names in ``state_dict``
    stay the same.

    Args:
        model: the detector to modify.
        num_frozen: number of layers, or a name accepted by :func:`num_layers_to_freeze`.
        update_bn_stats: whether the BatchNorm statistics of frozen layers are still updated.
        freeze_all_bn: whether to also freeze the BatchNorm statistics and weights of the layers that are trained.

    Raise UsageError for an invalid ``num_frozen``.
    """
    depth = num_layers_to_freeze(model.architecture, num_frozen)
    for name, parameter in model.named_parameters():
        layer_index = int(name.split(".")[1])  # Names are "layers.<index>.…".
        parameter.requires_grad_(layer_index >= depth)
    for index, layer in enumerate(model.layers):
        freeze_bn = freeze_all_bn if index >= depth else not update_bn_stats
        if freeze_bn and isinstance(layer, ConvolutionLayer) and layer.norm is not None:
            layer.norm = _freeze_batch_norm(layer.norm)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    flops = layer_flops(model.architecture)
    return FreezeReport(depth, frozen, total, sum(flops[:depth]) / sum(flops), update_bn_stats, freeze_all_bn)


def _freeze_batch_norm(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    """Return a frozen BatchNorm that shares the tensors of ``norm``."""
    with torch.device("meta"):  # No memory is allocated, because the tensors are assigned below.
        frozen = FrozenBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    frozen.load_state_dict(norm.state_dict(), assign=True)
    frozen.requires_grad_(False)
    return frozen.eval()


def layer_flops(architecture: Architecture) -> list[float]:
    """Return the number of convolution multiplications of each layer in a forward pass, per input pixel."""
    flops = [0.0] * len(architecture.layers)
    for index, layer in enumerate(architecture.layers):
        if isinstance(layer, Convolution):
            kernel_size = architecture.input_shape(index).channels // layer.groups * layer.size**2
            flops[index] = kernel_size * layer.filters / architecture.shapes[index].stride ** 2
    return flops
