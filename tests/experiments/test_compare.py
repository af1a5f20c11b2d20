"""Comparison of tiny runs: means and sample standard deviations against NumPy, and rejected input."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.engine.options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.compare import Comparison, compare, group_runs, tabulate

OPTIONS = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")
MODELS = ("pool-upsample", "unet")


def run_compare(folder: Path, photos: str, **changes: object) -> Comparison:
    arguments = {
        "models": MODELS,
        "recipe": "course",
        "seeds": (0, 1, 2),
        "data": photos,
        "palette": "horse24",
        "epochs": 1,
    }
    return compare(folder, **{**arguments, "options": OPTIONS, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def result(folder: Path, photos: str) -> Comparison:
    return run_compare(folder, photos)


def read_summaries(folder: Path, model: str) -> list[dict]:
    return [json.loads((folder / f"{model}-course-seed{seed}" / "summary.json").read_text()) for seed in range(3)]


def test_row_is_mean_and_sample_standard_deviation(result: Comparison, folder: Path) -> None:
    assert [row["model"] for row in result.rows] == list(MODELS)
    for row in result.rows:
        summaries = read_summaries(folder, row["model"])
        accuracy = 100 * np.array([summary["test_accuracy"] for summary in summaries])
        loss = np.array([summary["test_loss"] for summary in summaries])
        assert row["accuracy"] == pytest.approx(accuracy.mean(), abs=6e-4)
        assert row["accuracy_std"] == pytest.approx(accuracy.std(ddof=1), abs=6e-4)
        assert row["loss"] == pytest.approx(loss.mean(), abs=6e-6)
        assert row["loss_std"] == pytest.approx(loss.std(ddof=1), abs=6e-6)
        assert row["loss_std"] > 0
        assert (row["seeds"], row["recipe"], row["palette"]) == ("0 1 2", "course", "horse24")
        assert row["parameters"] == summaries[0]["parameters"]


def test_csv_holds_the_same_rows(result: Comparison, folder: Path) -> None:
    assert result.csv_path == folder / "comparison.csv"
    with result.csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [{key: "" if value is None else str(value) for key, value in row.items()} for row in result.rows]
    assert rows == expected


def test_published_results_are_included(result: Comparison) -> None:
    # Accuracy ranges and lowest losses of six public solutions.
    assert [(row["published_accuracy"], row["published_loss"]) for row in result.rows] == [
        ("41.2–41.4", "1.578"),
        ("57.5–59.3", "1.0332"),
    ]


def test_figure_has_rows_for_grey_truth_and_every_model(result: Comparison) -> None:
    with Image.open(result.figure_path) as image:
        image.load()
        # Three test images of 1 inch, 1.6 inches for the labels, four rows, 150 dpi.
        assert image.size[0] == round(150 * (3 + 1.6))
        assert abs(image.size[1] - 150 * (1.02 * 4 + 0.5)) <= 1
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_finished_runs_are_skipped(result: Comparison, folder: Path, photos: str, messages: list[str]) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}
    messages.clear()
    again = run_compare(folder, photos)
    assert len(before) == 12
    assert messages == [f"{run}: already finished, skipping" for runs in again.runs.values() for run in runs]
    assert again.rows == result.rows
    assert {path: path.read_bytes() for path in folder.glob("*/*.safetensors")} == before


def test_unfinished_run_is_trained_again(
    result: Comparison, folder: Path, photos: str, tmp_path: Path, messages: list[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "unet-course-seed1" / "summary.json").unlink()
    messages.clear()
    again = run_compare(copy, photos)
    assert sum("already finished" in message for message in messages) == 5
    for row, first in zip(again.rows, result.rows, strict=True):
        assert (row["accuracy"], row["loss"]) == (first["accuracy"], first["loss"])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epochs": 2}, "contains a run with other settings"),
        ({"palette": "cifar24"}, "contains a run with other settings"),
        ({"models": ()}, "--models: .* is empty"),
        ({"seeds": ()}, "--seeds: .* is empty"),
        ({"seeds": (1, 1)}, "--seeds: .* has duplicate values"),
    ],
)
def test_other_settings_in_the_same_folder_are_rejected(
    result: Comparison, folder: Path, photos: str, changes: dict, error: str
) -> None:
    before = result.csv_path.read_bytes()
    with pytest.raises(UsageError, match=error):
        run_compare(folder, photos, **changes)
    assert result.csv_path.read_bytes() == before


def test_finished_runs_are_grouped_by_model(result: Comparison, folder: Path, tmp_path: Path) -> None:
    runs = [folder / f"{model}-course-seed{seed}" for seed in (2, 0) for model in MODELS]
    groups = group_runs(runs)
    assert groups == {model: [folder / f"{model}-course-seed{seed}" for seed in (2, 0)] for model in MODELS}
    rows = tabulate(tmp_path / "new", groups).rows
    assert [row["seeds"] for row in rows] == ["2 0", "2 0"]
    [single, _] = tabulate(tmp_path / "new", group_runs(runs[:2])).rows
    assert (single["accuracy_std"], single["loss_std"]) == (None, None)
    assert single["accuracy"] == pytest.approx(100 * read_summaries(folder, MODELS[0])[2]["test_accuracy"], abs=6e-4)


@pytest.mark.parametrize(
    ("file", "key", "value", "error"),
    [
        ("config.json", "data", "cifar10:all", "cannot be averaged"),
        ("config.json", "model_args", {"kernel": 5}, "cannot be averaged"),
        ("config.json", "size", 64, "cannot be averaged"),
        ("config.json", "val_fraction", 0.1, "cannot be averaged"),
        ("summary.json", "palette", "course", "cannot be averaged"),
        ("config.json", "seed", 0, "have duplicate seeds"),
        ("summary.json", None, None, r"contains no summary\.json"),
        ("config.json", None, None, r"contains no config\.json"),
    ],
)
def test_incompatible_runs_are_rejected(
    result: Comparison, folder: Path, tmp_path: Path, file: str, key: str | None, value: object, error: str
) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for seed, run in enumerate(runs):
        shutil.copytree(folder / f"unet-course-seed{seed}", run)
    changed = runs[1] / file
    if key is None:
        changed.unlink()
    else:
        changed.write_text(json.dumps({**json.loads(changed.read_text()), key: value}))
    with pytest.raises(UsageError, match=error):
        group_runs(runs)
