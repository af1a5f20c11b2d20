"""What a net does to a picture, step by step: layers and functional calls alike, with shapes, settings and sources.

Recorded where PyTorch hands an operation to its kernels (``TorchDispatchMode``), so that ``nn.ReLU``, ``F.relu`` and
``x.clamp_min(0)`` are the same step; hooks tell which module was at work.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode

#: The source that is no step: what the net was given.
INPUT = -1
#: Operators by the layers that they are; whatever is not here bears its operator's name.
OP_NAMES = {
    "native_batch_norm": "BatchNorm2d",
    "relu": "ReLU",
    "max_pool2d_with_indices": "MaxPool2d",
    "avg_pool2d": "AvgPool2d",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
}
#: Operators of ``nn.Upsample`` and ``F.interpolate`` by their modes.
UPSAMPLE_MODES = {
    "upsample_nearest2d": "nearest",
    "_upsample_nearest_exact2d": "nearest-exact",
    "upsample_bilinear2d": "bilinear",
    "upsample_bicubic2d": "bicubic",
}
#: Operators that only hand the same numbers on, besides views.
COPY_OPS = {"clone", "contiguous", "_to_copy", "detach", "alias", "_unsafe_view", "_reshape_copy", "copy"}
#: Operators that take a tensor only for its shape.
FACTORY_PREFIXES = ("empty", "zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "new_")


@dataclass(frozen=True)
class Op:
    """One operation on what came from the net's input."""

    kind: str
    """``Conv2d``, ``ConvTranspose2d``, ``BatchNorm2d``, ``ReLU``, ``MaxPool2d``, ``Upsample``, ``cat``, … ."""
    module: str
    """The dotted name of the module at work if it has no modules inside; empty for calls in a ``forward``."""
    shape: tuple[int, ...]
    """Of the output."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Kernel, stride, channels and so on, in names that can be printed; JSON values."""
    num_parameters: int = 0
    """Weights and biases that the step uses."""
    sources: tuple[int, ...] = ()
    """The steps whose output it takes, :data:`INPUT` for the net's own input."""


@dataclass
class OpTrace:
    """The steps of one pass, also of one that ended in an error, and the tensors behind them."""

    ops: list[Op] = field(default_factory=list)
    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    """Of each step its ``weight``, ``bias``, ``running_mean`` and ``running_var``, as far as it has them."""
    output: Any = None
    """What ``forward`` returned; None where it raised."""
    last_op: int | None = None
    """The step that made the output; None where none is known."""
    unused_modules: list[str] = field(default_factory=list)
    """Modules without modules inside that were made and took no part."""
    error: BaseException | None = None


def trace_ops(model: nn.Module, batch: Float[Tensor, "batch in height width"]) -> OpTrace:
    """Run the net, in the mode it is in and without gradients, and record what it does.

    Whatever the net raises is kept in the trace, with the steps up to there.
    """
    recorder = _TraceMode(batch)
    trace = recorder.trace
    called: set[str] = set()
    with torch.no_grad(), _track_modules(model, recorder.module_stack, called):
        try:
            with recorder:
                trace.output = model(batch)
        except (Exception, SystemExit) as error:  # a net under test may raise anything
            trace.error = error
    if isinstance(trace.output, Tensor):
        trace.last_op = recorder.producers.get(id(trace.output))
    used = {id(tensor) for tensors in trace.tensors for tensor in tensors.values()}
    for name, module in model.named_modules():
        lent = any(id(parameter) in used for parameter in module.parameters())
        if name and name not in called and not lent and not list(module.children()):
            trace.unused_modules.append(name)
    return trace


@contextmanager
def _track_modules(model: nn.Module, stack: list[tuple[str, nn.Module]], called: set[str]) -> Iterator[None]:
    """Keep the modules at work on the stack, the innermost last."""
    hooks = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, _: Any, name: str = name) -> None:
            called.add(name)
            stack.append((name, module))

        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _TraceMode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's own switch: nothing is compiled here, and the compiler's import would double the start."""
        return False

    def __init__(self, batch: Tensor) -> None:
        super().__init__()
        self.trace = OpTrace()
        self.module_stack: list[tuple[str, nn.Module]] = []
        self.producers = {id(batch): INPUT}
        self.noise_ids: set[int] = set()
        # Identities stay unique only as long as the objects live.
        self.kept_alive: list[Any] = [batch]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.kept_alive += [args, result]
        self._record_op(func, args, result)
        return result

    def _record_op(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """Take one operation down, if it does something to what came from the input."""
        inputs, outputs = list(_iter_tensors(args)), [one for one in _iter_tensors(result) if one.is_floating_point()]
        operator = func.overloadpacket.__name__
        name = operator.rstrip("_")
        if name == "bernoulli" or any(id(one) in self.noise_ids for one in inputs[:1]):
            self.noise_ids |= {id(one) for one in outputs}
            return
        sources = tuple(self.producers[id(one)] for one in inputs if id(one) in self.producers)
        if (
            not outputs
            or operator.startswith(FACTORY_PREFIXES)
            or not (sources or name in OP_NAMES or name in OP_DETAILS)
        ):
            return
        if func.is_view or name in COPY_OPS:
            self.producers |= {id(one): sources[0] for one in outputs}
            return
        noisy = name == "mul" and any(id(one) in self.noise_ids for one in inputs)
        settings, tensors = OP_DETAILS[name](args) if name in OP_DETAILS else ({}, {})
        kind = "Dropout" if noisy else settings.pop("kind", OP_NAMES.get(name, name))
        module, at_work = self.module_stack[-1] if self.module_stack else ("", None)
        if isinstance(at_work, _InstanceNorm) and kind == "BatchNorm2d":
            kind = type(at_work).__name__
        count = sum(tensors[key].numel() for key in ("weight", "bias") if key in tensors)
        leaf = at_work is not None and not list(at_work.children())
        self.producers |= {id(one): len(self.trace.ops) for one in outputs}
        shape = tuple(outputs[0].shape)
        self.trace.ops.append(Op(kind, module if leaf else "", shape, settings, count, sources))
        self.trace.tensors.append(tensors)


def _iter_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _iter_tensors(one)


OpDetails = tuple[dict[str, Any], dict[str, Tensor]]


def _scalar_if_equal(sizes: Sequence[int]) -> int | list[int]:
    """3 for [3, 3]."""
    return int(sizes[0]) if len(set(sizes)) == 1 else [int(size) for size in sizes]


def _drop_none(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _convolution_details(args: Sequence[Any]) -> OpDetails:
    _, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    settings: dict[str, Any] = {"kind": f"Conv{weight.dim() - 2}d"}
    if transposed:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
        settings = {"kind": f"ConvTranspose{weight.dim() - 2}d", "output padding": _scalar_if_equal(output_padding)}
    settings |= {
        "inputs": inputs,
        "outputs": outputs,
        "kernel": _scalar_if_equal(weight.shape[2:]),
        "stride": _scalar_if_equal(stride),
    }
    settings |= {
        "padding": _scalar_if_equal(padding),
        "dilation": _scalar_if_equal(dilation),
        "groups": groups,
        "bias": bias is not None,
    }
    return settings, _drop_none(weight=weight, bias=bias)


def _batch_norm_details(args: Sequence[Any]) -> OpDetails:
    features, weight, bias, mean, variance = args[:5]
    numbers = [one for one in args[5:] if isinstance(one, float)]
    settings = {"channels": features.shape[1], "affine": weight is not None, "running statistics": mean is not None}
    settings |= dict(zip(("momentum", "eps"), numbers, strict=False))
    return settings, _drop_none(weight=weight, bias=bias, running_mean=mean, running_var=variance)


def _pool_details(args: Sequence[Any]) -> OpDetails:
    kernel = args[1]
    stride = args[2] if len(args) > 2 and args[2] else kernel
    padding = args[3] if len(args) > 3 else [0]
    return {
        "kernel": _scalar_if_equal(kernel),
        "stride": _scalar_if_equal(stride),
        "padding": _scalar_if_equal(padding),
    }, {}


def _upsample_details(mode: str) -> Callable[[Sequence[Any]], OpDetails]:
    return lambda args: ({"kind": "Upsample", "mode": mode, "scale": args[1][-1] / args[0].shape[-1]}, {})


#: How to read an operator's arguments.
OP_DETAILS: dict[str, Callable[[Sequence[Any]], OpDetails]] = {
    "convolution": _convolution_details,
    "native_batch_norm": _batch_norm_details,
    "max_pool2d_with_indices": _pool_details,
    "avg_pool2d": _pool_details,
    "cat": lambda args: ({"dimension": args[1] % args[0][0].dim() if len(args) > 1 else 0}, {}),
    "clamp": lambda args: ({"kind": "ReLU"} if list(args[1:]) == [0] else {"kind": "clamp"}, {}),
    "clamp_min": lambda args: ({"kind": "ReLU"} if args[1] == 0 else {"kind": "clamp"}, {}),
    **{name: _upsample_details(mode) for name, mode in UPSAMPLE_MODES.items()},
}
