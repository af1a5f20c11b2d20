"""Autotuning: fixed options are kept, open ones are measured, and the measurement has no side effects."""

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

from chromabox.engine.autotune import RuntimeConfig, autotune, has_fast_bfloat16, resolve_device
from chromabox.engine.options import RuntimeOptions
from chromabox.errors import UsageError

FIXED = [
    (
        {"precision": "float32", "compile": "off", "channels_last": "off", "threads": 1},
        RuntimeConfig(device="cpu", precision="float32", compile=False, channels_last=False, threads=1),
    ),
    (
        {"precision": "bfloat16", "compile": "off", "channels_last": "on", "threads": 2},
        RuntimeConfig(device="cpu", precision="bfloat16", compile=False, channels_last=True, threads=2),
    ),
    (
        {"precision": "float32", "compile": "on", "channels_last": "off", "threads": 2},
        RuntimeConfig(device="cpu", precision="float32", compile=True, channels_last=False, threads=2),
    ),
    (
        {"precision": "bfloat16", "compile": "on", "channels_last": "on", "threads": 1},
        RuntimeConfig(device="cpu", precision="bfloat16", compile=True, channels_last=True, threads=1),
    ),
]


@pytest.mark.parametrize(("options", "expected"), FIXED)
def test_fixed_options_need_no_measurement(options: dict[str, Any], expected: RuntimeConfig) -> None:
    def compute_loss(forward: Callable[[Tensor], Tensor]) -> Tensor:
        raise AssertionError("a step was run")

    runtime = autotune(RuntimeOptions(device="cpu", **options), nn.Linear(2, 2), compute_loss, total_steps=10**9)
    assert runtime == expected
    assert torch.get_num_threads() == expected.threads


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"threads": 1}, {"threads": {1}, "compile": {False}}),
        ({"precision": "bfloat16"}, {"precision": {"bfloat16"}}),
        ({"precision": "float32", "channels_last": "on"}, {"precision": {"float32"}, "channels_last": {True}}),
        ({"channels_last": "off", "compile": "on", "threads": 2}, {"channels_last": {False}, "compile": {True}}),
    ],
)
def test_fixed_options_are_kept_when_others_are_measured(
    tiny: ModuleType, options: dict[str, Any], allowed: dict[str, set[Any]]
) -> None:
    """``total_steps`` is small, and compilation is not tried."""
    runtime = autotune(RuntimeOptions(device="cpu", **options), tiny.make_model(), make_loss(tiny), total_steps=100)
    for name, values in allowed.items():
        assert getattr(runtime, name) in values


def make_loss(tiny: ModuleType) -> Callable[[Callable[[Tensor], Tensor]], Tensor]:
    task = tiny.make_task()
    batch = next(iter(task.batches(0, 0)))
    return lambda forward: task.compute_loss(forward, batch)["loss"]


@pytest.mark.parametrize("training", [True, False])
def test_measurement_has_no_side_effects(tiny: ModuleType, training: bool) -> None:
    """Compare weights, BatchNorm statistics, gradients, mode, layout and random state, with dropout."""
    compute_loss, model = make_loss(tiny), tiny.make_model(dropout=0.5)
    compute_loss(model).backward()
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    autotune(RuntimeOptions(device="cpu", compile="off"), model, compute_loss, total_steps=100)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(parameter.grad, gradient) for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert all(module.training is training for module in model.modules())
    assert model[0].weight.is_contiguous()
    assert model[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cpu", "DEFAULT", False), ("cpu", "AVX2", False), ("cpu", "AVX512", True), ("cuda:1", "AVX2", True)],
)
def test_has_fast_bfloat16(monkeypatch: pytest.MonkeyPatch, device: str, capability: str, expected: bool) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert has_fast_bfloat16(device) is expected


@pytest.mark.parametrize(("capability", "autocasts"), [("AVX2", {False}), ("AVX512", {False, True})])
def test_open_options_are_measured_in_training_mode(
    monkeypatch: pytest.MonkeyPatch, tiny: ModuleType, capability: str, autocasts: set[bool]
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    compute_loss, measured = make_loss(tiny), set()

    def record(forward: Callable[[Tensor], Tensor]) -> Tensor:
        channels_last = forward[0].weight.is_contiguous(memory_format=torch.channels_last)
        measured.add((channels_last, torch.is_autocast_enabled("cpu")))
        assert forward.training
        return compute_loss(forward)

    autotune(RuntimeOptions(device="cpu", compile="off", threads=1), tiny.make_model(), record, total_steps=100)
    assert {channels_last for channels_last, _ in measured} == {False, True}
    assert {autocast for _, autocast in measured} == autocasts


@pytest.mark.parametrize(
    ("seconds", "expected", "measurements"),
    [
        # Keys: (bfloat16, channels-last).
        ({(0, 0): 10, (0, 1): 9.8, (1, 0): 5, (1, 1): 4}, (1, 1), 4),
        ({(0, 0): 10, (0, 1): 9.8, (1, 0): 5, (1, 1): 4.9}, (1, 0), 4),
        ({(0, 0): 10, (0, 1): 8, (1, 0): 1, (1, 1): 9}, (0, 1), 3),
        ({(0, 0): 10, (0, 1): 10, (1, 0): 10, (1, 1): 1}, (0, 0), 3),
    ],
)
def test_rejected_changes_are_tried_again_after_later_ones(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[tuple[int, int], float], expected: tuple[int, int], measurements: int
) -> None:
    measured = []

    def time_step(runtime: RuntimeConfig, *_: Any) -> float:
        measured.append((int(runtime.precision == "bfloat16"), int(runtime.channels_last)))
        return float(seconds[measured[-1]])

    monkeypatch.setattr("chromabox.engine.autotune._time_step", time_step)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    options = RuntimeOptions(device="cpu", compile="off", threads=1)
    selected = autotune(options, nn.Linear(2, 2), lambda forward: torch.zeros(()), total_steps=100)
    assert (int(selected.precision == "bfloat16"), int(selected.channels_last)) == expected
    assert len(measured) == measurements


def test_prepare_sets_layout_precision_and_threads(tiny: ModuleType) -> None:
    model = tiny.make_model()
    forward = RuntimeConfig(channels_last=True, precision="bfloat16", threads=2).prepare(model)
    assert forward is model
    assert torch.get_num_threads() == 2
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    with RuntimeConfig(precision="bfloat16").autocast():
        assert model(torch.zeros(1, 2, 8, 8)).dtype == torch.bfloat16
    with RuntimeConfig().autocast():
        assert model(torch.zeros(1, 2, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("runtime", "text"),
    [
        (RuntimeConfig(), "cpu, float32, eager, channels-first, 1 thread"),
        (
            RuntimeConfig(device="cuda", precision="bfloat16", compile=True, channels_last=True, threads=4),
            "cuda, bfloat16, compiled, channels-last, 4 threads",
        ),
    ],
)
def test_config_as_text_and_as_json(runtime: RuntimeConfig, text: str) -> None:
    assert str(runtime) == text
    assert RuntimeConfig(**asdict(runtime)) == runtime


def test_missing_compiler_falls_back_to_eager_or_raises_a_one_line_error(tmp_path: Path) -> None:
    script = Path(__file__).with_name("without_compiler.py")
    cache_variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **cache_variables, "CXX": "/nowhere/at/all/c++", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert "compiled step" in lines  # Compilation was tried.
    assert "selected: cpu, float32, eager, channels-first, 1 thread" in lines
    assert lines[-1].startswith("error: torch.compile failed (")
    assert lines[-1].endswith("; install a C++ compiler or use --compile off")
    assert "Traceback" not in result.stdout + result.stderr


def test_resumed_run_keeps_its_config_except_for_given_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    saved = RuntimeConfig(precision="bfloat16", channels_last=True, threads=2)
    assert saved.with_overrides(RuntimeOptions()) == saved
    options = RuntimeOptions(precision="float32", compile="on", channels_last="off", threads=3, device="cuda:1")
    assert saved.with_overrides(options) == RuntimeConfig(
        device="cuda:1", precision="float32", compile=True, channels_last=False, threads=3
    )


def test_device_is_not_case_sensitive() -> None:
    assert resolve_device(RuntimeOptions(device="CPU")) == "cpu"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("nonsense", "--device is 'nonsense': expected auto, cpu, cuda or cuda:N"),
        ("cuda:x", "--device is 'cuda:x'"),
        ("0", "--device is '0': expected auto, cpu, cuda or cuda:N, such as cuda:0"),
        ("gpu", "--device is 'gpu'"),
        ("mps", "--device is 'mps'"),
        ("cuda:", "--device is 'cuda:'"),
        (f"cuda:{'9' * 5000}", "--device is 'cuda:9"),
        ("cuda:99", r"--device cuda:99: not available \(GPUs that PyTorch can use: \d+\); use --device cpu"),
        ("CUDA:99", "--device cuda:99: not available"),
    ],
)
def test_unknown_and_missing_devices_are_rejected(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_device(RuntimeOptions(device=device))
    with pytest.raises(UsageError, match=message):
        RuntimeConfig().with_overrides(RuntimeOptions(device=device))
