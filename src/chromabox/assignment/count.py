"""Weights, outputs and connections of a model, as formulas and as numbers (part A.3 of the assignment).

The model is run in several small configurations, and the dimensions of every kernel, output and feature map are
recorded. Every dimension is an affine function of NIC (input channels), NF (filters), NC (colours), k (kernel size), H
and W (height and width). The coefficients of these functions are computed exactly and verified in two further
configurations, including the requested one. The numbers of weights, outputs and connections of a layer are products of
such dimensions, and the numbers of a model are sums over its layers.

Definitions (the defaults are those of the course):

* *Weights* are the elements of the kernels. Biases and BatchNorm's two parameters per channel are optional.
* *Outputs* are the elements that convolutions and linear layers output for one image. The outputs of BatchNorm and the
  outputs of pooling, upsampling and activation layers are optional.
* A *connection* is a product of an input and a weight, including products with padding zeros. A convolution has
  k²·C_in/groups connections for each output. A transposed convolution multiplies every input by k²·C_out/groups
  weights, including products that its padding crops. On average, it has k²·C_in/(groups·stride²) connections for
  each output. Adding a bias is not a connection. BatchNorm has one connection for each output. Pooling, upsampling and
  activations have no weights and therefore no connections.

The model runs on PyTorch's "meta" tensors, which have shapes but no data, so that nothing is computed.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import torch
from sympy import Expr, Integer, Poly, Rational, Symbol, collect, prod, symbols
from torch import Tensor, nn

from chromabox.colour.models import MODELS, build_model
from chromabox.errors import ChromaboxError, UsageError

#: Dimensions whose product is a quantity, such as the number of weights.
Dims: TypeAlias = tuple[int, ...]
ZERO_DIMS: Dims = (0,)
LayerCategory: TypeAlias = Literal["weighted", "norm", "other"]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
#: Name, class name and category of a called leaf module, and the dimensions whose products are the numbers of
#: its weights, biases, outputs for one image, and connections.
LayerCall: TypeAlias = tuple[str, str, LayerCategory, tuple[Dims, Dims, Dims, Dims]]


def _trace_layers(model: nn.Module, channels: int, height: int, width: int) -> list[LayerCall]:
    """Return the calls of all leaf modules except ``nn.Identity``, in execution order, for images of the given size.

    A copy of the model runs in training mode, in which all models of this package run a single forward pass. Reused
    weights are counted once. Raise ChromaboxError if the model has unused weights or weights that do not belong to a
    convolution, a linear layer or BatchNorm.
    """
    # deepcopy takes the copies of all tensors from this dictionary.
    memo: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    model = deepcopy(model, memo).train()
    names = {layer: name for name, layer in model.named_modules() if not list(layer.children())}
    runs: list[tuple[nn.Module, tuple[Tensor, ...], Any]] = []
    for layer in names:
        if not isinstance(layer, nn.Identity):
            layer.register_forward_hook(lambda layer, inputs, output: runs.append((layer, inputs, output)))
    with torch.no_grad():
        # In training mode, BatchNorm requires more than one value per channel, and therefore two images.
        model(torch.empty(2, channels, height, width, device="meta"))

    counted_ids: set[int] = set()
    calls: list[LayerCall] = []
    for layer, (first, *_), output in runs:
        kind = type(layer).__name__
        category: LayerCategory = "other"
        name = names[layer] or kind
        if not isinstance(output, Tensor):
            raise ChromaboxError(f"{name}: returns a {type(output).__name__}; expected a layer that returns a tensor")
        outputs = tuple(output.shape[1:])
        weights = biases = connections = ZERO_DIMS
        if isinstance(layer, _WEIGHTED + _BATCH_NORM):
            weights, biases = (
                ZERO_DIMS if one is None or id(one) in counted_ids else tuple(one.shape)
                for one in (layer.weight, layer.bias)
            )
            counted_ids |= {id(layer.weight), id(layer.bias)}
        if isinstance(layer, _BATCH_NORM):
            category, connections = "norm", outputs if layer.affine else ZERO_DIMS
        elif isinstance(layer, _WEIGHTED):
            # Every weight is used once per position of the output or, in transposed convolutions, of the input.
            positions = output.shape[1:-1] if isinstance(layer, nn.Linear) else output.shape[2:]
            positions = first.shape[2:] if isinstance(layer, _TRANSPOSED) else positions
            category, connections = "weighted", (*layer.weight.shape, *positions)
        calls.append((name, kind, category, (weights, biases, outputs, connections)))
    for name, parameter in model.named_parameters():
        if id(parameter) not in counted_ids:
            raise ChromaboxError(f"{name}: not used by a convolution, linear layer or BatchNorm; it cannot be counted")
    return calls


NIC, NF, NC, K, H, W = symbols("NIC NF NC k H W", positive=True, integer=True)
#: All symbols, in the order in which they appear in a product.
SYMBOLS: tuple[Symbol, ...] = (K, H, W, NIC, NF, NC)
#: Model settings that appear in formulas.
SETTING_SYMBOLS: Mapping[str, Symbol] = {"num_in_channels": NIC, "num_filters": NF, "num_colours": NC, "kernel": K}
#: Maximum value of a setting. With larger values, the number of elements of a tensor could exceed 64 bits.
MAX_VALUE = 100_000
Values: TypeAlias = Mapping[Symbol, int]


@dataclass(frozen=True)
class CountOptions:
    """What to count in addition to the kernels, outputs and connections of convolutions and linear layers."""

    biases: bool = False
    """Count biases as weights."""
    batch_norm: bool = False
    """Count BatchNorm, which has two weights per channel and one connection for each output."""
    activations: bool = False
    """Count the outputs of pooling, upsampling and activation layers."""


#: Counting rules of the course.
COURSE_OPTIONS = CountOptions()


class Counts(NamedTuple):
    """Formulas of the numbers of weights, outputs and connections."""

    weights: Expr
    outputs: Expr
    connections: Expr

    def subs(self, values: Values) -> "Counts":
        """Return the formulas with values substituted for some or all symbols."""
        return Counts(*(simplify_counts(formula.subs(values)) for formula in self))

    def evaluate(self, values: Values) -> tuple[int, int, int]:
        """Return the numbers of weights, outputs and connections for given values of all symbols."""
        weights, outputs, connections = (int(formula.subs(values)) for formula in self)
        return weights, outputs, connections


class LayerCounts(NamedTuple):
    """Formulas for one call of a leaf module. Weights that an earlier call uses are not counted again."""

    name: str
    kind: str
    """Class name of the module."""
    category: LayerCategory
    weights: Expr
    biases: Expr
    outputs: Expr
    connections: Expr


@dataclass(frozen=True)
class ModelCounts:
    """Counts of all layers of a model, in execution order, and the requested values of the symbols in the formulas."""

    layers: tuple[LayerCounts, ...]
    values: Values
    """Requested values of all symbols that can occur in the formulas."""
    title: str = ""
    """Name of the model, and its file if it has one."""

    @property
    def size(self) -> Values:
        """Requested height and width."""
        return {H: self.values[H], W: self.values[W]}

    @property
    def doubled_size(self) -> Values:
        """Twice the requested height and width."""
        return {H: 2 * self.values[H], W: 2 * self.values[W]}

    def counted_layers(self, options: CountOptions = COURSE_OPTIONS) -> list[tuple[LayerCounts, Counts]]:
        """Return the layers that are counted with these options, each with its contribution to the total."""
        is_counted = {"weighted": True, "norm": options.batch_norm, "other": options.activations}
        layers = []
        for layer in self.layers:
            if is_counted[layer.category]:
                biases = layer.biases if options.biases or layer.category == "norm" else Integer(0)
                layers.append((layer, Counts(layer.weights + biases, layer.outputs, layer.connections)))
        return layers

    def total(self, options: CountOptions = COURSE_OPTIONS) -> Counts:
        """Return the sums over all counted layers."""
        columns = zip([Integer(0)] * 3, *(counts for _, counts in self.counted_layers(options)), strict=True)
        return Counts(*(simplify_counts(sum(column)) for column in columns))


def simplify_counts(expression: Expr) -> Expr:
    """Factor out the common factors of a sum of products, and group the remaining terms by powers of k."""
    powers, rest = Poly(expression, *SYMBOLS).terms_gcd()
    factor = prod(symbol**power for symbol, power in zip(SYMBOLS, powers, strict=True))
    return factor * collect(rest.as_expr(), K)


def count_model(name: str, *, height: int = 32, width: int = 32, **settings: Any) -> ModelCounts:
    """Count a colourisation model. The formulas contain H, W and the symbols of the settings that the model has.

    Args:
        name: Name of the model on the command line.
        height, width: Size of the images in pixels. Both are multiples of the model's ``size_divisor``.
        settings: Arguments of the model's class.

    Raise UsageError for an unknown model and for invalid settings or sizes.
    """
    for key, value in settings.items():
        if key in SETTING_SYMBOLS and not 1 <= value <= MAX_VALUE:
            raise UsageError(f"{key} is {value}: expected 1 to {MAX_VALUE:,}")

    def build(changed: Values) -> nn.Module:
        varied = {key: changed[symbol] for key, symbol in SETTING_SYMBOLS.items() if symbol in changed}
        with torch.device("meta"):
            return build_model(name, **{**settings, **varied})

    multiple = cast(int, build({}).size_divisor)
    defaults = {key: parameter.default for key, parameter in inspect.signature(MODELS[name]).parameters.items()}
    values: dict[Symbol, int] = {}
    for key, symbol in SETTING_SYMBOLS.items():
        # Coefficients are computed from the values 1 and 2. A setting for which one of these values is invalid remains
        # a constant.
        with contextlib.suppress(UsageError):
            if key in defaults:
                build({symbol: 1})
                build({symbol: 2})
                values[symbol] = settings.get(key, defaults[key])
    return _fit_counts(build, {**values, H: height, W: width}, channels=1, multiple=multiple)


def count_module(model: nn.Module, *, channels: int, multiple: int, height: int, width: int) -> ModelCounts:
    """Count any module. The formulas contain H and W.

    Args:
        model: Module with inputs [batch, channels, height, width]; it is not modified.
        channels: Number of channels of the images.
        multiple: For heights and widths that are multiples of this number, the output size of every layer is an affine
            function of height and width.
        height, width: Size of the images in pixels. Both are multiples of ``multiple``.

    Raise UsageError for an invalid size. Raise ChromaboxError for a model with weights outside convolutions, linear
    layers and BatchNorm, with unused weights, or with dimensions that are not affine functions of H and W.
    """
    return _fit_counts(lambda _: model, {H: height, W: width}, channels=channels, multiple=multiple)


def _fit_counts(build: Callable[[Values], nn.Module], values: Values, *, channels: int, multiple: int) -> ModelCounts:
    """Trace the model in several configurations and compute a formula for every quantity of every layer."""
    if any(not 1 <= values[side] <= MAX_VALUE or values[side] % multiple for side in (H, W)):
        raise UsageError(f"size is {values[W]}×{values[H]}: expected multiples of {multiple} up to {MAX_VALUE:,}")
    # Coefficients are computed from the smallest configuration and the configurations in which one symbol is doubled.
    # The formulas are verified in the last two configurations. One has all symbols changed (k is limited, because large
    # kernels are invalid), and the other is the requested one.
    smallest = {symbol: multiple if symbol in (H, W) else 1 for symbol in values}
    mixed = {symbol: (index + 3) * value for index, (symbol, value) in enumerate(smallest.items())}
    mixed |= {K: max(2, values[K])} if K in values else {}
    doubled = [{**smallest, symbol: 2 * value} for symbol, value in smallest.items()]
    configurations: list[Values] = [smallest, *doubled, mixed, values]
    traces = [_trace_layers(build(point), point.get(NIC, channels), point[H], point[W]) for point in configurations]
    if len({tuple(call[:2] for call in calls) for calls in traces}) > 1:
        raise ChromaboxError(
            "the model runs different layers in different configurations; expected the same layers in all of them"
        )

    @cache
    def fit(name: str, sides: Dims) -> Expr:
        """Return the affine function of the symbols that takes the values ``sides`` in the tested configurations."""
        formula = Integer(sides[0])
        for symbol, side in zip(values, sides[1:-2], strict=True):
            formula += Rational(side - sides[0], smallest[symbol]) * (symbol - smallest[symbol])
        if any(formula.subs(point) != side for point, side in zip(configurations[-2:], sides[-2:], strict=True)):
            raise ChromaboxError(
                f"{name}: a dimension is {', '.join(map(str, sides))} in the tested configurations; expected an "
                "affine function of the symbols"
            )
        return formula

    layers = []
    for calls in zip(*traces, strict=True):
        name, kind, category, _ = calls[0]
        quantities = zip(*(dims for *_, dims in calls), strict=True)
        factors = ([fit(name, sides) for sides in zip(*quantity, strict=True)] for quantity in quantities)
        layers.append(LayerCounts(name, kind, category, *(prod(group, start=Integer(1)) for group in factors)))
    return ModelCounts(tuple(layers), dict(values))
