"""PhotoNet: a network for photographs that predicts a distribution over chroma bins."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.models.baselines import GreyBatch
from chromabox.colour.models.colournet import ResidualBlock


class GlobalContext(nn.Module):
    """What is seen anywhere, told everywhere: a linear map of the features' mean, added at every place.

    Starts at zero. A horse tells the meadow to be green wherever the meadow is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tell = nn.Linear(channels, channels)
        for parameter in self.tell.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """The features with the whole picture's message added."""
        return features + self.tell(torch.relu(features.mean((2, 3))))[:, :, None, None]


class PhotoNet(nn.Module):
    """Our own, for photographs: lightness in [0, 1] in, scores of chroma bins at 1/8 of the size out.

    The encoder has the shape of the first six layers of YOLOv3-tiny (Redmon and Farhadi 2018), so that it can start
    from what these have learnt about things; the decoder is a feature pyramid of residual blocks at 1/32, 1/16 and 1/8
    with the whole picture's context at its top. Colours need no finer place than that: edges come back from the
    picture's own lightness. The first ``frozen`` layers stay as they start, and nothing is computed backwards
    through them. Sides must be multiples of 32.
    """

    size_divisor = 32
    stride = 8
    ENCODER_CHANNELS = (1, 16, 32, 64, 128, 256, 512)

    def __init__(
        self,
        num_colours: int,
        widths: tuple[int, int, int] = (96, 160, 256),
        blocks: tuple[int, int, int] = (1, 2, 2),
        frozen: int = 0,
    ) -> None:
        super().__init__()
        eighth, sixteenth, top = widths
        self.frozen = frozen
        pairs = zip(self.ENCODER_CHANNELS[:-1], self.ENCODER_CHANNELS[1:], strict=True)
        self.encode = nn.ModuleList(self._conv_block(inputs, outputs) for inputs, outputs in pairs)
        for parameter in self.encode[:frozen].parameters():
            parameter.requires_grad_(False)
        self.look32 = nn.Conv2d(512, top, 1, bias=False)
        self.decode32 = nn.Sequential(
            *(part for _ in range(blocks[2]) for part in (ResidualBlock(top), GlobalContext(top)))
        )
        self.up32, self.look16 = nn.Conv2d(top, sixteenth, 1, bias=False), nn.Conv2d(256, sixteenth, 1, bias=False)
        self.decode16 = nn.Sequential(*(ResidualBlock(sixteenth) for _ in range(blocks[1])))
        self.up16, self.look8 = nn.Conv2d(sixteenth, eighth, 1, bias=False), nn.Conv2d(128, eighth, 1, bias=False)
        self.decode8 = nn.Sequential(*(ResidualBlock(eighth) for _ in range(blocks[0])))
        self.head = nn.Sequential(nn.BatchNorm2d(eighth), nn.ReLU(), nn.Conv2d(eighth, num_colours, 1))

    @staticmethod
    def _conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
        convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.1))

    def train(self, mode: bool = True) -> "PhotoNet":
        """As ever, but the frozen layers' statistics stay still too."""
        super().train(mode)
        for layer in self.encode[: self.frozen]:
            layer.eval()
        return self

    def forward(self, lightness: GreyBatch) -> Float[Tensor, "batch bins height//8 width//8"]:
        """Scores of every chroma bin, at an eighth of the size."""
        seen = []
        features = lightness
        for index, layer in enumerate(self.encode):
            features = layer(F.max_pool2d(features, 2) if index else features)
            seen.append(features)
        scores = self.decode32(self.look32(seen[5]))
        scores = self.decode16(_upsample2x(self.up32(scores)) + self.look16(seen[4]))
        return self.head(self.decode8(_upsample2x(self.up16(scores)) + self.look8(seen[3])))


def _upsample2x(features: Float[Tensor, "batch channels height width"]) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear")
