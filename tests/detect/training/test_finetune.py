"""Whole runs of fine-tuning on a made set: what is in the folder, what stands still, stopping and going on."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.data.dataset import COCO_CLASSES
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.data.synthetic import Objects, make_synthetic_dataset
from chromabox.detect.evaluation.evaluate import evaluate_detector
from chromabox.detect.models.architecture import yolov3_tiny
from chromabox.detect.models.darknet import DARKNET, DarknetModel
from chromabox.detect.training.batches import AugmentedSamples, cached_reader
from chromabox.detect.training.config import FinetuneConfig, read_finetune_config
from chromabox.detect.training.finetune import finetune
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.training.setup import FinetuneCosts, FinetuneProbe, build_loss, initialise_run
from chromabox.detect.weights.load import Detector, load_detector, save_detector
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from detection_fixtures import make_yolo_dataset
from detector_fixtures import CLASS_NAMES, make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n1 0.3 0.4 0.2 0.2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {f"train/{name}": BOX for name in "abcdef"} | {f"val/{name}": BOX for name in "xyz"}
    return make_yolo_dataset(tmp_path_factory.mktemp("set"), labels, ("dog", "hedgehog"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_detector(path, make_small_detector())
    return path


def _config(folder: Path, weights: Path, recipe: str = "default", epochs: int = 2, **others: object) -> FinetuneConfig:
    settings = {"freeze": 3, "size": 64, "num_cached_views": 2, "runtime": RuntimeConfig(), **others}
    return FinetuneConfig(
        data=str(folder),
        weights=str(weights),
        recipe=make_finetune_recipe(recipe, epochs=epochs, batch_size=2),
        **settings,
    )


def _quiet(line: str) -> None:
    pass


class _StopError(Exception):
    """Ends a run after an epoch's checkpoint."""


@pytest.mark.parametrize(
    ("recipe", "views", "keep_old"),
    [("default", 2, False), ("default", 0, False), ("default", 2, True), ("course", 2, False)],
)
def test_a_run_that_was_ended_goes_on_as_if_it_had_not(
    recipe: str, views: int, keep_old: bool, folder: Path, weights: Path, tmp_path: Path
) -> None:
    config = _config(folder, weights, recipe, 3, num_cached_views=views, keep_old_classes=keep_old)
    whole = finetune(config, tmp_path / "whole", log=_quiet)

    def stop(record: EpochRecord) -> None:
        if record["epoch"] == 2:
            raise _StopError

    with pytest.raises(_StopError):
        finetune(config, tmp_path / "parts", log=_quiet, on_epoch_end=stop)
    again = finetune(read_finetune_config(tmp_path / "parts"), tmp_path / "parts", resume=True, log=_quiet)
    expected, found = (load_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    torch.testing.assert_close(found["net"], expected["net"], rtol=0, atol=0)
    torch.testing.assert_close(found["resume"]["average"], expected["resume"]["average"], rtol=0, atol=0)
    assert again.summary["after"] == whole.summary["after"]
    assert [record["epoch"] for record in read_metrics(tmp_path / "parts")] == [1, 2, 3]


@pytest.fixture(scope="module")
def tiny_and_collage(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """YOLOv3-tiny with drawn weights, and a set of pictures with things of noise on them."""
    place = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DarknetModel(yolov3_tiny(), DARKNET).eval()
    save_detector(place / "tiny.safetensors", Detector(net, COCO_CLASSES, 416, {}))
    draw = np.random.default_rng(0)
    things = Objects(draw.integers(0, 256, (20, 3, 32, 32), np.uint8), np.arange(20) % 2)
    counts = {"train": 8, "val": 4, "test": 1}
    names = ("horse", "frog")
    make_synthetic_dataset(place / "set", classes=names, counts=counts, size=96, objects=dict.fromkeys(counts, things))
    return place / "tiny.safetensors", place / "set"


def test_a_process_that_kill_9_ended_is_gone_on_with_to_the_same_result(
    tiny_and_collage: tuple[Path, Path], tmp_path: Path
) -> None:
    weights, data = tiny_and_collage
    killed = tmp_path / "killed"
    fixed = "--precision float32 --channels-last no --threads 1"
    options = f"{data} --weights {weights} --epochs 5 --size 96 --batch-size 4 --cached-views 2 {fixed} -o {killed}"
    command = [sys.executable, "-m", "chromabox", "finetune", *options.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            until = time.monotonic() + 300
            while child.poll() is None and len(read_metrics(killed)) < 2:
                assert time.monotonic() < until, "the run has not come to its second epoch"
                time.sleep(0.02)
        finally:
            child.kill()
        assert child.wait(60) == -signal.SIGKILL, child.stdout.read()
    assert 2 <= len(read_metrics(killed)) < 5
    config = read_finetune_config(killed)
    again = finetune(config, killed, resume=True, log=_quiet)
    whole = finetune(config, tmp_path / "whole", log=_quiet)
    found, expected = (load_checkpoint(folder / "last.safetensors")[0] for folder in (killed, tmp_path / "whole"))
    torch.testing.assert_close(found["net"], expected["net"], rtol=0, atol=0)
    assert again.summary["after"] == whole.summary["after"]
    ours, theirs = (read_metrics(folder) for folder in (killed, tmp_path / "whole"))
    assert [{**one, "seconds": 0} for one in ours] == [{**one, "seconds": 0} for one in theirs]


def test_the_folder_is_a_detector_for_the_data_s_classes(folder: Path, weights: Path, tmp_path: Path) -> None:
    said: list[str] = []
    outcome = finetune(_config(folder, weights), tmp_path, log=said.append)
    trained = load_detector(tmp_path)
    assert trained.classes == ("dog", "hedgehog")
    assert trained.size == 64
    measured = evaluate_detector(trained, load_detection_dataset(folder).split("val"), num_resamples=2)
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
    finetune(_config(folder, weights, recipe), tmp_path, log=_quiet)
    # The raw net, since the course's average has hardly moved in six batches.
    before = make_small_detector().model.state_dict()
    after = load_checkpoint(tmp_path / "last.safetensors")[0]["resume"]["net"]
    frozen = [name for name in before if int(name.split(".")[1]) < 3]
    kept = [name for name in frozen if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert torch.equal(before["layers.0.norm.running_mean"], after["layers.0.norm.running_mean"]) is still
    assert not torch.equal(before["layers.3.norm.running_mean"], after["layers.3.norm.running_mean"])


def test_old_classes_may_stay_and_what_is_left_of_them_is_measured(folder: Path, weights: Path, tmp_path: Path) -> None:
    old = make_yolo_dataset(tmp_path / "old", {"train/a": BOX, "val/x": BOX}, CLASS_NAMES)
    outcome = finetune(_config(folder, weights, keep_old_classes=True, retention_data=str(old)), tmp_path / "run", log=_quiet)
    assert outcome.detector.classes == (*CLASS_NAMES, "hedgehog")
    expected = evaluate_detector(
        make_small_detector(), load_detection_dataset(old).split("val"), size=64, num_resamples=2
    )
    assert outcome.summary["retained"]["ap50_before"] == pytest.approx(expected.coco.ap50)
    assert {"train_old_box", "train_old_class"} <= read_metrics(tmp_path / "run")[0].keys()


@pytest.mark.parametrize(
    ("recipe", "keep_old", "names"),
    [("default", False, ("dog", "hedgehog")), ("default", True, ("dog", "cat")), ("course", True, ("dog", "hedgehog"))],
)
def test_the_old_net_is_imitated_by_ours_alone_and_beside_new_classes_only(
    recipe: str, keep_old: bool, names: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    data = make_yolo_dataset(tmp_path / "set", {"train/a": BOX, "train/b": BOX, "val/x": BOX}, names)
    finetune(_config(data, weights, recipe, 1, keep_old_classes=keep_old), tmp_path / "run", log=_quiet)
    assert "train_old_class" not in read_metrics(tmp_path / "run")[0]


def test_where_no_class_is_new_the_gentler_rates_are_taken(weights: Path, tmp_path: Path) -> None:
    rates = []
    for names in (("dog", "hedgehog"), ("dog", "cat")):
        place = tmp_path / names[1]
        labels = {"train/a": BOX, "train/b": BOX, "val/x": BOX}
        config = _config(make_yolo_dataset(place / "set", labels, names), weights, epochs=1)
        assert initialise_run(config, None).num_new_classes == ("hedgehog" in names)
        finetune(config, place / "run", log=_quiet)
        optimisers = load_checkpoint(place / "run" / "last.safetensors")[0]["resume"]["optimisers"]
        rates.append(optimisers[0]["param_groups"][0]["lr"])
        before, after = (load_detector(path).model.state_dict() for path in (weights, place / "run"))
        still = torch.equal(before["layers.4.norm.running_mean"], after["layers.4.norm.running_mean"])
        assert still is ("hedgehog" not in names)
    assert rates[1] / rates[0] == pytest.approx(config.recipe.lr_scale_same_classes)


def test_early_stop_watches_pictures_of_its_own(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = _config(folder, weights, epochs=30, patience=1)
    outcome = finetune(config, tmp_path, log=_quiet)
    assert outcome.summary["epochs"] < 30


def test_time_and_memory_are_told_beforehand(folder: Path, weights: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = _config(folder, weights, epochs=1, runtime=None)
    finetune(config, tmp_path, options=RuntimeOptions(precision="float32", threads=1), log=said.append)
    (line,) = [line for line in said if "minutes in all" in line]
    assert line.startswith("6 pictures train, 3 batches an epoch, running on cpu, float32")
    assert read_finetune_config(tmp_path).runtime is not None


@pytest.mark.parametrize(
    ("views", "filling", "epoch"),
    [
        # 2 views of 6 pictures and 3 that judge at 5 s, 9 to read at 1 s; 3 steps at 7 s, 3 judged at 2 s.
        (2, "84 s", "27.0 s"),
        # Without a cache of views: 3 that judge; each epoch draws 6 views.
        (0, "24 s", "57.0 s"),
    ],
)
def test_the_time_told_adds_up_what_was_measured(
    views: int, filling: str, epoch: str, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(folder, weights, epochs=10, num_cached_views=views)
    begun = initialise_run(config, None)
    net = begun.detector.model
    train = AugmentedSamples(begun.splits.train, "default", 64, 0, cached_reader())
    monkeypatch.setattr(FinetuneProbe, "cost_blocks", lambda *arguments: FinetuneCosts(1.0, 5.0, 7.0, 2.0))
    said: list[str] = []
    FinetuneProbe(config, net, 3, build_loss(net, config), train, begun).pick_runtime(
        RuntimeOptions(threads=1), said.append
    )
    minutes = (float(filling[:-2]) + 10 * float(epoch[:-2])) / 60
    assert f"about {filling} to fill the caches, then {epoch} an epoch, {minutes:.1f} minutes in all" in said[0]


def test_the_probe_changes_nothing(folder: Path, weights: Path, tmp_path: Path) -> None:
    fixed = RuntimeOptions(precision="float32", channels_last="off", threads=1)
    runs = [finetune(_config(folder, weights), tmp_path / "told", log=_quiet)]
    runs.append(finetune(_config(folder, weights, runtime=None), tmp_path / "probed", options=fixed, log=_quiet))
    first, second = (run.detector.model.state_dict() for run in runs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": 65}, "size is 65: small needs a multiple of 32"),
        ({"num_cached_views": -1}, "views is -1"),
        ({"freeze": 6}, "at most the first 5 can be frozen"),
        ({"freeze": "neck"}, "freeze is neck"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    changes: dict[str, object], reason: str, folder: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        finetune(_config(folder, weights, **changes), tmp_path / "run", log=_quiet)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"net": "unet"}')
    with pytest.raises(UsageError, match=r"holds no config\.json of chromabox finetune"):
        read_finetune_config(tmp_path)


def test_a_configuration_comes_back_as_it_was(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = _config(folder, weights, epochs=1)
    finetune(config, tmp_path, log=_quiet)
    assert read_finetune_config(tmp_path) == config
    assert replace(config, seed=1) != config
