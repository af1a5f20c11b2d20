"""A student's nets beside figure 1, told on the terminal and as JSON; the verb ``chromabox check``."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.assignment.check.checks import NOT_REACHED, Check, NetCheck
from chromabox.assignment.check.runner import SelfCheck, self_check
from chromabox.assignment.check.trace import Step
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError
from chromabox.report.check import plain

MARKS = {True: "✓", False: "✗", None: "·"}
STYLES = {True: "green", False: "red", None: "yellow"}


def report_self_check(
    path: Path, *, seconds: float = 60.0, gigabytes: float = 4.0, output: Path | None = None
) -> SelfCheck:
    """Check the file's classes, print what was found, and write it as JSON to the file `output`.

    Raises what :func:`chromabox.assignment.check.runner.self_check` raises, and ChromaboxError where the file cannot
    be written.
    """
    with Console(stderr=True).status(plain(f"running the classes of {path.name}, {seconds:g} s at most")):
        found = self_check(path, seconds=seconds, gigabytes=gigabytes)
    print_self_check(found)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, found.as_json())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ChromaboxError(f"{output}: cannot be written ({reason}); give another place") from error
        print(output)
    return found


def print_self_check(found: SelfCheck) -> None:
    """Verdicts, layers and hints of every net, then one line on all of it."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for note in found.notes:
        console.print(plain(f"note: {note}"))
    for net in found.nets:
        console.print()
        console.print(plain(net.class_name), style="bold")
        console.print(verdicts(net.checks))
        if net.lines:
            console.print(layers(net))
        for hint in net.hints:
            console.print(plain(f"→ {hint}"))
    console.print(plain(conclusion(found)))


def verdicts(checks: list[Check]) -> Table:
    """A line a question: its mark, its name and what was seen."""
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(Text(MARKS[check.passed], style=STYLES[check.passed]), plain(check.name), plain(check.said))
    return table


def layers(net: NetCheck) -> Table:
    """The figure's steps beside the class's own."""
    table = Table(title=plain(f"{net.class_name}, layer by layer"), title_justify="left")
    table.add_column("")
    for name in ("place", "figure 1", "output", "parameters", "yours", "module", "output", "parameters", "differs"):
        counts, long = name == "parameters", name in ("module", "differs")
        table.add_column(name, overflow="fold", justify="right" if counts else "left", no_wrap=not long)
    for line in net.lines:
        good = None if line.said == NOT_REACHED else line.status == "equal"
        said = "follows from the above" if line.follows else line.said
        figure = (line.place, _named(line.wanted), _shape(line.wanted), _count(line.wanted))
        own = (_named(line.found), _where(line.found), _shape(line.found), _count(line.found))
        table.add_row(Text(MARKS[good], style=STYLES[good]), *(plain(cell) for cell in (*figure, *own, said)))
    return table


def _named(step: Step | None) -> str:
    """A layer with its channels."""
    if step is None:
        return ""
    settings = step.settings
    channels = f"({settings['inputs']}→{settings['outputs']})" if "outputs" in settings else ""
    return f"{'concatenation' if step.kind == 'cat' else step.kind}{channels}"


def _count(step: Step | None) -> str:
    return f"{step.parameters:,}" if step is not None and step.parameters else ""


def _where(step: Step | None) -> str:
    """The module of a class that is at work."""
    return "" if step is None else f"self.{step.module}" if step.module else "in forward"


def _shape(step: Step | None) -> str:
    return "" if step is None else " × ".join(str(side) for side in step.shape[1:])


def conclusion(found: SelfCheck) -> str:
    """All of it in one line."""
    if found.failed is not None:
        return f"✗ {found.failed}"
    wrong = [net for net in found.nets if not net.matches]
    right = [net.class_name for net in found.nets if net.matches]
    parts = [f"{', '.join(right)}: as in figure 1"] if right else []
    parts += [
        f"{net.class_name}: {sum(one.passed is False for one in net.checks)} of {len(net.checks)} checks fail"
        for net in wrong
    ]
    return "; ".join(parts)
