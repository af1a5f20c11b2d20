"""Sweeps of tiny runs: what is trained, what is shared and kept, and every number against numpy, torch and skimage."""

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
from chromabox.colour.training.train import load_inputs, read_config
from chromabox.colour.weights.checkpoint import load_palette_model
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import UsageError
from chromabox.experiments.runs import find_runs
from chromabox.experiments.sweep import SWEEP_PARAMETERS, parse_sweep, sweep
from chromabox.experiments.sweep_results import METRICS, SweepResult, SweepRow, read_sweep

OPTIONS = RuntimeOptions(precision="float32", compile="off", channels_last="off", threads=1, device="cpu")


def run(folder: Path, photos: str, say=lambda line: None, **changes: object) -> SweepResult:
    given = {"model": "conv-transpose", "recipe": "course", "parameter": "batch-size", "values": (9, 4), "seeds": (0, 1)}
    given |= {"data": photos, "palette": "horse24", "epochs": 2, "options": OPTIONS}
    return sweep(folder, **{**given, "log": say, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def result(folder: Path, photos: str) -> SweepResult:
    """27 pictures in batches of 4 and 9: 7 and 3 steps an epoch."""
    return run(folder, photos)


def summaries(result: SweepResult, row: SweepRow) -> list[dict]:
    return [json.loads((result.folder / run / "summary.json").read_text()) for run in row.runs]


def test_every_value_has_as_many_epochs_and_then_as_many_steps(result: SweepResult) -> None:
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
        ["batch-size-9-seed0", "batch-size-9-seed1"],  # which made six steps anyway
    ]
    made = {path.parent.name for path in result.folder.glob("*/summary.json")}
    assert made == {name for row in names for name in row}
    for row in (*result.equal_epochs, *result.equal_steps):
        configs = [read_config(result.folder / run) for run in row.runs]
        assert {config.recipe.batch_size for config in configs} == {row.value}
        assert [config.seed for config in configs] == [0, 1] == list(result.seeds)
        assert [summary["updates"] for summary in summaries(result, row)] == [row.steps] * 2


def test_numbers_are_means_and_sample_standard_deviations_of_the_runs(result: SweepResult) -> None:
    for row in (*result.equal_epochs, *result.equal_steps):
        assert row.metrics.keys() == METRICS.keys()
        for name in ("test_loss", "test_accuracy", "seconds"):
            each = np.array([summary[name] for summary in summaries(result, row)])
            assert row.metrics[name].values == tuple(each)
            assert row.metrics[name].mean == pytest.approx(each.mean())
            assert row.metrics[name].std == pytest.approx(each.std(ddof=1))
        an_epoch = np.array(row.metrics["seconds"].values) / row.steps * row.steps_per_epoch
        assert row.metrics["seconds_per_epoch"].values == pytest.approx(an_epoch)


def test_what_is_measured_again_agrees_with_other_libraries(result: SweepResult, photos: str) -> None:
    for row in (*result.equal_epochs, result.equal_steps[0]):
        trained = load_palette_model(result.folder / row.runs[1])
        data = load_colour_dataset(photos, trained.palette)
        with torch.no_grad():
            train = trained.network(data.train.grey[:3])  # as many as there are test pictures
            said = trained.network(data.test.grey).argmax(1).numpy()
        loss = torch.nn.functional.cross_entropy(train, data.train.labels[:3].long()).item()
        assert row.metrics["train_loss"].values[1] == pytest.approx(loss, rel=1e-5)
        hits = (train.argmax(1) == data.train.labels[:3]).float().mean().item()
        assert row.metrics["train_accuracy"].values[1] == pytest.approx(hits)
        coloured, truth = trained.palette.rgb[said], data.test.rgb.transpose(0, 2, 3, 1)
        psnr = peak_signal_noise_ratio(truth, coloured, data_range=255)
        assert row.metrics["psnr"].values[1] == pytest.approx(psnr)
        colourful = np.mean([colourfulness(np.ascontiguousarray(picture)) for picture in coloured])
        assert row.metrics["colourfulness"].values[1] == pytest.approx(colourful)
        assert 0 < row.metrics["delta_e"].values[1] < 100
    grey = np.rint(truth.mean(-1, keepdims=True)).astype(np.uint8).repeat(3, -1)
    assert result.grey_psnr == pytest.approx(peak_signal_noise_ratio(truth, grey, data_range=255))
    truths = [colourfulness(np.ascontiguousarray(picture)) for picture in truth]
    assert result.truth_colourfulness == pytest.approx(np.mean(truths))


def test_the_file_says_the_same(result: SweepResult) -> None:
    assert read_sweep(result.folder) == result
    written = json.loads((result.folder / "sweep.json").read_text())
    loss = written["equal_epochs"][1]["metrics"]["test_loss"]
    found = result.equal_epochs[1].metrics["test_loss"]
    assert loss == {"mean": found.mean, "spread": found.std, "each": list(found.values)}
    assert written["equal_steps"][0]["runs"] == ["batch-size-4-steps6-seed0", "batch-size-4-steps6-seed1"]


def test_the_csv_says_the_same(result: SweepResult) -> None:
    with result.csv_path.open(newline="", encoding="utf-8") as file:
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


def test_the_curves_have_a_colour_for_each_value(result: SweepResult) -> None:
    with Image.open(result.curves_path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (760, 1600, 3)  # 3.8 × 8 inches of 200 dots
    for place in (0.0, 0.9):
        colour = np.rint(np.array(colormaps["viridis"](place)[:3]) * 255)
        for half in (pixels[:, :800], pixels[:, 800:]):
            assert (np.abs(half - colour) <= 1).all(-1).sum() > 100


def test_the_sheet_has_a_row_for_each_value(result: SweepResult) -> None:
    with Image.open(result.samples_path) as image:
        # Grey, truth and two values; three test pictures of an inch and 1.6 for the labels, 150 dots an inch.
        assert image.size[0] == round(150 * (3 + 1.6))
        assert abs(image.size[1] - 150 * (1.02 * 4 + 0.5)) <= 1


def test_a_sweep_is_found_as_one_and_its_runs_are_not(result: SweepResult) -> None:
    found = find_runs([result.folder])
    assert found.sweeps == [result.folder]
    assert not found.colour


def test_finished_runs_are_taken_as_they_are(result: SweepResult, folder: Path, photos: str) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*/*.safetensors")}
    said: list[str] = []
    assert run(folder, photos, said.append) == result
    assert len(before) == 12
    assert len(said) == 6
    assert all("taken as it is" in line for line in said)
    assert {path: path.read_bytes() for path in folder.glob("*/*.safetensors")} == before


def test_a_sweep_that_was_moved_and_stopped_goes_on(
    result: SweepResult, folder: Path, photos: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "batch-size-4-seed1" / "summary.json").unlink()
    shutil.rmtree(copy / "batch-size-4-steps6-seed0")
    said: list[str] = []
    again = run(copy, photos, said.append)
    assert sum("taken as it is" in line for line in said) == 4
    assert f"{copy / 'batch-size-4-seed1'}: going on" in said
    assert f"{copy / 'batch-size-4-steps6-seed0'}: training" in said
    for name in ("test_loss", "psnr"):
        for rows in zip(again.equal_epochs + again.equal_steps, result.equal_epochs + result.equal_steps, strict=True):
            assert rows[0].metrics[name] == rows[1].metrics[name]


def test_more_values_keep_the_runs_there_are(result: SweepResult, folder: Path, photos: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    said: list[str] = []
    more = run(copy, photos, said.append, values=(27, 4, 9), seeds=(0,), steps=4)
    assert [row.steps for row in more.equal_epochs] == [14, 6, 2]
    assert [row.steps for row in more.equal_steps] == [4, 4, 4]
    assert [row.epochs for row in more.equal_steps] == [1, 2, 4]
    assert [str(row.runs[0]) for row in more.equal_steps][2] == "batch-size-27-steps4-seed0"
    assert sum("taken as it is" in line for line in said) == 2
    assert more.equal_epochs[0].metrics["test_loss"].std is None


def test_palettes_of_several_sizes(photos: str, tmp_path: Path) -> None:
    found = run(tmp_path, photos, parameter="colours", values=(4, 2), seeds=(0,), palette="auto", epochs=1)
    assert found.equal_steps == ()
    assert (found.parameter, found.palette) == ("colours", "fitted")
    for row, count in zip(found.equal_epochs, (2, 4), strict=True):
        folder = tmp_path / row.runs[0]
        assert folder.name == f"colours-{count}-seed0"
        assert read_config(folder).palette == f"fitted:{count}"
        palette = load_palette(folder / "palette.json")
        assert len(palette) == len(load_palette_model(folder).palette) == count
        assert load_inputs(read_config(folder), folder).data.test.labels.max() < count
    said: list[str] = []
    run(tmp_path, photos, said.append, parameter="colours", values=(4, 2), seeds=(0,), palette="auto", epochs=1)
    assert all("taken as it is" in line for line in said)


@pytest.mark.parametrize(
    ("over", "values", "parameters"),
    [("kernel", (1, 3), True), ("filters", (4, 8), True), ("learning-rate", (1e-3, 0.01), False)],
)
def test_other_quantities(photos: str, tmp_path: Path, over: str, values: tuple, parameters: bool) -> None:
    found = run(tmp_path, photos, parameter=over, values=values, seeds=(3,), epochs=1)
    assert found.equal_steps == ()
    assert [row.value for row in found.equal_epochs] == list(values)
    small, large = found.equal_epochs
    assert (small.parameters < large.parameters) is parameters
    assert small.metrics["test_loss"] != large.metrics["test_loss"]
    assert large.runs == (Path(f"{over}-{values[1]}-seed3"),)
    assert read_sweep(tmp_path) == found
    assert found.curves_path.is_file()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"epochs": 3}, "holds a run with other settings"),
        ({"recipe": "default"}, "holds a run with other settings"),
        ({"values": (4, 4)}, "over batch-size: 4 stands there twice"),
        ({"values": (4,)}, "over batch-size: 1 value; give at least two"),
        ({"values": (0, 4)}, "over batch-size: 0 is not possible; give whole numbers above 0"),
        ({"values": (4, 8.5)}, "over batch-size: 8.5 is not possible"),
        ({"over": "learning-rate", "values": (0.1, float("inf"))}, "over learning-rate: inf is not possible"),
        ({"over": "colours", "values": (1, 4), "palette": "auto"}, "a palette has 2 to 256"),
        ({"over": "colours"}, "palette horse24: a sweep over colours fits palettes of its own"),
        ({"over": "size"}, "over 'size': unknown"),
        ({"over": "kernel", "values": (3, 40)}, "kernel 40"),
        ({"seeds": ()}, "seeds: .* holds none"),
        ({"seeds": (1, 1)}, "seeds: .* holds one twice"),
        ({"steps": 0}, "steps is 0: give at least 1"),
        ({"over": "kernel", "steps": 5}, "steps is 5: leave it out"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    result: SweepResult, folder: Path, photos: str, changes: dict, error: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UsageError, match=error):
        run(folder, photos, **changes)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_runs_on_another_palette_are_refused(result: SweepResult, folder: Path, photos: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    summary = copy / "batch-size-9-seed1" / "summary.json"
    summary.write_text(summary.read_text().replace('"horse24"', '"course"'))
    with pytest.raises(UsageError, match=r"batch-size-9-seed1: has palette course, but .*batch-size-4-seed0 has horse"):
        run(copy, photos)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("batch-size=32,64", ("batch-size", (32, 64))),
        ("learning-rate=1e-3,0.01", ("learning-rate", (1e-3, 0.01))),
        ("colours=256,2", ("colours", (256, 2))),
    ],
)
def test_over_is_read(text: str, parsed: tuple) -> None:
    assert parse_sweep(text) == parsed


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("batch-size", "'' is not a whole number; write for example batch-size=1,2,3"),
        ("batch-size=32,x", "'x' is not a whole number"),
        ("kernel=3.0,5", "'3.0' is not a whole number"),
        ("learning-rate=fast,1", "'fast' is not a number"),
        ("learning-rate=nan,1", "nan is not possible; give numbers above 0"),
        ("learning-rate=1e-3,0.001", "0.001 stands there twice"),
        ("filters=-1,2", "-1 is not possible"),
        ("", f"over '': unknown; write NAME=VALUE,VALUE,… with one of {', '.join(SWEEP_PARAMETERS)}"),
    ],
)
def test_over_that_cannot_be_read_is_refused(text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sweep(text)
    assert error in str(caught.value)
