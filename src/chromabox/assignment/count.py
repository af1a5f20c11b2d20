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

from chromabox.colour.models import NETS, build_net
from chromabox.errors import ChromaboxError, UsageError

#: A quantity as the product of these: sides of kernels and of pictures, channels.
Sides: TypeAlias = tuple[int, ...]
NOTHING: Sides = (0,)
Part: TypeAlias = Literal["weighted", "norm", "other"]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Run:
    """One run of a leaf module."""

    name: str
    """Its place in the net."""
    kind: str
    """Its class."""
    part: Part
    """Convolution or linear layer, BatchNorm, anything else."""
    quantities: tuple[Sides, Sides, Sides, Sides]
    """Weights, biases, outputs for one picture, connections, each as the sides whose product it is."""


def walk(net: nn.Module, channels: int, height: int, width: int) -> list[Run]:
    """The runs of all leaf modules but identities, in order of execution, for pictures [channels, height, width].

    The net runs in training mode, in which all of ours look at a picture once; afterwards it is as it was. Weights that
    run again are not counted again. Raises ChromaboxError where a net has weights of which it is not known what they
    connect: those of other layers, those that no layer holds, and those that take no part.
    """
    blank = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in (*net.named_parameters(), *net.named_buffers())
    }
    counted: set[int] = set()
    runs: list[Run] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        return lambda layer, taken, given: runs.append(_seen(name, layer, taken, given, counted))

    with _watched(net, watch), torch.no_grad():
        # Two pictures, because BatchNorm refuses to train on a single number a channel.
        functional_call(net, blank, (torch.empty(2, channels, height, width, device="meta"),))
    for name, _ in net.named_parameters():
        if id(blank[name]) not in counted:
            raise ChromaboxError(
                f"{name}: takes part in no convolution, linear layer or BatchNorm; only weights of these are counted"
            )
    return runs


@contextmanager
def _watched(net: nn.Module, watch: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    """Hooks on the leaf modules, and training mode; both are taken back."""
    modes = [(layer, layer.training) for layer in net.modules()]
    hooks = [
        layer.register_forward_hook(watch(name or type(layer).__name__))
        for name, layer in net.named_modules()
        if not list(layer.children()) and not isinstance(layer, nn.Identity)
    ]
    net.train()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, mode in modes:
            layer.training = mode


def _seen(name: str, layer: nn.Module, taken: tuple[Tensor, ...], given: Any, counted: set[int]) -> Run:
    """A layer's quantities; its weights and biases only if they are not among the ``counted``, to which they go."""
    if not isinstance(given, Tensor):
        raise ChromaboxError(f"{name}: gives a {type(given).__name__}; only layers that give one tensor are counted")

    def new(numbers: Tensor | None) -> Sides:
        if numbers is None or id(numbers) in counted:
            return NOTHING
        counted.add(id(numbers))
        return tuple(numbers.shape)

    kind, outputs = type(layer).__name__, tuple(given.shape[1:])
    if isinstance(layer, _WEIGHTED):
        connections = (*layer.weight.shape, *_places(layer, taken, given))
        return Run(name, kind, "weighted", (new(layer.weight), new(layer.bias), outputs, connections))
    if isinstance(layer, _BATCH_NORM):
        connections = outputs if layer.affine else NOTHING
        return Run(name, kind, "norm", (new(layer.weight), new(layer.bias), outputs, connections))
    return Run(name, kind, "other", (NOTHING, NOTHING, outputs, NOTHING))


def _places(layer: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> Sides:
    """Where all weights are used: around every input of a transposed convolution, for every output of any other."""
    if isinstance(layer, nn.Linear):
        return tuple(given.shape[1:-1])
    return tuple((taken[0] if isinstance(layer, _TRANSPOSED) else given).shape[2:])


NIC, NF, NC, K, H, W = symbols("NIC NF NC k H W", positive=True, integer=True)

#: In the order in which products name them.
SYMBOLS: tuple[Symbol, ...] = (K, H, W, NIC, NF, NC)

#: The nets' settings that stand in formulas.
SETTINGS: Mapping[str, Symbol] = {"num_in_channels": NIC, "num_filters": NF, "num_colours": NC, "kernel": K}

#: What is greater is no setting of a net, and its counts would not fit the integers that shapes are kept in.
GREATEST = 100_000
Values: TypeAlias = Mapping[Symbol, int]


@dataclass(frozen=True)
class Counted:
    """What is counted besides kernels, the outputs of convolutions and linear layers, and their connections."""

    biases: bool = False
    """As weights."""
    batch_norm: bool = False
    """Two weights a channel, its outputs, and a connection for each of them."""
    others: bool = False
    """Outputs of pooling, upsampling and activations that are layers of their own."""


#: As the course counts.
COURSE = Counted()


@dataclass(frozen=True)
class Count:
    """Three formulas; whole numbers once every symbol has its value."""

    weights: Expr
    outputs: Expr
    connections: Expr

    @property
    def three(self) -> tuple[Expr, Expr, Expr]:
        """Weights, outputs, connections."""
        return self.weights, self.outputs, self.connections

    def at(self, values: Values) -> "Count":
        """The same with values for some or all of the symbols."""
        return Count(*(tidy(one.subs(values)) for one in self.three))

    def numbers(self, values: Values) -> tuple[int, int, int]:
        """Weights, outputs and connections with values for all of the symbols."""
        weights, outputs, connections = (int(one.subs(values)) for one in self.three)
        return weights, outputs, connections

    def minus(self, other: "Count") -> "Count":
        """What is left without the other."""
        return Count(*(tidy(mine - its) for mine, its in zip(self.three, other.three, strict=True)))


@dataclass(frozen=True)
class LayerCount:
    """One run of a leaf module; weights that ran before are not counted again."""

    name: str
    kind: str
    """The module's class."""
    part: Part
    weights: Expr
    biases: Expr
    outputs: Expr
    connections: Expr

    def count(self, what: Counted) -> Count | None:
        """What it adds; None if such layers are not counted."""
        if not {"weighted": True, "norm": what.batch_norm, "other": what.others}[self.part]:
            return None
        biases = self.biases if what.biases or self.part == "norm" else Integer(0)
        return Count(self.weights + biases, self.outputs, self.connections)


@dataclass(frozen=True)
class NetCount:
    """All layers of a net in order of execution, and the setting that was asked for."""

    layers: tuple[LayerCount, ...]
    values: Values
    """Of every symbol that the formulas may contain."""

    @property
    def size(self) -> Values:
        """Height and width that were asked for."""
        return {H: self.values[H], W: self.values[W]}

    @property
    def doubled(self) -> Values:
        """Twice that."""
        return {symbol: 2 * value for symbol, value in self.size.items()}

    def rows(self, what: Counted = COURSE) -> list[tuple[LayerCount, Count]]:
        """The layers that are counted, and what each adds."""
        counts = ((layer, layer.count(what)) for layer in self.layers)
        return [(layer, count) for layer, count in counts if count is not None]

    def total(self, what: Counted = COURSE) -> Count:
        """The sums over all layers, in every symbol."""
        counts = [count.three for _, count in self.rows(what)]
        return Count(*(tidy(sum((three[index] for three in counts), Integer(0))) for index in range(3)))


def tidy(expression: Expr) -> Expr:
    """A sum of products, with what all of them share put in front, and those of one power of k together."""
    shared, rest = Poly(expression, *SYMBOLS).terms_gcd()
    return prod(symbol**power for symbol, power in zip(SYMBOLS, shared, strict=True)) * collect(rest.as_expr(), K)


def count_net(name: str, *, height: int = 32, width: int = 32, **settings: Any) -> NetCount:
    """Count a net of :func:`chromabox.colour.models.build_net`, in those of NIC, NF, NC and k that it has.

    Args:
        name: as the command line has it.
        height, width: of the pictures in pixels, multiples of ``net.multiple``.
        settings: of the net's class.

    Raises UsageError for a net, a setting or a size that cannot be.
    """
    for key, value in settings.items():
        if key in SETTINGS and not 1 <= value <= GREATEST:
            raise UsageError(f"{key} is {value}: 1 to {GREATEST:,} can be counted")
    net = _built(name, settings)
    defaults = {key: one.default for key, one in inspect.signature(NETS[name]).parameters.items()}
    values = {
        symbol: settings.get(key, defaults[key])
        for key, symbol in SETTINGS.items()
        if key in defaults and _varies(name, settings, key)
    }

    def build(changed: Values) -> nn.Module:
        return _built(name, {**settings, **{key: changed[one] for key, one in SETTINGS.items() if one in changed}})

    return _count(build, {**values, H: height, W: width}, channels=1, multiple=cast(int, net.multiple))


def count_module(net: nn.Module, *, channels: int, multiple: int, height: int, width: int) -> NetCount:
    """Count any net, in H and W.

    Args:
        net: takes [batch, channels, height, width]; it is left as it is.
        channels: of the pictures.
        multiple: a step of height and width by which every layer's output grows evenly.
        height, width: of the pictures in pixels, multiples of that.

    Raises UsageError for a size that does not fit, ChromaboxError for a net that :func:`walk`
    refuses, or of which a layer does not grow evenly.
    """
    return _count(lambda _: net, {H: height, W: width}, channels=channels, multiple=multiple)


def _built(name: str, settings: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return build_net(name, **settings)


def _varies(name: str, settings: Mapping[str, Any], key: str) -> bool:
    """Whether the net can be built at both settings from which a slope is taken."""
    try:
        for value in (1, 2):
            _built(name, {**settings, key: value})
    except UsageError:
        return False
    return True


def _count(build: Callable[[Values], nn.Module], values: Values, *, channels: int, multiple: int) -> NetCount:
    """Walk the net at one setting more than there are symbols, and at two to check by; solve for every side."""
    height, width = values[H], values[W]
    if any(not 1 <= side <= GREATEST or side % multiple for side in (height, width)):
        right = f"a multiple of {multiple} up to {GREATEST:,}"
        raise UsageError(f"size is {width}×{height}: height and width must each be {right}")
    settings = [*_probes(values, multiple), _mixed(values, multiple), values]
    walks = [walk(build(one), one.get(NIC, channels), one[H], one[W]) for one in settings]
    if len({tuple((run.name, run.kind) for run in runs) for runs in walks}) > 1:
        raise ChromaboxError("the net runs other layers at other settings; no formula fits them all")
    affine = _Affine(tuple(values), settings)
    layers = []
    for runs in zip(*walks, strict=True):
        name, kind, part = runs[0].name, runs[0].kind, runs[0].part
        quantities = zip(*(run.quantities for run in runs), strict=True)
        layers.append(LayerCount(name, kind, part, *(affine.product(name, one) for one in quantities)))
    return NetCount(tuple(layers), dict(values))


def _probes(values: Values, multiple: int) -> list[Values]:
    """The smallest setting, and those in which one symbol is twice as great."""
    smallest = {symbol: multiple if symbol in (H, W) else 1 for symbol in values}
    return [smallest, *({**smallest, symbol: 2 * value} for symbol, value in smallest.items())]


def _mixed(values: Values, multiple: int) -> Values:
    """A setting with every symbol changed at once; the kernel no greater than asked for, as nets refuse great ones."""
    changed = {symbol: (index + 3) * (multiple if symbol in (H, W) else 1) for index, symbol in enumerate(values)}
    return changed | ({K: max(2, values[K])} if K in values else {})


class _Affine:
    """Lays c₀ + Σ cᵢ·symbolᵢ through values at the first settings, and holds it to those at the others."""

    def __init__(self, names: Sequence[Symbol], settings: Sequence[Values]) -> None:
        self.symbols = Matrix([1, *names])
        self.points = Matrix([[1, *(one[name] for name in names)] for one in settings])
        self.needed = len(names) + 1
        self.inverse = self.points[: self.needed, :].inv()
        self.known: dict[Sides, Expr | None] = {}

    def product(self, name: str, quantity: Sequence[Sides]) -> Expr:
        """A layer's quantity: the product of its sides, each a formula. ChromaboxError where none fits."""
        factors = []
        for values in zip(*quantity, strict=True):
            if values not in self.known:
                self.known[values] = self._formula(values)
            if self.known[values] is None:
                raise ChromaboxError(
                    f"{name}: one of its sides is {', '.join(map(str, values))} at the settings tried; no formula "
                    "without powers and roundings fits"
                )
            factors.append(self.known[values])
        return prod(factors, start=Integer(1))

    def _formula(self, values: Sides) -> Expr | None:
        coefficients = self.inverse * Matrix(values[: self.needed])
        return self.symbols.dot(coefficients) if self.points * coefficients == Matrix(values) else None
