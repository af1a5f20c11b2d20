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

from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.weights.load import Detector
from chromabox.engine.autotune import RuntimeConfig, resolve_device
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.runtime.parallel import num_threads

ForwardFn = Callable[[Float[Tensor, "batch 3 height width"]], list[Tensor]]

#: The same numbers everywhere, without a probe.
FLOAT32_OPTIONS = RuntimeOptions(precision="float32")
#: About this side the probe's picture has: ways compare as at full size, in a quarter of the time.
_PROBE_SIZE = 224
_PROBE_REPEATS = 3
#: A change is kept if it is faster by more than the clock's noise.
_MAX_TIME_RATIO = 0.95


@dataclass(frozen=True)
class OptimizedDetector:
    """A detector, how it is run, and what runs it: images [batch, 3, height, width] in [0, 1] → heads, float32."""

    detector: Detector
    runtime: RuntimeConfig
    forward: ForwardFn


def optimize_for_inference(detector: Detector, options: RuntimeOptions = FLOAT32_OPTIONS) -> OptimizedDetector:
    """The detector in evaluation mode with its batch normalisation folded away, run as ``options`` say.

    Whatever they leave open is measured: precision and, without a number of threads, whether one alone is faster (on
    busy machines it is). The net that is given is not changed.
    """
    net = detector.model.fuse()
    execution = RuntimeConfig(
        device=resolve_device(options),
        precision="bfloat16" if options.precision == "bfloat16" else "float32",
        compile=options.compile == "on",
        channels_last=options.channels_last != "off",
        threads=options.threads or torch.get_num_threads(),
    )
    trials: list[dict[str, object]] = []
    if options.precision == "auto":
        trials.append({"precision": "bfloat16"})
        if not options.threads and execution.threads > 1 and execution.device == "cpu":
            trials.append({"threads": 1})
    if trials:
        execution = _pick_fastest(replace(execution, compile=False), trials, net)
        execution = replace(execution, compile=options.compile == "on")
    return OptimizedDetector(detector, execution, _prepare(net, execution))


def _prepare(model: DarknetModel, runtime: RuntimeConfig) -> ForwardFn:
    """What runs the folded ``net``, which is used up by it."""
    precision = torch.float32
    if runtime.precision == "bfloat16":
        precision = torch.bfloat16
        _to_bfloat16(model)
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    model.to(runtime.device, memory_format=layout)  # type: ignore[call-overload]
    forward = torch.compile(model) if runtime.compile else model

    def run(images: Tensor) -> list[Tensor]:
        return forward(images.to(runtime.device, precision, memory_format=layout))

    return run


def _to_bfloat16(model: DarknetModel) -> None:
    """Everything but what feeds the heads in bfloat16."""
    model.bfloat16()
    for head in model.architecture.head_indices:
        for source in model.architecture.sources(head):
            last = model.layers[source].float()
            last.register_forward_pre_hook(_cast_inputs_float32)


def _cast_inputs_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(one.float() for one in inputs)


def _pick_fastest(start: RuntimeConfig, changes: list[dict[str, object]], model: DarknetModel) -> RuntimeConfig:
    """Change one thing at a time, keeping each change that is faster."""
    best, seconds = start, _time_forward(start, model)
    for change in changes:
        candidate = replace(best, **change)  # type: ignore[arg-type]
        measured = _time_forward(candidate, model)
        if measured < _MAX_TIME_RATIO * seconds:
            best, seconds = candidate, measured
    return best


@torch.inference_mode()
def _time_forward(runtime: RuntimeConfig, model: DarknetModel) -> float:
    """The shortest of a few forward passes of a copy after one that warms up."""
    multiple = model.architecture.max_stride
    side = -(-_PROBE_SIZE // multiple) * multiple
    image = torch.zeros(1, model.architecture.channels, side, side)
    run = _prepare(copy.deepcopy(model), runtime)
    durations = []
    with num_threads(runtime.threads):
        for _ in range(_PROBE_REPEATS + 1):
            begin = time.perf_counter()
            sum(float(head.sum()) for head in run(image))  # Waits for a graphics card to finish.
            durations.append(time.perf_counter() - begin)
    return min(durations[1:])
