"""Tests of a report of short real runs: every question has an answer, and the numbers are those of the runs."""

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

DATA, OPTIONS = "cifar10:horse", RuntimeOptions(precision="float32", compile="off", channels_last="on", threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three models, two batch sizes and a detector, with one epoch each."""
    try:
        load_cifar10("test", ("horse",))
    except ChromaboxError as error:
        pytest.skip(f"THE REAL CIFAR-10 IS NOT AVAILABLE, SO NO REPORT OF REAL RUNS IS TESTED: {error}")
    folder = tmp_path_factory.mktemp("runs")
    settings = {"data": DATA, "palette": "horse24", "recipe": "quick", "epochs": 1, "options": OPTIONS, "log": str}
    compare(folder / "nets", models=PALETTE_MODELS[:3], seeds=(0,), **settings)
    sweep(folder / "sizes", model="conv-transpose", parameter="batch-size", values=(128, 512), seeds=(0,), **settings)
    train_sample_detector(folder / "detector", str, options=OPTIONS, epochs=1)
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report([runs], tmp_path_factory.mktemp("report"), include_missing=True)


def test_every_question_is_answered(report: ReportFiles) -> None:
    assert report.unanswered == []


def test_html_file_is_small(report: ReportFiles) -> None:
    assert report.document.html.stat().st_size <= 5_000_000


def test_numbers_are_those_of_the_runs(runs: Path, report: ReportFiles) -> None:
    numbers = json.loads(report.document.json.read_text(encoding="utf-8"))["numbers"]
    for model in PALETTE_MODELS[:3]:
        run = runs / "nets" / f"{model}-quick-seed0"
        accuracy = 100 * read_summary(run)["test_accuracy"]
        values = [number["value"] for number in numbers if f"{run}/summary.json" in number["source"]]
        assert any(value == pytest.approx(accuracy) for value in values)
