"""Weights, outputs and connections of a model, as formulas and as numbers (part A.3 of the assignment).

:func:`trace_layers` runs the model in several small configurations and records the dimensions of every kernel, output
and feature map. Every dimension is an affine function of NIC, NF, NC, k, H and W. Its coefficients are solved for
exactly and verified in two further configurations, one of which is the requested one. The weights, outputs and
connections of a layer are products of such dimensions; those of a model are sums over its layers.

Conventions (the defaults are those of the course):

* *Weights* are the elements of the kernels. Biases and the two parameters per channel of BatchNorm are optional.
* *Outputs* are the elements that convolutions and linear layers output for one image. Those of BatchNorm, and of
  pooling, upsampling and activation layers, are optional.
* A *connection* is a product of an input and a weight. A convolution has k²·C_in/groups connections for each output;
  products with padding zeros count too. A transposed convolution multiplies every input by k²·C_out/groups
  weights; products that the padding crops count too. Counted per output this is the same: with stride 2, an output
  receives k²/4 positions of the input on average, and there are four times as many outputs as inputs. A bias is added,
  not multiplied, and makes no connection. BatchNorm makes one connection for each output. Pooling, upsampling and
  activations have no weights and therefore no connections.

The model runs on PyTorch's "meta" tensors, which have shapes but no data, so that nothing is computed.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from sympy import Expr, Integer, Matrix, Poly, Symbol, collect, prod, symbols
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


@dataclass(frozen=True)
class LayerCall:
    """One call of a leaf module."""

    name: str
    """Dotted name of the module in the model."""
    kind: str
    """Class name of the module."""
    category: LayerCategory
    """Convolution or linear layer, BatchNorm, or any other layer."""
    quantities: tuple[Dims, Dims, Dims, Dims]
    """Weights, biases, outputs for one image and connections, each as the dimensions whose product it is."""


def trace_layers(model: nn.Module, channels: int, height: int, width: int) -> list[LayerCall]:
    """Return the calls of all leaf modules except identities, in execution order, for images [channels, height, width].

    The model runs in training mode, in which all models of this package run a single forward pass; the previous modes
    are restored. Weights that are used again are not counted again. Raise ChromaboxError if the model has weights whose
    connections are unknown: weights of other kinds of layers, weights outside layers, and unused weights.
    """
    meta_tensors = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    counted_ids: set[int] = set()
    calls: list[LayerCall] = []

    def make_hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        return lambda layer, inputs, output: calls.append(_layer_call(name, layer, inputs, output, counted_ids))

    with _layer_hooks(model, make_hook), torch.no_grad():
        # Two images, because BatchNorm cannot train on a single value per channel.
        functional_call(model, meta_tensors, (torch.empty(2, channels, height, width, device="meta"),))
    for name, _ in model.named_parameters():
        if id(meta_tensors[name]) not in counted_ids:
            raise ChromaboxError(
                f"{name}: not used by a convolution, linear layer or BatchNorm; only weights of these can be counted"
            )
    return calls


@contextmanager
def _layer_hooks(model: nn.Module, make_hook: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    """Register hooks on the leaf modules and set training mode; undo both on exit."""
    modes = [(layer, layer.training) for layer in model.modules()]
    hooks = [
        layer.register_forward_hook(make_hook(name or type(layer).__name__))
        for name, layer in model.named_modules()
        if not list(layer.children()) and not isinstance(layer, nn.Identity)
    ]
    model.train()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in modes:
            layer.training = mode


def _layer_call(
    name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Any, counted_ids: set[int]
) -> LayerCall:
    """Return the quantities of a layer. Weights and biases count once: their ids are added to ``counted_ids``."""
    if not isinstance(output, Tensor):
        raise ChromaboxError(
            f"{name}: returns a {type(output).__name__}; only layers that return a single tensor can be counted"
        )

    def uncounted(parameter: Tensor | None) -> Dims:
        if parameter is None or id(parameter) in counted_ids:
            return ZERO_DIMS
        counted_ids.add(id(parameter))
        return tuple(parameter.shape)

    kind, outputs = type(layer).__name__, tuple(output.shape[1:])
    if isinstance(layer, _WEIGHTED):
        connections = (*layer.weight.shape, *_connection_dims(layer, inputs, output))
        return LayerCall(name, kind, "weighted", (uncounted(layer.weight), uncounted(layer.bias), outputs, connections))
    if isinstance(layer, _BATCH_NORM):
        connections = outputs if layer.affine else ZERO_DIMS
        return LayerCall(name, kind, "norm", (uncounted(layer.weight), uncounted(layer.bias), outputs, connections))
    return LayerCall(name, kind, "other", (ZERO_DIMS, ZERO_DIMS, outputs, ZERO_DIMS))


def _connection_dims(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Dims:
    """Return the positions at which all weights are used: inputs of a transposed convolution, outputs of others."""
    if isinstance(layer, nn.Linear):
        return tuple(output.shape[1:-1])
    return tuple((inputs[0] if isinstance(layer, _TRANSPOSED) else output).shape[2:])


NIC, NF, NC, K, H, W = symbols("NIC NF NC k H W", positive=True, integer=True)

#: Order of the factors in a product.
SYMBOLS: tuple[Symbol, ...] = (K, H, W, NIC, NF, NC)

#: Model settings that appear in formulas.
SETTING_SYMBOLS: Mapping[str, Symbol] = {"num_in_channels": NIC, "num_filters": NF, "num_colours": NC, "kernel": K}

#: Largest value of a setting; counts of larger models would exceed the integers of tensor shapes.
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

    def subtract(self, other: "Counts") -> "Counts":
        """Return the difference of these counts and the other ones."""
        pairs = zip(self.as_tuple, other.as_tuple, strict=True)
        return Counts(*(simplify_counts(minuend - subtrahend) for minuend, subtrahend in pairs))


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

    def counts(self, options: CountOptions) -> Counts | None:
        """Return the contribution of this call, or None if layers of its category are not counted."""
        if not {"weighted": True, "norm": options.batch_norm, "other": options.activations}[self.category]:
            return None
        biases = self.biases if options.biases or self.category == "norm" else Integer(0)
        return Counts(self.weights + biases, self.outputs, self.connections)


@dataclass(frozen=True)
class ModelCounts:
    """All layers of a model in execution order, and the requested configuration."""

    layers: tuple[LayerCounts, ...]
    values: Values
    """Requested values of all symbols that the formulas may contain."""

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
        counts = ((layer, layer.counts(options)) for layer in self.layers)
        return [(layer, count) for layer, count in counts if count is not None]

    def total(self, options: CountOptions = COURSE_OPTIONS) -> Counts:
        """Return the sums over all layers as formulas in all symbols."""
        counts = [count.as_tuple for _, count in self.counted_layers(options)]
        return Counts(
            *(simplify_counts(sum((formulas[index] for formulas in counts), Integer(0))) for index in range(3))
        )


def simplify_counts(expression: Expr) -> Expr:
    """Factor out the common factors of a sum of products and collect the terms by powers of k."""
    common_powers, rest = Poly(expression, *SYMBOLS).terms_gcd()
    return prod(symbol**power for symbol, power in zip(SYMBOLS, common_powers, strict=True)) * collect(
        rest.as_expr(), K
    )


def count_model(name: str, *, height: int = 32, width: int = 32, **settings: Any) -> ModelCounts:
    """Count a model of :func:`chromabox.colour.models.build_model`, in its symbols among NIC, NF, NC and k.

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
        return _build_meta(
            name,
            {**settings, **{key: changed[symbol] for key, symbol in SETTING_SYMBOLS.items() if symbol in changed}},
        )

    return _fit_counts(build, {**values, H: height, W: width}, channels=1, multiple=cast(int, model.size_divisor))


def count_module(model: nn.Module, *, channels: int, multiple: int, height: int, width: int) -> ModelCounts:
    """Count any module, in H and W.

    Args:
        model: Module with inputs [batch, channels, height, width]; it is not modified.
        channels: Number of channels of the images.
        multiple: Step of height and width for which the output size of every layer is an affine function.
        height, width: Size of the images in pixels, multiples of ``multiple``.

    Raise UsageError for an invalid size, and ChromaboxError for a model that :func:`trace_layers` rejects or in which
    the dimensions of a layer are not affine functions of the symbols.
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
    """Trace the model in one configuration more than there are symbols and in two for verification; solve for all."""
    height, width = values[H], values[W]
    if any(not 1 <= side <= MAX_VALUE or side % multiple for side in (height, width)):
        expected = f"multiples of {multiple} up to {MAX_VALUE:,}"
        raise UsageError(f"size is {width}×{height}: expected {expected} for height and width")
    configurations = [*_fit_settings(values, multiple), _mixed_setting(values, multiple), values]
    traces = [
        trace_layers(build(configuration), configuration.get(NIC, channels), configuration[H], configuration[W])
        for configuration in configurations
    ]
    if len({tuple((call.name, call.kind) for call in calls) for calls in traces}) > 1:
        raise ChromaboxError(
            "the model runs different layers in different configurations; expected the same layers in all"
        )
    fit = _AffineFit(tuple(values), configurations)
    layers = []
    for calls in zip(*traces, strict=True):
        name, kind, category = calls[0].name, calls[0].kind, calls[0].category
        quantities = zip(*(call.quantities for call in calls), strict=True)
        layers.append(LayerCounts(name, kind, category, *(fit.fit_product(name, dims) for dims in quantities)))
    return ModelCounts(tuple(layers), dict(values))


def _fit_settings(values: Values, multiple: int) -> list[Values]:
    """Return the smallest configuration and those in which one symbol is doubled."""
    smallest = {symbol: multiple if symbol in (H, W) else 1 for symbol in values}
    return [smallest, *({**smallest, symbol: 2 * value} for symbol, value in smallest.items())]


def _mixed_setting(values: Values, multiple: int) -> Values:
    """Return a configuration with all symbols changed; k is at most the requested one, as large kernels are invalid."""
    changed = {symbol: (index + 3) * (multiple if symbol in (H, W) else 1) for index, symbol in enumerate(values)}
    return changed | ({K: max(2, values[K])} if K in values else {})


class _AffineFit:
    """Fit of c₀ + Σ cᵢ·symbolᵢ to values in the first configurations, verified in the remaining ones."""

    def __init__(self, names: Sequence[Symbol], settings: Sequence[Values]) -> None:
        self.symbols = Matrix([1, *names])
        self.points = Matrix([[1, *(values[name] for name in names)] for values in settings])
        self.num_points = len(names) + 1
        self.inverse = self.points[: self.num_points, :].inv()
        self.cache: dict[Dims, Expr | None] = {}

    def fit_product(self, name: str, sides: Sequence[Dims]) -> Expr:
        """Return a layer's quantity as a product of affine formulas. Raise ChromaboxError if a dimension has none."""
        factors = []
        for values in zip(*sides, strict=True):
            if values not in self.cache:
                self.cache[values] = self._fit(values)
            if self.cache[values] is None:
                raise ChromaboxError(
                    f"{name}: a dimension is {', '.join(map(str, values))} in the configurations tested; expected an "
                    "affine function of the symbols, without powers or rounding"
                )
            factors.append(self.cache[values])
        return prod(factors, start=Integer(1))

    def _fit(self, values: Dims) -> Expr | None:
        coefficients = self.inverse * Matrix(values[: self.num_points])
        return self.symbols.dot(coefficients) if self.points * coefficients == Matrix(values) else None
