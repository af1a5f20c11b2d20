"""Classes that exit, crash with a segmentation fault, and loop forever."""

import ctypes
import sys

from torch import nn


class PoolUpsampleNet(nn.Module):
    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()
        sys.exit(3)


class ConvTransposeNet(nn.Module):
    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()

    def forward(self, x):
        return ctypes.string_at(0)


class UNet(nn.Module):
    def __init__(self, kernel, num_in_channels, num_filters, num_colours):
        super().__init__()

    def forward(self, x):
        while True:
            x = x + 1
            print(x)
