"""Optimisation of a detector for inference: BatchNorm folding, memory layout and precision.

bfloat16 has the range of float32 and 8 significant bits. With hardware support, a forward pass takes about half the
time; without it, a forward pass takes longer. A measurement therefore selects the precision. The convolutions that feed
the heads stay in float32, since the boxes are decoded from their outputs.
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
from chromabox.engine.autotune import RuntimeConfig, has_fast_bfloat16, resolve_device
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.runtime.parallel import num_threads

ForwardFn = Callable[[Float[Tensor, "batch 3 height width"]], list[Tensor]]

#: Results that do not depend on a measurement, and no measurement.
FLOAT32_OPTIONS = RuntimeOptions(precision="float32")
#: Approximate side length of the benchmark image in pixels. Settings rank as at full size, in a quarter of the time.
_PROBE_SIZE = 224
_PROBE_REPEATS = 3
#: Maximum ratio of the new to the old time at which a setting is changed; smaller differences are noise.
_MAX_TIME_RATIO = 0.95


@dataclass(frozen=True)
class OptimizedDetector:
    """A detector, its runtime settings, and its forward function.

    The forward function maps images [batch, 3, height, width] in [0, 1] to the raw outputs of the heads in float32.
    """

    detector: Detector
    runtime: RuntimeConfig
    forward: ForwardFn


def optimize_for_inference(detector: Detector, options: RuntimeOptions = FLOAT32_OPTIONS) -> OptimizedDetector:
    """Return the detector in evaluation mode with BatchNorm folded into the convolutions.

    With ``precision="auto"``, the precision is selected by measurement. If the number of threads is not given, a single
    thread is also measured, since it is faster on a busy machine. The given model is not modified.
    """
    model = detector.model.fuse()
    runtime = RuntimeConfig(
        device=resolve_device(options),
        precision="bfloat16" if options.precision == "bfloat16" else "float32",
        compile=options.compile == "on",
        channels_last=options.channels_last != "off",
        threads=options.threads or torch.get_num_threads(),
    )
    trials: list[dict[str, object]] = []
    if options.precision == "auto":
        if has_fast_bfloat16(runtime.device):
            trials.append({"precision": "bfloat16"})
        if not options.threads and runtime.threads > 1 and runtime.device == "cpu":
            trials.append({"threads": 1})
    if trials:
        runtime = _pick_fastest(replace(runtime, compile=False), trials, model)
        runtime = replace(runtime, compile=options.compile == "on")
    return OptimizedDetector(detector, runtime, _prepare(model, runtime))


def _prepare(model: DarknetModel, runtime: RuntimeConfig) -> ForwardFn:
    """Return the forward function of a folded model, which is modified in place."""
    dtype = torch.float32
    if runtime.precision == "bfloat16":
        dtype = torch.bfloat16
        _to_bfloat16(model)
    layout = torch.channels_last if runtime.channels_last else torch.contiguous_format
    model.to(runtime.device, memory_format=layout)  # type: ignore[call-overload]
    forward = torch.compile(model) if runtime.compile else model

    def run(images: Tensor) -> list[Tensor]:
        return forward(images.to(runtime.device, dtype, memory_format=layout))

    return run


def _to_bfloat16(model: DarknetModel) -> None:
    """Convert a model to bfloat16, except for the last convolution of each head."""
    model.bfloat16()
    for head in model.architecture.head_indices:
        for source in model.architecture.sources(head):
            last = model.layers[source].float()
            last.register_forward_pre_hook(_cast_inputs_float32)


def _cast_inputs_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs)


def _pick_fastest(start: RuntimeConfig, changes: list[dict[str, object]], model: DarknetModel) -> RuntimeConfig:
    """Apply one change after another and keep those that are faster."""
    best, best_seconds = start, _time_forward(start, model)
    for change in changes:
        candidate = replace(best, **change)  # type: ignore[arg-type]
        seconds = _time_forward(candidate, model)
        if seconds < _MAX_TIME_RATIO * best_seconds:
            best, best_seconds = candidate, seconds
    return best


@torch.inference_mode()
def _time_forward(runtime: RuntimeConfig, model: DarknetModel) -> float:
    """Return the minimum time of a few forward passes of a copy of the model, after one pass as warm-up."""
    multiple = model.architecture.max_stride
    side = -(-_PROBE_SIZE // multiple) * multiple
    image = torch.zeros(1, model.architecture.channels, side, side)
    run = _prepare(copy.deepcopy(model), runtime)
    durations = []
    with num_threads(runtime.threads):
        for _ in range(_PROBE_REPEATS + 1):
            start_time = time.perf_counter()
            sum(float(head.sum()) for head in run(image))  # Waits until a GPU has finished.
            durations.append(time.perf_counter() - start_time)
    return min(durations[1:])
