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
KINDS = {
    "native_batch_norm": "BatchNorm2d",
    "relu": "ReLU",
    "max_pool2d_with_indices": "MaxPool2d",
    "avg_pool2d": "AvgPool2d",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
}
#: Operators of ``nn.Upsample`` and ``F.interpolate`` by their modes.
MODES = {
    "upsample_nearest2d": "nearest",
    "_upsample_nearest_exact2d": "nearest-exact",
    "upsample_bilinear2d": "bilinear",
    "upsample_bicubic2d": "bicubic",
}
#: Operators that only hand the same numbers on, besides views.
COPIES = {"clone", "contiguous", "_to_copy", "detach", "alias", "_unsafe_view", "_reshape_copy", "copy"}
#: Operators that take a tensor only for its shape.
FRESH = ("empty", "zeros_like", "ones_like", "rand_like", "randn_like", "full_like", "new_")


@dataclass(frozen=True)
class Step:
    """One operation on what came from the net's input."""

    kind: str
    """``Conv2d``, ``ConvTranspose2d``, ``BatchNorm2d``, ``ReLU``, ``MaxPool2d``, ``Upsample``, ``cat``, … ."""
    module: str
    """The dotted name of the module at work if it has no modules inside; empty for calls in a ``forward``."""
    shape: tuple[int, ...]
    """Of the output."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Kernel, stride, channels and so on, in names that can be printed; JSON values."""
    parameters: int = 0
    """Weights and biases that the step uses."""
    sources: tuple[int, ...] = ()
    """The steps whose output it takes, :data:`INPUT` for the net's own input."""


@dataclass
class Trace:
    """The steps of one pass, also of one that ended in an error, and the tensors behind them."""

    steps: list[Step] = field(default_factory=list)
    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    """Of each step its ``weight``, ``bias``, ``running_mean`` and ``running_var``, as far as it has them."""
    output: Any = None
    """What ``forward`` returned; None where it raised."""
    last: int | None = None
    """The step that made the output; None where none is known."""
    unused: list[str] = field(default_factory=list)
    """Modules without modules inside that were made and took no part."""
    error: BaseException | None = None


def record(net: nn.Module, batch: Float[Tensor, "batch in height width"]) -> Trace:
    """Run the net, in the mode it is in and without gradients, and record what it does.

    Whatever the net raises is kept in the trace, with the steps up to there.
    """
    recorder = _Recorder(batch)
    trace = recorder.trace
    called: set[str] = set()
    with torch.no_grad(), _watched(net, recorder.modules, called):
        try:
            with recorder:
                trace.output = net(batch)
        except (Exception, SystemExit) as error:  # a net under test may raise anything
            trace.error = error
    if isinstance(trace.output, Tensor):
        trace.last = recorder.makers.get(id(trace.output))
    used = {id(tensor) for tensors in trace.tensors for tensor in tensors.values()}
    for name, module in net.named_modules():
        lent = any(id(parameter) in used for parameter in module.parameters())
        if name and name not in called and not lent and not list(module.children()):
            trace.unused.append(name)
    return trace


@contextmanager
def _watched(net: nn.Module, stack: list[tuple[str, nn.Module]], called: set[str]) -> Iterator[None]:
    """Keep the modules at work on the stack, the innermost last."""
    hooks = []
    for name, module in net.named_modules():

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


class _Recorder(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch's own switch: nothing is compiled here, and the compiler's import would double the start."""
        return False

    def __init__(self, batch: Tensor) -> None:
        super().__init__()
        self.trace = Trace()
        self.modules: list[tuple[str, nn.Module]] = []
        self.makers = {id(batch): INPUT}
        self.noise: set[int] = set()
        # Identities stay unique only as long as the objects live.
        self.alive: list[Any] = [batch]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive += [args, result]
        self._note(func, args, result)
        return result

    def _note(self, func: Any, args: Sequence[Any], result: Any) -> None:
        """Take one operation down, if it does something to what came from the input."""
        inputs, outputs = list(_tensors(args)), [one for one in _tensors(result) if one.is_floating_point()]
        operator = func.overloadpacket.__name__
        name = operator.rstrip("_")
        if name == "bernoulli" or any(id(one) in self.noise for one in inputs[:1]):
            self.noise |= {id(one) for one in outputs}
            return
        sources = tuple(self.makers[id(one)] for one in inputs if id(one) in self.makers)
        if not outputs or operator.startswith(FRESH) or not (sources or name in KINDS or name in DETAILS):
            return
        if func.is_view or name in COPIES:
            self.makers |= {id(one): sources[0] for one in outputs}
            return
        noisy = name == "mul" and any(id(one) in self.noise for one in inputs)
        settings, tensors = DETAILS[name](args) if name in DETAILS else ({}, {})
        kind = "Dropout" if noisy else settings.pop("kind", KINDS.get(name, name))
        module, at_work = self.modules[-1] if self.modules else ("", None)
        if isinstance(at_work, _InstanceNorm) and kind == "BatchNorm2d":
            kind = type(at_work).__name__
        count = sum(tensors[key].numel() for key in ("weight", "bias") if key in tensors)
        leaf = at_work is not None and not list(at_work.children())
        self.makers |= {id(one): len(self.trace.steps) for one in outputs}
        shape = tuple(outputs[0].shape)
        self.trace.steps.append(Step(kind, module if leaf else "", shape, settings, count, sources))
        self.trace.tensors.append(tensors)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


Details = tuple[dict[str, Any], dict[str, Tensor]]


def _plain(sizes: Sequence[int]) -> int | list[int]:
    """3 for [3, 3]."""
    return int(sizes[0]) if len(set(sizes)) == 1 else [int(size) for size in sizes]


def _kept(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _convolution(args: Sequence[Any]) -> Details:
    _, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    settings: dict[str, Any] = {"kind": f"Conv{weight.dim() - 2}d"}
    if transposed:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
        settings = {"kind": f"ConvTranspose{weight.dim() - 2}d", "output padding": _plain(output_padding)}
    settings |= {"inputs": inputs, "outputs": outputs, "kernel": _plain(weight.shape[2:]), "stride": _plain(stride)}
    settings |= {"padding": _plain(padding), "dilation": _plain(dilation), "groups": groups, "bias": bias is not None}
    return settings, _kept(weight=weight, bias=bias)


def _batch_norm(args: Sequence[Any]) -> Details:
    features, weight, bias, mean, variance = args[:5]
    numbers = [one for one in args[5:] if isinstance(one, float)]
    settings = {"channels": features.shape[1], "affine": weight is not None, "running statistics": mean is not None}
    settings |= dict(zip(("momentum", "eps"), numbers, strict=False))
    return settings, _kept(weight=weight, bias=bias, running_mean=mean, running_var=variance)


def _pool(args: Sequence[Any]) -> Details:
    kernel = args[1]
    stride = args[2] if len(args) > 2 and args[2] else kernel
    padding = args[3] if len(args) > 3 else [0]
    return {"kernel": _plain(kernel), "stride": _plain(stride), "padding": _plain(padding)}, {}


def _upsample(mode: str) -> Callable[[Sequence[Any]], Details]:
    return lambda args: ({"kind": "Upsample", "mode": mode, "scale": args[1][-1] / args[0].shape[-1]}, {})


#: How to read an operator's arguments.
DETAILS: dict[str, Callable[[Sequence[Any]], Details]] = {
    "convolution": _convolution,
    "native_batch_norm": _batch_norm,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    "cat": lambda args: ({"dimension": args[1] % args[0][0].dim() if len(args) > 1 else 0}, {}),
    "clamp": lambda args: ({"kind": "ReLU"} if list(args[1:]) == [0] else {"kind": "clamp"}, {}),
    "clamp_min": lambda args: ({"kind": "ReLU"} if args[1] == 0 else {"kind": "clamp"}, {}),
    **{name: _upsample(mode) for name, mode in MODES.items()},
}
