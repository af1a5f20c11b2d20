"""The three networks in the assignment's figure 1: PoolUpsampleNet (1a), ConvTransposeNet (1b) and UNet (1c).

The input is a batch of greyscale images in [0, 1), float32 [batch, in, height, width]. Height and width are multiples
of ``model.size_divisor``. The output is a batch of logits [batch, colours, height, width]. UNet follows Ronneberger et
al. (2015). For any kernel size of at least 1, the layer outputs have the shapes given in the figure. See
:func:`strided_padding` and :func:`transposed_padding`.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.errors import UsageError

Logits = Float[Tensor, "batch colours height width"]
GreyBatch = Float[Tensor, "batch in height width"]


def strided_padding(kernel: int, dilation: int = 1) -> int:
    """Return the padding with which a convolution of stride 2 halves every even size exactly.

    With kernel size k, dilation d and padding p, an input of size n results in an output of size
    floor((n + 2p − d(k − 1) − 1) / 2) + 1. For even n, this is n/2 if 2p is d(k − 1) or d(k − 1) − 1.
    """
    return dilation * (kernel - 1) // 2


def transposed_padding(kernel: int) -> tuple[int, int]:
    """Return the padding and output padding with which a transposed convolution of stride 2 exactly doubles every size.

    With kernel size k, padding p and output padding o, an input of size n results in an output of size
    2(n − 1) − 2p + (k − 1) + o + 1. This is 2n if o = 2p + 2 − k. Since o must be 0 or 1, p is (k − 1) // 2, and o is 1
    for odd k and 0 for even k.
    """
    return (kernel - 1) // 2, kernel % 2


# PyTorch warns that padding="same" with an even kernel copies the input. The copy is intended.
warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)


def same_conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps height and width (stride 1) or halves them (stride 2).

    With stride 1 and an odd kernel extent e = d(k − 1) + 1, the input is padded by (e − 1)/2 on every side. For an even
    extent, no symmetric padding keeps the size, and ``padding="same"`` pads one more pixel on the right and at the
    bottom.
    """
    padding = "same" if stride == 1 else strided_padding(kernel, dilation)
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, dilation=dilation, padding=padding)


def upsample_conv(in_channels: int, out_channels: int, kernel: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution of stride 2 and dilation 1 that doubles height and width."""
    padding, output_padding = transposed_padding(kernel)
    return nn.ConvTranspose2d(
        in_channels, out_channels, kernel, stride=2, padding=padding, output_padding=output_padding
    )


def check_conv_args(kernel: int, num_in_channels: int, num_filters: int, num_colours: int, dilation: int = 1) -> None:
    """Raise UsageError if an argument is below 1, or the dilated kernel is too large for images of 32 × 32 pixels."""
    sizes = {"kernel": kernel, "dilation": dilation, "num_in_channels": num_in_channels}
    for name, value in {**sizes, "num_filters": num_filters, "num_colours": num_colours}.items():
        if value < 1:
            raise UsageError(f"{name} is {value}: expected at least 1")
    extent = dilation * (kernel - 1) + 1
    if extent > 33:  # Most inputs of the convolution would be padding.
        raise UsageError(
            f"kernel {kernel} with dilation {dilation} covers {extent} pixels: expected at most 33, for images of "
            "32 × 32 pixels; use a smaller kernel or dilation"
        )


class PoolUpsampleNet(nn.Module):
    """Figure 1a: two convolutions with pooling, two convolutions with upsampling, and a last convolution."""

    size_divisor = 4

    def __init__(self, kernel: int = 3, num_in_channels: int = 1, num_filters: int = 32, num_colours: int = 24) -> None:
        super().__init__()
        check_conv_args(kernel, num_in_channels, num_filters, num_colours)
        self.block1 = self._block(num_in_channels, num_filters, kernel, nn.MaxPool2d(2))
        self.block2 = self._block(num_filters, 2 * num_filters, kernel, nn.MaxPool2d(2))
        self.block3 = self._block(2 * num_filters, num_filters, kernel, nn.Upsample(scale_factor=2))
        self.block4 = self._block(num_filters, num_colours, kernel, nn.Upsample(scale_factor=2))
        self.last = same_conv(num_colours, num_colours, kernel)

    @staticmethod
    def _block(in_channels: int, out_channels: int, kernel: int, resize: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            same_conv(in_channels, out_channels, kernel), resize, nn.BatchNorm2d(out_channels), nn.ReLU()
        )

    def forward(self, grey: GreyBatch) -> Logits:
        """Return the logits of every pixel."""
        return self.last(self.block4(self.block3(self.block2(self.block1(grey)))))


def down_block(in_channels: int, out_channels: int, kernel: int, dilation: int) -> nn.Sequential:
    """Return a block that halves height and width: a strided convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        same_conv(in_channels, out_channels, kernel, stride=2, dilation=dilation),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def up_block(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Return a block that doubles height and width: a transposed convolution, BatchNorm and ReLU."""
    return nn.Sequential(upsample_conv(in_channels, out_channels, kernel), nn.BatchNorm2d(out_channels), nn.ReLU())


class ConvTransposeNet(nn.Module):
    """Figure 1b: strided convolutions instead of pooling, transposed convolutions instead of upsampling.

    ``dilation`` applies to the ordinary convolutions. The transposed convolutions have dilation 1, as the assignment
    specifies.
    """

    size_divisor = 4

    def __init__(
        self, kernel: int = 3, num_in_channels: int = 1, num_filters: int = 32, num_colours: int = 24, dilation: int = 1
    ) -> None:
        super().__init__()
        check_conv_args(kernel, num_in_channels, num_filters, num_colours, dilation)
        self.block1 = down_block(num_in_channels, num_filters, kernel, dilation)
        self.block2 = down_block(num_filters, 2 * num_filters, kernel, dilation)
        self.block3 = up_block(2 * num_filters, num_filters, kernel)
        self.block4 = up_block(num_filters, num_colours, kernel)
        self.last = same_conv(num_colours, num_colours, kernel, dilation=dilation)

    def forward(self, grey: GreyBatch) -> Logits:
        """Return the logits of every pixel."""
        return self.last(self.block4(self.block3(self.block2(self.block1(grey)))))


class UNet(nn.Module):
    """Figure 1c: ConvTransposeNet with two skip connections.

    They lead from block 1 to block 4 and from the input to the last layer.
    """

    size_divisor = 4

    def __init__(
        self, kernel: int = 3, num_in_channels: int = 1, num_filters: int = 32, num_colours: int = 24, dilation: int = 1
    ) -> None:
        super().__init__()
        check_conv_args(kernel, num_in_channels, num_filters, num_colours, dilation)
        self.block1 = down_block(num_in_channels, num_filters, kernel, dilation)
        self.block2 = down_block(num_filters, 2 * num_filters, kernel, dilation)
        self.block3 = up_block(2 * num_filters, num_filters, kernel)
        self.block4 = up_block(2 * num_filters, num_colours, kernel)
        self.last = same_conv(num_colours + num_in_channels, num_colours, kernel, dilation=dilation)

    def forward(self, grey: GreyBatch) -> Logits:
        """Return the logits of every pixel."""
        half = self.block1(grey)
        decoded = torch.cat([self.block3(self.block2(half)), half], 1)
        return self.last(torch.cat([self.block4(decoded), grey], 1))
