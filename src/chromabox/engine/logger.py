"""Training metrics (JSON lines, CSV, TensorBoard) and the progress bar on the terminal."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from chromabox.errors import ChromaboxError, escape_unprintable
from chromabox.io.atomic import atomic_write, parse_json

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Metrics of one epoch. ``epoch`` is an integer.
EpochRecord = dict[str, int | float]


#: What to do about a damaged file of a run.
RESTORE_ADVICE = "restore the file from a copy, or start the run again in another folder"


class StoredValues(dict[str, Any]):
    """Values that were read from ``source``, a file or a line of it. A missing value raises ChromaboxError."""

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._source = source

    def __missing__(self, name: str) -> Any:
        raise ChromaboxError(f"{self._source}: the value {name!r} is missing; {RESTORE_ADVICE}")


class MetricsLogger:
    """Writer of a run's metrics to ``metrics.jsonl`` (one line per epoch), ``metrics.csv`` and TensorBoard events.

    A missing folder is created. When a run is resumed, records of epochs after ``epochs_done`` are deleted. Otherwise,
    an epoch would be recorded twice if the run crashed after writing its record and before saving its checkpoint.

    Raise ChromaboxError if ``metrics.jsonl`` is damaged or has fewer than ``epochs_done`` records.
    """

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self.records = [record for record in read_metrics(folder, epochs_done) if record["epoch"] <= epochs_done]
        with atomic_write(self.path) as temp_path:
            temp_path.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")
        self._write_csv()
        self._writer: SummaryWriter | None = None

    def log(self, record: EpochRecord) -> None:
        """Log the metrics of one epoch. All values must be finite. Epochs are counted from 1."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._write_csv()
        if self._writer is None:
            # This slow import is postponed, because a run can end before its first epoch is complete.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=int(record["epoch"]))
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(record["epoch"]))

    def close(self) -> None:
        """Flush and close the TensorBoard events."""
        if self._writer is not None:
            self._writer.close()

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


def read_metrics(folder: Path, min_epochs: int = 0) -> list[EpochRecord]:
    """Read the records of ``metrics.jsonl``. Skip a truncated last line, which can result from a crash.

    Raise ChromaboxError if another line is damaged or if the file has fewer than ``min_epochs`` records. Access to a
    metric that a record lacks also raises ChromaboxError.
    """
    path = folder / "metrics.jsonl"
    records: list[EpochRecord] = []
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        numbers = record.values() if isinstance(record, dict) else ()
        if not numbers or not all(isinstance(value, int | float) for value in numbers) or "epoch" not in record:
            raise ChromaboxError(
                f"{path}: line {number} is damaged, expected the metrics of an epoch; {RESTORE_ADVICE}"
            )
        records.append(StoredValues(f"{path}: line {number}", record))
    if len(records) < min_epochs:
        found = f"the number of recorded epochs is {len(records)}" if path.is_file() else "the file is missing"
        raise ChromaboxError(f"{path}: {found}, but {min_epochs} were trained; {RESTORE_ADVICE}")
    return records


class ProgressCallback(Protocol):
    """Callback for the progress of a loop."""

    def __call__(self, steps: int = 1, **values: int | float) -> None:
        """Advance the bar by ``steps`` and show ``values`` next to it."""


@contextmanager
def progress_bar(
    title: str, total: int, completed: int = 0, unit: str = "steps", *, show: bool = True
) -> Iterator[ProgressCallback]:
    """Yield a callback that advances a progress bar, which shows the rate and the remaining time.

    If stderr is not a terminal or ``show`` is false, the callback has no effect.
    """
    if not show or not sys.stderr.isatty():
        yield lambda steps=1, **values: None
        return
    from rich import progress as bars
    from rich.console import Console
    from rich.markup import escape

    note = "{task.fields[rate]} {task.fields[note]}"
    columns = ("{task.description}", bars.BarColumn(), bars.MofNCompleteColumn(), note)
    times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    console = Console(stderr=True)
    # Printed lines are redirected above the bar only if stdout is a terminal, not a file.
    redirect_stdout = sys.stdout.isatty()
    with bars.Progress(*columns, *times, console=console, transient=True, redirect_stdout=redirect_stdout) as bar:
        task = bar.add_task(escape(escape_unprintable(title)), total=total, completed=completed, rate="", note="")

        def advance(steps: int = 1, **values: int | float) -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            bar.update(task, advance=steps, rate=rate, note=format_metrics(values))

        yield advance


def format_metrics(values: Mapping[str, int | float]) -> str:
    """Return metrics as one line of text, for example ``epoch 3, train_loss 1.235``."""
    return ", ".join(
        f"{name} {int(value)}" if float(value).is_integer() else f"{name} {value:.4g}" for name, value in values.items()
    )
