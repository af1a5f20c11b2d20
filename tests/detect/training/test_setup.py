"""Setup of fine-tuning runs: selected classes, warnings about classes, and conditions for measuring retention."""

from pathlib import Path

import pytest

from chromabox.detect.data.load import load_detection_dataset
from chromabox.detect.training.config import FinetuneConfig
from chromabox.detect.training.recipes import make_finetune_recipe
from chromabox.detect.training.setup import initialise_run, prepare_retention, select_classes
from chromabox.detect.weights.load import save_detector
from chromabox.errors import ChromaboxError, UsageError
from detection_fixtures import make_yolo_dataset
from detector_fixtures import CLASS_NAMES, make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n1 0.3 0.4 0.2 0.2\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_detector(path, make_small_detector())
    return str(path)


def _config(folder: Path, weights: str, **settings: object) -> FinetuneConfig:
    return FinetuneConfig(
        data=str(folder), weights=weights, recipe=make_finetune_recipe("default"), freeze=3, size=64, **settings
    )


@pytest.mark.parametrize(
    ("classes", "expected", "num_boxes", "warning"),
    [
        (["Sea_Otter"], ("sea otter",), 1, "boxes of other classes, which are not used (dog: 2)"),
        (["0"], ("dog",), 2, "boxes of other classes, which are not used (sea otter: 1)"),
        (["sea otter", "dog"], ("dog", "sea otter"), 3, None),
    ],
)
def test_only_selected_classes_are_used(
    classes: list[str], expected: tuple[str, ...], num_boxes: int, warning: str | None, tmp_path: Path
) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": BOX, "val/x": "0 0.5 0.5 0.4 0.6\n"}, ("dog", "sea otter"))
    data, warnings = select_classes(load_detection_dataset(folder), classes)
    assert data.classes == expected
    assert len(data.samples) == 2
    assert sum(len(sample.boxes) for sample in data.samples) == num_boxes
    assert all(sample.class_ids.max(initial=0) < len(expected) for sample in data.samples)
    assert [text.split(";")[0] for text in warnings] == ([] if warning is None else [warning])


def test_unknown_selected_class_is_rejected(tmp_path: Path) -> None:
    data = load_detection_dataset(make_yolo_dataset(tmp_path, {"train/a": BOX, "val/x": BOX}))
    with pytest.raises(UsageError, match="--classes: bird, 2 is not in the dataset; expected cat, dog"):
        select_classes(data, ["cat", "bird", "2"])


def test_detector_has_only_the_selected_classes(weights: str, tmp_path: Path) -> None:
    folder = make_yolo_dataset(tmp_path, {"train/a": BOX, "val/x": BOX}, ("dog", "hedgehog"))
    initial = initialise_run(_config(folder, weights, classes=["hedgehog"]), None)
    assert initial.detector.classes == ("hedgehog",)
    assert [sample.class_ids.tolist() for sample in initial.splits.train.samples] == [[0]]
    assert any("which are not used (dog: 2)" in warning for warning in initial.splits.warnings)


@pytest.mark.parametrize("keep_old_classes", [False, True])
def test_warnings_name_only_classes_of_the_dataset(keep_old_classes: bool, weights: str, tmp_path: Path) -> None:
    labels = {"train/a": "0 0.5 0.5 0.4 0.6\n5 0.5 0.5 0.4 0.6\n", "val/x": BOX}
    folder = make_yolo_dataset(tmp_path, labels, ("dog", "hedgehog"))
    initial = initialise_run(_config(folder, weights, keep_old_classes=keep_old_classes), None)
    expected = "classes without training boxes, which cannot be learnt: 1 of 2 (hedgehog)"
    assert expected in initial.splits.warnings
    assert not any("cat" in warning for warning in initial.splits.warnings)
    issue = f"{folder}/labels/train/a.txt:2: unknown class: class 5 is not defined; expected 0 to 1; dropped"
    assert initial.splits.warnings[0] == issue
    assert [str(each) for each in initial.issues] == [issue]


@pytest.mark.parametrize(
    ("names", "retention_names", "keep_old_classes", "message"),
    [
        (
            ("dog", "hedgehog"),
            ("boat", "car"),
            True,
            "--retention-data .*: the model has none of the dataset's classes",
        ),
        (("hedgehog", "boat"), CLASS_NAMES, False, "--retention-data: the detector keeps none of the original classes"),
        (("red fox", "boat"), ("cat", "dog"), False, "--retention-data .*: no boxes of the retained classes .red fox."),
    ],
)
def test_retention_that_cannot_be_measured_is_reported_first(
    names: tuple[str, ...],
    retention_names: tuple[str, ...],
    keep_old_classes: bool,
    message: str,
    weights: str,
    tmp_path: Path,
) -> None:
    data = make_yolo_dataset(tmp_path / "data", {"train/a": BOX, "val/x": BOX}, names)
    retention_data = make_yolo_dataset(tmp_path / "old", {"train/a": BOX, "val/x": BOX}, retention_names)
    config = _config(data, weights, keep_old_classes=keep_old_classes, retention_data=str(retention_data))
    with pytest.raises(ChromaboxError, match=message):
        prepare_retention(config, initialise_run(config, None).detector)
