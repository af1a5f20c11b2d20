"""A write-up of real, if short, runs of every part: nothing is missing, and its numbers are those of the runs."""

import json
from pathlib import Path

import pytest

from chromabox.assignment.run import finetune_sample
from chromabox.assignment.write_up import WriteUp, write_up
from chromabox.colour.training.recipes import NETS_IN_ORDER
from chromabox.engine.runtime_options import ExecutionOptions
from chromabox.errors import ChromaboxError
from chromabox.experiments.compare import compare
from chromabox.experiments.runs import summary_of
from chromabox.experiments.sweep import sweep
from chromabox.io.cifar10 import load_cifar10

DATA, PLAIN = "cifar10:horse", ExecutionOptions(compiled="no", threads=1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nets, two batch sizes and a detector, an epoch each."""
    try:
        load_cifar10("test", ("horse",))
    except ChromaboxError as error:
        pytest.skip(f"THE REAL CIFAR-10 CANNOT BE REACHED, SO NO REAL RUN IS WRITTEN UP: {error}")
    folder = tmp_path_factory.mktemp("runs")
    about = {"data": DATA, "palette": "horse24", "recipe": "quick", "epochs": 1, "options": PLAIN, "say": str}
    compare(folder / "nets", nets=NETS_IN_ORDER[:3], seeds=(0,), **about)
    sweep(folder / "sizes", net="conv-transpose", over="batch-size", values=(128, 512), seeds=(0,), **about)
    finetune_sample(folder / "detector", str, options=PLAIN, epochs=1)
    return folder


@pytest.fixture(scope="module")
def done(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> WriteUp:
    return write_up([runs], tmp_path_factory.mktemp("report"), whole=True)


def test_nothing_is_missing(done: WriteUp) -> None:
    assert done.missing == []


def test_the_page_is_small_enough_to_be_sent(done: WriteUp) -> None:
    assert done.written.html.stat().st_size <= 5_000_000


def test_numbers_are_those_of_the_runs(runs: Path, done: WriteUp) -> None:
    numbers = json.loads(done.written.json.read_text(encoding="utf-8"))["numbers"]
    for net in NETS_IN_ORDER[:3]:
        run = runs / "nets" / f"{net}-quick-seed0"
        accuracy = 100 * summary_of(run)["test_accuracy"]
        printed = [one["value"] for one in numbers if f"{run}/summary.json" in one["source"]]
        assert any(value == pytest.approx(accuracy) for value in printed)
