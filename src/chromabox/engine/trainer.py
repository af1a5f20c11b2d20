"""One training loop, for every net of the package.

A :class:`Job` is what the loop must be told: the net, its optimisers, where batches come from, what the loss is, how
to validate. A :class:`Plan` says how long. The loop steps, averages weights, validates, logs, checkpoints and stops;
it knows nothing of what a batch holds. Everything random in a batch is drawn from ``(seed, epoch)`` by the job, so a
run that is stopped anywhere, even by ``kill -9``, goes on exactly as if it never had been.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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
from chromabox.engine.runs import rename_keys
from chromabox.errors import ChromaboxError

BatchT = TypeVar("BatchT")
ParamGroupSettings = Mapping[str, float]


class TrainingInterrupted(ChromaboxError):
    """Ctrl-C or a polite kill: the state is saved and the message says how to go on."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class TrainSchedule:
    """How long to train and in what rhythm."""

    epochs: int
    batches_per_epoch: int
    """Batches an epoch; with ``accumulate`` > 1 every so many of them make one step of the optimisers."""
    accumulate: int = 1
    ema_decay: float = 0.0
    """Exponential moving average of all weights and statistics; 0 switches it off."""
    ema_warmup_steps: float = 0.0
    """The decay is multiplied by 1 − e^(−step/ramp), so that early weights are forgotten; 0 is no ramp."""
    monitor: str | None = None
    """The metric (lower is better) that chooses ``best``; None: nothing is held out, and the last epoch is best."""
    patience: int | None = None
    """Stop after so many epochs without an improvement of ``watch``."""
    max_steps: int | None = None
    """End after so many steps of the optimisers, if the epochs allow as many; the last epoch may be cut short."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimisers in a whole epoch."""
        return math.ceil(self.batches_per_epoch / self.accumulate)

    @property
    def total_steps(self) -> int:
        """Steps of the optimisers in the whole run."""
        whole = self.epochs * self.steps_per_epoch
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def batches_in_epoch(self, epoch: int) -> int:
        """Batches of an epoch, which are counted from 0: fewer in one that is cut short, and none after the last."""
        left = self.total_steps - epoch * self.steps_per_epoch
        return max(0, min(self.batches_per_epoch, left * self.accumulate))


@dataclass(frozen=True, kw_only=True)
class TrainTask(Generic[BatchT]):
    """What is trained, on what, and how it is judged."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    batches: Callable[[int, int], Iterable[BatchT]]
    """(epoch, batches to pass over) → the rest of the epoch's batches; the same for the same arguments."""
    compute_loss: Callable[[Callable[[Tensor], Tensor], BatchT], dict[str, Tensor]]
    """Scalars of one batch: ``loss``, which is minimised, and whatever else is worth a curve."""
    validate: Callable[[nn.Module], dict[str, float]]
    """Metrics of a net in evaluation mode; called in the main process only."""
    lr_schedule: Callable[[int], Sequence[Sequence[ParamGroupSettings]]]
    """Update number → for each optimiser, for each of its parameter groups, the settings to apply (``lr`` …)."""
    checkpoint_metadata: Callable[[], dict[str, Any]]
    """What a checkpoint says of itself."""


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
    on_epoch_end: Callable[[EpochRecord, nn.Module], None] = lambda record, net: None,
) -> nn.Module:
    """Train, and return the net to be used (the averaged one where there is an average).

    Writes ``metrics.jsonl``, ``metrics.csv``, TensorBoard events, ``last.safetensors`` (everything needed to go on) and
    ``best.safetensors`` (the net alone) into ``folder``. ``after_epoch`` is called in the main process with the
    epoch's record and the net. Raises Interrupted after saving, on Ctrl-C or SIGTERM; ChromaboxError if the loss or a
    metric is no longer a number.
    """
    return _Trainer(task, schedule, folder, runtime, dist_info or DistInfo(), on_epoch_end).run(resume)


class _Trainer(Generic[BatchT]):
    """The loop's state while it runs; one use each."""

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
        """The net that is validated, saved as best, and returned."""
        return self.ema_model.module if self.ema_model is not None else self.task.model

    def run(self, resume: bool) -> nn.Module:
        if resume:
            self.load_state()
        sink = MetricsLogger(self.folder, self.state.epoch) if self.dist_info.is_main else None
        try:
            with _catch_signals() as stop_requested, self.make_progress_bar() as tick:
                while self.batches_this_epoch and not self.should_stop_early():
                    begin = time.perf_counter()
                    left = self.batches_this_epoch - self.state.batch
                    for batch in islice(self.task.batches(self.state.epoch, self.state.batch), left):
                        with wrap_compile_errors(self.runtime):
                            self.training_step(batch)
                        tick(epoch=self.state.epoch + 1)
                        # Gradients are not saved, so the run stops between two updates only.
                        if self.is_step_due() and all_reduce_any(stop_requested(), self.dist_info):
                            self.state.seconds += time.perf_counter() - begin
                            self.save_and_interrupt()
                    self.end_epoch(sink, begin)
        finally:
            if sink is not None:
                sink.close()
        return self.eval_model

    @property
    def batches_this_epoch(self) -> int:
        """Batches of the epoch that is being trained; 0 when the run has had its last."""
        return self.schedule.batches_in_epoch(self.state.epoch)

    def make_progress_bar(self) -> AbstractContextManager[ProgressCallback]:
        """One bar, of the main process, over all batches of the run."""
        total = sum(self.schedule.batches_in_epoch(epoch) for epoch in range(self.schedule.epochs))
        done = self.state.epoch * self.schedule.batches_per_epoch + self.state.batch
        return progress_bar("training", total, done, show=self.dist_info.is_main)

    def is_step_due(self) -> bool:
        """Whether the optimisers step after the batch that was just done."""
        return self.state.batch % self.schedule.accumulate == 0 or self.state.batch == self.batches_this_epoch

    def training_step(self, batch: BatchT) -> None:
        """One batch forward and backward; every ``accumulate`` of them, and at the epoch's end, one update."""
        plan, state = self.schedule, self.state
        if state.batch % plan.accumulate == 0:
            for optimiser in self.task.optimizers:
                optimiser.zero_grad()
        self.task.model.train()
        with self.runtime.autocast():
            losses = self.task.compute_loss(self.prepared_model, batch)
        group = state.batch - state.batch % plan.accumulate
        (losses["loss"] / min(plan.accumulate, self.batches_this_epoch - group)).backward()
        for name, value in losses.items():
            # float64 sums: a resumed epoch must add up to the same digits whatever the order of magnitude.
            self.metric_sums[name] = (
                self.metric_sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double()
            )
        state.batch += 1
        if self.is_step_due():
            self.optimizer_step()

    def optimizer_step(self) -> None:
        all_reduce_gradients(list(self.task.model.parameters()), self.dist_info)
        for optimiser, groups in zip(self.task.optimizers, self.task.lr_schedule(self.state.step), strict=True):
            for group, settings in zip(optimiser.param_groups, groups, strict=True):
                group.update(settings)
            optimiser.step()
        self.state.step += 1
        if self.ema_model is not None:
            self.ema_model.update_parameters(self.task.model)

    def end_epoch(self, logger: MetricsLogger | None, start_time: float) -> None:
        """Validate, log, keep the best, save; then the epoch counts as done."""
        state = self.state
        means = all_reduce_mean(torch.stack(list(self.metric_sums.values())), self.dist_info) / self.batches_this_epoch
        record: EpochRecord = {"epoch": state.epoch + 1}
        record |= {f"train_{name}": value for name, value in zip(self.metric_sums, means.tolist(), strict=True)}
        self.check_finite(record)
        net = self.eval_model
        metrics = _validate(self.task, net, self.runtime) if self.dist_info.is_main else {}
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
            self.on_epoch_end(record, net)
            if improved:
                save_checkpoint(self.folder / "best.safetensors", {"net": net.state_dict()}, self.metadata(record))
            self.save_state(self.metadata(record))
        barrier(self.dist_info)

    def check_finite(self, record: EpochRecord) -> None:
        """Stop with ChromaboxError before a value that is not finite reaches the metrics or a checkpoint."""
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
        """Save and leave, in every process; what is saved must not depend on whose sums these are."""
        means = all_reduce_mean(torch.stack(list(self.metric_sums.values())), self.dist_info)
        self.metric_sums = dict(zip(self.metric_sums, means, strict=True))
        if self.dist_info.is_main:
            self.save_state(self.metadata({}))
        # Nobody leaves before the file is there: who left early might go on from an older one, or, under torchrun, be
        # the reason for which the main process is killed while it writes.
        barrier(self.dist_info)
        raise TrainingInterrupted(
            f"stopped in epoch {self.state.epoch + 1} after batch {self.state.batch}; "
            f"the state is saved in {self.folder}: go on with --resume {self.folder}"
        )

    def metadata(self, record: EpochRecord) -> dict[str, Any]:
        return {
            **self.task.checkpoint_metadata(),
            "epoch": self.state.epoch,
            **{k: v for k, v in record.items() if k != "epoch"},
        }

    def save_state(self, metadata: dict[str, Any]) -> None:
        """Everything that the rest of the run depends on."""
        resume = {
            "loop": {**vars(self.state), "best": None if math.isinf(self.state.best) else self.state.best},
            "net": self.task.model.state_dict(),
            "average": None if self.ema_model is None else self.ema_model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.task.optimizers],
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
            raise ChromaboxError(f"{self.folder / 'last.safetensors'}: holds a net but no training state to go on from")
        resume = state["resume"]
        # Checkpoints of version 0.1.0 and earlier call the step "update".
        loop = rename_keys(resume["loop"], {"update": "step"})
        self.state = _TrainState(**{**loop, "best": math.inf if loop["best"] is None else loop["best"]})
        self.task.model.load_state_dict(resume["net"])
        if self.ema_model is not None:
            self.ema_model.load_state_dict(resume["average"])
        for optimiser, saved in zip(self.task.optimizers, resume["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.metric_sums = resume["sums"]
        torch.set_rng_state(resume["random"])
        if resume.get("cuda_random") is not None and self.runtime.device.startswith("cuda"):
            torch.cuda.set_rng_state(resume["cuda_random"])


@torch.no_grad()
def _validate(task: TrainTask[BatchT], model: nn.Module, runtime: RuntimeConfig) -> dict[str, float]:
    """The job's metrics, with the net in evaluation mode and put back afterwards."""
    training = model.training
    model.eval()
    with runtime.autocast():
        metrics = task.validate(model)
    model.train(training)
    return metrics


def _make_ema(model: nn.Module, schedule: TrainSchedule) -> AveragedModel:
    """A moving average of parameters and buffers with the plan's decay."""

    @torch.no_grad()
    def blend(averages: Any, currents: Any, count: Any) -> None:
        ramp = 1 - math.exp(-float(count) / schedule.ema_warmup_steps) if schedule.ema_warmup_steps else 1.0
        decay = schedule.ema_decay * ramp
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

    return AveragedModel(model, multi_avg_fn=blend, use_buffers=True)


@contextmanager
def _catch_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag read between two steps; a second one stops at once."""
    requested = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # Not in the main thread: whoever started the thread answers the signals.
        before = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
