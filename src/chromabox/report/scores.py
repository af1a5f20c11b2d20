"""Scores of colourised images as a printed table, ``scores.csv`` and ``scores.json``."""

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

#: Maximum number of files in the printed table; ``scores.csv`` contains all of them.
MAX_ROWS = 40
#: Column headings, score names and numbers of digits. Units are dB and percent where stated.
SCORE_COLUMNS = (
    ("PSNR dB", "psnr", 2),
    ("gain over grey dB", "psnr_gain", 2),
    ("SSIM", "ssim", 4),
    ("ΔE2000", "delta_e", 2),
    ("ΔE reduction %", "delta_e_reduction", 1),
    ("|ΔL*|", "delta_lightness", 2),
    ("colourfulness", "colourfulness", 1),
    ("original colourfulness", "original_colourfulness", 1),
)


def report_scores(originals: Path, coloured: Path, folder: Path | None = None) -> ScoreReport:
    """Score the images, print the table, and write both files into ``folder`` if given.

    Files that cannot be scored are printed to standard error, one per line, and listed in the report's ``failed``.
    Raise UsageError for missing paths and folders without images, ChromaboxError if the files cannot be written.
    """
    report = score_folders(originals, coloured, show_progress=True)
    print_scores(report, f"{coloured} compared with {originals}")
    if folder is not None:
        for path in write_scores(report, folder):
            print(path)
    for failure in report.failed:
        print(f"chromabox: not scored: {failure.error}", file=sys.stderr)
    return report


def write_scores(report: ScoreReport, folder: Path) -> tuple[Path, Path]:
    """Write ``scores.csv``, one row per scored file, and ``scores.json``; create the folder if necessary.

    The JSON file has ``mean`` (the mean of every score over the files for which it is not null), ``files`` and
    ``failed`` (``file`` and ``error``). A file has ``original`` and ``coloured`` (paths relative to their folders),
    ``width`` and ``height`` in pixels and the fields of ``ImageScores``: ``psnr`` and ``psnr_gain`` in dB,
    ``delta_e_reduction`` in percent, the others dimensionless. Numbers are at full precision. null (an empty cell in
    the table) stands for undefined values and for the infinite PSNR of identical images. Raise ChromaboxError if the
    files cannot be written.
    """
    csv_text = io.StringIO(newline="")
    writer = csv.DictWriter(csv_text, ["original", "coloured", "width", "height", *ImageScores.__dataclass_fields__])
    writer.writeheader()
    writer.writerows(to_row(file) for file in report.files)
    text = json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _write_text(folder / "scores.csv", csv_text.getvalue()), _write_text(folder / "scores.json", text)
    except OSError as error:
        raise ChromaboxError(f"{folder}: scores cannot be written ({error.strerror}); use another folder") from error


def _write_text(path: Path, text: str) -> Path:
    with atomic_write(path) as temp_path:
        # File names can be invalid UTF-8; their bytes are preserved.
        temp_path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return path


def print_scores(report: ScoreReport, title: str) -> None:
    """Print a table of the first files, the mean over all files, and the mean of the greyscale baseline."""
    table = Table(title=_plain_text(title))
    table.add_column("", overflow="fold")
    for heading, _, _ in SCORE_COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for file in report.files[:MAX_ROWS]:
        table.add_row(_plain_text(str(file.coloured)), *_format_scores(vars(file.scores)))
    if len(report.files) > MAX_ROWS:
        table.add_row(f"and {len(report.files) - MAX_ROWS} more files")
    if report.files:
        mean = report.mean
        grey = {name.removeprefix("grey_"): value for name, value in mean.items() if name.startswith("grey_")}
        table.add_section()
        table.add_row(f"mean of {len(report.files)}", *_format_scores(mean))
        table.add_row("greyscale baseline", *_format_scores({**dict.fromkeys(mean), **grey, "colourfulness": 0.0}))
    # A pipe has no width; rich would wrap the table at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def _plain_text(text: str) -> Text:
    """Return text without markup, with "?" for unprintable characters."""
    return Text("".join(char if char.isprintable() else "?" for char in text))


def _format_scores(scores: Mapping[str, float | None]) -> list[str]:
    return [_format_score(scores[name], digits) for _, name, digits in SCORE_COLUMNS]


def _format_score(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"
