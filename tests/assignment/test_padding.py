"""Paddings compared with exhaustive search with PyTorch layers, and with the solutions of the assignment."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chromabox.assignment.padding import assignment_rule, search_paddings
from chromabox.errors import UsageError

# Input and output widths in figure 1b of the first two, the transposed and the last layers.
DOWN, UP, SAME = {32: 16, 16: 8}, {8: 16, 16: 32}, {32: 32}


def output_widths(layer: nn.Module, widths: dict[int, int]) -> dict[int, int]:
    """Return the output width for each input width; widths that PyTorch rejects are omitted."""
    outputs = {}
    for width in widths:
        try:
            outputs[width] = layer(torch.zeros(1, 1, width, width)).shape[-1]
        except (RuntimeError, ValueError):
            continue
    return outputs


def exhaustive_search(kernel: int, stride: int, dilation: int, limit: int) -> tuple[list, list, list]:
    """Return all (padding, output padding) of strided, transposed and last layers that preserve the shapes."""
    strided, transposed, last = [], [], []
    for padding in range(limit):
        if output_widths(nn.Conv2d(1, 1, kernel, stride, padding, dilation), DOWN) == DOWN:
            strided.append((padding, 0))
        if output_widths(nn.Conv2d(1, 1, kernel, 1, padding, dilation), SAME) == SAME:
            last.append((padding, 0))
        for output_padding in range(5):
            layer = nn.ConvTranspose2d(1, 1, kernel, stride, padding, output_padding, dilation=dilation)
            if output_widths(layer, UP) == UP:
                transposed.append((padding, output_padding))
    return strided, transposed, last


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", range(1, 10))
def test_solutions_equal_exhaustive_search(kernel: int, dilation: int) -> None:
    solutions = search_paddings(kernel, dilation=dilation)
    assert tuple(map(list, solutions)) == exhaustive_search(kernel, 2, dilation, limit=20)


@settings(max_examples=8, deadline=None)
@given(kernel=st.integers(1, 7), stride=st.integers(1, 3), dilation=st.integers(1, 4))
def test_solutions_for_other_strides_equal_exhaustive_search(kernel: int, stride: int, dilation: int) -> None:
    solutions = search_paddings(kernel, stride=stride, dilation=dilation)
    assert tuple(map(list, solutions)) == exhaustive_search(kernel, stride, dilation, limit=33)


# Solutions of the assignment for part B.4 (and B.1 for a kernel of 3).
@pytest.mark.parametrize(("kernel", "padding", "output_padding"), [(3, 1, 1), (4, 1, 0), (5, 2, 1)])
def test_solutions_equal_those_of_the_assignment(kernel: int, padding: int, output_padding: int) -> None:
    assert search_paddings(kernel)[:2] == (((padding, 0),), ((padding, output_padding),))
    assert assignment_rule(kernel) == (padding, output_padding)


def test_assignment_rule_holds_for_all_kernels_without_dilation() -> None:
    """By hand: 2p is d(k − 1) or one less, so the rule holds for all kernels if d = 1, otherwise for k = 1 only."""
    for kernel in range(1, 33):
        padding, output_padding = assignment_rule(kernel)
        last = ((padding, 0),) if kernel % 2 else ()
        assert search_paddings(kernel) == (((padding, 0),), ((padding, output_padding),), last)
    for kernel in range(2, 10):
        assert assignment_rule(kernel) not in search_paddings(kernel, dilation=2)[1]


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "group"),
    [
        (4, 2, 1, 2),  # 32 → 32 requires 2p = 3
        (2, 2, 3, 2),  # 32 → 32 requires 2p = 3
        (3, 1, 1, 0),  # 32 → 16 requires 2p ≤ −14
        (3, 3, 1, 0),  # 32 → 16 requires p = 8 or 9, 16 → 8 requires p = 4 or 5
        (4, 3, 1, 1),  # 8 → 16 requires (p, o) = (5, 1), 16 → 32 requires (9, 1)
    ],
)
def test_layers_without_a_solution(kernel: int, stride: int, dilation: int, group: int) -> None:
    assert search_paddings(kernel, stride=stride, dilation=dilation)[group] == ()


def test_dilation_larger_than_the_stride_can_have_a_second_solution() -> None:
    """By hand: o may be 2, and 16 = 14 − 2p + 3 + o + 1 holds for p = 1 with o = 0 and for p = 2 with o = 2."""
    assert search_paddings(2, dilation=3)[1] == ((1, 0), (2, 2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": 0}, "kernel is 0"),
        ({"kernel": 3, "dilation": 0}, "dilation is 0"),
        ({"kernel": 3, "stride": 0}, "stride is 0"),
        ({"kernel": 3, "stride": 33}, "stride is 33"),
        ({"kernel": 34}, "covers 34 pixels"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search_paddings(**settings)
