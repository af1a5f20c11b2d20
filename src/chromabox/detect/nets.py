"""The network of an architecture: an ordered list of layers, run in order."""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.detect.kinds import Kind
from chromabox.detect.decode import Head
from chromabox.detect.layers import Architecture, Convolution, Layer, MaxPool, Route, Shortcut, Upsample, Yolo
from chromabox.errors import UsageError

Images = Float[Tensor, "batch channels height width"]
Maps = Float[Tensor, "batch features rows columns"]


class ConvolutionLayer(nn.Module):
    """Convolution, batch normalisation where the layer has it, activation."""

    def __init__(self, layer: Convolution, inputs: int, kind: Kind) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs,
            layer.filters,
            layer.size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=not layer.batch_normalise,
        )
        self.norm = nn.BatchNorm2d(layer.filters, kind.epsilon, kind.momentum) if layer.batch_normalise else None
        self.activation = _activation(layer.activation, kind)

    def forward(self, images: Images) -> Maps:
        images = self.convolution(images)
        return self.activation(images if self.norm is None else self.norm(images))


class MaxPoolLayer(nn.Module):
    """Max-pooling as darknet pads: size − 1 pixels in all, half of them (rounded down) left and above.

    −∞ is the padding of darknet. Where a kind has another, it has it for even sizes of stride 1 only, which is
    YOLOv3-tiny's sixth pooling.
    """

    def __init__(self, layer: MaxPool, kind: Kind) -> None:
        super().__init__()
        self.size, self.stride = layer.size, layer.stride
        odd_one = layer.stride == 1 and layer.size % 2 == 0
        self.padding = kind.tiny_pool_padding if odd_one else float("-inf")

    def forward(self, images: Images) -> Maps:
        before = (self.size - 1) // 2
        height, width = (self._missing(side, before) for side in images.shape[-2:])
        if before or height or width:
            images = F.pad(images, (before, width, before, height), value=self.padding)
        return F.max_pool2d(images, self.size, self.stride)

    def _missing(self, side: int, before: int) -> int:
        """Pixels that the last window reaches beyond the side."""
        last = -(-side // self.stride) - 1
        return max(0, last * self.stride - before + self.size - side)


class DetectorNet(nn.Module):
    """The net of an ``architecture`` whose weights are of a ``kind``; ``layers`` has one module a layer of darknet's.

    What a layer's module does with several inputs (route, shortcut) or none (yolo) is done here; theirs are empty.
    """

    def __init__(self, architecture: Architecture, kind: Kind) -> None:
        super().__init__()
        self.architecture, self.kind = architecture, kind
        self.layers = nn.ModuleList(
            _module(layer, architecture.inputs(index).channels, kind) for index, layer in enumerate(architecture.layers)
        )
        #: Of every layer (−1: the picture) the last layer that reads it.
        self.last_use = {
            source: index for index in range(len(architecture.layers)) for source in architecture.sources(index)
        }

    @classmethod
    def blank(cls, architecture: Architecture, kind: Kind) -> "DetectorNet":
        """A net whose numbers are still to come; drawing them at random first takes longer than reading them."""
        with torch.device("meta"):
            net = cls(architecture, kind)
        net.to_empty(device="cpu")
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.zero_()
        return net

    def forward(self, images: Images) -> list[Head]:
        """Raw numbers t of every head, in file order.

        Args:
            images: RGB in [0, 1], float32 (or the net's own dtype), sides multiples of ``architecture.multiple``.

        Returns:
            Of each yolo layer [batch, anchors, 5 + classes, rows, columns]: x, y, width, height, objectness, classes;
            what they mean says ``kind.decode``.
        """
        return self.forward_rest(self.forward_prefix(images, 0), 0)

    def forward_prefix(self, images: Images, until: int) -> dict[int, Tensor]:
        """Run the layers before ``until``; what later layers read of them (−1: the picture), and their heads."""
        multiple = self.architecture.multiple
        if images.shape[-1] % multiple or images.shape[-2] % multiple:
            height, width = images.shape[-2:]
            raise UsageError(f"size is {width}×{height}: {self.architecture.name} needs multiples of {multiple}")
        return self._run({-1: images}, 0, until)

    def forward_rest(self, kept: Mapping[int, Tensor], until: int) -> list[Head]:
        """The heads, from what :meth:`forward_prefix` kept before the same ``until``."""
        kept = self._run(dict(kept), until, len(self.layers))
        return [kept[index] for index in self.architecture.heads]

    def fused(self) -> "DetectorNet":
        """A copy in evaluation mode with every batch normalisation folded into its convolution."""
        layers = tuple(
            replace(layer, batch_normalise=False) if isinstance(layer, Convolution) else layer
            for layer in self.architecture.layers
        )
        net = DetectorNet.blank(replace(self.architecture, layers=layers), self.kind).to(next(self.parameters()))
        for mine, folded in zip(self.layers, net.layers, strict=True):
            if isinstance(mine, ConvolutionLayer) and isinstance(folded, ConvolutionLayer):
                _fold(mine, folded.convolution)
        return net.eval()

    def _run(self, kept: dict[int, Tensor], first: int, until: int) -> dict[int, Tensor]:
        for index in range(first, until):
            kept[index] = self._output(index, kept)
            for source in self.architecture.sources(index):
                if self.last_use[source] == index:
                    kept.pop(source, None)
        return kept

    def _output(self, index: int, kept: dict[int, Tensor]) -> Tensor:
        given = [kept[source] for source in self.architecture.sources(index)]
        match self.architecture.layers[index]:
            case Route(groups=groups, group_id=part):
                parts = given if groups == 1 else [images.chunk(groups, 1)[part] for images in given]
                return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            case Shortcut():
                return given[0] + given[1]
            case Yolo(mask=mask, classes=classes):
                return given[0].unflatten(1, (len(mask), 5 + classes))
        return self.layers[index](given[0])


def _module(layer: Layer, inputs: int, kind: Kind) -> nn.Module:
    match layer:
        case Convolution():
            return ConvolutionLayer(layer, inputs, kind)
        case MaxPool():
            return MaxPoolLayer(layer, kind)
        case Upsample(stride=stride):
            return nn.Upsample(scale_factor=stride, mode="nearest")
        case _:
            return nn.Identity()


def _activation(name: str, kind: Kind) -> nn.Module:
    if name == "leaky":
        return nn.SiLU(inplace=True) if kind.activation == "silu" else nn.LeakyReLU(0.1, inplace=True)
    return {"linear": nn.Identity, "relu": nn.ReLU, "mish": nn.Mish}[name]()


@torch.no_grad()
def _fold(mine: ConvolutionLayer, folded: nn.Conv2d) -> None:
    """Put convolution and batch normalisation, w·x then γ(y − μ)/√(σ² + ε) + β, into one kernel and bias."""
    kernel, norm, bias = mine.convolution.weight, mine.norm, cast(nn.Parameter, folded.bias)
    if norm is None:
        bias.copy_(cast(Tensor, mine.convolution.bias))
        folded.weight.copy_(kernel)
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In float64: the folding itself should not be what two ways of computing differ by.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    folded.weight.copy_(kernel.double() * scale[:, None, None, None])
    bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
