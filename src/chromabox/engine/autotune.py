"""Selection of precision, compilation, memory layout and number of threads by benchmarking.

The fastest configuration depends on the processor (bfloat16 is fast only with hardware support), on the model and on
the length of the run (compilation takes seconds before it saves any). It is selected by a benchmark of one or two
seconds on a copy of the model; any setting can also be fixed. The result is printed and stored in the run's
configuration, which a resumed run reuses.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import ChromaboxError, UsageError

Precision = Literal["float32", "bfloat16"]

#: Minimum predicted duration of the run, in seconds, for which compilation is tried: on two cores the compiler takes
#: 10 to 30 s and saves about a quarter of the time.
MIN_SECONDS_TO_COMPILE = 180.0


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, precision, compilation, memory layout and number of threads for running a model."""

    device: str = "cpu"
    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = False
    threads: int = 1

    def with_overrides(self, options: RuntimeOptions) -> "RuntimeConfig":
        """Return a copy with the settings that are fixed by the options."""
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
        """Move ``model`` to the device and layout in place, set the threads, and return the callable for batches."""
        torch.set_num_threads(self.threads)
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.compile(model) if self.compile else model

    def __str__(self) -> str:
        parts = [self.device, self.precision, "compiled" if self.compile else "eager"]
        parts += ["channels-last" if self.channels_last else "channels-first"]
        parts += [f"{self.threads} thread" + ("s" if self.threads != 1 else "")]
        return ", ".join(parts)


def has_fast_bfloat16(device: str | torch.device) -> bool:
    """Return whether PyTorch's bfloat16 matmul is fast on the device: on any GPU, and on a CPU with AVX-512."""
    return torch.device(device).type != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def resolve_device(options: RuntimeOptions) -> str:
    """Return the given device; for ``auto``, ``cuda`` if available and ``cpu`` otherwise.

    Raise UsageError for an unknown device, and for a CUDA device that PyTorch does not find.
    """
    if options.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = options.device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageError(f"--device is {options.device!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {options.device}: not available to PyTorch; use cpu or auto")
    return options.device


def autotune(
    options: RuntimeOptions,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    total_steps: int,
) -> RuntimeConfig:
    """Select the fastest configuration by timing training steps on copies of ``model``.

    Args:
        options: settings that are fixed.
        model: the model to be trained; it is not modified.
        compute_loss: runs a forward pass of a callable model on one real batch and returns the scalar loss.
        total_steps: number of steps of the run, which determines whether compilation can save time.
    """
    fixed = RuntimeConfig(
        device=resolve_device(options),
        precision="bfloat16" if options.precision == "bfloat16" else "float32",
        compile=options.compile == "on",
        channels_last=options.channels_last == "on",
        threads=options.threads or torch.get_num_threads(),
    )
    trials: list[dict[str, object]] = []
    if options.channels_last == "auto":
        trials.append({"channels_last": True})
    if options.precision == "auto" and has_fast_bfloat16(fixed.device):
        trials.append({"precision": "bfloat16"})
    if options.threads == 0 and fixed.threads > 1:
        trials.append({"threads": 1})
    best = replace(fixed, compile=False)
    if trials or options.compile == "auto":
        best, seconds = _pick_fastest_config(best, trials, model, compute_loss)
        if options.compile == "auto" and seconds * total_steps > MIN_SECONDS_TO_COMPILE:
            best = _try_compile(best, seconds, model, compute_loss)
    if options.compile == "on":
        best = replace(best, compile=True)
    torch.set_num_threads(best.threads)
    return best


def _pick_fastest_config(
    initial: RuntimeConfig,
    changes: list[dict[str, object]],
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> tuple[RuntimeConfig, float]:
    """Change one setting at a time; keep a change if it is faster by more than the measurement noise (5 %).

    Rejected changes are retried after the others: channels-last, for example, may be faster only in bfloat16.
    """
    best, seconds = initial, {initial: _time_step(initial, model, compute_loss)}
    for change in (*changes, *changes):
        candidate = replace(best, **change)  # type: ignore[arg-type]
        if candidate not in seconds:
            seconds[candidate] = _time_step(candidate, model, compute_loss)
            if seconds[candidate] < 0.95 * seconds[best]:
                best = candidate
    return best, seconds[best]


def _try_compile(
    eager: RuntimeConfig,
    eager_seconds: float,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> RuntimeConfig:
    candidate = replace(eager, compile=True)
    try:
        seconds = _time_step(candidate, model, compute_loss)
    except Exception:  # If the compiler fails (no C++ compiler, unsupported processor), eager mode is used.
        return eager
    return candidate if seconds < 0.95 * eager_seconds else eager


def _time_step(
    runtime: RuntimeConfig,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    repeats: int = 3,
) -> float:
    """Return the shortest time in seconds of a few forward and backward passes after a warm-up."""
    model_copy = copy.deepcopy(model).train()
    forward = runtime.prepare(model_copy)
    durations = []
    # Dropout must not advance the random state: a run must be the same with and without the benchmark.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if runtime.device.startswith("cuda") else []):
        for _ in range(repeats + 1):
            start_time = time.perf_counter()
            with runtime.autocast():
                loss = compute_loss(forward)
            loss.backward()
            loss.item()  # Wait for a GPU to finish.
            durations.append(time.perf_counter() - start_time)
    return min(durations[1:])


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch threads within the context, including for threads started there."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


@contextmanager
def wrap_compile_errors(runtime: RuntimeConfig) -> Iterator[None]:
    """Raise ChromaboxError with a short message if torch.compile fails. Do nothing in eager mode."""
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
