"""Pooling after ReLU, constant numbers of channels, shared BatchNorm."""

import torch
from torch import nn
from wrong_layers import down, up


class PoolUpsampleNet(nn.Module):
    """Every block is convolution, BatchNorm, ReLU, then pooling or upsampling."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        layers = []
        sizes = [num_in_channels, num_filters, 2 * num_filters, num_filters, num_colours]
        for a, b, resize in zip(sizes, sizes[1:], (nn.MaxPool2d(2),) * 2 + (nn.Upsample(scale_factor=2),) * 2):  # noqa: B905
            layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.BatchNorm2d(b), nn.ReLU(), resize]
        self.layers = nn.Sequential(*layers, nn.Conv2d(num_colours, num_colours, kernel, padding=kernel // 2))

    def forward(self, x):
        return self.layers(x)


class ConvTransposeNet(nn.Module):
    """The sizes are constants; the arguments are ignored."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        self.all = nn.Sequential(
            *down(1, 32, 3, 1), *down(32, 64, 3, 1), *up(64, 32, 3), *up(32, 24, 3), nn.Conv2d(24, 24, 3, padding=1)
        )

    def forward(self, x):
        return self.all(x)


class UNet(nn.Module):
    """Blocks 1 and 3 share a BatchNorm, the last operation is a ReLU, and a BatchNorm has another momentum."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        k, nf, nc = kernel, num_filters, num_colours
        self.one, self.two = nn.Conv2d(num_in_channels, nf, k, 2, 1), nn.Conv2d(nf, 2 * nf, k, 2, 1)
        self.three = nn.ConvTranspose2d(2 * nf, nf, k, 2, 1, 1)
        self.four = nn.ConvTranspose2d(2 * nf, nc, k, 2, 1, 1)
        self.five = nn.Conv2d(nc + num_in_channels, nc, k, padding=k // 2)
        self.norm, self.norm2, self.norm4 = nn.BatchNorm2d(nf), nn.BatchNorm2d(2 * nf, momentum=0.5), nn.BatchNorm2d(nc)
        self.relu = nn.ReLU()

    def forward(self, x):
        one = self.relu(self.norm(self.one(x)))
        three = self.relu(self.norm(self.three(self.relu(self.norm2(self.two(one))))))
        four = self.relu(self.norm4(self.four(torch.cat([three, one], 1))))
        return self.relu(self.five(torch.cat([four, x], 1)))
