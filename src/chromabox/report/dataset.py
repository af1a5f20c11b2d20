"""What a data set's check found, for people and as ``check.json``; the verb ``chromabox data check``."""

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

#: Lines of a kind that are printed; the file has them all.
MAX_LINES_PER_ISSUE = 20


def report_validation(path: Path | str, *, clean_copy: Path | None = None, output: Path | None = None) -> DatasetReport:
    """Check the data, print what was found, write it as JSON to the file `output`, and a sound copy into `repair`.

    Raises what loading raises, UsageError for a `repair` that exists or lies in the data, ChromaboxError where a file
    cannot be written.
    """
    place = resolve_dataset(path)
    check = validate_dataset(place, show_progress=True)
    print_report(check, str(place))
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, check.as_json())
        except OSError as error:
            raise ChromaboxError(f"{output}: cannot be written ({error.strerror}); give another place") from error
        print(output)
    if clean_copy is not None:
        copy = write_clean_copy(check, place, clean_copy)
        print(
            f"{copy.folder}: {copy.num_images} pictures, {copy.num_boxes} boxes, {len(copy.changes)} changes (repair.json)"
        )
    return check


def print_report(report: DatasetReport, title: str) -> None:
    """Counts of splits and classes as a table, then what is wrong, at most some lines of each kind."""
    data, boxes = report.data, report.box_counts
    pictures = Counter(one.split for one in data.samples)
    table = Table(title=printable(f"{title} ({data.format.upper()})"))
    table.add_column("", overflow="fold")
    for split in data.splits:
        table.add_column(printable(split or "all"), justify="right", no_wrap=True)
    table.add_row("pictures", *(str(pictures[split]) for split in data.splits))
    empty = Counter(one.split for one in data.samples if len(one.boxes) == 0)
    table.add_row("of them without a box", *(str(empty[split]) for split in data.splits))
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
    """Everything that is wrong or remarkable, a line for each, the worst kinds not hidden by the many."""
    lines: list[str] = []
    for kind, count in report.issue_counts.items():
        own = [fault for fault in report.issues if fault.issue_type == kind]
        lines += [str(fault) for fault in own[:MAX_LINES_PER_ISSUE]]
        lines += [f"… and {count - MAX_LINES_PER_ISSUE} more of “{kind}”"] if count > MAX_LINES_PER_ISSUE else []
    crossing = set(report.leaks)
    for pair in report.duplicates[:MAX_LINES_PER_ISSUE]:
        alike = (
            "are byte for byte the same"
            if pair.exact
            else f"are nearly the same ({pair.hash_distance} of 64 bits differ)"
        )
        across = ", across splits" if pair in crossing else ""
        lines.append(f"{pair.first} and {pair.second} {alike}{across}")
    if len(report.duplicates) > MAX_LINES_PER_ISSUE:
        lines.append(
            f"… and {len(report.duplicates) - MAX_LINES_PER_ISSUE} more pairs, {len(crossing)} in all across splits"
        )
    thin = rare_classes(report)
    if thin:
        lines.append(f"under {MIN_BOXES_PER_CLASS} boxes in a split: {', '.join(thin)}")
    lines.append(
        "sound"
        if report.is_valid
        else "not sound: --repair FOLDER writes a copy without faults and equal files; these stay as they are"
    )
    return lines


def printable(text: str) -> Text:
    """Text in which brackets are no markup, and "?" stands for what a terminal cannot show: files name anything."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


def rare_classes(report: DatasetReport) -> list[str]:
    """The classes that have some boxes in a split, and fewer than are worth a figure."""
    counts = report.box_counts.values()
    return [name for name in report.data.classes if any(0 < own[name] < MIN_BOXES_PER_CLASS for own in counts)]
