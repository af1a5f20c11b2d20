"""Paddings against exhaustive search with PyTorch's own layers, and against the assignment's answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chromabox.assignment import padding as geometry
from chromabox.assignment.padding import LAYER_GROUPS, assignment_rule, search_paddings, solve_paddings
from chromabox.errors import ChromaboxError, UsageError

# The widths of figure 1b, typed in from it: what the first two, the transposed and the last layers take and give.
DOWN, UP, SAME = {32: 16, 16: 8}, {8: 16, 16: 32}, {32: 32}


def widths(layer: nn.Module, taken: dict[int, int]) -> dict[int, int]:
    """What a layer makes of the widths; nothing of those that PyTorch refuses."""
    given = {}
    for width in taken:
        try:
            given[width] = layer(torch.zeros(1, 1, width, width)).shape[-1]
        except (RuntimeError, ValueError):
            continue
    return given


def exhaustive(kernel: int, stride: int, dilation: int, most: int) -> tuple[list, list, list]:
    """All (padding, output padding) of strided, transposed and last layers that keep the figure's shapes."""
    strided, transposed, last = [], [], []
    for padding in range(most):
        if widths(nn.Conv2d(1, 1, kernel, stride, padding, dilation), DOWN) == DOWN:
            strided.append((padding, 0))
        if widths(nn.Conv2d(1, 1, kernel, 1, padding, dilation), SAME) == SAME:
            last.append((padding, 0))
        for extra in range(5):
            layer = nn.ConvTranspose2d(1, 1, kernel, stride, padding, extra, dilation=dilation)
            if widths(layer, UP) == UP:
                transposed.append((padding, extra))
    return strided, transposed, last


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", range(1, 10))
def test_answers_are_those_of_exhaustive_search(kernel: int, dilation: int) -> None:
    answers = solve_paddings(kernel, dilation=dilation)
    assert tuple(list(one.paddings) for one in answers) == exhaustive(kernel, 2, dilation, most=20)
    assert search_paddings(kernel, dilation=dilation) == tuple(one.paddings for one in answers)


@settings(max_examples=8, deadline=None)
@given(kernel=st.integers(1, 7), stride=st.integers(1, 3), dilation=st.integers(1, 4))
def test_other_strides_too(kernel: int, stride: int, dilation: int) -> None:
    answers = solve_paddings(kernel, stride=stride, dilation=dilation)
    assert tuple(list(one.paddings) for one in answers) == exhaustive(kernel, stride, dilation, most=33)
    assert all(bool(one.reason) != bool(one.paddings) for one in answers)


# The assignment's own answers to part B.4 (and B.1 for a kernel of 3).
@pytest.mark.parametrize(("kernel", "padding", "extra"), [(3, 1, 1), (4, 1, 0), (5, 2, 1)])
def test_the_assignments_answers(kernel: int, padding: int, extra: int) -> None:
    strided, transposed, _ = solve_paddings(kernel)
    assert strided.paddings == ((padding, 0),)
    assert transposed.paddings == ((padding, extra),)
    assert assignment_rule(kernel) == (padding, extra)


def test_where_the_assignments_general_answer_holds() -> None:
    """By hand: 2p is d(k − 1) or one less, so the rule is right for all kernels without dilation, else for k = 1."""
    for kernel in range(1, 33):
        padding, extra = assignment_rule(kernel)
        strided, transposed, last = solve_paddings(kernel)
        assert (strided.paddings, transposed.paddings) == (((padding, 0),), ((padding, extra),))
        assert last.paddings == (((padding, 0),) if kernel % 2 else ())
    for kernel in range(2, 10):
        assert assignment_rule(kernel) not in solve_paddings(kernel, dilation=2)[1].paddings


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "stage", "reason"),
    [
        (4, 2, 1, 2, "32 → 32 needs 2p = 3, which no whole p gives; one more pixel on one side than on the other does"),
        (2, 2, 3, 2, "32 → 32 needs 2p = 3, which no whole p gives"),
        (3, 1, 1, 0, "32 → 16 would need less than no padding, 2p at most −14"),
        (3, 3, 1, 0, "32 → 16 needs p = 8 to 9, 16 → 8 needs p = 4 to 5: no answer is common to both layers"),
        (4, 3, 1, 1, "8 → 16 needs (p, o) = (5, 1), 16 → 32 needs (p, o) = (9, 1): no answer is common"),
    ],
)
def test_why_there_is_none(kernel: int, stride: int, dilation: int, stage: int, reason: str) -> None:
    answer = solve_paddings(kernel, stride=stride, dilation=dilation)[stage]
    assert answer.group == LAYER_GROUPS[stage]
    assert not answer.paddings
    assert answer.reason.startswith(reason)


def test_a_dilation_above_the_stride_can_give_a_second_answer() -> None:
    """o may be 2 then: 8 → 16 is 14 − 2p + 3 + o + 1, so p = 1 with o = 0, and p = 2 with o = 2."""
    assert solve_paddings(2, dilation=3)[1].paddings == ((1, 0), (2, 2))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"kernel": 0}, "kernel is 0"),
        ({"kernel": 3, "dilation": 0}, "dilation is 0"),
        ({"kernel": 3, "stride": 0}, "stride is 0"),
        ({"kernel": 3, "stride": 33}, "stride is 33"),
        ({"kernel": 34}, "reaches over 34 pixels"),
    ],
)
@pytest.mark.parametrize("ask", [solve_paddings, search_paddings])
def test_what_cannot_be_asked(ask: object, settings: dict[str, int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        ask(**settings)


def test_an_answer_that_the_layers_contradict_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry._LayerSettings, "kernel_extent", property(lambda self: self.kernel + 1))
    with pytest.raises(ChromaboxError, match="first two convolutions: PyTorch's layers"):
        solve_paddings(3)
