"""Checks of students' models against figure 1 for ``chromabox check``: child processes with limits, and the results.

Students' code may raise errors, exit, crash, loop, print or allocate memory. The parent process therefore only reads a
file of JSON lines that the child process has written, limits its run time, and describes in one sentence how it ended.

Results are printed on the terminal and written as JSON.
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

#: Largest number of bytes that are read of a child's result file.
MAX_REPORT_BYTES = 1 << 24

#: Environment of the child: no windows, no compilation, no bytecode files next to the student's file, no GPU.
CHILD_ENV = {
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
EXIT_REASONS = {
    "SIGSEGV": "invalid memory access",
    "SIGKILL": "killed, usually for lack of memory",
    "SIGXCPU": "processor time limit exceeded",
    "SIGABRT": "aborted",
}


@dataclass(frozen=True)
class CheckResult:
    """Result of checking a file."""

    file: str
    reports: list[NetReport]
    notes: list[str] = field(default_factory=list)
    """Parts of the file that were skipped, and why."""
    error: str | None = None
    """Why no model could be checked, in one sentence; None otherwise."""

    @property
    def matches(self) -> bool:
        """Whether there is at least one model and all of them match figure 1."""
        return self.error is None and bool(self.reports) and all(report.matches for report in self.reports)

    def as_json(self) -> dict[str, Any]:
        """Return the complete result as JSON values."""
        models = [{"matches": report.matches, **asdict(report)} for report in self.reports]
        return {"file": self.file, "matches": self.matches, "failed": self.error, "notes": self.notes, "nets": models}


@dataclass
class _Events:
    """Events received from the child processes so far."""

    observations: dict[str, Observations] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    other_classes: list[str] = field(default_factory=list)
    error: str | None = None
    is_done: bool = False
    current_action: dict[str, Any] | None = None
    """The last action that has started and not ended."""

    def handle(self, event: Mapping[str, Any]) -> None:
        """Process one event of a child process."""
        if "nets" in event:
            for model, name in event["nets"].items():
                self.observations.setdefault(model, Observations(str(name)))
            self.other_classes = [str(name) for name in event["others"]]
        elif "notes" in event:
            self.notes = [str(note) for note in event["notes"]]
        elif "net" in event and "doing" not in event:
            observations = self.observations[event["net"]]
            (observations.failures if "failed" in event else observations.values)[event["fact"]] = event.get(
                "failed", event.get("value")
            )
        elif "failed" in event:
            self.error = str(event["failed"])
        self.current_action = dict(event) if "doing" in event else None
        self.is_done = self.is_done or "done" in event

    def fail(self, exit_reason: str) -> None:
        """Record that the child ended early: its last action is the one that failed."""
        action = self.current_action or {"doing": "starting the child process"}
        message = f"{action['doing']}: {exit_reason}"
        if "net" in action:
            self.observations[action["net"]].failures[action["fact"]] = message
        else:
            self.error = message


def check_file(
    path: Path, *, model_names: Sequence[str] = tuple(CLASSES), timeout: float = 60.0, memory_limit_gb: float = 4.0
) -> CheckResult:
    """Compare the classes of a .py file or notebook with figure 1. The file is executed in a child process.

    Args:
        path: The .py or .ipynb file.
        model_names: The models of figure 1 to check.
        timeout: Time limit of a child process in seconds, including the import of PyTorch. If a class ends its process,
            the remaining classes are checked in a new one.
        memory_limit_gb: Memory limit of a child process in GB, where the system supports it.

    Raise UsageError for a missing file, for one that is neither Python nor a notebook, and for invalid limits. Raise
    ChromaboxError if the child process cannot be started or its result file is invalid.
    """
    _check_usage(path, timeout, memory_limit_gb)
    try:
        events = _collect_events(path.resolve(), model_names, timeout, memory_limit_gb)
        reports = [run_checks(model, events.observations[model]) for model in CLASSES if model in events.observations]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ChromaboxError(
            f"{path}: its classes corrupted the result file ({type(error).__name__}); they must not write to files "
            "that are already open"
        ) from error
    error_message = events.error
    if error_message is None and not reports:
        expected = " nor ".join(CLASSES[model] for model in model_names)
        defined = (
            f"its classes are {', '.join(events.other_classes[:10])}"
            if events.other_classes
            else "it defines no classes"
        )
        error_message = (
            f"{path.name} defines neither {expected}; {defined}"
            if len(model_names) > 1
            else f"{path.name} does not define {expected}; {defined}"
        )
    return CheckResult(str(path), reports, events.notes, error_message)


def _check_usage(path: Path, timeout: float, memory_limit_gb: float) -> None:
    if path.is_dir():
        raise UsageError(
            f"{path}: is a folder; expected a .py or .ipynb file with the classes (to validate a detection dataset, "
            f"use chromabox data check {path})"
        )
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a .py or .ipynb file")
    if path.suffix.lower() not in (".py", ".ipynb"):
        raise UsageError(f"{path}: unsupported file type; expected a .py file or a notebook (.ipynb)")
    if not 1 <= timeout <= 3600:
        raise UsageError(f"--timeout: is {timeout:g}; expected 1 to 3600 seconds")
    if not 1 <= memory_limit_gb <= 1024:
        raise UsageError(
            f"--memory-limit: is {memory_limit_gb:g}; expected 1 to 1024 GB (PyTorch alone uses several hundred MB)"
        )


def _collect_events(path: Path, model_names: Sequence[str], timeout: float, memory_limit_gb: float) -> _Events:
    """Start child processes until every model has been inspected or has terminated its process."""
    events, remaining = _Events(), list(model_names)
    while remaining:
        events.is_done, events.current_action = False, None
        with tempfile.TemporaryDirectory(prefix="chromabox-check-", ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary) / "work"
            folder.mkdir()
            request = {"file": str(path), "nets": remaining, "folder": str(folder), "seconds": timeout}
            request |= {"gigabytes": memory_limit_gb, "result": str(Path(temporary) / "result.jsonl")}
            (Path(temporary) / "request.json").write_text(json.dumps(request), encoding="utf-8")
            exit_reason = _run_child(Path(temporary) / "request.json", folder, timeout)
            for event in _read_events(Path(temporary) / "result.jsonl"):
                events.handle(event)
        if not events.is_done:
            events.fail(exit_reason)
        if events.is_done or events.error is not None:
            break
        inspected = [
            model
            for model in remaining
            if model in events.observations
            and (events.observations[model].values or events.observations[model].failures)
        ]
        remaining = remaining[remaining.index(inspected[-1]) + 1 :] if inspected else []
    return events


def _run_child(request: Path, folder: Path, timeout: float) -> str:
    """Run one child process until it ends or the time limit is reached; describe how it ended."""
    command = [sys.executable, "-P", "-m", "chromabox.assignment.check.worker", str(request)]
    null = subprocess.DEVNULL
    environment = {**os.environ, **CHILD_ENV, "TMPDIR": str(folder), "TEMP": str(folder)}
    try:
        child = subprocess.Popen(command, env=environment, start_new_session=True, stdin=null, stdout=null, stderr=null)
    except OSError as error:
        raise ChromaboxError(
            f"{sys.executable}: cannot be started ({error.strerror}); reinstall this Python environment"
        ) from error
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"did not finish within {timeout:g} s"
    finally:
        _kill_child(child)
    if code >= 0:
        return f"the process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"the process ended with {name}" + (f" ({EXIT_REASONS[name]})" if name in EXIT_REASONS else "")


def _kill_child(child: "subprocess.Popen[bytes]") -> None:
    """Kill a running child process and the processes of its process group."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()
    else:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read_events(result: Path) -> Iterator[dict[str, Any]]:
    """Read the events that a child wrote; invalid lines are skipped, as a crash may truncate the last one."""
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
    """Check the classes of a file, print the result, and write it as JSON to the file ``output``.

    Raise the errors of :func:`check_file`, and ChromaboxError if the output file cannot be written.
    """
    with Console(stderr=True).status(printable(f"running the classes of {path.name} (at most {timeout:g} s)")):
        result = check_file(path, timeout=timeout, memory_limit_gb=memory_limit_gb)
    print_check(result)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            write_json(output, result.as_json())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ChromaboxError(f"{output}: cannot be written ({reason}); use another path") from error
        print(output)
    return result


def print_check(result: CheckResult) -> None:
    """Print the checks, layers and hints of every model, then a one-line summary."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    for note in result.notes:
        console.print(printable(f"note: {note}"))
    for report in result.reports:
        console.print()
        console.print(printable(report.class_name), style="bold")
        console.print(check_table(report.checks))
        if report.diff:
            console.print(layer_table(report))
        for hint in report.hints:
            console.print(printable(f"→ {hint}"))
    console.print(printable(summary_line(result)))


def check_table(checks: list[CheckItem]) -> Table:
    """Return a table of the checks: status mark, name and message."""
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
    """Return a table of the operations of figure 1 and of the class."""
    table = Table(title=printable(f"{report.class_name}, layer by layer"), title_justify="left")
    table.add_column("")
    columns = (
        *("location", "figure 1", "output", "parameters"),
        *("your layer", "module", "output", "parameters", "difference"),
    )
    for name in columns:
        is_number, is_long = name == "parameters", name in ("module", "difference")
        table.add_column(name, overflow="fold", justify="right" if is_number else "left", no_wrap=not is_long)
    for line in report.diff:
        passed = None if line.message == NOT_REACHED else line.status == "equal"
        message = "consequence of the above" if line.is_consequence else line.message
        expected = (
            line.location,
            _layer_text(line.expected),
            _shape_text(line.expected),
            _parameter_text(line.expected),
        )
        actual = (
            _layer_text(line.actual),
            _module_text(line.actual),
            _shape_text(line.actual),
            _parameter_text(line.actual),
        )
        table.add_row(
            Text(STATUS_MARKS[passed], style=STATUS_STYLES[passed]),
            *(printable(cell) for cell in (*expected, *actual, message)),
        )
    return table


def _layer_text(op: Op | None) -> str:
    """Return the name of a layer with its numbers of channels."""
    if op is None:
        return ""
    settings = op.settings
    channels = f"({settings['inputs']}→{settings['outputs']})" if "outputs" in settings else ""
    return f"{'concatenation' if op.kind == 'cat' else op.kind}{channels}"


def _parameter_text(op: Op | None) -> str:
    return f"{op.num_parameters:,}" if op is not None and op.num_parameters else ""


def _module_text(op: Op | None) -> str:
    """Return the module of the class that runs the operation."""
    return "" if op is None else f"self.{op.module}" if op.module else "in forward"


def _shape_text(op: Op | None) -> str:
    return "" if op is None else " × ".join(str(side) for side in op.shape[1:])


def summary_line(result: CheckResult) -> str:
    """Summarise the result in one line."""
    if result.error is not None:
        return f"✗ {result.error}"
    failed = [report for report in result.reports if not report.matches]
    passed = [report.class_name for report in result.reports if report.matches]
    parts = [f"{', '.join(passed)}: as in figure 1"] if passed else []
    parts += [
        f"{report.class_name}: {sum(check.passed is False for check in report.checks)} of {len(report.checks)} checks "
        "fail"
        for report in failed
    ]
    return "; ".join(parts)
