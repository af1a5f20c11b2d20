"""Two real processes under torchrun compute what one does with the whole batch."""

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
    """Where two processes have left their results."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [load_checkpoint(folder / f"rank{rank}.safetensors")[0] for rank in (0, 1)]


def test_what_processes_tell_each_other(ranks: list[dict[str, Any]]) -> None:
    for rank, told in enumerate(each["words"] for each in ranks):
        assert (told["rank"], told["size"], told["is_main"]) == (rank, 2, rank == 0)
        assert told["any"] == [False, True, True, True]
        assert told["from_main"] == {"rank": 0, "list": [1, None]}
        assert told["mean"].tolist() == [1.5, 5.0]


NORMS = {
    "plain": {},
    "cumulative": {"momentum": None},
    "bare": {"affine": False, "track_running_stats": False},
}


@pytest.mark.parametrize("kind", NORMS)
def test_synchronised_normalisation_is_that_of_the_joined_batch(ranks: list[dict[str, Any]], kind: str) -> None:
    """Against ``nn.BatchNorm2d`` in float64 on both halves together: forward, backward, statistics, evaluation."""
    results = [each[kind] for each in ranks]
    batch, weights = (ranks[0]["given"][name].double() for name in ("batch", "weights"))
    norm = nn.BatchNorm2d(3, **NORMS[kind]).double()
    batch.requires_grad_()
    norm(batch * 2 + 1)
    output = norm(batch)
    (output * weights).sum().backward()

    def close(name: str, right: Tensor) -> None:
        joined = torch.cat([result[name] for result in results]).double()
        torch.testing.assert_close(joined, right, rtol=1e-4, atol=1e-4, msg=lambda message: f"{name}: {message}")

    close("output", output.detach())
    assert batch.grad is not None
    close("gradient", batch.grad)
    for index, parameter in enumerate(norm.parameters()):
        # Each process has its own share of a parameter's gradient.
        assert parameter.grad is not None
        shares = sum(result["gradients"][index].double() for result in results)
        torch.testing.assert_close(shares, parameter.grad, rtol=1e-4, atol=1e-4)
    for result in results:
        assert len(result["buffers"]) == len(list(norm.buffers()))
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(result["buffers"][f"0.{name}"].to(buffer.dtype), buffer, rtol=1e-5, atol=1e-5)
    if kind != "bare":  # Without running statistics evaluation, too, is of the process's own batch.
        close("evaluated", norm.eval()(batch.detach()).detach())


def test_two_processes_train_the_net_that_one_does(folder: Path, tiny: ModuleType, tmp_path: Path) -> None:
    """Half a batch each, gradients averaged, normalisation synchronised: weights, statistics, average and metrics."""
    job = tiny.make_job("sgd", net=tiny.make_net(dropout=0.0))
    fit(job, tiny.make_plan(3, average_decay=0.5), folder=tmp_path, runtime=tiny.ONE_THREAD)
    alone, together = (load_checkpoint(each / "last.safetensors")[0]["resume"] for each in (tmp_path, folder / "row"))
    for part in ("net", "average"):
        assert list(alone[part]) == list(together[part])
        for name, value in alone[part].items():
            torch.testing.assert_close(together[part][name], value, rtol=1e-4, atol=1e-6)
    start = tiny.make_job(net=tiny.make_net(dropout=0.0)).net.state_dict()
    assert not torch.allclose(start["1.running_var"], alone["net"]["1.running_var"], rtol=0.1)
    for one, other in zip(read_metrics(tmp_path), read_metrics(folder / "row"), strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "val_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-5)


def test_a_stop_asked_of_one_process_stops_both_and_they_go_on(folder: Path, ranks: list[dict[str, Any]]) -> None:
    for each in ranks:
        assert each["said"].startswith("stopped in epoch 2 after batch 3; ")
    row, stopped = (load_checkpoint(folder / name / "last.safetensors")[0]["resume"] for name in ("row", "stopped"))
    for name, value in row["net"].items():
        assert torch.equal(stopped["net"][name], value), name
    for one, other in zip(read_metrics(folder / "row"), read_metrics(folder / "stopped"), strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "val_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-12)


def test_alone_everything_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_distributed() as world:
        assert world == DistInfo(0, 1)
    assert world.is_main
    assert [all_reduce_any(flag, world) for flag in (False, True)] == [False, True]
    assert broadcast_object({"a": 1}, world) == {"a": 1}
    assert all_reduce_mean(torch.tensor([1.0, 2.0]), world).tolist() == [1.0, 2.0]
    net = nn.Sequential(nn.BatchNorm2d(3))
    convert_sync_batchnorm(net, world)
    assert type(net[0]) is nn.BatchNorm2d


def test_exchanged_layers_keep_their_parameters() -> None:
    inner = nn.BatchNorm2d(3, eps=0.5, momentum=0.25)
    net = nn.Sequential(nn.Sequential(inner), nn.BatchNorm2d(2, affine=False))
    net[1].eval()
    before = {name: id(value) for name, value in (*net.named_parameters(), *net.named_buffers())}
    names = list(net.state_dict())
    convert_sync_batchnorm(net, DistInfo(0, 2))
    assert {name: id(value) for name, value in (*net.named_parameters(), *net.named_buffers())} == before
    assert list(net.state_dict()) == names
    assert [type(net[0][0]), type(net[1])] == [SyncBatchNorm2d] * 2
    assert (net[0][0].eps, net[0][0].momentum) == (0.5, 0.25)
    assert [net[0][0].training, net[1].training] == [True, False]
