"""Missing BatchNorm, missing padding, skip connection from a wrong layer."""

import torch
from torch import nn


class PoolUpsampleNet(nn.Module):
    """Block 2 has no BatchNorm."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        p = kernel // 2
        self.block1 = nn.Sequential(
            nn.Conv2d(num_in_channels, num_filters, kernel, padding=p),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(num_filters),
            nn.ReLU(),
        )
        self.block2 = nn.Sequential(
            nn.Conv2d(num_filters, 2 * num_filters, kernel, padding=p), nn.MaxPool2d(2), nn.ReLU()
        )
        self.block3 = nn.Sequential(
            nn.Conv2d(2 * num_filters, num_filters, kernel, padding=p),
            nn.Upsample(scale_factor=2),
            nn.BatchNorm2d(num_filters),
            nn.ReLU(),
        )
        self.block4 = nn.Sequential(
            nn.Conv2d(num_filters, num_colours, kernel, padding=p),
            nn.Upsample(scale_factor=2),
            nn.BatchNorm2d(num_colours),
            nn.ReLU(),
        )
        self.end = nn.Conv2d(num_colours, num_colours, kernel, padding=p)

    def forward(self, x):
        return self.end(self.block4(self.block3(self.block2(self.block1(x)))))


def down(a, b, k, p):
    return [nn.Conv2d(a, b, k, stride=2, padding=p), nn.BatchNorm2d(b), nn.ReLU()]


def up(a, b, k):
    return [nn.ConvTranspose2d(a, b, k, stride=2, padding=1, output_padding=1), nn.BatchNorm2d(b), nn.ReLU()]


class ConvTransposeNet(nn.Module):
    """The second convolution has no padding."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        k, nf, nc = kernel, num_filters, num_colours
        self.all = nn.Sequential(
            *down(num_in_channels, nf, k, 1),
            *down(nf, 2 * nf, k, 0),
            *up(2 * nf, nf, k),
            *up(nf, nc, k),
            nn.Conv2d(nc, nc, k, padding=k // 2),
        )

    def forward(self, x):
        return self.all(x)


class UNet(nn.Module):
    """Block 4 receives the output of the convolution of block 1, before BatchNorm and ReLU."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        k, nf, nc = kernel, num_filters, num_colours
        self.one = nn.ModuleList(down(num_in_channels, nf, k, 1))
        self.two = nn.Sequential(*down(nf, 2 * nf, k, 1))
        self.three = nn.Sequential(*up(2 * nf, nf, k))
        self.four = nn.Sequential(*up(2 * nf, nc, k))
        self.five = nn.Conv2d(nc + num_in_channels, nc, k, padding=k // 2)

    def forward(self, x):
        early = self.one[0](x)
        half = self.one[2](self.one[1](early))
        again = torch.cat([self.three(self.two(half)), early], 1)
        return self.five(torch.cat([self.four(again), x], 1))
