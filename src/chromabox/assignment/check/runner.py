"""A student's own nets held beside figure 1: run in a child process with limits, judged here.

Whatever the student's code does (raise, exit, crash, loop, print, take memory), this side reads a file of JSON lines
that the child has written, waits no longer than it was told to, and says in a sentence what became of the child.

A student's nets beside figure 1, told on the terminal and as JSON; the verb ``chromabox check``.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.assignment.check.checks import NOT_REACHED, CheckItem, NetReport, Observations, run_checks
from chromabox.assignment.check.trace import Op
from chromabox.assignment.check.worker import CLASSES
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.dataset import printable

#: The most bytes of a child's report that are read.
MAX_REPORT_BYTES = 1 << 24

#: For the child alone: nothing is drawn, compiled, cached beside the student's file, or done on a graphics card.
CHILD_ENV = {
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
EXIT_REASONS = {
    "SIGSEGV": "it reached for memory that is not its own",
    "SIGKILL": "it was killed, mostly for want of memory",
    "SIGXCPU": "it used up its processor time",
    "SIGABRT": "it gave up",
}


@dataclass(frozen=True)
class CheckResult:
    """What came of a file."""

    file: str
    reports: list[NetReport]
    notes: list[str] = field(default_factory=list)
    """What of the file was left out, and why."""
    error: str | None = None
    """Why no net could be looked at, in a sentence."""

    @property
    def matches(self) -> bool:
        """Whether there is a net, and every one is the figure's."""
        return self.error is None and bool(self.reports) and all(one.matches for one in self.reports)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        nets = [{"matches": one.matches, **asdict(one)} for one in self.reports]
        return {"file": self.file, "matches": self.matches, "failed": self.error, "notes": self.notes, "nets": nets}


@dataclass
class _Events:
    """What the children have said so far."""

    observations: dict[str, Observations] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    other_classes: list[str] = field(default_factory=list)
    error: str | None = None
    is_done: bool = False
    current_action: dict[str, Any] | None = None
    """The last thing that was begun and not ended."""

    def handle(self, event: Mapping[str, Any]) -> None:
        """One line of a child's."""
        if "nets" in event:
            for net, name in event["nets"].items():
                self.observations.setdefault(net, Observations(str(name)))
            self.other_classes = [str(name) for name in event["others"]]
        elif "notes" in event:
            self.notes = [str(note) for note in event["notes"]]
        elif "net" in event and "doing" not in event:
            facts = self.observations[event["net"]]
            (facts.failures if "failed" in event else facts.values)[event["fact"]] = event.get(
                "failed", event.get("value")
            )
        elif "failed" in event:
            self.error = str(event["failed"])
        self.current_action = dict(event) if "doing" in event else None
        self.is_done = self.is_done or "done" in event

    def fail(self, exit_reason: str) -> None:
        """The child ended before it was done; what it did last bears the blame."""
        doing = self.current_action or {"doing": "starting a process for the file"}
        sentence = f"{doing['doing']} {exit_reason}"
        if "net" in doing:
            self.observations[doing["net"]].failures[doing["fact"]] = sentence
        else:
            self.error = sentence


def check_file(
    path: Path, *, model_names: Sequence[str] = tuple(CLASSES), timeout: float = 60.0, memory_limit_gb: float = 4.0
) -> CheckResult:
    """Hold the classes of a .py file or notebook beside figure 1. The file is executed, in a child process.

    Args:
        nets: which of the figure's nets to look for.
        seconds: the longest that a child may take, PyTorch's import included. A class that ends its child is left, and
            the classes after it get a child of their own.
        gigabytes: the most memory a child may take, where the system can limit it.

    Raises UsageError for a file that is none, or neither Python nor a notebook, or for limits that are none;
    ChromaboxError if no child can be started or it wrote what no child of ours writes.
    """
    _check_usage(path, timeout, memory_limit_gb)
    try:
        heard = _collect_events(path.resolve(), model_names, timeout, memory_limit_gb)
        checks = [run_checks(net, heard.observations[net]) for net in CLASSES if net in heard.observations]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ChromaboxError(
            f"{path}: what its classes did left no readable report ({type(error).__name__}); it must not write into "
            "files that it finds open"
        ) from error
    failed = heard.error
    if failed is None and not checks:
        wanted = " nor ".join(CLASSES[net] for net in model_names)
        there = (
            f"its classes are {', '.join(heard.other_classes[:10])}"
            if heard.other_classes
            else "there is no class in it"
        )
        failed = (
            f"{path.name} defines neither {wanted}; {there}"
            if len(model_names) > 1
            else f"{path.name} has no {wanted}; {there}"
        )
    return CheckResult(str(path), checks, heard.notes, failed)


def _check_usage(path: Path, timeout: float, memory_limit_gb: float) -> None:
    if path.is_dir():
        raise UsageError(
            f"{path}: is a folder; check takes your own .py or .ipynb file with the classes (labelled sets for the "
            f"detector are looked over by chromabox data check {path})"
        )
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give your own .py or .ipynb file")
    if path.suffix.lower() not in (".py", ".ipynb"):
        raise UsageError(f"{path}: neither a .py file nor a notebook (.ipynb); save your classes as one of these")
    if not 1 <= timeout <= 3600:
        raise UsageError(f"time is {timeout:g}: give 1 to 3600 seconds")
    if not 1 <= memory_limit_gb <= 1024:
        raise UsageError(f"memory is {memory_limit_gb:g}: give 1 to 1024 GB, PyTorch alone takes some hundred MB")


def _collect_events(path: Path, model_names: Sequence[str], timeout: float, memory_limit_gb: float) -> _Events:
    """Start children until every net has been tried or stands as the end of one."""
    heard, left = _Events(), list(model_names)
    while left:
        heard.is_done, heard.current_action = False, None
        with tempfile.TemporaryDirectory(prefix="chromabox-check-", ignore_cleanup_errors=True) as place:
            folder = Path(place) / "work"
            folder.mkdir()
            request = {"file": str(path), "nets": left, "folder": str(folder), "seconds": timeout}
            request |= {"gigabytes": memory_limit_gb, "result": str(Path(place) / "result.jsonl")}
            (Path(place) / "request.json").write_text(json.dumps(request), encoding="utf-8")
            death = _run_child(Path(place) / "request.json", folder, timeout)
            for event in _read_events(Path(place) / "result.jsonl"):
                heard.handle(event)
        if not heard.is_done:
            heard.fail(death)
        if heard.is_done or heard.error is not None:
            break
        tried = [
            net
            for net in left
            if net in heard.observations and (heard.observations[net].values or heard.observations[net].failures)
        ]
        left = left[left.index(tried[-1]) + 1 :] if tried else []
    return heard


def _run_child(request: Path, folder: Path, timeout: float) -> str:
    """Run one child to its end or its time's; how it ended, to be read behind what it was doing."""
    command = [sys.executable, "-P", "-m", "chromabox.assignment.check.worker", str(request)]
    null = subprocess.DEVNULL
    surroundings = {**os.environ, **CHILD_ENV, "TMPDIR": str(folder), "TEMP": str(folder)}
    try:
        child = subprocess.Popen(
            command, env=surroundings, start_new_session=True, stdin=null, stdout=null, stderr=null
        )
    except OSError as error:
        raise ChromaboxError(f"{sys.executable}: cannot be started ({error.strerror}); is Python whole?") from error
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout:g} s"
    finally:
        _kill_child(child)
    if code >= 0:
        return f"ended the process with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended the process with {name}" + (f" ({EXIT_REASONS[name]})" if name in EXIT_REASONS else "")


def _kill_child(child: "subprocess.Popen[bytes]") -> None:
    """End a child that still runs, and the processes it has started as far as they are in its group."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()
    else:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read_events(result: Path) -> Iterator[dict[str, Any]]:
    """The lines that a child wrote; what is no line of ours is passed over, as the last one of a crash may be."""
    if not result.is_file():
        return
    with result.open("rb") as file:
        content = file.read(MAX_REPORT_BYTES)
    for line in content.decode("utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


STATUS_MARKS = {True: "✓", False: "✗", None: "·"}
STATUS_STYLES = {True: "green", False: "red", None: "yellow"}


def report_check(
    path: Path, *, timeout: float = 60.0, memory_limit_gb: float = 4.0, output: Path | None = None
) -> CheckResult:
    """Check the file's classes, print what was found, and write it as JSON to the file `output`.

    Raises what :func:`chromabox.assignment.check.runner.self_check` raises, and ChromaboxError where the file cannot
    be written.
    """
    with Console(stderr=True).status(printable(f"running the classes of {path.name}, {timeout:g} s at most")):
        found = check_file(path, timeout=timeout, memory_limit_gb=memory_limit_gb)
    print_check(found)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, found.as_json())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ChromaboxError(f"{output}: cannot be written ({reason}); give another place") from error
        print(output)
    return found


def print_check(result: CheckResult) -> None:
    """Verdicts, layers and hints of every net, then one line on all of it."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for note in result.notes:
        console.print(printable(f"note: {note}"))
    for net in result.reports:
        console.print()
        console.print(printable(net.class_name), style="bold")
        console.print(check_table(net.checks))
        if net.diff:
            console.print(layer_table(net))
        for hint in net.hints:
            console.print(printable(f"→ {hint}"))
    console.print(printable(summary_line(result)))


def check_table(checks: list[CheckItem]) -> Table:
    """A line a question: its mark, its name and what was seen."""
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        table.add_row(
            Text(STATUS_MARKS[check.passed], style=STATUS_STYLES[check.passed]),
            printable(check.name),
            printable(check.message),
        )
    return table


def layer_table(report: NetReport) -> Table:
    """The figure's steps beside the class's own."""
    table = Table(title=printable(f"{report.class_name}, layer by layer"), title_justify="left")
    table.add_column("")
    for name in ("place", "figure 1", "output", "parameters", "yours", "module", "output", "parameters", "differs"):
        counts, long = name == "parameters", name in ("module", "differs")
        table.add_column(name, overflow="fold", justify="right" if counts else "left", no_wrap=not long)
    for line in report.diff:
        good = None if line.message == NOT_REACHED else line.status == "equal"
        said = "follows from the above" if line.is_consequence else line.message
        figure = (line.location, _layer_text(line.expected), _shape_text(line.expected), _parameter_text(line.expected))
        own = (
            _layer_text(line.actual),
            _module_text(line.actual),
            _shape_text(line.actual),
            _parameter_text(line.actual),
        )
        table.add_row(
            Text(STATUS_MARKS[good], style=STATUS_STYLES[good]), *(printable(cell) for cell in (*figure, *own, said))
        )
    return table


def _layer_text(op: Op | None) -> str:
    """A layer with its channels."""
    if op is None:
        return ""
    settings = op.settings
    channels = f"({settings['inputs']}→{settings['outputs']})" if "outputs" in settings else ""
    return f"{'concatenation' if op.kind == 'cat' else op.kind}{channels}"


def _parameter_text(op: Op | None) -> str:
    return f"{op.num_parameters:,}" if op is not None and op.num_parameters else ""


def _module_text(op: Op | None) -> str:
    """The module of a class that is at work."""
    return "" if op is None else f"self.{op.module}" if op.module else "in forward"


def _shape_text(op: Op | None) -> str:
    return "" if op is None else " × ".join(str(side) for side in op.shape[1:])


def summary_line(result: CheckResult) -> str:
    """All of it in one line."""
    if result.error is not None:
        return f"✗ {result.error}"
    wrong = [net for net in result.reports if not net.matches]
    right = [net.class_name for net in result.reports if net.matches]
    parts = [f"{', '.join(right)}: as in figure 1"] if right else []
    parts += [
        f"{net.class_name}: {sum(one.passed is False for one in net.checks)} of {len(net.checks)} checks fail"
        for net in wrong
    ]
    return "; ".join(parts)
