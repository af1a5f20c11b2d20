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
from chromabox.detect.models.darknet import ConvolutionLayer, DetectorNet
from chromabox.errors import UsageError

#: Names for a number of layers.
NAMES = ("none", "backbone")


@dataclass(frozen=True)
class Frozen:
    """What was frozen: ``layers`` from the first on, their ``parameters`` of ``all_parameters``.

    ``share_of_work``: of a forward pass's multiplications, 0 to 1.
    """

    layers: int
    parameters: int
    all_parameters: int
    share_of_work: float
    moving_statistics: bool
    still_normalisation: bool = False
    """Whether the batch normalisation of the trained layers stays as it is, too."""

    @property
    def saved(self) -> float:
        """The share of a training step's work that freezing alone saves.

        Gradients take about twice a forward pass, half for weights and half for what is before them.
        """
        return 2 * self.share_of_work / 3

    @property
    def saved_with_cache(self) -> float:
        """The share that is saved where the frozen layers need not run either."""
        return self.share_of_work

    def __str__(self) -> str:
        if not self.layers:
            return f"nothing frozen: all {self.all_parameters:,} parameters are trained"
        statistics = "go on moving" if self.moving_statistics else "stay as they are"
        statistics += ", as does the others'" if self.still_normalisation else ""
        return (
            f"frozen: the first {self.layers} layers, {self.parameters:,} of {self.all_parameters:,} parameters and "
            f"{100 * self.share_of_work:.0f} % of the forward work; a step should take {100 * self.saved:.0f} % less "
            f"time, with their outputs cached {100 * self.saved_with_cache:.0f} % less; the statistics of their batch "
            f"normalisation {statistics}"
        )

    def as_json(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            "layers": self.layers,
            "parameters": self.parameters,
            "all_parameters": self.all_parameters,
            "share_of_work": round(self.share_of_work, 4),
            "moving_statistics": self.moving_statistics,
            "still_normalisation": self.still_normalisation,
        }


class StillBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that stays in evaluation mode, whatever mode the net around it is put into."""

    def train(self, mode: bool = True) -> "StillBatchNorm2d":
        """Evaluation mode, always."""
        return super().train(False)


def depth_of(architecture: Architecture, until: int | str) -> int:
    """How many layers from the first on are meant by a number or a name.

    ``backbone`` ends before the 1×1 convolution with which the first head's own layers begin. Raises UsageError for a
    name that is none and for numbers that leave nothing to be trained.
    """
    if isinstance(until, str) and not until.isdecimal():
        if until not in NAMES:
            raise UsageError(f"freeze is {until}: give a number of layers, auto, or {' or '.join(NAMES)}")
        return backbone(architecture) if until == "backbone" else 0
    depth = int(until)
    trainable = [index for index, layer in enumerate(architecture.layers) if isinstance(layer, Convolution)]
    if not 0 <= depth <= trainable[-1]:
        raise UsageError(
            f"freeze is {depth}: {architecture.name} has layers 0 to {len(architecture.layers) - 1}, of which at most "
            f"the first {trainable[-1]} can be frozen if something is to be trained"
        )
    return depth


def backbone(architecture: Architecture) -> int:
    """The number of layers before the first head's own: YOLOv3 75 (Darknet-53), YOLOv3-tiny 13."""
    head = architecture.heads[0]
    begin = head
    while begin and isinstance(architecture.layers[begin - 1], Convolution):
        begin -= 1
    run = architecture.layers[begin:head]
    narrow = (begin + at for at, layer in enumerate(run) if isinstance(layer, Convolution) and layer.size == 1)
    return next(narrow, begin)


def freeze(
    net: DetectorNet, until: int | str, *, moving_statistics: bool = False, still_normalisation: bool = False
) -> Frozen:
    """Freeze the first layers of ``net`` in place; see :func:`depth_of` for ``until``.

    Parameters before that get ``requires_grad`` False and all others True. Where statistics stay still, the frozen
    layers' batch normalisation is replaced by one that does not leave evaluation mode; names in ``state_dict`` stay.
    With ``still_normalisation`` so is that of all other layers, whose weights are not trained either.
    """
    depth = depth_of(net.architecture, until)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(int(name.split(".")[1]) >= depth)
    for index, layer in enumerate(net.layers):
        still = still_normalisation if index >= depth else not moving_statistics
        if still and isinstance(layer, ConvolutionLayer) and layer.norm is not None:
            layer.norm = _still(layer.norm)
    frozen = sum(parameter.numel() for parameter in net.parameters() if not parameter.requires_grad)
    total = sum(parameter.numel() for parameter in net.parameters())
    share = sum(work(net.architecture)[:depth]) / sum(work(net.architecture))
    return Frozen(depth, frozen, total, share, moving_statistics, still_normalisation)


def _still(norm: nn.BatchNorm2d) -> StillBatchNorm2d:
    """The same normalisation, with the same tensors."""
    with torch.device("meta"):
        still = StillBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    still.load_state_dict(norm.state_dict(), assign=True)
    still.requires_grad_(False)
    return still.eval()


def work(architecture: Architecture) -> list[float]:
    """Multiplications of each layer's convolution in a forward pass, for each pixel of the picture."""
    amounts = []
    for index, layer in enumerate(architecture.layers):
        if not isinstance(layer, Convolution):
            amounts.append(0.0)
            continue
        kernel = architecture.inputs(index).channels // layer.groups * layer.size**2
        amounts.append(kernel * layer.filters / architecture.shapes[index].stride ** 2)
    return amounts


def trainable_heads(net: DetectorNet) -> list[nn.Parameter]:
    """The parameters that are trained of the convolutions whose outputs are the heads' raw numbers."""
    layers = [net.layers[source] for head in net.architecture.heads for source in net.architecture.sources(head)]
    return [parameter for layer in layers for parameter in layer.parameters() if parameter.requires_grad]
