"""How a net is run on this machine: precision, compilation, memory layout, threads; measured, not guessed.

Which way is fastest depends on the processor (bfloat16 pays only where the arithmetic units have it), on the net and
on how long the training is (compilation costs seconds before it saves any). A probe of a second or two decides, on
a copy of the net; every choice can also be given. What was chosen is printed and kept in the run's configuration, so
that a resumed run goes on in the same way.
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
from chromabox.errors import ChromaboxError

Precision = Literal["float32", "bfloat16"]

#: Compilation is tried only where the rest of the run is predicted to take longer than this, in seconds: on two cores
#: the compiler takes 10 to 30 s, and what it gains is about a quarter.
MIN_SECONDS_TO_COMPILE = 180.0


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """A way of running a net."""

    device: str = "cpu"
    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = False
    threads: int = 1

    def with_overrides(self, options: RuntimeOptions) -> "RuntimeConfig":
        """The same with whatever the options fix."""
        return RuntimeConfig(
            device=self.device if options.device == "auto" else options.device,
            precision=self.precision if options.precision == "auto" else options.precision,
            compile=self.compile if options.compile == "auto" else options.compile == "on",
            channels_last=self.channels_last if options.channels_last == "auto" else options.channels_last == "on",
            threads=options.threads or self.threads,
        )

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the net's forward pass runs."""
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.precision == "bfloat16")

    def prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Move ``net`` (in place) to the device and layout, set the threads; returns what to call on batches."""
        torch.set_num_threads(self.threads)
        model.to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.compile(model) if self.compile else model

    def __str__(self) -> str:
        words = [self.device, self.precision, "compiled" if self.compile else "eager"]
        words += ["channels-last" if self.channels_last else "channels-first"]
        words += [f"{self.threads} thread" + ("s" if self.threads != 1 else "")]
        return ", ".join(words)


def resolve_device(options: RuntimeOptions) -> str:
    """The device that is named, or for ``auto`` the graphics card where there is one."""
    if options.device != "auto":
        return options.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def autotune(
    options: RuntimeOptions,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    total_steps: int,
) -> RuntimeConfig:
    """Choose by measuring training steps on copies of ``net``.

    Args:
        options: what is fixed beforehand.
        net: the net to be trained; it is not changed.
        losses: runs a callable net forward on one real batch and returns the scalar loss.
        steps: how many steps the run will take, which decides whether compiling can pay.
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
    if options.precision == "auto":
        trials.append({"precision": "bfloat16"})
    if options.threads == 0 and fixed.threads > 1:
        trials.append({"threads": 1})
    best = replace(fixed, compile=False)
    if trials or options.compile == "auto":
        best, seconds = _pick_fastest(best, trials, model, compute_loss)
        if options.compile == "auto" and seconds * total_steps > MIN_SECONDS_TO_COMPILE:
            best = _try_compile(best, seconds, model, compute_loss)
    if options.compile == "on":
        best = replace(best, compile=True)
    torch.set_num_threads(best.threads)
    return best


def _pick_fastest(
    start: RuntimeConfig,
    changes: list[dict[str, object]],
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> tuple[RuntimeConfig, float]:
    """Change one thing at a time, keeping each change that is faster by more than the clock's noise (5 %).

    What did not pay is tried again beside what did later: channels-last may pay in bfloat16 only.
    """
    best, measured = start, {start: _time_step(start, model, compute_loss)}
    for change in (*changes, *changes):
        candidate = replace(best, **change)  # type: ignore[arg-type]
        if candidate not in measured:
            measured[candidate] = _time_step(candidate, model, compute_loss)
            if measured[candidate] < 0.95 * measured[best]:
                best = candidate
    return best, measured[best]


def _try_compile(
    eager: RuntimeConfig,
    eager_seconds: float,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
) -> RuntimeConfig:
    candidate = replace(eager, compile=True)
    try:
        measured = _time_step(candidate, model, compute_loss)
    except Exception:  # Any failure of the compiler (no C++ compiler, an unsupported processor) only means: eager.
        return eager
    return candidate if measured < 0.95 * eager_seconds else eager


def _time_step(
    runtime: RuntimeConfig,
    model: nn.Module,
    compute_loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    repeats: int = 3,
) -> float:
    """The shortest of a few forward and backward passes after one that warms up."""
    twin = copy.deepcopy(model).train()
    run = runtime.prepare(twin)
    durations = []
    # Dropout in the probe must not use up random numbers: a run is the same whether it was probed or not.
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if runtime.device.startswith("cuda") else []):
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            with runtime.autocast():
                loss = compute_loss(run)
            loss.backward()
            loss.item()  # Waits for a GPU to finish.
            durations.append(time.perf_counter() - begin)
    return min(durations[1:])


@contextmanager
def wrap_compile_errors(runtime: RuntimeConfig) -> Iterator[None]:
    """Turn a failing compiler, whose complaints are pages long, into one sentence; costs nothing in eager mode."""
    if not runtime.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    try:
        yield
    except (TorchDynamoException, InductorError) as error:
        why = str(error).strip().split("\n")[0]
        raise ChromaboxError(f"torch.compile failed ({why}); install a C++ compiler, or give --compiled no") from error
