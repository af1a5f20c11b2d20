"""Whole runs of fine-tuning on a made set: what is in the folder, what stands still, stopping and going on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from boxed import yolo_set
from chromabox.detect.data import load_detection_set
from chromabox.detect.evaluate import evaluate_detector
from chromabox.detect.finetune import FinetuneConfig, finetune, read_finetune_config
from chromabox.detect.finetune_job import begin
from chromabox.detect.recipes import finetune_recipe
from chromabox.detect.weights import load_detector, save_detector
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.execution import Execution
from chromabox.engine.log import Record, read_metrics
from chromabox.engine.options import ExecutionOptions
from chromabox.errors import UsageError
from detectors import CLASSES, small_detector

BOX = "0 0.5 0.5 0.4 0.6\n1 0.3 0.4 0.2 0.2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {f"train/{name}": BOX for name in "abcdef"} | {f"val/{name}": BOX for name in "xyz"}
    return yolo_set(tmp_path_factory.mktemp("set"), labels, ("dog", "hedgehog"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_detector(path, small_detector())
    return path


def _config(folder: Path, weights: Path, recipe: str = "default", epochs: int = 2, **others: object) -> FinetuneConfig:
    settings = {"freeze": 3, "size": 64, "views": 2, "execution": Execution(), **others}
    return FinetuneConfig(
        data=str(folder),
        weights=str(weights),
        recipe=finetune_recipe(recipe, epochs=epochs, batch_size=2),
        **settings,
    )


def _quiet(line: str) -> None:
    pass


class _StopError(Exception):
    """Stands for kill -9 after an epoch's checkpoint."""


@pytest.mark.parametrize(
    ("recipe", "views", "keep_old"),
    [("default", 2, False), ("default", 0, False), ("default", 2, True), ("course", 2, False)],
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not(
    recipe: str, views: int, keep_old: bool, folder: Path, weights: Path, tmp_path: Path
) -> None:
    config = _config(folder, weights, recipe, 3, views=views, keep_old=keep_old)
    whole = finetune(config, tmp_path / "whole", say=_quiet)

    def stop(record: Record) -> None:
        if record["epoch"] == 2:
            raise _StopError

    with pytest.raises(_StopError):
        finetune(config, tmp_path / "parts", say=_quiet, after_epoch=stop)
    again = finetune(read_finetune_config(tmp_path / "parts"), tmp_path / "parts", resume=True, say=_quiet)
    expected, found = (load_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    torch.testing.assert_close(found["net"], expected["net"], rtol=0, atol=0)
    torch.testing.assert_close(found["resume"]["average"], expected["resume"]["average"], rtol=0, atol=0)
    assert again.summary["after"] == whole.summary["after"]
    assert [record["epoch"] for record in read_metrics(tmp_path / "parts")] == [1, 2, 3]


def test_the_folder_is_a_detector_for_the_data_s_classes(folder: Path, weights: Path, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = finetune(_config(folder, weights), tmp_path, say=said.append)
    trained = load_detector(tmp_path)
    assert trained.classes == ("dog", "hedgehog")
    assert trained.size == 64
    measured = evaluate_detector(trained, load_detection_set(folder).split("val"), draws=2)
    assert measured.coco.ap50 == pytest.approx(outcome.summary["after"]["ap50"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == outcome.summary
    assert summary["frozen"]["layers"] == 3
    assert {"ap", "ap50"} == summary["difference"].keys()
    assert summary["peak_memory"] > 50_000_000
    assert any("the first 3 layers" in line for line in said)
    assert {"train_box", "train_objectness", "train_class", "val_ap50"} <= read_metrics(tmp_path)[0].keys()
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize(("recipe", "still"), [("default", True), ("course", False)])
def test_frozen_layers_statistics_move_in_the_course_s_recipe_only(
    recipe: str, still: bool, folder: Path, weights: Path, tmp_path: Path
) -> None:
    finetune(_config(folder, weights, recipe), tmp_path, say=_quiet)
    # The raw net, since the course's average has hardly moved in six batches.
    before = small_detector().net.state_dict()
    after = load_checkpoint(tmp_path / "last.safetensors")[0]["resume"]["net"]
    frozen = [name for name in before if int(name.split(".")[1]) < 3]
    kept = [name for name in frozen if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert torch.equal(before["layers.0.norm.running_mean"], after["layers.0.norm.running_mean"]) is still
    assert not torch.equal(before["layers.3.norm.running_mean"], after["layers.3.norm.running_mean"])


def test_old_classes_may_stay_and_what_is_left_of_them_is_measured(folder: Path, weights: Path, tmp_path: Path) -> None:
    old = yolo_set(tmp_path / "old", {"train/a": BOX, "val/x": BOX}, CLASSES)
    outcome = finetune(_config(folder, weights, keep_old=True, retain=str(old)), tmp_path / "run", say=_quiet)
    assert outcome.trained.classes == (*CLASSES, "hedgehog")
    expected = evaluate_detector(small_detector(), load_detection_set(old).split("val"), size=64, draws=2)
    assert outcome.summary["retained"]["ap50_before"] == pytest.approx(expected.coco.ap50)
    assert {"train_old_box", "train_old_class"} <= read_metrics(tmp_path / "run")[0].keys()


@pytest.mark.parametrize(
    ("recipe", "keep_old", "names"),
    [("default", False, ("dog", "hedgehog")), ("default", True, ("dog", "cat")), ("course", True, ("dog", "hedgehog"))],
)
def test_the_old_net_is_imitated_by_ours_alone_and_beside_new_classes_only(
    recipe: str, keep_old: bool, names: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    data = yolo_set(tmp_path / "set", {"train/a": BOX, "train/b": BOX, "val/x": BOX}, names)
    finetune(_config(data, weights, recipe, 1, keep_old=keep_old), tmp_path / "run", say=_quiet)
    assert "train_old_class" not in read_metrics(tmp_path / "run")[0]


def test_where_no_class_is_new_the_gentler_rates_are_taken(weights: Path, tmp_path: Path) -> None:
    rates = []
    for names in (("dog", "hedgehog"), ("dog", "cat")):
        place = tmp_path / names[1]
        labels = {"train/a": BOX, "train/b": BOX, "val/x": BOX}
        config = _config(yolo_set(place / "set", labels, names), weights, epochs=1)
        assert begin(config, None).new == ("hedgehog" in names)
        finetune(config, place / "run", say=_quiet)
        optimisers = load_checkpoint(place / "run" / "last.safetensors")[0]["resume"]["optimisers"]
        rates.append(optimisers[0]["param_groups"][0]["lr"])
    assert rates[1] / rates[0] == pytest.approx(config.recipe.gentle)


def test_early_stop_watches_pictures_of_its_own(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = _config(folder, weights, epochs=30, patience=1)
    outcome = finetune(config, tmp_path, say=_quiet)
    assert outcome.summary["epochs"] < 30


def test_time_and_memory_are_told_beforehand(folder: Path, weights: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = _config(folder, weights, epochs=1, execution=None)
    finetune(config, tmp_path, options=ExecutionOptions(precision="float32", threads=1), say=said.append)
    (line,) = [line for line in said if "minutes in all" in line]
    assert line.startswith("6 pictures train, 3 batches an epoch, running on cpu, float32")
    assert read_finetune_config(tmp_path).execution is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": 65}, "size is 65: small needs a multiple of 32"),
        ({"views": -1}, "views is -1"),
        ({"freeze": 6}, "at most the first 5 can be frozen"),
        ({"freeze": "neck"}, "freeze is neck"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes: dict[str, object], reason: str, folder: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        finetune(_config(folder, weights, **changes), tmp_path / "run", say=_quiet)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"net": "unet"}')
    with pytest.raises(UsageError, match=r"holds no config\.json of chromabox finetune"):
        read_finetune_config(tmp_path)


def test_a_configuration_comes_back_as_it_was(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = _config(folder, weights, epochs=1)
    finetune(config, tmp_path, say=_quiet)
    assert read_finetune_config(tmp_path) == config
    assert replace(config, seed=1) != config
