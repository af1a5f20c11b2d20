"""Which paddings keep the shapes of figure 1b, for any kernel, stride and dilation (part B.4).

With the reach r = d·(k − 1), PyTorch's layers make of n pixels

* convolution: ⌊(n + 2p − r − 1)/s⌋ + 1. That is m if and only if 0 ≤ 2p − a < s with a = s·(m − 1) + r + 1 − n;
* transposed convolution: s·(n − 1) − 2p + r + o + 1. That is m if and only if the output padding o is 2p − a with
  a = s·(n − 1) + r + 1 − m, and PyTorch takes it only if 0 ≤ o < max(s, d).

So in both cases 2p lies among a few numbers from a on. :func:`figure_geometry` gives all answers from this,
:func:`searched` the same by trying real layers.
"""

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import nn

from chromabox.colour.models.baselines import check_conv_args
from chromabox.errors import ChromaboxError, UsageError

#: Padding and output padding; the latter is 0 for a convolution, which has none.
Padding: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class LayerGroup:
    """Layers of figure 1b that share their parameters, and the widths they take and give."""

    name: str
    widths: tuple[tuple[int, int], ...]
    transposed: bool = False
    resizes: bool = True
    """Whether it has the stride that is asked about; 1 otherwise."""


LAYER_GROUPS = (
    LayerGroup("first two convolutions", ((32, 16), (16, 8))),
    LayerGroup("transposed convolutions", ((8, 16), (16, 32)), transposed=True),
    LayerGroup("last convolution", ((32, 32),), resizes=False),
)


@dataclass(frozen=True)
class PaddingOptions:
    """All pairs with which every layer of a stage keeps its shapes."""

    group: LayerGroup
    paddings: tuple[Padding, ...]
    reason: str
    """Why there is none, in one sentence; empty where there is one."""


def solve_paddings(kernel: int, *, stride: int = 2, dilation: int = 1) -> tuple[PaddingOptions, ...]:
    """For each of ``STAGES`` all pairs that keep figure 1b's shapes, every one confirmed by running the real layers.

    ``dilation`` is that of all layers, also of the transposed ones (which the assignment, and ConvTransposeNet, leave
    at 1); ``stride`` that of all but the last. Raises UsageError for values below 1, a reach beyond the picture, and
    strides over 32.
    """
    return tuple(_solve_group(layers) for layers in _figure_layers(kernel, stride, dilation))


def search_paddings(kernel: int, *, stride: int = 2, dilation: int = 1) -> tuple[tuple[Padding, ...], ...]:
    """For each of ``STAGES`` the pairs that keep the shapes, found by running real layers with all that could.

    Raises as :func:`figure_geometry` does.
    """
    found = []
    for layers in _figure_layers(kernel, stride, dilation):
        # With more, a convolution gives more than the figure's 32 pixels, and a transposed one none at all.
        most = 16 * layers.stride + layers.kernel_extent + layers.num_output_paddings
        pairs = ((padding, extra) for padding in range(most + 1) for extra in range(layers.num_output_paddings))
        found.append(tuple(pair for pair in pairs if layers.keeps_shapes(pair)))
    return tuple(found)


def assignment_rule(kernel: int) -> Padding:
    """The assignment's own general answer: padding (k − 1)//2; output padding 1 for odd kernels, 0 for even ones."""
    return (kernel - 1) // 2, int(kernel % 2 == 1)


@dataclass(frozen=True)
class _LayerSettings:
    """The layers of a stage but for their padding."""

    group: LayerGroup
    kernel: int
    stride: int
    dilation: int

    @property
    def kernel_extent(self) -> int:
        """Pixels from the first that the kernel touches to the last."""
        return self.dilation * (self.kernel - 1)

    @property
    def num_output_paddings(self) -> int:
        """How many output paddings PyTorch takes, from 0 on."""
        return max(self.stride, self.dilation) if self.group.transposed else 1

    def doubled_padding_range(self, in_width: int, out_width: int) -> range:
        """What 2p may be for one layer, odd and negative numbers among them; the equations of this module."""
        if self.group.transposed:
            least = self.stride * (in_width - 1) + self.kernel_extent + 1 - out_width
            return range(least, least + self.num_output_paddings)
        least = self.stride * (out_width - 1) + self.kernel_extent + 1 - in_width
        return range(least, least + self.stride)

    def find_paddings(self, in_width: int, out_width: int) -> list[Padding]:
        """All pairs for one layer."""
        doubled = self.doubled_padding_range(in_width, out_width)
        paddings = [two // 2 for two in doubled if two >= 0 and two % 2 == 0]
        return [(one, 2 * one - doubled[0] if self.group.transposed else 0) for one in paddings]

    def keeps_shapes(self, padding_pair: Padding) -> bool:
        """Whether the real layers with this pair, which PyTorch may refuse, keep every shape."""
        padding, extra = padding_pair
        kind = partial(nn.ConvTranspose2d, output_padding=extra) if self.group.transposed else nn.Conv2d
        layer = kind(1, 1, self.kernel, stride=self.stride, padding=padding, dilation=self.dilation)
        try:
            with torch.no_grad():
                return all(
                    layer(torch.zeros(1, 1, taken, taken)).shape == (1, 1, given, given)
                    for taken, given in self.group.widths
                )
        except (RuntimeError, ValueError):
            return False


def _figure_layers(kernel: int, stride: int, dilation: int) -> list[_LayerSettings]:
    """The figure's layers, of settings that can be asked about."""
    check_conv_args(kernel, 1, 1, 1, dilation)
    if not 1 <= stride <= 32:
        raise UsageError(f"stride is {stride}: 1 to 32, the width of the picture, can be asked about")
    return [_LayerSettings(stage, kernel, stride if stage.resizes else 1, dilation) for stage in LAYER_GROUPS]


def _solve_group(layers: _LayerSettings) -> PaddingOptions:
    first, *others = (layers.find_paddings(taken, given) for taken, given in layers.group.widths)
    pairs = tuple(pair for pair in first if all(pair in other for other in others))
    for pair in pairs:
        if not layers.keeps_shapes(pair):
            raise ChromaboxError(f"{layers.group.name}: PyTorch's layers with {pair} do not give the shapes expected")
    return PaddingOptions(layers.group, pairs, "" if pairs else _explain_no_padding(layers))


def _explain_no_padding(layers: _LayerSettings) -> str:
    """Why no pair keeps the shapes of a stage: one layer has none, or its layers have none in common."""
    wishes = []
    for taken, given in layers.group.widths:
        step, doubled = f"{taken} → {given}", layers.doubled_padding_range(taken, given)
        pairs = layers.find_paddings(taken, given)
        if doubled[-1] < 0:
            return f"{step} would need less than no padding, 2p at most −{-doubled[-1]}"
        if not pairs:
            needed = f"{step} needs 2p = {doubled[0]}, which no whole p gives"
            return needed if taken != given else f"{needed}; one more pixel on one side than on the other does"
        named = [f"({padding}, {extra})" if layers.group.transposed else str(padding) for padding, extra in pairs]
        span = named[0] if len(named) == 1 else f"{named[0]} to {named[-1]}"
        wishes.append(f"{step} needs {'(p, o)' if layers.group.transposed else 'p'} = {span}")
    return f"{', '.join(wishes)}: no answer is common to both layers"
