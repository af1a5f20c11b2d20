"""Complete fine-tuning runs on synthetic datasets: files of a run, frozen layers, interruption and resuming."""

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
from chromabox.detect.models.architecture import DARKNET, yolov3_tiny
from chromabox.detect.models.darknet import DarknetModel
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.finetune import finetune
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.training.setup import initialise_run
from chromabox.detect.weights.load import Detector, load_detector, save_detector
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.logger import EpochRecord, read_metrics
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
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


class _StopError(Exception):
    """Interruption of a run after the checkpoint of an epoch."""


@pytest.mark.parametrize(
    ("recipe", "views", "keep_old_classes"),
    [("default", 2, False), ("default", 0, False), ("default", 2, True), ("course", 2, False)],
)
def test_resumed_run_equals_an_uninterrupted_run(
    recipe: str, views: int, keep_old_classes: bool, folder: Path, weights: Path, tmp_path: Path
) -> None:
    config = _config(folder, weights, recipe, 3, num_cached_views=views, keep_old_classes=keep_old_classes)
    uninterrupted = finetune(config, tmp_path / "uninterrupted")

    def stop(record: EpochRecord, model: object) -> None:
        if record["epoch"] == 2:
            raise _StopError

    with pytest.raises(_StopError):
        finetune(config, tmp_path / "resumed", callbacks=(stop,))
    resumed = finetune(RunDir(tmp_path / "resumed").load_config(FinetuneConfig), tmp_path / "resumed", resume=True)
    expected, state = (
        load_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("uninterrupted", "resumed")
    )
    torch.testing.assert_close(state["net"], expected["net"], rtol=0, atol=0)
    torch.testing.assert_close(state["resume"]["average"], expected["resume"]["average"], rtol=0, atol=0)
    assert resumed.summary["after"] == uninterrupted.summary["after"]
    assert [record["epoch"] for record in read_metrics(tmp_path / "resumed")] == [1, 2, 3]


@pytest.fixture(scope="module")
def tiny_and_synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """YOLOv3-tiny with random weights, and a synthetic dataset with noise patches as objects."""
    folder = tmp_path_factory.mktemp("tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DarknetModel(yolov3_tiny(), DARKNET).eval()
    save_detector(folder / "tiny.safetensors", Detector(model, COCO_CLASSES, 416, {}))
    rng = np.random.default_rng(0)
    objects = Objects(rng.integers(0, 256, (20, 3, 32, 32), np.uint8), np.arange(20) % 2)
    counts = {"train": 8, "val": 4, "test": 1}
    names = ("horse", "frog")
    split_objects = dict.fromkeys(counts, objects)
    make_synthetic_dataset(folder / "set", classes=names, counts=counts, size=96, objects=split_objects)
    return folder / "tiny.safetensors", folder / "set"


def test_run_resumed_after_kill_9_equals_an_uninterrupted_run(
    tiny_and_synthetic_data: tuple[Path, Path], tmp_path: Path
) -> None:
    weights, data = tiny_and_synthetic_data
    killed = tmp_path / "killed"
    fixed = "--precision float32 --channels-last off --threads 1"
    options = f"{data} --weights {weights} --epochs 5 --size 96 --batch-size 4 --cached-views 2 {fixed} -o {killed}"
    command = [sys.executable, "-m", "chromabox", "finetune", *options.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            deadline = time.monotonic() + 300
            while child.poll() is None and len(read_metrics(killed)) < 2:
                assert time.monotonic() < deadline, "the run did not finish its second epoch"
                time.sleep(0.02)
        finally:
            child.kill()
        assert child.wait(60) == -signal.SIGKILL, child.stdout.read()
    assert 2 <= len(read_metrics(killed)) < 5
    config = RunDir(killed).load_config(FinetuneConfig)
    resumed = finetune(config, killed, resume=True)
    uninterrupted = finetune(config, tmp_path / "uninterrupted")
    folders = (killed, tmp_path / "uninterrupted")
    state, expected = (load_checkpoint(folder / "last.safetensors")[0] for folder in folders)
    torch.testing.assert_close(state["net"], expected["net"], rtol=0, atol=0)
    assert resumed.summary["after"] == uninterrupted.summary["after"]
    records, expected_records = ([{**record, "seconds": 0} for record in read_metrics(folder)] for folder in folders)
    assert records == expected_records


def test_run_folder_is_a_detector_with_the_classes_of_the_data(
    folder: Path, weights: Path, tmp_path: Path, messages: list[str]
) -> None:
    result = finetune(_config(folder, weights), tmp_path)
    detector = load_detector(tmp_path)
    assert detector.classes == ("dog", "hedgehog")
    assert detector.size == 64
    evaluation = evaluate_detector(detector, load_detection_dataset(folder).split("val"), num_resamples=2)
    assert evaluation.coco.ap50 == pytest.approx(result.summary["after"]["ap50"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == result.summary
    assert summary["frozen"]["layers"] == 3
    assert {"ap", "ap50"} == summary["difference"].keys()
    assert summary["peak_memory"] > 50_000_000
    assert any("frozen layers: 3," in message for message in messages)
    assert {"train_box", "train_objectness", "train_class", "val_ap50"} <= read_metrics(tmp_path)[0].keys()
    assert not list(tmp_path.rglob("*.bin"))


def test_new_run_replaces_the_initial_model_of_an_older_run(folder: Path, weights: Path, tmp_path: Path) -> None:
    save_detector(tmp_path / "start.safetensors", make_small_detector(seed=1))
    finetune(_config(folder, weights, epochs=1), tmp_path)
    start, expected = (load_detector(path).model.state_dict() for path in (tmp_path / "start.safetensors", weights))
    torch.testing.assert_close(start["layers.0.convolution.weight"], expected["layers.0.convolution.weight"])
    assert load_detector(tmp_path / "start.safetensors").classes == ("dog", "hedgehog")


@pytest.mark.parametrize(("recipe", "frozen_stats"), [("default", True), ("course", False)])
def test_only_the_course_recipe_updates_statistics_of_frozen_layers(
    recipe: str, frozen_stats: bool, folder: Path, weights: Path, tmp_path: Path
) -> None:
    finetune(_config(folder, weights, recipe), tmp_path)
    # The model without averaging, since the course's average has hardly changed after six batches.
    before = make_small_detector().model.state_dict()
    after = load_checkpoint(tmp_path / "last.safetensors")[0]["resume"]["net"]
    frozen = [name for name in before if int(name.split(".")[1]) < 3]
    parameters = [name for name in frozen if "running" not in name and "tracked" not in name]
    assert all(torch.equal(before[name], after[name]) for name in parameters)
    assert torch.equal(before["layers.0.norm.running_mean"], after["layers.0.norm.running_mean"]) is frozen_stats
    assert not torch.equal(before["layers.3.norm.running_mean"], after["layers.3.norm.running_mean"])


def test_missing_retention_data_is_reported_before_training(folder: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        finetune(_config(folder, weights, keep_old_classes=True, retention_data="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_old_classes_are_kept_and_their_retention_is_measured(folder: Path, weights: Path, tmp_path: Path) -> None:
    old_data = make_yolo_dataset(tmp_path / "old", {"train/a": BOX, "val/x": BOX}, CLASS_NAMES)
    config = _config(folder, weights, keep_old_classes=True, retention_data=str(old_data))
    result = finetune(config, tmp_path / "run")
    assert result.detector.classes == (*CLASS_NAMES, "hedgehog")
    expected = evaluate_detector(
        make_small_detector(), load_detection_dataset(old_data).split("val"), size=64, num_resamples=2
    )
    assert result.summary["retained"]["ap50_before"] == pytest.approx(expected.coco.ap50)
    assert {"train_old_box", "train_old_class"} <= read_metrics(tmp_path / "run")[0].keys()


@pytest.mark.parametrize(
    ("recipe", "keep_old_classes", "names"),
    [("default", False, ("dog", "hedgehog")), ("default", True, ("dog", "cat")), ("course", True, ("dog", "hedgehog"))],
)
def test_distillation_requires_the_default_recipe_and_new_classes_added_to_old_ones(
    recipe: str, keep_old_classes: bool, names: tuple[str, ...], weights: Path, tmp_path: Path
) -> None:
    data = make_yolo_dataset(tmp_path / "set", {"train/a": BOX, "train/b": BOX, "val/x": BOX}, names)
    finetune(_config(data, weights, recipe, 1, keep_old_classes=keep_old_classes), tmp_path / "run")
    assert "train_old_class" not in read_metrics(tmp_path / "run")[0]


def test_category_ids_of_coco_files_are_stored_with_the_weights(weights: Path, tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path / "set", {"train/a": BOX, "train/b": BOX, "val/x": BOX}, None)
    images = [{"id": index, "file_name": f"images/train/{name}.png"} for index, name in enumerate("ab")]
    boxes = [
        {"id": image["id"], "image_id": image["id"], "category_id": 90, "bbox": [1, 2, 30, 40]} for image in images
    ]
    categories = [{"id": 90, "name": "dog"}, {"id": 5, "name": "hedgehog"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))
    detector = initialise_run(_config(folder / "labels.json", weights), None).detector
    assert (detector.classes, detector.category_ids) == (("hedgehog", "dog"), (5, 90))
    save_detector(tmp_path / "custom.safetensors", detector)
    assert load_detector(tmp_path / "custom.safetensors").category_ids == (5, 90)
    # The ids are those of these classes only.
    kept = initialise_run(_config(folder / "labels.json", weights, keep_old_classes=True), None).detector
    assert kept.category_ids == ()
    other = make_yolo_dataset(tmp_path / "other", {"train/a": BOX, "train/b": BOX, "val/x": BOX}, ("dog", "cat"))
    assert initialise_run(_config(other, tmp_path / "custom.safetensors"), None).detector.category_ids == ()


def test_unnamed_dataset_is_trained_like_a_named_one(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights know cat and dog; classes 0 and 1 without names are neither of them."""
    labels = {"train/a": BOX, "train/b": BOX, "val/x": BOX}
    states, summaries = [], []
    with caplog.at_level("INFO"):
        for names in (("owl", "hedgehog"), None):
            folder = tmp_path / f"{names}"
            data = make_yolo_dataset(folder / "set", labels, names)
            summaries.append(finetune(_config(data, weights, epochs=1), folder / "run").summary)
            states.append(
                [load_checkpoint(folder / "run" / name)[0] for name in ("start.safetensors", "best.safetensors")]
            )
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    assert [summary["classes"]["new"] for summary in summaries] == [["owl", "hedgehog"], ["class 0", "class 1"]]
    assert summaries[1]["after"]["ap50"] == summaries[0]["after"]["ap50"]
    assert "classes taken over from the weights: 0; new classes: 2 (class 0, class 1); classes of" in caplog.text


@pytest.mark.parametrize(
    ("new_classes", "kept", "new"),
    [(None, ["Dog", "cat"], ["owl"]), (["dog"], ["cat"], ["Dog", "owl"]), ([], [], ["Dog", "cat", "owl"])],
)
def test_new_classes_with_names_of_old_classes(
    new_classes: list[str] | None, kept: list[str], new: list[str], weights: Path, tmp_path: Path
) -> None:
    data = make_yolo_dataset(tmp_path / "set", {"train/a": BOX, "val/x": BOX}, ("Dog", "cat", "owl"))
    config = _config(data, weights, new_classes=new_classes)
    RunDir(tmp_path).save_config(config)
    assert RunDir(tmp_path).load_config(FinetuneConfig) == config
    origins = initialise_run(config, None).class_origins
    assert (origins["kept"], origins["new"]) == (kept, new)


def test_learning_rates_are_lower_without_new_classes(weights: Path, tmp_path: Path) -> None:
    lrs = []
    for names in (("dog", "hedgehog"), ("dog", "cat")):
        folder = tmp_path / names[1]
        labels = {"train/a": BOX, "train/b": BOX, "val/x": BOX}
        config = _config(make_yolo_dataset(folder / "set", labels, names), weights, epochs=1)
        assert initialise_run(config, None).num_new_classes == ("hedgehog" in names)
        finetune(config, folder / "run")
        optimizers = load_checkpoint(folder / "run" / "last.safetensors")[0]["resume"]["optimisers"]
        lrs.append(optimizers[0]["param_groups"][0]["lr"])
        before, after = (load_detector(path).model.state_dict() for path in (weights, folder / "run"))
        is_bn_frozen = torch.equal(before["layers.4.norm.running_mean"], after["layers.4.norm.running_mean"])
        assert is_bn_frozen is ("hedgehog" not in names)
    assert lrs[1] / lrs[0] == pytest.approx(config.recipe.lr_scale_same_classes)


def test_early_stopping_ends_the_run(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = _config(folder, weights, epochs=30, patience=1)
    result = finetune(config, tmp_path)
    assert result.summary["epochs"] < 30


def test_selected_runtime_is_logged_and_stored(
    folder: Path, weights: Path, tmp_path: Path, messages: list[str]
) -> None:
    config = _config(folder, weights, epochs=1, runtime=None)
    finetune(config, tmp_path, options=RuntimeOptions(precision="float32", threads=1))
    assert any("6 training images; running on cpu, float32" in message for message in messages)
    assert RunDir(tmp_path).load_config(FinetuneConfig).runtime is not None


def test_measuring_runtimes_does_not_change_the_result(folder: Path, weights: Path, tmp_path: Path) -> None:
    fixed = RuntimeOptions(precision="float32", channels_last="off", threads=1)
    runs = [finetune(_config(folder, weights), tmp_path / "given")]
    runs.append(finetune(_config(folder, weights, runtime=None), tmp_path / "measured", options=fixed))
    first, second = (run.detector.model.state_dict() for run in runs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 65}, "--size is 65: expected a multiple of 32 for small"),
        ({"num_cached_views": -1}, "--cached-views is -1"),
        ({"freeze": 6}, "--freeze is 6: expected 0 to 5 of the 7 layers"),
        ({"freeze": "neck"}, "--freeze is neck"),
    ],
)
def test_invalid_settings_are_rejected_before_anything_is_written(
    changes: dict[str, object], message: str, folder: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(_config(folder, weights, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_folder_of_another_command_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 2, "model": "unet"}')
    with pytest.raises(UsageError, match="not the configuration of a detector run"):
        RunDir(tmp_path).load_config(FinetuneConfig)


def test_configuration_is_read_as_it_was_written(folder: Path, weights: Path, tmp_path: Path) -> None:
    config = _config(folder, weights, epochs=1)
    finetune(config, tmp_path)
    assert RunDir(tmp_path).load_config(FinetuneConfig) == config
    assert replace(config, seed=1) != config
