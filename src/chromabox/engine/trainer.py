"""Training loop for all models of the package.

A :class:`TrainTask` defines the model, its optimizers, the batches, the loss and the validation. A
:class:`TrainSchedule` defines the length of training. The loop takes optimizer steps, averages weights, validates,
logs and saves checkpoints. It does not depend on the contents of a batch. The task derives all randomness in a batch
from ``(seed, epoch)``. A run that is stopped at any point, even by ``kill -9``, and then resumed therefore has the same
results as an uninterrupted run.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from chromabox.engine.autotune import RuntimeConfig, wrap_compile_errors
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.distributed import (
    DistInfo,
    all_reduce_any,
    all_reduce_gradients,
    all_reduce_mean,
    barrier,
    broadcast_object,
)
from chromabox.engine.logger import EpochRecord, MetricsLogger, progress_bar
from chromabox.engine.optim import LrSchedule
from chromabox.engine.runs import RunConfig, rename_keys
from chromabox.errors import ChromaboxError

BatchT = TypeVar("BatchT")


class TrainingInterrupted(ChromaboxError):
    """Raised on Ctrl-C or SIGTERM after the training state has been saved. The message states how to resume."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class TrainSchedule:
    """Length of training, gradient accumulation, weight averaging and early stopping."""

    epochs: int
    batches_per_epoch: int
    accumulate: int = 1
    """Number of batches per optimizer step (gradient accumulation)."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average (EMA) of weights and BatchNorm statistics. 0 disables the EMA."""
    ema_warmup_steps: float = 0.0
    """Time constant n of the EMA warm-up, in steps. The decay is multiplied by 1 − e^(−step/n), which reduces the
    weight of early steps. 0 disables the warm-up."""
    monitor: str | None = None
    """Metric (lower is better) that selects the best epoch. Without held-out data, None selects the last epoch."""
    patience: int | None = None
    """Number of epochs without improvement in ``monitor`` after which training stops."""
    max_steps: int | None = None
    """Maximum number of optimizer steps. The last epoch can be shortened."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a full epoch."""
        return math.ceil(self.batches_per_epoch / self.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        steps = self.epochs * self.steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def batches_in_epoch(self, epoch: int) -> int:
        """Return the number of batches in the epoch with this zero-based index. Return 0 after the last epoch."""
        remaining_steps = self.total_steps - epoch * self.steps_per_epoch
        return max(0, min(self.batches_per_epoch, remaining_steps * self.accumulate))


def make_schedule(
    config: RunConfig,
    batches_per_epoch: int,
    *,
    accumulate: int = 1,
    monitor: str | None = None,
    ema_warmup: bool = True,
) -> TrainSchedule:
    """Return the schedule of a run. With ``ema_warmup``, the time constant of the EMA warm-up is 2 % of the run."""
    schedule = TrainSchedule(
        epochs=config.recipe.epochs,
        batches_per_epoch=batches_per_epoch,
        accumulate=accumulate,
        monitor=monitor,
        patience=config.patience,
        max_steps=config.max_steps,
    )
    if config.max_steps is not None:
        schedule = replace(schedule, epochs=math.ceil(config.max_steps / schedule.steps_per_epoch))
    if config.recipe.ema_fraction:
        decay = max(0.0, 1 - 1 / (config.recipe.ema_fraction * schedule.total_steps))
        warmup_steps = schedule.total_steps / 50 if ema_warmup else 0.0
        schedule = replace(schedule, ema_decay=decay, ema_warmup_steps=warmup_steps)
    return schedule


@dataclass(frozen=True, kw_only=True)
class TrainTask(Generic[BatchT]):
    """Model, optimizers, data, loss and validation of a training run."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    batches: Callable[[int, int], Iterable[BatchT]]
    """Function of the epoch and of the number of batches to skip that returns the remaining batches of the epoch. The
    batches must be deterministic."""
    compute_loss: Callable[[Callable[[Tensor], Tensor], BatchT], dict[str, Tensor]]
    """Function that returns scalars for one batch: ``loss``, which is minimised, and other values to log."""
    validate: Callable[[nn.Module], dict[str, float]]
    """Function that returns the metrics of a model in evaluation mode. It is called in the main process only."""
    lr_schedule: LrSchedule
    """Function of the step that returns, for every optimizer, the settings (such as ``lr``) of its parameter groups."""
    checkpoint_metadata: Callable[[], dict[str, Any]]
    """Function that returns the metadata of a checkpoint (JSON values)."""


@dataclass
class _TrainState:
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def fit(
    task: TrainTask[BatchT],
    schedule: TrainSchedule,
    *,
    folder: Path,
    runtime: RuntimeConfig,
    dist_info: DistInfo | None = None,
    resume: bool = False,
    on_epoch_end: Callable[[EpochRecord, nn.Module], None] = lambda record, model: None,
) -> nn.Module:
    """Train the model and return the model to evaluate: the averaged model if there is an EMA.

    Write ``metrics.jsonl``, ``metrics.csv``, TensorBoard events, ``last.safetensors`` (the complete state for resuming)
    and ``best.safetensors`` (the model only) to ``folder``. ``on_epoch_end`` is called in the main process with the
    epoch's record and the model. Raise TrainingInterrupted on Ctrl-C or SIGTERM, after saving the state. Raise
    ChromaboxError if the loss or a metric is not finite.
    """
    trainer = _Trainer(task, schedule, folder, runtime, dist_info or DistInfo(), on_epoch_end)
    if resume:
        trainer.load_state()
    trainer.run()
    return trainer.eval_model


@dataclass
class _Trainer(Generic[BatchT]):
    """Training run in progress."""

    task: TrainTask[BatchT]
    schedule: TrainSchedule
    folder: Path
    runtime: RuntimeConfig
    dist_info: DistInfo
    on_epoch_end: Callable[[EpochRecord, nn.Module], None]

    def __post_init__(self) -> None:
        self.state = _TrainState()
        self.prepared_model = self.runtime.prepare(self.task.model)
        self.ema_model = _make_ema(self.task.model, self.schedule) if self.schedule.ema_decay else None
        self.metric_sums: dict[str, Tensor] = {}

    @property
    def eval_model(self) -> nn.Module:
        """The model to validate, to save as ``best.safetensors`` and to return: the averaged model if there is one."""
        return self.ema_model.module if self.ema_model is not None else self.task.model

    @property
    def batches_this_epoch(self) -> int:
        """Batches in the current epoch; 0 after the last epoch."""
        return self.schedule.batches_in_epoch(self.state.epoch)

    @property
    def is_step_due(self) -> bool:
        """Whether an optimizer step is due after the most recent batch."""
        return self.state.batch % self.schedule.accumulate == 0 or self.state.batch == self.batches_this_epoch

    def run(self) -> None:
        """Train until the end of the schedule, or until ``patience`` epochs have passed without improvement."""
        schedule, state, is_main = self.schedule, self.state, self.dist_info.is_main
        total = sum(schedule.batches_in_epoch(epoch) for epoch in range(schedule.epochs))
        completed = state.epoch * schedule.batches_per_epoch + state.batch
        with (
            closing(MetricsLogger(self.folder, state.epoch)) if is_main else nullcontext() as logger,
            _catch_signals() as stop_requested,
            progress_bar("training", total, completed, show=is_main) as advance,
        ):
            while self.batches_this_epoch:
                if schedule.patience is not None and state.epoch - state.best_epoch >= schedule.patience:
                    break
                start_time = time.perf_counter()
                remaining = self.batches_this_epoch - state.batch
                for batch in islice(self.task.batches(state.epoch, state.batch), remaining):
                    with wrap_compile_errors(self.runtime):
                        self.training_step(batch)
                    advance(epoch=state.epoch + 1)
                    # The run stops only after an optimizer step, because gradients are not saved.
                    if self.is_step_due and all_reduce_any(stop_requested(), self.dist_info):
                        state.seconds += time.perf_counter() - start_time
                        self.save_and_interrupt()
                self.end_epoch(logger, start_time)

    def training_step(self, batch: BatchT) -> None:
        """Run a forward and a backward pass, and an optimizer step if one is due."""
        schedule, state, optimizers = self.schedule, self.state, self.task.optimizers
        first_batch = state.batch - state.batch % schedule.accumulate
        if state.batch == first_batch:
            for optimizer in optimizers:
                optimizer.zero_grad()
        self.task.model.train()
        with self.runtime.autocast():
            losses = self.task.compute_loss(self.prepared_model, batch)
        (losses["loss"] / min(schedule.accumulate, self.batches_this_epoch - first_batch)).backward()
        for name, value in losses.items():
            # The sums are float64, so that interrupting an epoch does not change its mean, even in the last digit.
            previous = self.metric_sums.get(name, torch.zeros((), dtype=torch.float64))
            self.metric_sums[name] = previous + value.detach().double()
        state.batch += 1
        if not self.is_step_due:
            return
        all_reduce_gradients(list(self.task.model.parameters()), self.dist_info)
        for optimizer, groups in zip(optimizers, self.task.lr_schedule(state.step), strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
            optimizer.step()
        state.step += 1
        if self.ema_model is not None:
            self.ema_model.update_parameters(self.task.model)

    def average_metric_sums(self) -> None:
        """Replace the metric sums by their means over the processes."""
        means = all_reduce_mean(torch.stack(list(self.metric_sums.values())), self.dist_info)
        self.metric_sums = dict(zip(self.metric_sums, means, strict=True))

    def end_epoch(self, logger: MetricsLogger | None, start_time: float) -> None:
        """Validate, log, and save the checkpoints of the finished epoch."""
        state, monitor, model = self.state, self.schedule.monitor, self.eval_model
        self.average_metric_sums()
        record: EpochRecord = {"epoch": state.epoch + 1}
        num_batches = self.batches_this_epoch
        record |= {f"train_{name}": (total / num_batches).item() for name, total in self.metric_sums.items()}
        self.check_finite(record)
        metrics: dict[str, float] = {}
        if logger is not None:
            was_training = model.training
            model.eval()
            with torch.no_grad(), self.runtime.autocast():
                metrics = self.task.validate(model)
            model.train(was_training)
        record |= broadcast_object(metrics, self.dist_info)
        self.check_finite(record)
        record["seconds"] = round(state.seconds + time.perf_counter() - start_time, 3)
        self.metric_sums = {}
        state.epoch, state.batch, state.seconds = state.epoch + 1, 0, 0.0
        improved = monitor is None or record[monitor] < state.best
        if improved:
            state.best_epoch = state.epoch
            state.best = math.inf if monitor is None else record[monitor]
        if logger is not None:
            logger.log(record)
            metadata = {**self.task.checkpoint_metadata(), **record}
            if improved:
                save_checkpoint(self.folder / "best.safetensors", {"net": model.state_dict()}, metadata)
            self.save_state(metadata)
            # An error in a callback must not lose the epoch.
            self.on_epoch_end(record, model)
        barrier(self.dist_info)

    def check_finite(self, record: EpochRecord) -> None:
        """Raise ChromaboxError if a value is not finite. Call this method before values are logged or saved."""
        for name, value in record.items():
            if not math.isfinite(value):
                raise ChromaboxError(
                    f"{self.folder}: {name} became {value} in epoch {self.state.epoch + 1}; "
                    "try a lower learning rate or --precision float32"
                )

    def save_and_interrupt(self) -> None:
        """Save the state in the main process, and raise TrainingInterrupted in every process."""
        state = self.state
        self.average_metric_sums()
        if self.dist_info.is_main:
            self.save_state({**self.task.checkpoint_metadata(), "epoch": state.epoch, "batch": state.batch})
        # Every process waits until the file is complete. A process that exits earlier could resume from an older file,
        # or cause torchrun to kill the main process while the file is being written.
        barrier(self.dist_info)
        raise TrainingInterrupted(
            f"stopped in epoch {state.epoch + 1} after batch {state.batch}; "
            f"the state is saved in {self.folder}: continue with --resume {self.folder}"
        )

    def save_state(self, metadata: dict[str, Any]) -> None:
        """Save the complete state for resuming to ``last.safetensors``."""
        resume = {
            "loop": {**vars(self.state), "best": None if math.isinf(self.state.best) else self.state.best},
            "net": self.task.model.state_dict(),
            "average": None if self.ema_model is None else self.ema_model.state_dict(),
            "optimisers": [optimizer.state_dict() for optimizer in self.task.optimizers],
            "sums": self.metric_sums,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if self.runtime.device.startswith("cuda") else None,
        }
        state = {"net": self.eval_model.state_dict(), "resume": resume}
        save_checkpoint(self.folder / "last.safetensors", state, metadata)

    def load_state(self) -> None:
        """Load the complete state from ``last.safetensors``.

        Raise ChromaboxError if the file is damaged, or contains no training state or that of another model.
        """
        path = self.folder / "last.safetensors"
        resume = load_checkpoint(path)[0].get("resume")
        if resume is None:
            raise ChromaboxError(
                f"{path}: contains a model but no training state; expected the last.safetensors of a training run"
            )
        try:
            self._restore(resume)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]  # PyTorch lists mismatched tensors on several lines.
            raise ChromaboxError(
                f"{path}: the training state is damaged or belongs to another model ({reason}); restore the file from "
                "a copy, or start the run again"
            ) from error

    def _restore(self, resume: dict[str, Any]) -> None:
        # Checkpoints written by version 0.1.0 or earlier have the key "update" instead of "step".
        loop = rename_keys(resume["loop"], {"update": "step"})
        if not all(isinstance(value, int | float) for name, value in loop.items() if name != "best"):
            raise ValueError(f"invalid counters {loop}")
        self.state = _TrainState(**{**loop, "best": math.inf if loop["best"] is None else float(loop["best"])})
        self.task.model.load_state_dict(resume["net"])
        if self.ema_model is not None:
            self.ema_model.load_state_dict(resume["average"])
        for optimizer, saved in zip(self.task.optimizers, resume["optimisers"], strict=True):
            optimizer.load_state_dict(saved)
        self.metric_sums = resume["sums"]
        torch.set_rng_state(resume["random"])
        if resume.get("cuda_random") is not None and self.runtime.device.startswith("cuda"):
            torch.cuda.set_rng_state(resume["cuda_random"])


def _make_ema(model: nn.Module, schedule: TrainSchedule) -> AveragedModel:
    """Create an exponential moving average of parameters and buffers with the schedule's decay."""

    @torch.no_grad()
    def update_averages(averages: Any, currents: Any, count: Any) -> None:
        warmup = 1 - math.exp(-float(count) / schedule.ema_warmup_steps) if schedule.ema_warmup_steps else 1.0
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - schedule.ema_decay * warmup)
            else:
                average.copy_(current)

    return AveragedModel(model, multi_avg_fn=update_averages, use_buffers=True)


@contextmanager
def _catch_signals() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT (Ctrl-C) and SIGTERM. Yield a function that returns whether a signal was received.

    A second signal raises KeyboardInterrupt immediately.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    # Python allows only the main thread to handle signals.
    numbers = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
