"""What a data set's check found, for people and as ``check.json``; the verb ``chromabox data check``."""

import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.detect.data.load import find_set
from chromabox.detect.data.validate import FEW_BOXES, DetectionCheck, check_detection_set, repaired_copy
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError

#: Lines of a kind that are printed; the file has them all.
SHOWN = 20


def report_check(path: Path | str, *, repair: Path | None = None, output: Path | None = None) -> DetectionCheck:
    """Check the data, print what was found, write it as JSON to the file `output`, and a sound copy into `repair`.

    Raises what loading raises, UsageError for a `repair` that exists or lies in the data, ChromaboxError where a file
    cannot be written.
    """
    place = find_set(path)
    check = check_detection_set(place, show_progress=True)
    print_check(check, str(place))
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, check.as_json())
        except OSError as error:
            raise ChromaboxError(f"{output}: cannot be written ({error.strerror}); give another place") from error
        print(output)
    if repair is not None:
        copy = repaired_copy(check, place, repair)
        print(f"{copy.folder}: {copy.pictures} pictures, {copy.boxes} boxes, {len(copy.lines)} changes (repair.json)")
    return check


def print_check(check: DetectionCheck, title: str) -> None:
    """Counts of splits and classes as a table, then what is wrong, at most some lines of each kind."""
    data, boxes = check.data, check.boxes
    pictures = Counter(one.split for one in data.pictures)
    table = Table(title=plain(f"{title} ({data.format.upper()})"))
    table.add_column("", overflow="fold")
    for split in data.splits:
        table.add_column(plain(split or "all"), justify="right", no_wrap=True)
    table.add_row("pictures", *(str(pictures[split]) for split in data.splits))
    empty = Counter(one.split for one in data.pictures if len(one.boxes) == 0)
    table.add_row("of them without a box", *(str(empty[split]) for split in data.splits))
    table.add_row("boxes", *(str(sum(boxes[split].values())) for split in data.splits))
    table.add_section()
    for name in data.classes:
        counts = [boxes[split][name] for split in data.splits]
        if any(counts):
            table.add_row(plain(name if data.named else f"class {name}"), *map(str, counts))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    for line in said(check):
        print(plain(line))


def said(check: DetectionCheck) -> list[str]:
    """Everything that is wrong or remarkable, a line for each, the worst kinds not hidden by the many."""
    lines: list[str] = []
    for kind, count in check.kinds.items():
        own = [fault for fault in check.faults if fault.kind == kind]
        lines += [str(fault) for fault in own[:SHOWN]]
        lines += [f"… and {count - SHOWN} more of “{kind}”"] if count > SHOWN else []
    crossing = set(check.crossing)
    for pair in check.twins[:SHOWN]:
        alike = "are byte for byte the same" if pair.exact else f"are nearly the same ({pair.bits} of 64 bits differ)"
        across = ", across splits" if pair in crossing else ""
        lines.append(f"{pair.first} and {pair.second} {alike}{across}")
    if len(check.twins) > SHOWN:
        lines.append(f"… and {len(check.twins) - SHOWN} more pairs, {len(crossing)} in all across splits")
    thin = thin_classes(check)
    if thin:
        lines.append(f"under {FEW_BOXES} boxes in a split: {', '.join(thin)}")
    lines.append(
        "sound"
        if check.sound
        else "not sound: --repair FOLDER writes a copy without faults and equal files; these stay as they are"
    )
    return lines


def plain(text: str) -> Text:
    """Text in which brackets are no markup, and "?" stands for what a terminal cannot show: files name anything."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


def thin_classes(check: DetectionCheck) -> list[str]:
    """The classes that have some boxes in a split, and fewer than are worth a figure."""
    counts = check.boxes.values()
    return [name for name in check.data.classes if any(0 < own[name] < FEW_BOXES for own in counts)]
