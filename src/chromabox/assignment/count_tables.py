"""Counts of nets and answers about paddings on the terminal: which net is meant, formulas as text, tables."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sympy import Expr, Integer, Poly, Rational

from chromabox.assignment.count import COURSE, SYMBOLS, Counted, H, K, NetCount, Values, W, count_module, count_net
from chromabox.assignment.padding import Answer, figure_geometry
from chromabox.colour.models import NETS
from chromabox.colour.weights.checkpoint import load_trained
from chromabox.detect.models.darknet import DARKNET, DetectorNet
from chromabox.detect.weights.load import KNOWN, is_detector, load_detector
from chromabox.errors import UsageError

QUANTITIES = ("weights", "outputs", "connections")
#: Side of the pictures that a colour net is counted at where none is asked for: CIFAR-10's.
SIDE = 32
COCO_CLASSES = 80


@dataclass(frozen=True)
class Counting:
    """A net's count, and what it is called."""

    title: str
    count: NetCount


def count_named(net: str, *, size: int | None = None, **settings: int | None) -> Counting:
    """Count what a name, a run folder or a file stands for.

    Args:
        net: a colour net (``photo`` is the shipped one), ``yolov3``, ``yolov3-tiny``, a run folder or a checkpoint.
        size: side of the pictures in pixels; 32 if left out, of a detector its own.
        settings: of the colour net's class, where it is not a run's; None: the usual.

    Raises UsageError for what is no net, and for settings that it does not have; ChromaboxError for a broken file.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if net in NETS:
        stored = load_trained().description["settings"] if net == "photo" else {}
        return _colour(net, net, size, {**stored, **given})
    if given:
        raise UsageError(f"{', '.join(given)}: only for colour nets by name ({', '.join(NETS)}); {net} has its own")
    if net in KNOWN:
        with torch.device("meta"):
            return _detector(net, size, DetectorNet(KNOWN[net](COCO_CLASSES, DARKNET), DARKNET))
    path = Path(net)
    if not path.exists():
        raise UsageError(f"net {net!r}: no run folder or file, and none of {', '.join([*NETS, *KNOWN])}")
    if is_detector(path):
        return _detector(net, size, load_detector(path).net)
    description = load_trained(path).description
    return _colour(f"{description['net']} of {net}", description["net"], size, description["settings"])


def _colour(title: str, name: str, size: int | None, settings: dict[str, Any]) -> Counting:
    side = SIDE if size is None else size
    return Counting(title, count_net(name, height=side, width=side, **settings))


def _detector(title: str, size: int | None, net: DetectorNet) -> Counting:
    architecture = net.architecture
    side = architecture.size if size is None else size
    multiple, channels = architecture.multiple, architecture.channels
    return Counting(title, count_module(net, channels=channels, multiple=multiple, height=side, width=side))


def formula_text(expression: Expr | Poly) -> str:
    """A formula in plain characters, as ``k²·(NIC·NF + 4·NF²) + 12·NF``."""
    shared, rest = Poly(expression, *SYMBOLS).terms_gcd()
    groups = [dict(terms) for _, terms in groupby(rest.terms(), key=_power_of_k)]
    if len(groups) > 1:
        terms = [formula_text(Poly(group, *SYMBOLS)) for group in groups]
    else:
        terms = [_product(powers, coefficient) for powers, coefficient in rest.terms()]
    if len(terms) == 1:
        return _product(shared, rest.LC())
    return f"{_product(shared, Integer(1))}·({' + '.join(terms)})" if any(shared) else " + ".join(terms)


def _power_of_k(term: tuple[tuple[int, ...], Rational]) -> int:
    return term[0][SYMBOLS.index(K)]


def _product(powers: Sequence[int], coefficient: Rational) -> str:
    raised = [(symbol, power) for symbol, power in zip(SYMBOLS, powers, strict=True) if power]
    factors = [f"{symbol}" + ("" if power == 1 else str(power).translate(_SUPERSCRIPTS)) for symbol, power in raised]
    number = f"{coefficient.p:,}" + ("" if coefficient.q == 1 else f"/{coefficient.q:,}")
    return "·".join(factors if factors and coefficient == 1 else [number, *factors])


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def what_counts(what: Counted) -> str:
    """What is counted, in words."""
    parts = ["kernels", *(["biases"] if what.biases else []), *(["BatchNorm"] if what.batch_norm else [])]
    left = [*([] if what.biases else ["biases"]), *([] if what.batch_norm else ["BatchNorm"])]
    outputs = "convolutions and linear layers" + (", BatchNorm" if what.batch_norm else "")
    outputs += ", pooling, upsampling and activations" if what.others else ""
    return f"weights of {', '.join(parts)}" + (f" (not {', '.join(left)})" if left else "") + f"; outputs of {outputs}"


def print_counting(counting: Counting, what: Counted = COURSE) -> None:
    """Formulas, the six numbers, and tables of the layers, on the terminal."""
    count, total, settings = counting.count, counting.count.total(what), settings_text(counting.count)
    sizes = (count.size, count.doubled)
    both = ["", *map(size_text, sizes)]
    print(f"{counting.title}: {what_counts(what)}")
    _print("for pictures of H × W", ["", "formula"], _columns(QUANTITIES, map(formula_text, total.three)))
    if settings:
        formulas = (map(formula_text, total.at(size).three) for size in sizes)
        _print("for two sizes", both, _columns(QUANTITIES, *formulas))
    numbers = (_with_commas(total.numbers({**count.values, **size})) for size in sizes)
    _print(settings or "for two sizes", both, _columns(QUANTITIES, *numbers))
    _print("formulas of the layers", ["layer", "", *QUANTITIES], layer_formulas(count, what))
    rows = [[layer.name, layer.kind, *_with_commas(its.numbers(count.values))] for layer, its in count.rows(what)]
    _print(f"the layers at {size_text(count.size)}", ["layer", "", *QUANTITIES], rows)


def settings_text(count: NetCount) -> str:
    """The setting that was asked for but for height and width, as ``NF = 32, k = 3``; empty for a net without any."""
    return ", ".join(f"{symbol} = {value}" for symbol, value in count.values.items() if symbol not in (H, W))


def size_text(size: Values) -> str:
    """Height and width, as ``32 × 32``."""
    return f"{size[H]} × {size[W]}"


def layer_formulas(count: NetCount, what: Counted = COURSE) -> list[list[str]]:
    """Of every layer that is counted its name, its kind and its three formulas."""
    return [[layer.name, layer.kind, *map(formula_text, its.three)] for layer, its in count.rows(what)]


def print_geometry(kernels: Iterable[int], stride: int, dilation: int) -> None:
    """For every kernel a table of the paddings that keep figure 1b's shapes, or why there are none."""
    # All are asked about before the first is printed, so that a wrong one ends in its sentence alone.
    answers = [(kernel, figure_geometry(kernel, stride=stride, dilation=dilation)) for kernel in kernels]
    for kernel, stages in answers:
        rows = [[one.stage.name, steps_text(one), pairs_text(one)] for one in stages]
        title = f"kernel {kernel}, stride {stride}, dilation {dilation}"
        _print(title, ["layers", "shapes", "padding (and output padding)"], rows)


def steps_text(answer: Answer) -> str:
    """The widths of a stage's layers, as ``32 → 16 → 8``."""
    first, *_ = answer.stage.steps
    return " → ".join(map(str, [first[0], *(given for _, given in answer.stage.steps)]))


def pairs_text(answer: Answer) -> str:
    """A stage's paddings, or why there are none."""
    texts = [f"{padding} and {extra}" if answer.stage.transposed else str(padding) for padding, extra in answer.pairs]
    return " or ".join(texts) or f"none: {answer.reason}"


def _columns(*columns: Iterable[str]) -> list[list[str]]:
    return [list(row) for row in zip(*columns, strict=True)]


def _with_commas(numbers: Iterable[int]) -> list[str]:
    return [f"{one:,}" for one in numbers]


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        numbers = all(cell.replace(",", "").isdigit() for cell in cells)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own; without a fixed one rich would fold the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
