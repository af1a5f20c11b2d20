"""A detector made ready for many pictures: folded, in the layout and precision that are fastest on this machine.

bfloat16 has the range of float32 and 8 significant bits. Where the processor multiplies it in hardware a forward pass
takes about half the time; elsewhere it takes longer, so that a probe decides. The convolutions that feed the heads stay
in float32: what they put out is what boxes are made of.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from chromabox.detect.models.darknet import DetectorNet
from chromabox.detect.weights.load import TrainedDetector
from chromabox.engine.autotune import Execution, device_of
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.runtime.parallel import threads_at

Run = Callable[[Float[Tensor, "batch 3 height width"]], list[Tensor]]

#: The same numbers everywhere, without a probe.
EXACT = ExecutionOptions(precision="float32")
#: About this side the probe's picture has: ways compare as at full size, in a quarter of the time.
_PROBE_SIZE = 224
_PROBE_REPEATS = 3
#: A change is kept if it is faster by more than the clock's noise.
_FASTER = 0.95


@dataclass(frozen=True)
class ReadyDetector:
    """A detector, how it is run, and what runs it: images [batch, 3, height, width] in [0, 1] → heads, float32."""

    trained: TrainedDetector
    execution: Execution
    run: Run


def make_ready(trained: TrainedDetector, options: ExecutionOptions = EXACT) -> ReadyDetector:
    """The detector in evaluation mode with its batch normalisation folded away, run as ``options`` say.

    Whatever they leave open is measured: precision and, without a number of threads, whether one alone is faster (on
    busy machines it is). The net that is given is not changed.
    """
    net = trained.net.fused()
    execution = Execution(
        device=device_of(options),
        precision="bfloat16" if options.precision == "bfloat16" else "float32",
        compiled=options.compiled == "yes",
        channels_last=options.channels_last != "no",
        threads=options.threads or torch.get_num_threads(),
    )
    trials: list[dict[str, object]] = []
    if options.precision == "auto":
        trials.append({"precision": "bfloat16"})
        if not options.threads and execution.threads > 1 and execution.device == "cpu":
            trials.append({"threads": 1})
    if trials:
        execution = _fastest(replace(execution, compiled=False), trials, net)
        execution = replace(execution, compiled=options.compiled == "yes")
    return ReadyDetector(trained, execution, _placed(net, execution))


def _placed(net: DetectorNet, execution: Execution) -> Run:
    """What runs the folded ``net``, which is used up by it."""
    precision = torch.float32
    if execution.precision == "bfloat16":
        precision = torch.bfloat16
        _halve(net)
    layout = torch.channels_last if execution.channels_last else torch.contiguous_format
    net.to(execution.device, memory_format=layout)  # type: ignore[call-overload]
    forward = torch.compile(net) if execution.compiled else net

    def run(images: Tensor) -> list[Tensor]:
        return forward(images.to(execution.device, precision, memory_format=layout))

    return run


def _halve(net: DetectorNet) -> None:
    """Everything but what feeds the heads in bfloat16."""
    net.bfloat16()
    for head in net.architecture.heads:
        for source in net.architecture.sources(head):
            last = net.layers[source].float()
            last.register_forward_pre_hook(_in_float32)


def _in_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.float() for one in inputs)


def _fastest(start: Execution, trials: list[dict[str, object]], net: DetectorNet) -> Execution:
    """Change one thing at a time, keeping each change that is faster."""
    best, seconds = start, _seconds(start, net)
    for change in trials:
        candidate = replace(best, **change)  # type: ignore[arg-type]
        measured = _seconds(candidate, net)
        if measured < _FASTER * seconds:
            best, seconds = candidate, measured
    return best


@torch.inference_mode()
def _seconds(execution: Execution, net: DetectorNet) -> float:
    """The shortest of a few forward passes of a copy after one that warms up."""
    multiple = net.architecture.multiple
    side = -(-_PROBE_SIZE // multiple) * multiple
    image = torch.zeros(1, net.architecture.channels, side, side)
    run = _placed(copy.deepcopy(net), execution)
    durations = []
    with threads_at(execution.threads):
        for _ in range(_PROBE_REPEATS + 1):
            begin = time.perf_counter()
            sum(float(head.sum()) for head in run(image))  # Waits for a graphics card to finish.
            durations.append(time.perf_counter() - begin)
    return min(durations[1:])
