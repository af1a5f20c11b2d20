"""Two processes under torchrun, compared with one process and the full batch."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.distributed import (
    DistInfo,
    SyncBatchNorm2d,
    all_reduce_any,
    all_reduce_mean,
    broadcast_object,
    convert_sync_batchnorm,
    init_distributed,
)
from chromabox.engine.logger import read_metrics
from chromabox.engine.trainer import fit

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two processes and return the folder of their results."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [load_checkpoint(folder / f"rank{rank}.safetensors")[0] for rank in (0, 1)]


def test_collective_operations(ranks: list[dict[str, Any]]) -> None:
    for rank, collectives in enumerate(results["collectives"] for results in ranks):
        assert (collectives["rank"], collectives["world_size"], collectives["is_main"]) == (rank, 2, rank == 0)
        assert collectives["any"] == [False, True, True, True]
        assert collectives["broadcast"] == {"rank": 0, "list": [1, None]}
        assert collectives["mean"].tolist() == [1.5, 5.0]


NORMS = {
    "plain": {},
    "cumulative": {"momentum": None},
    "no affine": {"affine": False, "track_running_stats": False},
}


@pytest.mark.parametrize("case", NORMS)
def test_synchronised_batch_norm_equals_batch_norm_of_the_full_batch(ranks: list[dict[str, Any]], case: str) -> None:
    """Compare forward, backward, statistics and evaluation with ``nn.BatchNorm2d`` in float64 on the full batch."""
    results = [rank_results[case] for rank_results in ranks]
    batch, weights = (ranks[0]["inputs"][name].double() for name in ("batch", "weights"))
    norm = nn.BatchNorm2d(3, **NORMS[case]).double()
    batch.requires_grad_()
    norm(batch * 2 + 1)
    output = norm(batch)
    (output * weights).sum().backward()

    def assert_close(name: str, expected: Tensor) -> None:
        actual = torch.cat([result[name] for result in results]).double()
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, msg=lambda message: f"{name}: {message}")

    assert_close("output", output.detach())
    assert batch.grad is not None
    assert_close("gradient", batch.grad)
    for index, parameter in enumerate(norm.parameters()):
        # The gradient of a parameter is the sum of the gradients of the processes.
        assert parameter.grad is not None
        total = sum(result["gradients"][index].double() for result in results)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-4, atol=1e-4)
    for result in results:
        assert len(result["buffers"]) == len(list(norm.buffers()))
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(result["buffers"][f"0.{name}"].to(buffer.dtype), buffer, rtol=1e-5, atol=1e-5)
    if case != "no affine":  # Without running statistics, evaluation uses the batch of each process.
        assert_close("evaluated", norm.eval()(batch.detach()).detach())


def test_two_processes_train_the_same_model_as_one(folder: Path, tiny: ModuleType, tmp_path: Path) -> None:
    """Compare weights, BatchNorm statistics, EMA and metrics of two processes with half a batch each and of one."""
    task = tiny.make_task("sgd", model=tiny.make_model(dropout=0.0))
    fit(task, tiny.make_schedule(3, ema_decay=0.5), folder=tmp_path, runtime=tiny.ONE_THREAD)
    runs = (tmp_path, folder / "uninterrupted")
    single, double = (load_checkpoint(run / "last.safetensors")[0]["resume"] for run in runs)
    for part in ("net", "average"):
        assert list(single[part]) == list(double[part])
        for name, value in single[part].items():
            torch.testing.assert_close(double[part][name], value, rtol=1e-4, atol=1e-6)
    initial = tiny.make_task(model=tiny.make_model(dropout=0.0)).model.state_dict()
    assert not torch.allclose(initial["1.running_var"], single["net"]["1.running_var"], rtol=0.1)
    for one, other in zip(read_metrics(tmp_path), read_metrics(folder / "uninterrupted"), strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "val_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-5)


def test_signal_to_one_process_stops_both_and_they_resume(folder: Path, ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["message"].startswith("stopped in epoch 2 after batch 3; ")
    names = ("uninterrupted", "resumed")
    uninterrupted, resumed = (load_checkpoint(folder / name / "last.safetensors")[0]["resume"] for name in names)
    for name, value in uninterrupted["net"].items():
        assert torch.equal(resumed["net"][name], value), name
    for one, other in zip(read_metrics(folder / "uninterrupted"), read_metrics(folder / "resumed"), strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "val_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-12)


def test_single_process_needs_no_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_distributed() as dist_info:
        assert dist_info == DistInfo(0, 1)
    assert dist_info.is_main
    assert [all_reduce_any(flag, dist_info) for flag in (False, True)] == [False, True]
    assert broadcast_object({"a": 1}, dist_info) == {"a": 1}
    assert all_reduce_mean(torch.tensor([1.0, 2.0]), dist_info).tolist() == [1.0, 2.0]
    model = nn.Sequential(nn.BatchNorm2d(3))
    convert_sync_batchnorm(model, dist_info)
    assert type(model[0]) is nn.BatchNorm2d


def test_converted_layers_keep_their_parameters() -> None:
    inner = nn.BatchNorm2d(3, eps=0.5, momentum=0.25)
    model = nn.Sequential(nn.Sequential(inner), nn.BatchNorm2d(2, affine=False))
    model[1].eval()
    before = {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())}
    names = list(model.state_dict())
    convert_sync_batchnorm(model, DistInfo(0, 2))
    assert {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())} == before
    assert list(model.state_dict()) == names
    assert [type(model[0][0]), type(model[1])] == [SyncBatchNorm2d] * 2
    assert (model[0][0].eps, model[0][0].momentum) == (0.5, 0.25)
    assert [model[0][0].training, model[1].training] == [True, False]
