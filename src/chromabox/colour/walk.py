"""What the layers of a net take and give, watched while it runs: the sides of kernels, of outputs, of places.

Nothing is computed. The net runs on PyTorch's "meta" tensors, which have shapes and no contents, in the place of its
own numbers. What the quantities mean says :mod:`chromabox.colour.count`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from chromabox.errors import ChromaboxError

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
