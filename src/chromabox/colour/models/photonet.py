"""PhotoNet: a model for photographs that predicts a distribution over chroma bins.

The encoder is EfficientNet-Lite0 without its classification head: the EfficientNet of Tan and Le 2019 ("EfficientNet:
Rethinking Model Scaling for Convolutional Neural Networks", table 1) in the Lite variant of the TensorFlow
repository, which has ReLU6 activations and no squeeze-and-excitation. It can be initialised with weights that were
pretrained on ImageNet.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.models.baselines import GreyBatch
from chromabox.colour.models.colournet import ResidualBlock

#: Stages of the encoder: number of blocks, kernel size, stride, expansion factor and number of output channels.
STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
#: Indices of the last stages at 1/4, 1/8, 1/16 and 1/32 of the input resolution.
SKIP_STAGES = (1, 2, 4, 6)


class ConvBlock(nn.Sequential):
    """Convolution without bias, BatchNorm and, if ``activation`` is true, ReLU6.

    The padding is symmetric. TensorFlow, with which the weights were trained, pads one row and column less before the
    image if the stride is 2. The features are therefore those of an image that is shifted by one pixel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        layers = [
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
        ]
        super().__init__(*layers, *([nn.ReLU6()] if activation else []))


class InvertedResidual(nn.Module):
    """Inverted residual block with a depthwise convolution (Sandler et al. 2018, "MobileNetV2", figure 4d)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [ConvBlock(in_channels, hidden, 1)] if expansion > 1 else []
        depthwise = ConvBlock(hidden, hidden, kernel, stride=stride, groups=hidden)
        self.layers = nn.Sequential(*expand, depthwise, ConvBlock(hidden, out_channels, 1, activation=False))
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the output of the layers, plus the features if the shapes are equal."""
        output: Tensor = self.layers(features)
        return features + output if self.is_residual else output


class SelfAttention(nn.Module):
    """Residual multi-head self-attention between all positions (Vaswani et al. 2017, section 3.2), without positions.

    The output projection is initialised to zero. The layer is therefore initially the identity.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the features plus the attended values."""
        batch, channels, height, width = features.shape
        stacked = self.query_key_value(self.norm(features))
        split = stacked.reshape(batch, 3, self.heads, channels // self.heads, height * width).transpose(3, 4)
        attended = F.scaled_dot_product_attention(*split.unbind(1))
        return features + self.project(attended.transpose(2, 3).reshape(batch, channels, height, width))


class GlobalContext(nn.Module):
    """Layer that adds linear(ReLU(m)) to the features at every position, where m is their mean over height and width.

    Objects in one part of an image provide evidence for colours in other parts. For example, a horse makes a green
    meadow more likely. The linear map is initialised to zero. The layer is therefore initially the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the features plus linear(ReLU(m)), where m is their mean over height and width."""
        return features + self.linear(torch.relu(features.mean((2, 3))))[:, :, None, None]


class PhotoNet(nn.Module):
    """Feature pyramid (our design) from lightness in [0, 1] to logits of chroma bins at 1/4 resolution.

    The decoder consists of residual blocks at 1/32, 1/16, 1/8 and 1/4 resolution, whose numbers of channels are
    ``widths`` and whose numbers are ``blocks``, both from fine to coarse. At 1/32, :class:`SelfAttention` and
    :class:`GlobalContext` combine evidence from the whole image. Chroma does not require a finer output because its
    upsampling is guided by the full-resolution lightness, which contains the edges. The first ``frozen`` parts of the
    encoder (the stem and then its stages) do not change during training, including their BatchNorm statistics. Height
    and width must be multiples of 32.
    """

    size_divisor = 32
    stride = 4

    def __init__(
        self,
        num_colours: int,
        widths: Sequence[int] = (64, 112, 192, 288),
        blocks: Sequence[int] = (1, 1, 2, 2),
        frozen: int = 0,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.encoder = nn.ModuleList([ConvBlock(3, 32, 3, stride=2)])
        channels = (32, *(stage[-1] for stage in STAGES))
        for (num_blocks, kernel, stride, expansion, outputs), inputs in zip(STAGES, channels, strict=False):
            first = InvertedResidual(inputs, outputs, kernel, stride, expansion)
            rest = (InvertedResidual(outputs, outputs, kernel, 1, expansion) for _ in range(num_blocks - 1))
            self.encoder.append(nn.Sequential(first, *rest))
        for parameter in self.encoder[:frozen].parameters():
            parameter.requires_grad_(False)
        skips = [STAGES[index][-1] for index in SKIP_STAGES]
        self.lateral = nn.ModuleList(nn.Conv2d(*pair, 1, bias=False) for pair in zip(skips, widths, strict=True))
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1, bias=False) for fine, coarse in pairwise(widths))
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(num_blocks)))
            for width, num_blocks in zip(widths, blocks, strict=True)
        )
        self.context = nn.Sequential(SelfAttention(widths[-1]), GlobalContext(widths[-1]))
        self.head = nn.Sequential(nn.BatchNorm2d(widths[0]), nn.ReLU(), nn.Conv2d(widths[0], num_colours, 1))

    def train(self, mode: bool = True) -> "PhotoNet":
        """Set training or evaluation mode. Frozen layers stay in evaluation mode with fixed BatchNorm statistics."""
        super().train(mode)
        for layer in self.encoder[: self.frozen]:
            layer.eval()
        return self

    def forward(self, lightness: GreyBatch) -> Float[Tensor, "batch bins height//4 width//4"]:
        """Return the logits of all chroma bins, at 1/4 of the height and width."""
        # The encoder was pretrained on colour images with values from −1 to 1.
        features = (2 * lightness - 1).expand(-1, 3, -1, -1)
        encoded = []
        for layer in self.encoder:
            features = layer(features)
            encoded.append(features)
        skips = [lateral(encoded[1 + stage]) for lateral, stage in zip(self.lateral, SKIP_STAGES, strict=True)]
        decoded = self.context(self.decoder[-1](skips[-1]))
        for skip, up, blocks in list(zip(skips, self.up, self.decoder, strict=False))[::-1]:
            decoded = blocks(skip + F.interpolate(up(decoded), scale_factor=2, mode="bilinear"))
        return self.head(decoded)
