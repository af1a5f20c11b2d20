"""Missing last convolution, additional softmax, missing skip connection."""

import torch
import torch.nn.functional as F
from torch import nn
from wrong_layers import PoolUpsampleNet as NotMine  # noqa: F401
from wrong_layers import down, up


def block(a, b, k, resize):
    return nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2), resize, nn.BatchNorm2d(b), nn.ReLU())


class PoolUpsampleNet(nn.Module):
    """The last convolution is created but not used."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        self.one = block(num_in_channels, num_filters, kernel, nn.MaxPool2d(2))
        self.two = block(num_filters, 2 * num_filters, kernel, nn.MaxPool2d(2))
        self.three = block(2 * num_filters, num_filters, kernel, nn.Upsample(scale_factor=2))
        self.four = block(num_filters, num_colours, kernel, nn.Upsample(scale_factor=2))
        self.five = nn.Conv2d(num_colours, num_colours, kernel, padding=kernel // 2)

    def forward(self, x):
        return self.four(self.three(self.two(self.one(x))))


class ConvTransposeNet(nn.Module):
    """The output is a softmax over the colours."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        k, nf, nc = kernel, num_filters, num_colours
        self.all = nn.Sequential(
            *down(num_in_channels, nf, k, 1),
            *down(nf, 2 * nf, k, 1),
            *up(2 * nf, nf, k),
            *up(nf, nc, k),
            nn.Conv2d(nc, nc, k, padding=k // 2),
        )

    def forward(self, x):
        return F.softmax(self.all(x), dim=1)


class UNet(nn.Module):
    """The last convolution does not receive the input, and the output of block 3 is not used."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        k, nf, nc = kernel, num_filters, num_colours
        self.one = nn.Sequential(*down(num_in_channels, nf, k, 1))
        self.two = nn.Sequential(*down(nf, 2 * nf, k, 1))
        self.three = nn.Sequential(*up(2 * nf, nf, k))
        self.four = nn.Sequential(*up(2 * nf, nc, k))
        self.five = nn.Conv2d(nc, nc, k, padding=k // 2)

    def forward(self, x):
        one = self.one(x)
        self.three(self.two(one))
        return self.five(self.four(torch.cat([one, one], 1)))
