"""What training says: one sink for numbers (JSON lines, csv, TensorBoard) and progress on the terminal."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from chromabox.io.atomic import atomic_write

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: An epoch's numbers; ``epoch`` itself is whole.
EpochRecord = dict[str, int | float]


class MetricsLogger:
    """A run's numbers: ``metrics.jsonl`` (a line an epoch), the same as ``metrics.csv``, and TensorBoard events.

    The folder is made if need be. On resuming, lines of epochs after ``epochs_done`` (written, but lost to the
    checkpoint by a crash) are dropped, so that every epoch stands there once.
    """

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.records = [record for record in read_metrics(folder) if record["epoch"] <= epochs_done]
        self._rewrite_jsonl()
        self._writer: SummaryWriter | None = None
        self._purge_step = epochs_done + 1

    def log(self, record: EpochRecord) -> None:
        """Add one epoch; every value is a finite number and ``epoch`` counts from 1."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._write_csv()
        if self._writer is None:
            # Imported late: with a run that ends before its first epoch nobody should wait for it.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(record["epoch"]))

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()

    def _rewrite_jsonl(self) -> None:
        with atomic_write(self.path) as aside:
            aside.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        self._write_csv()

    def _write_csv(self) -> None:
        if not self.records:
            (self.folder / "metrics.csv").unlink(missing_ok=True)
            return
        names = dict.fromkeys(name for record in self.records for name in record)
        table = self.folder / "metrics.csv"
        with atomic_write(table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(names))
            writer.writeheader()
            writer.writerows(self.records)


def read_metrics(folder: Path) -> list[EpochRecord]:
    """The records of ``metrics.jsonl``; an unfinished last line, as a crash may leave it, is passed over."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class ProgressCallback(Protocol):
    """What a loop tells of its progress."""

    def __call__(self, steps: int = 1, **values: int | float) -> None:
        """``steps`` more are done; ``values`` are shown beside the bar."""


@contextmanager
def progress_bar(
    title: str, total: int, completed: int = 0, unit: str = "steps", *, show: bool = True
) -> Iterator[ProgressCallback]:
    """A bar with rate and time left on a terminal; silence elsewhere, and where ``show`` is false."""
    if not show or not sys.stderr.isatty():
        yield lambda steps=1, **values: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Lines printed meanwhile pass above the bar, but only if they go to the same terminal and not to a file.
    shared = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=shared) as bar:
        task = bar.add_task(title, total=total, completed=completed, rate="", note="")

        def tick(steps: int = 1, **values: int | float) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            bar.update(task, advance=steps, rate=rate, note=format_metrics(values))

        yield tick


def format_metrics(values: Mapping[str, int | float]) -> str:
    """Numbers as one line for people: ``epoch 3, train_loss 1.2345``."""
    parts = [
        f"{name} {int(value)}" if float(value).is_integer() else f"{name} {value:.4g}" for name, value in values.items()
    ]
    return ", ".join(parts)
