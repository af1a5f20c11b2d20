"""Alignment of operations. Expected values follow from the changes made to a reference model."""

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

MODEL_NAMES = ("pool-upsample", "conv-transpose", "unet")
REFERENCE_OPS = {name: reference_ops(name) for name in MODEL_NAMES}


def record_ops(model: nn.Module) -> list[Op]:
    trace = trace_ops(model.train(), torch.rand(2, 1, 32, 32))
    assert trace.error is None
    return trace.ops


def removable_modules() -> list[tuple[str, str]]:
    """Return all modules of the reference models that can be removed without an error, by model and name."""
    types = (nn.BatchNorm2d, nn.ReLU)
    return [
        (model, name)
        for model in MODEL_NAMES
        for name, module in MODELS[model]().named_modules()
        if isinstance(module, types)
    ]


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_model_equals_itself(model: str) -> None:
    assert {line.status for line in diff_ops(REFERENCE_OPS[model], record_ops(MODELS[model]()))} == {"equal"}


@pytest.mark.parametrize(("model", "name"), removable_modules())
def test_removed_layer_is_reported_as_missing(model: str, name: str) -> None:
    changed = MODELS[model]()
    changed.set_submodule(name, nn.Identity())
    differences = [line for line in diff_ops(REFERENCE_OPS[model], record_ops(changed)) if line.status != "equal"]
    # The operation after the missing one has a different input, which is reported for concatenations.
    layers = [line for line in differences if line.expected.kind != "cat"]
    assert [(line.status, line.expected.module) for line in layers] == [("missing", name)]
    assert differences[0].location == f"block {name[5]}"


@pytest.mark.parametrize(
    ("model", "name", "layer", "message"),
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
def test_changed_settings_are_reported(model: str, name: str, layer: nn.Module, message: str) -> None:
    changed = MODELS[model]()
    changed.set_submodule(name, layer)
    differences = [line for line in diff_ops(REFERENCE_OPS[model], record_ops(changed)) if line.status != "equal"]
    expected = [("different", name, message)] * bool(message)
    assert [(line.status, line.expected.module, line.message) for line in differences] == expected


def test_later_shapes_are_consequences_of_missing_padding() -> None:
    changed = MODELS["pool-upsample"]()
    changed.set_submodule("block1.0", nn.Conv2d(1, 32, 3))
    # A plain sequence, because the tests check the shapes in forward of the reference model.
    lines = diff_ops(REFERENCE_OPS["pool-upsample"], record_ops(nn.Sequential(*changed.children())))
    assert lines[0].message == "padding 0 instead of 1"
    assert not lines[0].is_consequence
    assert all(line.is_consequence for line in lines[1:])
    assert lines[1].message == "output shape [2, 32, 15, 15] instead of [2, 32, 16, 16]"


@pytest.mark.parametrize("after", ["block1", "block2", "block3"])
def test_additional_block_is_reported_as_a_block(after: str) -> None:
    changed = MODELS["pool-upsample"]()
    sizes = {"block1": 32, "block2": 64, "block3": 32}
    layers = [nn.Conv2d(sizes[after], sizes[after], 3, padding=1), nn.BatchNorm2d(sizes[after]), nn.ReLU()]
    changed.set_submodule(after, nn.Sequential(changed.get_submodule(after), nn.Sequential(*layers)))
    lines = diff_ops(REFERENCE_OPS["pool-upsample"], record_ops(changed))
    differences = [line for line in lines if line.status != "equal"]
    assert [(line.status, line.actual.module) for line in differences] == [
        ("extra", f"{after}.1.{index}") for index in range(3)
    ]


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_missing_block_is_reported_as_a_block(model: str) -> None:
    """The expected operations contain block 1 twice, so that one of the two is missing."""
    ops = REFERENCE_OPS[model]
    doubled = [*ops[:4], *ops[:4], *ops[4:]] if model == "pool-upsample" else ops[:3] * 2 + ops[3:]
    matches = align(doubled, ops)
    missing = [match_.expected for match_ in matches if match_.actual is None]
    size = 4 if model == "pool-upsample" else 3
    assert missing in (list(range(size)), list(range(size, 2 * size)))


def test_relu_before_batch_norm_is_reported_as_moved() -> None:
    changed = MODELS["conv-transpose"]()
    changed.block3 = nn.Sequential(changed.block3[0], changed.block3[2], changed.block3[1])
    lines = diff_ops(REFERENCE_OPS["conv-transpose"], record_ops(changed))
    differences = [line for line in lines if line.status != "equal"]
    assert [(line.status, line.location) for line in differences] == [("moved", "block 3")]
    assert differences[0].message.startswith("out of order: in figure 1 it directly follows the")
    assert differences[0].message.endswith(" of block 3")


def test_wrong_skip_connection_is_described_by_blocks_of_figure_1() -> None:
    ops = list(REFERENCE_OPS["unet"])
    index = next(index for index, op in enumerate(ops) if op.kind == "cat")
    sources = ((0, "the output of block 1's Conv2d"), (INPUT, "the greyscale input"), (5, "the output of block 2"))
    for source, description in sources:
        changed = [*ops[:index], replace(ops[index], sources=(index - 1, source)), *ops[index + 1 :]]
        differences = [line for line in diff_ops(ops, changed) if line.status != "equal"]
        assert [line.message for line in differences] == [
            f"receives the output of block 3 and {description} instead of the output of block 3 and the output of "
            "block 1"
        ]
        assert differences[0].location == "input of block 4"


def test_order_of_concatenated_inputs_does_not_matter() -> None:
    ops = list(REFERENCE_OPS["unet"])
    reversed_sources = [replace(op, sources=op.sources[::-1]) for op in ops]
    assert {line.status for line in diff_ops(ops, reversed_sources)} == {"equal"}


def test_bypassed_block_is_reported() -> None:
    """The third convolution receives the output of the first one; the shapes agree."""
    ops = [Op("Conv2d", f"block{number}.0", (1, 4, 8, 8), sources=(number - 2,)) for number in (1, 2, 3)]
    changed = [*ops[:2], replace(ops[2], sources=(0,))]
    assert [line.message for line in diff_ops(ops, changed)] == [
        "",
        "",
        "receives the output of block 1 instead of the output of block 2",
    ]


def test_operations_are_described_by_blocks_of_figure_1() -> None:
    ops = REFERENCE_OPS["unet"]
    assert [block_name(ops[index]) for index in (0, 4, -1)] == ["block 1", "block 2", "last layer"]
    assert describe(ops, 2) == "the output of block 1"
    assert describe(ops, 0) == "the output of block 1's Conv2d"
    assert describe(ops, len(ops) - 1) == "the output of last layer"


KINDS = st.lists(st.sampled_from(["Conv2d", "ReLU", "BatchNorm2d", "cat"]), max_size=12)


@given(KINDS, KINDS)
def test_every_operation_is_in_one_match(expected: list[str], actual: list[str]) -> None:
    first, second = ([Op(kind, "", (1,)) for kind in kinds] for kinds in (expected, actual))
    matches = align(first, second)
    assert sorted(match_.expected for match_ in matches if match_.expected is not None) == list(range(len(expected)))
    assert [match_.actual for match_ in matches if match_.actual is not None] == list(range(len(actual)))
    for match_ in matches:
        if match_.expected is not None and match_.actual is not None:
            assert expected[match_.expected] == actual[match_.actual]
