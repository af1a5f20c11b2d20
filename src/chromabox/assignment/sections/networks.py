"""Parts A.1, B.1 and C.1, which need no runs: the nets' source, what it builds layer by layer, and its self-check."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chromabox.assignment.check.align import block_name
from chromabox.assignment.check.checks import reference_ops
from chromabox.assignment.check.experiments import IMAGE_SIZE
from chromabox.assignment.check.runner import STATUS_MARKS, CheckResult, check_file
from chromabox.assignment.check.source import DEFAULT_SIZES
from chromabox.assignment.check.trace import Op
from chromabox.assignment.sections.numbers import int_number
from chromabox.colour.models import MODELS, baselines, num_trainable_parameters
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Code, Number, Section, Table, Text

KERNEL_SIZES = range(1, 10)
#: What each block of figure 1 puts out, the same in all three nets: channels, and by how much height and width shrink.
BLOCK_SHAPES = {
    "block 1": ("num_filters", 1, 2),
    "block 2": ("num_filters", 2, 4),
    "block 3": ("num_filters", 1, 2),
    "block 4": ("num_colours", 1, 1),
    "last layer": ("num_colours", 1, 1),
}
CODE_QUESTION = (
    "Complete {} after figure 1{}, configurable by kernel, NIC (input channels), NF (filters) and NC (colours)."
)
OMITTED_NOTE = "`check_conv_args`, which is not shown, refuses sizes below 1 and kernels wider than the picture."


def pool_upsample_section(run_index: RunIndex, folder: Path) -> Section:
    """A.1: PoolUpsampleNet."""
    steps = reference_ops("pool-upsample")
    first, pool, up = (_first_op(steps, kind) for kind in ("Conv2d", "MaxPool2d", "Upsample"))
    asked = Text(
        "The figure has four blocks and a last convolution. In blocks 1 and 2 a convolution is followed by max pooling "
        "over {pool} × {pool} pixels, BatchNorm and ReLU, in blocks 3 and 4 nearest-neighbour upsampling by {up} is in "
        "the pooling's place; so height and width are halved twice and doubled twice. `_block` says once what all "
        "four have in common, in the figure's order. After the last convolution comes nothing: the cross-entropy takes "
        "scores of any sign and applies the softmax itself.",
        {"pool": _setting_number("pool-upsample", pool, "kernel"), "up": _setting_number("pool-upsample", up, "scale")},
    )
    padding = Text(
        'A convolution without padding takes (k − 1) pixels off the height and the width. With `padding="same"`, '
        "{padding} pixel on every side for k = {kernel} and (k − 1)/2 for every odd k, it gives back as many as it was "
        "given, so that only pooling and upsampling change sizes.",
        {
            "padding": _setting_number("pool-upsample", first, "padding"),
            "kernel": _setting_number("pool-upsample", first, "kernel"),
        },
    )
    source = _source_code(baselines.same_conv, baselines.PoolUpsampleNet)
    texts = (asked, source, padding, _kernels_text("pool-upsample"), Text(OMITTED_NOTE))
    return _make_section("A.1", "PoolUpsampleNet", "a", "pool-upsample", steps, texts)


def conv_transpose_section(run_index: RunIndex, folder: Path) -> Section:
    """B.1: ConvTransposeNet."""
    steps = reference_ops("conv-transpose")
    down, up = _first_op(steps, "Conv2d"), _first_op(steps, "ConvTranspose2d")
    asked = Text(
        "The figure has the channels of the net before and neither pooling nor upsampling. The first two convolutions "
        "take steps of {stride} pixels, and transposed convolutions of stride {up} stand in blocks 3 and 4; `_down` "
        "and `_up` are these two kinds of blocks. `dilation` acts on the ordinary convolutions, the transposed ones "
        "keep 1. `convolution` is the function of part A.",
        {
            "stride": _setting_number("conv-transpose", down, "stride"),
            "up": _setting_number("conv-transpose", up, "stride"),
        },
    )
    padding = Text(
        "The assignment sets padding 1 and output padding 1 for k = 3; the code computes {padding} and {output} for "
        "k = {kernel}. With stride 2 and padding p a convolution makes ⌊(n + 2p − k)/2⌋ + 1 of n pixels, which is n/2 "
        "for even n if 2p is k − 1 or k − 2; a transposed one makes 2(n − 1) − 2p + k + o with output padding o, which "
        "is 2n if o = 2p + 2 − k. With p = ⌊(k − 1)/2⌋ and o = 1 for odd k, 0 for even k, both hold.",
        {
            "padding": _setting_number("conv-transpose", up, "padding"),
            "output": _setting_number("conv-transpose", up, "output padding"),
            "kernel": _setting_number("conv-transpose", up, "kernel"),
        },
    )
    helpers = (
        baselines.strided_padding,
        baselines.transposed_padding,
        baselines.upsample_conv,
        baselines.down_block,
        baselines.up_block,
    )
    source = _source_code(*helpers, baselines.ConvTransposeNet)
    texts = (asked, source, padding, _kernels_text("conv-transpose"))
    return _make_section("B.1", "ConvTransposeNet", "b", "conv-transpose", steps, texts)


def unet_section(run_index: RunIndex, folder: Path) -> Section:
    """C.1: UNet."""
    steps = reference_ops("unet")
    joins = [index for index, step in enumerate(steps) if step.kind == "cat"]
    after, last = (steps[index + 1] for index in joins)
    plain = [step for step in reference_ops("conv-transpose") if step.kind == after.kind][-1]
    more = num_trainable_parameters(MODELS["unet"](**DEFAULT_SIZES)) - num_trainable_parameters(
        MODELS["conv-transpose"](**DEFAULT_SIZES)
    )
    asked = Text(
        "The net is ConvTransposeNet with {joins} concatenations along the channels (dimension 1). `half`, what block "
        "1 puts out, is put beside what block 3 makes of it, the grey picture beside what block 4 makes. So block 4 "
        "is given {wide} channels instead of {narrow}, and the last convolution {last}: the {colours} of block 4 and "
        "the grey one. Block 1's output must therefore be kept in `forward` until block 3 is done. Everything else is "
        "as in part B; the wider inputs cost {more} parameters.",
        {
            "joins": int_number(len(joins), "torch.cat calls recorded in one pass of unet"),
            "wide": _setting_number("unet", after, "inputs"),
            "narrow": _setting_number("conv-transpose", plain, "inputs"),
            "last": _setting_number("unet", last, "inputs"),
            "colours": _setting_number("unet", last, "outputs"),
            "more": int_number(more, "parameters of unet, less those of conv-transpose"),
        },
    )
    padding = Text(
        "What is put side by side must have the same height and width to the pixel. That is why the paddings of part B "
        "must halve and double exactly: a block 3 that made 15 or 17 pixels of 8 could not be joined with block 1's 16."
    )
    texts = (asked, _source_code(baselines.UNet), padding, _kernels_text("unet"))
    return _make_section("C.1", "UNet", "c", "unet", steps, texts)


def _make_section(
    key: str, class_name: str, figure: str, model: str, ops: list[Op], blocks: Sequence[Block]
) -> Section:
    """The parts' own blocks, then what all three have: layers, parameters, self-check."""
    shared = [
        _layer_table(model, ops),
        _block_shapes_text(model, ops),
        _parameters_text(model, ops),
        *_self_check_blocks(model),
    ]
    return Section(key, f"{class_name} in code", CODE_QUESTION.format(class_name, figure), [*blocks, *shared])


def _source_code(*objects: Callable[..., Any]) -> Code:
    """The source as it is in ``colour/models/baselines.py``."""
    return Code("\n\n".join(inspect.getsource(part).rstrip() + "\n" for part in objects))


def _first_op(ops: list[Op], kind: str) -> Op:
    return next(step for step in ops if step.kind == kind)


def _setting_number(model: str, op: Op, name: str) -> Number:
    """A setting of a step."""
    return int_number(int(op.settings[name]), f"{model}, recorded: {op.module}.{name}")


def _op_label(ops: list[Op], index: int) -> str:
    """``block 1: Conv2d``; a concatenation by what takes it."""
    step = ops[index]
    place = block_name(step) or f"into {block_name(ops[index + 1])}"
    return f"{place}: {'concatenation' if step.kind == 'cat' else step.kind}"


def _settings_text(op: Op) -> str:
    """A layer's settings, those that are 0, 1 or as everywhere left out."""
    names = [name for name in ("kernel", "stride", "padding", "output padding", "scale") if name in op.settings]
    return ", ".join(f"{name} {op.settings[name]:g}" for name in names if name == "kernel" or op.settings[name])


def _layer_table(model: str, ops: list[Op]) -> Table:
    rows: list[list[Cell]] = []
    for index, step in enumerate(ops):
        source = f"{model}, recorded: step {index + 1} at {IMAGE_SIZE} × {IMAGE_SIZE}"
        sizes: list[Cell] = [int_number(side, source) for side in step.shape[1:]]
        rows.append([_op_label(ops, index), _settings_text(step), *sizes, int_number(step.num_parameters, source)])
    total = int_number(sum(step.num_parameters for step in ops), f"{model}, recorded: all steps")
    rows.append(["all", "", "", "", "", total])
    sizes_text = ", ".join(
        f"{name.replace('num_', '').replace('_', ' ')} {size}" for name, size in DEFAULT_SIZES.items()
    )
    caption = (
        f"What one pass through the net does, as recorded for a picture of {IMAGE_SIZE} × {IMAGE_SIZE} ({sizes_text})."
    )
    return Table(caption, ["step", "settings", "channels", "height", "width", "parameters"], rows)


def _block_shapes_text(model: str, ops: list[Op]) -> Text:
    """Whether every block ends in the figure's shape."""
    ends = {block_name(step): step.shape[1:] for step in ops if block_name(step)}
    wanted = {
        place: (DEFAULT_SIZES[channels] * times, IMAGE_SIZE // shrink, IMAGE_SIZE // shrink)
        for place, (channels, times, shrink) in BLOCK_SHAPES.items()
    }
    right = [place for place in BLOCK_SHAPES if ends.get(place) == wanted[place]]
    wrong = [place for place in BLOCK_SHAPES if place not in right]
    source = f"{model}, recorded: shapes at the blocks' ends, held beside figure 1's"
    numbers = {"right": int_number(len(right), source), "all": int_number(len(BLOCK_SHAPES), source)}
    said = f"; other shapes have {', '.join(wrong)}." if wrong else "."
    return Text(
        "{right} of the {all} blocks, the last convolution among them, end in the shape of the figure" + said, numbers
    )


def _parameters_text(model: str, ops: list[Op]) -> Text:
    """How many numbers are learnt, by kind, from the module itself."""
    module = MODELS[model](**DEFAULT_SIZES)
    norms = {id(one) for part in module.modules() if isinstance(part, nn.BatchNorm2d) for one in part.parameters()}
    counts = {"weights": 0, "biases": 0, "norms": 0}
    for one in module.parameters():
        counts["norms" if id(one) in norms else "weights" if one.dim() > 1 else "biases"] += one.numel()
    numbers = {name: int_number(count, f"{model}: parameters by kind") for name, count in counts.items()}
    numbers["all"] = int_number(num_trainable_parameters(module), f"{model}: count_parameters")
    return Text(
        "{all} numbers are learnt: {weights} weights and {biases} biases of convolutions, {norms} factors and shifts "
        "of BatchNorm. What has no parameters in the table learns nothing.",
        numbers,
    )


def _kernels_text(model: str) -> Text:
    """For how many kernels the net keeps the shape, tried."""
    with torch.no_grad():
        shapes = {
            kernel: MODELS[model](**{**DEFAULT_SIZES, "kernel": kernel})(torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE)).shape
            for kernel in KERNEL_SIZES
        }
    kept = [
        kernel for kernel, shape in shapes.items() if shape == (2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE)
    ]
    source = f"{model} built and run with every kernel"
    numbers = {
        "first": int_number(KERNEL_SIZES[0], source),
        "last": int_number(KERNEL_SIZES[-1], source),
        "kept": int_number(len(kept), source),
        "tried": int_number(len(KERNEL_SIZES), source),
    }
    return Text("Tried with the kernels {first} to {last}: {kept} of {tried} give a score for every pixel.", numbers)


def _self_check_blocks(model: str) -> list[Block]:
    """What ``chromabox check`` says of our own file."""
    found = _check_own_models()
    checks = [check for one in found.reports if one.model == model for check in one.checks]
    if not checks:
        return [Text(f"The self-check could not be made: {_escape_braces(found.error or 'the class was not found')}.")]
    source = f"chromabox check {Path(baselines.__file__).name}"
    numbers = {
        "passed": int_number(sum(one.passed is True for one in checks), source),
        "all": int_number(len(checks), source),
    }
    said = Text(
        "`chromabox check` looks at a net from outside, in a process of its own: {passed} of {all} answers for the "
        "code above are right. Layers, parameters and function are compared with this very net, so there it is the "
        "check that is tested; shapes, gradient, independence of the batch and the step of training stand for "
        "themselves.",
        numbers,
    )
    rows = [[f"{STATUS_MARKS[check.passed]} {check.name}", check.message] for check in checks]
    return [said, Table(f"The self-check of {MODELS[model].__name__}.", ["question", "answer"], rows)]


@cache
def _check_own_models() -> CheckResult:
    """One child for all three sections; it takes seconds, and minutes only where others use the machine."""
    return check_file(Path(baselines.__file__), timeout=600.0)


def _escape_braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
