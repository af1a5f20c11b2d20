"""Tests of the sample detector of the demonstration, on random objects instead of downloads."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chromabox.assignment import run as run_module
from chromabox.assignment.run import train_sample_detector
from chromabox.detect.data.synthetic import Objects, make_synthetic_dataset
from chromabox.detect.weights.load import load_detector
from chromabox.engine.options import RuntimeOptions
from chromabox.errors import ChromaboxError

FAST = RuntimeOptions(precision="float32", channels_last="off", threads=1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pretrained weights unavailable and replace the CIFAR-10 objects by random ones."""
    rng = np.random.default_rng(0)
    objects = Objects(rng.integers(0, 256, (40, 3, 32, 32), np.uint8), np.arange(40) % 4)
    counts = {"train": 4, "val": 3, "test": 1}

    def fail(name: str) -> Path:
        raise ChromaboxError(f"{name}: not available")

    monkeypatch.setattr(run_module, "download_pretrained", fail)
    monkeypatch.setattr(run_module, "SAMPLE_SPLITS", counts)
    monkeypatch.setattr(run_module, "SAMPLE_IMAGE_SIZE", 96)
    monkeypatch.setattr(
        run_module, "make_synthetic_dataset", partial(make_synthetic_dataset, objects=dict.fromkeys(counts, objects))
    )


@pytest.mark.usefixtures("offline")
def test_without_pretrained_weights_all_layers_are_trained(tmp_path: Path, messages: list[str]) -> None:
    run = train_sample_detector(tmp_path, options=FAST, epochs=1)
    assert run == tmp_path / "run"
    assert any(
        line.startswith("pretrained weights are not available (yolov3-tiny: not available); ") for line in messages
    )
    assert any(line.startswith("nothing frozen") for line in messages)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["frozen"]["layers"], summary["epochs"], summary["size"]) == (0, 1, 96)
    assert load_detector(run).classes == ("airplane", "horse", "frog", "ship")
    assert (run / "sheet.png").is_file()
    assert not (run / "best.onnx").exists()
    before = (run / "metrics.jsonl").read_bytes()
    messages.clear()
    assert train_sample_detector(tmp_path, options=FAST, epochs=1) == run
    assert messages == [f"{run}: already finished, skipping"]
    # An interrupted run is resumed, not started again.
    (run / "summary.json").unlink()
    train_sample_detector(tmp_path, options=FAST, epochs=1)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert (run / "summary.json").is_file()
