"""Questions A.3 and B.4, which need no runs: sizes of the models, and the paddings that preserve the shapes in
figure 1b."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from sympy import Mod, Mul, Rational, floor, symbols

from chromabox.assignment.count import CountOptions, Counts, K, ModelCounts, Values, count_model
from chromabox.assignment.count_tables import QUANTITIES, format_formula, format_settings, format_size, layer_formulas
from chromabox.assignment.padding import Padding, assignment_rule, search_paddings, solve_paddings
from chromabox.colour.models import MODELS
from chromabox.engine.autotune import num_threads
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Formula, Number, Section, Table, Text

MODEL = "pool-upsample"
OTHER_MODELS = ("conv-transpose", "unet")
#: Optional items of a count, by their names in a table.
EXTRA_OPTIONS = {
    "biases": CountOptions(biases=True),
    "BatchNorm": CountOptions(batch_norm=True),
    "pooling, upsampling, ReLU": CountOptions(activations=True),
}
#: Kernel sizes of the question, and those for which the general rule is tested.
QUESTION_KERNELS = (4, 5)
TESTED_KERNELS = range(1, 10)
TESTED_DILATIONS = (1, 2, 3)
#: Strides that cannot produce the shapes of the figure, and the kernel size of the example.
TESTED_STRIDES, EXAMPLE_KERNEL = (1, 3), 3

TableRows: TypeAlias = list[Sequence[Cell]]
#: Results of :func:`search_paddings` by kernel size and dilation.
PaddingsBySetting: TypeAlias = Mapping[tuple[int, int], tuple[tuple[Padding, ...], ...]]


def count_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section A.3: weights, outputs and connections as formulas and numbers, for 32 × 32 and 64 × 64 pixels."""
    count = count_model(MODEL)
    return Section(
        "A.3",
        "Weights, outputs and connections",
        "How many weights, outputs and connections does PoolUpsampleNet have, as functions of NIC, NF and NC? How many "
        "are there for images of twice the height and width? BatchNorm is not counted.",
        [
            *_definition_blocks(),
            *_formula_blocks(count),
            *_number_blocks(count),
            *_layer_blocks(count),
            *_extra_count_blocks(count),
            *_without_last_conv_blocks(count),
            *_other_model_blocks(count),
        ],
    )


def _definition_blocks() -> list[Block]:
    return [
        Text(
            f"`chromabox count {MODEL}` builds the model at several small sizes, runs it on meta tensors, and solves "
            "for the shape of every kernel and output in terms of NIC, NF, NC, the kernel size k, the image height H "
            "and the image width W. Two additional sizes verify the solution. The formulas are therefore derived from "
            "the model itself."
        ),
        Text(
            "Weights are the elements of the kernels. Outputs are the elements that the convolutions output for one "
            "image. A connection is a product of an input and a weight: each output of a convolution has k² "
            "connections for every input channel. Products with padding zeros are included. Biases, "
            "BatchNorm, and the outputs of pooling, upsampling and ReLU are not counted here; the amounts they would "
            "add follow below."
        ),
    ]


def _formula_blocks(model_counts: ModelCounts) -> list[Block]:
    total = model_counts.total()
    blocks: list[Block] = [Formula(name, formula) for name, formula in zip(QUANTITIES, total.as_tuple, strict=True)]
    blocks.append(Text("For the images of the assignment, and for images of twice their height and width, these are:"))
    for size in (model_counts.size, model_counts.doubled_size):
        formulas = zip(QUANTITIES, total.subs(size).as_tuple, strict=True)
        blocks += [Formula(f"{name} at {format_size(size)}", formula) for name, formula in formulas]
    return blocks


def _number_blocks(model_counts: ModelCounts) -> list[Block]:
    """Return the numbers for both image sizes, and explain their ratios."""
    single, double = (
        _count_numbers(MODEL, model_counts, model_counts.total(), size)
        for size in (model_counts.size, model_counts.doubled_size)
    )
    ratios = [
        Number(large.value / small.value, f"{large.source}, over the same at {format_size(model_counts.size)}", ".4g")
        for small, large in zip(single, double, strict=True)
    ]
    return [
        Table(
            f"The six values with {format_settings(model_counts)}.",
            ["", format_size(model_counts.size), format_size(model_counts.doubled_size), "ratio"],
            _transpose_columns(QUANTITIES, single, double, ratios),
        ),
        Text(
            "Doubling the height and width multiplies the weights by {weights}, the outputs by {outputs} and the "
            "connections by {connections}. A convolution uses the same kernel at every position, so the number of "
            "weights does not depend on the image size. The number of positions in every layer, however, is "
            "proportional to the image area. Each position has its outputs, and each output has k² connections for "
            "every input channel.",
            dict(zip(QUANTITIES, ratios, strict=True)),
        ),
    ]


def _layer_blocks(model_counts: ModelCounts) -> list[Block]:
    formulas: TableRows = [[name, *quantities] for name, _, *quantities in layer_formulas(model_counts)]
    numbers: TableRows = [
        [layer.name, *_count_numbers(f"{MODEL}, {layer.name}", model_counts, layer_counts, model_counts.size)]
        for layer, layer_counts in model_counts.counted_layers()
    ]
    caption = f"The same at {format_size(model_counts.size)} with {format_settings(model_counts)}."
    return [
        Table("The individual convolutions, for images of H × W pixels.", ["layer", *QUANTITIES], formulas),
        Table(caption, ["layer", *QUANTITIES], numbers),
    ]


def _extra_count_blocks(model_counts: ModelCounts) -> list[Block]:
    """Return the counts that biases, BatchNorm and the other layers would add."""
    rows: TableRows = []
    for name, options in EXTRA_OPTIONS.items():
        extra = model_counts.total(options).subtract(model_counts.total())
        rows.append([name, *map(format_formula, extra.subs(model_counts.size).as_tuple)])
        rows.append(
            [f"{name}, numbers", *_count_numbers(f"{MODEL}, {name} only", model_counts, extra, model_counts.size)]
        )
    return [
        Table(f"Additional counts at {format_size(model_counts.size)}.", ["also counted", *QUANTITIES], rows),
        Text(
            "A bias is added, not multiplied, so it has no connection. BatchNorm has two weights per channel and "
            "multiplies each of its inputs by one of them. Pooling, upsampling and ReLU have outputs but no weights, "
            "and therefore no connections by this definition."
        ),
    ]


def _without_last_conv_blocks(model_counts: ModelCounts) -> list[Block]:
    """Return the counts without the last convolution, a common mistake."""
    (last, last_counts), total = model_counts.counted_layers()[-1], model_counts.total()
    counts = {
        MODEL: total,
        f"{MODEL} without {last.name}": total.subtract(last_counts),
        f"{last.name} of {MODEL}": last_counts,
    }
    numbers = (_count_numbers(name, model_counts, part, model_counts.size) for name, part in counts.items())
    return [
        Text(
            "A common mistake is to omit the last convolution, which follows the four blocks of the figure. All three "
            "numbers are then too small by the counts of this layer:"
        ),
        Table(
            f"With and without the last convolution, at {format_size(model_counts.size)}.",
            ["", "correct", "without it", "difference", "formula of the difference"],
            _transpose_columns(
                QUANTITIES,
                *numbers,
                [format_formula(formula) for formula in last_counts.subs(model_counts.size).as_tuple],
            ),
        ),
    ]


def _other_model_blocks(model_counts: ModelCounts) -> list[Block]:
    """Compare the three models of the figure."""
    counts = {MODEL: model_counts, **{name: count_model(name) for name in OTHER_MODELS}}
    formulas: TableRows = [
        [_class_name(name), *map(format_formula, model.total().as_tuple)] for name, model in counts.items()
    ]
    numbers: TableRows = [
        [f"{_class_name(name)}, {format_size(size)}", *_count_numbers(name, model, model.total(), size)]
        for name, model in counts.items()
        for size in (model.size, model.doubled_size)
    ]
    return [
        Text(
            "The other two models have transposed convolutions. A transposed convolution multiplies every input by k² "
            "weights for each output channel, and each of these products is a connection, even if the padding removes "
            "it from the output. Counting from the outputs gives the same number: with stride 2, an output uses k²/4 "
            "positions of each input channel on average, and there are four times as many outputs as inputs. The "
            "concatenations of UNet compute nothing; they increase the number of input channels of later layers."
        ),
        Table("The three models of figure 1, for images of H × W pixels.", ["model", *QUANTITIES], formulas),
        Table(f"The same with {format_settings(model_counts)}.", ["model", *QUANTITIES], numbers),
        Text(
            "ConvTransposeNet has {weights} times the weights of PoolUpsampleNet, {outputs} times its outputs and "
            "{connections} times its connections. Its strided convolutions compute only every fourth position, while "
            "PoolUpsampleNet computes all positions and then pools. Its transposed convolutions output the doubled "
            "image directly, while PoolUpsampleNet uses upsampling for this.",
            _count_ratios("conv-transpose", counts),
        ),
    ]


def _count_ratios(model: str, counts: Mapping[str, ModelCounts]) -> dict[str, Number]:
    """Return the counts of another model divided by those of ``MODEL``."""
    numerators, denominators = (counts[name].total().evaluate(counts[name].values) for name in (model, MODEL))
    return {
        name: Number(
            numerator / denominator, f"chromabox.assignment.count: {name} of {model} over those of {MODEL}", ".3g"
        )
        for name, numerator, denominator in zip(QUANTITIES, numerators, denominators, strict=True)
    }


def _count_numbers(name: str, model_counts: ModelCounts, formulas: Counts, size: Values) -> list[Number]:
    """Return the three numbers of a count at an image size."""
    source = f"chromabox.assignment.count: {name} at {format_size(size)} with {format_settings(model_counts)}"
    numbers = zip(QUANTITIES, formulas.evaluate({**model_counts.values, **size}), strict=True)
    return [Number(float(value), f"{source}: {quantity}", ",.0f") for quantity, value in numbers]


def _transpose_columns(*columns: Sequence[Cell]) -> TableRows:
    return [list(row) for row in zip(*columns, strict=True)]


def _class_name(name: str) -> str:
    return getattr(MODELS[name], "__name__", name)


def padding_section(run_index: RunIndex, folder: Path) -> Section:
    """Build section B.4: paddings and output paddings for kernel sizes 4, 5 and others, from layers and from "
    "equations."""
    with num_threads(1):  # More threads slow such small layers down.
        paddings = {
            (kernel, dilation): search_paddings(kernel, dilation=dilation)
            for kernel in TESTED_KERNELS
            for dilation in TESTED_DILATIONS
        }
    return Section(
        "B.4",
        "Paddings for other kernel sizes",
        "Which padding do the first two convolutions need, and which padding and output padding do the transposed "
        "convolutions need, so that kernel sizes 4 and 5 preserve the shapes in figure 1b?",
        [*_question_blocks(paddings), *_equation_blocks(), *_rule_blocks(paddings), *_limitation_blocks(paddings)],
    )


def _question_blocks(paddings: PaddingsBySetting) -> list[Block]:
    return [
        Text(
            "All paddings from 0 to more than any kernel could use were tested with PyTorch layers, together with all "
            "output paddings that PyTorch accepts. Only the following values give all shapes of the figure:"
        ),
        Table(
            "Paddings that preserve the shapes, with stride 2 and without dilation.",
            ["kernel size", "convolutions 1 and 2: padding", "transposed: padding", "transposed: output padding"],
            [[f"{kernel}", *_padding_cells(kernel, paddings)] for kernel in QUESTION_KERNELS],
        ),
    ]


def _equation_blocks() -> list[Block]:
    n, p, s, d, o = symbols("n p s d o")
    return [
        Text(
            "According to the PyTorch documentation, a layer with kernel size k, padding p, stride s, dilation d and "
            "output padding o maps n pixels to the following numbers of pixels."
        ),
        Formula("convolution", floor((n + 2 * p - d * (K - 1) - 1) / s) + 1),
        Formula("transposed convolution", s * (n - 1) - 2 * p + d * (K - 1) + o + 1),
        Text(
            "With s = 2, the first number is n/2 for every even n if and only if 2p is d(k − 1) or d(k − 1) − 1. "
            "Exactly one of these two values is even, so there is exactly one p. The second number is 2n if and only "
            "if o = 2p + 1 − d(k − 1). PyTorch accepts only output paddings below the larger of s and d, which are 0 "
            "and 1 without dilation, so there is again exactly one p. Without dilation, both types of layer need:"
        ),
        Formula("p", floor(Mul(Rational(1, 2), K - 1, evaluate=False))),
        Formula("o", Mod(K, 2)),
    ]


def _rule_blocks(paddings: PaddingsBySetting) -> list[Block]:
    """Compare the general rule of the assignment with the paddings that the layers need."""
    rows: TableRows = []
    for kernel in TESTED_KERNELS:
        source = f"chromabox.assignment.padding.assignment_rule({kernel})"
        rule = [Number(float(value), source, ".0f") for value in assignment_rule(kernel)]
        is_correct = "yes" if paddings[kernel, 1][:2] == _rule_paddings(kernel) else "no"
        rows.append([f"{kernel}", *rule, *_padding_cells(kernel, paddings), is_correct])
    wrong = ", ".join(f"{row[0]}" for row in rows if row[-1] == "no")
    verdict = f"it is not the only solution for {wrong}" if wrong else "it is the only solution for all of them"
    return [
        Text(
            "The general solution of the assignment is padding `(k - 1) // 2` and output padding `int(k % 2 == 1)`. It "
            f"was tested for kernel sizes from {TESTED_KERNELS[0]} to {TESTED_KERNELS[-1]}: {verdict}."
        ),
        Table(
            "The general rule compared with the paddings that the layers need, with stride 2 and without dilation.",
            [
                *("kernel size", "rule: padding", "rule: output padding", "convolutions 1 and 2: padding"),
                *("transposed: padding", "transposed: output padding", "rule is correct"),
            ],
            rows,
        ),
    ]


def _limitation_blocks(paddings: PaddingsBySetting) -> list[Block]:
    """Describe the limits of the rule: the last convolution, dilation, other strides and odd widths."""
    return [
        Text(
            "Limits of the rule: the last convolution has stride 1 and keeps the shape only if 2p = d(k − 1). No p "
            "satisfies this for an even kernel size unless the dilation is even, because the padding is equal on both "
            "sides. "
            'An additional pixel on one side solves this; PyTorch\'s `padding="same"`, which our models use, adds it.'
        ),
        Text(
            "The rule does not include the dilation. The assignment dilates only the ordinary convolutions; the table "
            "also shows the effect of a dilation of the transposed convolutions. If the dilation exceeds the stride, "
            "PyTorch accepts output paddings of 2 and more, and a kernel size can have a second solution."
        ),
        Table(
            f"Kernel sizes from {TESTED_KERNELS[0]} to {TESTED_KERNELS[-1]} with each property, by dilation.",
            [
                *("dilation", "rule correct in convolutions 1 and 2", "rule correct in transposed convolutions"),
                *("several solutions in transposed convolutions", "no padding for the last convolution"),
            ],
            [_dilation_row(dilation, paddings) for dilation in TESTED_DILATIONS],
        ),
        Text(
            "Strides other than 2 cannot produce the shapes of the figure, in which layers with the same padding map "
            "32 pixels to 16 and 16 pixels to 8, and back. "
            + " ".join(
                f"Stride {stride}, kernel size {EXAMPLE_KERNEL}: {_rejection_text(stride)}."
                for stride in TESTED_STRIDES
            )
        ),
        Text(
            "The width must also be even: an odd width is rounded when it is halved, so the doubled width differs from "
            "the original width by one pixel."
        ),
    ]


def _dilation_row(dilation: int, paddings: PaddingsBySetting) -> list[Cell]:
    """List the kernel sizes for which the rule is correct, those with several solutions and those with none."""
    solutions = {kernel: paddings[kernel, dilation] for kernel in TESTED_KERNELS}
    strided, transposed = (
        [kernel for kernel in TESTED_KERNELS if _rule_paddings(kernel)[stage][0] in solutions[kernel][stage]]
        for stage in (0, 1)
    )
    several = [kernel for kernel in TESTED_KERNELS if len(solutions[kernel][1]) > 1]
    unsolved = [kernel for kernel in TESTED_KERNELS if not solutions[kernel][2]]
    return [f"{dilation}", *map(_join_numbers, (strided, transposed, several, unsolved))]


def _rule_paddings(kernel: int) -> tuple[tuple[Padding, ...], tuple[Padding, ...]]:
    """Return the paddings of the rule in the format of :func:`search_paddings`; a convolution has no output padding."""
    padding, output_padding = assignment_rule(kernel)
    return ((padding, 0),), ((padding, output_padding),)


def _padding_cells(kernel: int, paddings: PaddingsBySetting) -> list[Cell]:
    """Return the padding of the strided convolutions and both paddings of the transposed ones, without dilation."""
    strided, transposed, _ = paddings[kernel, 1]
    columns = (
        [padding for padding, _ in strided],
        [padding for padding, _ in transposed],
        [output_padding for _, output_padding in transposed],
    )
    source = f"chromabox.assignment.padding.search_paddings({kernel})"
    return [
        Number(float(values[0]), source, ".0f") if len(values) == 1 else _join_numbers(values) for values in columns
    ]


def _rejection_text(stride: int) -> str:
    return "; ".join(option.reason for option in solve_paddings(EXAMPLE_KERNEL, stride=stride) if option.reason)


def _join_numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
