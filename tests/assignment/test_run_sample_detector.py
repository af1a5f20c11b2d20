"""The demonstration's detector, on a set of noise so that nothing is fetched; the real one is what make demo runs."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chromabox.assignment import run as module
from chromabox.assignment.run import train_sample_detector
from chromabox.detect.data.synthetic import Objects, make_synthetic_dataset
from chromabox.detect.weights.load import load_detector
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import ChromaboxError

FAST = RuntimeOptions(precision="float32", channels_last="off", threads=1)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights to be had, and things that are drawn instead of CIFAR-10's."""
    draw = np.random.default_rng(0)
    things = Objects(draw.integers(0, 256, (40, 3, 32, 32), np.uint8), np.arange(40) % 4)
    counts = {"train": 4, "val": 3, "test": 1}

    def refuse(name: str) -> Path:
        raise ChromaboxError(f"{name}: no source has it")

    monkeypatch.setattr(module, "download_pretrained", refuse)
    monkeypatch.setattr(module, "SAMPLE_SPLITS", counts)
    monkeypatch.setattr(module, "SAMPLE_IMAGE_SIZE", 96)
    monkeypatch.setattr(
        module, "make_synthetic_dataset", partial(make_synthetic_dataset, objects=dict.fromkeys(counts, things))
    )


@pytest.mark.usefixtures("offline")
def test_without_weights_it_says_so_and_trains_everything(tmp_path: Path) -> None:
    said: list[str] = []
    run = train_sample_detector(tmp_path, said.append, options=FAST, epochs=1)
    assert run == tmp_path / "run"
    assert any(line.startswith("no trained weights can be had (yolov3-tiny: no source has it); ") for line in said)
    assert any(line.startswith("nothing frozen") for line in said)
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["frozen"]["layers"], summary["epochs"], summary["size"]) == (0, 1, 96)
    assert load_detector(run).classes == ("airplane", "horse", "frog", "ship")
    assert (run / "sheet.png").is_file()
    assert not (run / "best.onnx").exists()
    before = (run / "metrics.jsonl").read_bytes()
    said.clear()
    assert train_sample_detector(tmp_path, said.append, options=FAST, epochs=1) == run
    assert said == [f"{run}: already finished, skipping"]
    # A run that was stopped before its end is gone on with, not begun anew.
    (run / "summary.json").unlink()
    train_sample_detector(tmp_path, said.append, options=FAST, epochs=1)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert (run / "summary.json").is_file()
