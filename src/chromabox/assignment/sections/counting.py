"""Parts A.3 and B.4, which need no runs: what PoolUpsampleNet consists of, and which paddings keep figure 1b."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from sympy import Mod, Mul, Rational, floor, symbols

from chromabox.assignment.count import CountOptions, Counts, K, ModelCounts, Values, count_model
from chromabox.assignment.count_tables import QUANTITIES, format_formula, format_settings, format_size, layer_formulas
from chromabox.assignment.padding import Padding, assignment_rule, search_paddings, solve_paddings
from chromabox.colour.models import MODELS
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Formula, Number, Section, Table, Text
from chromabox.runtime.parallel import num_threads

MODEL = "pool-upsample"
OTHER_MODELS = ("conv-transpose", "unet")
#: What may be counted besides, and how a table names it.
EXTRA_OPTIONS = {
    "biases": CountOptions(biases=True),
    "BatchNorm": CountOptions(batch_norm=True),
    "pooling, upsampling, ReLU": CountOptions(activations=True),
}
#: The kernels that the question is about, and those for which the general rule is tried.
QUESTION_KERNELS = (4, 5)
TESTED_KERNELS = range(1, 10)
TESTED_DILATIONS = (1, 2, 3)
#: Strides that do not fit the figure, and the kernel they are shown with.
TESTED_STRIDES, EXAMPLE_KERNEL = (1, 3), 3

TableRows: TypeAlias = list[Sequence[Cell]]
#: What :func:`searched` found for a kernel and a dilation.
PaddingsBySetting: TypeAlias = Mapping[tuple[int, int], tuple[tuple[Padding, ...], ...]]


def count_section(run_index: RunIndex, folder: Path) -> Section:
    """A.3: weights, outputs and connections as formulas and as numbers, for 32 × 32 and twice that."""
    count = count_model(MODEL)
    return Section(
        "A.3",
        "Weights, outputs and connections",
        "How many weights, outputs and connections does PoolUpsampleNet have, as functions of NIC, NF and NC? How many "
        "for pictures of twice the height and width? BatchNorm is not counted.",
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
            f"`chromabox count {MODEL}` builds the net at several small settings, runs it on tensors without contents, "
            "and solves for every side of every kernel and output in terms of NIC, NF, NC, the kernel size k, and the "
            "picture's height H and width W; two further settings check the solution. So the formulas are the net's "
            "own."
        ),
        Text(
            "Weights are the numbers in the kernels, outputs are what the convolutions put out for one picture, and a "
            "connection is a product of an input by a weight: each output of a convolution has k² times the channels "
            "that go in. Where the kernel reaches over the border it meets the padding's zeros; these products count "
            "too. Biases, BatchNorm, and what pooling, upsampling and ReLU put out do not count here; what they would "
            "add follows below."
        ),
    ]


def _formula_blocks(model_counts: ModelCounts) -> list[Block]:
    total = model_counts.total()
    blocks: list[Block] = [Formula(name, one) for name, one in zip(QUANTITIES, total.as_tuple, strict=True)]
    blocks.append(Text("For the pictures of the assignment, and for twice their height and width, these are:"))
    for size in (model_counts.size, model_counts.doubled_size):
        formulas = zip(QUANTITIES, total.subs(size).as_tuple, strict=True)
        blocks += [Formula(f"{name} at {format_size(size)}", one) for name, one in formulas]
    return blocks


def _number_blocks(model_counts: ModelCounts) -> list[Block]:
    """The numbers, and why the weights stay."""
    single, double = (
        _count_numbers(MODEL, model_counts, model_counts.total(), size)
        for size in (model_counts.size, model_counts.doubled_size)
    )
    ratios = [
        Number(two.value / one.value, f"{two.source}, over the same at {format_size(model_counts.size)}", ".4g")
        for one, two in zip(single, double, strict=True)
    ]
    return [
        Table(
            f"The six values with {format_settings(model_counts)}.",
            ["", format_size(model_counts.size), format_size(model_counts.doubled_size), "ratio"],
            _transpose_columns(QUANTITIES, single, double, ratios),
        ),
        Text(
            "Doubling height and width multiplies the weights by {weights}, the outputs by {outputs} and the "
            "connections by {connections}. A convolution uses the same kernel at every place, so no kernel grows with "
            "the picture. But every layer has as many places as its share of the picture's area, each place has its "
            "outputs, and each output k² connections for every channel that goes in.",
            dict(zip(QUANTITIES, ratios, strict=True)),
        ),
    ]


def _layer_blocks(model_counts: ModelCounts) -> list[Block]:
    formulas: TableRows = [[name, *three] for name, _, *three in layer_formulas(model_counts)]
    numbers: TableRows = [
        [layer.name, *_count_numbers(f"{MODEL}, {layer.name}", model_counts, its, model_counts.size)]
        for layer, its in model_counts.counted_layers()
    ]
    same = f"The same at {format_size(model_counts.size)} with {format_settings(model_counts)}."
    return [
        Table("The convolutions one by one, for pictures of H × W.", ["layer", *QUANTITIES], formulas),
        Table(same, ["layer", *QUANTITIES], numbers),
    ]


def _extra_count_blocks(model_counts: ModelCounts) -> list[Block]:
    """What biases, BatchNorm and the other layers would add."""
    rows: TableRows = []
    for name, what in EXTRA_OPTIONS.items():
        more = model_counts.total(what).subtract(model_counts.total())
        rows.append([name, *map(format_formula, more.subs(model_counts.size).as_tuple)])
        rows.append(
            [f"{name}, in numbers", *_count_numbers(f"{MODEL}, {name} alone", model_counts, more, model_counts.size)]
        )
    return [
        Table(f"What would be added at {format_size(model_counts.size)}.", ["counted too", *QUANTITIES], rows),
        Text(
            "A bias is added and not multiplied, so it makes no connection. BatchNorm has two weights a channel and "
            "multiplies every number that it gets by one of them. Pooling, upsampling and ReLU have outputs but no "
            "weights, hence no connections in this sense."
        ),
    ]


def _without_last_conv_blocks(model_counts: ModelCounts) -> list[Block]:
    """What comes out if the last convolution is forgotten."""
    (last, its), total = model_counts.counted_layers()[-1], model_counts.total()
    counts = {MODEL: total, f"{MODEL} without {last.name}": total.subtract(its), f"{last.name} of {MODEL}": its}
    numbers = (_count_numbers(name, model_counts, one, model_counts.size) for name, one in counts.items())
    return [
        Text(
            "A frequent slip is to leave out the last convolution, which stands below the four blocks of the figure. "
            "All three numbers then come out smaller, by what this one layer has:"
        ),
        Table(
            f"With and without the last convolution, at {format_size(model_counts.size)}.",
            ["", "right", "without it", "difference", "formula of the difference"],
            _transpose_columns(
                QUANTITIES, *numbers, [format_formula(one) for one in its.subs(model_counts.size).as_tuple]
            ),
        ),
    ]


def _other_model_blocks(model_counts: ModelCounts) -> list[Block]:
    """The two other nets of the figure beside this one."""
    counts = {MODEL: model_counts, **{name: count_model(name) for name in OTHER_MODELS}}
    formulas: TableRows = [
        [_class_name(name), *map(format_formula, one.total().as_tuple)] for name, one in counts.items()
    ]
    numbers: TableRows = [
        [f"{_class_name(name)}, {format_size(size)}", *_count_numbers(name, one, one.total(), size)]
        for name, one in counts.items()
        for size in (one.size, one.doubled_size)
    ]
    return [
        Text(
            "The other two nets have transposed convolutions. One of these spreads every input over k² places of each "
            "channel that it puts out, and each such product is a connection, whether or not padding crops it away. "
            "Counted from the outputs it is the same: with stride 2 an output sees k²/4 places of each input channel "
            "on average, and there are four times as many of them as inputs. UNet's concatenations compute nothing; "
            "they show in the channels that later layers take in."
        ),
        Table("The three nets of figure 1, for pictures of H × W.", ["net", *QUANTITIES], formulas),
        Table(f"The same with {format_settings(model_counts)}.", ["net", *QUANTITIES], numbers),
        Text(
            "ConvTransposeNet has {weights} times PoolUpsampleNet's weights, {outputs} times its outputs and "
            "{connections} times its connections. Its strided convolutions compute only the places that are kept, a "
            "quarter, where PoolUpsampleNet computes all and pools; its transposed convolutions put out the doubled "
            "picture themselves, which PoolUpsampleNet leaves to upsampling.",
            _count_ratios("conv-transpose", counts),
        ),
    ]


def _count_ratios(model: str, counts: Mapping[str, ModelCounts]) -> dict[str, Number]:
    """The numbers of another net over those of ``NET``."""
    mine, its = (counts[name].total().evaluate(counts[name].values) for name in (model, MODEL))
    return {
        name: Number(one / two, f"chromabox.assignment.count: {name} of {model} over those of {MODEL}", ".3g")
        for name, one, two in zip(QUANTITIES, mine, its, strict=True)
    }


def _count_numbers(name: str, model_counts: ModelCounts, formulas: Counts, size: Values) -> list[Number]:
    """A count's three numbers at a size."""
    source = f"chromabox.assignment.count: {name} at {format_size(size)} with {format_settings(model_counts)}"
    numbers = zip(QUANTITIES, formulas.evaluate({**model_counts.values, **size}), strict=True)
    return [Number(float(value), f"{source}: {quantity}", ",.0f") for quantity, value in numbers]


def _transpose_columns(*columns: Sequence[Cell]) -> TableRows:
    return [list(row) for row in zip(*columns, strict=True)]


def _class_name(name: str) -> str:
    return getattr(MODELS[name], "__name__", name)


def padding_section(run_index: RunIndex, folder: Path) -> Section:
    """B.4: paddings and output paddings for kernels of 4, 5 and any other, from real layers and from the equations."""
    with num_threads(1):  # Layers as small as these only lose by more.
        tries = {
            (kernel, dilation): search_paddings(kernel, dilation=dilation)
            for kernel in TESTED_KERNELS
            for dilation in TESTED_DILATIONS
        }
    return Section(
        "B.4",
        "Paddings for other kernels",
        "Which padding must the first two convolutions get, and which padding and output padding the transposed ones, "
        "so that kernels of 4 or 5 keep the shapes of figure 1b?",
        [*_question_blocks(tries), *_equation_blocks(), *_rule_blocks(tries), *_limitation_blocks(tries)],
    )


def _question_blocks(paddings: PaddingsBySetting) -> list[Block]:
    return [
        Text(
            "All paddings from none to more than any kernel could use were tried with PyTorch's own layers, together "
            "with every output padding that PyTorch takes. These, and no others, give all shapes of the figure:"
        ),
        Table(
            "Paddings that keep the shapes, with stride 2 and without dilation.",
            ["kernel", "convolutions 1 and 2: padding", "transposed: padding", "transposed: output padding"],
            [[f"{kernel}", *_padding_cells(kernel, paddings)] for kernel in QUESTION_KERNELS],
        ),
    ]


def _equation_blocks() -> list[Block]:
    n, p, s, d, o = symbols("n p s d o")
    return [
        Text(
            "Why: PyTorch's documentation says how many pixels a layer with kernel k, padding p, stride s, dilation d "
            "and output padding o makes of n."
        ),
        Formula("convolution", floor((n + 2 * p - d * (K - 1) - 1) / s) + 1),
        Formula("transposed convolution", s * (n - 1) - 2 * p + d * (K - 1) + o + 1),
        Text(
            "With s = 2 the first is n/2 for every even n exactly if 2p is d(k − 1) or d(k − 1) − 1. One of these two "
            "is even, so there is always one p, and never a second. The other is 2n exactly if o = 2p + 1 − d(k − 1); "
            "PyTorch takes only output paddings below the greater of s and d, which without dilation are 0 and 1, and "
            "so there is again one p. Without dilation both kinds of layer come to:"
        ),
        Formula("p", floor(Mul(Rational(1, 2), K - 1, evaluate=False))),
        Formula("o", Mod(K, 2)),
    ]


def _rule_blocks(paddings: PaddingsBySetting) -> list[Block]:
    """The assignment's own general answer against what real layers say."""
    rows: TableRows = []
    for kernel in TESTED_KERNELS:
        source = f"chromabox.assignment.padding.handout_pair({kernel})"
        rule = [Number(float(one), source, ".0f") for one in assignment_rule(kernel)]
        right = "yes" if paddings[kernel, 1][:2] == _rule_paddings(kernel) else "no"
        rows.append([f"{kernel}", *rule, *_padding_cells(kernel, paddings), right])
    wrong = ", ".join(f"{row[0]}" for row in rows if row[-1] == "no")
    verdict = f"it is not the only right answer for {wrong}" if wrong else "it is right for all, and the only answer"
    return [
        Text(
            "The general answer of the assignment's own solution is padding `(k - 1) // 2` and output padding "
            f"`int(k % 2 == 1)`. Tried for kernels from {TESTED_KERNELS[0]} to {TESTED_KERNELS[-1]}: {verdict}."
        ),
        Table(
            "The general answer beside what real layers need, with stride 2 and without dilation.",
            [
                *("kernel", "rule: padding", "rule: output padding", "convolutions 1 and 2: padding"),
                *("transposed: padding", "transposed: output padding", "the rule is right"),
            ],
            rows,
        ),
    ]


def _limitation_blocks(paddings: PaddingsBySetting) -> list[Block]:
    """Where the rule ends: the last convolution, dilation, other strides, odd widths."""
    return [
        Text(
            "Its limits. The last convolution has stride 1 and keeps the shape only with 2p = d(k − 1): no p does that "
            "for an even kernel, unless the dilation is even, since padding is the same on both sides. One more pixel "
            'on one side than on the other would do, which is PyTorch\'s `padding="same"`, and what our nets take.'
        ),
        Text(
            "The rule does not contain the dilation. The assignment dilates the ordinary convolutions only; the table "
            "also says what a dilation of the transposed ones would do. Where it exceeds the stride, PyTorch takes "
            "output paddings of 2 and more, and a kernel can have a second answer."
        ),
        Table(
            f"Of the kernels from {TESTED_KERNELS[0]} to {TESTED_KERNELS[-1]}, by dilation.",
            [
                *("dilation", "rule right in convolutions 1 and 2", "rule right in transposed ones"),
                *("several answers in transposed ones", "no padding for the last one"),
            ],
            [_dilation_row(dilation, paddings) for dilation in TESTED_DILATIONS],
        ),
        Text(
            "Other strides than 2 do not fit the figure, in which layers with the same padding turn 32 into 16 and 16 "
            "into 8, and back. "
            + " ".join(
                f"Stride {stride}, kernel {EXAMPLE_KERNEL}: {_rejection_text(stride)}." for stride in TESTED_STRIDES
            )
        ),
        Text(
            "And widths must be even: an odd one is halved with rounding, and comes out of the doubling a pixel wider "
            "or narrower."
        ),
    ]


def _dilation_row(dilation: int, paddings: PaddingsBySetting) -> list[Cell]:
    """Kernels for which the rule is right in strided and transposed layers; those with several answers, with none."""
    found = {kernel: paddings[kernel, dilation] for kernel in TESTED_KERNELS}
    strided, transposed = (
        [kernel for kernel in TESTED_KERNELS if _rule_paddings(kernel)[stage][0] in found[kernel][stage]]
        for stage in (0, 1)
    )
    several = [kernel for kernel in TESTED_KERNELS if len(found[kernel][1]) > 1]
    without = [kernel for kernel in TESTED_KERNELS if not found[kernel][2]]
    return [f"{dilation}", *map(_join_numbers, (strided, transposed, several, without))]


def _rule_paddings(kernel: int) -> tuple[tuple[Padding, ...], tuple[Padding, ...]]:
    """The rule's answers in the form of :func:`searched`; a convolution has no output padding."""
    padding, extra = assignment_rule(kernel)
    return ((padding, 0),), ((padding, extra),)


def _padding_cells(kernel: int, paddings: PaddingsBySetting) -> list[Cell]:
    """Padding of the strided convolutions, padding and output padding of the transposed ones, without dilation."""
    strided, transposed, _ = paddings[kernel, 1]
    columns = ([one for one, _ in strided], [one for one, _ in transposed], [one for _, one in transposed])
    source = f"chromabox.assignment.padding.searched({kernel})"
    return [Number(float(one[0]), source, ".0f") if len(one) == 1 else _join_numbers(one) for one in columns]


def _rejection_text(stride: int) -> str:
    return "; ".join(answer.reason for answer in solve_paddings(EXAMPLE_KERNEL, stride=stride) if answer.reason)


def _join_numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
