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

from chromabox.engine.autotune import Execution, compiler_errors
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.distributed import World, any_process, average_gradients, from_main, mean_across, wait_for_main
from chromabox.engine.logger import MetricsSink, Record, Ticker, progress
from chromabox.errors import ChromaboxError

Batch = TypeVar("Batch")
Settings = Mapping[str, float]


class Interrupted(ChromaboxError):
    """Ctrl-C or a polite kill: the state is saved and the message says how to go on."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train and in what rhythm."""

    epochs: int
    steps_per_epoch: int
    """Batches an epoch; with ``accumulate`` > 1 every so many of them make one step of the optimisers."""
    accumulate: int = 1
    average_decay: float = 0.0
    """Exponential moving average of all weights and statistics; 0 switches it off."""
    average_ramp: float = 0.0
    """The decay is multiplied by 1 − e^(−step/ramp), so that early weights are forgotten; 0 is no ramp."""
    watch: str | None = None
    """The metric (lower is better) that chooses ``best``; None: nothing is held out, and the last epoch is best."""
    patience: int | None = None
    """Stop after so many epochs without an improvement of ``watch``."""
    most_updates: int | None = None
    """End after so many steps of the optimisers, if the epochs allow as many; the last epoch may be cut short."""

    @property
    def updates_per_epoch(self) -> int:
        """Steps of the optimisers in a whole epoch."""
        return math.ceil(self.steps_per_epoch / self.accumulate)

    @property
    def updates(self) -> int:
        """Steps of the optimisers in the whole run."""
        whole = self.epochs * self.updates_per_epoch
        return whole if self.most_updates is None else min(whole, self.most_updates)

    def steps_in(self, epoch: int) -> int:
        """Batches of an epoch, which are counted from 0: fewer in one that is cut short, and none after the last."""
        left = self.updates - epoch * self.updates_per_epoch
        return max(0, min(self.steps_per_epoch, left * self.accumulate))


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Batch]):
    """What is trained, on what, and how it is judged."""

    net: nn.Module
    optimisers: Sequence[torch.optim.Optimizer]
    batches: Callable[[int, int], Iterable[Batch]]
    """(epoch, batches to pass over) → the rest of the epoch's batches; the same for the same arguments."""
    losses: Callable[[Callable[[Tensor], Tensor], Batch], dict[str, Tensor]]
    """Scalars of one batch: ``loss``, which is minimised, and whatever else is worth a curve."""
    validate: Callable[[nn.Module], dict[str, float]]
    """Metrics of a net in evaluation mode; called in the main process only."""
    schedule: Callable[[int], Sequence[Sequence[Settings]]]
    """Update number → for each optimiser, for each of its parameter groups, the settings to apply (``lr`` …)."""
    describe: Callable[[], dict[str, Any]]
    """What a checkpoint says of itself."""


@dataclass
class _State:
    epoch: int = 0
    batch: int = 0
    update: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def fit(
    job: Job[Batch],
    plan: Plan,
    *,
    folder: Path,
    execution: Execution,
    world: World | None = None,
    resume: bool = False,
    after_epoch: Callable[[Record, nn.Module], None] = lambda record, net: None,
) -> nn.Module:
    """Train, and return the net to be used (the averaged one where there is an average).

    Writes ``metrics.jsonl``, ``metrics.csv``, TensorBoard events, ``last.safetensors`` (everything needed to go on) and
    ``best.safetensors`` (the net alone) into ``folder``. ``after_epoch`` is called in the main process with the
    epoch's record and the net. Raises Interrupted after saving, on Ctrl-C or SIGTERM; ChromaboxError if the loss or a
    metric is no longer a number.
    """
    return _Fit(job, plan, folder, execution, world or World(), after_epoch).run(resume)


class _Fit(Generic[Batch]):
    """The loop's state while it runs; one use each."""

    def __init__(
        self,
        job: Job[Batch],
        plan: Plan,
        folder: Path,
        execution: Execution,
        world: World,
        after_epoch: Callable[[Record, nn.Module], None],
    ) -> None:
        self.job, self.plan, self.folder, self.execution, self.world = job, plan, folder, execution, world
        self.after_epoch = after_epoch
        self.state = _State()
        self.call = execution.place(job.net)
        self.average = _averaged(job.net, plan) if plan.average_decay else None
        self.sums: dict[str, Tensor] = {}

    @property
    def useful_net(self) -> nn.Module:
        """The net that is validated, saved as best, and returned."""
        return self.average.module if self.average is not None else self.job.net

    def run(self, resume: bool) -> nn.Module:
        if resume:
            self.restore()
        sink = MetricsSink(self.folder, self.state.epoch) if self.world.is_main else None
        try:
            with _stop_requests() as stop_requested, self.progress() as tick:
                while self.steps_now and not self.out_of_patience():
                    begin = time.perf_counter()
                    left = self.steps_now - self.state.batch
                    for batch in islice(self.job.batches(self.state.epoch, self.state.batch), left):
                        with compiler_errors(self.execution):
                            self.step(batch)
                        tick(epoch=self.state.epoch + 1)
                        # Gradients are not saved, so the run stops between two updates only.
                        if self.is_update_due() and any_process(stop_requested(), self.world):
                            self.state.seconds += time.perf_counter() - begin
                            self.interrupt()
                    self.finish_epoch(sink, begin)
        finally:
            if sink is not None:
                sink.close()
        return self.useful_net

    @property
    def steps_now(self) -> int:
        """Batches of the epoch that is being trained; 0 when the run has had its last."""
        return self.plan.steps_in(self.state.epoch)

    def progress(self) -> AbstractContextManager[Ticker]:
        """One bar, of the main process, over all batches of the run."""
        total = sum(self.plan.steps_in(epoch) for epoch in range(self.plan.epochs))
        done = self.state.epoch * self.plan.steps_per_epoch + self.state.batch
        return progress("training", total, done, show=self.world.is_main)

    def is_update_due(self) -> bool:
        """Whether the optimisers step after the batch that was just done."""
        return self.state.batch % self.plan.accumulate == 0 or self.state.batch == self.steps_now

    def step(self, batch: Batch) -> None:
        """One batch forward and backward; every ``accumulate`` of them, and at the epoch's end, one update."""
        plan, state = self.plan, self.state
        if state.batch % plan.accumulate == 0:
            for optimiser in self.job.optimisers:
                optimiser.zero_grad()
        self.job.net.train()
        with self.execution.autocast():
            losses = self.job.losses(self.call, batch)
        group = state.batch - state.batch % plan.accumulate
        (losses["loss"] / min(plan.accumulate, self.steps_now - group)).backward()
        for name, value in losses.items():
            # float64 sums: a resumed epoch must add up to the same digits whatever the order of magnitude.
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64)) + value.detach().double()
        state.batch += 1
        if self.is_update_due():
            self.update()

    def update(self) -> None:
        average_gradients(list(self.job.net.parameters()), self.world)
        for optimiser, groups in zip(self.job.optimisers, self.job.schedule(self.state.update), strict=True):
            for group, settings in zip(optimiser.param_groups, groups, strict=True):
                group.update(settings)
            optimiser.step()
        self.state.update += 1
        if self.average is not None:
            self.average.update_parameters(self.job.net)

    def finish_epoch(self, sink: MetricsSink | None, begin: float) -> None:
        """Validate, log, keep the best, save; then the epoch counts as done."""
        state = self.state
        means = mean_across(torch.stack(list(self.sums.values())), self.world) / self.steps_now
        record: Record = {"epoch": state.epoch + 1}
        record |= {f"train_{name}": value for name, value in zip(self.sums, means.tolist(), strict=True)}
        self.refuse_what_is_no_number(record)
        net = self.useful_net
        metrics = _validate(self.job, net, self.execution) if self.world.is_main else {}
        record |= from_main(metrics, self.world)
        self.refuse_what_is_no_number(record)
        state.seconds += time.perf_counter() - begin
        record["seconds"] = round(state.seconds, 3)
        score = record[self.plan.watch] if self.plan.watch else -math.inf
        improved = score < state.best or self.plan.watch is None
        self.sums = {}
        state.epoch, state.batch, state.seconds = state.epoch + 1, 0, 0.0
        if improved:
            state.best_epoch = state.epoch
            state.best = score if self.plan.watch else math.inf
        if sink is not None:
            sink.write(record)
            self.after_epoch(record, net)
            if improved:
                save_checkpoint(self.folder / "best.safetensors", {"net": net.state_dict()}, self.description(record))
            self.save(self.description(record))
        wait_for_main(self.world)

    def refuse_what_is_no_number(self, record: Record) -> None:
        """Stop with ChromaboxError before a value that is not finite reaches the metrics or a checkpoint."""
        for name, value in record.items():
            if not math.isfinite(value):
                raise ChromaboxError(
                    f"{self.folder}: {name} became {value} in epoch {self.state.epoch + 1}; "
                    "try a lower learning rate or --precision float32"
                )

    def out_of_patience(self) -> bool:
        patience = self.plan.patience
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

    def interrupt(self) -> None:
        """Save and leave, in every process; what is saved must not depend on whose sums these are."""
        means = mean_across(torch.stack(list(self.sums.values())), self.world)
        self.sums = dict(zip(self.sums, means, strict=True))
        if self.world.is_main:
            self.save(self.description({}))
        # Nobody leaves before the file is there: who left early might go on from an older one, or, under torchrun, be
        # the reason for which the main process is killed while it writes.
        wait_for_main(self.world)
        raise Interrupted(
            f"stopped in epoch {self.state.epoch + 1} after batch {self.state.batch}; "
            f"the state is saved in {self.folder}: go on with --resume {self.folder}"
        )

    def description(self, record: Record) -> dict[str, Any]:
        return {**self.job.describe(), "epoch": self.state.epoch, **{k: v for k, v in record.items() if k != "epoch"}}

    def save(self, description: dict[str, Any]) -> None:
        """Everything that the rest of the run depends on."""
        resume = {
            "loop": {**vars(self.state), "best": None if math.isinf(self.state.best) else self.state.best},
            "net": self.job.net.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.job.optimisers],
            "sums": self.sums,
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state() if self.execution.device.startswith("cuda") else None,
        }
        save_checkpoint(
            self.folder / "last.safetensors", {"net": self.useful_net.state_dict(), "resume": resume}, description
        )

    def restore(self) -> None:
        state, _ = load_checkpoint(self.folder / "last.safetensors")
        if "resume" not in state:
            raise ChromaboxError(f"{self.folder / 'last.safetensors'}: holds a net but no training state to go on from")
        resume = state["resume"]
        loop = resume["loop"]
        self.state = _State(**{**loop, "best": math.inf if loop["best"] is None else loop["best"]})
        self.job.net.load_state_dict(resume["net"])
        if self.average is not None:
            self.average.load_state_dict(resume["average"])
        for optimiser, saved in zip(self.job.optimisers, resume["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.sums = resume["sums"]
        torch.set_rng_state(resume["random"])
        if resume.get("cuda_random") is not None and self.execution.device.startswith("cuda"):
            torch.cuda.set_rng_state(resume["cuda_random"])


@torch.no_grad()
def _validate(job: Job[Batch], net: nn.Module, execution: Execution) -> dict[str, float]:
    """The job's metrics, with the net in evaluation mode and put back afterwards."""
    training = net.training
    net.eval()
    with execution.autocast():
        metrics = job.validate(net)
    net.train(training)
    return metrics


def _averaged(net: nn.Module, plan: Plan) -> AveragedModel:
    """A moving average of parameters and buffers with the plan's decay."""

    @torch.no_grad()
    def blend(averages: Any, currents: Any, count: Any) -> None:
        ramp = 1 - math.exp(-float(count) / plan.average_ramp) if plan.average_ramp else 1.0
        decay = plan.average_decay * ramp
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

    return AveragedModel(net, multi_avg_fn=blend, use_buffers=True)


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
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
