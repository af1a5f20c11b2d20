"""The networks that give every pixel a score for every palette colour.

The first three are figure 1 of the assignment that the package reproduces, to the letter: PoolUpsampleNet (1a),
ConvTransposeNet (1b) and UNet (1c; Ronneberger et al. 2015). All take grey pictures in [0, 1), float32
[batch, in, height, width] with sides that are multiples of ``net.multiple``, and return logits
[batch, colours, height, width]. Every kernel from 1 up keeps the figure's shapes: see :func:`same_padding` and
:func:`transposed_padding`.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from chromabox.errors import UsageError

Logits = Float[Tensor, "batch colours height width"]
GreyBatch = Float[Tensor, "batch in height width"]


def strided_padding(kernel: int, dilation: int = 1) -> int:
    """Padding with which a convolution of stride 2 halves every even size exactly.

    The output is floor((n + 2p − d(k − 1) − 1) / 2) + 1 = n/2, so 2p is d(k − 1) or d(k − 1) − 1.
    """
    return dilation * (kernel - 1) // 2


def transposed_padding(kernel: int) -> tuple[int, int]:
    """Padding and output padding with which a transposed convolution of stride 2 doubles every size exactly.

    The output is 2(n − 1) − 2p + (k − 1) + o + 1 = 2n, so o = 2p + 2 − k with o in {0, 1}: p = (k − 1) // 2 and o = 1
    for odd k, 0 for even k.
    """
    return (kernel - 1) // 2, kernel % 2


# Said by PyTorch for even kernels; that the input is copied once more is no news to whoever asked for one.
warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)


def convolution(inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution that keeps height and width (stride 1) or halves them (stride 2).

    With stride 1 and an even reach d(k − 1) + 1 no symmetric padding keeps the size; ``padding="same"`` then pads one
    pixel more at the right and bottom. For odd reaches it is the usual (reach − 1)/2 on every side.
    """
    padding = "same" if stride == 1 else strided_padding(kernel, dilation)
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, dilation=dilation, padding=padding)


def transposed(inputs: int, outputs: int, kernel: int) -> nn.ConvTranspose2d:
    """A transposed convolution of stride 2 and dilation 1 that doubles height and width."""
    padding, output_padding = transposed_padding(kernel)
    return nn.ConvTranspose2d(inputs, outputs, kernel, stride=2, padding=padding, output_padding=output_padding)


def check_geometry(kernel: int, num_in_channels: int, num_filters: int, num_colours: int, dilation: int = 1) -> None:
    """Raise UsageError for sizes with which the figure's shapes cannot be kept."""
    sizes = {"kernel": kernel, "dilation": dilation, "num_in_channels": num_in_channels}
    sizes |= {"num_filters": num_filters, "num_colours": num_colours}
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{name} is {value}: a layer needs at least 1 to keep the shapes of the figure")
    reach = dilation * (kernel - 1) + 1
    if reach > 33:
        raise UsageError(
            f"kernel {kernel} with dilation {dilation} reaches over {reach} pixels, more than a picture of 32: "
            "most of what it sees would be padding; take a smaller kernel or dilation"
        )


class PoolUpsampleNet(nn.Module):
    """Figure 1a: two convolutions with pooling, two with upsampling, one more."""

    multiple = 4

    def __init__(self, kernel: int = 3, num_in_channels: int = 1, num_filters: int = 32, num_colours: int = 24) -> None:
        super().__init__()
        check_geometry(kernel, num_in_channels, num_filters, num_colours)
        self.block1 = self._block(num_in_channels, num_filters, kernel, nn.MaxPool2d(2))
        self.block2 = self._block(num_filters, 2 * num_filters, kernel, nn.MaxPool2d(2))
        self.block3 = self._block(2 * num_filters, num_filters, kernel, nn.Upsample(scale_factor=2))
        self.block4 = self._block(num_filters, num_colours, kernel, nn.Upsample(scale_factor=2))
        self.last = convolution(num_colours, num_colours, kernel)

    @staticmethod
    def _block(inputs: int, outputs: int, kernel: int, resize: nn.Module) -> nn.Sequential:
        return nn.Sequential(convolution(inputs, outputs, kernel), resize, nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, grey: GreyBatch) -> Logits:
        """Logits of every pixel."""
        return self.last(self.block4(self.block3(self.block2(self.block1(grey)))))


def _down(inputs: int, outputs: int, kernel: int, dilation: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(inputs, outputs, kernel, stride=2, dilation=dilation), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _up(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(transposed(inputs, outputs, kernel), nn.BatchNorm2d(outputs), nn.ReLU())


class ConvTransposeNet(nn.Module):
    """Figure 1b: strides instead of pooling, transposed convolutions instead of upsampling.

    ``dilation`` acts on the ordinary convolutions; the transposed ones keep dilation 1, as the assignment sets it.
    """

    multiple = 4

    def __init__(
        self, kernel: int = 3, num_in_channels: int = 1, num_filters: int = 32, num_colours: int = 24, dilation: int = 1
    ) -> None:
        super().__init__()
        check_geometry(kernel, num_in_channels, num_filters, num_colours, dilation)
        self.block1 = _down(num_in_channels, num_filters, kernel, dilation)
        self.block2 = _down(num_filters, 2 * num_filters, kernel, dilation)
        self.block3 = _up(2 * num_filters, num_filters, kernel)
        self.block4 = _up(num_filters, num_colours, kernel)
        self.last = convolution(num_colours, num_colours, kernel, dilation=dilation)

    def forward(self, grey: GreyBatch) -> Logits:
        """Logits of every pixel."""
        return self.last(self.block4(self.block3(self.block2(self.block1(grey)))))


class UNet(nn.Module):
    """Figure 1c: ConvTransposeNet with block 1's output shown again to block 4, and the input to the last layer."""

    multiple = 4

    def __init__(
        self, kernel: int = 3, num_in_channels: int = 1, num_filters: int = 32, num_colours: int = 24, dilation: int = 1
    ) -> None:
        super().__init__()
        check_geometry(kernel, num_in_channels, num_filters, num_colours, dilation)
        self.block1 = _down(num_in_channels, num_filters, kernel, dilation)
        self.block2 = _down(num_filters, 2 * num_filters, kernel, dilation)
        self.block3 = _up(2 * num_filters, num_filters, kernel)
        self.block4 = _up(2 * num_filters, num_colours, kernel)
        self.last = convolution(num_colours + num_in_channels, num_colours, kernel, dilation=dilation)

    def forward(self, grey: GreyBatch) -> Logits:
        """Logits of every pixel."""
        half = self.block1(grey)
        again = torch.cat([self.block3(self.block2(half)), half], 1)
        return self.last(torch.cat([self.block4(again), grey], 1))


def grey_hats(
    grey: Float[Tensor, "batch 1 height width"], count: int
) -> Float[Tensor, "batch count_plus_1 height width"]:
    """Grey in [0, 1) as ``count`` + 1 hat functions: 1 at their own multiple of 1/count, 0 from its neighbours on.

    Which palette colour is nearest changes abruptly with grey. A linear layer on these sees any piecewise linear
    function of it, whereas one on grey itself has to build each step out of many units. Computed in float32.
    """
    # Laid out channels-last from the start: as the widest tensor of the net it would be costly to turn round later.
    levels = torch.arange(count + 1, device=grey.device)
    return (1 - (grey.float().permute(0, 2, 3, 1) * count - levels).abs()).clamp(min=0).permute(0, 3, 1, 2)


class Residual(nn.Module):
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

    multiple = 8

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
            return nn.Sequential(*(Residual(channels) for _ in range(count)))

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
            return self.scores(grey)
        plain = self.scores(grey).float().log_softmax(1)
        mirrored = self.scores(grey.flip(-1)).float().log_softmax(1).flip(-1)
        return torch.logaddexp(plain, mirrored) - math.log(2)

    def scores(self, grey: GreyBatch) -> Logits:
        """Logits from one look."""
        hats = grey_hats(grey, self.hats)
        half = self.encode1(self.stem(hats))
        quarter = self.encode2(self.down1(half))
        eighth = self.middle(self.down2(quarter))
        quarter = self.decode2(quarter + self.up2(eighth))
        half = self.decode1(half + self.up1(quarter))
        return self.head(self.up0(half) + self.local(hats)) + self.table(hats)


class Context(nn.Module):
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

    multiple = 32
    stride = 8
    ENCODER = (1, 16, 32, 64, 128, 256, 512)

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
        pairs = zip(self.ENCODER[:-1], self.ENCODER[1:], strict=True)
        self.encode = nn.ModuleList(self._layer(inputs, outputs) for inputs, outputs in pairs)
        for parameter in self.encode[:frozen].parameters():
            parameter.requires_grad_(False)
        self.look32 = nn.Conv2d(512, top, 1, bias=False)
        self.decode32 = nn.Sequential(*(part for _ in range(blocks[2]) for part in (Residual(top), Context(top))))
        self.up32, self.look16 = nn.Conv2d(top, sixteenth, 1, bias=False), nn.Conv2d(256, sixteenth, 1, bias=False)
        self.decode16 = nn.Sequential(*(Residual(sixteenth) for _ in range(blocks[1])))
        self.up16, self.look8 = nn.Conv2d(sixteenth, eighth, 1, bias=False), nn.Conv2d(128, eighth, 1, bias=False)
        self.decode8 = nn.Sequential(*(Residual(eighth) for _ in range(blocks[0])))
        self.head = nn.Sequential(nn.BatchNorm2d(eighth), nn.ReLU(), nn.Conv2d(eighth, num_colours, 1))

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))

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
        scores = self.decode16(_doubled(self.up32(scores)) + self.look16(seen[4]))
        return self.head(self.decode8(_doubled(self.up16(scores)) + self.look8(seen[3])))


def _doubled(features: Float[Tensor, "batch channels height width"]) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear")


#: The nets by the names of the command line.
NETS: Mapping[str, Callable[..., nn.Module]] = {
    "pool-upsample": PoolUpsampleNet,
    "conv-transpose": ConvTransposeNet,
    "unet": UNet,
    "colournet": ColourNet,
    "photo": PhotoNet,
}


def build_net(name: str, **settings: Any) -> nn.Module:
    """The net of that name with the settings of its class; UsageError for one it does not have."""
    try:
        # JSON, where settings are kept, knows lists but no tuples.
        return NETS[name](
            **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        )
    except KeyError:
        raise UsageError(f"net {name!r}: unknown; there are {', '.join(NETS)}") from None
    except TypeError as error:
        raise UsageError(f"net {name!r} has no such setting ({error})") from error


def count_parameters(net: nn.Module) -> int:
    """How many numbers training adjusts."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
