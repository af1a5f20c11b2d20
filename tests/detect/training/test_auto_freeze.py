"""Automatic choice of the number of frozen layers by trials."""

import re
from pathlib import Path

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.models.architecture import yolov3, yolov3_tiny
from chromabox.detect.training.auto_freeze import (
    candidate_depths,
    choose_num_frozen,
    select_num_frozen,
    trial_split,
)
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.training.setup import initialise_run
from chromabox.detect.weights.load import save_detector
from chromabox.engine.options import RuntimeOptions
from detection_fixtures import make_yolo_dataset
from detector_fixtures import make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n"


def test_most_frozen_layers_within_the_margin_are_selected() -> None:
    assert select_num_frozen({0: 0.705, 10: 0.71, 13: 0.695}) == 13
    assert select_num_frozen({0: 0.705, 10: 0.71, 13: 0.685}) == 10


def test_candidate_depths_range_from_none_to_the_backbone() -> None:
    assert candidate_depths(yolov3_tiny())[0] == 0
    assert candidate_depths(yolov3_tiny())[-1] == 13
    assert candidate_depths(yolov3())[-1] == 75
    assert 2 <= len(candidate_depths(yolov3_tiny())) <= 4


def test_trials_use_training_images_only(tmp_path: Path) -> None:
    labels = {f"train/{name}": BOX for name in "abcdefgh"} | {"val/x": BOX}
    data = make_yolo_dataset(tmp_path, labels, ("dog", "hedgehog"))
    train = load_detection_dataset(data).split("train")
    splits = trial_split(train, 0)
    used = [sample.path for sample in (*splits.train.samples, *splits.val.samples)]
    assert sorted(used) == sorted(sample.path for sample in train.samples)
    assert len(splits.val.samples) == 2


@pytest.mark.parametrize("recipe", ["default", "course"])
def test_depth_is_chosen_and_trials_are_logged_as_a_table(recipe: str, tmp_path: Path, messages: list[str]) -> None:
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
    messages.clear()
    chosen = choose_num_frozen(config, initialise_run(config, None), RuntimeOptions(threads=1))
    candidates = candidate_depths(make_small_detector().architecture)[::-1]
    tried = [int(line.split()[0]) for line in messages[1:-1]]
    assert all(re.fullmatch(r" {5}\d {9,11}\d+ % {14,}\d+\.\d {2,6}\d+\.\d %", line) for line in messages[1:-1])
    # In decreasing order, until fewer layers do not improve AP50 sufficiently.
    assert len(tried) >= 2
    assert tried == candidates[: len(tried)]
    assert chosen.freeze in tried
    assert "training images: 6, validation images: 2" in messages[0]
    assert chosen.runtime is None
    assert {path.name for path in tmp_path.iterdir()} == {"set", "small.safetensors", "small.json"}
