"""Paddings that preserve the shapes in figure 1b, for any kernel, stride and dilation (part B.4 of the assignment).

With the kernel extent r = d·(k − 1), the output sizes of PyTorch's layers for n input pixels are:

* convolution: ⌊(n + 2p − r − 1)/s⌋ + 1. This equals m if and only if 0 ≤ 2p − a < s with a = s·(m − 1) + r + 1 − n;
* transposed convolution: s·(n − 1) − 2p + r + o + 1. This equals m if and only if the output padding o is 2p − a with
  a = s·(n − 1) + r + 1 − m. PyTorch requires 0 ≤ o < max(s, d).

In both cases 2p is one of a few integers from a on. :func:`solve_paddings` derives all solutions from these equations;
:func:`search_paddings` finds the same solutions by running PyTorch's layers.
"""

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from chromabox.colour.models.baselines import check_conv_args
from chromabox.errors import ChromaboxError, UsageError

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


@dataclass(frozen=True)
class PaddingOptions:
    """All padding pairs with which every layer of a group keeps its shapes."""

    group: LayerGroup
    paddings: tuple[Padding, ...]
    reason: str
    """Why there is no solution, in one sentence; empty if there is one."""


def solve_paddings(kernel: int, *, stride: int = 2, dilation: int = 1) -> tuple[PaddingOptions, ...]:
    """Return, for each of :data:`LAYER_GROUPS`, all pairs that preserve the shapes in figure 1b.

    Every pair is verified with PyTorch's layers. ``dilation`` applies to all layers, including the transposed ones
    (which the assignment and ConvTransposeNet leave at 1); ``stride`` to all but the last. Raise UsageError for values
    below 1, for kernels that extend beyond the image, and for strides over 32.
    """
    return tuple(_solve_group(layers) for layers in _figure_layers(kernel, stride, dilation))


def search_paddings(kernel: int, *, stride: int = 2, dilation: int = 1) -> tuple[tuple[Padding, ...], ...]:
    """Return, for each of :data:`LAYER_GROUPS`, the pairs that preserve the shapes, found by running PyTorch's layers.

    All pairs that could be solutions are tried. Raise UsageError in the same cases as :func:`solve_paddings`.
    """
    solutions = []
    for layers in _figure_layers(kernel, stride, dilation):
        # With more padding, a convolution outputs more than 32 pixels and a transposed convolution none.
        max_padding = 16 * layers.stride + layers.kernel_extent + layers.num_output_paddings
        pairs = (
            (padding, output_padding)
            for padding in range(max_padding + 1)
            for output_padding in range(layers.num_output_paddings)
        )
        solutions.append(tuple(pair for pair in pairs if layers.keeps_shapes(pair)))
    return tuple(solutions)


def assignment_rule(kernel: int) -> Padding:
    """Return the assignment's general solution: padding (k − 1)//2, output padding 1 for odd kernels, 0 for even."""
    return (kernel - 1) // 2, int(kernel % 2 == 1)


@dataclass(frozen=True)
class _LayerSettings:
    """Settings of the layers of a group, except their padding."""

    group: LayerGroup
    kernel: int
    stride: int
    dilation: int

    @property
    def kernel_extent(self) -> int:
        """Distance in pixels between the first and the last pixel that the kernel covers."""
        return self.dilation * (self.kernel - 1)

    @property
    def num_output_paddings(self) -> int:
        """Number of output paddings that PyTorch accepts, starting at 0."""
        return max(self.stride, self.dilation) if self.group.transposed else 1

    def doubled_padding_range(self, in_width: int, out_width: int) -> range:
        """Return the possible values of 2p for one layer by the equations of this module, odd and negative included."""
        if self.group.transposed:
            lowest = self.stride * (in_width - 1) + self.kernel_extent + 1 - out_width
            return range(lowest, lowest + self.num_output_paddings)
        lowest = self.stride * (out_width - 1) + self.kernel_extent + 1 - in_width
        return range(lowest, lowest + self.stride)

    def find_paddings(self, in_width: int, out_width: int) -> list[Padding]:
        """Return all pairs for one layer."""
        doubled = self.doubled_padding_range(in_width, out_width)
        paddings = [value // 2 for value in doubled if value >= 0 and value % 2 == 0]
        return [(padding, 2 * padding - doubled[0] if self.group.transposed else 0) for padding in paddings]

    def keeps_shapes(self, padding_pair: Padding) -> bool:
        """Return whether PyTorch's layers with this pair keep every shape; False if PyTorch rejects the pair."""
        padding, output_padding = padding_pair
        layer_type = partial(nn.ConvTranspose2d, output_padding=output_padding) if self.group.transposed else nn.Conv2d
        layer = layer_type(1, 1, self.kernel, stride=self.stride, padding=padding, dilation=self.dilation)
        try:
            with torch.no_grad():
                return all(
                    layer(torch.zeros(1, 1, in_width, in_width)).shape == (1, 1, out_width, out_width)
                    for in_width, out_width in self.group.widths
                )
        except (RuntimeError, ValueError):
            return False


def _figure_layers(kernel: int, stride: int, dilation: int) -> list[_LayerSettings]:
    """Return the layers of figure 1b with these settings. Raise UsageError for invalid settings."""
    check_conv_args(kernel, 1, 1, 1, dilation)
    if not 1 <= stride <= 32:
        raise UsageError(f"stride is {stride}: expected 1 to 32, the width of the images")
    return [_LayerSettings(group, kernel, stride if group.resizes else 1, dilation) for group in LAYER_GROUPS]


def _solve_group(layers: _LayerSettings) -> PaddingOptions:
    first, *others = (layers.find_paddings(in_width, out_width) for in_width, out_width in layers.group.widths)
    pairs = tuple(pair for pair in first if all(pair in other for other in others))
    for pair in pairs:
        if not layers.keeps_shapes(pair):
            raise ChromaboxError(f"{layers.group.name}: PyTorch layers with padding {pair} give unexpected shapes")
    return PaddingOptions(layers.group, pairs, "" if pairs else _explain_no_padding(layers))


def _explain_no_padding(layers: _LayerSettings) -> str:
    """Explain why no pair keeps the shapes of a group: one layer has no solution, or there is no common one."""
    requirements = []
    for in_width, out_width in layers.group.widths:
        widths, doubled = f"{in_width} → {out_width}", layers.doubled_padding_range(in_width, out_width)
        pairs = layers.find_paddings(in_width, out_width)
        if doubled[-1] < 0:
            return f"{widths} requires a negative padding, 2p ≤ −{-doubled[-1]}"
        if not pairs:
            requirement = f"{widths} requires 2p = {doubled[0]}, which no integer p satisfies"
            return requirement if in_width != out_width else f"{requirement}; padding one side by one pixel more does"
        values = [f"({padding}, {extra})" if layers.group.transposed else str(padding) for padding, extra in pairs]
        interval = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
        requirements.append(f"{widths} requires {'(p, o)' if layers.group.transposed else 'p'} = {interval}")
    return f"{', '.join(requirements)}: the two layers have no common solution"
