"""What is fixed is obeyed, what is not is measured, and measuring changes nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chromabox.engine.autotune import RuntimeConfig, autotune
from chromabox.engine.runtime_options import RuntimeOptions

FIXED = [
    (
        {"precision": "float32", "compiled": "off", "channels_last": "off", "threads": 1},
        RuntimeConfig(device="cpu", precision="float32", compile=False, channels_last=False, threads=1),
    ),
    (
        {"precision": "bfloat16", "compiled": "off", "channels_last": "on", "threads": 2},
        RuntimeConfig(device="cpu", precision="bfloat16", compile=False, channels_last=True, threads=2),
    ),
    (
        {"precision": "float32", "compiled": "on", "channels_last": "off", "threads": 2},
        RuntimeConfig(device="cpu", precision="float32", compile=True, channels_last=False, threads=2),
    ),
    (
        {"precision": "bfloat16", "compiled": "on", "channels_last": "on", "threads": 1},
        RuntimeConfig(device="cpu", precision="bfloat16", compile=True, channels_last=True, threads=1),
    ),
]


@pytest.mark.parametrize(("options", "expected"), FIXED)
def test_with_everything_fixed_nothing_is_measured(options: dict[str, Any], expected: RuntimeConfig) -> None:
    def losses(call: Callable[[Tensor], Tensor]) -> Tensor:
        raise AssertionError("a step was run")

    chosen = autotune(RuntimeOptions(device="cpu", **options), nn.Linear(2, 2), losses, total_steps=10**9)
    assert chosen == expected
    assert torch.get_num_threads() == expected.threads


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"threads": 1}, {"threads": {1}, "compiled": {False}}),
        ({"precision": "bfloat16"}, {"precision": {"bfloat16"}}),
        ({"precision": "float32", "channels_last": "on"}, {"precision": {"float32"}, "channels_last": {True}}),
        ({"channels_last": "off", "compiled": "on", "threads": 2}, {"channels_last": {False}, "compiled": {True}}),
    ],
)
def test_what_is_fixed_is_obeyed_when_the_rest_is_measured(
    tiny: ModuleType, options: dict[str, Any], allowed: dict[str, set[Any]]
) -> None:
    """``steps`` is small, so that nothing left open is worth compiling."""
    chosen = autotune(RuntimeOptions(device="cpu", **options), tiny.make_net(), losses_of(tiny), total_steps=1)
    for name, values in allowed.items():
        assert getattr(chosen, name) in values


def losses_of(tiny: ModuleType) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
    job = tiny.make_job()
    batch = next(iter(job.batches(0, 0)))
    return lambda call: job.losses(call, batch)["loss"]


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_changes_nothing(tiny: ModuleType, training: bool) -> None:
    """Dropout and batch normalisation would show it: weights, statistics, gradients, mode, layout and random state."""
    losses, net = losses_of(tiny), tiny.make_net(dropout=0.5)
    losses(net).backward()
    net.train(training)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    random = torch.get_rng_state()
    autotune(RuntimeOptions(device="cpu", compile="off"), net, losses, total_steps=100)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(each.grad, right) for each, right in zip(net.parameters(), gradients, strict=True))
    assert all(module.training is training for module in net.modules())
    assert net[0].weight.is_contiguous()
    assert net[0].weight.dtype == torch.float32


def test_the_probe_measures_steps_in_each_way_left_open(tiny: ModuleType) -> None:
    losses, seen = losses_of(tiny), set()

    def watch(call: Callable[[Tensor], Tensor]) -> Tensor:
        last = call[0].weight.is_contiguous(memory_format=torch.channels_last)
        seen.add((last, torch.is_autocast_enabled("cpu")))
        assert call.training
        return losses(call)

    autotune(RuntimeOptions(device="cpu", compile="off", threads=1), tiny.make_net(), watch, total_steps=1)
    assert {last for last, _ in seen} == {False, True}
    assert {low for _, low in seen} == {False, True}


@pytest.mark.parametrize(
    ("seconds", "chosen", "measurements"),
    [
        # By (bfloat16, channels-last).
        ({(0, 0): 10, (0, 1): 9.8, (1, 0): 5, (1, 1): 4}, (1, 1), 4),
        ({(0, 0): 10, (0, 1): 9.8, (1, 0): 5, (1, 1): 4.9}, (1, 0), 4),
        ({(0, 0): 10, (0, 1): 8, (1, 0): 1, (1, 1): 9}, (0, 1), 3),
        ({(0, 0): 10, (0, 1): 10, (1, 0): 10, (1, 1): 1}, (0, 0), 3),
    ],
)
def test_what_does_not_pay_alone_is_tried_again_beside_what_does(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[int, int], float], chosen: tuple[int, int], measurements: int
) -> None:
    asked = []

    def told(execution: RuntimeConfig, *_: Any) -> float:
        asked.append((int(execution.precision == "bfloat16"), int(execution.channels_last)))
        return float(seconds[asked[-1]])

    monkeypatch.setattr("chromabox.engine.autotune._time_step", told)
    options = RuntimeOptions(device="cpu", compile="off", threads=1)
    found = autotune(options, nn.Linear(2, 2), lambda call: torch.zeros(()), total_steps=1)
    assert (int(found.precision == "bfloat16"), int(found.channels_last)) == chosen
    assert len(asked) == measurements


def test_place_obeys_layout_precision_and_threads(tiny: ModuleType) -> None:
    net = tiny.make_net()
    call = RuntimeConfig(channels_last=True, precision="bfloat16", threads=2).prepare(net)
    assert call is net
    assert torch.get_num_threads() == 2
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    with RuntimeConfig(precision="bfloat16").autocast():
        assert net(torch.zeros(1, 2, 8, 8)).dtype == torch.bfloat16
    with RuntimeConfig().autocast():
        assert net(torch.zeros(1, 2, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        (RuntimeConfig(), "cpu, float32, eager, channels-first, 1 thread"),
        (
            RuntimeConfig(device="cuda", precision="bfloat16", compile=True, channels_last=True, threads=4),
            "cuda, bfloat16, compiled, channels-last, 4 threads",
        ),
    ],
)
def test_the_choice_in_words_and_as_json(execution: RuntimeConfig, words: str) -> None:
    assert str(execution) == words
    assert RuntimeConfig(**asdict(execution)) == execution


def test_without_a_compiler_auto_is_eager_and_yes_is_one_sentence(tmp_path: Path) -> None:
    script = Path(__file__).with_name("without_compiler.py")
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **caches, "CXX": "/nowhere/at/all/c++", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert "compiled step" in lines  # It was tried.
    assert "chosen: cpu, float32, eager, channels-first, 1 thread" in lines
    assert lines[-1].startswith("refused: torch.compile failed (")
    assert lines[-1].endswith("; install a C++ compiler, or give --compiled no")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_resumed_run_keeps_its_choice_but_for_what_is_given() -> None:
    chosen = RuntimeConfig(precision="bfloat16", channels_last=True, threads=2)
    assert chosen.with_overrides(RuntimeOptions()) == chosen
    given = RuntimeOptions(precision="float32", compile="on", channels_last="off", threads=3, device="cuda:1")
    assert chosen.with_overrides(given) == RuntimeConfig(
        device="cuda:1", precision="float32", compile=True, channels_last=False, threads=3
    )
