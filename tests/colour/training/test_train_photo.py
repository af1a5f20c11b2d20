"""Training the photo net on pieces of scikit-image's photographs: what a run leaves, and that stopping changes nothing.

A run that is stopped and gone on with is compared with one that was not: every parameter and statistic bit for bit.
The loss is checked against PyTorch's own cross-entropy with probabilities as targets.
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
from torch.nn import functional as F

from chromabox.colour.chroma.bins import ChromaBins, fit_bins
from chromabox.colour.chroma.lab import rgb_to_lab
from chromabox.colour.data.photos import PhotoDataset, center_crop, load_photos
from chromabox.colour.training.recipes import make_photo_recipe
from chromabox.colour.training.train_photo import (
    MAX_PSNR,
    PhotoConfig,
    decode_chroma,
    decode_predictions,
    init_model,
    photo_sample_grid,
    read_photo_config,
    soft_cross_entropy,
    train_photo,
    validate_photo,
)
from chromabox.colour.weights.checkpoint import PhotoModel, load_model
from chromabox.engine.autotune import RuntimeConfig
from chromabox.engine.checkpoint import load_checkpoint
from chromabox.engine.logger import read_metrics
from chromabox.engine.trainer import TrainingInterrupted
from chromabox.errors import ChromaboxError, UsageError

PLAIN = RuntimeConfig(device="cpu", precision="float32", compile=False, channels_last=False, threads=1)
SMALL = {"widths": (8, 12, 16), "blocks": (1, 1, 1)}


def quiet(line: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen pieces of three photographs, 128 pixels and more."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number, photograph in enumerate((astronaut(), chelsea(), coffee())):
        for piece in range(5 if number == 0 else 4):
            top, left = 30 * piece, 60 * piece
            part = photograph[top : top + 160, left : left + 200]
            Image.fromarray(part).save(folder / f"{number}{piece}.png")
    return folder


def configuration(photos: Path, **settings: object) -> PhotoConfig:
    recipe = make_photo_recipe("quick", epochs=2, batch_size=4)
    given = {"init": "none", "size": 64, "model_args": SMALL, "runtime": PLAIN, **settings}
    return PhotoConfig(recipe_name="quick", recipe=recipe, data=str(photos), **given)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train_photo(configuration(photos), folder, log=quiet)
    return folder


def tensors_of(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state by its place in it."""
    if isinstance(state, torch.Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {place: found for key, value in items for place, found in tensors_of(value, f"{name}.{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Nets, averages, optimisers and random state bit for bit, descriptions, and every metric but the seconds."""
    loaded = [load_checkpoint(run / "last.safetensors") for run in (first, second)]
    one, other = (tensors_of(state) for state, _ in loaded)
    assert one.keys() == other.keys()
    assert len(one) > 100
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert [{**description, "seconds": 0} for _, description in loaded[:1]] == [{**loaded[1][1], "seconds": 0}]
    records = [[{**record, "seconds": 0} for record in read_metrics(run)] for run in (first, second)]
    assert records[0] == records[1]


def interrupt(record: dict, *rest: object) -> None:
    """As Ctrl-C at the end of the first epoch does; obeyed after the next batch."""
    if record["epoch"] == 1:
        signal.raise_signal(signal.SIGINT)


def test_a_run_folder_holds_all_that_is_promised(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {
        *("config.json", "metrics.jsonl", "metrics.csv", "summary.json", "bins.json"),
        *("best.safetensors", "best.json", "last.safetensors", "last.json"),
    } <= names
    assert not [name for name in names if name.endswith(".part")]
    records = read_metrics(finished)
    assert [record["epoch"] for record in records] == [1, 2]
    for record in records:
        assert {"train_loss", "val_loss", "val_psnr_gain", "val_delta_e_cut", "val_colourfulness"} <= record.keys()
        assert all(math.isfinite(value) for value in record.values())


def test_the_summary_is_the_best_epochs(finished: Path, photos: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    records = read_metrics(finished)
    best = int(np.argmin([record["val_loss"] for record in records]))
    trained = load_model(finished)
    assert isinstance(trained, PhotoModel)
    assert summary["best_epoch"] == best + 1 == trained.metadata["epoch"]
    assert (summary["start"], summary["seed"], summary["epochs"]) == ("none", 0, 2)
    assert summary["bins"] == len(trained.bins)
    assert summary["parameters"] == sum(parameter.numel() for parameter in trained.network.parameters())
    val = [center_crop(picture) for picture in load_photos(photos, quiet).val]
    measured = validate_photo(trained.network, trained.bins, val, 64)
    assert measured == pytest.approx({name: summary[name] for name in measured}, rel=1e-4, abs=1e-5)
    assert measured == pytest.approx({name: records[best][name] for name in measured}, rel=1e-4, abs=1e-5)


def test_the_bins_are_those_of_the_training_pictures(finished: Path, photos: Path) -> None:
    stored = ChromaBins.from_json(json.loads((finished / "bins.json").read_text()))
    pictures = load_photos(photos, quiet).train
    lab = [rgb_to_lab(torch.from_numpy(picture[::4, ::4].copy())[None])[0, 1:].flatten(1) for picture in pictures]
    expected = fit_bins(lab, 10.0)
    np.testing.assert_array_equal(stored.centres, expected.centres)
    np.testing.assert_allclose(stored.frequencies, expected.frequencies, rtol=1e-5)
    np.testing.assert_array_equal(load_model(finished).bins.centres, expected.centres)


def test_a_net_begins_by_saying_the_frequencies(photos: Path) -> None:
    torch.manual_seed(0)
    photographs = load_photos(photos, quiet)
    begun = init_model(configuration(photos), photographs, None)
    assert (begun.init, begun.model.frozen) == ("none", 0)
    with torch.no_grad():
        said = begun.model.eval()(torch.rand(1, 1, 64, 64)).softmax(1).mean((0, 2, 3)).numpy()
    expected = begun.bins.frequencies / begun.bins.frequencies.sum()
    np.testing.assert_allclose(np.log(said), np.log(expected), atol=0.5)


def test_interrupted_and_resumed_is_as_in_a_row(photos: Path, finished: Path, tmp_path: Path) -> None:
    halved = tmp_path / "halved"
    with pytest.raises(TrainingInterrupted, match=f"--resume {halved}"):
        train_photo(configuration(photos), halved, log=quiet, on_epoch_end=interrupt)
    assert [record["epoch"] for record in read_metrics(halved)] == [1]
    assert not (halved / "summary.json").exists()
    config = read_photo_config(halved)
    assert config is not None
    train_photo(config, halved, resume=True, log=quiet)
    assert_same_run(finished, halved)


def test_fine_tuning_goes_on_from_a_checkpoint_with_its_bins(photos: Path, finished: Path, tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    first = tmp_path / "first.safetensors"
    shutil.copy(finished / "best.safetensors", first)
    recipe = make_photo_recipe("quick", epochs=2, batch_size=4, finetune=True)
    config = configuration(photos, init=str(first), bin_spacing=25.0)
    config = replace(config, recipe=recipe)
    train_photo(config, whole, log=quiet)
    began, tuned = load_model(first), load_model(whole)
    assert isinstance(began, PhotoModel)
    assert isinstance(tuned, PhotoModel)
    np.testing.assert_array_equal(tuned.bins.centres, began.bins.centres)
    assert tuned.metadata["start"] == str(first)
    pairs = list(zip(began.network.parameters(), tuned.network.parameters(), strict=True))
    moved = sum((one - other).square().sum().item() for one, other in pairs) ** 0.5
    size = sum(one.square().sum().item() for one, _ in pairs) ** 0.5
    assert 0 < moved < 0.1 * size
    with pytest.raises(TrainingInterrupted):
        train_photo(config, halved, log=quiet, on_epoch_end=interrupt)
    first.unlink()  # a run that goes on needs nothing from outside its folder but the pictures
    again = read_photo_config(halved)
    assert again is not None
    train_photo(again, halved, resume=True, log=quiet)
    assert_same_run(whole, halved)


def test_frozen_layers_stay_bit_for_bit(photos: Path, finished: Path, tmp_path: Path) -> None:
    state, description = load_checkpoint(finished / "best.safetensors")
    from chromabox.engine.checkpoint import save_checkpoint

    description["settings"] = {**description["settings"], "frozen": 3}
    save_checkpoint(tmp_path / "frozen.safetensors", state, description)
    config = configuration(photos, init=str(tmp_path / "frozen.safetensors"))
    train_photo(replace(config, recipe=replace(config.recipe, epochs=1)), tmp_path / "run", log=quiet)
    after, told = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert told["settings"]["frozen"] == 3
    kept = {name for name in after["net"] if name.startswith(("encode.0.", "encode.1.", "encode.2."))}
    same = {name for name, value in after["net"].items() if torch.equal(value, state["net"][name])}
    assert kept <= same
    assert not [name for name in same if name.startswith("encode.3.")]


def test_training_learns(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos)
    config = replace(config, recipe=replace(config.recipe, epochs=6))
    train_photo(config, tmp_path, log=quiet)
    losses = [record["train_loss"] for record in read_metrics(tmp_path)]
    assert losses[-1] < 0.95 * losses[0]


def test_patience_and_accumulation_are_passed_on(photos: Path, tmp_path: Path) -> None:
    config = configuration(photos, accumulate=2, patience=1)
    # With this learning rate the loss cannot fall for twenty epochs on end.
    config = replace(config, recipe=replace(config.recipe, epochs=20, lr=20.0, schedule="constant"))
    summary = train_photo(config, tmp_path, log=quiet)
    losses = [record["val_loss"] for record in read_metrics(tmp_path)]
    assert summary["epochs"] == len(losses) < 20
    assert losses[-1] >= min(losses[:-1])


GRID = ChromaBins(
    np.array([[a, b] for a in (-20, 0, 20) for b in (-20, 0, 20)], np.float32), np.full(9, 1 / 9, np.float32), 20.0
)


def test_the_loss_is_cross_entropy_with_soft_targets() -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 9, 3, 4, generator=random) * 3
    chroma = torch.rand(2, 2, 3, 4, generator=random) * 40 - 20
    hats = (1 - (chroma[:, None] / 20 - torch.from_numpy(GRID.centres / 20)[:, :, None, None]).abs()).clamp(min=0)
    expected = F.cross_entropy(scores, hats.prod(2))
    torch.testing.assert_close(soft_cross_entropy(scores, chroma, GRID), expected, atol=1e-3, rtol=1e-3)


class Sees(torch.nn.Module):
    """A net that says what it was told to say."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, lightness: torch.Tensor) -> torch.Tensor:
        return self.scores[: len(lightness)]


def flat(red: int, green: int, blue: int) -> np.ndarray:
    """A square in one colour."""
    return np.full((128, 128, 3), (red, green, blue), np.uint8)


def test_a_net_that_only_knows_grey_gains_nothing() -> None:
    says_grey = torch.full((1, 9, 8, 8), -1e3)
    says_grey[:, 4] = 1e3
    squares = [np.ascontiguousarray(astronaut()[:128, 128:256])]
    measured = validate_photo(Sees(says_grey), GRID, squares, 64)
    assert measured["val_psnr_gain"] == pytest.approx(0, abs=1e-6)
    assert measured["val_delta_e_cut"] == pytest.approx(0, abs=1e-6)
    assert measured["val_colourfulness"] < 0.05


def test_an_exactly_right_net_gains_a_finite_number() -> None:
    # A square of one colour that lies on a bin, found exactly.
    square = decode_chroma(torch.full((1, 2, 1, 1), 20.0), [flat(120, 120, 120)])[0]
    says_it = torch.full((1, 9, 8, 8), -1e3)
    says_it[:, 8] = 1e3
    measured = validate_photo(Sees(says_it), GRID, [square], 64)
    assert 20 < measured["val_psnr_gain"] < MAX_PSNR
    assert measured["val_delta_e_cut"] > 0.9
    assert measured["val_colourfulness"] == pytest.approx(1, abs=0.05)


def test_decoding_keeps_the_lightness() -> None:
    square = np.ascontiguousarray(chelsea()[80:208, 100:228])
    scores = torch.zeros(1, 9, 8, 8)
    [coloured] = decode_predictions(scores, GRID, [square])  # equally likely bins: their mean is grey
    lab = rgb_to_lab(torch.from_numpy(np.stack([coloured, square])))
    torch.testing.assert_close(lab[0, 0], lab[1, 0], atol=0.5, rtol=0)
    assert np.ptp(coloured.astype(int), axis=2).max() <= 1


def test_a_sheet_has_rows_of_three(finished: Path, photos: Path) -> None:
    trained = load_model(finished)
    pictures = load_photos(photos, quiet).train
    rows = photo_sample_grid(trained.network, trained.bins, pictures, size=64, num_images=2)
    assert [[tile.shape for tile in row] for row in rows] == [[(128, 128, 3)] * 3] * 2
    for (grey, truth, _), picture in zip(rows, pictures, strict=False):
        np.testing.assert_array_equal(truth, center_crop(picture))
        assert np.ptp(grey.astype(int), axis=2).max() <= 1


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"size": 60}, "needs a multiple of 32, at least 64"),
        ({"size": 32}, "needs a multiple of 32, at least 64"),
        ({"bin_spacing": 0.0}, "spacing is 0.0"),
        ({"bin_spacing": math.nan}, "spacing is nan"),
        ({"init": "no/such/run"}, "no/such/run: no such run folder or checkpoint"),
    ],
)
def test_nonsense_is_refused_before_a_folder_is_made(
    photos: Path, tmp_path: Path, settings: dict[str, object], error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        train_photo(configuration(photos, **settings), tmp_path / "run", log=quiet)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_another_kind_of_net_is_refused(photos: Path, tmp_path: Path) -> None:
    from chromabox.colour.models import build_model
    from chromabox.colour.palette.io import load_palette
    from chromabox.colour.weights.checkpoint import model_metadata
    from chromabox.engine.checkpoint import save_checkpoint

    palette = load_palette("horse24")
    net = build_model("unet", num_colours=24)
    described = model_metadata("unet", {"num_colours": 24}, palette)
    save_checkpoint(tmp_path / "unet.safetensors", {"net": net.state_dict()}, described)
    config = configuration(photos, init=str(tmp_path / "unet.safetensors"))
    with pytest.raises(UsageError, match="is a unet; fine-tuning needs a photo net"):
        init_model(config, PhotoDataset([], []), None)


def test_weights_that_nobody_has_are_only_missed_where_they_are_asked_for(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable() -> Path:
        raise ChromaboxError("cannot fetch yolov3-tiny.weights")

    monkeypatch.setattr("chromabox.colour.training.train_photo.load_yolov3_tiny", unreachable)
    photographs = load_photos(photos, quiet)
    assert init_model(configuration(photos, init="auto"), photographs, None).init == "none"
    with pytest.raises(ChromaboxError, match="cannot fetch"):
        init_model(configuration(photos, init="yolov3-tiny"), photographs, None)


def test_going_on_where_nothing_was_begun_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="no such run folder"):
        train_photo(configuration(photos), tmp_path, resume=True, log=quiet)


def test_the_configuration_comes_back(finished: Path, photos: Path, tmp_path: Path) -> None:
    config = read_photo_config(finished)
    assert config is not None
    assert replace(config, model_args={}) == replace(configuration(photos), model_args={})
    assert read_photo_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"net": "unet"}')
    assert read_photo_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"net": "photo", "versions": {}}')
    assert read_photo_config(tmp_path) is None
