"""Metrics in three file formats, and the progress bar with and without a terminal."""

import csv
import io
import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import AtomicCounter

from chromabox.engine.logger import MetricsLogger, format_metrics, progress_bar, read_metrics
from chromabox.errors import ChromaboxError

RECORDS = [{"epoch": epoch, "train_loss": 1 / epoch, "seconds": 0.25} for epoch in (1, 2, 3)]


def write(folder: Path, records: list[dict[str, float]], epochs_done: int = 0) -> None:
    logger = MetricsLogger(folder, epochs_done)
    for record in records:
        logger.log(record)
    logger.close()


def read_csv(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def read_events(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_metrics_are_equal_in_three_formats(tmp_path: Path) -> None:
    write(tmp_path / "new" / "run", RECORDS)
    folder = tmp_path / "new" / "run"
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == RECORDS
    assert read_metrics(folder) == RECORDS
    assert read_csv(folder) == RECORDS
    # TensorBoard stores float32.
    assert read_events(folder, "train_loss") == [
        (record["epoch"], pytest.approx(record["train_loss"], rel=1e-7)) for record in RECORDS
    ]
    assert not list(folder.glob(".*"))


def test_metric_of_a_later_epoch_has_a_column(tmp_path: Path) -> None:
    write(tmp_path, [{"epoch": 1, "a": 1.0}, {"epoch": 2, "a": 2.0, "b": 3.0}])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,a,b", "1,1.0,", "2,2.0,3.0"]


@pytest.mark.parametrize(("epochs_done", "expected_epochs"), [(0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 3])])
def test_resuming_deletes_epochs_after_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, epochs_done: int, expected_epochs: list[int]
) -> None:
    # TensorBoard reads the event files of a process in the alphabetical order of a counter, in which 10 precedes 9.
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", AtomicCounter(0))
    write(tmp_path, RECORDS)
    MetricsLogger(tmp_path, epochs_done).close()
    assert [record["epoch"] for record in read_metrics(tmp_path)] == expected_epochs
    if expected_epochs:
        assert [row["epoch"] for row in read_csv(tmp_path)] == expected_epochs
    else:
        assert not (tmp_path / "metrics.csv").exists()
    new_records = [{**record, "train_loss": 9.0} for record in RECORDS[epochs_done:]]
    write(tmp_path, new_records, epochs_done)
    expected = RECORDS[:epochs_done] + new_records
    assert read_metrics(tmp_path) == expected
    if new_records:
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
def test_truncated_last_line_is_skipped(tmp_path: Path, text: str | None, epochs: list[int]) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert [record["epoch"] for record in read_metrics(tmp_path)] == epochs


@pytest.mark.parametrize("text", [None, "garbage\n", '{"epoch": "a"}\n', "[]\n", "{}\n", '{"loss": 1}\n'])
def test_damaged_or_missing_metrics_are_rejected_on_resuming(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ChromaboxError, match=r"metrics\.jsonl: (line 1 is damaged|the file is missing)"):
        MetricsLogger(tmp_path, epochs_done=1)


def test_missing_metric_of_a_record_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "train_loss": 2.0}\n{"epoch": 2}\n')
    first, second = read_metrics(tmp_path)
    assert first["train_loss"] == 2
    assert second.get("train_loss") is None
    with pytest.raises(ChromaboxError, match=r"metrics\.jsonl: line 2: the value 'train_loss' is missing; restore"):
        second["train_loss"]


def test_no_output_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("training", 10) as advance:
        advance()
        advance(3, epoch=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("show", [True, False])
def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, show: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("training", 10, completed=4, show=show) as advance:
        advance(3, epoch=2)
    if show:
        assert "training" in terminal.getvalue()
        assert "7/10" in terminal.getvalue()
        assert "epoch 2" in terminal.getvalue()
    else:
        assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, ""),
        ({"epoch": 3, "train_loss": 1.23456}, "epoch 3, train_loss 1.235"),
        ({"seconds": 2.0, "rate": 0.000012345}, "seconds 2, rate 1.234e-05"),
    ],
)
def test_format_metrics(values: dict[str, float], line: str) -> None:
    assert format_metrics(values) == line
