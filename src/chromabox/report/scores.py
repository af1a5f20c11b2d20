"""The scores of coloured pictures as a table on the terminal, ``scores.csv`` and ``scores.json``."""

import csv
import io
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.colour.evaluation.image_scores import ImageScores, ScoreReport, score_folders, to_row
from chromabox.errors import ChromaboxError
from chromabox.io.atomic import atomic_write

#: Files that the table shows; ``scores.csv`` has them all.
MAX_ROWS = 40
#: Headings of the table, the score below each, and its digits. Units: dB, per cent, and none for the others.
SCORE_COLUMNS = (
    ("PSNR dB", "psnr", 2),
    ("over grey dB", "psnr_gain", 2),
    ("SSIM", "ssim", 4),
    ("ΔE2000", "delta_e", 2),
    ("less ΔE than grey %", "delta_e_reduction", 1),
    ("|ΔL*|", "delta_lightness", 2),
    ("colourfulness", "colourfulness", 1),
    ("of the original", "original_colourfulness", 1),
)


def report_scores(originals: Path, coloured: Path, folder: Path | None = None) -> ScoreReport:
    """Score, print the table, write both files into ``folder`` if one is given, and name every failed file.

    What could not be scored goes to standard error, a line for each file, and stands in the scorecard's ``failed``.
    Raises UsageError for missing paths and folders without pictures, ChromaboxError if the files cannot be written.
    """
    card = score_folders(originals, coloured, show_progress=True)
    print_scores(card, f"{coloured} against {originals}")
    if folder is not None:
        for path in write_scores(card, folder):
            print(path)
    for failure in card.failed:
        print(f"chromabox: not scored: {failure.error}", file=sys.stderr)
    return card


def write_scores(report: ScoreReport, folder: Path) -> tuple[Path, Path]:
    """Write ``scores.csv``, a line for each scored file, and ``scores.json``; the folder is made if need be.

    The JSON file has ``mean`` (the mean of every score over the files for which it is a number), ``files`` and
    ``failed`` (``file`` and ``error``). A file has ``original`` and ``coloured`` (their places in the folders),
    ``width`` and ``height`` in pixels and the fields of ``PictureScore``: ``psnr`` and ``psnr_gain`` in dB,
    ``delta_e_reduction`` in per cent, the others without a unit. Numbers are in full precision; null (in the table an
    empty place) is the infinite PSNR of equal pictures, and what has no value. Raises ChromaboxError if the files
    cannot be written.
    """
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, ["original", "coloured", "width", "height", *ImageScores.__dataclass_fields__])
    writer.writeheader()
    writer.writerows(to_row(one) for one in report.files)
    text = json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_text(folder / "scores.csv", lines.getvalue()), _write_text(folder / "scores.json", text)
    except OSError as error:
        raise ChromaboxError(
            f"{folder}: scores cannot be written there ({error.strerror}); give another folder"
        ) from error


def _write_text(path: Path, text: str) -> Path:
    with atomic_write(path) as aside:
        # Names of files need not be valid UTF-8; their bytes are kept.
        aside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return path


def print_scores(report: ScoreReport, title: str) -> None:
    """The first files, the mean over all and the mean of the same pictures in grey, as a table on the terminal."""
    table = Table(title=_printable(title))
    table.add_column("", overflow="fold")
    for heading, _, _ in SCORE_COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for file in report.files[:MAX_ROWS]:
        table.add_row(_printable(str(file.coloured)), *_format_scores(vars(file.scores)))
    if len(report.files) > MAX_ROWS:
        table.add_row(f"and {len(report.files) - MAX_ROWS} more files")
    if report.files:
        mean = report.mean
        grey = {name.removeprefix("grey_"): value for name, value in mean.items() if name.startswith("grey_")}
        table.add_section()
        table.add_row(f"mean of {len(report.files)}", *_format_scores(mean))
        table.add_row("grey instead", *_format_scores({**dict.fromkeys(mean), **grey, "colourfulness": 0.0}))
    # A pipe has no width of its own; without a fixed one rich would fold the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def _printable(text: str) -> Text:
    """Text in which brackets are no markup, and what a terminal cannot show is "?"."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


def _format_scores(scores: Mapping[str, float | None]) -> list[str]:
    return [_format_number(scores[name], digits) for _, name, digits in SCORE_COLUMNS]


def _format_number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"
