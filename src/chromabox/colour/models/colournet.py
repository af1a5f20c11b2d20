"""ColourNet: a U-Net of residual blocks that classifies every pixel into a palette."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.colour.models.baselines import GreyBatch, Logits
from chromabox.errors import UsageError


def hat_encoding(
    grey: Float[Tensor, "batch 1 height width"], num_intervals: int
) -> Float[Tensor, "batch num_intervals_plus_1 height width"]:
    """Encode grey values in [0, 1) by n + 1 hat functions (n is ``num_intervals``), computed in float32.

    Hat function i is 1 at i/n and decreases linearly to 0 at (i − 1)/n and (i + 1)/n. The nearest palette colour
    changes abruptly with grey. A linear layer on top of this encoding can represent any piecewise linear function of
    grey with the knots i/n. Without the encoding, a network needs several hidden units for each abrupt change.
    """
    # The encoding is one of the largest tensors in the model. It is computed in channels-last layout because converting
    # it to this layout is slow.
    levels = torch.arange(num_intervals + 1, device=grey.device)
    return (1 - (grey.float().permute(0, 2, 3, 1) * num_intervals - levels).abs()).clamp(min=0).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, figure 1b): x + branch(x).

    The branch consists of BatchNorm, ReLU, convolution, BatchNorm, ReLU and convolution. The second convolution is
    initialised to zero. The block is therefore initially the identity (Zhang, Dauphin and Ma 2019).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layers = (nn.BatchNorm2d(channels), nn.ReLU(), first, nn.BatchNorm2d(channels), nn.ReLU(), last)
        self.branch = nn.Sequential(*layers)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the features plus the output of the branch."""
        return features + self.branch(features)


class ColourNet(nn.Module):
    """U-Net of residual blocks, with most of the computation at half resolution and below (our design).

    The grey values are encoded by hat functions (:func:`hat_encoding`). The encoding is the input of three layers:

    * ``stem``, a convolution of stride 2.
    * ``local``, a convolution at full resolution. Its output is added to the output of the decoder.
    * ``table``, a 1 × 1 convolution. Its output is added to the logits. It acts as a lookup table from grey to logits.

    In evaluation mode, the probabilities predicted for the image and for its horizontal flip are averaged (test-time
    augmentation).
    Height and width must be multiples of 8.
    """

    size_divisor = 8

    def __init__(
        self,
        num_in_channels: int = 1,
        num_colours: int = 24,
        widths: tuple[int, int, int] = (64, 128, 192),
        blocks: tuple[int, int, int] = (2, 2, 3),
        hats: int = 32,
    ) -> None:
        super().__init__()
        if num_in_channels != 1:
            raise UsageError(f"num_in_channels is {num_in_channels}: colournet expects 1 (grey)")
        self.hats = hats
        first, second, third = widths
        num_hats = hats + 1

        def stage(channels: int, num_blocks: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks)))

        self.stem = nn.Conv2d(num_hats, first, 4, stride=2, padding=1)
        self.encode1, self.down1 = stage(first, blocks[0]), nn.Conv2d(first, second, 2, stride=2)
        self.encode2, self.down2 = stage(second, blocks[1]), nn.Conv2d(second, third, 2, stride=2)
        self.middle = stage(third, blocks[2])
        self.up2, self.decode2 = nn.ConvTranspose2d(third, second, 2, stride=2), stage(second, blocks[1])
        self.up1, self.decode1 = nn.ConvTranspose2d(second, first, 2, stride=2), stage(first, blocks[0])
        self.up0, self.local = nn.ConvTranspose2d(first, 32, 2, stride=2), nn.Conv2d(num_hats, 32, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, num_colours, 1))
        self.table = nn.Conv2d(num_hats, num_colours, 1)

    def forward(self, grey: GreyBatch) -> Logits:
        """Return the logits of every pixel. In evaluation mode, they are the logarithms of averaged probabilities."""
        if self.training:
            return self.logits(grey)
        original = self.logits(grey).float().log_softmax(1)
        flipped = self.logits(grey.flip(-1)).float().log_softmax(1).flip(-1)
        return torch.logaddexp(original, flipped) - math.log(2)

    def logits(self, grey: GreyBatch) -> Logits:
        """Return the logits of every pixel without test-time augmentation."""
        encoding = hat_encoding(grey, self.hats)
        half = self.encode1(self.stem(encoding))
        quarter = self.encode2(self.down1(half))
        eighth = self.middle(self.down2(quarter))
        quarter = self.decode2(quarter + self.up2(eighth))
        half = self.decode1(half + self.up1(quarter))
        return self.head(self.up0(half) + self.local(encoding)) + self.table(encoding)
