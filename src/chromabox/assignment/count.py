"""Weights, outputs and connections of a net, as formulas and as numbers, derived from the net itself (part A.3).

The net is built at several small settings and walked (:func:`walk`), which gives the sides of every
kernel, output and place. Each side is an affine function of NIC, NF, NC, k, H and W; it is solved for exactly, and
checked at two settings that were not solved for, one of which is the setting asked for. A layer's weights, outputs and
connections are products of such sides, and a net's are the sums over its layers.

The conventions, of which the defaults are the course's:

* *Weights* are the numbers of the kernels; biases and BatchNorm's two numbers a channel count on request.
* *Outputs* are the numbers that convolutions and linear layers put out for one picture; those of BatchNorm, and of
  pooling, upsampling and activations that are layers of their own, count on request.
* A *connection* is a product of an input by a weight. A convolution has k²·C_in/groups for each output; where the
  kernel reaches over the border it meets the padding's zeros, and these count too. A transposed convolution spreads
  every input over k²·C_out/groups places, and each counts, whether or not padding crops it away. Counted from its
  outputs that is the same: with stride 2 an output sees k²/4 places of the input on average, and there are four times
  as many outputs as inputs. A bias is added, not multiplied, and makes no connection; BatchNorm makes one for each
  output; pooling, upsampling and activations have no weights and so none.

What the layers of a net take and give, watched while it runs: the sides of kernels, of outputs, of places.

Nothing is computed. The net runs on PyTorch's "meta" tensors, which have shapes and no contents, in the place of its
own numbers. What the quantities mean says :mod:`chromabox.assignment.count`.
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

#: A quantity as the product of these: sides of kernels and of pictures, channels.
Dims: TypeAlias = tuple[int, ...]
ZERO_DIMS: Dims = (0,)
LayerCategory: TypeAlias = Literal["weighted", "norm", "other"]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class LayerCall:
    """One run of a leaf module."""

    name: str
    """Its place in the net."""
    kind: str
    """Its class."""
    category: LayerCategory
    """Convolution or linear layer, BatchNorm, anything else."""
    quantities: tuple[Dims, Dims, Dims, Dims]
    """Weights, biases, outputs for one picture, connections, each as the sides whose product it is."""


def trace_layers(model: nn.Module, channels: int, height: int, width: int) -> list[LayerCall]:
    """The runs of all leaf modules but identities, in order of execution, for pictures [channels, height, width].

    The net runs in training mode, in which all of ours look at a picture once; afterwards it is as it was. Weights that
    run again are not counted again. Raises ChromaboxError where a net has weights of which it is not known what they
    connect: those of other layers, those that no layer holds, and those that take no part.
    """
    blank = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in (*model.named_parameters(), *model.named_buffers())
    }
    counted: set[int] = set()
    runs: list[LayerCall] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        return lambda layer, taken, given: runs.append(_layer_call(name, layer, taken, given, counted))

    with _layer_hooks(model, watch), torch.no_grad():
        # Two pictures, because BatchNorm refuses to train on a single number a channel.
        functional_call(model, blank, (torch.empty(2, channels, height, width, device="meta"),))
    for name, _ in model.named_parameters():
        if id(blank[name]) not in counted:
            raise ChromaboxError(
                f"{name}: takes part in no convolution, linear layer or BatchNorm; only weights of these are counted"
            )
    return runs


@contextmanager
def _layer_hooks(model: nn.Module, make_hook: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    """Hooks on the leaf modules, and training mode; both are taken back."""
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
    """A layer's quantities; its weights and biases only if they are not among the ``counted``, to which they go."""
    if not isinstance(output, Tensor):
        raise ChromaboxError(f"{name}: gives a {type(output).__name__}; only layers that give one tensor are counted")

    def new(numbers: Tensor | None) -> Dims:
        if numbers is None or id(numbers) in counted_ids:
            return ZERO_DIMS
        counted_ids.add(id(numbers))
        return tuple(numbers.shape)

    kind, outputs = type(layer).__name__, tuple(output.shape[1:])
    if isinstance(layer, _WEIGHTED):
        connections = (*layer.weight.shape, *_connection_dims(layer, inputs, output))
        return LayerCall(name, kind, "weighted", (new(layer.weight), new(layer.bias), outputs, connections))
    if isinstance(layer, _BATCH_NORM):
        connections = outputs if layer.affine else ZERO_DIMS
        return LayerCall(name, kind, "norm", (new(layer.weight), new(layer.bias), outputs, connections))
    return LayerCall(name, kind, "other", (ZERO_DIMS, ZERO_DIMS, outputs, ZERO_DIMS))


def _connection_dims(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Dims:
    """Where all weights are used: around every input of a transposed convolution, for every output of any other."""
    if isinstance(layer, nn.Linear):
        return tuple(output.shape[1:-1])
    return tuple((inputs[0] if isinstance(layer, _TRANSPOSED) else output).shape[2:])


NIC, NF, NC, K, H, W = symbols("NIC NF NC k H W", positive=True, integer=True)

#: In the order in which products name them.
SYMBOLS: tuple[Symbol, ...] = (K, H, W, NIC, NF, NC)

#: The nets' settings that stand in formulas.
SETTING_SYMBOLS: Mapping[str, Symbol] = {"num_in_channels": NIC, "num_filters": NF, "num_colours": NC, "kernel": K}

#: What is greater is no setting of a net, and its counts would not fit the integers that shapes are kept in.
MAX_VALUE = 100_000
Values: TypeAlias = Mapping[Symbol, int]


@dataclass(frozen=True)
class CountOptions:
    """What is counted besides kernels, the outputs of convolutions and linear layers, and their connections."""

    biases: bool = False
    """As weights."""
    batch_norm: bool = False
    """Two weights a channel, its outputs, and a connection for each of them."""
    activations: bool = False
    """Outputs of pooling, upsampling and activations that are layers of their own."""


#: As the course counts.
COURSE_OPTIONS = CountOptions()


@dataclass(frozen=True)
class Counts:
    """Three formulas; whole numbers once every symbol has its value."""

    weights: Expr
    outputs: Expr
    connections: Expr

    @property
    def as_tuple(self) -> tuple[Expr, Expr, Expr]:
        """Weights, outputs, connections."""
        return self.weights, self.outputs, self.connections

    def subs(self, values: Values) -> "Counts":
        """The same with values for some or all of the symbols."""
        return Counts(*(simplify_counts(one.subs(values)) for one in self.as_tuple))

    def evaluate(self, values: Values) -> tuple[int, int, int]:
        """Weights, outputs and connections with values for all of the symbols."""
        weights, outputs, connections = (int(one.subs(values)) for one in self.as_tuple)
        return weights, outputs, connections

    def subtract(self, other: "Counts") -> "Counts":
        """What is left without the other."""
        return Counts(*(simplify_counts(mine - its) for mine, its in zip(self.as_tuple, other.as_tuple, strict=True)))


@dataclass(frozen=True)
class LayerCounts:
    """One run of a leaf module; weights that ran before are not counted again."""

    name: str
    kind: str
    """The module's class."""
    category: LayerCategory
    weights: Expr
    biases: Expr
    outputs: Expr
    connections: Expr

    def counts(self, options: CountOptions) -> Counts | None:
        """What it adds; None if such layers are not counted."""
        if not {"weighted": True, "norm": options.batch_norm, "other": options.activations}[self.category]:
            return None
        biases = self.biases if options.biases or self.category == "norm" else Integer(0)
        return Counts(self.weights + biases, self.outputs, self.connections)


@dataclass(frozen=True)
class ModelCounts:
    """All layers of a net in order of execution, and the setting that was asked for."""

    layers: tuple[LayerCounts, ...]
    values: Values
    """Of every symbol that the formulas may contain."""

    @property
    def size(self) -> Values:
        """Height and width that were asked for."""
        return {H: self.values[H], W: self.values[W]}

    @property
    def doubled_size(self) -> Values:
        """Twice that."""
        return {symbol: 2 * value for symbol, value in self.size.items()}

    def counted_layers(self, options: CountOptions = COURSE_OPTIONS) -> list[tuple[LayerCounts, Counts]]:
        """The layers that are counted, and what each adds."""
        counts = ((layer, layer.counts(options)) for layer in self.layers)
        return [(layer, count) for layer, count in counts if count is not None]

    def total(self, options: CountOptions = COURSE_OPTIONS) -> Counts:
        """The sums over all layers, in every symbol."""
        counts = [count.as_tuple for _, count in self.counted_layers(options)]
        return Counts(*(simplify_counts(sum((three[index] for three in counts), Integer(0))) for index in range(3)))


def simplify_counts(expression: Expr) -> Expr:
    """A sum of products, with what all of them share put in front, and those of one power of k together."""
    shared, rest = Poly(expression, *SYMBOLS).terms_gcd()
    return prod(symbol**power for symbol, power in zip(SYMBOLS, shared, strict=True)) * collect(rest.as_expr(), K)


def count_model(name: str, *, height: int = 32, width: int = 32, **settings: Any) -> ModelCounts:
    """Count a net of :func:`chromabox.colour.models.build_net`, in those of NIC, NF, NC and k that it has.

    Args:
        name: as the command line has it.
        height, width: of the pictures in pixels, multiples of ``net.size_divisor``.
        settings: of the net's class.

    Raises UsageError for a net, a setting or a size that cannot be.
    """
    for key, value in settings.items():
        if key in SETTING_SYMBOLS and not 1 <= value <= MAX_VALUE:
            raise UsageError(f"{key} is {value}: 1 to {MAX_VALUE:,} can be counted")
    net = _build_meta(name, settings)
    defaults = {key: one.default for key, one in inspect.signature(MODELS[name]).parameters.items()}
    values = {
        symbol: settings.get(key, defaults[key])
        for key, symbol in SETTING_SYMBOLS.items()
        if key in defaults and _can_vary(name, settings, key)
    }

    def build(changed: Values) -> nn.Module:
        return _build_meta(
            name, {**settings, **{key: changed[one] for key, one in SETTING_SYMBOLS.items() if one in changed}}
        )

    return _fit_counts(build, {**values, H: height, W: width}, channels=1, multiple=cast(int, net.size_divisor))


def count_module(model: nn.Module, *, channels: int, multiple: int, height: int, width: int) -> ModelCounts:
    """Count any net, in H and W.

    Args:
        net: takes [batch, channels, height, width]; it is left as it is.
        channels: of the pictures.
        multiple: a step of height and width by which every layer's output grows evenly.
        height, width: of the pictures in pixels, multiples of that.

    Raises UsageError for a size that does not fit, ChromaboxError for a net that :func:`walk`
    refuses, or of which a layer does not grow evenly.
    """
    return _fit_counts(lambda _: model, {H: height, W: width}, channels=channels, multiple=multiple)


def _build_meta(name: str, settings: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **settings)


def _can_vary(name: str, settings: Mapping[str, Any], key: str) -> bool:
    """Whether the net can be built at both settings from which a slope is taken."""
    try:
        for value in (1, 2):
            _build_meta(name, {**settings, key: value})
    except UsageError:
        return False
    return True


def _fit_counts(build: Callable[[Values], nn.Module], values: Values, *, channels: int, multiple: int) -> ModelCounts:
    """Walk the net at one setting more than there are symbols, and at two to check by; solve for every side."""
    height, width = values[H], values[W]
    if any(not 1 <= side <= MAX_VALUE or side % multiple for side in (height, width)):
        right = f"a multiple of {multiple} up to {MAX_VALUE:,}"
        raise UsageError(f"size is {width}×{height}: height and width must each be {right}")
    settings = [*_fit_settings(values, multiple), _mixed_setting(values, multiple), values]
    walks = [trace_layers(build(one), one.get(NIC, channels), one[H], one[W]) for one in settings]
    if len({tuple((run.name, run.kind) for run in runs) for runs in walks}) > 1:
        raise ChromaboxError("the net runs other layers at other settings; no formula fits them all")
    affine = _AffineFit(tuple(values), settings)
    layers = []
    for runs in zip(*walks, strict=True):
        name, kind, part = runs[0].name, runs[0].kind, runs[0].category
        quantities = zip(*(run.quantities for run in runs), strict=True)
        layers.append(LayerCounts(name, kind, part, *(affine.fit_product(name, one) for one in quantities)))
    return ModelCounts(tuple(layers), dict(values))


def _fit_settings(values: Values, multiple: int) -> list[Values]:
    """The smallest setting, and those in which one symbol is twice as great."""
    smallest = {symbol: multiple if symbol in (H, W) else 1 for symbol in values}
    return [smallest, *({**smallest, symbol: 2 * value} for symbol, value in smallest.items())]


def _mixed_setting(values: Values, multiple: int) -> Values:
    """A setting with every symbol changed at once; the kernel no greater than asked for, as nets refuse great ones."""
    changed = {symbol: (index + 3) * (multiple if symbol in (H, W) else 1) for index, symbol in enumerate(values)}
    return changed | ({K: max(2, values[K])} if K in values else {})


class _AffineFit:
    """Lays c₀ + Σ cᵢ·symbolᵢ through values at the first settings, and holds it to those at the others."""

    def __init__(self, names: Sequence[Symbol], settings: Sequence[Values]) -> None:
        self.symbols = Matrix([1, *names])
        self.points = Matrix([[1, *(one[name] for name in names)] for one in settings])
        self.num_points = len(names) + 1
        self.inverse = self.points[: self.num_points, :].inv()
        self.cache: dict[Dims, Expr | None] = {}

    def fit_product(self, name: str, sides: Sequence[Dims]) -> Expr:
        """A layer's quantity: the product of its sides, each a formula. ChromaboxError where none fits."""
        factors = []
        for values in zip(*sides, strict=True):
            if values not in self.cache:
                self.cache[values] = self._fit(values)
            if self.cache[values] is None:
                raise ChromaboxError(
                    f"{name}: one of its sides is {', '.join(map(str, values))} at the settings tried; no formula "
                    "without powers and roundings fits"
                )
            factors.append(self.cache[values])
        return prod(factors, start=Integer(1))

    def _fit(self, values: Dims) -> Expr | None:
        coefficients = self.inverse * Matrix(values[: self.num_points])
        return self.symbols.dot(coefficients) if self.points * coefficients == Matrix(values) else None
