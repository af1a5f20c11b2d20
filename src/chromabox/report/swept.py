"""What a sweep found: for every value its runs and what they reached; as ``sweep.json`` and as a table."""

import csv
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chromabox.engine.checkpoint import write_json
from chromabox.errors import UsageError
from chromabox.io.atomic import write_whole

Value = int | float
#: What is measured of every run, and in which unit.
MEASURED: Mapping[str, str] = {
    "train_loss": "cross-entropy of the finished net in nats a pixel, on as many training pictures as there are test "
    "pictures",
    "train_accuracy": "share of their pixels whose colour is right",
    "test_loss": "cross-entropy in nats a pixel, on the test pictures",
    "test_accuracy": "share of their pixels whose colour is right",
    "psnr": "dB, coloured test pictures (the likeliest colour of every pixel) against the true ones",
    "delta_e": "mean CIEDE2000 of the same",
    "colourfulness": "of the coloured test pictures, Hasler and Süsstrunk 2003, mean over pictures",
    "seconds": "training with what is measured after every epoch",
    "seconds_per_epoch": "the same for one pass over the training pictures",
}


@dataclass(frozen=True)
class Measured:
    """One quantity, by seed."""

    each: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.each)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None of a single one, and where a PSNR is infinite."""
        return statistics.stdev(self.each) if len(self.each) > 1 and math.isfinite(self.mean) else None

    def as_json(self) -> dict[str, Any]:
        """Mean, spread and the numbers themselves; what is infinite, which JSON has not, becomes null."""
        return {"mean": _or_null(self.mean), "spread": self.spread, "each": [_or_null(value) for value in self.each]}


@dataclass(frozen=True)
class Row:
    """One value's runs."""

    value: Value
    runs: tuple[Path, ...]
    """The folder of each seed's run, relative to the sweep's."""
    parameters: int
    epochs: int
    """The last of which may have been cut short, where the updates are given."""
    updates: int
    updates_per_epoch: int
    measured: Mapping[str, Measured]
    """By the names in ``MEASURED``."""


@dataclass(frozen=True)
class Sweep:
    """One net trained with several values of one quantity."""

    folder: Path
    net: str
    recipe: str
    data: str
    palette: str
    over: str
    seeds: tuple[int, ...]
    grey_psnr: float
    """PSNR of the grey test pictures in dB: what no colour at all reaches."""
    truth_colourfulness: float
    """Of the true test pictures, the mean."""
    equal_epochs: tuple[Row, ...]
    """In the order of the values."""
    equal_steps: tuple[Row, ...] = ()
    """The same values, every one with as many updates; empty where that is the same comparison."""

    @property
    def table(self) -> Path:
        """All means and spreads as csv."""
        return self.folder / "sweep.csv"

    @property
    def curves(self) -> Path:
        """The losses as a figure."""
        return self.folder / "curves.png"

    @property
    def sheet(self) -> Path:
        """Sample pictures."""
        return self.folder / "sheet.png"


def write_sweep(sweep: Sweep) -> None:
    """Write ``sweep.csv`` and, last of all, ``sweep.json``, by which a finished sweep is known."""
    _write_table(sweep)
    rows = {name: [_row_as_json(row) for row in getattr(sweep, name)] for name in ("equal_epochs", "equal_steps")}
    said = {name: value for name, value in vars(sweep).items() if name != "folder"}
    said["grey_psnr"] = _or_null(sweep.grey_psnr)
    write_json(sweep.folder / "sweep.json", {**said, **rows, "measured": dict(MEASURED)})


def read_sweep(folder: Path) -> Sweep:
    """What :func:`write_sweep` wrote; UsageError if the folder holds no such file or a broken one."""
    path = folder / "sweep.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        del found["measured"]
        found["grey_psnr"] = _or_infinite(found["grey_psnr"])
        for name in ("equal_epochs", "equal_steps"):
            found[name] = tuple(_row_of(row) for row in found[name])
        return Sweep(folder=folder, **{**found, "seeds": tuple(found["seeds"])})
    except OSError as error:
        raise UsageError(f"{folder}: holds no sweep.json; give the folder of a sweep that finished") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not the result of a sweep ({error}); chromabox sweep writes it anew") from error


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _row_as_json(row: Row) -> dict[str, Any]:
    measured = {name: one.as_json() for name, one in row.measured.items()}
    return {**vars(row), "runs": [run.as_posix() for run in row.runs], "measured": measured}


def _row_of(found: dict[str, Any]) -> Row:
    each = {
        name: Measured(tuple(_or_infinite(value) for value in one["each"])) for name, one in found["measured"].items()
    }
    return Row(**{**found, "runs": tuple(Path(run) for run in found["runs"]), "measured": each})


def _write_table(sweep: Sweep) -> None:
    """A line for each value, first with equal epochs, then with equal steps."""
    names = [f"{name}{end}" for name in MEASURED for end in ("", "_spread")]
    head = ["comparison", sweep.over, "seeds", "parameters", "epochs", "updates", *names]
    with write_whole(sweep.table) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for kind, rows in (("equal epochs", sweep.equal_epochs), ("equal steps", sweep.equal_steps)):
            for row in rows:
                cells = [number for name in MEASURED for number in _cells(row.measured[name])]
                seeds = " ".join(map(str, sweep.seeds))
                writer.writerow([kind, row.value, seeds, row.parameters, row.epochs, row.updates, *cells])


def _cells(measured: Measured) -> tuple[float, float | str]:
    return measured.mean, "" if measured.spread is None else measured.spread
