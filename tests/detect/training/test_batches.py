"""Data splits, batches of augmented views, and validation with a cache against evaluation without one."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from chromabox.detect.data.augment import letterbox_sample
from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.evaluation.evaluate import evaluate_detector, evaluate_predictions
from chromabox.detect.models.architecture import DARKNET
from chromabox.detect.training.batches import (
    AugmentedSamples,
    DataSplits,
    cached_batches,
    cached_reader,
    epoch_batch_indices,
    fill_feature_cache,
    split_dataset,
    stack_targets,
    stream_batches,
)
from chromabox.detect.training.feature_cache import FeatureCache
from chromabox.detect.training.loss import DetectionLoss
from chromabox.detect.training.setup import compute_losses
from chromabox.detect.training.validator import Validator
from chromabox.errors import UsageError
from detection_fixtures import make_image, make_yolo_dataset
from detector_fixtures import CLASS_NAMES, make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n2 0.3 0.4 0.2 0.2\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {f"train/{name}": BOX for name in "abcdefg"} | {f"val/{name}": BOX for name in "xyz"}
    return make_yolo_dataset(tmp_path_factory.mktemp("set"), labels, CLASS_NAMES)


@pytest.fixture
def samples(folder: Path) -> AugmentedSamples:
    return AugmentedSamples(load_detection_dataset(folder).split("train"), "default", 64, 0, cached_reader())


def test_splits_of_the_dataset_are_used(folder: Path) -> None:
    splits = split_dataset(load_detection_dataset(folder), 0, early_stopping=False)
    assert (len(splits.train.samples), splits.early_stopping, len(splits.val.samples), splits.warnings) == (
        7,
        None,
        3,
        (),
    )


def test_early_stopping_images_are_not_validation_images(folder: Path) -> None:
    splits = split_dataset(load_detection_dataset(folder), 0, early_stopping=True)
    assert splits.early_stopping is not None
    paths = [{sample.path for sample in part.samples} for part in (splits.train, splits.early_stopping, splits.val)]
    assert sum(map(len, paths)) == len(set.union(*paths)) == 10
    assert all(paths)


def test_duplicates_and_corrupt_images_give_warnings(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(
        tmp_path, {"train/a": BOX, "train/b": BOX, "train/c": BOX, "val/x": BOX, "val/y": BOX}, CLASS_NAMES
    )
    make_image(dataset / "images/val/x.png", seed=0)  # the image of train/a
    content = (dataset / "images/train/c.png").read_bytes()
    (dataset / "images/train/c.png").write_bytes(content[: len(content) // 2])
    splits = split_dataset(load_detection_dataset(dataset), 0, early_stopping=False)
    assert [sample.path.name for sample in splits.train.samples] == ["a.png", "b.png"]
    assert len(splits.warnings) == 3
    assert "c.png" in splits.warnings[0]
    val_path, train_path = dataset / "images/val/x.png", dataset / "images/train/a.png"
    expected = f"also occur in the training set: 1 of 2 (for example {val_path} as {train_path})"
    assert expected in splits.warnings[1]
    assert splits.warnings[2] == "classes with fewer than 5 training boxes: 2 of 2"


def test_validation_on_the_training_images_is_told(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(tmp_path, {f"train/{name}": BOX for name in "abcdef"}, CLASS_NAMES)
    (dataset / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog, fox]\n")
    issue, warning = split_dataset(load_detection_dataset(dataset), 0, early_stopping=False).warnings
    assert "the splits train and val name the same images (6 of 6 in train, 6 of 6 in val)" in issue
    assert warning.startswith("validation images that also occur in the training set: 6 of 6")


def test_dataset_without_validation_split_holds_out_a_fifth(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(tmp_path, {f"train/{name}": BOX for name in "abcdefghij"}, None)
    (dataset / "data.yaml").write_text("train: images/train\nnames: [cat, dog, fox]\n")
    splits = split_dataset(load_detection_dataset(dataset), 0, early_stopping=False)
    assert (len(splits.train.samples), len(splits.val.samples)) == (8, 2)
    assert splits.warnings == ("no validation split; images held out for validation: 2 of 10",)


def test_test_images_are_never_trained_on(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(
        tmp_path, {f"{split}/{split}": BOX for split in ("train", "extra", "Testing", "Val")}, None
    )
    description = (
        "train: [images/train, images/extra]\nValid: images/Val\nTEST: [images/Testing, images/extra]\nnc: 3\n"
    )
    (dataset / "data.yaml").write_text(description)
    splits = split_dataset(load_detection_dataset(dataset), 0, early_stopping=False)
    assert [sample.path.stem for sample in splits.train.samples] == ["train"]
    assert [sample.path.stem for sample in splits.val.samples] == ["Val"]
    assert "training images that are also test images: 1; not used for training" in splits.warnings


@pytest.mark.parametrize("names", [("training", "testing"), ("Train", "TEST"), ("obj_train_data", "obj_Test_data")])
def test_test_split_serves_as_validation_split(tmp_path: Path, names: tuple[str, str]) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {f"{name}/{name}": BOX for name in names}, None))
    splits = split_dataset(data, 0, early_stopping=False)
    parts = (splits.train, splits.val)
    assert tuple(sample.path.stem for part in parts for sample in part.samples) == names


def test_dataset_without_labelled_training_images_is_rejected(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(tmp_path, {"train/a": "", "val/x": BOX}, CLASS_NAMES)
    with pytest.raises(UsageError, match="no labelled training images: expected at least one image with boxes outside"):
        split_dataset(load_detection_dataset(dataset), 0, early_stopping=False)


def test_epoch_contains_every_image_once_in_a_new_order() -> None:
    first, second = (epoch_batch_indices(10, 4, 0, epoch) for epoch in (0, 1))
    assert sorted(index for indices in first for index in indices) == list(range(10))
    assert [len(indices) for indices in first] == [4, 3, 3]
    assert first != second
    assert first == epoch_batch_indices(10, 4, 0, 0)


def test_streamed_batches_can_be_skipped_and_differ_between_epochs(samples: AugmentedSamples) -> None:
    batches = stream_batches(samples, 3, workers=2)
    all_batches, rest = list(batches(1, 0)), list(batches(1, 2))
    assert len(all_batches) == 3
    torch.testing.assert_close(rest, all_batches[2:])
    images = all_batches[0][0][-1]
    assert not torch.equal(images, next(iter(batches(0, 0)))[0][-1])
    assert images.shape == (3, 3, 64, 64)
    assert 0 <= images.min() < images.max() <= 1


def test_cached_batches_equal_the_features_of_the_views(samples: AugmentedSamples, tmp_path: Path) -> None:
    model = copy.deepcopy(make_small_detector().model)
    views = [(view, index) for view in range(2) for index in range(len(samples))]
    with FeatureCache(model, 3, 64, len(views), "float32").open(tmp_path, 10**9) as cache:
        boxes = fill_feature_cache(cache, model, views, lambda view: samples.sample(*view))
        batches = cached_batches(cache, boxes, len(samples), 4, samples.seed)
        for epoch in (0, 1, 2):
            batch_indices = epoch_batch_indices(7, 4, 0, epoch)
            for indices, (features, targets) in zip(batch_indices, batches(epoch, 0), strict=True):
                views = [samples.sample(epoch % 2, index) for index in indices]
                images = torch.from_numpy(np.stack([pixels for pixels, _ in views])).float() / 255
                torch.testing.assert_close(features, model.forward_features(images, 3))
                torch.testing.assert_close(targets, stack_targets([image_boxes for _, image_boxes in views]))


def test_targets_start_with_the_image_index() -> None:
    box = np.array([[2, 0.5, 0.5, 0.1, 0.2]], np.float32)
    targets = stack_targets([box, np.zeros((0, 5), np.float32), np.concatenate([box, box])])
    assert targets[:, 0].tolist() == [0, 2, 2]
    assert targets[:, 1].tolist() == [2, 2, 2]
    assert stack_targets([np.zeros((0, 5), np.float32)]).shape == (0, 6)


def test_cached_reader_keeps_images_up_to_its_limit(tmp_path: Path) -> None:
    paths = [make_image(tmp_path / f"{name}.png", seed) for seed, name in enumerate("ab")]
    read = cached_reader(100 * 50 * 3)
    first = [read(path) for path in paths]
    again = [read(path) for path in paths]
    assert again[0] is first[0]
    assert again[1] is not first[1]
    np.testing.assert_array_equal(again[1], first[1])


@pytest.mark.parametrize("num_frozen", [0, 3])
def test_validator_equals_evaluation_of_the_files(folder: Path, num_frozen: int, tmp_path: Path) -> None:
    """The independent reference is detection file by file, as in ``chromabox evaluate``."""
    detector = make_small_detector()
    data = load_detection_dataset(folder).split("val")
    expected = evaluate_detector(detector, data, size=64, num_resamples=2)
    with FeatureCache(detector.model, num_frozen, 64, 3, "float32").open(tmp_path, 10**9) as cache:
        boxes = fill_feature_cache(
            cache, detector.model, data.samples, lambda sample: letterbox_sample(sample, 64, DARKNET)
        )
        validator = Validator(data, 64, cache, boxes)
        predictions, _ = validator.predict(detector.model)
        loss = DetectionLoss(detector.architecture, detector.variant, 3, size=64)
        metrics = validator.evaluate(detector.model, loss)
    assert evaluate_predictions(predictions, data, num_resamples=2).coco.ap == pytest.approx(expected.coco.ap)
    assert len(predictions[0].scores)
    assert metrics["val_ap50"] == pytest.approx(expected.coco.ap50)
    assert metrics["val_ap50_missing"] == pytest.approx(1 - expected.coco.ap50)
    terms = [metrics[f"val_{name}"] for name in ("box", "objectness", "class")]
    assert metrics["val_loss"] == pytest.approx(sum(terms), rel=1e-5)


def test_stored_splits_are_read_without_decoding_images(folder: Path, tmp_path: Path) -> None:
    data = load_detection_dataset(folder)
    splits = split_dataset(data, 0, early_stopping=True)
    splits.images.write(tmp_path / "splits.json")
    loaded = DataSplits.load(tmp_path / "splits.json", data)
    assert (loaded.warnings, loaded.fingerprint) == (splits.warnings, splits.fingerprint)
    for name in ("train", "early_stopping", "val"):
        paths = [[sample.path for sample in getattr(each, name).samples] for each in (loaded, splits)]
        assert paths[0] == paths[1]


@pytest.mark.parametrize(("num_labelled", "early_stopping"), [(2, False), (3, True), (8, True)])
def test_held_out_images_include_labelled_ones(num_labelled: int, early_stopping: bool, tmp_path: Path) -> None:
    """A fifth of two images with boxes would be less than one image."""
    lines = [BOX if index < num_labelled else "" for index in range(12)]
    dataset = make_yolo_dataset(tmp_path, {f"train/{index}": text for index, text in enumerate(lines)}, None)
    (dataset / "data.yaml").write_text("train: images/train\nnames: [cat, dog, fox]\n")
    splits = split_dataset(load_detection_dataset(dataset), 1, early_stopping=early_stopping)
    parts = [splits.train, splits.val, *([splits.early_stopping] if early_stopping else [])]
    assert all(any(len(sample.boxes) for sample in part.samples) for part in parts)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"train/a": BOX, "val/x": ""}, "the images of the split val, which are used for validation, have no boxes"),
        ({"train/a": BOX, "train/b": ""}, "only one image has boxes: expected at least two"),
    ],
)
def test_dataset_that_cannot_be_validated_is_rejected(labels: dict[str, str], message: str, tmp_path: Path) -> None:
    dataset = make_yolo_dataset(tmp_path, labels, CLASS_NAMES)
    if not any(name.startswith("val") for name in labels):
        (dataset / "data.yaml").write_text("train: images/train\nnames: [cat, dog, fox]\n")
    with pytest.raises(UsageError, match=message):
        split_dataset(load_detection_dataset(dataset), 0, early_stopping=False)


def test_identical_labelled_images_cannot_be_held_out(tmp_path: Path) -> None:
    dataset = make_yolo_dataset(tmp_path, {"train/a": BOX, "train/b": BOX, "train/c": ""}, None)
    (dataset / "data.yaml").write_text("train: images/train\nnames: [cat, dog, fox]\n")
    make_image(dataset / "images/train/b.png", seed=0)  # the image of train/a
    with pytest.raises(UsageError, match="too few different images with boxes to hold out one of them for validation"):
        split_dataset(load_detection_dataset(dataset), 0, early_stopping=False)


def test_loss_with_cached_features_equals_loss_of_the_whole_model(samples: AugmentedSamples) -> None:
    model = make_small_detector().model
    loss = DetectionLoss(model.architecture, model.variant, 3, size=64)
    images, targets = next(iter(stream_batches(samples, 4)(0, 0)))
    features = model.forward_features(images[-1], 2)
    cached = compute_losses(model, (features, targets), loss, 2)["loss"]
    torch.testing.assert_close(cached, loss(model(images[-1]), targets)["loss"])
