"""Traces of a model's operations, which are layers and functional calls.

Operations are recorded where PyTorch dispatches them to its kernels (``TorchDispatchMode``), so that ``nn.ReLU``,
``F.relu`` and ``x.clamp_min(0)`` are recorded as the same operation. Module hooks record the module of each operation.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Index that stands for the input of the model in :attr:`Op.sources`.
INPUT = -1
#: Kinds of operations, by operator name, where the two names differ.
OP_NAMES = {
    "native_batch_norm": "BatchNorm2d",
    "relu": "ReLU",
    "max_pool2d_with_indices": "MaxPool2d",
    "avg_pool2d": "AvgPool2d",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
}
#: Operators that return a copy of their input. Like views, they are not recorded.
COPY_OPS = {"clone", "contiguous", "_to_copy", "detach", "alias", "_unsafe_view", "_reshape_copy", "copy"}
#: Prefixes of the names of operators that use only the shape of their input. They are not recorded.
FACTORY_PREFIXES = ("empty", "zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "new_")


@dataclass(frozen=True)
class Op:
    """One operation on data that depends on the model's input."""

    kind: str
    """``Conv2d``, ``ConvTranspose2d``, ``BatchNorm2d``, ``ReLU``, ``MaxPool2d``, ``Upsample``, ``cat``, or others."""
    module: str
    """Dotted name of the leaf module that runs the operation, or "" for calls in the ``forward`` of a container."""
    shape: tuple[int, ...]
    """Shape of the output."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Kernel, stride, channels and other settings as JSON values, keyed by printable names."""
    num_parameters: int = 0
    """Number of elements of the weights and biases that the operation uses."""
    sources: tuple[int, ...] = ()
    """Indices of the operations whose outputs this operation reads. :data:`INPUT` stands for the input of the model."""

    @property
    def place(self) -> str:
        """Where the operation runs: ``self.block1.0``, for example, or ``in forward`` for functional calls."""
        return f"self.{self.module}" if self.module else "in forward"


@dataclass
class OpTrace:
    """Operations of one forward pass or, if it raised an error, the operations before the error."""

    ops: list[Op] = field(default_factory=list)
    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    """``weight``, ``bias``, ``running_mean`` and ``running_var`` of each operation, if it has them."""
    output: Any = None
    """Return value of ``forward``, or None if it raised an error."""
    unused_modules: list[str] = field(default_factory=list)
    """Names of the leaf modules that the forward pass did not use."""
    error: BaseException | None = None


def trace_ops(model: nn.Module, batch: Float[Tensor, "batch in height width"]) -> OpTrace:
    """Run the model in its current mode, without gradients, and return its trace.

    An error that the model raises is stored in the trace.
    """
    names = {module: name for name, module in model.named_modules()}
    mode = _TraceMode(batch, names)
    trace = mode.trace
    called: list[nn.Module] = []
    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_pre_hook(lambda module, _: called.append(module)))
            hooks.enter_context(module.register_forward_pre_hook(lambda module, _: mode.running.append(module)))
            hooks.enter_context(module.register_forward_hook(lambda *_: mode.running.pop() and None))
        try:
            with mode:
                trace.output = model(batch)
        except (Exception, SystemExit) as error:  # code under test may raise any error
            trace.error = error
    used = {id(tensor) for tensors in trace.tensors for tensor in tensors.values()}
    trace.unused_modules = [
        name
        for module, name in names.items()
        if module not in called and not list(module.children()) and used.isdisjoint(map(id, module.parameters()))
    ]
    return trace


class _TraceMode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False. Otherwise, PyTorch would import its compiler, which would double the start-up time."""
        return False

    def __init__(self, batch: Tensor, names: dict[nn.Module, str]) -> None:
        super().__init__()
        self.trace, self.names = OpTrace(), names
        self.running: list[nn.Module] = []
        """Modules whose ``forward`` is running, from the outermost to the innermost."""
        self.producers = {id(batch): INPUT}
        """For the id of each tensor, the index of the operation that computed the tensor."""
        self.noise_ids: set[int] = set()
        """Ids of the random masks of dropout."""
        # All tensors are kept, because ids are unique only while the objects exist.
        self.kept_alive: list[Any] = [batch]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record the operation if its result depends on the model's input."""
        result = func(*args, **(kwargs or {}))
        self.kept_alive += [args, result]
        inputs, outputs = ([leaf for leaf in tree_leaves(one) if isinstance(leaf, Tensor)] for one in (args, result))
        output_ids = {id(tensor) for tensor in outputs if tensor.is_floating_point()}
        operator = func.overloadpacket.__name__
        name = operator.rstrip("_")
        sources = tuple(self.producers[id(tensor)] for tensor in inputs if id(tensor) in self.producers)
        is_relevant = sources or name in OP_NAMES or name in OP_DETAILS
        if name == "bernoulli" or any(id(tensor) in self.noise_ids for tensor in inputs[:1]):
            self.noise_ids |= output_ids
        elif not output_ids or operator.startswith(FACTORY_PREFIXES) or not is_relevant:
            pass
        elif func.is_view or name in COPY_OPS:
            self.producers |= dict.fromkeys(output_ids, sources[0])
        else:
            settings, tensors = OP_DETAILS[name](args) if name in OP_DETAILS else ({}, {})
            kind = settings.pop("kind", OP_NAMES.get(name, name))
            module = self.running[-1] if self.running else None
            if name == "mul" and any(id(tensor) in self.noise_ids for tensor in inputs):
                kind = "Dropout"
            elif isinstance(module, _InstanceNorm) and kind == "BatchNorm2d":
                kind = type(module).__name__
            module_name = "" if module is None or list(module.children()) else self.names[module]
            shape = next(tuple(tensor.shape) for tensor in outputs if id(tensor) in output_ids)
            num_parameters = sum(tensors[key].numel() for key in ("weight", "bias") if key in tensors)
            self.producers |= dict.fromkeys(output_ids, len(self.trace.ops))
            self.trace.ops.append(Op(kind, module_name, shape, settings, num_parameters, sources))
            self.trace.tensors.append(tensors)
        return result


OpDetails: TypeAlias = tuple[dict[str, Any], dict[str, Tensor]]


def _scalar_if_equal(sizes: Sequence[int]) -> int | list[int]:
    """Return a single number if all sizes are equal, for example 3 for [3, 3], and otherwise a list."""
    return int(sizes[0]) if len(set(sizes)) == 1 else [int(size) for size in sizes]


def _convolution_details(args: Sequence[Any]) -> OpDetails:
    _, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    first, second = weight.shape[0], weight.shape[1] * groups
    settings: dict[str, Any] = {"kind": f"Conv{weight.dim() - 2}d", "inputs": second, "outputs": first}
    if transposed:
        settings = {"kind": f"ConvTranspose{weight.dim() - 2}d", "output padding": _scalar_if_equal(output_padding)}
        settings |= {"inputs": first, "outputs": second}
    sizes = {"kernel": weight.shape[2:], "stride": stride, "padding": padding, "dilation": dilation}
    settings |= {name: _scalar_if_equal(value) for name, value in sizes.items()}
    settings |= {"groups": groups, "bias": bias is not None}
    return settings, {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _batch_norm_details(args: Sequence[Any]) -> OpDetails:
    features, weight, bias, mean, variance = args[:5]
    settings = {"channels": features.shape[1], "affine": weight is not None, "running statistics": mean is not None}
    numbers = [value for value in args[5:] if isinstance(value, float)]
    for name, value in zip(("momentum", "eps"), numbers, strict=False):
        settings[name] = value if math.isfinite(value) else str(value)  # JSON cannot represent infinity.
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    return settings, {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _pool_details(args: Sequence[Any]) -> OpDetails:
    kernel = args[1]
    sizes = {"kernel": kernel, "stride": args[2] if len(args) > 2 and args[2] else kernel}
    sizes["padding"] = args[3] if len(args) > 3 else [0]
    return {name: _scalar_if_equal(value) for name, value in sizes.items()}, {}


def _upsample_details(mode: str, args: Sequence[Any]) -> OpDetails:
    return {"kind": "Upsample", "mode": mode, "scale": args[1][-1] / args[0].shape[-1]}, {}


#: Functions that return the settings and tensors of an operation, given the arguments of its operator.
OP_DETAILS: dict[str, Callable[[Sequence[Any]], OpDetails]] = {
    "convolution": _convolution_details,
    "native_batch_norm": _batch_norm_details,
    "max_pool2d_with_indices": _pool_details,
    "avg_pool2d": _pool_details,
    "cat": lambda args: ({"dimension": args[1] % args[0][0].dim() if len(args) > 1 else 0}, {}),
    "clamp": lambda args: ({"kind": "ReLU" if list(args[1:]) == [0] else "clamp"}, {}),
    "clamp_min": lambda args: ({"kind": "ReLU" if args[1] == 0 else "clamp"}, {}),
    "upsample_nearest2d": partial(_upsample_details, "nearest"),
    "_upsample_nearest_exact2d": partial(_upsample_details, "nearest-exact"),
    "upsample_bilinear2d": partial(_upsample_details, "bilinear"),
    "upsample_bicubic2d": partial(_upsample_details, "bicubic"),
}
