"""The network of an architecture: an ordered list of layers, run in order.

What a head's raw numbers mean: boxes in the net's square and a score for every class (Redmon and Farhadi 2018).

What the numbers of a detector mean: three families of weights that fit the same nets and mean different things.

A net loads weights of the wrong kind without a word and is only worse by it. The kind is therefore said by whoever
brings the weights, kept with them, and never guessed from shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.detect.models.architecture import (
    Architecture,
    Convolution,
    Layer,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Yolo,
)
from chromabox.errors import UsageError


@dataclass(frozen=True)
class Variant:
    """One family of weights.

    Args:
        name: as ``--kind`` and checkpoints have it.
        activation: what the architecture's ``leaky`` stands for: leaky ReLU with slope 0.1, or SiLU.
        decode: what a head's t means, for a cell (column, row), its stride and an anchor of (width, height) pixels.
            ``exp``: centre (σ(t) + cell)·stride, size e^t·anchor (Redmon and Farhadi 2018). ``sigmoid2``: centre
            (2σ(t) − 0.5 + cell)·stride, size (2σ(t))²·anchor.
        epsilon: added to the variance in batch normalisation.
        momentum: of the running statistics, as PyTorch counts: the new batch's share.
        letterbox_grey: in [0, 1], around a picture that is not square.
        tiny_pool_padding: with which the 2×2 max-pool of stride 1 pads right and bottom.
        tiny_mask: the anchors of YOLOv3-tiny's second head.
    """

    name: str
    activation: Literal["leaky", "silu"]
    decode: Literal["exp", "sigmoid2"]
    epsilon: float
    momentum: float
    letterbox_grey: float
    tiny_pool_padding: float
    tiny_mask: tuple[int, int, int]

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint says of the kind; the infinite padding in words, which JSON has no number for."""
        return {**asdict(self), "tiny_pool_padding": str(self.tiny_pool_padding), "tiny_mask": list(self.tiny_mask)}


DARKNET = Variant("darknet", "leaky", "exp", 1e-5, 0.01, 0.5, float("-inf"), (1, 2, 3))
ULTRALYTICS_9_0 = Variant("ultralytics-9.0", "leaky", "sigmoid2", 1e-3, 0.03, 114 / 255, 0.0, (0, 1, 2))
ULTRALYTICS_9_6 = Variant("ultralytics-9.6", "silu", "sigmoid2", 1e-3, 0.03, 114 / 255, 0.0, (0, 1, 2))
VARIANTS = {kind.name: kind for kind in (DARKNET, ULTRALYTICS_9_0, ULTRALYTICS_9_6)}


def get_variant(name: str) -> Variant:
    """UsageError for a name that is none."""
    if name not in VARIANTS:
        raise UsageError(f"kind is {name!r}: the kinds of detector weights are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def variant_from_json(stored: dict[str, Any]) -> Variant:
    """The inverse of :meth:`Kind.as_json`. Raises KeyError, TypeError or ValueError for anything else."""
    padding, mask = float(stored["tiny_pool_padding"]), tuple(stored["tiny_mask"])
    return Variant(**{**stored, "tiny_pool_padding": padding, "tiny_mask": mask})


#: Heads of one net differ in rows and columns, and may in their anchors.
HeadOutput = Float[Tensor, "batch _ numbers _ _"]


def decode_all(
    outputs: Sequence[HeadOutput], architecture: Architecture, variant: Variant, size: int
) -> tuple[Float[Tensor, "batch boxes 4"], Float[Tensor, "batch boxes classes"]]:
    """Boxes (left, top, right, bottom, in pixels of the net's square) and scores σ(objectness)·σ(class), all of them.

    Boxes stand head by head, in a head anchor by anchor, in an anchor row by row. ``size``: height of the square.
    """
    boxes, scores = [], []
    for output, yolo in zip(outputs, architecture.yolo_layers, strict=True):
        numbers = output.float().movedim(2, -1)
        anchors = numbers.new_tensor(yolo.head_anchors)[:, None, None]
        cells = _cell_grid(output.shape[-2], output.shape[-1], output.device)
        boxes.append(
            _decode_boxes(numbers[..., :4], cells, anchors, size / output.shape[-2], variant.decode).flatten(1, 3)
        )
        scores.append((numbers[..., 4:5].sigmoid() * numbers[..., 5:].sigmoid()).flatten(1, 3))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


def decode_candidates(
    outputs: Sequence[HeadOutput], architecture: Architecture, variant: Variant, size: int, confidence: float
) -> list[tuple[Float[Tensor, "found 4"], Float[Tensor, " found"], Int64[Tensor, " found"]]]:
    """Of each picture every pair of box and class with a score above ``confidence``: boxes, scores, classes.

    The same numbers as :func:`decode`; only boxes whose objectness alone exceeds the threshold are looked at, since no
    score is higher, and those are few.
    """
    found: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in outputs[0]]
    for output, yolo in zip(outputs, architecture.yolo_layers, strict=True):
        objectness = output[:, :, 4].float().sigmoid()
        picture, anchor, row, column = torch.nonzero(objectness > confidence, as_tuple=True)
        numbers = output[picture, anchor, :, row, column].float()
        scores = objectness[picture, anchor, row, column, None] * numbers[:, 5:].sigmoid()
        place, category = torch.nonzero(scores > confidence, as_tuple=True)
        anchors = numbers.new_tensor(yolo.head_anchors)[anchor]
        cells = torch.stack([column, row], -1)
        boxes = _decode_boxes(numbers[:, :4], cells, anchors, size / output.shape[-2], variant.decode)
        for index, several in enumerate(found):
            own = picture[place] == index
            several.append((boxes[place[own]], scores[place[own], category[own]], category[own]))
    return [tuple(torch.cat(parts) for parts in zip(*several, strict=True)) for several in found]  # type: ignore[misc]


def _cell_grid(rows: int, columns: int, device: torch.device) -> Int64[Tensor, "{rows} {columns} 2"]:
    """Column and row of every cell."""
    row, column = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return torch.stack([column, row], -1)


def _decode_boxes(
    raw: Float[Tensor, "*places 4"],
    cells: Int64[Tensor, "... 2"],
    anchors: Float[Tensor, "... 2"],
    stride: float,
    box_decoding: Literal["exp", "sigmoid2"],
) -> Float[Tensor, "*places 4"]:
    """Left, top, right, bottom from the four numbers t of boxes in ``cells`` (column, row)."""
    if box_decoding == "exp":
        centre = (raw[..., :2].sigmoid() + cells) * stride
        sides = raw[..., 2:].exp() * anchors
    else:
        centre = (2 * raw[..., :2].sigmoid() - 0.5 + cells) * stride
        sides = (2 * raw[..., 2:].sigmoid()).square() * anchors
    return torch.cat([centre - sides / 2, centre + sides / 2], -1)


ImageBatch = Float[Tensor, "batch channels height width"]
FeatureMaps = Float[Tensor, "batch features rows columns"]


class ConvolutionLayer(nn.Module):
    """Convolution, batch normalisation where the layer has it, activation."""

    def __init__(self, layer: Convolution, in_channels: int, variant: Variant) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels,
            layer.filters,
            layer.size,
            layer.stride,
            layer.padding,
            groups=layer.groups,
            bias=not layer.batch_normalise,
        )
        self.norm = nn.BatchNorm2d(layer.filters, variant.epsilon, variant.momentum) if layer.batch_normalise else None
        self.activation = _make_activation(layer.activation, variant)

    def forward(self, images: ImageBatch) -> FeatureMaps:
        images = self.convolution(images)
        return self.activation(images if self.norm is None else self.norm(images))


class MaxPoolLayer(nn.Module):
    """Max-pooling as darknet pads: size − 1 pixels in all, half of them (rounded down) left and above.

    −∞ is the padding of darknet. Where a kind has another, it has it for even sizes of stride 1 only, which is
    YOLOv3-tiny's sixth pooling.
    """

    def __init__(self, layer: MaxPool, variant: Variant) -> None:
        super().__init__()
        self.size, self.stride = layer.size, layer.stride
        odd_one = layer.stride == 1 and layer.size % 2 == 0
        self.padding = variant.tiny_pool_padding if odd_one else float("-inf")

    def forward(self, images: ImageBatch) -> FeatureMaps:
        before = (self.size - 1) // 2
        height, width = (self._end_padding(side, before) for side in images.shape[-2:])
        if before or height or width:
            images = F.pad(images, (before, width, before, height), value=self.padding)
        return F.max_pool2d(images, self.size, self.stride)

    def _end_padding(self, side: int, before: int) -> int:
        """Pixels that the last window reaches beyond the side."""
        last = -(-side // self.stride) - 1
        return max(0, last * self.stride - before + self.size - side)


class DarknetModel(nn.Module):
    """The net of an ``architecture`` whose weights are of a ``kind``; ``layers`` has one module a layer of darknet's.

    What a layer's module does with several inputs (route, shortcut) or none (yolo) is done here; theirs are empty.
    """

    def __init__(self, architecture: Architecture, variant: Variant) -> None:
        super().__init__()
        self.architecture, self.variant = architecture, variant
        self.layers = nn.ModuleList(
            _make_layer(layer, architecture.input_shape(index).channels, variant)
            for index, layer in enumerate(architecture.layers)
        )
        #: Of every layer (−1: the picture) the last layer that reads it.
        self.last_use = {
            source: index for index in range(len(architecture.layers)) for source in architecture.sources(index)
        }

    @classmethod
    def uninitialised(cls, architecture: Architecture, variant: Variant) -> "DarknetModel":
        """A net whose numbers are still to come; drawing them at random first takes longer than reading them."""
        with torch.device("meta"):
            net = cls(architecture, variant)
        net.to_empty(device="cpu")
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.zero_()
        return net

    def forward(self, images: ImageBatch) -> list[HeadOutput]:
        """Raw numbers t of every head, in file order.

        Args:
            images: RGB in [0, 1], float32 (or the net's own dtype), sides multiples of ``architecture.multiple``.

        Returns:
            Of each yolo layer [batch, anchors, 5 + classes, rows, columns]: x, y, width, height, objectness, classes;
            what they mean says ``kind.decode``.
        """
        return self.forward_from(self.forward_features(images, 0), 0)

    def forward_features(self, images: ImageBatch, upto: int) -> dict[int, Tensor]:
        """Run the layers before ``until``; what later layers read of them (−1: the picture), and their heads."""
        multiple = self.architecture.max_stride
        if images.shape[-1] % multiple or images.shape[-2] % multiple:
            height, width = images.shape[-2:]
            raise UsageError(f"size is {width}×{height}: {self.architecture.name} needs multiples of {multiple}")
        return self._run_layers({-1: images}, 0, upto)

    def forward_from(self, features: Mapping[int, Tensor], start: int) -> list[HeadOutput]:
        """The heads, from what :meth:`forward_prefix` kept before the same ``until``."""
        features = self._run_layers(dict(features), start, len(self.layers))
        return [features[index] for index in self.architecture.head_indices]

    def fuse(self) -> "DarknetModel":
        """A copy in evaluation mode with every batch normalisation folded into its convolution."""
        layers = tuple(
            replace(layer, batch_normalise=False) if isinstance(layer, Convolution) else layer
            for layer in self.architecture.layers
        )
        net = DarknetModel.uninitialised(replace(self.architecture, layers=layers), self.variant).to(
            next(self.parameters())
        )
        for mine, folded in zip(self.layers, net.layers, strict=True):
            if isinstance(mine, ConvolutionLayer) and isinstance(folded, ConvolutionLayer):
                _fuse_conv_bn(mine, folded.convolution)
        return net.eval()

    def _run_layers(self, outputs: dict[int, Tensor], start: int, stop: int) -> dict[int, Tensor]:
        for index in range(start, stop):
            outputs[index] = self._layer_output(index, outputs)
            for source in self.architecture.sources(index):
                if self.last_use[source] == index:
                    outputs.pop(source, None)
        return outputs

    def _layer_output(self, index: int, outputs: dict[int, Tensor]) -> Tensor:
        given = [outputs[source] for source in self.architecture.sources(index)]
        match self.architecture.layers[index]:
            case Route(groups=groups, group_id=part):
                parts = given if groups == 1 else [images.chunk(groups, 1)[part] for images in given]
                return torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            case Shortcut():
                return given[0] + given[1]
            case Yolo(mask=mask, classes=classes):
                return given[0].unflatten(1, (len(mask), 5 + classes))
        return self.layers[index](given[0])


def _make_layer(layer: Layer, in_channels: int, variant: Variant) -> nn.Module:
    match layer:
        case Convolution():
            return ConvolutionLayer(layer, in_channels, variant)
        case MaxPool():
            return MaxPoolLayer(layer, variant)
        case Upsample(stride=stride):
            return nn.Upsample(scale_factor=stride, mode="nearest")
        case _:
            return nn.Identity()


def _make_activation(name: str, variant: Variant) -> nn.Module:
    if name == "leaky":
        return nn.SiLU(inplace=True) if variant.activation == "silu" else nn.LeakyReLU(0.1, inplace=True)
    return {"linear": nn.Identity, "relu": nn.ReLU, "mish": nn.Mish}[name]()


@torch.no_grad()
def _fuse_conv_bn(layer: ConvolutionLayer, fused: nn.Conv2d) -> None:
    """Put convolution and batch normalisation, w·x then γ(y − μ)/√(σ² + ε) + β, into one kernel and bias."""
    kernel, norm, bias = layer.convolution.weight, layer.norm, cast(nn.Parameter, fused.bias)
    if norm is None:
        bias.copy_(cast(Tensor, layer.convolution.bias))
        fused.weight.copy_(kernel)
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In float64: the folding itself should not be what two ways of computing differ by.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    fused.weight.copy_(kernel.double() * scale[:, None, None, None])
    bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
