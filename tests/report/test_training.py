"""Output and figures of a fine-tuning run, through the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from PIL import Image

from chromabox.cli.detect import FinetuneArgs, TrainingArgs, finetune
from chromabox.detect.data.dataset import Sample
from chromabox.detect.data.validate import validate_dataset
from chromabox.detect.detections import Detections
from chromabox.detect.inference.predict import detect_image
from chromabox.detect.weights.load import load_detector, save_detector
from chromabox.engine.options import RuntimeOptions
from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.detection import evaluate_detector_file
from chromabox.report.training import TILE_SIZE, worst_errors
from detection_fixtures import make_yolo_dataset
from detector_fixtures import make_small_detector

BOX = "0 0.5 0.5 0.4 0.6\n1 0.3 0.4 0.2 0.2\n"
FAST = RuntimeOptions(precision="float32", channels_last="off", threads=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the options of a finished run."""
    base = tmp_path_factory.mktemp("run")
    labels = {f"train/{name}": BOX for name in "abcd"} | {f"val/{name}": BOX for name in "xy"}
    data = make_yolo_dataset(base / "set", labels, ("dog", "hedgehog"))
    save_detector(base / "small.safetensors", make_small_detector())
    options = {
        "weights": str(base / "small.safetensors"),
        "freeze": "3",
        "training": TrainingArgs(epochs=1, size=64, batch_size=2, cached_views=1),
        "output": base / "out",
        "runtime": FAST,
    }
    assert finetune(FinetuneArgs(str(data), **options)) == 0
    return base / "out", options


def test_run_folder_is_complete(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    for name in ("curves.png", "sheet.png", "evaluation/evaluation.json", "evaluation/confusion.png"):
        assert (folder / name).is_file()
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width >= 2 * TILE_SIZE
        assert sheet.height >= 2 * TILE_SIZE
    after = json.loads((folder / "summary.json").read_text())["after"]
    assert after["ap50"] == json.loads((folder / "evaluation/evaluation.json").read_text())["ap50"]


def test_folder_with_a_run_is_rejected(run: tuple[Path, dict[str, Any]]) -> None:
    folder, options = run
    with pytest.raises(UsageError, match=f"already contains a run: use --resume {folder}"):
        finetune(FinetuneArgs("coco128", **options))


def test_finished_run_is_reported_again(run: tuple[Path, dict[str, Any]], messages: list[str]) -> None:
    folder, _ = run
    before = (folder / "metrics.jsonl").read_text()
    finetune(FinetuneArgs(resume=folder, runtime=FAST))
    assert any(message.startswith("AP50 on the validation images (2): ") for message in messages)
    assert messages[-1] == f"next: chromabox detect IMAGE --weights {folder} -o detections/"
    exported = "\n".join(messages)
    assert f"for any ONNX runtime: {folder}/best.onnx; checked against PyTorch on 4 photographs" in exported
    assert f"for Darknet: {folder}/best.weights" in exported
    assert (folder / "metrics.jsonl").read_text() == before


def test_run_with_a_moved_dataset_is_resumed_and_evaluated(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(run[0], folder)
    shutil.copytree(run[0].parent / "set", moved)
    finetune(FinetuneArgs(moved_data=str(moved), resume=folder, runtime=FAST))
    assert json.loads((folder / "config.json").read_text())["data"] == str(moved)
    before, after = (json.loads((each / "summary.json").read_text()) for each in (run[0], folder))
    assert after["fingerprint"] == before["fingerprint"]
    assert after["after"] == before["after"]
    evaluate_detector_file(folder, moved, tmp_path / "val")
    evaluate_detector_file(folder / "best.safetensors", moved, tmp_path / "train", split="train")
    printed = capsys.readouterr()
    assert "images with which the run was trained: 0 of 2\n" in printed.out
    images = sorted((moved / "images/train").iterdir())
    assert f"trained: 4 of 4 (for example {images[0]}); the results are optimistic" in printed.err
    assert json.loads((tmp_path / "val/evaluation.json").read_text())["trained_on"] == []
    assert json.loads((tmp_path / "train/evaluation.json").read_text())["trained_on"] == [str(each) for each in images]
    (moved / "labels/train/a.txt").write_text(BOX + "1 0.7 0.7 0.2 0.2\n")
    with pytest.raises(ChromaboxError, match=r"images with changed labels: 1 \(.*a\.png\)"):
        finetune(FinetuneArgs(resume=folder, runtime=FAST))


def test_label_issues_are_stored_in_the_summary(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The command ``data check`` writes the same list."""
    _, options = run
    labels = {"train/a": BOX + "0 nan 0.5 0.2 0.2\n", "train/b": BOX, "val/x": BOX}
    data = make_yolo_dataset(tmp_path / "set", labels, ("dog", "hedgehog"))
    finetune(FinetuneArgs(str(data), **{**options, "output": tmp_path / "out"}))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["faults"] == validate_dataset(data).as_json()["faults"]
    assert [fault["kind"] for fault in summary["faults"]] == ["unreadable label"]
    assert "a number is not finite" in summary["warnings"][0]


@pytest.mark.parametrize("name", ["", "best.onnx", "best.weights"])
def test_all_weight_files_give_the_same_boxes(run: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, _ = run
    pixels = skimage.data.coffee()
    ours, theirs = (
        detect_image(pixels, load_detector(path).fused(), confidence=0.05, size=64)
        for path in (folder / "best.safetensors", folder / name)
    )
    assert len(ours.xyxy) > 3
    np.testing.assert_array_equal(theirs.xyxy, ours.xyxy)
    np.testing.assert_array_equal(theirs.confidence, ours.confidence)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (None, {}, "no dataset given"),
        ("coco128", {"moved_data": "raccoon"}, "two datasets given, coco128 and --data raccoon: expected one"),
        ("coco128", {"training": TrainingArgs(patience=0)}, "--patience is 0"),
        ("coco128", {"training": TrainingArgs(epochs=0)}, "epochs is 0"),
        (None, {"resume": Path("nowhere")}, r"nowhere.* config\.json"),
    ],
)
def test_invalid_options_are_rejected(data: str | None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(FinetuneArgs(data, **options))


def test_changed_options_of_a_resumed_run_are_rejected(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    message = r"cannot change --seed from 0 to 5, --epochs from \d+ to 9; only the place of the dataset and runtime"
    args = FinetuneArgs("coco128", seed=5, resume=folder, training=TrainingArgs(epochs=9), runtime=FAST)
    with pytest.raises(UsageError, match=message):
        finetune(args)


def test_worst_errors_come_first() -> None:
    """A confident false positive, a large missed box, and an image without errors."""

    def make_detections(*rows: tuple[float, int, tuple[float, ...]]) -> Detections:
        return Detections(
            xyxy=np.array([box for _, _, box in rows], np.float32).reshape(-1, 4),
            confidence=np.array([score for score, _, _ in rows], np.float32),
            class_id=np.array([number for _, number, _ in rows], np.int64),
            class_names=np.array(["one", "two"])[[number for _, number, _ in rows]],
        )

    def make_sample(number: int, *box: float) -> Sample:
        return Sample(Path("a.png"), np.array([box], np.float64), np.array([number]), (100, 100))

    samples = [make_sample(0, 0, 0, 50, 50), make_sample(0, 0, 0, 90, 90), make_sample(0, 10, 10, 20, 20)]
    detections = [
        make_detections((0.9, 0, (0, 0, 50, 48)), (0.7, 0, (60, 60, 80, 80))),
        make_detections((0.6, 1, (0, 0, 90, 90))),  # correct position, wrong class
        make_detections((0.99, 0, (10, 10, 20, 20))),
    ]
    errors = worst_errors(samples, detections)
    # The second image has a missed box, and the first image has a wrong detection.
    assert [index for index, _ in errors] == [1, 0]
    assert [severity for _, severity in errors] == pytest.approx([0.9, 0.7])
    assert len(worst_errors(samples, detections, max_errors=1)) == 1
