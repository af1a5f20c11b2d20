"""Sweeps of tiny runs: training, reuse of finished runs, and every number against NumPy, PyTorch and scikit-image."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from chromabox.colour.data.datasets import load_colour_dataset
from chromabox.colour.evaluation.metrics import colourfulness
from chromabox.colour.palette.io import load_palette
from chromabox.colour.training.train import TrainConfig, load_inputs
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.options import RuntimeOptions
from chromabox.engine.runs import RunDir
from chromabox.errors import UsageError
from chromabox.experiments.runs import find_runs
from chromabox.experiments.sweep import SWEEP_PARAMETERS, parse_sweep, sweep
from chromabox.experiments.sweep_results import METRICS, SweepResult, SweepRow, read_sweep

OPTIONS = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")


def run_sweep(folder: Path, photos: str, **changes: object) -> SweepResult:
    arguments = {
        "model": "conv-transpose",
        "recipe": "course",
        "parameter": "batch-size",
        "values": (9, 4),
        "seeds": (0, 1),
    }
    arguments |= {"data": photos, "palette": "horse24", "epochs": 2, "options": OPTIONS}
    return sweep(folder, **{**arguments, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def result(folder: Path, photos: str) -> SweepResult:
    """A sweep over 27 images in batches of 4 and 9: 7 and 3 steps per epoch."""
    return run_sweep(folder, photos)


def read_summaries(result: SweepResult, row: SweepRow) -> list[dict]:
    return [json.loads((result.folder / run / "summary.json").read_text()) for run in row.runs]


def test_values_are_compared_with_equal_epochs_and_equal_steps(result: SweepResult) -> None:
    assert [(row.value, row.epochs, row.steps, row.steps_per_epoch) for row in result.equal_epochs] == [
        (4, 2, 14, 7),
        (9, 2, 6, 3),
    ]
    assert [(row.value, row.epochs, row.steps) for row in result.equal_steps] == [(4, 1, 6), (9, 2, 6)]
    names = [[str(run) for run in row.runs] for row in (*result.equal_epochs, *result.equal_steps)]
    assert names == [
        ["batch-size-4-seed0", "batch-size-4-seed1"],
        ["batch-size-9-seed0", "batch-size-9-seed1"],
        ["batch-size-4-steps6-seed0", "batch-size-4-steps6-seed1"],
        ["batch-size-9-seed0", "batch-size-9-seed1"],  # takes six steps in both comparisons
    ]
    run_names = {path.parent.name for path in result.folder.glob("*/summary.json")}
    assert run_names == {name for row in names for name in row}
    for row in (*result.equal_epochs, *result.equal_steps):
        configs = [RunDir(result.folder / run).load_config(TrainConfig) for run in row.runs]
        assert {config.recipe.batch_size for config in configs} == {row.value}
        assert [config.seed for config in configs] == [0, 1] == list(result.seeds)
        assert [summary["updates"] for summary in read_summaries(result, row)] == [row.steps] * 2


def test_metrics_are_means_and_sample_standard_deviations(result: SweepResult) -> None:
    for row in (*result.equal_epochs, *result.equal_steps):
        assert row.metrics.keys() == METRICS.keys()
        for name in ("test_loss", "test_accuracy", "seconds"):
            values = np.array([summary[name] for summary in read_summaries(result, row)])
            assert row.metrics[name].values == tuple(values)
            assert row.metrics[name].mean == pytest.approx(values.mean())
            assert row.metrics[name].std == pytest.approx(values.std(ddof=1))
        seconds_per_epoch = np.array(row.metrics["seconds"].values) / row.steps * row.steps_per_epoch
        assert row.metrics["seconds_per_epoch"].values == pytest.approx(seconds_per_epoch)


def test_evaluated_metrics_agree_with_other_libraries(result: SweepResult, photos: str) -> None:
    for row in (*result.equal_epochs, result.equal_steps[0]):
        model = load_palette_model(result.folder / row.runs[1])
        data = load_colour_dataset(photos, model.palette)
        with torch.no_grad():
            logits = model.network(data.train.grey[:3])  # as many as there are test images
            labels = model.network(data.test.grey).argmax(1).numpy()
        loss = torch.nn.functional.cross_entropy(logits, data.train.labels[:3].long()).item()
        assert row.metrics["train_loss"].values[1] == pytest.approx(loss, rel=1e-5)
        accuracy = (logits.argmax(1) == data.train.labels[:3]).float().mean().item()
        assert row.metrics["train_accuracy"].values[1] == pytest.approx(accuracy)
        coloured, truth = model.palette.rgb[labels], data.test.rgb.transpose(0, 2, 3, 1)
        psnr = peak_signal_noise_ratio(truth, coloured, data_range=255)
        assert row.metrics["psnr"].values[1] == pytest.approx(psnr)
        expected = np.mean([colourfulness(np.ascontiguousarray(image)) for image in coloured])
        assert row.metrics["colourfulness"].values[1] == pytest.approx(expected)
        assert 0 < row.metrics["delta_e"].values[1] < 100
    grey = np.rint(truth.mean(-1, keepdims=True)).astype(np.uint8).repeat(3, -1)
    assert result.grey_psnr == pytest.approx(peak_signal_noise_ratio(truth, grey, data_range=255))
    expected = [colourfulness(np.ascontiguousarray(image)) for image in truth]
    assert result.truth_colourfulness == pytest.approx(np.mean(expected))


def test_sweep_json_round_trip(result: SweepResult) -> None:
    assert read_sweep(result.folder) == result
    written = json.loads((result.folder / "sweep.json").read_text())
    loss = written["equal_epochs"][1]["metrics"]["test_loss"]
    stats = result.equal_epochs[1].metrics["test_loss"]
    assert loss == {"mean": stats.mean, "spread": stats.std, "each": list(stats.values)}
    assert written["equal_steps"][0]["runs"] == ["batch-size-4-steps6-seed0", "batch-size-4-steps6-seed1"]


def test_csv_holds_the_same_values(result: SweepResult) -> None:
    with (result.folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["comparison"], row["batch-size"]) for row in rows] == [
        ("equal epochs", "4"),
        ("equal epochs", "9"),
        ("equal steps", "4"),
        ("equal steps", "9"),
    ]
    for written, row in zip(rows, (*result.equal_epochs, *result.equal_steps), strict=True):
        assert float(written["test_loss"]) == row.metrics["test_loss"].mean
        assert float(written["psnr_spread"]) == row.metrics["psnr"].std
        assert (written["updates"], written["seeds"]) == (str(row.steps), "0 1")


def test_curves_have_one_colour_per_value(result: SweepResult) -> None:
    with Image.open(result.curves_path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (760, 1600, 3)  # 3.8 × 8 inches at 200 dpi
    for position in (0.0, 0.9):
        colour = np.rint(np.array(colormaps["viridis"](position)[:3]) * 255)
        for half in (pixels[:, :800], pixels[:, 800:]):
            assert (np.abs(half - colour) <= 1).all(-1).sum() > 100


def test_sample_figure_has_one_row_per_value(result: SweepResult) -> None:
    with Image.open(result.samples_path) as image:
        # Grey, truth and two values; three test images of 1 inch, 1.6 inches for the labels, 150 dpi.
        assert image.size[0] == round(150 * (3 + 1.6))
        assert abs(image.size[1] - 150 * (1.02 * 4 + 0.5)) <= 1


def test_sweep_is_found_without_its_runs(result: SweepResult) -> None:
    run_index = find_runs([result.folder])
    assert run_index.sweeps == [result.folder]
    assert not run_index.colour


def test_finished_runs_are_skipped(result: SweepResult, folder: Path, photos: str, messages: list[str]) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}
    messages.clear()
    assert run_sweep(folder, photos) == result
    assert len(before) == 12
    assert len(messages) == 6
    assert all("already finished, skipping" in message for message in messages)
    assert {path: path.read_bytes() for path in folder.glob("*/*.safetensors")} == before


def test_interrupted_sweep_in_a_moved_folder_is_resumed(
    result: SweepResult, folder: Path, photos: str, tmp_path: Path, messages: list[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "batch-size-4-seed1" / "summary.json").unlink()
    shutil.rmtree(copy / "batch-size-4-steps6-seed0")
    messages.clear()
    again = run_sweep(copy, photos)
    assert sum("already finished, skipping" in message for message in messages) == 4
    assert f"{copy / 'batch-size-4-seed1'}: resuming" in messages
    assert f"{copy / 'batch-size-4-steps6-seed0'}: training" in messages
    for name in ("test_loss", "psnr"):
        for row, first in zip(
            again.equal_epochs + again.equal_steps, result.equal_epochs + result.equal_steps, strict=True
        ):
            assert row.metrics[name] == first.metrics[name]


def test_added_values_reuse_existing_runs(
    result: SweepResult, folder: Path, photos: str, tmp_path: Path, messages: list[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    messages.clear()
    more = run_sweep(copy, photos, values=(27, 4, 9), seeds=(0,), steps=4)
    assert [row.steps for row in more.equal_epochs] == [14, 6, 2]
    assert [row.steps for row in more.equal_steps] == [4, 4, 4]
    assert [row.epochs for row in more.equal_steps] == [1, 2, 4]
    assert [str(row.runs[0]) for row in more.equal_steps][2] == "batch-size-27-steps4-seed0"
    assert sum("already finished, skipping" in message for message in messages) == 2
    assert more.equal_epochs[0].metrics["test_loss"].std is None


def test_sweep_over_palette_sizes(photos: str, tmp_path: Path, messages: list[str]) -> None:
    result = run_sweep(tmp_path, photos, parameter="colours", values=(4, 2), seeds=(0,), palette="auto", epochs=1)
    assert result.equal_steps == ()
    assert (result.parameter, result.palette) == ("colours", "fitted")
    for row, count in zip(result.equal_epochs, (2, 4), strict=True):
        folder = tmp_path / row.runs[0]
        assert folder.name == f"colours-{count}-seed0"
        assert RunDir(folder).load_config(TrainConfig).palette == f"fitted:{count}"
        palette = load_palette(folder / "palette.json")
        assert len(palette) == len(load_palette_model(folder).palette) == count
        assert load_inputs(RunDir(folder).load_config(TrainConfig), folder).data.test.labels.max() < count
    messages.clear()
    run_sweep(tmp_path, photos, parameter="colours", values=(4, 2), seeds=(0,), palette="auto", epochs=1)
    assert all("already finished, skipping" in message for message in messages)


@pytest.mark.parametrize(
    ("parameter", "values", "size_changes"),
    [("kernel", (1, 3), True), ("filters", (4, 8), True), ("learning-rate", (1e-3, 0.01), False)],
)
def test_other_parameters(photos: str, tmp_path: Path, parameter: str, values: tuple, size_changes: bool) -> None:
    result = run_sweep(tmp_path, photos, parameter=parameter, values=values, seeds=(3,), epochs=1)
    assert result.equal_steps == ()
    assert [row.value for row in result.equal_epochs] == list(values)
    small, large = result.equal_epochs
    assert (small.parameters < large.parameters) is size_changes
    assert small.metrics["test_loss"] != large.metrics["test_loss"]
    assert large.runs == (Path(f"{parameter}-{values[1]}-seed3"),)
    assert read_sweep(tmp_path) == result
    assert result.curves_path.is_file()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epochs": 3}, "contains a run with other settings"),
        ({"recipe": "default"}, "contains a run with other settings"),
        ({"values": (4, 4)}, "--over batch-size=4,4: expected two or more different integers above 0"),
        ({"values": (4,)}, "--over batch-size=4: expected two or more different integers above 0"),
        ({"values": (0, 4)}, "--over batch-size=0,4: expected two or more different integers above 0"),
        ({"values": (4, 8.5)}, "--over batch-size=4,8.5: expected two or more different integers"),
        (
            {"parameter": "learning-rate", "values": (0.1, float("inf"))},
            "--over learning-rate=0.1,inf: expected two or more different numbers",
        ),
        (
            {"parameter": "colours", "values": (1, 4), "palette": "auto"},
            "--over colours=1,4: expected two or more different integers from 2 to 256",
        ),
        ({"parameter": "colours"}, "--palette horse24: a sweep over colours fits a palette for each value"),
        ({"parameter": "size"}, "--over: unknown parameter 'size'"),
        ({"parameter": "kernel", "values": (3, 40)}, "kernel 40"),
        ({"seeds": ()}, "--seeds: .* is empty"),
        ({"seeds": (1, 1)}, "--seeds: .* has duplicate values"),
        ({"steps": 0}, "--steps 0: expected at least 1"),
        ({"parameter": "kernel", "steps": 5}, "--steps 5: all values of kernel take the same number"),
    ],
)
def test_invalid_arguments_are_rejected_before_training(
    result: SweepResult, folder: Path, photos: str, changes: dict, error: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UsageError, match=error):
        run_sweep(folder, photos, **changes)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_runs_with_different_palettes_are_rejected(
    result: SweepResult, folder: Path, photos: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    summary = copy / "batch-size-9-seed1" / "summary.json"
    summary.write_text(summary.read_text().replace('"horse24"', '"course"'))
    with pytest.raises(
        UsageError, match=r"batch-size-9-seed1: uses palette course, but .*batch-size-4-seed0 uses horse"
    ):
        run_sweep(copy, photos)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("batch-size=32,64", ("batch-size", (32, 64))),
        ("learning-rate=1e-3,0.01", ("learning-rate", (1e-3, 0.01))),
        ("colours=256,2", ("colours", (256, 2))),
    ],
)
def test_parse_sweep_option(text: str, parsed: tuple) -> None:
    assert parse_sweep(text) == parsed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("batch-size", "--over batch-size: expected two or more different integers above 0, such as batch-size=2,4"),
        ("batch-size=32,x", "--over batch-size=32,x: expected two or more different integers"),
        ("kernel=3.0,5", "--over kernel=3.0,5: expected two or more different integers"),
        ("learning-rate=fast,1", "--over learning-rate=fast,1: expected two or more different numbers above 0"),
        ("learning-rate=nan,1", "--over learning-rate=nan,1: expected two or more different numbers above 0"),
        ("learning-rate=1e-3,0.001", "--over learning-rate=1e-3,0.001: expected two or more different numbers"),
        ("filters=-1,2", "--over filters=-1,2: expected two or more different integers above 0"),
        ("", f"--over: unknown parameter ''; expected PARAMETER=V1,V2,... with one of {', '.join(SWEEP_PARAMETERS)}"),
    ],
)
def test_parse_invalid_sweep_option_raises(text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sweep(text)
    assert error in str(caught.value)
