"""PhotoNet: a model for photographs that predicts a distribution over chroma bins."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.colour.models.baselines import GreyBatch
from chromabox.colour.models.colournet import ResidualBlock


class GlobalContext(nn.Module):
    """Layer that adds linear(ReLU(m)) to the features at every position, where m is their mean over height and width.

    Objects in one part of an image provide evidence for colours in other parts. For example, a horse makes a green
    meadow more likely. The linear map is initialised to zero. The layer is therefore initially the identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tell = nn.Linear(channels, channels)
        for parameter in self.tell.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Tensor:
        """Return the features plus linear(ReLU(m)), where m is their mean over height and width."""
        return features + self.tell(torch.relu(features.mean((2, 3))))[:, :, None, None]


class PhotoNet(nn.Module):
    """Feature pyramid (our design) from lightness in [0, 1] to logits of chroma bins at 1/8 resolution.

    The encoder has the architecture of the first six layers of YOLOv3-tiny (Redmon and Farhadi 2018) and can be
    initialised with their pretrained weights. The decoder is a feature pyramid of residual blocks at 1/32, 1/16 and 1/8
    resolution, with :class:`GlobalContext` at 1/32. Chroma does not require a finer resolution because its upsampling
    is guided by the full-resolution lightness, which contains the edges. The first ``frozen`` encoder layers do not
    change during training, including their BatchNorm statistics. Height and width must be multiples of 32.
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
        self.encode = nn.ModuleList(self._conv_block(*channels) for channels in pairs)
        for parameter in self.encode[:frozen].parameters():
            parameter.requires_grad_(False)
        self.look32 = nn.Conv2d(512, top, 1, bias=False)
        self.decode32 = nn.Sequential(
            *(layer for _ in range(blocks[2]) for layer in (ResidualBlock(top), GlobalContext(top)))
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
        """Set training or evaluation mode. Frozen layers stay in evaluation mode with fixed BatchNorm statistics."""
        super().train(mode)
        for layer in self.encode[: self.frozen]:
            layer.eval()
        return self

    def forward(self, lightness: GreyBatch) -> Float[Tensor, "batch bins height//8 width//8"]:
        """Return the logits of all chroma bins, at 1/8 of the height and width."""
        encoded = []
        features = lightness
        for index, layer in enumerate(self.encode):
            features = layer(F.max_pool2d(features, 2) if index else features)
            encoded.append(features)
        decoded = self.decode32(self.look32(encoded[5]))
        decoded = self.decode16(_upsample2x(self.up32(decoded)) + self.look16(encoded[4]))
        return self.head(self.decode8(_upsample2x(self.up16(decoded)) + self.look8(encoded[3])))


def _upsample2x(features: Float[Tensor, "batch channels height width"]) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear")
