"""Training loop: resumed runs equal uninterrupted runs bit by bit; EMA, early stopping and signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.logger import read_metrics
from chromabox.engine.trainer import TrainingInterrupted, fit
from chromabox.errors import ChromaboxError

SETTINGS = {
    "plain": {},
    "accumulate 4, EMA": {"accumulate": 4, "ema_decay": 0.9, "ema_warmup_steps": 5.0},
}


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the metrics of a run without the seconds."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in read_metrics(folder)]


def assert_same(one: Any, other: Any) -> None:
    """Assert that two nested states are bit-identical."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that two run folders have equal metrics, weights, EMA, optimizer states and random states."""
    assert metrics(one) == metrics(other)
    for name in ("last.safetensors", "best.safetensors"):
        assert_same(load_checkpoint(one / name)[0], load_checkpoint(other / name)[0])


def send_signal(number: int, at: tuple[int, int]) -> Callable[[int, int], None]:
    """Return a ``before_batch`` that sends a signal to this process once."""

    def before_batch(epoch: int, batch: int) -> None:
        if (epoch, batch) == at:
            os.kill(os.getpid(), number)

    return before_batch


@pytest.fixture(scope="module")
def uninterrupted(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function that trains four epochs, once for each optimizer and settings, and returns the folder."""
    folders: dict[tuple[str, str], Path] = {}

    def train(optimizer: str, settings: str) -> Path:
        if (optimizer, settings) not in folders:
            folders[optimizer, settings] = tmp_path_factory.mktemp("uninterrupted")
            fit(
                tiny.make_task(optimizer),
                tiny.make_schedule(4, **SETTINGS[settings]),
                folder=folders[optimizer, settings],
                runtime=tiny.ONE_THREAD,
            )
        return folders[optimizer, settings]

    return train


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_two_epochs_and_two_resumed_epochs_equal_four_epochs(
    tiny: ModuleType, uninterrupted: Callable[[str, str], Path], tmp_path: Path, optimizer: str, settings: str
) -> None:
    for epochs, resume in ((2, False), (4, True)):
        schedule = tiny.make_schedule(epochs, **SETTINGS[settings])
        fit(tiny.make_task(optimizer), schedule, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=resume)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert_same_run(tmp_path, uninterrupted(optimizer, settings))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_run_interrupted_within_an_epoch_resumes_exactly(
    tiny: ModuleType, uninterrupted: Callable[[str, str], Path], tmp_path: Path, optimizer: str, settings: str
) -> None:
    schedule = tiny.make_schedule(4, **SETTINGS[settings])
    task = tiny.make_task(optimizer, before_batch=send_signal(signal.SIGINT, (1, 2)))
    with pytest.raises(TrainingInterrupted, match="stopped in epoch 2 after batch") as caught:
        fit(task, schedule, folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert caught.value.exit_code == 130
    assert f"continue with --resume {tmp_path}" in str(caught.value)
    # The run stops after an optimizer step, not between accumulated batches.
    assert load_checkpoint(tmp_path / "last.safetensors")[0]["resume"]["loop"]["batch"] == schedule.accumulate + (
        2 if schedule.accumulate == 1 else 0
    )
    fit(tiny.make_task(optimizer), schedule, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)
    assert_same_run(tmp_path, uninterrupted(optimizer, settings))


def test_channels_last_run_resumes_in_the_same_layout(tiny: ModuleType, tmp_path: Path) -> None:
    runtime = tiny.RuntimeConfig(threads=1, channels_last=True)
    fit(tiny.make_task(), tiny.make_schedule(4), folder=tmp_path / "uninterrupted", runtime=runtime)
    for epochs, resume in ((2, False), (4, True)):
        schedule = tiny.make_schedule(epochs)
        model = fit(tiny.make_task(), schedule, folder=tmp_path / "resumed", runtime=runtime, resume=resume)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "resumed")


def run_script(tiny: ModuleType, folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, tiny.__file__, str(folder), *options], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize(
    ("option", "logged_epochs", "saved_epoch"),
    [
        # Killed by the parent process while it waits in the middle of epoch 3.
        ("--wait-in-epoch", [1, 2], 2),
        # Killed between writing the metrics of epoch 3 and saving its checkpoint.
        ("--die-after-metrics-of", [1, 2, 3], 2),
    ],
)
def test_killed_run_resumes_exactly(
    tiny: ModuleType, tmp_path: Path, option: str, logged_epochs: list[int], saved_epoch: int
) -> None:
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    with run_script(tiny, killed, option, "3") as child:
        try:
            while child.poll() is None and len(read_metrics(killed)) < 2:
                time.sleep(0.02)
            if option == "--wait-in-epoch":
                metadata = killed / "last.json"
                while not (metadata.is_file() and '"epoch": 2' in metadata.read_text()):
                    time.sleep(0.02)
                child.kill()
            assert child.wait(60) == -signal.SIGKILL
        finally:
            child.kill()
    assert [record["epoch"] for record in read_metrics(killed)] == logged_epochs
    assert load_checkpoint(killed / "last.safetensors")[1]["epoch"] == saved_epoch
    schedule = tiny.make_schedule(ema_decay=0.9, accumulate=2)
    fit(tiny.make_task(), schedule, folder=killed, runtime=tiny.ONE_THREAD, resume=True)
    fit(tiny.make_task(), schedule, folder=uninterrupted, runtime=tiny.ONE_THREAD)
    assert [record["epoch"] for record in read_metrics(killed)] == [1, 2, 3, 4]
    assert_same_run(killed, uninterrupted)


def test_accumulated_batches_equal_a_large_batch(tiny: ModuleType, tmp_path: Path) -> None:
    """Without BatchNorm, the mean gradient of two half batches is the gradient of the full batch."""
    models = [tiny.make_model(dropout=0.0, batch_norm=False) for _ in range(2)]
    accumulated = tiny.make_schedule(2, batches_per_epoch=6, accumulate=2)
    large = tiny.make_schedule(2, batches_per_epoch=3)
    assert accumulated.total_steps == large.total_steps == 6
    fit(
        tiny.make_task("sgd", model=models[0], batch_size=4),
        accumulated,
        folder=tmp_path / "a",
        runtime=tiny.ONE_THREAD,
    )
    fit(tiny.make_task("sgd", model=models[1], batch_size=8), large, folder=tmp_path / "b", runtime=tiny.ONE_THREAD)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    losses = [[record["train_loss"] for record in read_metrics(tmp_path / name)] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_last_accumulation_of_an_epoch_can_be_shorter(tiny: ModuleType, tmp_path: Path) -> None:
    steps: list[int] = []
    task = tiny.make_task()
    lr_schedule = task.lr_schedule
    task = tiny.make_task(model=task.model, lr_schedule=lambda step: steps.append(step) or lr_schedule(step))
    schedule = tiny.make_schedule(2, accumulate=4)
    fit(task, schedule, folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert steps == [0, 1, 2, 3]
    assert schedule.total_steps == 4


# With six batches per epoch: (accumulate, max_steps, batches of each epoch)
MAX_STEPS = [(1, 9, [6, 3]), (1, 12, [6, 6]), (1, 4, [4]), (4, 3, [6, 4]), (4, 100, [6, 6, 6, 6])]


@pytest.mark.parametrize(("accumulate", "max_steps", "batches"), MAX_STEPS)
def test_max_steps_is_exact(
    tiny: ModuleType, tmp_path: Path, accumulate: int, max_steps: int, batches: list[int]
) -> None:
    steps: list[int] = []
    losses: list[list[float]] = [[] for _ in batches]
    trained: list[tuple[int, int]] = []

    def compute_loss(forward: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        values = tiny.compute_losses(forward, batch)
        losses[trained[-1][0]].append(values["loss"].item())
        return values

    lr_schedule = tiny.make_task().lr_schedule
    task = tiny.make_task(
        before_batch=lambda epoch, batch: trained.append((epoch, batch)),
        compute_loss=compute_loss,
        lr_schedule=lambda step: steps.append(step) or lr_schedule(step),
    )
    schedule = tiny.make_schedule(4, accumulate=accumulate, max_steps=max_steps)
    fit(task, schedule, folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert trained == [(epoch, batch) for epoch, count in enumerate(batches) for batch in range(count)]
    assert steps == list(range(schedule.total_steps))
    assert schedule.total_steps == min(max_steps, 4 * -(-6 // accumulate))
    means = [record["train_loss"] for record in read_metrics(tmp_path)]
    assert means == pytest.approx([sum(epoch_losses) / len(epoch_losses) for epoch_losses in losses], rel=1e-6)


@pytest.mark.parametrize("at", [(0, 3), (1, 0), (1, 2)])
def test_run_with_max_steps_can_be_interrupted(tiny: ModuleType, tmp_path: Path, at: tuple[int, int]) -> None:
    schedule = tiny.make_schedule(4, max_steps=9, ema_decay=0.9)
    fit(tiny.make_task(), schedule, folder=tmp_path / "uninterrupted", runtime=tiny.ONE_THREAD)
    task = tiny.make_task(before_batch=send_signal(signal.SIGINT, at))
    with pytest.raises(TrainingInterrupted):
        fit(task, schedule, folder=tmp_path / "resumed", runtime=tiny.ONE_THREAD)
    fit(tiny.make_task(), schedule, folder=tmp_path / "resumed", runtime=tiny.ONE_THREAD, resume=True)
    assert_same_run(tmp_path / "uninterrupted", tmp_path / "resumed")


@pytest.mark.parametrize(("decay", "warmup"), [(0.8, 0.0), (0.9, 4.0)])
def test_ema_equals_its_formula(tiny: ModuleType, tmp_path: Path, decay: float, warmup: float) -> None:
    """In NumPy: average ← d·average + (1 − d)·weights, d = decay·(1 − e^(−step/warmup)), from the first weights on."""
    recorded: list[dict[str, np.ndarray]] = []
    model = tiny.make_model()

    def state(module: nn.Module) -> dict[str, np.ndarray]:
        return {name: value.double().numpy().copy() for name, value in module.state_dict().items()}

    task = tiny.make_task(model=model, before_batch=lambda epoch, batch: recorded.append(state(model)))
    schedule = tiny.make_schedule(2, ema_decay=decay, ema_warmup_steps=warmup)
    averaged = state(fit(task, schedule, folder=tmp_path, runtime=tiny.ONE_THREAD))
    weights = [*recorded[1:], state(model)]
    expected = weights[0]
    for step, current in enumerate(weights[1:], start=1):
        step_decay = decay * (1 - np.exp(-step / warmup)) if warmup else decay
        expected = {name: step_decay * expected[name] + (1 - step_decay) * current[name] for name in current}
    assert len(weights) == 12
    for name, value in averaged.items():
        expected_value = weights[-1][name] if name.endswith("num_batches_tracked") else expected[name]
        np.testing.assert_allclose(value, expected_value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert_same(
        load_checkpoint(tmp_path / "best.safetensors")[0]["net"],
        load_checkpoint(tmp_path / "last.safetensors")[0]["net"],
    )


# (val_loss of each epoch, patience, epochs trained, best epoch)
EARLY_STOPS = [
    ([3.0, 2.0, 2.5, 2.4, 1.0, 0.5], 2, 4, 2),
    ([3.0, 2.0, 2.5, 1.9, 2.0, 2.0], 2, 6, 4),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1, 2, 1),
    ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 3, 4, 1),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 0.5], None, 6, 6),
]


@pytest.mark.parametrize(("scores", "patience", "trained_epochs", "best_epoch"), EARLY_STOPS)
def test_early_stopping_and_the_best_epoch(
    tiny: ModuleType, tmp_path: Path, scores: list[float], patience: int | None, trained_epochs: int, best_epoch: int
) -> None:
    next_scores = iter(scores)
    states: dict[int, dict[str, Tensor]] = {}

    def record_state(record: dict[str, float], model: nn.Module) -> None:
        states[int(record["epoch"])] = {name: value.clone() for name, value in model.state_dict().items()}

    schedule = tiny.make_schedule(6, monitor="val_loss", patience=patience)
    task = tiny.make_task(validate=lambda model: {"val_loss": next(next_scores)})
    fit(task, schedule, folder=tmp_path, runtime=tiny.ONE_THREAD, on_epoch_end=record_state)
    assert [record["val_loss"] for record in read_metrics(tmp_path)] == scores[:trained_epochs]
    state, metadata = load_checkpoint(tmp_path / "best.safetensors")
    assert metadata["epoch"] == best_epoch
    assert metadata["val_loss"] == scores[best_epoch - 1]
    assert_same(state["net"], states[best_epoch])
    # Resuming a stopped run trains no further epoch.
    fit(tiny.make_task(), schedule, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)
    assert len(read_metrics(tmp_path)) == trained_epochs


def test_best_epoch_and_patience_are_resumed(tiny: ModuleType, tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    for epochs, resume in ((3, False), (6, True)):
        task = tiny.make_task(validate=lambda model: {"val_loss": next(scores)})
        schedule = tiny.make_schedule(epochs, monitor="val_loss", patience=2)
        fit(task, schedule, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=resume)
    assert len(read_metrics(tmp_path)) == 4
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["epoch"] == 2


def test_without_monitor_the_last_epoch_is_best(tiny: ModuleType, tmp_path: Path) -> None:
    fit(tiny.make_task(), tiny.make_schedule(3), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["epoch"] == 3


@pytest.mark.parametrize(
    ("metric", "value"), [("train_loss", float("nan")), ("val_loss", float("nan")), ("val_loss", float("inf"))]
)
def test_non_finite_value_stops_the_run(tiny: ModuleType, tmp_path: Path, metric: str, value: float) -> None:
    epochs = []

    def compute_loss(forward: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        losses = tiny.compute_losses(forward, batch)
        is_invalid = metric == "train_loss" and len(epochs) == 1
        return {**losses, "loss": losses["loss"] * value} if is_invalid else losses

    def validate(model: nn.Module) -> dict[str, float]:
        epochs.append(1)
        return {"val_loss": value if metric == "val_loss" and len(epochs) == 2 else 1.0}

    task = tiny.make_task(compute_loss=compute_loss, validate=validate)
    with pytest.raises(ChromaboxError, match=f"{metric} became {value} in epoch 2; try a lower learning rate"):
        fit(task, tiny.make_schedule(4), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1]
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["epoch"] == 1


def test_sigterm_interrupts_training(tiny: ModuleType, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    task = tiny.make_task(before_batch=send_signal(signal.SIGTERM, (0, 0)))
    with pytest.raises(TrainingInterrupted, match="epoch 1 after batch 1;"):
        fit(task, tiny.make_schedule(), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_second_signal_interrupts_at_once(tiny: ModuleType, tmp_path: Path) -> None:
    started: list[int] = []

    def send_two_signals(epoch: int, batch: int) -> None:
        started.append(batch)
        for _ in range(2 * (batch == 1)):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    task = tiny.make_task(before_batch=send_two_signals)
    with pytest.raises(KeyboardInterrupt):
        fit(task, tiny.make_schedule(), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert started == [0, 1]
    assert not (tmp_path / "last.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_fit_runs_outside_the_main_thread(tiny: ModuleType, tmp_path: Path) -> None:
    arguments = {"folder": tmp_path, "runtime": tiny.ONE_THREAD}
    thread = threading.Thread(target=fit, args=(tiny.make_task(), tiny.make_schedule(1)), kwargs=arguments)
    thread.start()
    thread.join()
    assert len(read_metrics(tmp_path)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loop", None),
        ("loop", {"epoch": "1", "batch": 0, "step": 3, "best": None, "best_epoch": 0, "seconds": 1.0}),
        ("loop", {"epoch": 1, "best": [1]}),
        ("net", {}),
        ("net", [1]),
        ("optimisers", []),
        ("optimisers", [{"state": {}, "param_groups": []}]),
        ("optimisers", 1),
        ("random", None),
        ("random", torch.zeros(3)),
    ],
)
def test_resuming_from_a_damaged_training_state_is_rejected(
    tiny: ModuleType, tmp_path: Path, key: str, value: object
) -> None:
    fit(tiny.make_task(), tiny.make_schedule(1), folder=tmp_path, runtime=tiny.ONE_THREAD)
    state, metadata = load_checkpoint(tmp_path / "last.safetensors")
    state["resume"][key] = value
    save_checkpoint(tmp_path / "last.safetensors", state, metadata)
    with pytest.raises(ChromaboxError, match=r"last\.safetensors: the training state is damaged or belongs to another"):
        fit(tiny.make_task(), tiny.make_schedule(2), folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)


def test_resuming_from_a_model_without_training_state_is_rejected(tiny: ModuleType, tmp_path: Path) -> None:
    fit(tiny.make_task(), tiny.make_schedule(1), folder=tmp_path, runtime=tiny.ONE_THREAD)
    (tmp_path / "best.safetensors").replace(tmp_path / "last.safetensors")
    with pytest.raises(ChromaboxError, match=r"last\.safetensors: contains a model but no training state"):
        fit(tiny.make_task(), tiny.make_schedule(2), folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)


def test_validation_runs_in_evaluation_mode_and_restores_training_mode(tiny: ModuleType, tmp_path: Path) -> None:
    modes = []

    def validate(model: nn.Module) -> dict[str, float]:
        modes.append((model.training, model[1].training, torch.is_grad_enabled()))
        return {"val_loss": 1.0}

    task = tiny.make_task(validate=validate)
    fit(task, tiny.make_schedule(2), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert modes == [(False, False, False)] * 2
    assert task.model.training
    assert int(task.model[1].num_batches_tracked) == 2 * tiny.BATCHES_PER_EPOCH
