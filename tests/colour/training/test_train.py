"""Training on a folder of small generated images: the content of a run folder, and interruption and resuming.

A resumed run is compared with an uninterrupted run: every parameter and statistic must be equal bit for bit.
"""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from chromabox.cli import run_cli
from chromabox.colour.models import build_model, num_trainable_parameters
from chromabox.colour.palette.io import load_palette
from chromabox.colour.training.recipes import PALETTE_MODELS, PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, build_optimizers, load_inputs, train
from chromabox.colour.weights.checkpoint import load_model
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.logger import read_metrics
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.engine.trainer import TrainingInterrupted
from chromabox.errors import UsageError

PLAIN_RUNTIME = RuntimeConfig(device="cpu", precision="float32", compile=False, channels_last=False, threads=1)
PLAIN_OPTIONS = ["--precision", "float32", "--compile", "off", "--channels-last", "off", "--threads", "1"]
PLAIN_OPTIONS += ["--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 images of 16 × 16 pixels, whose colours can be predicted from grey level and position."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(40):
        level = random.integers(40, 216, (4, 4)).repeat(4, 0).repeat(4, 1)
        sky = np.arange(16)[:, None] < random.integers(4, 12)
        rgb = np.stack([level + np.where(sky, -30, 20), level, level + np.where(sky, 30, -25)], axis=-1)
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def make_config(
    photos: Path,
    model: PaletteModelName = "unet",
    recipe_name: RecipeName = "default",
    *,
    epochs: int = 4,
    **settings: object,
) -> TrainConfig:
    recipe = make_recipe(recipe_name, model, epochs=epochs, batch_size=8)
    fields = {"data": str(photos), "palette": "horse24", "size": 16, "runtime": PLAIN_RUNTIME, **settings}
    return TrainConfig(model=model, recipe_name=recipe_name, recipe=recipe, **fields)


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a nested state by their paths."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {path: tensor for key, value in items for path, tensor in tensors_of(value, f"{name}.{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Assert that weights, averages, optimizers, random state and all metrics except the seconds are equal."""
    first_tensors, second_tensors = (
        tensors_of(load_checkpoint(run / "last.safetensors")[0]) for run in (first, second)
    )
    assert first_tensors.keys() == second_tensors.keys()
    assert len(first_tensors) > 20
    assert [name for name, tensor in first_tensors.items() if not torch.equal(tensor, second_tensors[name])] == []
    records = [[{**record, "seconds": 0} for record in read_metrics(run)] for run in (first, second)]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, trained by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    arguments = ["train", "unet", "--data", str(photos), "--size", "16", "--epochs", "2", "--batch-size", "8"]
    assert run_cli([*arguments, "--val-fraction", "0.2", "--seed", "7", "-o", str(folder), *PLAIN_OPTIONS]) == 0
    return folder


def test_run_folder_contains_all_documented_files(finished_run: Path) -> None:
    names = {str(path.relative_to(finished_run)) for path in finished_run.rglob("*") if path.is_file()}
    assert {
        *("config.json", "metrics.jsonl", "metrics.csv", "summary.json", "palette.json", "curves.png"),
        *("best.safetensors", "best.json", "last.safetensors", "last.json"),
        *("sheets/epoch-001.png", "sheets/epoch-002.png"),
    } <= names
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in names)
    assert not list(finished_run.rglob(".*"))


def test_metrics_have_one_line_per_epoch(finished_run: Path) -> None:
    records = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    documented = {"epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"}
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert documented | {"val_loss", "val_accuracy"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())
        assert all(0 <= record[name] <= 1 for name in record if name.endswith("_accuracy"))
    with (finished_run / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == records


def test_summary_has_the_results_of_the_last_model(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    config = RunDir(finished_run).load_config(TrainConfig)
    test = load_inputs(config, finished_run).data.test
    state, _ = load_checkpoint(finished_run / "last.safetensors")
    model = build_model("unet", num_colours=24)
    model.load_state_dict(state["net"])
    logits = model.eval()(test.grey)
    assert (summary["net"], summary["recipe"], summary["seed"], summary["epochs"]) == ("unet", "default", 7, 2)
    assert summary["palette"] == f"fitted to {Path(config.data).name}"
    assert summary["parameters"] == num_trainable_parameters(model)
    assert summary["test_accuracy"] == pytest.approx((logits.argmax(1) == test.labels).float().mean().item())
    expected = torch.nn.functional.cross_entropy(logits, test.labels.long()).item()
    assert summary["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert summary["seconds"] == pytest.approx(
        sum(record["seconds"] for record in read_metrics(finished_run)), abs=0.01
    )


def test_config_is_read_back(finished_run: Path) -> None:
    config = RunDir(finished_run).load_config(TrainConfig)
    assert (config.model, config.seed, config.size, config.val_fraction) == ("unet", 7, 16, 0.2)
    assert config.recipe == make_recipe("default", "unet", epochs=2, batch_size=8)
    assert config.runtime == PLAIN_RUNTIME
    versions = json.loads((finished_run / "config.json").read_text())["versions"]
    # Some builds append their platform to the version, for example 2.13.0+cu130.
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    np.testing.assert_array_equal(
        load_palette(finished_run / "palette.json").colours, load_model(finished_run).palette.colours
    )


def test_best_checkpoint_has_the_lowest_validation_loss(finished_run: Path) -> None:
    losses = [record["val_loss"] for record in read_metrics(finished_run)]
    metadata = load_model(finished_run).metadata
    assert metadata["epoch"] == 1 + int(np.argmin(losses))
    assert metadata["val_loss"] == min(losses)
    assert (metadata["recipe"], metadata["seed"], metadata["size"]) == ("default", 7, 16)


@pytest.mark.parametrize("recipe", ["course", "default", "quick"])
@pytest.mark.parametrize("model", PALETTE_MODELS)
def test_resumed_run_equals_an_uninterrupted_run(
    photos: Path, tmp_path: Path, model: PaletteModelName, recipe: RecipeName
) -> None:
    # A small variant of the largest model saves time.
    small = {"widths": [8, 12, 16], "blocks": [1, 1, 1], "hats": 8}
    config = make_config(photos, model, recipe, model_args=small if model == "colournet" else {})
    inputs = load_inputs(config)
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    summary = train(config, uninterrupted, inputs=inputs)

    def interrupt(record: dict, *rest: object) -> None:
        if record["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does; takes effect after the next batch, in epoch 3

    with pytest.raises(TrainingInterrupted, match=f"--resume {interrupted}"):
        train(config, interrupted, inputs=inputs, callbacks=(interrupt,))
    assert [record["epoch"] for record in read_metrics(interrupted)] == [1, 2]
    assert not (interrupted / "summary.json").exists()
    resumed_summary = train(RunDir(interrupted).load_config(TrainConfig), interrupted, resume=True)
    assert_same_run(uninterrupted, interrupted)
    assert {**resumed_summary, "seconds": 0} == {**summary, "seconds": 0}


def test_resuming_with_more_epochs_at_a_constant_rate_equals_one_run(photos: Path, tmp_path: Path) -> None:
    train(make_config(photos, recipe_name="course", epochs=4), tmp_path / "four")
    train(make_config(photos, recipe_name="course", epochs=2), tmp_path / "two")
    arguments = ["train", "--resume", str(tmp_path / "two"), "--epochs", "4"]
    assert run_cli(arguments) == 0
    assert_same_run(tmp_path / "four", tmp_path / "two")


def test_epoch_that_has_begun_cannot_be_cut_off(photos: Path, tmp_path: Path) -> None:
    def interrupt(record: dict, model: object) -> None:
        signal.raise_signal(signal.SIGINT)  # takes effect after the next batch, in epoch 2

    with pytest.raises(TrainingInterrupted):
        train(make_config(photos, "pool-upsample"), tmp_path, callbacks=(interrupt,))
    with pytest.raises(UsageError, match=r"--epochs is 1, but the number of epochs already started in .* is 2"):
        RunDir(tmp_path).resume_config(TrainConfig, RuntimeOptions(), epochs=1)


def test_resumed_run_without_palette_file_uses_the_palette_of_its_checkpoint(
    finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "palette.json").unlink()
    palette = load_inputs(RunDir(run).load_config(TrainConfig), run).palette
    np.testing.assert_array_equal(palette.colours, load_palette(finished_run / "palette.json").colours)


def test_max_steps_replaces_epochs(photos: Path, tmp_path: Path) -> None:
    # 36 training images in batches of 8, in file order, are 5 steps per epoch.
    config = make_config(photos, recipe_name="course", epochs=1, max_steps=12)
    summary = train(config, tmp_path / "steps")
    assert (summary["updates"], summary["epochs"]) == (12, 3)
    assert load_checkpoint(tmp_path / "steps" / "last.safetensors")[0]["resume"]["loop"]["step"] == 12
    full_summary = train(make_config(photos, recipe_name="course", epochs=3), tmp_path / "full")
    assert (full_summary["updates"], full_summary["epochs"]) == (15, 3)
    # At a constant learning rate, the shorter run equals the beginning of the longer run.
    records = [[{**record, "seconds": 0} for record in read_metrics(tmp_path / run)] for run in ("steps", "full")]
    assert records[0][:2] == records[1][:2]
    assert records[0][2] != records[1][2]
    assert RunDir(tmp_path / "steps").load_config(TrainConfig).max_steps == 12


def test_lr_schedule_ends_with_the_last_step(photos: Path, tmp_path: Path) -> None:
    """12 steps of a recipe that drops incomplete batches equal 3 epochs of 4, with learning rates and averages."""
    for name, config in (
        ("steps", make_config(photos, epochs=1, max_steps=12)),
        ("epochs", make_config(photos, epochs=3)),
    ):
        assert train(config, tmp_path / name)["updates"] == 12
    assert_same_run(tmp_path / "steps", tmp_path / "epochs")


def test_config_without_max_steps_uses_epochs(finished_run: Path, tmp_path: Path) -> None:
    values = json.loads((finished_run / "config.json").read_text())
    del values["max_steps"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert RunDir(tmp_path).load_config(TrainConfig) == RunDir(finished_run).load_config(TrainConfig)
    assert RunDir(tmp_path).load_config(TrainConfig).max_steps is None


def start_process(*arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a new process."""
    return subprocess.Popen(
        [sys.executable, "-m", "chromabox", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(run: Path, num_epochs: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has ``num_epochs`` epochs or the process has ended."""
    while len(read_metrics(run)) < num_epochs and process.poll() is None:
        time.sleep(0.01)


def test_resumed_run_after_sigkill_equals_an_uninterrupted_run(photos: Path, tmp_path: Path) -> None:
    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    options = ["--data", str(photos), "--size", "16", "--epochs", "20", "--batch-size", "8", "--palette", "horse24"]
    process = start_process("train", "unet", *options, "-o", str(killed), *PLAIN_OPTIONS)
    wait_for_epochs(killed, 2, process)
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, out + err
    assert 2 <= len(read_metrics(killed)) < 20
    train(make_config(photos, epochs=20), uninterrupted)
    train(RunDir(killed).load_config(TrainConfig), killed, resume=True)
    assert_same_run(uninterrupted, killed)


def test_two_processes_equal_one_process_with_twice_the_batch_size(photos: Path, tmp_path: Path) -> None:
    options = ["--data", str(photos), "--size", "16", "--epochs", "3", "--palette", "horse24", "--recipe", "course"]
    options += ["--batch-size", "4", "-o", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launcher, "-m", "chromabox", "train", "unet", *options, *PLAIN_OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("test accuracy") == 1  # only the main process writes to stdout
    train(make_config(photos, recipe_name="course", epochs=3), tmp_path / "one")
    one, two = (load_checkpoint(tmp_path / run / "last.safetensors")[0]["net"] for run in ("one", "two"))
    assert one.keys() == two.keys()
    initial_state = _initial_state("unet")
    for name in one:
        # The gradient of a bias before BatchNorm consists of rounding errors only, which Adam amplifies.
        if one[name].ndim == 4:
            change = (one[name] - initial_state[name]).norm()
            assert (one[name] - two[name]).norm() < 0.02 * change, name
    records = [read_metrics(tmp_path / run) for run in ("one", "two")]
    for one_record, two_record in zip(*records, strict=True):
        assert one_record["train_loss"] == pytest.approx(two_record["train_loss"], rel=1e-3)
        assert one_record["test_loss"] == pytest.approx(two_record["test_loss"], rel=1e-2)


def _initial_state(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(name, num_colours=24).state_dict()


def test_training_beats_the_majority_class(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, epochs=12)
    inputs = load_inputs(config)
    summary = train(config, tmp_path, inputs=inputs)
    records = read_metrics(tmp_path)
    assert records[-1]["train_loss"] < 0.5 * math.log(24)
    majority_accuracy = np.bincount(inputs.data.test.labels.numpy().ravel()).max() / inputs.data.test.labels.numel()
    assert summary["test_accuracy"] > majority_accuracy


def test_different_seeds_give_different_results(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, epochs=1)
    first = train(config, tmp_path / "a")
    second = train(replace(config, seed=1), tmp_path / "b")
    assert first["test_loss"] != second["test_loss"]


def test_patience_stops_early(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, epochs=30, val_fraction=0.3, patience=1)
    # With this learning rate, the validation loss cannot decrease in 30 consecutive epochs.
    config = replace(config, recipe=replace(config.recipe, optimizer="adam", lr=0.3, schedule="constant"))
    summary = train(config, tmp_path)
    losses = [record["val_loss"] for record in read_metrics(tmp_path)]
    assert summary["epochs"] == len(losses) < 30
    assert losses[-1] >= min(losses[:-1])
    assert all(later < earlier for earlier, later in pairwise(losses[:-1]))


@pytest.mark.parametrize("optimizer_name", ["adam", "muon"])
@pytest.mark.parametrize("model_name", PALETTE_MODELS)
def test_every_parameter_is_optimised_and_only_kernels_decay(model_name: PaletteModelName, optimizer_name: str) -> None:
    model = build_model(model_name)
    recipe = replace(
        make_recipe("course", model_name), optimizer=optimizer_name, weight_decay=0.1, lr=0.02, adamw_lr=0.01
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # the decay of a kernel of zeros would not be visible
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = build_optimizers(recipe, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    kernels = {name for name, parameter in before.items() if parameter.ndim > 1}
    if optimizer_name == "adam":
        assert changed == set()
    else:
        # Kernels with one input channel are updated by AdamW, which has no weight decay here.
        assert changed == {name for name in kernels if before[name].shape[1] > 1}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        optimizer.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, r"contains no config\.json"),
        ("{", r"config\.json: damaged"),
        ("{}", "the setting .* is missing"),
        ('{"versions": {}, "recipe": {"epochs": 1}, "execution": {}}', "the setting 'model' is missing"),
        ("[1]", "not the configuration of a pool-upsample or"),
    ],
)
def test_folder_without_a_valid_config_is_rejected(tmp_path: Path, content: str | None, error: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=error):
        RunDir(tmp_path).load_config(TrainConfig)
