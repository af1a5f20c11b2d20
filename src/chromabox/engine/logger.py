"""Training metrics (JSON lines, CSV, TensorBoard) and the progress bar on the terminal."""

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

#: Metrics of one epoch; ``epoch`` is an integer.
EpochRecord = dict[str, int | float]


class MetricsLogger:
    """Logger of a run's metrics to ``metrics.jsonl`` (one line per epoch), ``metrics.csv`` and TensorBoard events.

    A missing folder is created. On resuming, records of epochs after ``epochs_done`` are deleted: a crash can happen
    after a record is written but before its checkpoint is saved, and every epoch must be recorded exactly once.
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
        """Log one epoch. All values must be finite; ``epoch`` starts at 1."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._write_csv()
        if self._writer is None:
            # Imported late because the import is slow and a run can end before its first epoch.
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
        with atomic_write(self.path) as temp_path:
            temp_path.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        self._write_csv()

    def _write_csv(self) -> None:
        if not self.records:
            (self.folder / "metrics.csv").unlink(missing_ok=True)
            return
        names = dict.fromkeys(name for record in self.records for name in record)
        table = self.folder / "metrics.csv"
        with atomic_write(table) as temp_path, temp_path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(names))
            writer.writeheader()
            writer.writerows(self.records)


def read_metrics(folder: Path) -> list[EpochRecord]:
    """Read the records of ``metrics.jsonl``; skip a truncated last line, which a crash can leave behind."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class ProgressCallback(Protocol):
    """Callback for the progress of a loop."""

    def __call__(self, steps: int = 1, **values: int | float) -> None:
        """Advance by ``steps`` and show ``values`` next to the bar."""


@contextmanager
def progress_bar(
    title: str, total: int, completed: int = 0, unit: str = "steps", *, show: bool = True
) -> Iterator[ProgressCallback]:
    """On a terminal, show a bar with the rate and the remaining time; elsewhere, yield a callback that does nothing."""
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
    # Printed lines are redirected above the bar only if stdout is a terminal, not a file.
    redirect_stdout = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect_stdout) as bar:
        task = bar.add_task(title, total=total, completed=completed, rate="", note="")

        def advance(steps: int = 1, **values: int | float) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            bar.update(task, advance=steps, rate=rate, note=format_metrics(values))

        yield advance


def format_metrics(values: Mapping[str, int | float]) -> str:
    """Format metrics as one line: ``epoch 3, train_loss 1.235``."""
    parts = [
        f"{name} {int(value)}" if float(value).is_integer() else f"{name} {value:.4g}" for name, value in values.items()
    ]
    return ", ".join(parts)
