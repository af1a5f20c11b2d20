"""PyTorch model of a detector architecture, and the decoding of the model outputs to boxes and class scores.

Source: Redmon and Farhadi 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.detect.models.architecture import (
    Architecture,
    Convolution,
    MaxPool,
    Route,
    Shortcut,
    Upsample,
    Variant,
    Yolo,
)
from chromabox.errors import UsageError

#: Raw output of a head: [batch, anchors, 5 + classes, rows, columns]. The numbers of rows and columns differ between
#: the heads of a model. The number of anchors may also differ.
HeadOutput = Float[Tensor, "batch _ outputs _ _"]


def decode_all(
    outputs: Sequence[HeadOutput], architecture: Architecture, variant: Variant, size: int
) -> tuple[Float[Tensor, "batch boxes 4"], Float[Tensor, "batch boxes classes"]]:
    """Decode raw outputs to boxes (left, top, right, bottom, in input pixels) and scores σ(objectness)·σ(class).

    Boxes are ordered by head, anchor, row and column. ``size`` is the height of the input in pixels. Scores are in
    [0, 1]. The computation uses float32.
    """
    boxes, scores = [], []
    for output, yolo in zip(outputs, architecture.yolo_layers, strict=True):
        raw = output.float().movedim(2, -1)
        anchors = raw.new_tensor(yolo.head_anchors)[:, None, None]
        stride = size / output.shape[-2]
        rows, columns = (torch.arange(side, device=raw.device) for side in output.shape[-2:])
        cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        if variant.decode == "exp":
            centre = (raw[..., :2].sigmoid() + cells) * stride
            sides = raw[..., 2:4].exp() * anchors
        else:
            centre = (2 * raw[..., :2].sigmoid() - 0.5 + cells) * stride
            sides = (2 * raw[..., 2:4].sigmoid()).square() * anchors
        boxes.append(torch.cat([centre - sides / 2, centre + sides / 2], -1).flatten(1, 3))
        scores.append((raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()).flatten(1, 3))
    return torch.cat(boxes, 1), torch.cat(scores, 1)


ImageBatch = Float[Tensor, "batch channels height width"]
FeatureMaps = Float[Tensor, "batch features rows columns"]


class ConvolutionLayer(nn.Module):
    """Convolution, optional BatchNorm, and activation."""

    def __init__(self, layer: Convolution, in_channels: int, variant: Variant) -> None:
        super().__init__()
        sizes = layer.size, layer.stride, layer.size // 2 if layer.pad is None else layer.pad
        bias = not layer.batch_normalise
        self.convolution = nn.Conv2d(in_channels, layer.filters, *sizes, groups=layer.groups, bias=bias)
        self.norm = nn.BatchNorm2d(layer.filters, variant.epsilon, variant.momentum) if layer.batch_normalise else None
        if layer.activation == "leaky":
            silu = variant.activation == "silu"
            self.activation: nn.Module = nn.SiLU(inplace=True) if silu else nn.LeakyReLU(0.1, inplace=True)
        else:
            self.activation = {"linear": nn.Identity, "relu": nn.ReLU, "mish": nn.Mish}[layer.activation]()

    def forward(self, images: ImageBatch) -> FeatureMaps:
        images = self.convolution(images)
        return self.activation(images if self.norm is None else self.norm(images))


class MaxPoolLayer(nn.Module):
    """Max-pooling with Darknet's padding.

    The padding is size − 1 pixels in each direction, half of which (rounded down) are at the left or top. The padding
    value is −∞, except for an even size with stride 1, as in the sixth pooling layer of YOLOv3-tiny. For these layers,
    the padding value is the variant's ``tiny_pool_padding``.
    """

    def __init__(self, layer: MaxPool, variant: Variant) -> None:
        super().__init__()
        self.size, self.stride = layer.size, layer.stride
        is_tiny_pool = layer.stride == 1 and layer.size % 2 == 0
        self.padding = variant.tiny_pool_padding if is_tiny_pool else float("-inf")

    def forward(self, images: ImageBatch) -> FeatureMaps:
        before = (self.size - 1) // 2
        # The numbers of pixels by which the last window extends beyond the input.
        height, width = (
            max(0, (-(-side // self.stride) - 1) * self.stride - before + self.size - side)
            for side in images.shape[-2:]
        )
        if before or height or width:
            images = F.pad(images, (before, width, before, height), value=self.padding)
        return F.max_pool2d(images, self.size, self.stride)


class DarknetModel(nn.Module):
    """PyTorch model of an ``architecture`` with weights of a ``variant``.

    ``layers`` contains one module per Darknet layer. The modules of routes, shortcuts and yolo layers have no effect,
    because this class computes the outputs of these layers itself.
    """

    def __init__(self, architecture: Architecture, variant: Variant) -> None:
        super().__init__()
        self.architecture, self.variant = architecture, variant
        self.layers = nn.ModuleList()
        for index, layer in enumerate(architecture.layers):
            module: nn.Module = nn.Identity()
            if isinstance(layer, Convolution):
                module = ConvolutionLayer(layer, architecture.input_shape(index).channels, variant)
            elif isinstance(layer, MaxPool):
                module = MaxPoolLayer(layer, variant)
            elif isinstance(layer, Upsample):
                module = nn.Upsample(scale_factor=layer.stride, mode="nearest")
            self.layers.append(module)
        #: For each layer (−1: the image), the index of the last layer that uses its output.
        self.last_use = {
            source: index for index in range(len(architecture.layers)) for source in architecture.sources(index)
        }

    @classmethod
    def uninitialised(cls, architecture: Architecture, variant: Variant) -> "DarknetModel":
        """Return a model with uninitialised weights. Random initialisation would take longer than loading weights."""
        with torch.device("meta"):
            model = cls(architecture, variant)
        model.to_empty(device="cpu")
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.num_batches_tracked is not None:
                layer.num_batches_tracked.zero_()
        return model

    def forward(self, images: ImageBatch) -> list[HeadOutput]:
        """Return the raw outputs of all heads, in the order of the yolo layers.

        Args:
            images: [batch, channels, height, width], RGB in [0, 1], float32 (or the dtype of the model). The height and
                width must be multiples of ``architecture.max_stride``.

        Returns:
            For each yolo layer, a tensor [batch, anchors, 5 + classes, rows, columns]. Dimension 2 contains the raw
            outputs for x, y, width, height, objectness and the classes. ``variant.decode`` defines how these outputs
            are decoded.

        Raise UsageError if the height or width is not a multiple of ``architecture.max_stride``.
        """
        return self.forward_from(self.forward_features(images, 0), 0)

    def forward_features(self, images: ImageBatch, upto: int) -> dict[int, Tensor]:
        """Run the layers before layer ``upto``, and return the outputs that are still needed, by layer index.

        These are the inputs of later layers (index −1 is the image) and the outputs of heads.

        Raise UsageError if the height or width is not a multiple of ``architecture.max_stride``.
        """
        multiple, (height, width) = self.architecture.max_stride, images.shape[-2:]
        if height % multiple or width % multiple:
            raise UsageError(f"size is {width}×{height}: expected multiples of {multiple} for {self.architecture.name}")
        return self._run_layers({-1: images}, 0, upto)

    def forward_from(self, features: Mapping[int, Tensor], start: int) -> list[HeadOutput]:
        """Return the outputs of the heads, given the result of ``forward_features`` for the layers before ``start``."""
        features = self._run_layers(dict(features), start, len(self.layers))
        return [features[index] for index in self.architecture.head_indices]

    @torch.no_grad()
    def fuse(self) -> "DarknetModel":
        """Return a copy in evaluation mode with each BatchNorm fused into its convolution."""
        layers = tuple(
            replace(layer, batch_normalise=False) if isinstance(layer, Convolution) else layer
            for layer in self.architecture.layers
        )
        model = DarknetModel.uninitialised(replace(self.architecture, layers=layers), self.variant)
        state: dict[str, Tensor | None] = {}
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, ConvolutionLayer):
                continue
            kernel, bias, norm = layer.convolution.weight, layer.convolution.bias, layer.norm
            if norm is not None:
                # γ(w·x − μ)/√(σ² + ε) + β is folded in float64 to avoid additional rounding errors.
                mean, variance = (cast(Tensor, values).double() for values in (norm.running_mean, norm.running_var))
                scale = norm.weight.double() / (variance + norm.eps).sqrt()
                kernel = kernel.double() * scale[:, None, None, None]
                bias = norm.bias.double() - mean * scale
            state |= {f"layers.{index}.convolution.weight": kernel, f"layers.{index}.convolution.bias": bias}
        model.to(next(self.parameters())).load_state_dict(state)
        return model.eval()

    def _run_layers(self, outputs: dict[int, Tensor], start: int, stop: int) -> dict[int, Tensor]:
        """Run the layers ``start`` to ``stop`` − 1, and return the outputs that are still needed, by layer index.

        ``outputs`` contains the outputs of earlier layers.
        """
        for index in range(start, stop):
            sources = self.architecture.sources(index)
            inputs = [outputs[source] for source in sources]
            match self.architecture.layers[index]:
                case Route(groups=groups, group_id=group_id):
                    if groups > 1:
                        inputs = [features.chunk(groups, 1)[group_id] for features in inputs]
                    outputs[index] = torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0]
                case Shortcut():
                    outputs[index] = inputs[0] + inputs[1]
                case Yolo(mask=mask, classes=classes):
                    outputs[index] = inputs[0].unflatten(1, (len(mask), 5 + classes))
                case _:
                    outputs[index] = self.layers[index](inputs[0])
            for source in sources:
                if self.last_use[source] == index:
                    outputs.pop(source, None)
        return outputs
