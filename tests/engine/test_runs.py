"""Run folders: configuration, resuming, pending runs; package versions and memory use, compared with Python's."""

import platform
import subprocess
import sys
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import save_checkpoint
from chromabox.engine.options import OptimConfig, RuntimeOptions
from chromabox.engine.runs import RunConfig, RunDir, package_versions, train_pending
from chromabox.errors import ChromaboxError, UsageError


def test_versions_equal_the_installed_packages() -> None:
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    assert versions["numpy"] == np.__version__
    assert versions["safetensors"] == version("safetensors")
    assert list(versions) == ["python", "chromabox", "torch", "numpy", "scikit-image", "safetensors"]


def test_peak_memory_is_in_bytes_and_does_not_decrease() -> None:
    program = """
from chromabox.engine.runs import peak_memory_bytes
before = peak_memory_bytes()
block = b"x" * 100_000_000
after = peak_memory_bytes()
del block
print(before, after, peak_memory_bytes())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, after, later = map(int, result.stdout.split())
    # Python reuses memory pages that it already has.
    assert 80_000_000 < after - before < 120_000_000
    assert later >= after - 1_000_000  # Linux updates the counter in steps.


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Configuration of a kind of run that only these tests use."""

    model: Literal["tiny"] = "tiny"
    recipe: OptimConfig
    size: int = 8


def make_config(**settings: object) -> Config:
    recipe = OptimConfig(epochs=3, batch_size=4, optimizer="adam", lr=0.1)
    return Config(**{"recipe": recipe, "data": "photos", "runtime": RuntimeConfig(), **settings})


def start_run(folder: Path, config: Config, epochs_done: int = 1) -> RunDir:
    """Write the files of a run that was interrupted after some epochs."""
    run = RunDir(folder)
    run.save_config(config)
    save_checkpoint(folder / "last.safetensors", {}, {"epoch": epochs_done})
    (folder / "metrics.jsonl").write_text("".join(f'{{"epoch": {epoch + 1}}}\n' for epoch in range(epochs_done)))
    return run


def test_config_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = make_config(seed=3, patience=2)
    run = start_run(tmp_path / "run", config)
    assert run.load_config(Config) == config
    assert run.model_name() == "tiny"
    assert RunDir(tmp_path).model_name() is None


def test_resumed_run_keeps_its_settings_except_epochs_and_runtime(tmp_path: Path) -> None:
    config = make_config(max_steps=7)
    run = start_run(tmp_path / "run", config, epochs_done=2)
    resumed = run.resume_config(Config, RuntimeOptions(threads=2), epochs=5)
    expected = replace(
        config, max_steps=None, recipe=replace(config.recipe, epochs=5), runtime=RuntimeConfig(threads=2)
    )
    assert resumed == expected
    assert run.resume_config(Config, RuntimeOptions()) == config


@pytest.mark.parametrize("epochs", [0, 1])
def test_fewer_epochs_than_done_are_rejected(epochs: int, tmp_path: Path) -> None:
    run = start_run(tmp_path, make_config(), epochs_done=2)
    with pytest.raises(UsageError, match=f"--epochs is {epochs}, but the number of epochs already started in .* is 2"):
        run.resume_config(Config, RuntimeOptions(), epochs=epochs)


def test_run_on_a_missing_device_is_resumed_only_with_another_device(tmp_path: Path) -> None:
    run = start_run(tmp_path, make_config(runtime=RuntimeConfig(device="cuda:99")), epochs_done=1)
    with pytest.raises(UsageError, match=r"--device cuda:99: not available .*; use --device cpu"):
        run.resume_config(Config, RuntimeOptions())
    resumed = run.resume_config(Config, RuntimeOptions(device="cpu"))
    assert resumed.runtime is not None
    assert resumed.runtime.device == "cpu"


def test_run_without_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.save_config(make_config())
    with pytest.raises(UsageError, match="stopped before its first checkpoint"):
        run.resume_config(Config, RuntimeOptions())


@dataclass(frozen=True)
class Group:
    """Group of options that only these tests use."""

    batch_size: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Options:
    """Options of a command that only these tests use."""

    data: str | None = None
    seed: int = 0
    output: Path | None = None
    group: Group = field(default_factory=Group)


def test_every_changed_option_is_named_with_its_old_and_new_value(tmp_path: Path) -> None:
    run, config = RunDir(tmp_path), make_config(seed=2)
    given = Options("other", 3, Path("out"), Group(batch_size=8, epochs=9))
    with pytest.raises(UsageError) as caught:
        run.reject_changes(config, given, Options(group=Group(epochs=9)), "--epochs")
    changes = (
        f"data from photos to other, --seed from 2 to 3, --output from {tmp_path} to out, --batch-size from 4 to 8"
    )
    assert str(caught.value) == f"--resume {tmp_path}: cannot change {changes}; only --epochs can be changed"


def test_options_with_the_values_of_the_run_are_accepted(tmp_path: Path) -> None:
    given = Options(str(tmp_path / "photos"), 2, tmp_path, Group(batch_size=4))
    RunDir(tmp_path).reject_changes(make_config(data=str(tmp_path / "photos"), seed=2), given, Options(), "nothing")


@pytest.mark.parametrize("size", [0, 5, -1])
def test_truncated_checkpoint_is_rejected_before_any_training(tmp_path: Path, size: int) -> None:
    configs = {tmp_path / "first": make_config(), tmp_path / "run": make_config(seed=1)}
    run = start_run(tmp_path / "run", configs[tmp_path / "run"])
    path = run.path / "last.safetensors"
    save_checkpoint(path, {"weight": torch.zeros(9)}, {})
    path.write_bytes(path.read_bytes()[:size])
    trained: list[Config] = []
    message = f"{path}: truncated or corrupt checkpoint.* delete {run.path} and start the run again"
    with pytest.raises(ChromaboxError, match=message):
        train_pending(configs, lambda config, run: trained.append(config))
    with pytest.raises(ChromaboxError, match=message):
        run.resume_config(Config, RuntimeOptions())
    assert trained == []


def test_only_pending_runs_are_trained(tmp_path: Path) -> None:
    configs = {tmp_path / name: make_config(seed=seed) for seed, name in enumerate(("new", "begun", "done"))}
    start_run(tmp_path / "begun", replace(configs[tmp_path / "begun"], runtime=RuntimeConfig(threads=2)))
    start_run(tmp_path / "done", configs[tmp_path / "done"]).save_summary({"epochs": 3})
    trained: list[tuple[str, Config]] = []
    train_pending(configs, lambda config, run: trained.append((run.path.name, config)))
    assert [name for name, _ in trained] == ["new", "begun"]
    # An interrupted run is resumed with the runtime settings it began with.
    assert trained[1][1].runtime == RuntimeConfig(threads=2)
    assert RunDir(tmp_path / "done").summary() == {"epochs": 3}


def test_other_settings_are_rejected_before_any_training(tmp_path: Path) -> None:
    start_run(tmp_path / "run", make_config(seed=1))
    trained: list[Config] = []
    with pytest.raises(UsageError, match="contains a run with other settings"):
        train_pending(
            {tmp_path / "first": make_config(), tmp_path / "run": make_config(seed=2)},
            lambda config, run: trained.append(config),
        )
    assert trained == []
