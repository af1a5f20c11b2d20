"""Training loop for all models of the package.

A :class:`TrainTask` defines the model, its optimizers, the batches, the loss and the validation. A
:class:`TrainSchedule` defines the length of training. The loop takes optimizer steps, averages weights, validates,
logs, saves checkpoints and stops; it does not depend on the contents of a batch. The task derives all randomness in a
batch from ``(seed, epoch)``. A run that was stopped at any point, even by ``kill -9``, therefore resumes with the same
results as an uninterrupted run.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
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
from chromabox.engine.logger import EpochRecord, MetricsLogger, ProgressCallback, progress_bar
from chromabox.engine.optim import LrSchedule
from chromabox.engine.runs import RunConfig, rename_keys
from chromabox.errors import ChromaboxError

BatchT = TypeVar("BatchT")


class TrainingInterrupted(ChromaboxError):
    """Interruption by Ctrl-C or SIGTERM. The state has been saved; the message explains how to resume."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class TrainSchedule:
    """Length of training, gradient accumulation, weight averaging and early stopping."""

    epochs: int
    batches_per_epoch: int
    """Batches per epoch."""
    accumulate: int = 1
    """Batches per optimizer step (gradient accumulation)."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average (EMA) of weights and BatchNorm statistics; 0 disables it."""
    ema_warmup_steps: float = 0.0
    """The decay is multiplied by 1 − e^(−step/warmup), which reduces the weight of early steps; 0: no warm-up."""
    monitor: str | None = None
    """Metric (lower is better) that selects the best epoch; None (no held-out data): the last epoch is best."""
    patience: int | None = None
    """Number of epochs without improvement in ``monitor`` after which training stops."""
    max_steps: int | None = None
    """Maximum number of optimizer steps; the last epoch can be shortened."""

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
        """Return the number of batches in the epoch with this zero-based index; 0 for epochs after the last one."""
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
    """Return the schedule of a run.

    Args:
        config: the run's configuration.
        batches_per_epoch: batches per epoch.
        accumulate: batches per optimizer step.
        monitor: metric that selects the best epoch; None: the last epoch is best.
        ema_warmup: warm up the moving average in the first 2 % of the run.
    """
    schedule = TrainSchedule(
        epochs=config.recipe.epochs,
        batches_per_epoch=batches_per_epoch,
        accumulate=accumulate,
        monitor=monitor,
        patience=config.patience,
    )
    if config.max_steps is not None:
        epochs = math.ceil(config.max_steps / schedule.steps_per_epoch)
        schedule = replace(schedule, epochs=epochs, max_steps=config.max_steps)
    if config.recipe.ema_fraction:
        schedule = replace(
            schedule,
            ema_decay=max(0.0, 1 - 1 / (config.recipe.ema_fraction * schedule.total_steps)),
            ema_warmup_steps=schedule.total_steps / 50 if ema_warmup else 0.0,
        )
    return schedule


@dataclass(frozen=True, kw_only=True)
class TrainTask(Generic[BatchT]):
    """Model, optimizers, data, loss and validation of a training run."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    batches: Callable[[int, int], Iterable[BatchT]]
    """(epoch, number of batches to skip) → the remaining batches of the epoch; deterministic."""
    compute_loss: Callable[[Callable[[Tensor], Tensor], BatchT], dict[str, Tensor]]
    """Scalars of one batch: ``loss``, which is minimised, and other values to log."""
    validate: Callable[[nn.Module], dict[str, float]]
    """Metrics of a model in evaluation mode; called in the main process only."""
    lr_schedule: LrSchedule
    """Step → the settings (``lr`` …) of each parameter group of each optimizer."""
    checkpoint_metadata: Callable[[], dict[str, Any]]
    """Metadata of a checkpoint (JSON values)."""


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
    """Train the model and return it for evaluation (with averaged weights if there is an EMA).

    Write ``metrics.jsonl``, ``metrics.csv``, TensorBoard events, ``last.safetensors`` (the complete state for resuming)
    and ``best.safetensors`` (the model only) to ``folder``. ``on_epoch_end`` is called in the main process with the
    epoch's record and the model. Raise TrainingInterrupted on Ctrl-C or SIGTERM, after saving the state, and
    ChromaboxError if the loss or a metric is not finite.
    """
    return _Trainer(task, schedule, folder, runtime, dist_info or DistInfo(), on_epoch_end).run(resume)


class _Trainer(Generic[BatchT]):
    """State of one training run."""

    def __init__(
        self,
        task: TrainTask[BatchT],
        schedule: TrainSchedule,
        folder: Path,
        runtime: RuntimeConfig,
        dist_info: DistInfo,
        on_epoch_end: Callable[[EpochRecord, nn.Module], None],
    ) -> None:
        self.task, self.schedule, self.folder, self.runtime, self.dist_info = task, schedule, folder, runtime, dist_info
        self.on_epoch_end = on_epoch_end
        self.state = _TrainState()
        self.prepared_model = runtime.prepare(task.model)
        self.ema_model = _make_ema(task.model, schedule) if schedule.ema_decay else None
        self.metric_sums: dict[str, Tensor] = {}

    @property
    def eval_model(self) -> nn.Module:
        """The model that is validated, saved as best, and returned."""
        return self.ema_model.module if self.ema_model is not None else self.task.model

    def run(self, resume: bool) -> nn.Module:
        if resume:
            self.load_state()
        logger = MetricsLogger(self.folder, self.state.epoch) if self.dist_info.is_main else None
        try:
            with _catch_signals() as stop_requested, self.make_progress_bar() as advance:
                while self.batches_this_epoch and not self.should_stop_early():
                    start_time = time.perf_counter()
                    remaining = self.batches_this_epoch - self.state.batch
                    for batch in islice(self.task.batches(self.state.epoch, self.state.batch), remaining):
                        with wrap_compile_errors(self.runtime):
                            self.training_step(batch)
                        advance(epoch=self.state.epoch + 1)
                        # The run stops only after an optimizer step, because gradients are not saved.
                        if self.is_step_due() and all_reduce_any(stop_requested(), self.dist_info):
                            self.state.seconds += time.perf_counter() - start_time
                            self.save_and_interrupt()
                    self.end_epoch(logger, start_time)
        finally:
            if logger is not None:
                logger.close()
        return self.eval_model

    @property
    def batches_this_epoch(self) -> int:
        """Batches in the current epoch; 0 after the last epoch."""
        return self.schedule.batches_in_epoch(self.state.epoch)

    def make_progress_bar(self) -> AbstractContextManager[ProgressCallback]:
        """Return a progress bar over all batches of the run, shown by the main process."""
        total = sum(self.schedule.batches_in_epoch(epoch) for epoch in range(self.schedule.epochs))
        completed = self.state.epoch * self.schedule.batches_per_epoch + self.state.batch
        return progress_bar("training", total, completed, show=self.dist_info.is_main)

    def is_step_due(self) -> bool:
        """Return whether an optimizer step is due after the most recent batch."""
        return self.state.batch % self.schedule.accumulate == 0 or self.state.batch == self.batches_this_epoch

    def training_step(self, batch: BatchT) -> None:
        """Run a forward and backward pass; take a step after ``accumulate`` batches and at the end of the epoch."""
        schedule, state = self.schedule, self.state
        if state.batch % schedule.accumulate == 0:
            for optimizer in self.task.optimizers:
                optimizer.zero_grad()
        self.task.model.train()
        with self.runtime.autocast():
            losses = self.task.compute_loss(self.prepared_model, batch)
        first_batch = state.batch - state.batch % schedule.accumulate
        (losses["loss"] / min(schedule.accumulate, self.batches_this_epoch - first_batch)).backward()
        for name, value in losses.items():
            # Sum in float64: a resumed epoch must have the same mean to the last digit.
            self.metric_sums[name] = (
                self.metric_sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double()
            )
        state.batch += 1
        if self.is_step_due():
            self.optimizer_step()

    def optimizer_step(self) -> None:
        all_reduce_gradients(list(self.task.model.parameters()), self.dist_info)
        for optimizer, groups in zip(self.task.optimizers, self.task.lr_schedule(self.state.step), strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
            optimizer.step()
        self.state.step += 1
        if self.ema_model is not None:
            self.ema_model.update_parameters(self.task.model)

    def end_epoch(self, logger: MetricsLogger | None, start_time: float) -> None:
        """Validate, log, and save the checkpoints of the finished epoch."""
        state = self.state
        means = all_reduce_mean(torch.stack(list(self.metric_sums.values())), self.dist_info) / self.batches_this_epoch
        record: EpochRecord = {"epoch": state.epoch + 1}
        record |= {f"train_{name}": value for name, value in zip(self.metric_sums, means.tolist(), strict=True)}
        self.check_finite(record)
        eval_model = self.eval_model
        metrics = _validate(self.task, eval_model, self.runtime) if self.dist_info.is_main else {}
        record |= broadcast_object(metrics, self.dist_info)
        self.check_finite(record)
        state.seconds += time.perf_counter() - start_time
        record["seconds"] = round(state.seconds, 3)
        score = record[self.schedule.monitor] if self.schedule.monitor else -math.inf
        improved = score < state.best or self.schedule.monitor is None
        self.metric_sums = {}
        state.epoch, state.batch, state.seconds = state.epoch + 1, 0, 0.0
        if improved:
            state.best_epoch = state.epoch
            state.best = score if self.schedule.monitor else math.inf
        if logger is not None:
            logger.log(record)
            self.on_epoch_end(record, eval_model)
            if improved:
                best_path = self.folder / "best.safetensors"
                save_checkpoint(best_path, {"net": eval_model.state_dict()}, self.metadata(record))
            self.save_state(self.metadata(record))
        barrier(self.dist_info)

    def check_finite(self, record: EpochRecord) -> None:
        """Raise ChromaboxError if a value is not finite, before it is logged or saved."""
        for name, value in record.items():
            if not math.isfinite(value):
                raise ChromaboxError(
                    f"{self.folder}: {name} became {value} in epoch {self.state.epoch + 1}; "
                    "try a lower learning rate or --precision float32"
                )

    def should_stop_early(self) -> bool:
        patience = self.schedule.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def save_and_interrupt(self) -> None:
        """Save the state, with metric sums averaged over processes; raise TrainingInterrupted in every process."""
        means = all_reduce_mean(torch.stack(list(self.metric_sums.values())), self.dist_info)
        self.metric_sums = dict(zip(self.metric_sums, means, strict=True))
        if self.dist_info.is_main:
            self.save_state(self.metadata({"batch": self.state.batch}))
        # Every process waits for the file. A process that exits early could resume from an older file, or cause
        # torchrun to kill the main process while it writes.
        barrier(self.dist_info)
        raise TrainingInterrupted(
            f"stopped in epoch {self.state.epoch + 1} after batch {self.state.batch}; "
            f"the state is saved in {self.folder}: continue with --resume {self.folder}"
        )

    def metadata(self, record: EpochRecord) -> dict[str, Any]:
        return {
            **self.task.checkpoint_metadata(),
            "epoch": self.state.epoch,
            **{name: value for name, value in record.items() if name != "epoch"},
        }

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
        save_checkpoint(
            self.folder / "last.safetensors", {"net": self.eval_model.state_dict(), "resume": resume}, metadata
        )

    def load_state(self) -> None:
        state, _ = load_checkpoint(self.folder / "last.safetensors")
        if "resume" not in state:
            raise ChromaboxError(
                f"{self.folder / 'last.safetensors'}: contains a model but no training state for resuming"
            )
        resume = state["resume"]
        # Checkpoints of version 0.1.0 and earlier use "update" for "step".
        loop = rename_keys(resume["loop"], {"update": "step"})
        self.state = _TrainState(**{**loop, "best": math.inf if loop["best"] is None else loop["best"]})
        self.task.model.load_state_dict(resume["net"])
        if self.ema_model is not None:
            self.ema_model.load_state_dict(resume["average"])
        for optimizer, saved in zip(self.task.optimizers, resume["optimisers"], strict=True):
            optimizer.load_state_dict(saved)
        self.metric_sums = resume["sums"]
        torch.set_rng_state(resume["random"])
        if resume.get("cuda_random") is not None and self.runtime.device.startswith("cuda"):
            torch.cuda.set_rng_state(resume["cuda_random"])


@torch.no_grad()
def _validate(task: TrainTask[BatchT], model: nn.Module, runtime: RuntimeConfig) -> dict[str, float]:
    """Return the validation metrics of the model in evaluation mode; restore its mode afterwards."""
    was_training = model.training
    model.eval()
    with runtime.autocast():
        metrics = task.validate(model)
    model.train(was_training)
    return metrics


def _make_ema(model: nn.Module, schedule: TrainSchedule) -> AveragedModel:
    """Create an exponential moving average of parameters and buffers with the schedule's decay."""

    @torch.no_grad()
    def update_averages(averages: Any, currents: Any, count: Any) -> None:
        warmup = 1 - math.exp(-float(count) / schedule.ema_warmup_steps) if schedule.ema_warmup_steps else 1.0
        decay = schedule.ema_decay * warmup
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

    return AveragedModel(model, multi_avg_fn=update_averages, use_buffers=True)


@contextmanager
def _catch_signals() -> Iterator[Callable[[], bool]]:
    """Catch Ctrl-C and SIGTERM; yield a function that returns whether one arrived.

    A second signal raises KeyboardInterrupt immediately.
    """
    requested = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # Only the main thread can handle signals.
        previous = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
