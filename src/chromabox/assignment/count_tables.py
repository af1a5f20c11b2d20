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

from chromabox.assignment.count import (
    COURSE_OPTIONS,
    SYMBOLS,
    CountOptions,
    H,
    K,
    ModelCounts,
    Values,
    W,
    count_model,
    count_module,
)
from chromabox.assignment.padding import PaddingOptions, solve_paddings
from chromabox.colour.models import MODELS
from chromabox.colour.weights.checkpoint import load_model
from chromabox.detect.models.darknet import DARKNET, DarknetModel
from chromabox.detect.weights.load import ARCHITECTURES, is_detector, load_detector
from chromabox.errors import UsageError

QUANTITIES = ("weights", "outputs", "connections")
#: Side of the pictures that a colour net is counted at where none is asked for: CIFAR-10's.
DEFAULT_SIZE = 32
NUM_COCO_CLASSES = 80


@dataclass(frozen=True)
class CountReport:
    """A net's count, and what it is called."""

    title: str
    counts: ModelCounts


def count_by_name(model: str, *, size: int | None = None, **settings: int | None) -> CountReport:
    """Count what a name, a run folder or a file stands for.

    Args:
        net: a colour net (``photo`` is the shipped one), ``yolov3``, ``yolov3-tiny``, a run folder or a checkpoint.
        size: side of the pictures in pixels; 32 if left out, of a detector its own.
        settings: of the colour net's class, where it is not a run's; None: the usual.

    Raises UsageError for what is no net, and for settings that it does not have; ChromaboxError for a broken file.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if model in MODELS:
        stored = load_model().metadata["settings"] if model == "photo" else {}
        return _count_colour_model(model, model, size, {**stored, **given})
    if given:
        raise UsageError(f"{', '.join(given)}: only for colour nets by name ({', '.join(MODELS)}); {model} has its own")
    if model in ARCHITECTURES:
        with torch.device("meta"):
            return _count_detector(model, size, DarknetModel(ARCHITECTURES[model](NUM_COCO_CLASSES, DARKNET), DARKNET))
    path = Path(model)
    if not path.exists():
        raise UsageError(f"net {model!r}: no run folder or file, and none of {', '.join([*MODELS, *ARCHITECTURES])}")
    if is_detector(path):
        return _count_detector(model, size, load_detector(path).model)
    description = load_model(path).metadata
    return _count_colour_model(f"{description['net']} of {model}", description["net"], size, description["settings"])


def _count_colour_model(title: str, name: str, size: int | None, settings: dict[str, Any]) -> CountReport:
    side = DEFAULT_SIZE if size is None else size
    return CountReport(title, count_model(name, height=side, width=side, **settings))


def _count_detector(title: str, size: int | None, model: DarknetModel) -> CountReport:
    architecture = model.architecture
    side = architecture.size if size is None else size
    multiple, channels = architecture.max_stride, architecture.channels
    return CountReport(title, count_module(model, channels=channels, multiple=multiple, height=side, width=side))


def format_formula(expression: Expr | Poly) -> str:
    """A formula in plain characters, as ``k²·(NIC·NF + 4·NF²) + 12·NF``."""
    shared, rest = Poly(expression, *SYMBOLS).terms_gcd()
    groups = [dict(terms) for _, terms in groupby(rest.terms(), key=_kernel_power)]
    if len(groups) > 1:
        terms = [format_formula(Poly(group, *SYMBOLS)) for group in groups]
    else:
        terms = [_format_product(powers, coefficient) for powers, coefficient in rest.terms()]
    if len(terms) == 1:
        return _format_product(shared, rest.LC())
    return f"{_format_product(shared, Integer(1))}·({' + '.join(terms)})" if any(shared) else " + ".join(terms)


def _kernel_power(term: tuple[tuple[int, ...], Rational]) -> int:
    return term[0][SYMBOLS.index(K)]


def _format_product(powers: Sequence[int], coefficient: Rational) -> str:
    raised = [(symbol, power) for symbol, power in zip(SYMBOLS, powers, strict=True) if power]
    factors = [f"{symbol}" + ("" if power == 1 else str(power).translate(_SUPERSCRIPTS)) for symbol, power in raised]
    number = f"{coefficient.p:,}" + ("" if coefficient.q == 1 else f"/{coefficient.q:,}")
    return "·".join(factors if factors and coefficient == 1 else [number, *factors])


_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def describe_options(options: CountOptions) -> str:
    """What is counted, in words."""
    parts = ["kernels", *(["biases"] if options.biases else []), *(["BatchNorm"] if options.batch_norm else [])]
    left = [*([] if options.biases else ["biases"]), *([] if options.batch_norm else ["BatchNorm"])]
    outputs = "convolutions and linear layers" + (", BatchNorm" if options.batch_norm else "")
    outputs += ", pooling, upsampling and activations" if options.activations else ""
    return f"weights of {', '.join(parts)}" + (f" (not {', '.join(left)})" if left else "") + f"; outputs of {outputs}"


def print_counts(report: CountReport, options: CountOptions = COURSE_OPTIONS) -> None:
    """Formulas, the six numbers, and tables of the layers, on the terminal."""
    count, total, settings = report.counts, report.counts.total(options), format_settings(report.counts)
    sizes = (count.size, count.doubled_size)
    both = ["", *map(format_size, sizes)]
    print(f"{report.title}: {describe_options(options)}")
    _print_table("for pictures of H × W", ["", "formula"], _as_cells(QUANTITIES, map(format_formula, total.as_tuple)))
    if settings:
        formulas = (map(format_formula, total.subs(size).as_tuple) for size in sizes)
        _print_table("for two sizes", both, _as_cells(QUANTITIES, *formulas))
    numbers = (_format_thousands(total.evaluate({**count.values, **size})) for size in sizes)
    _print_table(settings or "for two sizes", both, _as_cells(QUANTITIES, *numbers))
    _print_table("formulas of the layers", ["layer", "", *QUANTITIES], layer_formulas(count, options))
    rows = [
        [layer.name, layer.kind, *_format_thousands(its.evaluate(count.values))]
        for layer, its in count.counted_layers(options)
    ]
    _print_table(f"the layers at {format_size(count.size)}", ["layer", "", *QUANTITIES], rows)


def format_settings(counts: ModelCounts) -> str:
    """The setting that was asked for but for height and width, as ``NF = 32, k = 3``; empty for a net without any."""
    return ", ".join(f"{symbol} = {value}" for symbol, value in counts.values.items() if symbol not in (H, W))


def format_size(size: Values) -> str:
    """Height and width, as ``32 × 32``."""
    return f"{size[H]} × {size[W]}"


def layer_formulas(counts: ModelCounts, options: CountOptions = COURSE_OPTIONS) -> list[list[str]]:
    """Of every layer that is counted its name, its kind and its three formulas."""
    return [
        [layer.name, layer.kind, *map(format_formula, its.as_tuple)] for layer, its in counts.counted_layers(options)
    ]


def print_paddings(kernels: Iterable[int], stride: int, dilation: int) -> None:
    """For every kernel a table of the paddings that keep figure 1b's shapes, or why there are none."""
    # All are asked about before the first is printed, so that a wrong one ends in its sentence alone.
    answers = [(kernel, solve_paddings(kernel, stride=stride, dilation=dilation)) for kernel in kernels]
    for kernel, stages in answers:
        rows = [[one.group.name, format_widths(one), format_paddings(one)] for one in stages]
        title = f"kernel {kernel}, stride {stride}, dilation {dilation}"
        _print_table(title, ["layers", "shapes", "padding (and output padding)"], rows)


def format_widths(options: PaddingOptions) -> str:
    """The widths of a stage's layers, as ``32 → 16 → 8``."""
    first, *_ = options.group.widths
    return " → ".join(map(str, [first[0], *(given for _, given in options.group.widths)]))


def format_paddings(options: PaddingOptions) -> str:
    """A stage's paddings, or why there are none."""
    texts = [
        f"{padding} and {extra}" if options.group.transposed else str(padding) for padding, extra in options.paddings
    ]
    return " or ".join(texts) or f"none: {options.reason}"


def _as_cells(*columns: Iterable[str]) -> list[list[str]]:
    return [list(row) for row in zip(*columns, strict=True)]


def _format_thousands(numbers: Iterable[int]) -> list[str]:
    return [f"{one:,}" for one in numbers]


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title)
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        numbers = all(cell.replace(",", "").isdigit() for cell in cells)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A pipe has no width of its own; without a fixed one rich would fold the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
