"""Execution of all training runs: selection of the runtime settings, training, and the files of the run folder.

Each kind of run is implemented as a :class:`TrainingJob`, which provides the model, the task and the summary.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from chromabox.engine.autotune import RuntimeConfig, autotune, check_device, resolve_device
from chromabox.engine.distributed import DistInfo, broadcast_object, convert_sync_batchnorm
from chromabox.engine.logger import EpochRecord
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunConfig, RunDir
from chromabox.engine.trainer import TrainSchedule, TrainTask, fit

log = logging.getLogger(__name__)

EpochCallback = Callable[[EpochRecord, nn.Module], None]
"""Function called in the main process after each epoch, with the epoch's metrics and the model."""
Forward = Callable[[Tensor], Tensor]


@runtime_checkable
class TrainingJob(Protocol):
    """A training run before its first step. The constructor raises UsageError for invalid settings."""

    @property
    def config(self) -> RunConfig:
        """Configuration of the run."""

    @property
    def model(self) -> nn.Module:
        """Model to be trained, in training mode."""

    @property
    def num_steps(self) -> int:
        """Number of batches in the whole run."""

    def trial_loss(self, device: str) -> Callable[[Forward], Tensor]:
        """Return a function that computes the loss of one batch on ``device``, to measure the time of a step."""

    def save_inputs(self, run: RunDir) -> None:
        """Write the files, other than the configuration, that are read when the run is resumed."""

    def open_task(
        self, run: RunDir, runtime: RuntimeConfig
    ) -> AbstractContextManager[tuple[TrainTask[Any], TrainSchedule]]:
        """Return a context that yields the task and its schedule, and releases their resources at the end."""

    def summarise(self, run: RunDir, model: nn.Module) -> dict[str, Any]:
        """Return the contents of ``summary.json`` for the trained model. The task is still open during this call."""

    def __str__(self) -> str:
        """Return a description of the run for the log."""


def run_training(
    job: TrainingJob,
    run: RunDir,
    *,
    options: RuntimeOptions | None = None,
    dist_info: DistInfo | None = None,
    resume: bool = False,
    callbacks: Sequence[EpochCallback] = (),
) -> dict[str, Any]:
    """Train a job, write its files to the run folder, and return the contents of ``summary.json``.

    Args:
        job: the training run to execute.
        run: the run folder, which is created if it does not exist.
        options: runtime options, which are used if the job's configuration has no runtime settings. Options
            set to ``auto`` are chosen by timing training steps.
        dist_info: rank and number of processes; None for a single process.
        resume: whether to continue from the last checkpoint.
        callbacks: functions called in the main process after each epoch.

    Raise TrainingInterrupted on Ctrl-C or SIGTERM, after saving the state. Raise ChromaboxError if the loss or a metric
    is not finite.
    """
    dist_info, options = dist_info or DistInfo(), options or RuntimeOptions()
    runtime = job.config.runtime
    if runtime is not None:
        check_device(runtime.device)
    else:
        if dist_info.is_main:
            runtime = autotune(options, job.model, job.trial_loss(resolve_device(options)), job.num_steps)
        runtime = broadcast_object(runtime, dist_info)
    assert runtime is not None
    convert_sync_batchnorm(job.model, dist_info)
    if dist_info.is_main:
        run.save_config(replace(job.config, runtime=runtime))
        job.save_inputs(run)
        for line in f"{job}; running on {runtime}".splitlines():
            log.info(line)

    def on_epoch_end(record: EpochRecord, model: nn.Module) -> None:
        for callback in callbacks:
            callback(record, model)

    with job.open_task(run, runtime) as (task, schedule):
        model = fit(
            task,
            schedule,
            folder=run.path,
            runtime=runtime,
            dist_info=dist_info,
            resume=resume,
            on_epoch_end=on_epoch_end,
        )
        summary = job.summarise(run, model.eval()) if dist_info.is_main else {}
    if dist_info.is_main:
        run.save_summary(summary)
    return broadcast_object(summary, dist_info)
