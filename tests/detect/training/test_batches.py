"""Parts of a set, batches of views, and judging through a cache against the plain way."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.evaluation.evaluate import evaluate_detector, evaluate_predictions
from chromabox.detect.training.batches import (
    AugmentedSamples,
    cached_batches,
    cached_reader,
    epoch_batch_indices,
    fill_feature_cache,
    split_dataset,
    stack_targets,
    stream_batches,
)
from chromabox.detect.training.feature_cache import open_cache, plan_cache
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.setup import make_loss_function
from chromabox.detect.training.validator import make_validator
from chromabox.errors import UsageError
from detection_fixtures import make_image, make_yolo_dataset
from detector_fixtures import CLASS_NAMES, make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n2 0.3 0.4 0.2 0.2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {f"train/{name}": BOX for name in "abcdefg"} | {f"val/{name}": BOX for name in "xyz"}
    return make_yolo_dataset(tmp_path_factory.mktemp("set"), labels, CLASS_NAMES)


@pytest.fixture
def views(folder: Path) -> AugmentedSamples:
    return AugmentedSamples(load_detection_dataset(folder).split("train"), "default", 64, 0, cached_reader())


def test_the_set_s_own_splits_are_the_parts(folder: Path) -> None:
    parts = split_dataset(load_detection_dataset(folder), 0, early_stopping=False)
    assert (len(parts.train.samples), parts.early_stopping, len(parts.val.samples), parts.warnings) == (7, None, 3, ())


def test_whoever_stops_early_is_not_judged_by_what_he_stops_by(folder: Path) -> None:
    parts = split_dataset(load_detection_dataset(folder), 0, early_stopping=True)
    assert parts.early_stopping is not None
    paths = [{one.path for one in part.samples} for part in (parts.train, parts.early_stopping, parts.val)]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 10
    assert all(paths)


def test_what_is_shared_and_what_is_damaged_is_told(tmp_path: Path) -> None:
    place = make_yolo_dataset(
        tmp_path, {"train/a": BOX, "train/b": BOX, "train/c": BOX, "val/x": BOX, "val/y": BOX}, CLASS_NAMES
    )
    make_image(place / "images/val/x.png", seed=0)  # the picture of train/a
    whole = (place / "images/train/c.png").read_bytes()
    (place / "images/train/c.png").write_bytes(whole[: len(whole) // 2])
    parts = split_dataset(load_detection_dataset(place), 0, early_stopping=False)
    assert [one.path.name for one in parts.train.samples] == ["a.png", "b.png"]
    assert len(parts.warnings) == 3
    assert "c.png" in parts.warnings[0]
    judged, trained = place / "images/val/x.png", place / "images/train/a.png"
    assert (
        f"1 of 2 pictures that judge are the same as training pictures or nearly, {judged} as {trained}"
        in parts.warnings[1]
    )
    assert parts.warnings[2] == "2 of 2 classes have under 5 boxes to learn from"


def test_a_set_that_judges_by_what_it_trains_on_is_told_once(tmp_path: Path) -> None:
    place = make_yolo_dataset(tmp_path, {f"train/{name}": BOX for name in "abcdef"}, CLASS_NAMES)
    (place / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog, fox]\n")
    (line,) = split_dataset(load_detection_dataset(place), 0, early_stopping=False).warnings
    assert line.startswith("6 of 6 pictures that judge are the same")


def test_without_validation_pictures_some_are_held_out(tmp_path: Path) -> None:
    place = make_yolo_dataset(tmp_path, {f"train/{name}": BOX for name in "abcdefghij"}, None)
    (place / "data.yaml").write_text("train: images/train\nnames: [cat, dog, fox]\n")
    parts = split_dataset(load_detection_dataset(place), 0, early_stopping=False)
    assert (len(parts.train.samples), len(parts.val.samples)) == (8, 2)
    assert parts.warnings == ("the data has no validation pictures: 2 of 10 are held out",)


def test_a_set_with_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    place = make_yolo_dataset(tmp_path, {"train/a": "", "val/x": BOX}, CLASS_NAMES)
    with pytest.raises(UsageError, match="no labelled training pictures; its splits are train, val"):
        split_dataset(load_detection_dataset(place), 0, early_stopping=False)


def test_an_epoch_shows_every_picture_once_in_another_order() -> None:
    first, second = (epoch_batch_indices(10, 4, 0, epoch) for epoch in (0, 1))
    assert sorted(index for chunk in first for index in chunk) == list(range(10))
    assert [len(chunk) for chunk in first] == [4, 3, 3]
    assert first != second
    assert first == epoch_batch_indices(10, 4, 0, 0)


def test_fresh_batches_begin_anywhere_and_differ_by_epoch(views: AugmentedSamples) -> None:
    batches = stream_batches(views, 3, workers=2)
    whole, rest = list(batches(1, 0)), list(batches(1, 2))
    assert len(whole) == 3
    torch.testing.assert_close(rest, whole[2:])
    assert not torch.equal(whole[0][0][-1], next(iter(batches(0, 0)))[0][-1])
    assert whole[0][0][-1].shape == (3, 3, 64, 64)
    assert 0 <= whole[0][0][-1].min() < whole[0][0][-1].max() <= 1


def test_cached_batches_are_the_views_through_the_frozen_layers(views: AugmentedSamples, tmp_path: Path) -> None:
    net = copy.deepcopy(make_small_detector().model)
    with open_cache(plan_cache(net, 3, 64, 2 * len(views), "float32"), tmp_path, 10**9) as cache:
        boxes = fill_feature_cache(cache, net, 3, views, 2)
        batches = cached_batches(cache, boxes, len(views), 4, views.seed)
        for epoch in (0, 1, 2):
            for chunk, (kept, targets) in zip(epoch_batch_indices(7, 4, 0, epoch), batches(epoch, 0), strict=True):
                drawn = [views.sample(epoch % 2, index) for index in chunk]
                images = torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).float() / 255
                torch.testing.assert_close(kept, net.forward_features(images, 3))
                torch.testing.assert_close(targets, stack_targets([own for _, own in drawn]))


def test_targets_say_their_picture() -> None:
    some = np.array([[2, 0.5, 0.5, 0.1, 0.2]], np.float32)
    table = stack_targets([some, np.zeros((0, 5), np.float32), np.concatenate([some, some])])
    assert table[:, 0].tolist() == [0, 2, 2]
    assert table[:, 1].tolist() == [2, 2, 2]
    assert stack_targets([np.zeros((0, 5), np.float32)]).shape == (0, 6)


def test_pictures_are_decoded_once_as_far_as_memory_goes(tmp_path: Path) -> None:
    paths = [make_image(tmp_path / f"{name}.png", seed) for seed, name in enumerate("ab")]
    read = cached_reader(100 * 50 * 3)
    first = [read(path) for path in paths]
    again = [read(path) for path in paths]
    assert again[0] is first[0]
    assert again[1] is not first[1]
    np.testing.assert_array_equal(again[1], first[1])


@pytest.mark.parametrize("until", [0, 3])
def test_judging_through_a_cache_is_judging(folder: Path, until: int, tmp_path: Path) -> None:
    """The independent way is detection file by file, as ``chromabox evaluate`` measures."""
    trained = make_small_detector()
    data = load_detection_dataset(folder).split("val")
    expected = evaluate_detector(trained, data, size=64, num_resamples=2)
    with open_cache(plan_cache(trained.model, until, 64, 3, "float32"), tmp_path, 10**9) as cache:
        judge = make_validator(cache, trained.model, until, data, 64, cached_reader())
        found = judge.predict(trained.model)
        loss = DetectionLoss(trained.architecture, trained.variant, 3, size=64)
        measured = judge.evaluate(trained.model, loss)
    assert evaluate_predictions(found, data, num_resamples=2).coco.ap == pytest.approx(expected.coco.ap)
    assert len(found[0].scores)
    assert measured["val_ap50"] == pytest.approx(expected.coco.ap50)
    assert measured["val_ap50_missing"] == pytest.approx(1 - expected.coco.ap50)
    terms = [measured[f"val_{name}"] for name in ("box", "objectness", "class")]
    assert measured["val_loss"] == pytest.approx(sum(terms), rel=1e-5)


def test_losses_run_the_rest_of_the_net(views: AugmentedSamples) -> None:
    net = make_small_detector().model
    loss = DetectionLoss(net.architecture, net.variant, 3, size=64)
    images, targets = next(iter(stream_batches(views, 4)(0, 0)))
    kept = net.forward_features(images[-1], 2)
    cached = make_loss_function(2, loss)(net, (kept, targets))["loss"]
    torch.testing.assert_close(cached, loss(net(images[-1]), targets)["loss"])
