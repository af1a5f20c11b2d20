"""Parts A.3 and B.4: what PoolUpsampleNet consists of, and which paddings keep figure 1b's shapes. They need no runs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from sympy import Mod, floor, symbols

from chromabox.colour.count import Count, Counted, H, K, NetCount, Values, W, count_net
from chromabox.colour.geometry import Pair, figure_geometry, handout_pair, searched
from chromabox.colour.nets import NETS
from chromabox.detect.ready import threads_at
from chromabox.report.counting import QUANTITIES, formula_text, layer_formulas
from chromabox.report.document import Block, Cell, Formula, Number, Section, Table, Text
from chromabox.report.found import Found

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
            f"`chromabox count {NET}` builds the net at several small settings, runs it on tensors without contents, and "
            "solves for every side of every kernel and output in terms of NIC, NF, NC, the kernel size k, and the "
            "picture's height H and width W; two further settings check the solution. So the formulas are the net's own."
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
    blocks.append(
        Text("With the height and the width put in, and with both doubled, these are the six values asked for:")
    )
    for size in (count.size, count.doubled):
        formulas = zip(QUANTITIES, total.at(size).three, strict=True)
        blocks += [Formula(f"{name} at {size[H]} × {size[W]}", one) for name, one in formulas]
    return blocks


def _six_numbers(count: NetCount) -> list[Block]:
    """The numbers, and why the weights stay."""
    sizes = [f"{size[H]} × {size[W]}" for size in (count.size, count.doubled)]
    single, double = (_numbers(NET, count, count.total(), size) for size in (count.size, count.doubled))
    ratios = [
        Number(two.value / one.value, f"{two.source}, over the same at {sizes[0]}", ".4g")
        for one, two in zip(single, double, strict=True)
    ]
    rows = [list(row) for row in zip(QUANTITIES, single, double, ratios, strict=True)]
    return [
        Table(f"The six values with {_settings(count)}.", ["", *sizes, "times"], rows),
        Text(
            "Doubling height and width multiplies the weights by {weights}, the outputs by {outputs} and the connections "
            "by {connections}. A convolution uses the same kernel at every place, so no kernel grows with the picture; "
            "but every layer has as many places as its share of the picture's area, each with its outputs, and each "
            "output with its k² connections a channel.",
            dict(zip(QUANTITIES, ratios, strict=True)),
        ),
    ]


def _layers(count: NetCount) -> list[Block]:
    rows: list[Sequence[Cell]] = [[name, *formulas] for name, _, *formulas in layer_formulas(count)]
    numbers = [[layer.name, *_numbers(f"{NET}, {layer.name}", count, its, count.size)] for layer, its in count.rows()]
    return [
        Table("The convolutions one by one, for pictures of H × W.", ["layer", *QUANTITIES], rows),
        Table(
            f"The same at {count.size[H]} × {count.size[W]} with {_settings(count)}.", ["layer", *QUANTITIES], numbers
        ),
    ]


def _besides(count: NetCount) -> list[Block]:
    """What biases, BatchNorm and the other layers would add."""
    rows: list[Sequence[Cell]] = []
    for name, what in BESIDES.items():
        more = count.total(what).minus(count.total())
        rows.append([name, *map(formula_text, more.at(count.size).three)])
        rows.append([f"{name}, in numbers", *_numbers(f"{NET}, {name} alone", count, more, count.size)])
    return [
        Table(f"What would be added at {count.size[H]} × {count.size[W]}.", ["counted too", *QUANTITIES], rows),
        Text(
            "A bias is added and not multiplied, so it makes no connection. BatchNorm has two weights a channel and "
            "multiplies every number that it gets by one of them. Pooling, upsampling and ReLU have outputs but no "
            "weights, hence no connections in this sense."
        ),
    ]


def _without_last(count: NetCount) -> list[Block]:
    """What comes out if the last convolution is forgotten."""
    (last, its), total = count.rows()[-1], count.total()
    columns = [(NET, total), (f"{NET} without {last.name}", total.minus(its)), (f"{NET}, {last.name}", its)]
    numbers = [_numbers(name, count, one, count.size) for name, one in columns]
    formulas = map(formula_text, its.at(count.size).three)
    rows = [list(row) for row in zip(QUANTITIES, *numbers, formulas, strict=True)]
    return [
        Text(
            "A frequent slip is to leave out the last convolution, which stands below the four blocks of the figure. "
            "All three numbers then come out smaller, by what this one layer has:"
        ),
        Table(
            f"With and without the last convolution, at {count.size[H]} × {count.size[W]}.",
            ["", "right", "without it", "difference", "formula of the difference"],
            rows,
        ),
    ]


def _other_nets(count: NetCount) -> list[Block]:
    """The two other nets of the figure beside this one."""
    counts = {NET: count, **{name: count_net(name) for name in OTHERS}}
    formulas = [[_called(name), *map(formula_text, one.total().three)] for name, one in counts.items()]
    numbers = [
        [f"{_called(name)}, {size[H]} × {size[W]}", *_numbers(name, one, one.total(), size)]
        for name, one in counts.items()
        for size in (one.size, one.doubled)
    ]
    return [
        Text(
            "The other two nets have transposed convolutions. One of these spreads every input over k² places of each "
            "channel that it puts out, and each such product is a connection, whether or not padding crops it away. "
            "Counted from the outputs it is the same: with stride 2 an output sees k²/4 places of each input channel on "
            "average, and there are four times as many of them as inputs. UNet's concatenations compute nothing; they "
            "show in the channels that later layers take in."
        ),
        Table("The three nets of figure 1, for pictures of H × W.", ["net", *QUANTITIES], formulas),
        Table(f"The same with {_settings(count)}.", ["net", *QUANTITIES], numbers),
        Text(
            "ConvTransposeNet has {weights} times PoolUpsampleNet's weights, {outputs} times its outputs and "
            "{connections} times its connections. Its strided convolutions compute only the places that are kept, a "
            "quarter, where PoolUpsampleNet computes all and pools; its transposed convolutions put out the doubled "
            "picture themselves, which PoolUpsampleNet leaves to upsampling.",
            _ratios(counts["conv-transpose"], count),
        ),
    ]


def _ratios(other: NetCount, count: NetCount) -> dict[str, Number]:
    pairs = zip(other.total().numbers(other.values), count.total().numbers(count.values), strict=True)
    return {
        name: Number(mine / its, f"chromabox.colour.count: {name} of conv-transpose over those of {NET}", ".3g")
        for name, (mine, its) in zip(QUANTITIES, pairs, strict=True)
    }


def _numbers(name: str, count: NetCount, formulas: Count, size: Values) -> list[Number]:
    """A count's three numbers at a size."""
    source = f"chromabox.colour.count: {name} at {size[H]} × {size[W]} with {_settings(count)}"
    numbers = zip(QUANTITIES, formulas.numbers({**count.values, **size}), strict=True)
    return [Number(value, f"{source}: {quantity}", ",d") for quantity, value in numbers]


def _settings(count: NetCount) -> str:
    return ", ".join(f"{symbol} = {value}" for symbol, value in count.values.items() if symbol not in (H, W))


def _called(name: str) -> str:
    return getattr(NETS[name], "__name__", name)


def geometry_section(found: Found, folder: Path) -> Section:
    """B.4: paddings and output paddings for kernels of 4, 5 and any other, from the equations and from real layers."""
    with threads_at(1):  # Layers as small as these only lose by more.
        tries = {(kernel, dilation): searched(kernel, dilation=dilation) for dilation in DILATIONS for kernel in TRIED}
    return Section(
        "B.4",
        "Paddings for other kernels",
        "Which padding must the first two convolutions get, and which padding and output padding the transposed ones, so "
        "that kernels of 4 or 5 keep the shapes of figure 1b?",
        [*_asked(tries), *_equations(), *_rule(tries), *_limits(tries)],
    )


#: What :func:`searched` found for a kernel and a dilation.
Tries: TypeAlias = Mapping[tuple[int, int], tuple[tuple[Pair, ...], ...]]


def _asked(tries: Tries) -> list[Block]:
    return [
        Text(
            "All paddings from none to more than any kernel could use were tried with PyTorch's own layers, together "
            "with every output padding that PyTorch takes. These, and no others, give all shapes of the figure:"
        ),
        Table(
            "Paddings that keep the shapes, with stride 2 and without dilation.",
            ["kernel", "convolutions 1 and 2: padding", "transposed: padding", "transposed: output padding"],
            [[f"{kernel}", *_cells(kernel, tries[kernel, 1])[:3]] for kernel in ASKED],
        ),
    ]


def _equations() -> list[Block]:
    n, p, s, d, o = symbols("n p s d o")
    return [
        Text(
            "Why: of n pixels a layer with kernel k, padding p, stride s, dilation d and output padding o makes as many "
            "as PyTorch's documentation says."
        ),
        Formula("convolution", floor((n + 2 * p - d * (K - 1) - 1) / s) + 1),
        Formula("transposed convolution", s * (n - 1) - 2 * p + d * (K - 1) + o + 1),
        Text(
            "With s = 2 the first is n/2 for every even n exactly if 2p is d(k − 1) or d(k − 1) − 1. One of these two is "
            "even, so there is always one p, and never a second. The other is 2n exactly if o = 2p + 1 − d(k − 1); "
            "PyTorch takes only output paddings from 0 up to below the greater of s and d, which without dilation leaves "
            "0 and 1, and so again one p. Without dilation this is:"
        ),
        Formula("p", floor((K - 1) / 2)),
        Formula("o", Mod(K, 2)),
    ]


def _rule(tries: Tries) -> list[Block]:
    """The assignment's own general answer against what real layers say."""
    rows: list[Sequence[Cell]] = []
    for kernel in TRIED:
        padding, extra = (Number(one, "chromabox.colour.geometry.handout_pair", "d") for one in handout_pair(kernel))
        right = "yes" if tries[kernel, 1][:2] == _as_found(kernel) else "no"
        rows.append([f"{kernel}", padding, extra, *_cells(kernel, tries[kernel, 1])[:3], right])
    wrong = [row[0] for row in rows if row[-1] == "no"]
    verdict = (
        f"It fails for kernels of {', '.join(map(str, wrong))}."
        if wrong
        else "It is right, and the only answer, for all."
    )
    return [
        Text(
            "The general answer that the assignment's own solution gives is padding `(k - 1) // 2` and output padding "
            f"`int(k % 2 == 1)`. Tried for kernels from {TRIED[0]} to {TRIED[-1]}: {verdict}"
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
    """Where the rule ends: the last convolution, dilation, other strides."""
    rows = []
    for dilation in DILATIONS:
        of_kernel = {kernel: tries[kernel, dilation] for kernel in TRIED}
        rule = {kernel: _as_found(kernel) for kernel in TRIED}
        rows.append(
            [
                f"{dilation}",
                _list(kernel for kernel, found in of_kernel.items() if rule[kernel][0][0] in found[0]),
                _list(kernel for kernel, found in of_kernel.items() if rule[kernel][1][0] in found[1]),
                _list(kernel for kernel, found in of_kernel.items() if len(found[1]) > 1),
                _list(kernel for kernel, found in of_kernel.items() if not found[2]),
            ]
        )
    return [
        Text(
            "Its limits. The last convolution has stride 1 and keeps the shape only with 2p = d(k − 1): no p does that "
            "for an even kernel, unless the dilation is even, since padding is the same on both sides. One more pixel on "
            'one side than on the other would do, which is PyTorch\'s `padding="same"`, and what our nets take.'
        ),
        Text(
            "The rule does not contain the dilation. The assignment dilates the ordinary convolutions only; the table "
            "also says what a dilation of the transposed ones would do. Where it exceeds the stride, PyTorch takes output "
            "paddings of 2 and more, and some kernels have a second answer."
        ),
        Table(
            f"Of the kernels from {TRIED[0]} to {TRIED[-1]}, by dilation.",
            [
                *("dilation", "rule right in convolutions 1 and 2", "rule right in transposed ones"),
                *("several answers in transposed ones", "no padding for the last one"),
            ],
            rows,
        ),
        Text(
            "The stride must be 2, since the same layer parameters must turn 32 into 16 and 16 into 8, and back. With "
            + "; with ".join(f"stride {stride} and kernel 3 {_refusals(stride)}" for stride in (1, 3))
            + ". And the widths must be even: an odd one is halved with rounding, and doubling does not bring it back."
        ),
    ]


def _as_found(kernel: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """The rule's answer in the form of :func:`searched`; a convolution has no output padding."""
    padding, extra = handout_pair(kernel)
    return ((padding, 0),), ((padding, extra),)


def _cells(kernel: int, found: tuple[tuple[Pair, ...], ...]) -> list[Cell]:
    """Padding of the strided convolutions, padding and output padding of the transposed ones."""
    strided, transposed, _ = found
    columns = ([one for one, _ in strided], [one for one, _ in transposed], [one for _, one in transposed])
    source = f"chromabox.colour.geometry.searched({kernel})"
    return [Number(one[0], source, "d") if len(one) == 1 else _list(one) for one in columns]


def _refusals(stride: int) -> str:
    return ", and ".join(answer.reason for answer in figure_geometry(3, stride=stride) if answer.reason)


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
