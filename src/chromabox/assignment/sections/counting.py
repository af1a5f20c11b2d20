"""Questions A.3 and B.4, which need no runs: the size of the first model, and paddings that preserve the shapes."""

from pathlib import Path

from sympy import Mod, Mul, Rational, floor, symbols

from chromabox.assignment.count import Counts, K, ModelCounts, Values, count_model
from chromabox.assignment.count_tables import QUANTITIES, format_settings, format_size, layer_formulas
from chromabox.assignment.padding import assignment_rule, search_paddings
from chromabox.assignment.sections.numbers import answers, int_number
from chromabox.engine.autotune import num_threads
from chromabox.experiments.runs import RunIndex
from chromabox.report.document.model import Block, Cell, Formula, Number, Table, Text

MODEL = "pool-upsample"
#: Kernel sizes in the question, and the kernel sizes for which the general rule is tested.
QUESTION_KERNELS = ("4", "5")
TESTED_KERNELS = range(1, 10)


@answers(
    "A.3",
    "Weights, outputs and connections",
    "How many weights, outputs and connections does PoolUpsampleNet have, as functions of NIC, NF and NC? How many are "
    "there for images of twice the height and width? BatchNorm is not counted.",
)
def count_section(run_index: RunIndex, folder: Path) -> list[Block]:
    """Answer A.3: weights, outputs and connections as formulas and numbers, for 32 × 32 and 64 × 64 pixels."""
    count = count_model(MODEL)
    total, sizes = count.total(), (count.size, count.doubled_size)
    single, double = (_count_numbers(MODEL, count, total, size) for size in sizes)
    ratios = [
        Number(large.value / small.value, f"{large.source}, divided by the number at {format_size(count.size)}", ".4g")
        for small, large in zip(single, double, strict=True)
    ]
    return [
        Text(
            f"`chromabox count {MODEL}` builds the model at several small sizes, runs it on meta tensors, and solves "
            "for the shape of every kernel and output in terms of NIC, NF, NC, the kernel size k, the image height H "
            "and the image width W. Two additional sizes verify the solution."
        ),
        Text(
            "Weights are the elements of the kernels. Outputs are the elements that the convolutions output for one "
            "image. A connection is a product of an input and a weight: each output of a convolution has k² "
            "connections for every input channel. Products with padding zeros are included. Biases, BatchNorm, and the "
            "outputs of pooling, upsampling and ReLU are not counted."
        ),
        *(Formula(name, formula) for name, formula in zip(QUANTITIES, total, strict=True)),
        Text("For the images of the assignment, and for images of twice their height and width, the numbers are:"),
        *(
            Formula(f"{name} at {format_size(size)}", formula)
            for size in sizes
            for name, formula in zip(QUANTITIES, total.subs(size), strict=True)
        ),
        Table(
            f"The six values with {format_settings(count)}.",
            ["", *map(format_size, sizes), "ratio"],
            list(zip(QUANTITIES, single, double, ratios, strict=True)),
        ),
        Text(
            "Doubling the height and width multiplies the weights by {weights}, the outputs by {outputs} and the "
            "connections by {connections}. A convolution uses the same kernel at every position, so the number of "
            "weights does not depend on the image size. The number of positions in every layer is proportional to the "
            "image area, and so are the numbers of outputs and connections.",
            dict(zip(QUANTITIES, ratios, strict=True)),
        ),
        Table(
            "Formulas for the individual convolutions, for images of H × W pixels.",
            ["layer", *QUANTITIES],
            [[name, *quantities] for name, _, *quantities in layer_formulas(count)],
        ),
        Table(
            f"Numbers for the individual convolutions at {format_size(count.size)} with {format_settings(count)}.",
            ["layer", *QUANTITIES],
            [
                [layer.name, *_count_numbers(f"{MODEL}, {layer.name}", count, layer_counts, count.size)]
                for layer, layer_counts in count.counted_layers()
            ],
        ),
    ]


def _count_numbers(name: str, model_counts: ModelCounts, formulas: Counts, size: Values) -> list[Number]:
    """Return the numbers of weights, outputs and connections for an image size."""
    source = f"chromabox.assignment.count: {name} at {format_size(size)} with {format_settings(model_counts)}"
    numbers = zip(QUANTITIES, formulas.evaluate({**model_counts.values, **size}), strict=True)
    return [int_number(value, f"{source}: {quantity}") for quantity, value in numbers]


@answers(
    "B.4",
    "Paddings for other kernel sizes",
    "Which padding do the first two convolutions need, and which padding and output padding do the transposed "
    "convolutions need, so that kernel sizes 4 and 5 preserve the shapes in figure 1b?",
)
def padding_section(run_index: RunIndex, folder: Path) -> list[Block]:
    """Answer B.4: paddings and output paddings for kernel sizes 1 to 9, found by running the layers."""
    columns = ["kernel size", "convolutions 1 and 2: padding", "transposed: padding", "transposed: output padding"]
    rows: list[list[Cell]] = []
    with num_threads(1):  # More threads slow such small layers down.
        for kernel in TESTED_KERNELS:
            [(padding, _)], [(transposed, output_padding)], *_ = search_paddings(kernel)
            needed, rule = (padding, transposed, output_padding), assignment_rule(kernel)
            module = "chromabox.assignment.padding"
            numbers = [int_number(value, f"{module}.assignment_rule({kernel})") for value in rule]
            numbers += [int_number(value, f"{module}.search_paddings({kernel})") for value in needed]
            rows.append([f"{kernel}", *numbers, "yes" if needed == (rule[0], *rule) else "no"])
    wrong = ", ".join(str(row[0]) for row in rows if row[-1] == "no")
    n, p, s, d, o = symbols("n p s d o")
    return [
        Text(
            "All paddings that could preserve the shapes were tested with PyTorch layers, together with all output "
            "paddings that PyTorch accepts. Only the following values produce all shapes in the figure:"
        ),
        Table(
            "Paddings that preserve the shapes, with stride 2 and without dilation.",
            columns,
            [[row[0], *row[3:6]] for row in rows if row[0] in QUESTION_KERNELS],
        ),
        Text(
            "According to the PyTorch documentation, a layer with kernel size k, padding p, stride s, dilation d and "
            "output padding o maps n pixels to the following number of pixels:"
        ),
        Formula("convolution", floor((n + 2 * p - d * (K - 1) - 1) / s) + 1),
        Formula("transposed convolution", s * (n - 1) - 2 * p + d * (K - 1) + o + 1),
        Text(
            "With s = 2, the first number is n/2 for every even n if and only if 2p is d(k − 1) or d(k − 1) − 1. "
            "Exactly one of these two values is even, so there is exactly one p. The second number is 2n if and only "
            "if o = 2p + 1 − d(k − 1). PyTorch accepts only output paddings below the larger of s and d. Without "
            "dilation, these are 0 and 1, so there is again exactly one p, and both types of layers need:"
        ),
        Formula("p", floor(Mul(Rational(1, 2), K - 1, evaluate=False))),
        Formula("o", Mod(K, 2)),
        Text(
            "The general solution of the assignment is padding `(k - 1) // 2` and output padding `int(k % 2 == 1)`. It "
            "was tested for kernel sizes from {first} to {last}: {verdict}.",
            first=f"{TESTED_KERNELS[0]}",
            last=f"{TESTED_KERNELS[-1]}",
            verdict=f"it is not the only solution for {wrong}" if wrong else "it is the only solution for all of them",
        ),
        Table(
            "The general rule compared with the paddings that the layers need, with stride 2 and without dilation.",
            [columns[0], "rule: padding", "rule: output padding", *columns[1:], "rule is correct"],
            rows,
        ),
        Text(
            "Limits of the rule: the last convolution has stride 1 and keeps the shape only if 2p = k − 1, which no p "
            "satisfies for an even kernel size, because the padding is equal on both sides. PyTorch's "
            '`padding="same"`, which our models use, adds the extra pixel on one side. The rule ignores dilation. '
            "Strides other than 2 cannot produce the shapes, because layers with the same padding map 32 pixels to 16 "
            "and 16 pixels to 8, and back. The height and width must be even: an odd size is rounded when it is "
            "halved, so the size after doubling differs from the original by one pixel."
        ),
    ]
