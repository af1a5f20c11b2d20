"""Scores of colourised images as a printed table, ``scores.csv`` and ``scores.json``."""

import csv
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from chromabox.colour.evaluation.image_scores import ImageScores, ScoreReport, score_folders, to_row
from chromabox.errors import ChromaboxError, escape_unprintable
from chromabox.io.atomic import atomic_write
from chromabox.io.images import IMAGE_SUFFIXES
from chromabox.io.kinds import count_skipped, list_folder
from chromabox.report.tables import format_number, print_grid

#: Maximum number of files in the printed table; ``scores.csv`` contains all files.
MAX_ROWS = 40
SCORE_FILES = ("scores.csv", "scores.json")
#: Heading, name and number of decimals of each printed score.
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

#: Text of each printed score of all images together.
SUMMARY_LINES = {
    "psnr_gain": "mean gain over greyscale: {:+.2f} dB",
    "delta_e_reduction": "mean ΔE2000 below greyscale: {:.2f} %",
    "colourfulness_percent": "mean colourfulness: {:.2f} % of the originals",
    "worse_than_grey": "images more than 0.5 dB worse than greyscale: {:.2f} %",
}


def report_scores(
    originals: Path, coloured: Path, folder: Path | None = None, *, fid_network: Path | None = None
) -> ScoreReport:
    """Score colourised images and print a table. If ``folder`` is not None, write ``scores.csv`` and ``scores.json``.

    See :func:`~chromabox.colour.evaluation.image_scores.score_folders` for ``fid_network``.

    Files that cannot be scored are listed in the attribute ``failed`` of the report and printed to standard error, one
    per line. Raise UsageError for missing paths, and ChromaboxError for folders without images and files that cannot be
    written.
    """
    report = score_folders(originals, coloured, fid_network=fid_network, show_progress=True)
    print_scores(report, f"{coloured} compared with {originals}")
    if fid_network is not None and report.frechet is None:
        print(f"no FID: expected two or more images that can be scored, found {len(report.files)}")
    if folder is not None:
        for path in write_scores(report, folder):
            print(escape_unprintable(str(path)))
    for line in (*report.notes, *_describe_skipped(originals)):
        print(escape_unprintable(line))
    for error in report.failed.values():
        print(f"chromabox: not scored: {escape_unprintable(error)}", file=sys.stderr)
    return report


def _describe_skipped(folder: Path) -> list[str]:
    """Return a line for each reason why files in a folder of originals are not scored, with their number."""
    if not folder.is_dir():
        return []
    content = list_folder(folder, IMAGE_SUFFIXES)
    content.skipped.pop("hidden", None)
    for path in content.videos:
        content.skip("video", path)
    return [*count_skipped(content.skipped), *content.unreadable]


def write_scores(report: ScoreReport, folder: Path) -> tuple[Path, Path]:
    """Write ``scores.csv``, with a row for each scored file, and ``scores.json``; create the folder if necessary.

    The JSON file has the keys ``mean`` (the mean of each score over the files in which this score is not null),
    ``summary`` (see :meth:`ScoreReport.summarise`), ``files``, ``failed`` (objects with ``file`` and ``error``) and, if
    it was computed, ``fid`` (the fields of ``FrechetScore``).
    Each file has ``original`` and ``coloured`` (paths relative to their folders), ``width`` and ``height`` in pixels,
    and the fields of ``ImageScores``: ``psnr`` and ``psnr_gain`` are in dB, ``delta_e_reduction`` is in percent, and
    the other scores are dimensionless. Numbers are not rounded. Undefined values and the infinite PSNR of identical
    images are null in the JSON file and empty in the CSV file. Raise ChromaboxError if the files cannot be written.
    """
    csv_text = io.StringIO(newline="")
    writer = csv.DictWriter(csv_text, ["original", "coloured", "width", "height", *ImageScores.__dataclass_fields__])
    writer.writeheader()
    writer.writerows(to_row(file) for file in report.files)
    json_text = json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n"
    paths = folder / SCORE_FILES[0], folder / SCORE_FILES[1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, (csv_text.getvalue(), json_text), strict=True):
            with atomic_write(path) as temp_path:
                # File names can be invalid UTF-8; their bytes are preserved.
                temp_path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise ChromaboxError(f"{folder}: scores cannot be written ({error.strerror}); use another folder") from error
    return paths


def print_scores(report: ScoreReport, title: str) -> None:
    """Print the scores of the first few files, and the mean scores of all files and of their greyscale versions."""

    def make_row(name: str, scores: Mapping[str, float | None]) -> list[str]:
        return [name, *(format_number(scores[score], digits) for _, score, digits in SCORE_COLUMNS)]

    rows = [make_row(str(file.coloured), vars(file.scores)) for file in report.files[:MAX_ROWS]]
    if len(report.files) > MAX_ROWS:
        rows.append([f"more files: {len(report.files) - MAX_ROWS}", *[""] * len(SCORE_COLUMNS)])
    if report.files:
        mean = report.mean
        grey = {name.removeprefix("grey_"): value for name, value in mean.items() if name.startswith("grey_")}
        rows += [[], make_row(f"mean over files ({len(report.files)})", mean)]
        rows.append(make_row("greyscale baseline", {**dict.fromkeys(mean), **grey, "colourfulness": 0.0}))
    print_grid(title, ["", *(heading for heading, _, _ in SCORE_COLUMNS)], rows)
    if len(report.files) > 1 and (summary := report.summarise()):
        print("All images together, with 95 % intervals over images:")
        for name, text in SUMMARY_LINES.items():
            low, high = summary[f"{name}_interval"]  # type: ignore[misc]
            print(f"  {text.format(summary[name])} ({low:.2f} to {high:.2f})")
    if (frechet := report.frechet) is not None:
        print(f"FID over {frechet.images} images: {frechet.distance:.2f}")
        print(f"  features: {frechet.network}, sha256 {frechet.sha256}, {frechet.backend}")
        if frechet.images < frechet.features:
            print(
                f"  With fewer images than features ({frechet.features}), the FID is too large; compare it only with "
                f"FIDs of {frechet.images} images."
            )
