"""Aligned steps. What is expected follows from what was changed in one of our own nets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chromabox.assignment.check.align import align, block_name, describe, diff_ops
from chromabox.assignment.check.checks import reference_ops
from chromabox.assignment.check.trace import INPUT, Op, trace_ops
from chromabox.colour.models import MODELS

FIGURE = ("pool-upsample", "conv-transpose", "unet")
OURS = {net: reference_ops(net) for net in FIGURE}


def steps_of(net: nn.Module) -> list[Op]:
    trace = trace_ops(net.train(), torch.rand(2, 1, 32, 32))
    assert trace.error is None
    return trace.ops


def leaves() -> list[tuple[str, str]]:
    """Every module of our nets that can be left out without an error, by net and name."""
    free = (nn.BatchNorm2d, nn.ReLU)
    return [(net, name) for net in FIGURE for name, part in MODELS[net]().named_modules() if isinstance(part, free)]


@pytest.mark.parametrize("net", FIGURE)
def test_a_net_is_like_itself(net: str) -> None:
    assert {line.status for line in diff_ops(OURS[net], steps_of(MODELS[net]()))} == {"equal"}


@pytest.mark.parametrize(("net", "name"), leaves())
def test_a_layer_left_out_is_the_one_that_is_missing(net: str, name: str) -> None:
    changed = MODELS[net]()
    changed.set_submodule(name, nn.Identity())
    wrong = [line for line in diff_ops(OURS[net], steps_of(changed)) if line.status != "equal"]
    # What took the missing step's output takes another; where channels are joined, that is said too.
    assert [(line.status, line.expected.module) for line in wrong if line.expected.kind != "cat"] == [("missing", name)]
    assert wrong[0].location == f"block {name[5]}"


@pytest.mark.parametrize(
    ("net", "name", "part", "said"),
    [
        ("pool-upsample", "block2.0", nn.Conv2d(32, 64, 5, padding=2), "kernel 5 instead of 3; padding 2 instead of 1"),
        ("pool-upsample", "block1.0", nn.Conv2d(1, 32, 3, padding=1, bias=False), "no bias"),
        ("pool-upsample", "block3.1", nn.Upsample(scale_factor=2, mode="bilinear"), "mode bilinear instead of nearest"),
        ("pool-upsample", "block2.2", nn.BatchNorm2d(64, affine=False), "no affine"),
        ("pool-upsample", "block2.2", nn.BatchNorm2d(64, eps=1e-3), "eps 0.001 instead of 1e-05"),
        ("pool-upsample", "block2.1", nn.MaxPool2d(3, 2, 1), "kernel 3 instead of 2; padding 1 instead of 0"),
        ("conv-transpose", "block1.0", nn.Conv2d(1, 32, 3, 2, 1, groups=1, dilation=1), ""),
        (
            "conv-transpose",
            "block4.0",
            nn.ConvTranspose2d(32, 24, 2, 2),
            "output padding 0 instead of 1; kernel 2 instead of 3; padding 0 instead of 1",
        ),
    ],
)
def test_a_changed_layer_says_how(net: str, name: str, part: nn.Module, said: str) -> None:
    changed = MODELS[net]()
    changed.set_submodule(name, part)
    wrong = [line for line in diff_ops(OURS[net], steps_of(changed)) if line.status != "equal"]
    assert [(line.status, line.expected.module, line.message) for line in wrong] == [("different", name, said)] * bool(
        said
    )


def test_later_shapes_follow_from_a_missing_padding() -> None:
    changed = MODELS["pool-upsample"]()
    changed.set_submodule("block1.0", nn.Conv2d(1, 32, 3))
    # As a plain sequence: our own forward has its shapes checked in the tests.
    lines = diff_ops(OURS["pool-upsample"], steps_of(nn.Sequential(*changed.children())))
    assert lines[0].message == "padding 0 instead of 1"
    assert not lines[0].is_consequence
    assert all(line.is_consequence for line in lines[1:])
    assert lines[1].message == "makes [2, 32, 15, 15] instead of [2, 32, 16, 16]"


@pytest.mark.parametrize("after", ["block1", "block2", "block3"])
def test_a_block_too_many_is_told_as_a_block(after: str) -> None:
    changed = MODELS["pool-upsample"]()
    sizes = {"block1": 32, "block2": 64, "block3": 32}
    parts = [nn.Conv2d(sizes[after], sizes[after], 3, padding=1), nn.BatchNorm2d(sizes[after]), nn.ReLU()]
    changed.set_submodule(after, nn.Sequential(changed.get_submodule(after), nn.Sequential(*parts)))
    wrong = [line for line in diff_ops(OURS["pool-upsample"], steps_of(changed)) if line.status != "equal"]
    assert [(line.status, line.actual.module) for line in wrong] == [
        ("extra", f"{after}.1.{index}") for index in range(3)
    ]


@pytest.mark.parametrize("net", FIGURE)
def test_a_block_too_few_is_told_as_a_block(net: str) -> None:
    """A net of ours with block 2 twice is the wanted one here, so that the second one is missing."""
    twice = (
        [*OURS[net][:4], *OURS[net][:4], *OURS[net][4:]]
        if net == "pool-upsample"
        else OURS[net][:3] * 2 + OURS[net][3:]
    )
    lines = align(twice, OURS[net])
    missing = [pair.expected for pair in lines if pair.actual is None]
    size = 4 if net == "pool-upsample" else 3
    assert missing in (list(range(size)), list(range(size, 2 * size)))


def test_relu_before_batch_norm_is_out_of_order() -> None:
    changed = MODELS["conv-transpose"]()
    changed.block3 = nn.Sequential(changed.block3[0], changed.block3[2], changed.block3[1])
    wrong = [line for line in diff_ops(OURS["conv-transpose"], steps_of(changed)) if line.status != "equal"]
    assert [(line.status, line.location) for line in wrong] == [("moved", "block 3")]
    assert wrong[0].message.startswith("out of order: in the figure it comes right after block 3's")


def test_a_skip_from_the_wrong_place_is_told_by_the_figure_s_names() -> None:
    steps = list(OURS["unet"])
    join = next(index for index, step in enumerate(steps) if step.kind == "cat")
    for taken, name in ((0, "what block 1's Conv2d makes"), (INPUT, "the grey input"), (5, "block 2's output")):
        found = [*steps[:join], replace(steps[join], sources=(join - 1, taken)), *steps[join + 1 :]]
        wrong = [line for line in diff_ops(steps, found) if line.status != "equal"]
        assert [line.message for line in wrong] == [
            f"takes block 3's output and {name} instead of block 3's output and block 1's output"
        ]
        assert wrong[0].location == "into block 4"


def test_the_order_of_what_is_joined_is_free() -> None:
    steps = list(OURS["unet"])
    found = [replace(step, sources=step.sources[::-1]) for step in steps]
    assert {line.status for line in diff_ops(steps, found)} == {"equal"}


def test_a_bypassed_block_is_seen() -> None:
    """A second convolution that takes the first's input, though the shapes agree."""
    steps = [Op("Conv2d", f"block{number}.0", (1, 4, 8, 8), sources=(number - 2,)) for number in (1, 2, 3)]
    found = [*steps[:2], replace(steps[2], sources=(0,))]
    assert [line.message for line in diff_ops(steps, found)] == [
        "",
        "",
        "takes block 1's output instead of block 2's output",
    ]


def test_places_have_the_figure_s_names() -> None:
    steps = OURS["unet"]
    assert [block_name(steps[index]) for index in (0, 4, -1)] == ["block 1", "block 2", "last layer"]
    assert describe(steps, 2) == "block 1's output"
    assert describe(steps, 0) == "what block 1's Conv2d makes"
    assert describe(steps, len(steps) - 1) == "last layer's output"


KINDS = st.lists(st.sampled_from(["Conv2d", "ReLU", "BatchNorm2d", "cat"]), max_size=12)


@given(KINDS, KINDS)
def test_every_step_stands_in_one_pair(wanted: list[str], found: list[str]) -> None:
    first, second = ([Op(kind, "", (1,)) for kind in kinds] for kinds in (wanted, found))
    pairs = align(first, second)
    assert sorted(pair.expected for pair in pairs if pair.expected is not None) == list(range(len(wanted)))
    assert [pair.actual for pair in pairs if pair.actual is not None] == list(range(len(found)))
    for pair in pairs:
        if pair.expected is not None and pair.actual is not None:
            assert wanted[pair.expected] == found[pair.actual]
