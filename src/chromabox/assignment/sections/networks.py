"""Parts A.1, B.1 and C.1, which need no runs: the nets' source, what it builds layer by layer, and its self-check."""

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chromabox.assignment.check.align import place_of
from chromabox.assignment.check.checks import our_steps
from chromabox.assignment.check.experiments import SIDE
from chromabox.assignment.check.runner import MARKS, SelfCheck, self_check
from chromabox.assignment.check.source import USUAL
from chromabox.assignment.check.trace import Step
from chromabox.assignment.sections.numbers import whole
from chromabox.colour.models import NETS, baselines, count_parameters
from chromabox.experiments.runs import Found
from chromabox.report.document.model import Block, Cell, Code, Number, Section, Table, Text

KERNELS = range(1, 10)
#: What each block of figure 1 puts out, the same in all three nets: channels, and by how much height and width shrink.
FIGURE = {
    "block 1": ("num_filters", 1, 2),
    "block 2": ("num_filters", 2, 4),
    "block 3": ("num_filters", 1, 2),
    "block 4": ("num_colours", 1, 1),
    "last layer": ("num_colours", 1, 1),
}
QUESTION = "Complete {} after figure 1{}, configurable by kernel, NIC (input channels), NF (filters) and NC (colours)."
LEFT_OUT = "`check_geometry`, which is not shown, refuses sizes below 1 and kernels wider than the picture."


def pool_code(found: Found, folder: Path) -> Section:
    """A.1: PoolUpsampleNet."""
    steps = our_steps("pool-upsample")
    first, pool, up = (_first(steps, kind) for kind in ("Conv2d", "MaxPool2d", "Upsample"))
    asked = Text(
        "The figure has four blocks and a last convolution. In blocks 1 and 2 a convolution is followed by max pooling "
        "over {pool} × {pool} pixels, BatchNorm and ReLU, in blocks 3 and 4 nearest-neighbour upsampling by {up} is in "
        "the pooling's place; so height and width are halved twice and doubled twice. `_block` says once what all "
        "four have in common, in the figure's order. After the last convolution comes nothing: the cross-entropy takes "
        "scores of any sign and applies the softmax itself.",
        {"pool": _set("pool-upsample", pool, "kernel"), "up": _set("pool-upsample", up, "scale")},
    )
    padding = Text(
        'A convolution without padding takes (k − 1) pixels off the height and the width. With `padding="same"`, '
        "{padding} pixel on every side for k = {kernel} and (k − 1)/2 for every odd k, it gives back as many as it was "
        "given, so that only pooling and upsampling change sizes.",
        {"padding": _set("pool-upsample", first, "padding"), "kernel": _set("pool-upsample", first, "kernel")},
    )
    source = _source(baselines.convolution, baselines.PoolUpsampleNet)
    texts = (asked, source, padding, _kernels("pool-upsample"), Text(LEFT_OUT))
    return _section("A.1", "PoolUpsampleNet", "a", "pool-upsample", steps, texts)


def conv_code(found: Found, folder: Path) -> Section:
    """B.1: ConvTransposeNet."""
    steps = our_steps("conv-transpose")
    down, up = _first(steps, "Conv2d"), _first(steps, "ConvTranspose2d")
    asked = Text(
        "The figure has the channels of the net before and neither pooling nor upsampling. The first two convolutions "
        "take steps of {stride} pixels, and transposed convolutions of stride {up} stand in blocks 3 and 4; `_down` "
        "and `_up` are these two kinds of blocks. `dilation` acts on the ordinary convolutions, the transposed ones "
        "keep 1. `convolution` is the function of part A.",
        {"stride": _set("conv-transpose", down, "stride"), "up": _set("conv-transpose", up, "stride")},
    )
    padding = Text(
        "The assignment sets padding 1 and output padding 1 for k = 3; the code computes {padding} and {output} for "
        "k = {kernel}. With stride 2 and padding p a convolution makes ⌊(n + 2p − k)/2⌋ + 1 of n pixels, which is n/2 "
        "for even n if 2p is k − 1 or k − 2; a transposed one makes 2(n − 1) − 2p + k + o with output padding o, which "
        "is 2n if o = 2p + 2 − k. With p = ⌊(k − 1)/2⌋ and o = 1 for odd k, 0 for even k, both hold.",
        {
            "padding": _set("conv-transpose", up, "padding"),
            "output": _set("conv-transpose", up, "output padding"),
            "kernel": _set("conv-transpose", up, "kernel"),
        },
    )
    helpers = (
        baselines.strided_padding,
        baselines.transposed_padding,
        baselines.transposed,
        baselines._down,
        baselines._up,
    )
    source = _source(*helpers, baselines.ConvTransposeNet)
    texts = (asked, source, padding, _kernels("conv-transpose"))
    return _section("B.1", "ConvTransposeNet", "b", "conv-transpose", steps, texts)


def unet_code(found: Found, folder: Path) -> Section:
    """C.1: UNet."""
    steps = our_steps("unet")
    joins = [index for index, step in enumerate(steps) if step.kind == "cat"]
    after, last = (steps[index + 1] for index in joins)
    plain = [step for step in our_steps("conv-transpose") if step.kind == after.kind][-1]
    more = count_parameters(NETS["unet"](**USUAL)) - count_parameters(NETS["conv-transpose"](**USUAL))
    asked = Text(
        "The net is ConvTransposeNet with {joins} concatenations along the channels (dimension 1). `half`, what block "
        "1 puts out, is put beside what block 3 makes of it, the grey picture beside what block 4 makes. So block 4 "
        "is given {wide} channels instead of {narrow}, and the last convolution {last}: the {colours} of block 4 and "
        "the grey one. Block 1's output must therefore be kept in `forward` until block 3 is done. Everything else is "
        "as in part B; the wider inputs cost {more} parameters.",
        {
            "joins": whole(len(joins), "torch.cat calls recorded in one pass of unet"),
            "wide": _set("unet", after, "inputs"),
            "narrow": _set("conv-transpose", plain, "inputs"),
            "last": _set("unet", last, "inputs"),
            "colours": _set("unet", last, "outputs"),
            "more": whole(more, "parameters of unet, less those of conv-transpose"),
        },
    )
    padding = Text(
        "What is put side by side must have the same height and width to the pixel. That is why the paddings of part B "
        "must halve and double exactly: a block 3 that made 15 or 17 pixels of 8 could not be joined with block 1's 16."
    )
    texts = (asked, _source(baselines.UNet), padding, _kernels("unet"))
    return _section("C.1", "UNet", "c", "unet", steps, texts)


def _section(key: str, name: str, figure: str, net: str, steps: list[Step], blocks: Sequence[Block]) -> Section:
    """The parts' own blocks, then what all three have: layers, parameters, self-check."""
    shared = [_layers(net, steps), _blocks(net, steps), _parameters(net, steps), *_own_check(net)]
    return Section(key, f"{name} in code", QUESTION.format(name, figure), [*blocks, *shared])


def _source(*parts: Callable[..., Any]) -> Code:
    """The source as it is in ``colour/models/baselines.py``."""
    return Code("\n\n".join(inspect.getsource(part).rstrip() + "\n" for part in parts))


def _first(steps: list[Step], kind: str) -> Step:
    return next(step for step in steps if step.kind == kind)


def _set(net: str, step: Step, name: str) -> Number:
    """A setting of a step."""
    return whole(int(step.settings[name]), f"{net}, recorded: {step.module}.{name}")


def _label(steps: list[Step], index: int) -> str:
    """``block 1: Conv2d``; a concatenation by what takes it."""
    step = steps[index]
    place = place_of(step) or f"into {place_of(steps[index + 1])}"
    return f"{place}: {'concatenation' if step.kind == 'cat' else step.kind}"


def _how(step: Step) -> str:
    """A layer's settings, those that are 0, 1 or as everywhere left out."""
    names = [name for name in ("kernel", "stride", "padding", "output padding", "scale") if name in step.settings]
    return ", ".join(f"{name} {step.settings[name]:g}" for name in names if name == "kernel" or step.settings[name])


def _layers(net: str, steps: list[Step]) -> Table:
    rows: list[list[Cell]] = []
    for index, step in enumerate(steps):
        source = f"{net}, recorded: step {index + 1} at {SIDE} × {SIDE}"
        sizes: list[Cell] = [whole(side, source) for side in step.shape[1:]]
        rows.append([_label(steps, index), _how(step), *sizes, whole(step.parameters, source)])
    total = whole(sum(step.parameters for step in steps), f"{net}, recorded: all steps")
    rows.append(["all", "", "", "", "", total])
    sizes_text = ", ".join(f"{name.replace('num_', '').replace('_', ' ')} {size}" for name, size in USUAL.items())
    caption = f"What one pass through the net does, as recorded for a picture of {SIDE} × {SIDE} ({sizes_text})."
    return Table(caption, ["step", "settings", "channels", "height", "width", "parameters"], rows)


def _blocks(net: str, steps: list[Step]) -> Text:
    """Whether every block ends in the figure's shape."""
    ends = {place_of(step): step.shape[1:] for step in steps if place_of(step)}
    wanted = {
        place: (USUAL[channels] * times, SIDE // shrink, SIDE // shrink)
        for place, (channels, times, shrink) in FIGURE.items()
    }
    right = [place for place in FIGURE if ends.get(place) == wanted[place]]
    wrong = [place for place in FIGURE if place not in right]
    source = f"{net}, recorded: shapes at the blocks' ends, held beside figure 1's"
    numbers = {"right": whole(len(right), source), "all": whole(len(FIGURE), source)}
    said = f"; other shapes have {', '.join(wrong)}." if wrong else "."
    return Text(
        "{right} of the {all} blocks, the last convolution among them, end in the shape of the figure" + said, numbers
    )


def _parameters(net: str, steps: list[Step]) -> Text:
    """How many numbers are learnt, by kind, from the module itself."""
    module = NETS[net](**USUAL)
    norms = {id(one) for part in module.modules() if isinstance(part, nn.BatchNorm2d) for one in part.parameters()}
    counts = {"weights": 0, "biases": 0, "norms": 0}
    for one in module.parameters():
        counts["norms" if id(one) in norms else "weights" if one.dim() > 1 else "biases"] += one.numel()
    numbers = {name: whole(count, f"{net}: parameters by kind") for name, count in counts.items()}
    numbers["all"] = whole(count_parameters(module), f"{net}: count_parameters")
    return Text(
        "{all} numbers are learnt: {weights} weights and {biases} biases of convolutions, {norms} factors and shifts "
        "of BatchNorm. What has no parameters in the table learns nothing.",
        numbers,
    )


def _kernels(net: str) -> Text:
    """For how many kernels the net keeps the shape, tried."""
    with torch.no_grad():
        shapes = {
            kernel: NETS[net](**{**USUAL, "kernel": kernel})(torch.rand(2, 1, SIDE, SIDE)).shape for kernel in KERNELS
        }
    kept = [kernel for kernel, shape in shapes.items() if shape == (2, USUAL["num_colours"], SIDE, SIDE)]
    source = f"{net} built and run with every kernel"
    numbers = {
        "first": whole(KERNELS[0], source),
        "last": whole(KERNELS[-1], source),
        "kept": whole(len(kept), source),
        "tried": whole(len(KERNELS), source),
    }
    return Text("Tried with the kernels {first} to {last}: {kept} of {tried} give a score for every pixel.", numbers)


def _own_check(net: str) -> list[Block]:
    """What ``chromabox check`` says of our own file."""
    found = _checked()
    checks = [check for one in found.nets if one.net == net for check in one.checks]
    if not checks:
        return [Text(f"The self-check could not be made: {_literal(found.failed or 'the class was not found')}.")]
    source = f"chromabox check {Path(baselines.__file__).name}"
    numbers = {
        "passed": whole(sum(one.passed is True for one in checks), source),
        "all": whole(len(checks), source),
    }
    said = Text(
        "`chromabox check` looks at a net from outside, in a process of its own: {passed} of {all} answers for the "
        "code above are right. Layers, parameters and function are compared with this very net, so there it is the "
        "check that is tested; shapes, gradient, independence of the batch and the step of training stand for "
        "themselves.",
        numbers,
    )
    rows = [[f"{MARKS[check.passed]} {check.name}", check.said] for check in checks]
    return [said, Table(f"The self-check of {NETS[net].__name__}.", ["question", "answer"], rows)]


@cache
def _checked() -> SelfCheck:
    """One child for all three sections; it takes seconds, and minutes only where others use the machine."""
    return self_check(Path(baselines.__file__), seconds=600.0)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
