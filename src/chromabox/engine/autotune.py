"""Selection of precision, compilation, memory layout and number of threads by benchmarking.

The fastest configuration depends on the processor (bfloat16 is fast only with hardware support), on the model and on
the length of the run (compilation is too slow for short runs). The configuration is selected by a benchmark of one or
two seconds on a copy of the model. The user can also fix any setting. The result is printed and stored in the run's
configuration, which is reused when the run is resumed.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from chromabox.engine.options import RuntimeOptions
from chromabox.errors import ChromaboxError, UsageError

Precision = Literal["float32", "bfloat16"]

#: Minimum predicted duration of the run, in seconds, for which compilation is tried. On two cores, the compiler takes
#: 10 to 30 s and saves about a quarter of the time.
MIN_SECONDS_TO_COMPILE = 180.0
#: A setting is changed only if a step then takes less than this fraction of its previous time, because measurements
#: vary by about 5 %.
MIN_SPEEDUP = 0.95


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, precision, compilation, memory layout and number of threads for running a model."""

    device: str = "cpu"
    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = False
    threads: int = 1

    def with_overrides(self, options: RuntimeOptions) -> "RuntimeConfig":
        """Return a copy in which the options that are not ``auto`` override the settings."""
        return RuntimeConfig(
            device=self.device if options.device == "auto" else resolve_device(options),
            precision=self.precision if options.precision == "auto" else options.precision,
            compile=self.compile if options.compile == "auto" else options.compile == "on",
            channels_last=self.channels_last if options.channels_last == "auto" else options.channels_last == "on",
            threads=options.threads or self.threads,
        )

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context for the model's forward pass."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision == "bfloat16")

    def prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Move ``model`` to the device and convert its memory layout, both in place. Set PyTorch's number of threads.

        Return the model, or the compiled model if ``compile`` is set.
        """
        torch.set_num_threads(self.threads)
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.compile(model) if self.compile else model

    def __str__(self) -> str:
        mode = "compiled" if self.compile else "eager"
        layout = "channels-last" if self.channels_last else "channels-first"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.device}, {self.precision}, {mode}, {layout}, {threads}"


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """Return whether PyTorch's bfloat16 matmul is fast on the device: true for GPUs and for CPUs with AVX-512."""
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def resolve_device(options: RuntimeOptions) -> str:
    """Return the given device. For ``auto``, return ``cuda`` if it is available and ``cpu`` otherwise.

    Raise UsageError for a CUDA device that PyTorch does not find.
    """
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(options.device)
    return options.device


def check_device(device: str) -> None:
    """Raise UsageError if ``device`` is a CUDA device, ``cuda`` or ``cuda:N``, that PyTorch does not find."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"--device {device}: not available (GPUs that PyTorch can use: {count}); use --device cpu")


def autotune(
    options: RuntimeOptions,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    total_steps: int,
) -> RuntimeConfig:
    """Select the fastest configuration by timing training steps on copies of ``model``.

    Args:
        options: runtime options. Options that are not ``auto`` are kept.
        model: the model to be trained. It is not modified.
        compute_loss: function that takes the forward function of a model, applies it to one batch of the data and
            returns the scalar loss.
        total_steps: number of steps of the run, which determines whether compilation can save time.
    """
    fixed = RuntimeConfig(device=resolve_device(options), threads=torch.get_num_threads()).with_overrides(options)
    changes: list[dict[str, Any]] = []
    if options.channels_last == "auto":
        changes.append({"channels_last": True})
    if options.precision == "auto" and has_fast_bfloat16(fixed.device):
        changes.append({"precision": "bfloat16"})
    if options.threads == 0 and fixed.threads > 1:
        changes.append({"threads": 1})
    best = replace(fixed, compile=False)
    if changes or options.compile == "auto":
        seconds = {best: _time_step(best, model, compute_loss)}
        # Rejected changes are tried again after the others, because some are faster only together: channels-last, for
        # example, may be faster only with bfloat16.
        for change in (*changes, *changes):
            candidate = replace(best, **change)
            if candidate not in seconds:
                seconds[candidate] = _time_step(candidate, model, compute_loss)
                if seconds[candidate] < MIN_SPEEDUP * seconds[best]:
                    best = candidate
        if options.compile == "auto" and seconds[best] * total_steps > MIN_SECONDS_TO_COMPILE:
            candidate = replace(best, compile=True)
            # If the compiler fails (no C++ compiler, unsupported processor), eager mode is used.
            with suppress(Exception):
                if _time_step(candidate, model, compute_loss) < MIN_SPEEDUP * seconds[best]:
                    best = candidate
    torch.set_num_threads(best.threads)
    return replace(best, compile=best.compile or fixed.compile)


def _time_step(
    runtime: RuntimeConfig,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> float:
    """Return the time in seconds of the fastest of three forward and backward passes, after a warm-up pass."""
    model_copy = copy.deepcopy(model).train()
    forward = runtime.prepare(model_copy)
    durations = []
    # Dropout must not advance the global random state, because the benchmark must not change the results of the run.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if runtime.device.startswith("cuda") else []):
        for _ in range(4):
            start_time = time.perf_counter()
            with runtime.autocast():
                loss = compute_loss(forward)
            loss.backward()
            loss.item()  # Wait for a GPU to finish.
            durations.append(time.perf_counter() - start_time)
    return min(durations[1:])


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch threads within the context, also for Python threads that are started there."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def wrap_compile_errors(runtime: RuntimeConfig) -> Iterator[None]:
    """Raise ChromaboxError with a short message if ``torch.compile`` fails. Do nothing in eager mode."""
    if not runtime.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ChromaboxError(f"torch.compile failed ({reason}); install a C++ compiler or use --compile off") from error
