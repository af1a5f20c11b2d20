"""Parts A.3 and B.4, which need no runs: what PoolUpsampleNet consists of, and which paddings keep figure 1b."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from sympy import Mod, Mul, Rational, floor, symbols

from chromabox.assignment.count import Count, Counted, K, NetCount, Values, count_net
from chromabox.assignment.count_tables import QUANTITIES, formula_text, layer_formulas, settings_text, size_text
from chromabox.assignment.padding import Pair, figure_geometry, handout_pair, searched
from chromabox.colour.models import NETS
from chromabox.experiments.runs import Found
from chromabox.report.document.model import Block, Cell, Formula, Number, Section, Table, Text
from chromabox.runtime.parallel import threads_at

NET = "pool-upsample"
OTHERS = ("conv-transpose", "unet")
#: What may be counted besides, and how a table names it.
BESIDES = {
    "biases": Counted(biases=True),
    "BatchNorm": Counted(batch_norm=True),
    "pooling, upsampling, ReLU": Counted(others=True),
}
#: The kernels that the question is about, and those for which the general rule is tried.
ASKED = (4, 5)
TRIED = range(1, 10)
DILATIONS = (1, 2, 3)
#: Strides that do not fit the figure, and the kernel they are shown with.
STRIDES, SHOWN = (1, 3), 3

Rows: TypeAlias = list[Sequence[Cell]]
#: What :func:`searched` found for a kernel and a dilation.
Tries: TypeAlias = Mapping[tuple[int, int], tuple[tuple[Pair, ...], ...]]


def count_section(found: Found, folder: Path) -> Section:
    """A.3: weights, outputs and connections as formulas and as numbers, for 32 × 32 and twice that."""
    count = count_net(NET)
    return Section(
        "A.3",
        "Weights, outputs and connections",
        "How many weights, outputs and connections does PoolUpsampleNet have, as functions of NIC, NF and NC? How many "
        "for pictures of twice the height and width? BatchNorm is not counted.",
        [
            *_definitions(),
            *_six_formulas(count),
            *_six_numbers(count),
            *_layers(count),
            *_besides(count),
            *_without_last(count),
            *_other_nets(count),
        ],
    )


def _definitions() -> list[Block]:
    return [
        Text(
            f"`chromabox count {NET}` builds the net at several small settings, runs it on tensors without contents, "
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


def _six_formulas(count: NetCount) -> list[Block]:
    total = count.total()
    blocks: list[Block] = [Formula(name, one) for name, one in zip(QUANTITIES, total.three, strict=True)]
    blocks.append(Text("For the pictures of the assignment, and for twice their height and width, these are:"))
    for size in (count.size, count.doubled):
        formulas = zip(QUANTITIES, total.at(size).three, strict=True)
        blocks += [Formula(f"{name} at {size_text(size)}", one) for name, one in formulas]
    return blocks


def _six_numbers(count: NetCount) -> list[Block]:
    """The numbers, and why the weights stay."""
    single, double = (_numbers(NET, count, count.total(), size) for size in (count.size, count.doubled))
    ratios = [
        Number(two.value / one.value, f"{two.source}, over the same at {size_text(count.size)}", ".4g")
        for one, two in zip(single, double, strict=True)
    ]
    return [
        Table(
            f"The six values with {settings_text(count)}.",
            ["", size_text(count.size), size_text(count.doubled), "ratio"],
            _rows(QUANTITIES, single, double, ratios),
        ),
        Text(
            "Doubling height and width multiplies the weights by {weights}, the outputs by {outputs} and the "
            "connections by {connections}. A convolution uses the same kernel at every place, so no kernel grows with "
            "the picture. But every layer has as many places as its share of the picture's area, each place has its "
            "outputs, and each output k² connections for every channel that goes in.",
            dict(zip(QUANTITIES, ratios, strict=True)),
        ),
    ]


def _layers(count: NetCount) -> list[Block]:
    formulas: Rows = [[name, *three] for name, _, *three in layer_formulas(count)]
    numbers: Rows = [
        [layer.name, *_numbers(f"{NET}, {layer.name}", count, its, count.size)] for layer, its in count.rows()
    ]
    same = f"The same at {size_text(count.size)} with {settings_text(count)}."
    return [
        Table("The convolutions one by one, for pictures of H × W.", ["layer", *QUANTITIES], formulas),
        Table(same, ["layer", *QUANTITIES], numbers),
    ]


def _besides(count: NetCount) -> list[Block]:
    """What biases, BatchNorm and the other layers would add."""
    rows: Rows = []
    for name, what in BESIDES.items():
        more = count.total(what).minus(count.total())
        rows.append([name, *map(formula_text, more.at(count.size).three)])
        rows.append([f"{name}, in numbers", *_numbers(f"{NET}, {name} alone", count, more, count.size)])
    return [
        Table(f"What would be added at {size_text(count.size)}.", ["counted too", *QUANTITIES], rows),
        Text(
            "A bias is added and not multiplied, so it makes no connection. BatchNorm has two weights a channel and "
            "multiplies every number that it gets by one of them. Pooling, upsampling and ReLU have outputs but no "
            "weights, hence no connections in this sense."
        ),
    ]


def _without_last(count: NetCount) -> list[Block]:
    """What comes out if the last convolution is forgotten."""
    (last, its), total = count.rows()[-1], count.total()
    counts = {NET: total, f"{NET} without {last.name}": total.minus(its), f"{last.name} of {NET}": its}
    numbers = (_numbers(name, count, one, count.size) for name, one in counts.items())
    return [
        Text(
            "A frequent slip is to leave out the last convolution, which stands below the four blocks of the figure. "
            "All three numbers then come out smaller, by what this one layer has:"
        ),
        Table(
            f"With and without the last convolution, at {size_text(count.size)}.",
            ["", "right", "without it", "difference", "formula of the difference"],
            _rows(QUANTITIES, *numbers, [formula_text(one) for one in its.at(count.size).three]),
        ),
    ]


def _other_nets(count: NetCount) -> list[Block]:
    """The two other nets of the figure beside this one."""
    counts = {NET: count, **{name: count_net(name) for name in OTHERS}}
    formulas: Rows = [[_called(name), *map(formula_text, one.total().three)] for name, one in counts.items()]
    numbers: Rows = [
        [f"{_called(name)}, {size_text(size)}", *_numbers(name, one, one.total(), size)]
        for name, one in counts.items()
        for size in (one.size, one.doubled)
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
        Table(f"The same with {settings_text(count)}.", ["net", *QUANTITIES], numbers),
        Text(
            "ConvTransposeNet has {weights} times PoolUpsampleNet's weights, {outputs} times its outputs and "
            "{connections} times its connections. Its strided convolutions compute only the places that are kept, a "
            "quarter, where PoolUpsampleNet computes all and pools; its transposed convolutions put out the doubled "
            "picture themselves, which PoolUpsampleNet leaves to upsampling.",
            _ratios("conv-transpose", counts),
        ),
    ]


def _ratios(other: str, counts: Mapping[str, NetCount]) -> dict[str, Number]:
    """The numbers of another net over those of ``NET``."""
    mine, its = (counts[name].total().numbers(counts[name].values) for name in (other, NET))
    return {
        name: Number(one / two, f"chromabox.assignment.count: {name} of {other} over those of {NET}", ".3g")
        for name, one, two in zip(QUANTITIES, mine, its, strict=True)
    }


def _numbers(name: str, count: NetCount, formulas: Count, size: Values) -> list[Number]:
    """A count's three numbers at a size."""
    source = f"chromabox.assignment.count: {name} at {size_text(size)} with {settings_text(count)}"
    numbers = zip(QUANTITIES, formulas.numbers({**count.values, **size}), strict=True)
    return [Number(float(value), f"{source}: {quantity}", ",.0f") for quantity, value in numbers]


def _rows(*columns: Sequence[Cell]) -> Rows:
    return [list(row) for row in zip(*columns, strict=True)]


def _called(name: str) -> str:
    return getattr(NETS[name], "__name__", name)


def geometry_section(found: Found, folder: Path) -> Section:
    """B.4: paddings and output paddings for kernels of 4, 5 and any other, from real layers and from the equations."""
    with threads_at(1):  # Layers as small as these only lose by more.
        tries = {(kernel, dilation): searched(kernel, dilation=dilation) for kernel in TRIED for dilation in DILATIONS}
    return Section(
        "B.4",
        "Paddings for other kernels",
        "Which padding must the first two convolutions get, and which padding and output padding the transposed ones, "
        "so that kernels of 4 or 5 keep the shapes of figure 1b?",
        [*_asked(tries), *_equations(), *_rule(tries), *_limits(tries)],
    )


def _asked(tries: Tries) -> list[Block]:
    return [
        Text(
            "All paddings from none to more than any kernel could use were tried with PyTorch's own layers, together "
            "with every output padding that PyTorch takes. These, and no others, give all shapes of the figure:"
        ),
        Table(
            "Paddings that keep the shapes, with stride 2 and without dilation.",
            ["kernel", "convolutions 1 and 2: padding", "transposed: padding", "transposed: output padding"],
            [[f"{kernel}", *_cells(kernel, tries)] for kernel in ASKED],
        ),
    ]


def _equations() -> list[Block]:
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


def _rule(tries: Tries) -> list[Block]:
    """The assignment's own general answer against what real layers say."""
    rows: Rows = []
    for kernel in TRIED:
        source = f"chromabox.assignment.padding.handout_pair({kernel})"
        rule = [Number(float(one), source, ".0f") for one in handout_pair(kernel)]
        right = "yes" if tries[kernel, 1][:2] == _only_rule(kernel) else "no"
        rows.append([f"{kernel}", *rule, *_cells(kernel, tries), right])
    wrong = ", ".join(f"{row[0]}" for row in rows if row[-1] == "no")
    verdict = f"it is not the only right answer for {wrong}" if wrong else "it is right for all, and the only answer"
    return [
        Text(
            "The general answer of the assignment's own solution is padding `(k - 1) // 2` and output padding "
            f"`int(k % 2 == 1)`. Tried for kernels from {TRIED[0]} to {TRIED[-1]}: {verdict}."
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


def _limits(tries: Tries) -> list[Block]:
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
            f"Of the kernels from {TRIED[0]} to {TRIED[-1]}, by dilation.",
            [
                *("dilation", "rule right in convolutions 1 and 2", "rule right in transposed ones"),
                *("several answers in transposed ones", "no padding for the last one"),
            ],
            [_by_dilation(dilation, tries) for dilation in DILATIONS],
        ),
        Text(
            "Other strides than 2 do not fit the figure, in which layers with the same padding turn 32 into 16 and 16 "
            "into 8, and back. "
            + " ".join(f"Stride {stride}, kernel {SHOWN}: {_refusals(stride)}." for stride in STRIDES)
        ),
        Text(
            "And widths must be even: an odd one is halved with rounding, and comes out of the doubling a pixel wider "
            "or narrower."
        ),
    ]


def _by_dilation(dilation: int, tries: Tries) -> list[Cell]:
    """Kernels for which the rule is right in strided and transposed layers; those with several answers, with none."""
    found = {kernel: tries[kernel, dilation] for kernel in TRIED}
    strided, transposed = (
        [kernel for kernel in TRIED if _only_rule(kernel)[stage][0] in found[kernel][stage]] for stage in (0, 1)
    )
    several = [kernel for kernel in TRIED if len(found[kernel][1]) > 1]
    without = [kernel for kernel in TRIED if not found[kernel][2]]
    return [f"{dilation}", *map(_list, (strided, transposed, several, without))]


def _only_rule(kernel: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The rule's answers in the form of :func:`searched`; a convolution has no output padding."""
    padding, extra = handout_pair(kernel)
    return ((padding, 0),), ((padding, extra),)


def _cells(kernel: int, tries: Tries) -> list[Cell]:
    """Padding of the strided convolutions, padding and output padding of the transposed ones, without dilation."""
    strided, transposed, _ = tries[kernel, 1]
    columns = ([one for one, _ in strided], [one for one, _ in transposed], [one for _, one in transposed])
    source = f"chromabox.assignment.padding.searched({kernel})"
    return [Number(float(one[0]), source, ".0f") if len(one) == 1 else _list(one) for one in columns]


def _refusals(stride: int) -> str:
    return "; ".join(answer.reason for answer in figure_geometry(SHOWN, stride=stride) if answer.reason)


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
