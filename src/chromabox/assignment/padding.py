"""Paddings that preserve the shapes in figure 1b, for any kernel, stride and dilation (part B.4 of the assignment).

The paddings are found by running PyTorch's layers with every padding and output padding that could be a solution.
"""

from contextlib import suppress
from functools import partial
from itertools import product
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from chromabox.colour.models.baselines import check_conv_args
from chromabox.errors import UsageError

#: Padding and output padding. Convolutions have no output padding, which is represented by 0.
Padding: TypeAlias = tuple[int, int]


class LayerGroup(NamedTuple):
    """Layers of figure 1b that have the same settings, with their input and output widths in pixels."""

    name: str
    widths: tuple[tuple[int, int], ...]
    transposed: bool = False
    resizes: bool = True
    """Whether the layers have the requested stride instead of stride 1."""


LAYER_GROUPS = (
    LayerGroup("first two convolutions", ((32, 16), (16, 8))),
    LayerGroup("transposed convolutions", ((8, 16), (16, 32)), transposed=True),
    LayerGroup("last convolution", ((32, 32),), resizes=False),
)


def search_paddings(kernel: int, *, stride: int = 2, dilation: int = 1) -> tuple[tuple[Padding, ...], ...]:
    """Return the paddings that preserve the shapes in figure 1b, for each of :data:`LAYER_GROUPS`.

    Args:
        kernel: Kernel size.
        stride: Stride of all layers except the last convolution.
        dilation: Dilation of all layers. In the assignment, transposed convolutions always have dilation 1.

    Raise UsageError for values below 1, for kernels that extend beyond the image, and for strides over 32.
    """
    check_conv_args(kernel, 1, 1, 1, dilation)
    if not 1 <= stride <= 32:
        raise UsageError(f"stride is {stride}: expected 1 to 32, the width of the images")
    solutions = []
    for group in LAYER_GROUPS:
        layer_stride = stride if group.resizes else 1
        num_output_paddings = max(layer_stride, dilation) if group.transposed else 1
        # With twice the padding above this limit, convolutions output too many pixels and transposed convolutions none.
        limit = 16 * layer_stride + dilation * (kernel - 1) + num_output_paddings
        pairs = []
        for padding, output_padding in product(range(limit // 2 + 1), range(num_output_paddings)):
            # One-dimensional layers suffice, because height and width are treated alike.
            kind = partial(nn.ConvTranspose1d, output_padding=output_padding) if group.transposed else nn.Conv1d
            layer = kind(1, 1, kernel, stride=layer_stride, padding=padding, dilation=dilation)
            # PyTorch rejects some paddings.
            with torch.no_grad(), suppress(RuntimeError, ValueError):
                if all(layer(torch.zeros(1, width)).shape == (1, expected) for width, expected in group.widths):
                    pairs.append((padding, output_padding))
        solutions.append(tuple(pairs))
    return tuple(solutions)


def assignment_rule(kernel: int) -> Padding:
    """Return the assignment's general solution: padding (k − 1)//2, and output padding 1 for odd k, else 0."""
    return (kernel - 1) // 2, int(kernel % 2 == 1)
