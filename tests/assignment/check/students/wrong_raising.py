"""An error in forward, a constructor without sizes, and a forward without return value."""

import torch
from torch import nn
from wrong_layers import down, up


class PoolUpsampleNet(nn.Module):
    """Block 3 expects the number of channels of block 1."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        self.one = nn.Sequential(
            nn.Conv2d(num_in_channels, num_filters, kernel, padding=kernel // 2),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(num_filters),
            nn.ReLU(),
        )
        self.two = nn.Sequential(
            nn.Conv2d(num_filters, 2 * num_filters, kernel, padding=kernel // 2),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(2 * num_filters),
            nn.ReLU(),
        )
        self.three = nn.Conv2d(num_filters, num_filters, kernel, padding=kernel // 2)

    def forward(self, x):
        print("here " * 100_000)
        return self.three(self.two(self.one(x)))


class ConvTransposeNet(nn.Module):
    """No sizes can be set, and the output depends on the batch."""

    def __init__(self):
        super().__init__()
        self.all = nn.Sequential(
            *down(1, 32, 3, 1), *down(32, 64, 3, 1), *up(64, 32, 3), *up(32, 24, 3), nn.Conv2d(24, 24, 3, padding=1)
        )

    def forward(self, x):
        return self.all(x) - self.all(x).mean(0).detach()


class UNet(nn.Module):
    """forward has no return statement."""

    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        self.five = nn.Conv2d(num_in_channels, num_colours, kernel, padding=kernel // 2)

    def forward(self, x):
        torch.relu(self.five(x))
