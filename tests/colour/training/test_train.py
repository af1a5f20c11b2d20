"""Training on a folder of small generated pictures: what a run leaves, and that stopping changes nothing.

A run that is stopped and resumed is compared with one that was not: every parameter and statistic bit for bit.
"""

import csv
import json
import math
import os
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

from chromabox.cli import run_cli as command
from chromabox.colour.models import build_model, num_trainable_parameters
from chromabox.colour.palette.io import load_palette
from chromabox.colour.training.recipes import PALETTE_MODELS, PaletteModelName, RecipeName, make_recipe
from chromabox.colour.training.train import TrainConfig, build_optimizers, load_inputs, read_config, train
from chromabox.colour.weights.checkpoint import load_model
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.logger import read_metrics
from chromabox.engine.trainer import TrainingInterrupted
from chromabox.errors import UsageError

PLAIN = RuntimeConfig(device="cpu", precision="float32", compile=False, channels_last=False, threads=1)
PLAIN_OPTIONS = ["--precision", "float32", "--compile", "off", "--channels-last", "off", "--threads", "1"]
PLAIN_OPTIONS += ["--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of 16 × 16 whose colour follows from their grey and place, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(40):
        level = random.integers(40, 216, (4, 4)).repeat(4, 0).repeat(4, 1)
        sky = np.arange(16)[:, None] < random.integers(4, 12)
        rgb = np.stack([level + np.where(sky, -30, 20), level, level + np.where(sky, 30, -25)], axis=-1)
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def configuration(
    photos: Path, net: PaletteModelName = "unet", recipe: RecipeName = "default", *, epochs: int = 4, **settings: object
) -> TrainConfig:
    found = make_recipe(recipe, net, epochs=epochs, batch_size=8)
    given = {"data": str(photos), "palette": "horse24", "size": 16, "runtime": PLAIN, **settings}
    return TrainConfig(model=net, recipe_name=recipe, recipe=found, **given)


def quiet(line: str) -> None:
    """Says nothing."""


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state by its place in it."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {place: found for key, value in items for place, found in tensors_of(value, f"{name}.{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Nets, averages, optimisers and random state bit for bit, and every metric but the seconds."""
    one, other = (tensors_of(load_checkpoint(run / "last.safetensors")[0]) for run in (first, second))
    assert one.keys() == other.keys()
    assert len(one) > 20
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    records = [[{**record, "seconds": 0} for record in read_metrics(run)] for run in (first, second)]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    arguments = ["train", "unet", "--data", str(photos), "--size", "16", "--epochs", "2", "--batch-size", "8"]
    assert command([*arguments, "--hold-out", "0.2", "--seed", "7", "-o", str(folder), *PLAIN_OPTIONS]) == 0
    return folder


def test_a_run_folder_holds_all_that_is_promised(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {
        *("config.json", "metrics.jsonl", "metrics.csv", "summary.json", "palette.json", "curves.png"),
        *("best.safetensors", "best.json", "last.safetensors", "last.json"),
        *("sheets/epoch-001.png", "sheets/epoch-002.png"),
    } <= names
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in names)
    assert not list(finished.rglob(".*"))


def test_metrics_have_a_line_an_epoch(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    promised = {"epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds"}
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert promised | {"val_loss", "val_accuracy"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())
        assert all(0 <= record[name] <= 1 for name in record if name.endswith("_accuracy"))
    with (finished / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == records


def test_the_summary_is_what_the_last_net_reaches(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    config = read_config(finished)
    test = load_inputs(config, finished).data.test
    state, _ = load_checkpoint(finished / "last.safetensors")
    net = build_model("unet", num_colours=24)
    net.load_state_dict(state["net"])
    logits = net.eval()(test.grey)
    assert (summary["net"], summary["recipe"], summary["seed"], summary["epochs"]) == ("unet", "default", 7, 2)
    assert summary["palette"] == f"fitted to {Path(config.data).name}"
    assert summary["parameters"] == num_trainable_parameters(net)
    assert summary["test_accuracy"] == pytest.approx((logits.argmax(1) == test.labels).float().mean().item())
    expected = torch.nn.functional.cross_entropy(logits, test.labels.long()).item()
    assert summary["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert summary["seconds"] == pytest.approx(sum(record["seconds"] for record in read_metrics(finished)), abs=0.01)


def test_the_configuration_comes_back(finished: Path) -> None:
    config = read_config(finished)
    assert (config.model, config.seed, config.size, config.val_fraction) == ("unet", 7, 16, 0.2)
    assert config.recipe == make_recipe("default", "unet", epochs=2, batch_size=8)
    assert config.runtime == PLAIN
    versions = json.loads((finished / "config.json").read_text())["versions"]
    # Some builds add to their own version what they were built for: 2.13.0+cu130.
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    np.testing.assert_array_equal(load_palette(finished / "palette.json").colours, load_model(finished).palette.colours)


def test_the_best_checkpoint_is_the_epoch_with_the_lowest_held_out_loss(finished: Path) -> None:
    losses = [record["val_loss"] for record in read_metrics(finished)]
    description = load_model(finished).metadata
    assert description["epoch"] == 1 + int(np.argmin(losses))
    assert description["val_loss"] == min(losses)
    assert (description["recipe"], description["seed"], description["size"]) == ("default", 7, 16)


@pytest.mark.parametrize("recipe", ["course", "default", "quick"])
@pytest.mark.parametrize("net", PALETTE_MODELS)
def test_interrupted_and_resumed_is_as_in_a_row(
    photos: Path, tmp_path: Path, net: PaletteModelName, recipe: RecipeName
) -> None:
    # The largest net sees smaller pictures: what is tested does not depend on their size.
    small = {"size": 8} if net == "colournet" else {}
    config = configuration(photos, net, recipe, **small)
    inputs = load_inputs(config)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    summary = train(config, whole, inputs=inputs, log=quiet)

    def interrupt(record: dict, *rest: object) -> None:
        if record["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C does; obeyed after the next batch, within epoch 3

    with pytest.raises(TrainingInterrupted, match=f"--resume {halved}"):
        train(config, halved, inputs=inputs, log=quiet, on_epoch_end=interrupt)
    assert [record["epoch"] for record in read_metrics(halved)] == [1, 2]
    assert not (halved / "summary.json").exists()
    again = train(read_config(halved), halved, resume=True, log=quiet)
    assert_same_run(whole, halved)
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_more_epochs_of_a_constant_rate_are_as_in_a_row(photos: Path, tmp_path: Path) -> None:
    train(configuration(photos, recipe="course", epochs=4), tmp_path / "four", log=quiet)
    train(configuration(photos, recipe="course", epochs=2), tmp_path / "two", log=quiet)
    arguments = ["train", "--resume", str(tmp_path / "two"), "--epochs", "4"]
    assert command(arguments) == 0
    assert_same_run(tmp_path / "four", tmp_path / "two")


def test_so_many_steps_instead_of_epochs(photos: Path, tmp_path: Path) -> None:
    # 36 training pictures in batches of 8 and file order are 5 steps an epoch.
    config = configuration(photos, recipe="course", epochs=1, max_steps=12)
    summary = train(config, tmp_path / "steps", log=quiet)
    assert (summary["updates"], summary["epochs"]) == (12, 3)
    assert load_checkpoint(tmp_path / "steps" / "last.safetensors")[0]["resume"]["loop"]["step"] == 12
    whole = train(configuration(photos, recipe="course", epochs=3), tmp_path / "whole", log=quiet)
    assert (whole["updates"], whole["epochs"]) == (15, 3)
    # At a constant rate the one is the beginning of the other.
    records = [[{**record, "seconds": 0} for record in read_metrics(tmp_path / run)] for run in ("steps", "whole")]
    assert records[0][:2] == records[1][:2]
    assert records[0][2] != records[1][2]
    assert read_config(tmp_path / "steps").max_steps == 12


def test_a_schedule_ends_with_the_last_step(photos: Path, tmp_path: Path) -> None:
    """Twelve steps of a recipe without leftovers are three epochs of four, rates and averages included."""
    for name, config in (
        ("steps", configuration(photos, epochs=1, max_steps=12)),
        ("epochs", configuration(photos, epochs=3)),
    ):
        assert train(config, tmp_path / name, log=quiet)["updates"] == 12
    assert_same_run(tmp_path / "steps", tmp_path / "epochs")


def test_an_old_configuration_counts_epochs(finished: Path, tmp_path: Path) -> None:
    values = json.loads((finished / "config.json").read_text())
    del values["max_steps"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == read_config(finished)
    assert read_config(tmp_path).max_steps is None


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "chromabox", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(run: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    while len(read_metrics(run)) < epochs and process.poll() is None:
        time.sleep(0.01)


def test_killed_without_warning_and_resumed_is_as_in_a_row(photos: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = ["--data", str(photos), "--size", "16", "--epochs", "20", "--batch-size", "8", "--palette", "horse24"]
    process = start("train", "unet", *options, "-o", str(killed), *PLAIN_OPTIONS)
    wait_for_epochs(killed, 2, process)
    process.kill()
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, out + err
    done = len(read_metrics(killed))
    assert 2 <= done < 20
    train(configuration(photos, epochs=20), whole, log=quiet)
    train(read_config(killed), killed, resume=True, log=quiet)
    assert_same_run(whole, killed)


def test_two_processes_train_as_one_with_the_doubled_batch(photos: Path, tmp_path: Path) -> None:
    options = ["--data", str(photos), "--size", "16", "--epochs", "3", "--palette", "horse24", "--recipe", "course"]
    options += ["--batch-size", "4", "-o", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "chromabox", "train", "unet", *options, *PLAIN_OPTIONS],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1  # only one of them speaks
    train(configuration(photos, recipe="course", epochs=3), tmp_path / "one", log=quiet)
    one, two = (load_checkpoint(tmp_path / run / "last.safetensors")[0]["net"] for run in ("one", "two"))
    assert one.keys() == two.keys()
    start_state = _initial("unet")
    for name in one:
        # A bias in front of a batch normalisation has no gradient but rounding errors, which Adam blows up.
        if one[name].ndim == 4:
            moved = (one[name] - start_state[name]).norm()
            assert (one[name] - two[name]).norm() < 0.02 * moved, name
    records = [read_metrics(tmp_path / run) for run in ("one", "two")]
    for mine, theirs in zip(*records, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)
        assert mine["test_loss"] == pytest.approx(theirs["test_loss"], rel=1e-2)


def _initial(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(name, num_colours=24).state_dict()


def test_training_learns(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos, epochs=12)
    inputs = load_inputs(config)
    summary = train(config, tmp_path, inputs=inputs, log=quiet)
    records = read_metrics(tmp_path)
    assert records[-1]["train_loss"] < 0.5 * math.log(24)
    majority = np.bincount(inputs.data.test.labels.numpy().ravel()).max() / inputs.data.test.labels.numel()
    assert summary["test_accuracy"] > majority


def test_another_seed_is_another_run(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos, epochs=1)
    first = train(config, tmp_path / "a", log=quiet)
    other = train(replace(config, seed=1), tmp_path / "b", log=quiet)
    assert first["test_loss"] != other["test_loss"]


def test_patience_stops_early(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos, epochs=30, val_fraction=0.3, patience=1)
    # With this learning rate the held-out loss cannot fall for thirty epochs on end.
    config = replace(config, recipe=replace(config.recipe, optimizer="adam", lr=0.3, schedule="constant"))
    summary = train(config, tmp_path, log=quiet)
    losses = [record["val_loss"] for record in read_metrics(tmp_path)]
    assert summary["epochs"] == len(losses) < 30
    assert losses[-1] >= min(losses[:-1])
    assert all(later < earlier for earlier, later in pairwise(losses[:-1]))


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("net", PALETTE_MODELS)
def test_every_parameter_has_one_optimiser_and_only_kernels_decay(net: PaletteModelName, optimiser: str) -> None:
    module = build_model(net)
    recipe = replace(make_recipe("course", net), optimizer=optimiser, weight_decay=0.1, lr=0.02, adamw_lr=0.01)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)  # a kernel that begins as zeros would not show its decay
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimisers = build_optimizers(recipe, module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for step in optimisers:
        step.step()
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    kernels = {name for name, parameter in before.items() if parameter.ndim > 1}
    if optimiser == "adam":
        assert moved == set()
    elif optimiser == "adamw":
        assert moved == kernels
    else:
        # Kernels that read one channel are left to AdamW, which decays nothing here.
        assert moved == {name for name in kernels if before[name].shape[1] > 1}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for step in optimisers:
        step.step()
    assert [name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])] == []


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (None, r"holds no config\.json"),
        ("{", "not the configuration of a colour run"),
        ("{}", "not the configuration of a colour run"),
        ('{"versions": {}, "recipe": {"epochs": 1}, "execution": {}}', "not the configuration of a colour run"),
        ("[1]", "not the configuration of a colour run"),
    ],
)
def test_a_folder_without_a_configuration_is_refused(tmp_path: Path, content: str | None, error: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=error):
        read_config(tmp_path)
