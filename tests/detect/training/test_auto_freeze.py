"""The depth chosen by trials."""

from pathlib import Path

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.models.architecture import yolov3, yolov3_tiny
from chromabox.detect.training.auto_freeze import (
    FreezeTrial,
    candidate_depths,
    choose_num_frozen,
    select_best_trial,
    trial_split,
)
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.freeze import FreezeReport
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.weights.load import save_detector
from chromabox.engine.runtime_options import RuntimeOptions
from detection_fixtures import make_yolo_dataset
from detector_fixtures import make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n"


def _trial(layers: int, ap50: float) -> FreezeTrial:
    return FreezeTrial(FreezeReport(layers, 0, 1, layers / 100, False), ap50, 1.0)


def test_the_deepest_of_about_equal_trials_is_taken() -> None:
    trials = [_trial(0, 0.705), _trial(10, 0.71), _trial(13, 0.695)]
    assert select_best_trial(trials).freeze_report.num_layers == 13
    assert select_best_trial([*trials[:2], _trial(13, 0.685)]).freeze_report.num_layers == 10
    assert str(trials[1]) == "    10           10 %              1.0    71.0 %"


def test_depths_share_the_backbone_s_work() -> None:
    assert candidate_depths(yolov3_tiny())[0] == 0
    assert candidate_depths(yolov3_tiny())[-1] == 13
    assert candidate_depths(yolov3())[-1] == 75
    assert 2 <= len(candidate_depths(yolov3_tiny())) <= 4


def test_trials_look_at_training_pictures_only(tmp_path: Path) -> None:
    labels = {f"train/{name}": BOX for name in "abcdefgh"} | {"val/x": BOX}
    data = make_yolo_dataset(tmp_path, labels, ("dog", "hedgehog"))
    train = load_detection_dataset(data).split("train")
    parts = trial_split(train, 0)
    used = [one.path for one in (*parts.train.samples, *parts.val.samples)]
    assert sorted(used) == sorted(one.path for one in train.samples)
    assert len(parts.val.samples) == 2


@pytest.mark.parametrize("recipe", ["default", "course"])
def test_a_depth_is_chosen_and_the_table_told(recipe: str, tmp_path: Path) -> None:
    labels = {f"train/{name}": BOX for name in "abcdefgh"} | {"val/x": BOX}
    data = make_yolo_dataset(tmp_path / "set", labels, ("dog", "hedgehog"))
    save_detector(tmp_path / "small.safetensors", make_small_detector())
    config = FinetuneConfig(
        data=str(data),
        recipe=make_finetune_recipe(recipe, batch_size=4),
        weights=str(tmp_path / "small.safetensors"),
        freeze="auto",
        size=64,
    )
    said: list[str] = []
    chosen = choose_num_frozen(config, RuntimeOptions(threads=1), log=said.append)
    possible = candidate_depths(make_small_detector().architecture)[::-1]
    tried = [int(line.split()[0]) for line in said[1:-1]]
    # The deepest first, and shallower ones until one is not worth it.
    assert len(tried) >= 2
    assert tried == possible[: len(tried)]
    assert chosen.freeze in tried
    assert "6 training pictures, judged on 2 others" in said[0]
    assert chosen.runtime is None
    assert {path.name for path in tmp_path.iterdir()} == {"set", "small.safetensors", "small.json"}
