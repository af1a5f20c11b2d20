"""ColourNet: a U-Net of residual blocks that classifies every pixel into a palette."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.colour.models.baselines import GreyBatch, Logits
from chromabox.errors import UsageError


def hat_encoding(
    grey: Float[Tensor, "batch 1 height width"], num_intervals: int
) -> Float[Tensor, "batch count_plus_1 height width"]:
    """Grey in [0, 1) as ``count`` + 1 hat functions: 1 at their own multiple of 1/count, 0 from its neighbours on.

    Which palette colour is nearest changes abruptly with grey. A linear layer on these sees any piecewise linear
    function of it, whereas one on grey itself has to build each step out of many units. Computed in float32.
    """
    # Laid out channels-last from the start: as the widest tensor of the net it would be costly to turn round later.
    levels = torch.arange(num_intervals + 1, device=grey.device)
    return (1 - (grey.float().permute(0, 2, 3, 1) * num_intervals - levels).abs()).clamp(min=0).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + convolution · ReLU · BN · convolution · ReLU · BN of x: a pre-activation block (He et al. 2016, figure 1b).

    The second convolution starts at zero, so that the block starts as the identity (Zhang, Dauphin and Ma 2019).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        normalised = (nn.BatchNorm2d(channels), nn.ReLU(), first, nn.BatchNorm2d(channels), nn.ReLU(), last)
        self.branch = nn.Sequential(*normalised)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """The features with the branch's correction added."""
        return features + self.branch(features)


class ColourNet(nn.Module):
    """Our own: a U-Net of residual blocks that does most of its work at half resolution and below.

    Grey enters as hat functions, three times: into the stem, which halves the picture at once; at full resolution
    beside the decoder's last layer; and straight into the answer, as a table "grey value → scores" that the rest
    need only correct. In evaluation a picture is looked at a second time in the mirror, and the two opinions
    (probabilities) are averaged. Sides must be multiples of 8.
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
            raise UsageError(f"num_in_channels is {num_in_channels}: colournet looks at one channel, grey")
        self.hats = hats
        first, second, third = widths
        seen = hats + 1

        def stage(channels: int, count: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))

        self.stem = nn.Conv2d(seen, first, 4, stride=2, padding=1)
        self.encode1, self.down1 = stage(first, blocks[0]), nn.Conv2d(first, second, 2, stride=2)
        self.encode2, self.down2 = stage(second, blocks[1]), nn.Conv2d(second, third, 2, stride=2)
        self.middle = stage(third, blocks[2])
        self.up2, self.decode2 = nn.ConvTranspose2d(third, second, 2, stride=2), stage(second, blocks[1])
        self.up1, self.decode1 = nn.ConvTranspose2d(second, first, 2, stride=2), stage(first, blocks[0])
        self.up0, self.local = nn.ConvTranspose2d(first, 32, 2, stride=2), nn.Conv2d(seen, 32, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, num_colours, 1))
        self.table = nn.Conv2d(seen, num_colours, 1)

    def forward(self, grey: GreyBatch) -> Logits:
        """Logits of every pixel; in evaluation logarithms of the averaged probabilities."""
        if self.training:
            return self.logits(grey)
        plain = self.logits(grey).float().log_softmax(1)
        mirrored = self.logits(grey.flip(-1)).float().log_softmax(1).flip(-1)
        return torch.logaddexp(plain, mirrored) - math.log(2)

    def logits(self, grey: GreyBatch) -> Logits:
        """Logits from one look."""
        hats = hat_encoding(grey, self.hats)
        half = self.encode1(self.stem(hats))
        quarter = self.encode2(self.down1(half))
        eighth = self.middle(self.down2(quarter))
        quarter = self.decode2(quarter + self.up2(eighth))
        half = self.decode1(half + self.up1(quarter))
        return self.head(self.up0(half) + self.local(hats)) + self.table(hats)
