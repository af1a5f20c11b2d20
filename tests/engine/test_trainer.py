"""The loop's promise: a run that is stopped anywhere goes on exactly as if it never had been."""

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

from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.logger import read_metrics
from chromabox.engine.trainer import TrainingInterrupted, fit
from chromabox.errors import ChromaboxError

RUNS = {
    "plain": {},
    "accumulate 4, average": {"accumulate": 4, "average_decay": 0.9, "average_ramp": 5.0},
}


def metrics(folder: Path) -> list[dict[str, float]]:
    """All numbers of a run but the seconds."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in read_metrics(folder)]


def assert_same(one: Any, other: Any) -> None:
    """Two nested states agree to the last bit."""
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
    """Numbers, weights, averages, optimisers and random state of two run folders agree."""
    assert metrics(one) == metrics(other)
    for name in ("last.safetensors", "best.safetensors"):
        assert_same(load_checkpoint(one / name)[0], load_checkpoint(other / name)[0])


def send(number: int, at: tuple[int, int]) -> Callable[[int, int], None]:
    """A ``before_batch`` that sends this process a signal once."""

    def before_batch(epoch: int, batch: int) -> None:
        if (epoch, batch) == at:
            os.kill(os.getpid(), number)

    return before_batch


@pytest.fixture(scope="module")
def straight(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of four epochs in a row, trained once for each optimiser and rhythm."""
    done: dict[tuple[str, str], Path] = {}

    def train(optimiser: str, rhythm: str) -> Path:
        if (optimiser, rhythm) not in done:
            done[optimiser, rhythm] = tmp_path_factory.mktemp("straight")
            fit(
                tiny.make_job(optimiser),
                tiny.make_plan(4, **RUNS[rhythm]),
                folder=done[optimiser, rhythm],
                runtime=tiny.ONE_THREAD,
            )
        return done[optimiser, rhythm]

    return train


@pytest.mark.parametrize("rhythm", RUNS)
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "muon"])
def test_two_epochs_and_two_more_are_four_in_a_row(
    tiny: ModuleType, straight: Callable[[str, str], Path], tmp_path: Path, optimiser: str, rhythm: str
) -> None:
    for epochs, resume in ((2, False), (4, True)):
        plan = tiny.make_plan(epochs, **RUNS[rhythm])
        fit(tiny.make_job(optimiser), plan, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=resume)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert_same_run(tmp_path, straight(optimiser, rhythm))


@pytest.mark.parametrize("rhythm", RUNS)
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "muon"])
def test_a_run_interrupted_within_an_epoch_goes_on_as_if_it_never_had_been(
    tiny: ModuleType, straight: Callable[[str, str], Path], tmp_path: Path, optimiser: str, rhythm: str
) -> None:
    plan = tiny.make_plan(4, **RUNS[rhythm])
    job = tiny.make_job(optimiser, before_batch=send(signal.SIGINT, (1, 2)))
    with pytest.raises(TrainingInterrupted, match="stopped in epoch 2 after batch") as caught:
        fit(job, plan, folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert caught.value.exit_code == 130
    assert f"go on with --resume {tmp_path}" in str(caught.value)
    # Stopped after a whole update, never between the batches of one.
    assert load_checkpoint(tmp_path / "last.safetensors")[0]["resume"]["loop"]["batch"] == plan.accumulate + (
        2 if plan.accumulate == 1 else 0
    )
    fit(tiny.make_job(optimiser), plan, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)
    assert_same_run(tmp_path, straight(optimiser, rhythm))


def test_channels_last_goes_on_in_the_same_layout(tiny: ModuleType, tmp_path: Path) -> None:
    execution = tiny.Execution(threads=1, channels_last=True)
    fit(tiny.make_job(), tiny.make_plan(4), folder=tmp_path / "row", runtime=execution)
    for epochs, resume in ((2, False), (4, True)):
        net = fit(tiny.make_job(), tiny.make_plan(epochs), folder=tmp_path / "two", runtime=execution, resume=resume)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_run(tmp_path / "row", tmp_path / "two")


def run_script(tiny: ModuleType, folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, tiny.__file__, str(folder), *options], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize(
    ("option", "written", "saved"),
    [
        # Killed from outside while it waits in the middle of epoch 3.
        ("--wait-in-epoch", [1, 2], 2),
        # Killed between writing epoch 3's metrics and saving its checkpoint.
        ("--die-after-metrics-of", [1, 2, 3], 2),
    ],
)
def test_a_killed_run_goes_on_as_if_it_never_had_been(
    tiny: ModuleType, tmp_path: Path, option: str, written: list[int], saved: int
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with run_script(tiny, killed, option, "3") as child:
        try:
            while child.poll() is None and len(read_metrics(killed)) < 2:
                time.sleep(0.02)
            if option == "--wait-in-epoch":
                last = killed / "last.json"
                while not (last.is_file() and '"epoch": 2' in last.read_text()):
                    time.sleep(0.02)
                child.kill()
            assert child.wait(60) == -signal.SIGKILL
        finally:
            child.kill()
    assert [record["epoch"] for record in read_metrics(killed)] == written
    assert load_checkpoint(killed / "last.safetensors")[1]["epoch"] == saved
    plan = tiny.make_plan(average_decay=0.9, accumulate=2)
    fit(tiny.make_job(), plan, folder=killed, runtime=tiny.ONE_THREAD, resume=True)
    fit(tiny.make_job(), plan, folder=whole, runtime=tiny.ONE_THREAD)
    assert [record["epoch"] for record in read_metrics(killed)] == [1, 2, 3, 4]
    assert_same_run(killed, whole)


def test_accumulated_batches_are_one_big_batch(tiny: ModuleType, tmp_path: Path) -> None:
    """Without batch normalisation the mean gradient of two halves is the gradient of the whole."""
    nets = [tiny.make_net(dropout=0.0, normalise=False) for _ in range(2)]
    halves = tiny.make_plan(2, steps_per_epoch=6, accumulate=2)
    wholes = tiny.make_plan(2, steps_per_epoch=3)
    assert halves.updates == wholes.updates == 6
    fit(tiny.make_job("sgd", net=nets[0], batch_size=4), halves, folder=tmp_path / "a", runtime=tiny.ONE_THREAD)
    fit(tiny.make_job("sgd", net=nets[1], batch_size=8), wholes, folder=tmp_path / "b", runtime=tiny.ONE_THREAD)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    losses = [[record["train_loss"] for record in read_metrics(tmp_path / name)] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_last_accumulation_of_an_epoch_may_be_short(tiny: ModuleType, tmp_path: Path) -> None:
    updates: list[int] = []
    job = tiny.make_job()
    schedule = job.schedule
    job = tiny.make_job(net=job.net, schedule=lambda update: updates.append(update) or schedule(update))
    plan = tiny.make_plan(2, accumulate=4)
    fit(job, plan, folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert updates == [0, 1, 2, 3]
    assert plan.updates == 4


# Of six batches an epoch. (accumulate, most updates, batches of each epoch)
CUT_SHORT = [(1, 9, [6, 3]), (1, 12, [6, 6]), (1, 4, [4]), (4, 3, [6, 4]), (4, 100, [6, 6, 6, 6])]


@pytest.mark.parametrize(("accumulate", "most", "batches"), CUT_SHORT)
def test_a_run_of_so_many_updates_makes_exactly_them(
    tiny: ModuleType, tmp_path: Path, accumulate: int, most: int, batches: list[int]
) -> None:
    updates: list[int] = []
    seen: list[list[float]] = [[] for _ in batches]
    trained: list[tuple[int, int]] = []

    def losses(call: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        found = tiny.losses(call, batch)
        seen[trained[-1][0]].append(found["loss"].item())
        return found

    schedule = tiny.make_job().schedule
    job = tiny.make_job(
        before_batch=lambda epoch, batch: trained.append((epoch, batch)),
        losses=losses,
        schedule=lambda update: updates.append(update) or schedule(update),
    )
    plan = tiny.make_plan(4, accumulate=accumulate, most_updates=most)
    fit(job, plan, folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert trained == [(epoch, batch) for epoch, count in enumerate(batches) for batch in range(count)]
    assert updates == list(range(plan.updates))
    assert plan.updates == min(most, 4 * -(-6 // accumulate))
    means = [record["train_loss"] for record in read_metrics(tmp_path)]
    assert means == pytest.approx([sum(part) / len(part) for part in seen], rel=1e-6)


@pytest.mark.parametrize("at", [(0, 3), (1, 0), (1, 2)])
def test_a_run_of_so_many_updates_can_be_stopped(tiny: ModuleType, tmp_path: Path, at: tuple[int, int]) -> None:
    plan = tiny.make_plan(4, most_updates=9, average_decay=0.9)
    fit(tiny.make_job(), plan, folder=tmp_path / "row", runtime=tiny.ONE_THREAD)
    job = tiny.make_job(before_batch=send(signal.SIGINT, at))
    with pytest.raises(TrainingInterrupted):
        fit(job, plan, folder=tmp_path / "two", runtime=tiny.ONE_THREAD)
    fit(tiny.make_job(), plan, folder=tmp_path / "two", runtime=tiny.ONE_THREAD, resume=True)
    assert_same_run(tmp_path / "row", tmp_path / "two")


@pytest.mark.parametrize(("decay", "ramp"), [(0.8, 0.0), (0.9, 4.0)])
def test_average_follows_its_formula(tiny: ModuleType, tmp_path: Path, decay: float, ramp: float) -> None:
    """In numpy: average ← d·average + (1 − d)·weights, d = decay·(1 − e^(−step/ramp)), from the first weights on."""
    seen: list[dict[str, np.ndarray]] = []
    net = tiny.make_net()

    def state(module: nn.Module) -> dict[str, np.ndarray]:
        return {name: value.double().numpy().copy() for name, value in module.state_dict().items()}

    job = tiny.make_job(net=net, before_batch=lambda epoch, batch: seen.append(state(net)))
    plan = tiny.make_plan(2, average_decay=decay, average_ramp=ramp)
    averaged = state(fit(job, plan, folder=tmp_path, runtime=tiny.ONE_THREAD))
    weights = [*seen[1:], state(net)]
    expected = weights[0]
    for step, current in enumerate(weights[1:], start=1):
        now = decay * (1 - np.exp(-step / ramp)) if ramp else decay
        expected = {name: now * expected[name] + (1 - now) * current[name] for name in current}
    assert len(weights) == 12
    for name, value in averaged.items():
        right = weights[-1][name] if name.endswith("num_batches_tracked") else expected[name]
        np.testing.assert_allclose(value, right, rtol=1e-5, atol=1e-6, err_msg=name)
    assert_same(
        load_checkpoint(tmp_path / "best.safetensors")[0]["net"],
        load_checkpoint(tmp_path / "last.safetensors")[0]["net"],
    )


# (val_loss of each epoch, patience, epochs trained, best epoch)
STOPS = [
    ([3.0, 2.0, 2.5, 2.4, 1.0, 0.5], 2, 4, 2),
    ([3.0, 2.0, 2.5, 1.9, 2.0, 2.0], 2, 6, 4),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1, 2, 1),
    ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 3, 4, 1),
    ([1.0, 2.0, 3.0, 4.0, 5.0, 0.5], None, 6, 6),
]


@pytest.mark.parametrize(("scores", "patience", "trained", "best"), STOPS)
def test_patience_and_the_best_epoch(
    tiny: ModuleType, tmp_path: Path, scores: list[float], patience: int | None, trained: int, best: int
) -> None:
    script = iter(scores)
    nets: dict[int, dict[str, Tensor]] = {}

    def keep(record: dict[str, float], net: nn.Module) -> None:
        nets[int(record["epoch"])] = {name: value.clone() for name, value in net.state_dict().items()}

    plan = tiny.make_plan(6, watch="val_loss", patience=patience)
    job = tiny.make_job(validate=lambda net: {"val_loss": next(script)})
    fit(job, plan, folder=tmp_path, runtime=tiny.ONE_THREAD, on_epoch_end=keep)
    assert [record["val_loss"] for record in read_metrics(tmp_path)] == scores[:trained]
    state, description = load_checkpoint(tmp_path / "best.safetensors")
    assert description["epoch"] == best
    assert description["val_loss"] == scores[best - 1]
    assert_same(state["net"], nets[best])
    # A run that has stopped stays stopped: resuming trains no further epoch.
    fit(tiny.make_job(), plan, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)
    assert len(read_metrics(tmp_path)) == trained


def test_best_and_patience_survive_a_stop(tiny: ModuleType, tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    for epochs, resume in ((3, False), (6, True)):
        job = tiny.make_job(validate=lambda net: {"val_loss": next(scores)})
        plan = tiny.make_plan(epochs, watch="val_loss", patience=2)
        fit(job, plan, folder=tmp_path, runtime=tiny.ONE_THREAD, resume=resume)
    assert len(read_metrics(tmp_path)) == 4
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["epoch"] == 2


def test_without_anything_to_watch_the_last_epoch_is_best(tiny: ModuleType, tmp_path: Path) -> None:
    fit(tiny.make_job(), tiny.make_plan(3), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert load_checkpoint(tmp_path / "best.safetensors")[1]["epoch"] == 3


@pytest.mark.parametrize(
    ("what", "value"), [("train_loss", float("nan")), ("val_loss", float("nan")), ("val_loss", float("inf"))]
)
def test_a_value_that_is_no_number_ends_the_run(tiny: ModuleType, tmp_path: Path, what: str, value: float) -> None:
    epochs = []

    def losses(call: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        right = tiny.losses(call, batch)
        spoiled = what == "train_loss" and len(epochs) == 1
        return {**right, "loss": right["loss"] * value} if spoiled else right

    def validate(net: nn.Module) -> dict[str, float]:
        epochs.append(1)
        return {"val_loss": value if what == "val_loss" and len(epochs) == 2 else 1.0}

    job = tiny.make_job(losses=losses, validate=validate)
    with pytest.raises(ChromaboxError, match=f"{what} became {value} in epoch 2; try a lower learning rate"):
        fit(job, tiny.make_plan(4), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == [1]
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["epoch"] == 1


def test_a_polite_kill_is_an_interruption(tiny: ModuleType, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    job = tiny.make_job(before_batch=send(signal.SIGTERM, (0, 0)))
    with pytest.raises(TrainingInterrupted, match="epoch 1 after batch 1;"):
        fit(job, tiny.make_plan(), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_stops_at_once(tiny: ModuleType, tmp_path: Path) -> None:
    begun: list[int] = []

    def twice(epoch: int, batch: int) -> None:
        begun.append(batch)
        for _ in range(2 * (batch == 1)):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny.make_job(before_batch=twice), tiny.make_plan(), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert begun == [0, 1]
    assert not (tmp_path / "last.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_it_also_runs_outside_the_main_thread(tiny: ModuleType, tmp_path: Path) -> None:
    arguments = {"folder": tmp_path, "execution": tiny.ONE_THREAD}
    thread = threading.Thread(target=fit, args=(tiny.make_job(), tiny.make_plan(1)), kwargs=arguments)
    thread.start()
    thread.join()
    assert len(read_metrics(tmp_path)) == 1


def test_a_net_alone_is_nothing_to_go_on_from(tiny: ModuleType, tmp_path: Path) -> None:
    fit(tiny.make_job(), tiny.make_plan(1), folder=tmp_path, runtime=tiny.ONE_THREAD)
    (tmp_path / "best.safetensors").replace(tmp_path / "last.safetensors")
    with pytest.raises(ChromaboxError, match=r"last\.safetensors: holds a net but no training state"):
        fit(tiny.make_job(), tiny.make_plan(2), folder=tmp_path, runtime=tiny.ONE_THREAD, resume=True)


def test_validation_sees_evaluation_mode_and_leaves_none_behind(tiny: ModuleType, tmp_path: Path) -> None:
    modes = []

    def validate(net: nn.Module) -> dict[str, float]:
        modes.append((net.training, net[1].training, torch.is_grad_enabled()))
        return {"val_loss": 1.0}

    job = tiny.make_job(validate=validate)
    fit(job, tiny.make_plan(2), folder=tmp_path, runtime=tiny.ONE_THREAD)
    assert modes == [(False, False, False)] * 2
    assert job.net.training
    assert int(job.net[1].num_batches_tracked) == 2 * tiny.STEPS
