"""Tables of counts and paddings for the terminal, with formulas as plain text."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from sympy import Expr, Integer, Poly, Rational

from chromabox.assignment.count import (
    COURSE_OPTIONS,
    SYMBOLS,
    CountOptions,
    H,
    ModelCounts,
    Values,
    W,
    count_model,
    count_module,
)
from chromabox.assignment.padding import LAYER_GROUPS, search_paddings
from chromabox.colour.models import MODELS
from chromabox.colour.weights.checkpoint import load_model
from chromabox.detect.models.architecture import DARKNET
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights.load import ARCHITECTURES, is_detector, load_detector
from chromabox.errors import UsageError
from chromabox.report.tables import print_grid

QUANTITIES = ("weights", "outputs", "connections")
#: Default image side length in pixels for colourisation models, which is that of CIFAR-10 images.
DEFAULT_SIZE = 32
NUM_COCO_CLASSES = 80


def count_by_name(model: str, *, size: int | None = None, **settings: int | None) -> ModelCounts:
    """Count the weights, outputs and connections of a model given by name, run folder or file.

    Args:
        model: Name of a colourisation model (``photo`` is the bundled model), ``yolov3``, ``yolov3-tiny``, a run folder
            or a checkpoint.
        size: Side length of the images in pixels. The default is 32, or the input size of a detector.
        settings: Arguments for the class of a colourisation model given by name. None selects the default value.

    Raise UsageError for an unknown model and for settings that the model does not accept, and ChromaboxError for a
    corrupt file.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    title, name, path = model, model, Path(model)
    detector: DarknetModel | None = None
    if model in MODELS:
        given = {**(load_model().metadata["settings"] if model == "photo" else {}), **given}
    elif given:
        raise UsageError(
            f"{', '.join(given)}: only for colourisation models given by name ({', '.join(MODELS)}); {model} has fixed "
            "settings"
        )
    elif model in ARCHITECTURES:
        with torch.device("meta"):
            detector = DarknetModel(ARCHITECTURES[model](NUM_COCO_CLASSES, DARKNET), DARKNET)
    elif not path.exists():
        names = ", ".join([*MODELS, *ARCHITECTURES])
        raise UsageError(f"model {model!r}: no such run folder or file; expected a path or one of {names}")
    elif is_detector(path):
        detector = load_detector(path).model
    else:
        metadata = load_model(path).metadata
        title, name, given = f"{metadata['net']} of {model}", metadata["net"], metadata["settings"]
    if detector is None:
        side = DEFAULT_SIZE if size is None else size
        counts = count_model(name, height=side, width=side, **given)
    else:
        layout = detector.architecture
        side = layout.size if size is None else size
        counts = count_module(detector, channels=layout.channels, multiple=layout.max_stride, height=side, width=side)
    return replace(counts, title=title)


def format_formula(expression: Expr | Poly) -> str:
    """Return a formula as plain text, for example ``k²·(NIC·NF + 4·NF²) + 12·NF``."""
    common_powers, rest = Poly(expression, *SYMBOLS).terms_gcd()
    # Terms are grouped by their power of k, the first symbol.
    groups = [dict(terms) for _, terms in groupby(rest.terms(), key=lambda term: term[0][0])]
    if len(groups) > 1:
        terms = [format_formula(Poly(group, *SYMBOLS)) for group in groups]
    else:
        terms = [_format_product(powers, coefficient) for powers, coefficient in rest.terms()]
    if len(terms) == 1:
        return _format_product(common_powers, rest.LC())
    total = " + ".join(terms)
    return f"{_format_product(common_powers, Integer(1))}·({total})" if any(common_powers) else total


def _format_product(powers: Sequence[int], coefficient: Rational) -> str:
    factors = [
        f"{symbol}" + ("" if power == 1 else str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")))
        for symbol, power in zip(SYMBOLS, powers, strict=True)
        if power
    ]
    number = f"{coefficient.p:,}" + ("" if coefficient.q == 1 else f"/{coefficient.q:,}")
    return "·".join(factors if factors and coefficient == 1 else [number, *factors])


def describe_options(options: CountOptions) -> str:
    """Return a sentence fragment that lists the counted quantities."""
    names = [("biases", options.biases), ("BatchNorm", options.batch_norm)]
    counted = ", ".join(["kernels", *(name for name, is_counted in names if is_counted)])
    omitted = ", ".join(name for name, is_counted in names if not is_counted)
    outputs = "convolutions and linear layers" + (", BatchNorm" if options.batch_norm else "")
    outputs += ", pooling, upsampling and activations" if options.activations else ""
    return f"weights of {counted}" + (f" (not {omitted})" if omitted else "") + f"; outputs of {outputs}"


def print_counts(counts: ModelCounts, options: CountOptions = COURSE_OPTIONS) -> None:
    """Print tables of the formulas, of the numbers for two image sizes, and of the layers."""
    total, settings, sizes = counts.total(options), format_settings(counts), (counts.size, counts.doubled_size)
    size_columns, layer_columns = ["", *map(format_size, sizes)], ["layer", "", *QUANTITIES]
    print(f"{counts.title}: {describe_options(options)}")
    print_grid("for images of H × W", ["", "formula"], list(zip(QUANTITIES, map(format_formula, total), strict=True)))
    if settings:
        formulas = [map(format_formula, total.subs(size)) for size in sizes]
        print_grid("for two sizes", size_columns, list(zip(QUANTITIES, *formulas, strict=True)))
    numbers = [[f"{number:,}" for number in total.evaluate({**counts.values, **size})] for size in sizes]
    print_grid(settings or "for two sizes", size_columns, list(zip(QUANTITIES, *numbers, strict=True)))
    print_grid("formulas of the layers", layer_columns, layer_formulas(counts, options))
    rows = [
        [layer.name, layer.kind, *(f"{number:,}" for number in layer_counts.evaluate(counts.values))]
        for layer, layer_counts in counts.counted_layers(options)
    ]
    print_grid(f"layers for images of {format_size(counts.size)}", layer_columns, rows)


def format_settings(counts: ModelCounts) -> str:
    """Return the requested values except height and width as text, for example ``NF = 32, k = 3``."""
    return ", ".join(f"{symbol} = {value}" for symbol, value in counts.values.items() if symbol not in (H, W))


def format_size(size: Values) -> str:
    """Return height and width as text, for example ``32 × 32``."""
    return f"{size[H]} × {size[W]}"


def layer_formulas(counts: ModelCounts, options: CountOptions = COURSE_OPTIONS) -> list[list[str]]:
    """Return the name, the kind and the three formulas of every counted layer."""
    return [
        [layer.name, layer.kind, *map(format_formula, layer_counts)]
        for layer, layer_counts in counts.counted_layers(options)
    ]


def print_paddings(kernels: Iterable[int], stride: int, dilation: int) -> None:
    """Print, for every kernel, a table of the paddings that preserve the shapes in figure 1b."""
    # The search precedes printing, so that nothing is printed if a kernel is invalid.
    solutions = [(kernel, search_paddings(kernel, stride=stride, dilation=dilation)) for kernel in kernels]
    for kernel, groups in solutions:
        rows = []
        for group, pairs in zip(LAYER_GROUPS, groups, strict=True):
            widths = " → ".join(map(str, [group.widths[0][0], *(out_width for _, out_width in group.widths)]))
            texts = [f"{padding} and {extra}" if group.transposed else f"{padding}" for padding, extra in pairs]
            rows.append([group.name, widths, " or ".join(texts) or "no padding keeps the shapes"])
        title = f"kernel {kernel}, stride {stride}, dilation {dilation}"
        print_grid(title, ["layers", "shapes", "padding (and output padding)"], rows)
