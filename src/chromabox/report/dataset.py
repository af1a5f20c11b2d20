"""Printed and JSON reports of dataset validation, for ``chromabox data check``."""

import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.detect.data.load import resolve_dataset
from chromabox.detect.data.validate import MIN_BOXES_PER_CLASS, DatasetReport, validate_dataset, write_clean_copy
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError

#: Maximum number of printed lines per type of issue; the JSON file contains all of them.
MAX_LINES_PER_ISSUE = 20


def report_validation(path: Path | str, *, clean_copy: Path | None = None, output: Path | None = None) -> DatasetReport:
    """Validate the dataset, print the report, write it as JSON to `output`, and write a clean copy to `clean_copy`.

    Pass on loading errors. Raise UsageError if `clean_copy` exists or lies inside the dataset, and ChromaboxError if a
    file cannot be written.
    """
    dataset_path = resolve_dataset(path)
    report = validate_dataset(dataset_path, show_progress=True)
    print_report(report, str(dataset_path))
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, report.as_json())
        except OSError as error:
            raise ChromaboxError(f"{output}: cannot be written ({error.strerror}); use another path") from error
        print(output)
    if clean_copy is not None:
        copy = write_clean_copy(report, dataset_path, clean_copy)
        print(
            f"{copy.folder}: {copy.num_images} images, {copy.num_boxes} boxes, "
            f"{len(copy.changes)} changes (repair.json)"
        )
    return report


def print_report(report: DatasetReport, title: str) -> None:
    """Print the counts per split and class as a table, then the issues, with a limited number of lines per type."""
    data, boxes = report.data, report.box_counts
    image_counts = Counter(sample.split for sample in data.samples)
    table = Table(title=printable(f"{title} ({data.format.upper()})"))
    table.add_column("", overflow="fold")
    for split in data.splits:
        table.add_column(printable(split or "all"), justify="right", no_wrap=True)
    table.add_row("images", *(str(image_counts[split]) for split in data.splits))
    empty = Counter(sample.split for sample in data.samples if len(sample.boxes) == 0)
    table.add_row("images without boxes", *(str(empty[split]) for split in data.splits))
    table.add_row("boxes", *(str(sum(boxes[split].values())) for split in data.splits))
    table.add_section()
    for name in data.classes:
        counts = [boxes[split][name] for split in data.splits]
        if any(counts):
            table.add_row(printable(name if data.has_class_names else f"class {name}"), *map(str, counts))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    for line in issue_lines(report):
        print(printable(line))


def issue_lines(report: DatasetReport) -> list[str]:
    """Return one line per issue, duplicate or rare class; long lists are truncated, to show every type of issue."""
    lines: list[str] = []
    for issue_type, count in report.issue_counts.items():
        issues = [issue for issue in report.issues if issue.issue_type == issue_type]
        lines += [str(issue) for issue in issues[:MAX_LINES_PER_ISSUE]]
        lines += [f"… and {count - MAX_LINES_PER_ISSUE} more of “{issue_type}”"] if count > MAX_LINES_PER_ISSUE else []
    leaks = set(report.leaks)
    for pair in report.duplicates[:MAX_LINES_PER_ISSUE]:
        similarity = (
            "are identical files"
            if pair.exact
            else f"are near-duplicates ({pair.hash_distance} of 64 hash bits differ)"
        )
        across = ", across splits" if pair in leaks else ""
        lines.append(f"{pair.first} and {pair.second} {similarity}{across}")
    if len(report.duplicates) > MAX_LINES_PER_ISSUE:
        lines.append(
            f"… and {len(report.duplicates) - MAX_LINES_PER_ISSUE} more pairs; {len(leaks)} pairs in all across splits"
        )
    rare = rare_classes(report)
    if rare:
        lines.append(f"fewer than {MIN_BOXES_PER_CLASS} boxes in a split: {', '.join(rare)}")
    lines.append(
        "No problems found."
        if report.is_valid
        else "Problems found. Use --repair FOLDER to write a cleaned copy; the original is not modified."
    )
    return lines


def printable(text: str) -> Text:
    """Return text without markup, with "?" for unprintable characters, which file names can contain."""
    return Text("".join(char if char.isprintable() else "?" for char in text))


def rare_classes(report: DatasetReport) -> list[str]:
    """Return the classes with at least one but fewer than ``MIN_BOXES_PER_CLASS`` boxes in a split."""
    counts = report.box_counts.values()
    return [
        name
        for name in report.data.classes
        if any(0 < split_counts[name] < MIN_BOXES_PER_CLASS for split_counts in counts)
    ]
