"""A run's numbers on disk, three ways, and silence where nobody watches."""

import csv
import io
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chromabox.engine.logger import MetricsLogger, format_metrics, progress_bar, read_metrics

RECORDS = [{"epoch": epoch, "train_loss": 1 / epoch, "seconds": 0.25} for epoch in (1, 2, 3)]


def write(folder: Path, records: list[dict[str, float]], epochs_done: int = 0) -> None:
    sink = MetricsLogger(folder, epochs_done)
    for record in records:
        sink.log(record)
    sink.close()


def read_csv(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def read_events(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_same_numbers_in_three_formats(tmp_path: Path) -> None:
    write(tmp_path / "new" / "run", RECORDS)
    folder = tmp_path / "new" / "run"
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == RECORDS
    assert read_metrics(folder) == RECORDS
    assert read_csv(folder) == RECORDS
    # TensorBoard keeps 32 bits.
    assert read_events(folder, "train_loss") == [
        (record["epoch"], pytest.approx(record["train_loss"], rel=1e-7)) for record in RECORDS
    ]
    assert not list(folder.glob(".*"))


def test_a_value_that_comes_later_has_its_column(tmp_path: Path) -> None:
    write(tmp_path, [{"epoch": 1, "a": 1.0}, {"epoch": 2, "a": 2.0, "b": 3.0}])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,a,b", "1,1.0,", "2,2.0,3.0"]


@pytest.mark.parametrize(("done", "kept"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3])])
def test_resuming_drops_what_the_checkpoint_does_not_know(tmp_path: Path, done: int, kept: list[int]) -> None:
    write(tmp_path, RECORDS)
    MetricsLogger(tmp_path, done).close()
    assert [record["epoch"] for record in read_metrics(tmp_path)] == kept
    if kept:
        assert [row["epoch"] for row in read_csv(tmp_path)] == kept
    else:
        assert not (tmp_path / "metrics.csv").exists()
    again = [{**record, "train_loss": 9.0} for record in RECORDS[done:]]
    write(tmp_path, again, done)
    expected = RECORDS[:done] + again
    assert read_metrics(tmp_path) == expected
    if again:
        assert read_csv(tmp_path) == expected
        assert read_events(tmp_path, "train_loss") == [
            (record["epoch"], pytest.approx(record["train_loss"], rel=1e-7)) for record in expected
        ]


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ('{"epoch": 1}\n{"epoch": 2}\n', [1, 2]),
        ('{"epoch": 1}\n{"epoch": 2', [1]),
        ('{"epoch": 1}\n{"epoch": 2}', [1]),
        ("", []),
        (None, []),
    ],
)
def test_an_unfinished_last_line_is_passed_over(tmp_path: Path, text: str | None, epochs: list[int]) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == epochs


def test_silence_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 10) as tick:
        tick()
        tick(3, epoch=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("show", [True, False])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, show: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("training", 10, completed=4, show=show) as tick:
        tick(3, epoch=2)
    if show:
        assert "training" in shown.getvalue()
        assert "7/10" in shown.getvalue()
        assert "epoch 2" in shown.getvalue()
    else:
        assert shown.getvalue() == ""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, ""),
        ({"epoch": 3, "train_loss": 1.23456}, "epoch 3, train_loss 1.235"),
        ({"seconds": 2.0, "rate": 0.000012345}, "seconds 2, rate 1.234e-05"),
    ],
)
def test_sentence(values: dict[str, float], line: str) -> None:
    assert format_metrics(values) == line
