"""Paddings that preserve the shapes in figure 1b, for any kernel, stride and dilation (part B.4 of the assignment).

They are found by running PyTorch's layers with every padding and output padding that could be a solution.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TypeAlias

import torch
from torch import nn

from chromabox.colour.models.baselines import check_conv_args
from chromabox.errors import UsageError

#: Padding and output padding; the latter is 0 for convolutions, which have none.
Padding: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class LayerGroup:
    """Layers of figure 1b that share their parameters, with their input and output widths in pixels."""

    name: str
    widths: tuple[tuple[int, int], ...]
    transposed: bool = False
    resizes: bool = True
    """Whether the layers have the requested stride; otherwise their stride is 1."""


LAYER_GROUPS = (
    LayerGroup("first two convolutions", ((32, 16), (16, 8))),
    LayerGroup("transposed convolutions", ((8, 16), (16, 32)), transposed=True),
    LayerGroup("last convolution", ((32, 32),), resizes=False),
)


def search_paddings(kernel: int, *, stride: int = 2, dilation: int = 1) -> tuple[tuple[Padding, ...], ...]:
    """Return, for each of :data:`LAYER_GROUPS`, all pairs for which PyTorch's layers preserve the shapes in figure 1b.

    ``dilation`` applies to all layers, including the transposed ones (which the assignment and ConvTransposeNet leave
    at 1); ``stride`` to all but the last. Raise UsageError for values below 1, for kernels that extend beyond the
    image, and for strides over 32.
    """
    check_conv_args(kernel, 1, 1, 1, dilation)
    if not 1 <= stride <= 32:
        raise UsageError(f"stride is {stride}: expected 1 to 32, the width of the images")
    solutions = []
    for group in LAYER_GROUPS:
        layer_stride = stride if group.resizes else 1
        num_output_paddings = max(layer_stride, dilation) if group.transposed else 1
        # With 2p above this limit, a convolution outputs too many pixels and a transposed convolution none.
        limit = 16 * layer_stride + dilation * (kernel - 1) + num_output_paddings
        pairs = product(range(limit // 2 + 1), range(num_output_paddings))
        solutions.append(tuple(pair for pair in pairs if _keeps_shapes(group, pair, kernel, layer_stride, dilation)))
    return tuple(solutions)


def _keeps_shapes(group: LayerGroup, pair: Padding, kernel: int, stride: int, dilation: int) -> bool:
    """Return whether PyTorch's layers with this pair preserve every shape; False if PyTorch rejects the pair."""
    padding, output_padding = pair
    # Height and width are treated alike, and one-dimensional layers are faster.
    layer_type = partial(nn.ConvTranspose1d, output_padding=output_padding) if group.transposed else nn.Conv1d
    layer = layer_type(1, 1, kernel, stride=stride, padding=padding, dilation=dilation)
    try:
        with torch.no_grad():
            return all(layer(torch.zeros(1, in_width)).shape == (1, out_width) for in_width, out_width in group.widths)
    except (RuntimeError, ValueError):
        return False


def assignment_rule(kernel: int) -> Padding:
    """Return the assignment's general solution: padding (k − 1)//2, output padding 1 for odd kernels, 0 for even."""
    return (kernel - 1) // 2, int(kernel % 2 == 1)
