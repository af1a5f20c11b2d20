"""Output and figures of a colourisation run during training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.colour.chroma.bins import ChromaBins
from chromabox.colour.data.datasets import ColourDataset, encode_images
from chromabox.colour.data.photos import PhotoDataset
from chromabox.colour.models import build_model
from chromabox.colour.palette.io import load_palette
from chromabox.colour.training.train import TrainInputs
from chromabox.engine.checkpoint import write_json
from chromabox.report.training import log_metrics, photo_sample_callback, plot_run, sample_callback

HORSE24 = load_palette("horse24")


@pytest.fixture
def inputs() -> TrainInputs:
    rgb = np.random.default_rng(1).integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)
    return TrainInputs(HORSE24, ColourDataset(encode_images(rgb, HORSE24), encode_images(rgb, HORSE24)))


def test_every_epoch_is_logged_with_a_sample_sheet(tmp_path: Path, inputs: TrainInputs, messages: list[str]) -> None:
    draw = sample_callback(tmp_path, inputs)
    model = build_model("unet", num_filters=4)
    for epoch in (1, 12):
        record = {"epoch": epoch, "train_loss": 2.34567, "test_accuracy": 0.5}
        draw(record, model)
        log_metrics(record, model)
    assert messages == [f"epoch {epoch}, train_loss 2.346, test_accuracy 0.5" for epoch in (1, 12)]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["epoch-001.png", "epoch-012.png"]
    with Image.open(tmp_path / "sheets" / "epoch-001.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    # Three rows of ten tiles of 16 pixels, enlarged three times, with gaps of 2.
    assert sheet.shape == (3 * 50 + 2, 10 * 50 + 2, 3)
    for column in range(10):
        truth = inputs.data.test.rgb[column].transpose(1, 2, 0)
        left = 2 + 50 * column
        np.testing.assert_array_equal(sheet[52:100:3, left : left + 48 : 3], truth)
        grey = np.rint(truth.astype(float).mean(-1))
        np.testing.assert_array_equal(sheet[2:50:3, left : left + 48 : 3], np.repeat(grey[..., None], 3, -1))
        predicted = {tuple(colour) for colour in sheet[102:150:3, left : left + 48 : 3].reshape(-1, 3).tolist()}
        assert predicted <= {tuple(colour) for colour in HORSE24.rgb.tolist()}


def test_chroma_bins_are_read_once(tmp_path: Path) -> None:
    centres = np.array([[a, b] for a in (-20, 0, 20) for b in (-20, 0, 20)], np.float32)
    bins = ChromaBins(centres, np.full(9, 1 / 9, np.float32), 20.0)
    photo = np.random.default_rng(1).integers(0, 256, (128, 150, 3), dtype=np.uint8)
    draw = photo_sample_callback(tmp_path, PhotoDataset([], [photo, photo[:100]]))
    write_json(tmp_path / "bins.json", bins.as_json())  # Training writes the file after the callback is created.
    model = build_model("photo", num_colours=9, widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1)).eval()
    draw({"epoch": 1}, model)
    (tmp_path / "bins.json").unlink()
    draw({"epoch": 2}, model)
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["epoch-001.png", "epoch-002.png"]


def test_curves_of_incomplete_metrics(tmp_path: Path) -> None:
    path = plot_run(tmp_path)
    assert path == tmp_path / "curves.png"
    assert not path.exists()
    config = {"format": 2, "model": "unet", "recipe_name": "quick", "data": "cifar10:horse", "seed": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    record = {"epoch": 1, "train_loss": 2.0, "train_accuracy": 0.1, "test_loss": 2.1, "test_accuracy": 0.2}
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps(record) + '\n{"epoch": 2, "tra'
    )  # an incomplete line after a crash
    with Image.open(plot_run(tmp_path)) as image:
        image.load()
        assert image.size == (1080, 432)
