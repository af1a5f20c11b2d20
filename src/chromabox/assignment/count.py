"""Weights, outputs and connections of a model, as formulas and as numbers (part A.3 of the assignment).

The model is run in several small configurations, and the dimensions of every kernel, output and feature map are
recorded. Every dimension is an affine function of NIC, NF, NC, k, H and W. Its coefficients are solved for exactly and
verified in two further configurations, including the requested one. The weights, outputs and connections of a layer
are products of such dimensions; those of a model are sums over its layers.

Conventions (the defaults are those of the course):

* *Weights* are the elements of the kernels. Biases and BatchNorm's two parameters per channel are optional.
* *Outputs* are the elements that convolutions and linear layers output for one image. Those of BatchNorm, and of
  pooling, upsampling and activation layers, are optional.
* A *connection* is a product of an input and a weight. A convolution has k²·C_in/groups connections for each output;
  products with padding zeros count too. A transposed convolution multiplies every input by k²·C_out/groups
  weights; products cropped by the padding count too. Counted per output, the total is the same: with stride 2, an
  output receives contributions from k²/4 input positions on average, and there are four times as many outputs as
  inputs. A bias is added, not multiplied, and is not a connection. BatchNorm has one connection for each output.
  Pooling, upsampling and activations have no weights and therefore no connections.

The model runs on PyTorch's "meta" tensors, which have shapes but no data, so that nothing is computed.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeAlias, cast

import torch
from sympy import Expr, Integer, Poly, Rational, Symbol, collect, prod, symbols
from torch import Tensor, nn
from torch.func import functional_call

from chromabox.colour.models import MODELS, build_model
from chromabox.errors import ChromaboxError, UsageError

#: Factors of a quantity: dimensions of kernels and feature maps, numbers of channels.
Dims: TypeAlias = tuple[int, ...]
ZERO_DIMS: Dims = (0,)
LayerCategory: TypeAlias = Literal["weighted", "norm", "other"]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


#: Name, class name and category of a called leaf module, and the dimensions whose products are its weights, biases,
#: outputs for one image, and connections.
LayerCall: TypeAlias = tuple[str, str, LayerCategory, tuple[Dims, Dims, Dims, Dims]]


def _trace_layers(model: nn.Module, channels: int, height: int, width: int) -> list[LayerCall]:
    """Return the calls of all leaf modules except identities, in execution order, for images [channels, height, width].

    The model runs in training mode, in which all models of this package run a single forward pass; the previous modes
    are restored. Reused weights are counted once. Raise ChromaboxError if the model has weights whose connections are
    unknown: weights of other kinds of layers, weights outside layers, and unused weights.
    """
    meta_tensors = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    counted_ids: set[int] = set()
    calls: list[LayerCall] = []
    modes = [(layer, layer.training) for layer in model.modules()]

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        calls.append(_layer_call(name, layer, inputs, output, counted_ids))

    hooks = [
        layer.register_forward_hook(partial(record, name or type(layer).__name__))
        for name, layer in model.named_modules()
        if not list(layer.children()) and not isinstance(layer, nn.Identity)
    ]
    try:
        with torch.no_grad():
            # Two images, because BatchNorm cannot train on a single value per channel.
            functional_call(model.train(), meta_tensors, (torch.empty(2, channels, height, width, device="meta"),))
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in modes:
            layer.training = mode
    for name, _ in model.named_parameters():
        if id(meta_tensors[name]) not in counted_ids:
            raise ChromaboxError(
                f"{name}: not used by a convolution, linear layer or BatchNorm; only weights of these can be counted"
            )
    return calls


def _layer_call(
    name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any, counted_ids: set[int]
) -> LayerCall:
    """Return the quantities of a layer. Weights and biases count once: their ids are added to ``counted_ids``."""
    if not isinstance(output, Tensor):
        raise ChromaboxError(
            f"{name}: returns a {type(output).__name__}; only layers that return a single tensor can be counted"
        )
    kind, outputs = type(layer).__name__, tuple(output.shape[1:])
    if not isinstance(layer, _WEIGHTED + _BATCH_NORM):
        return name, kind, "other", (ZERO_DIMS, ZERO_DIMS, outputs, ZERO_DIMS)

    def uncounted(parameter: Tensor | None) -> Dims:
        if parameter is None or id(parameter) in counted_ids:
            return ZERO_DIMS
        counted_ids.add(id(parameter))
        return tuple(parameter.shape)

    weights, biases = uncounted(layer.weight), uncounted(layer.bias)
    if isinstance(layer, _BATCH_NORM):
        return name, kind, "norm", (weights, biases, outputs, outputs if layer.affine else ZERO_DIMS)
    # Every weight is used at every position: input positions for transposed convolutions, otherwise output positions.
    positions = output.shape[1:-1] if isinstance(layer, nn.Linear) else output.shape[2:]
    positions = inputs[0].shape[2:] if isinstance(layer, _TRANSPOSED) else positions
    return name, kind, "weighted", (weights, biases, outputs, (*layer.weight.shape, *positions))


NIC, NF, NC, K, H, W = symbols("NIC NF NC k H W", positive=True, integer=True)

#: Order of the factors in a product.
SYMBOLS: tuple[Symbol, ...] = (K, H, W, NIC, NF, NC)

#: Model settings that appear in formulas.
SETTING_SYMBOLS: Mapping[str, Symbol] = {"num_in_channels": NIC, "num_filters": NF, "num_colours": NC, "kernel": K}

#: Maximum value of a setting; the counts of larger models would overflow the integers used for tensor shapes.
MAX_VALUE = 100_000
Values: TypeAlias = Mapping[Symbol, int]


@dataclass(frozen=True)
class CountOptions:
    """Optional quantities, counted in addition to kernels and the outputs and connections of weighted layers."""

    biases: bool = False
    """Count biases as weights."""
    batch_norm: bool = False
    """Count BatchNorm: two weights per channel, its outputs, and one connection for each output."""
    activations: bool = False
    """Count the outputs of pooling, upsampling and activation layers."""


#: Counting rules of the course.
COURSE_OPTIONS = CountOptions()


@dataclass(frozen=True)
class Counts:
    """Three formulas; integers once every symbol has a value."""

    weights: Expr
    outputs: Expr
    connections: Expr

    @property
    def as_tuple(self) -> tuple[Expr, Expr, Expr]:
        """Weights, outputs, connections."""
        return self.weights, self.outputs, self.connections

    def subs(self, values: Values) -> "Counts":
        """Return the formulas with values substituted for some or all symbols."""
        return Counts(*(simplify_counts(formula.subs(values)) for formula in self.as_tuple))

    def evaluate(self, values: Values) -> tuple[int, int, int]:
        """Return weights, outputs and connections as numbers, given values for all symbols."""
        weights, outputs, connections = (int(formula.subs(values)) for formula in self.as_tuple)
        return weights, outputs, connections


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one call of a leaf module; weights used by an earlier call are not counted again."""

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
    """All layers of a model in execution order, and the requested configuration."""

    layers: tuple[LayerCounts, ...]
    values: Values
    """Requested values of all symbols that the formulas may contain."""
    title: str = ""
    """Name of the model, and its file if it has one."""

    @property
    def size(self) -> Values:
        """Requested height and width."""
        return {H: self.values[H], W: self.values[W]}

    @property
    def doubled_size(self) -> Values:
        """Twice the requested height and width."""
        return {symbol: 2 * value for symbol, value in self.size.items()}

    def counted_layers(self, options: CountOptions = COURSE_OPTIONS) -> list[tuple[LayerCounts, Counts]]:
        """Return the layers that are counted, each with its contribution."""
        is_counted = {"weighted": True, "norm": options.batch_norm, "other": options.activations}
        layers = []
        for layer in self.layers:
            if is_counted[layer.category]:
                biases = layer.biases if options.biases or layer.category == "norm" else Integer(0)
                layers.append((layer, Counts(layer.weights + biases, layer.outputs, layer.connections)))
        return layers

    def total(self, options: CountOptions = COURSE_OPTIONS) -> Counts:
        """Return the sums over all layers as formulas in all symbols."""
        counts = [count.as_tuple for _, count in self.counted_layers(options)]
        return Counts(*(simplify_counts(sum((terms[index] for terms in counts), Integer(0))) for index in range(3)))


def simplify_counts(expression: Expr) -> Expr:
    """Factor out the common factors of a sum of products and collect the terms by powers of k."""
    common_powers, rest = Poly(expression, *SYMBOLS).terms_gcd()
    return prod(symbol**power for symbol, power in zip(SYMBOLS, common_powers, strict=True)) * collect(
        rest.as_expr(), K
    )


def count_model(name: str, *, height: int = 32, width: int = 32, **settings: Any) -> ModelCounts:
    """Count a model of :func:`chromabox.colour.models.build_model` in terms of its symbols among NIC, NF, NC and k.

    Args:
        name: Name of the model on the command line.
        height, width: Size of the images in pixels, multiples of the model's ``size_divisor``.
        settings: Arguments of the model's class.

    Raise UsageError for an unknown model and for invalid settings or sizes.
    """
    for key, value in settings.items():
        if key in SETTING_SYMBOLS and not 1 <= value <= MAX_VALUE:
            raise UsageError(f"{key} is {value}: expected 1 to {MAX_VALUE:,}")
    model = _build_meta(name, settings)
    defaults = {key: parameter.default for key, parameter in inspect.signature(MODELS[name]).parameters.items()}
    values = {
        symbol: settings.get(key, defaults[key])
        for key, symbol in SETTING_SYMBOLS.items()
        if key in defaults and _can_vary(name, settings, key)
    }

    def build(changed: Values) -> nn.Module:
        varied = {key: changed[symbol] for key, symbol in SETTING_SYMBOLS.items() if symbol in changed}
        return _build_meta(name, {**settings, **varied})

    return _fit_counts(build, {**values, H: height, W: width}, channels=1, multiple=cast(int, model.size_divisor))


def count_module(model: nn.Module, *, channels: int, multiple: int, height: int, width: int) -> ModelCounts:
    """Count any module in terms of H and W.

    Args:
        model: Module with inputs [batch, channels, height, width]; it is not modified.
        channels: Number of channels of the images.
        multiple: Step in height and width for which the output size of every layer is an affine function.
        height, width: Size of the images in pixels, multiples of ``multiple``.

    Raise UsageError for an invalid size, and ChromaboxError for a model with weights outside convolutions, linear
    layers and BatchNorm, with unused weights, or with dimensions that are not affine functions of the symbols.
    """
    return _fit_counts(lambda _: model, {H: height, W: width}, channels=channels, multiple=multiple)


def _build_meta(name: str, settings: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **settings)


def _can_vary(name: str, settings: Mapping[str, Any], key: str) -> bool:
    """Return whether the model can be built with both values from which a slope is computed."""
    try:
        for value in (1, 2):
            _build_meta(name, {**settings, key: value})
    except UsageError:
        return False
    return True


def _fit_counts(build: Callable[[Values], nn.Module], values: Values, *, channels: int, multiple: int) -> ModelCounts:
    """Trace the model in several configurations and fit a formula to every quantity of every layer."""
    height, width = values[H], values[W]
    if any(not 1 <= side <= MAX_VALUE or side % multiple for side in (height, width)):
        expected = f"multiples of {multiple} up to {MAX_VALUE:,}"
        raise UsageError(f"size is {width}×{height}: expected {expected} for height and width")
    # The smallest configuration, one per symbol with that symbol doubled, and two for verification: one with all
    # symbols changed (k is at most the requested value, as large kernels are invalid), and the requested one.
    smallest = {symbol: multiple if symbol in (H, W) else 1 for symbol in values}
    mixed = {symbol: (index + 3) * value for index, (symbol, value) in enumerate(smallest.items())}
    mixed |= {K: max(2, values[K])} if K in values else {}
    doubled = [{**smallest, symbol: 2 * value} for symbol, value in smallest.items()]
    configurations: list[Values] = [smallest, *doubled, mixed, values]
    traces = [_trace_layers(build(point), point.get(NIC, channels), point[H], point[W]) for point in configurations]
    if len({tuple(call[:2] for call in calls) for calls in traces}) > 1:
        raise ChromaboxError(
            "the model runs different layers in different configurations; expected the same layers in all"
        )

    @cache
    def fit(sides: Dims) -> Expr | None:
        """Return the affine function that takes these values in the configurations, or None if there is none."""
        formula = Integer(sides[0])
        for symbol, side in zip(values, sides[1:-2], strict=True):
            formula += Rational(side - sides[0], smallest[symbol]) * (symbol - smallest[symbol])
        verified = all(formula.subs(point) == side for point, side in zip(configurations[-2:], sides[-2:], strict=True))
        return formula if verified else None

    layers = []
    for calls in zip(*traces, strict=True):
        name, kind, category, _ = calls[0]
        formulas = []
        for quantity in zip(*(dims for *_, dims in calls), strict=True):
            factors = [fit(sides) for sides in zip(*quantity, strict=True)]
            if None in factors:
                sides = list(zip(*quantity, strict=True))[factors.index(None)]
                raise ChromaboxError(
                    f"{name}: a dimension is {', '.join(map(str, sides))} in the configurations tested; expected an "
                    "affine function of the symbols, without powers or rounding"
                )
            formulas.append(prod(factors, start=Integer(1)))
        layers.append(LayerCounts(name, kind, category, *formulas))
    return ModelCounts(tuple(layers), dict(values))
