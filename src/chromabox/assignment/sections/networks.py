"""Questions A.1, B.1 and C.1, which need no runs: source code and layers of the three models."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from chromabox.assignment.check.align import block_name
from chromabox.assignment.check.checks import IMAGE_SIZE, reference_ops
from chromabox.assignment.check.source import DEFAULT_SIZES
from chromabox.assignment.check.trace import Op
from chromabox.assignment.sections.numbers import int_number
from chromabox.colour.models import MODELS, baselines, num_trainable_parameters
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Code, Section, Source, Table, Text


def pool_upsample_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section A.1: PoolUpsampleNet."""
    settings = _settings("pool-upsample")
    architecture = Text(
        "The model has four blocks and a last convolution. In blocks 1 and 2, a convolution is followed by max pooling "
        "over {pool.kernel} × {pool.kernel} pixels, BatchNorm and ReLU; in blocks 3 and 4, nearest-neighbour "
        "upsampling by a factor of {up.scale} replaces the pooling. Height and width are therefore halved twice and "
        "doubled twice. `_block` implements the common structure of the four blocks, in the order of the figure. No "
        "activation follows the last convolution, because the cross-entropy loss takes logits and applies the softmax "
        "itself.",
        pool=settings["MaxPool2d"],
        up=settings["Upsample"],
    )
    padding = Text(
        "A convolution without padding reduces the height and the width by k − 1 pixels. With "
        '`padding="same"`, the output has the size of the input, and only pooling and upsampling change it. The '
        "padding on each side is {conv.padding} for k = {conv.kernel}, and (k − 1)/2 for every odd k.",
        conv=settings["Conv2d"],
    )
    names = ("same_conv", "PoolUpsampleNet")
    omitted = Text(
        "`check_conv_args`, which is not shown, raises an error for sizes below 1 and for kernels larger than the "
        "image."
    )
    return _make_section("A.1", "a", "pool-upsample", names, architecture, padding, omitted)


def conv_transpose_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section B.1: ConvTransposeNet."""
    settings = _settings("conv-transpose")
    architecture = Text(
        "The model has the same channels as PoolUpsampleNet, but neither pooling nor upsampling. The first two "
        "convolutions have stride {down.stride}, and blocks 3 and 4 have transposed convolutions with stride "
        "{up.stride}; `down_block` and `up_block` build these two types of blocks. `dilation` applies to the ordinary "
        "convolutions; the transposed convolutions keep a dilation of 1. `same_conv` is the same function as in part "
        "A.",
        down=settings["Conv2d"],
        up=settings["ConvTranspose2d"],
    )
    padding = Text(
        "The assignment sets padding 1 and output padding 1 for k = 3; the code computes {up.padding} and "
        "{up.output padding} for k = {up.kernel}. With stride 2 and padding p, a convolution maps n pixels to ⌊(n + 2p "
        "− k)/2⌋ + 1 pixels, which is n/2 for even n if 2p is k − 1 or k − 2. A transposed convolution with output "
        "padding o maps n pixels to 2(n − 1) − 2p + k + o pixels, which is 2n if o = 2p + 2 − k. Both conditions hold "
        "for p = ⌊(k − 1)/2⌋, with o = 1 for odd k and o = 0 for even k.",
        up=settings["ConvTranspose2d"],
    )
    names = ("strided_padding", "transposed_padding", "upsample_conv", "down_block", "up_block", "ConvTransposeNet")
    return _make_section("B.1", "b", "conv-transpose", names, architecture, padding)


def unet_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section C.1: UNet."""
    ops = reference_ops("unet")
    # The layers that follow the concatenations: the transposed convolution of block 4 and the last convolution.
    block4, last = (ops[index + 1] for index, op in enumerate(ops) if op.kind == "cat")
    plain = [op for op in reference_ops("conv-transpose") if op.kind == block4.kind][-1]
    unet, conv_transpose = (
        num_trainable_parameters(MODELS[model](**DEFAULT_SIZES)) for model in ("unet", "conv-transpose")
    )
    architecture = Text(
        "The model is ConvTransposeNet with two concatenations along the channel dimension (dimension 1): the "
        "output of block 1, `half`, is concatenated with the output of block 3, and the greyscale image is "
        "concatenated with the output of block 4. Block 4 therefore has {block4.inputs} input channels instead of "
        "{plain.inputs}, and the last convolution has {last.inputs}: the {last.outputs} channels of block 4 and the "
        "greyscale channel. `forward` must keep the output of block 1 until block 3 has been computed. Everything else "
        "is as in part B; the additional input channels add {more} parameters.",
        block4=Source(block4.settings, f"unet, recorded: {block4.module}."),
        plain=Source(plain.settings, f"conv-transpose, recorded: {plain.module}."),
        last=Source(last.settings, f"unet, recorded: {last.module}."),
        more=int_number(unet - conv_transpose, "parameters of unet minus those of conv-transpose"),
    )
    padding = Text(
        "Concatenated feature maps must have exactly the same height and width. With the paddings of part B, the "
        "layers must therefore halve and double the size exactly: if block 3 turned 8 pixels into 15 or 17, its output "
        "could not be concatenated with the 16 pixels of block 1."
    )
    return _make_section("C.1", "c", "unet", ("UNet",), architecture, padding)


def _settings(model: str) -> dict[str, Source]:
    """Return the settings of the first operation of each kind."""
    return {op.kind: Source(op.settings, f"{model}, recorded: {op.module}.") for op in reversed(reference_ops(model))}


def _make_section(
    key: str, figure: str, model: str, names: Sequence[str], architecture: Text, *remarks: Text
) -> Section:
    """Build a section from texts, the source code of the classes and functions ``names``, and a table of the layers."""
    name, ops, module = MODELS[model].__name__, reference_ops(model), MODELS[model](**DEFAULT_SIZES)
    question = (
        f"Implement {name} as shown in figure 1{figure}, with the parameters kernel, NIC (input channels), NF "
        "(filters) and NC (colours)."
    )
    norms = sum(num_trainable_parameters(layer) for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    weights = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
    total = num_trainable_parameters(module)
    blocks: list[Block] = [
        architecture,
        Code("\n\n".join(inspect.getsource(getattr(baselines, name)).rstrip() + "\n" for name in names)),
        *remarks,
        _layer_table(model, ops),
        Text(
            "The model has {all} trainable parameters: {by_type.weights:,.0f} weights and {by_type.biases:,.0f} biases "
            "of convolutions, and {by_type.norms:,.0f} scales and shifts of BatchNorm. Operations with 0 parameters in "
            "the table have no trainable parameters.",
            all=int_number(total, f"{model}: num_trainable_parameters"),
            by_type=Source(
                {"weights": weights, "biases": total - weights - norms, "norms": norms},
                f"{model}: parameters by type: ",
            ),
        ),
        Text(f"`chromabox check FILE` compares your own {name} with this model, layer by layer."),
    ]
    return Section(key, f"Implementation of {name}", question, blocks)


def _layer_table(model: str, ops: list[Op]) -> Table:
    rows: list[list[Cell]] = []
    for index, op in enumerate(ops):
        source = f"{model}, recorded: operation {index + 1} at {IMAGE_SIZE} × {IMAGE_SIZE}"
        # A concatenation is labelled by the block that uses its output. Settings that are 0 are not shown.
        location = block_name(op) or f"input of {block_name(ops[index + 1])}"
        settings = ", ".join(
            f"{name} {op.settings[name]:g}"
            for name in ("kernel", "stride", "padding", "output padding", "scale")
            if op.settings.get(name)
        )
        numbers = [int_number(number, source) for number in (*op.shape[1:], op.num_parameters)]
        rows.append([f"{location}: {'concatenation' if op.kind == 'cat' else op.kind}", settings, *numbers])
    total = int_number(sum(op.num_parameters for op in ops), f"{model}, recorded: all operations")
    rows.append(["total", "", "", "", "", total])
    sizes_text = ", ".join(
        f"{name.removeprefix('num_').replace('in_channels', 'input channels').replace('_', ' ')} {size}"
        for name, size in DEFAULT_SIZES.items()
    )
    caption = (
        f"Operations of one forward pass, recorded for an image of {IMAGE_SIZE} × {IMAGE_SIZE} pixels ({sizes_text})."
    )
    return Table(caption, ["operation", "settings", "channels", "height", "width", "parameters"], rows)
