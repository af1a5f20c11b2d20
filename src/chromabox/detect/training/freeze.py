"""What stays still while a detector is fine-tuned: the first so many layers, really still.

A frozen parameter has no gradient and is in no optimiser. The batch normalisation of frozen layers keeps its statistics
also in training mode, unless ``moving_statistics`` asks for what the course's tool does: there only the
parameters are frozen, and the statistics drift away from them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chromabox.detect.models.architecture import Architecture, Convolution
from chromabox.detect.models.darknet import ConvolutionLayer, DarknetModel
from chromabox.errors import UsageError

#: Names for a number of layers.
FREEZE_NAMES = ("none", "backbone")


@dataclass(frozen=True)
class FreezeReport:
    """What was frozen: ``layers`` from the first on, their ``parameters`` of ``all_parameters``.

    ``share_of_work``: of a forward pass's multiplications, 0 to 1.
    """

    num_layers: int
    frozen_parameters: int
    total_parameters: int
    flops_fraction: float
    update_bn_stats: bool
    freeze_all_bn: bool = False
    """Whether the batch normalisation of the trained layers stays as it is, too."""

    @property
    def step_savings(self) -> float:
        """The share of a training step's work that freezing alone saves.

        Gradients take about twice a forward pass, half for weights and half for what is before them.
        """
        return 2 * self.flops_fraction / 3

    @property
    def step_savings_with_cache(self) -> float:
        """The share that is saved where the frozen layers need not run either."""
        return self.flops_fraction

    def __str__(self) -> str:
        if not self.num_layers:
            return f"nothing frozen: all {self.total_parameters:,} parameters are trained"
        statistics = "go on moving" if self.update_bn_stats else "stay as they are"
        statistics += ", as does the others'" if self.freeze_all_bn else ""
        return (
            f"frozen: the first {self.num_layers} layers, {self.frozen_parameters:,} of {self.total_parameters:,} parameters and "
            f"{100 * self.flops_fraction:.0f} % of the forward work; a step should take {100 * self.step_savings:.0f} % less "
            f"time, with their outputs cached {100 * self.step_savings_with_cache:.0f} % less; the statistics of their batch "
            f"normalisation {statistics}"
        )

    def as_json(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            "layers": self.num_layers,
            "parameters": self.frozen_parameters,
            "all_parameters": self.total_parameters,
            "share_of_work": round(self.flops_fraction, 4),
            "moving_statistics": self.update_bn_stats,
            "still_normalisation": self.freeze_all_bn,
        }


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that stays in evaluation mode, whatever mode the net around it is put into."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        """Evaluation mode, always."""
        return super().train(False)


def num_layers_to_freeze(architecture: Architecture, num_frozen: int | str) -> int:
    """How many layers from the first on are meant by a number or a name.

    ``backbone`` ends before the 1×1 convolution with which the first head's own layers begin. Raises UsageError for a
    name that is none and for numbers that leave nothing to be trained.
    """
    if isinstance(num_frozen, str) and not num_frozen.isdecimal():
        if num_frozen not in FREEZE_NAMES:
            raise UsageError(f"freeze is {num_frozen}: give a number of layers, auto, or {' or '.join(FREEZE_NAMES)}")
        return num_backbone_layers(architecture) if num_frozen == "backbone" else 0
    depth = int(num_frozen)
    trainable = [index for index, layer in enumerate(architecture.layers) if isinstance(layer, Convolution)]
    if not 0 <= depth <= trainable[-1]:
        raise UsageError(
            f"freeze is {depth}: {architecture.name} has layers 0 to {len(architecture.layers) - 1}, of which at most "
            f"the first {trainable[-1]} can be frozen if something is to be trained"
        )
    return depth


def num_backbone_layers(architecture: Architecture) -> int:
    """The number of layers before the first head's own: YOLOv3 75 (Darknet-53), YOLOv3-tiny 13."""
    head = architecture.head_indices[0]
    begin = head
    while begin and isinstance(architecture.layers[begin - 1], Convolution):
        begin -= 1
    run = architecture.layers[begin:head]
    narrow = (begin + at for at, layer in enumerate(run) if isinstance(layer, Convolution) and layer.size == 1)
    return next(narrow, begin)


def freeze(
    model: DarknetModel, num_frozen: int | str, *, update_bn_stats: bool = False, freeze_all_bn: bool = False
) -> FreezeReport:
    """Freeze the first layers of ``net`` in place; see :func:`depth_of` for ``until``.

    Parameters before that get ``requires_grad`` False and all others True. Where statistics stay still, the frozen
    layers' batch normalisation is replaced by one that does not leave evaluation mode; names in ``state_dict`` stay.
    With ``still_normalisation`` so is that of all other layers, whose weights are not trained either.
    """
    depth = num_layers_to_freeze(model.architecture, num_frozen)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(int(name.split(".")[1]) >= depth)
    for index, layer in enumerate(model.layers):
        still = freeze_all_bn if index >= depth else not update_bn_stats
        if still and isinstance(layer, ConvolutionLayer) and layer.norm is not None:
            layer.norm = _freeze_batch_norm(layer.norm)
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    share = sum(layer_flops(model.architecture)[:depth]) / sum(layer_flops(model.architecture))
    return FreezeReport(depth, frozen, total, share, update_bn_stats, freeze_all_bn)


def _freeze_batch_norm(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    """The same normalisation, with the same tensors."""
    with torch.device("meta"):
        still = FrozenBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    still.load_state_dict(norm.state_dict(), assign=True)
    still.requires_grad_(False)
    return still.eval()


def layer_flops(architecture: Architecture) -> list[float]:
    """Multiplications of each layer's convolution in a forward pass, for each pixel of the picture."""
    amounts = []
    for index, layer in enumerate(architecture.layers):
        if not isinstance(layer, Convolution):
            amounts.append(0.0)
            continue
        kernel = architecture.input_shape(index).channels // layer.groups * layer.size**2
        amounts.append(kernel * layer.filters / architecture.shapes[index].stride ** 2)
    return amounts


def trainable_head_parameters(model: DarknetModel) -> list[nn.Parameter]:
    """The parameters that are trained of the convolutions whose outputs are the heads' raw numbers."""
    layers = [
        model.layers[source] for head in model.architecture.head_indices for source in model.architecture.sources(head)
    ]
    return [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
