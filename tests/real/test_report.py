"""A write-up of real, if short, runs of every part: nothing is missing, and its numbers are those of the runs."""

import json
from pathlib import Path

import pytest

from chromabox.assignment.run import train_sample_detector
from chromabox.assignment.write_up import ReportFiles, write_report
from chromabox.colour.training.recipes import PALETTE_MODELS
from chromabox.engine.runtime_options import RuntimeOptions
from chromabox.errors import ChromaboxError
from chromabox.experiments.compare import compare
from chromabox.experiments.runs import read_summary
from chromabox.experiments.sweep import sweep
from chromabox.io.cifar10 import load_cifar10

DATA, PLAIN = "cifar10:horse", RuntimeOptions(compile="off", threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nets, two batch sizes and a detector, an epoch each."""
    try:
        load_cifar10("test", ("horse",))
    except ChromaboxError as error:
        pytest.skip(f"THE REAL CIFAR-10 CANNOT BE REACHED, SO NO REAL RUN IS WRITTEN UP: {error}")
    folder = tmp_path_factory.mktemp("runs")
    about = {"data": DATA, "palette": "horse24", "recipe": "quick", "epochs": 1, "options": PLAIN, "log": str}
    compare(folder / "nets", models=PALETTE_MODELS[:3], seeds=(0,), **about)
    sweep(folder / "sizes", model="conv-transpose", parameter="batch-size", values=(128, 512), seeds=(0,), **about)
    train_sample_detector(folder / "detector", str, options=PLAIN, epochs=1)
    return folder


@pytest.fixture(scope="module")
def done(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report([runs], tmp_path_factory.mktemp("report"), include_missing=True)


def test_nothing_is_missing(done: ReportFiles) -> None:
    assert done.unanswered == []


def test_the_page_is_small_enough_to_be_sent(done: ReportFiles) -> None:
    assert done.document.html.stat().st_size <= 5_000_000


def test_numbers_are_those_of_the_runs(runs: Path, done: ReportFiles) -> None:
    numbers = json.loads(done.document.json.read_text(encoding="utf-8"))["numbers"]
    for net in PALETTE_MODELS[:3]:
        run = runs / "nets" / f"{net}-quick-seed0"
        accuracy = 100 * read_summary(run)["test_accuracy"]
        printed = [one["value"] for one in numbers if f"{run}/summary.json" in one["source"]]
        assert any(value == pytest.approx(accuracy) for value in printed)
