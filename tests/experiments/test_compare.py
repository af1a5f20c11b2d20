"""Comparison of tiny runs: means and sample standard deviations against numpy, and what is refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.compare import Comparison, compare, group_runs, tabulate

OPTIONS = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")
NETS = ("pool-upsample", "unet")


def run(folder: Path, photos: str, say=lambda line: None, **changes: object) -> Comparison:
    given = {"models": NETS, "recipe": "course", "seeds": (0, 1, 2), "data": photos, "palette": "horse24", "epochs": 1}
    return compare(folder, **{**given, "options": OPTIONS, "log": say, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def result(folder: Path, photos: str) -> Comparison:
    return run(folder, photos)


def summaries(folder: Path, net: str) -> list[dict]:
    return [json.loads((folder / f"{net}-course-seed{seed}" / "summary.json").read_text()) for seed in range(3)]


def test_a_line_is_mean_and_sample_standard_deviation(result: Comparison, folder: Path) -> None:
    assert [line.model for line in result.rows] == list(NETS)
    for line in result.rows:
        found = summaries(folder, line.model)
        accuracy = 100 * np.array([summary["test_accuracy"] for summary in found])
        loss = np.array([summary["test_loss"] for summary in found])
        assert line.accuracy == pytest.approx(accuracy.mean(), abs=6e-4)
        assert line.accuracy_std == pytest.approx(accuracy.std(ddof=1), abs=6e-4)
        assert line.loss == pytest.approx(loss.mean(), abs=6e-6)
        assert line.loss_std == pytest.approx(loss.std(ddof=1), abs=6e-6)
        assert line.loss_std > 0
        assert (line.seeds, line.recipe, line.palette) == ("0 1 2", "course", "horse24")
        assert line.parameters == found[0]["parameters"]


def test_the_csv_says_the_same(result: Comparison, folder: Path) -> None:
    assert result.csv_path == folder / "comparison.csv"
    with result.csv_path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = [{key: "" if value is None else str(value) for key, value in vars(line).items()} for line in result.rows]
    assert rows == expected


def test_published_numbers_stand_beside(result: Comparison) -> None:
    # The ranges and the lowest losses of six public write-ups.
    assert [(line.published_accuracy, line.published_loss) for line in result.rows] == [
        ("41.2–41.4", "1.578"),
        ("57.5–59.3", "1.0332"),
    ]


def test_the_figure_shows_grey_truth_and_every_net(result: Comparison) -> None:
    with Image.open(result.figure_path) as image:
        image.load()
        # Three test pictures of an inch and 1.6 for the labels, four rows, 150 dots an inch.
        assert image.size[0] == round(150 * (3 + 1.6))
        assert abs(image.size[1] - 150 * (1.02 * 4 + 0.5)) <= 1
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


def test_finished_runs_are_taken_as_they_are(result: Comparison, folder: Path, photos: str) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}
    said: list[str] = []
    again = run(folder, photos, said.append)
    assert len(before) == 12
    assert said == [f"{run}: taken as it is" for runs in again.runs.values() for run in runs]
    assert again.rows == result.rows
    assert {path: path.read_bytes() for path in folder.glob("*/*.safetensors")} == before


def test_a_run_that_did_not_finish_is_trained_again(
    result: Comparison, folder: Path, photos: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "unet-course-seed1" / "summary.json").unlink()
    said: list[str] = []
    again = run(copy, photos, said.append)
    assert sum("taken as it is" in line for line in said) == 5
    for line, first in zip(again.rows, result.rows, strict=True):
        assert (line.accuracy, line.loss) == (first.accuracy, first.loss)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epochs": 2}, "holds a run with other settings"),
        ({"palette": "cifar24"}, "holds a run with other settings"),
        ({"models": ()}, "nets: .* holds none"),
        ({"seeds": ()}, "seeds: .* holds none"),
        ({"seeds": (1, 1)}, "seeds: .* holds one twice"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    result: Comparison, folder: Path, photos: str, changes: dict, error: str
) -> None:
    before = result.csv_path.read_bytes()
    with pytest.raises(UsageError, match=error):
        run(folder, photos, **changes)
    assert result.csv_path.read_bytes() == before


def test_finished_runs_are_grouped_by_net(result: Comparison, folder: Path, tmp_path: Path) -> None:
    runs = [folder / f"{net}-course-seed{seed}" for seed in (2, 0) for net in NETS]
    groups = group_runs(runs)
    assert groups == {net: [folder / f"{net}-course-seed{seed}" for seed in (2, 0)] for net in NETS}
    lines = tabulate(tmp_path / "new", groups).rows
    assert [line.seeds for line in lines] == ["2 0", "2 0"]
    [alone, _] = tabulate(tmp_path / "new", group_runs(runs[:2])).rows
    assert (alone.accuracy_std, alone.loss_std) == (None, None)
    assert alone.accuracy == pytest.approx(100 * summaries(folder, NETS[0])[2]["test_accuracy"], abs=6e-4)


@pytest.mark.parametrize(
    ("file", "key", "value", "error"),
    [
        ("config.json", "data", "cifar10:all", "cannot be averaged"),
        ("config.json", "model_args", {"kernel": 5}, "cannot be averaged"),
        ("config.json", "size", 64, "cannot be averaged"),
        ("config.json", "val_fraction", 0.1, "cannot be averaged"),
        ("summary.json", "palette", "course", "cannot be averaged"),
        ("config.json", "seed", 0, "have the same seed twice"),
        ("summary.json", None, None, r"holds no summary\.json"),
        ("config.json", None, None, r"holds no config\.json"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
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
