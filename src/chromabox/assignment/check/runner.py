"""Checks of students' models against figure 1 for ``chromabox check``.

Students' code may raise errors, exit, crash, loop, print or allocate memory. It therefore runs in a child process with
resource limits, which writes its results to a JSON Lines file. The parent process reads this file, prints the results
and writes them as JSON.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chromabox.assignment.check.align import DiffLine
from chromabox.assignment.check.checks import NOT_REACHED, CheckItem, NetReport, layer_name
from chromabox.assignment.check.trace import Op
from chromabox.assignment.check.worker import CLASSES
from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.tables import make_console, print_grid, printable, save_results

#: Environment of the child process: no GPU, no figure windows, a single thread, no compilation and no bytecode.
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
}


@dataclass
class CheckResult:
    """Result of checking a file."""

    file: str
    reports: list[NetReport]
    notes: list[str] = field(default_factory=list)
    """Descriptions of the parts of the file that were skipped."""
    error: str | None = None
    """Sentence that states why no model could be checked, or None."""
    class_names: list[str] = field(default_factory=list)
    """Names of all classes in the file."""

    @property
    def matches(self) -> bool:
        """Whether the file defines at least one model and all its models match figure 1."""
        return self.error is None and bool(self.reports) and all(report.matches for report in self.reports)


def check_file(path: Path, *, timeout: float = 60.0, memory_limit_gb: float = 4.0) -> CheckResult:
    """Compare the classes of a .py file or notebook with figure 1. The file is executed in a child process.

    Args:
        path: The .py or .ipynb file.
        timeout: Time limit of a child process in seconds, including the import of PyTorch. If a class ends its process,
            the remaining classes are checked in a new process.
        memory_limit_gb: Memory limit of a child process in GB, where the system supports it.

    Raise UsageError for a missing file, for a file that is neither Python nor a notebook, and for invalid limits. Raise
    ChromaboxError if the result file of the child process is invalid.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; expected a .py or .ipynb file (for datasets, use chromabox data check)")
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected a .py or .ipynb file")
    if path.suffix.lower() not in (".py", ".ipynb"):
        raise UsageError(f"{path}: unsupported file type; expected a .py or .ipynb file")
    for option, value, maximum, unit in (
        ("--timeout", timeout, 3600, "seconds"),
        ("--memory-limit", memory_limit_gb, 1024, "GB"),
    ):
        if not 1 <= value <= maximum:
            raise UsageError(f"{option} is {value:g}: expected 1 to {maximum} {unit}")
    result = CheckResult(str(path), [])
    try:
        _inspect(path.resolve(), timeout, memory_limit_gb, result)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ChromaboxError(
            f"{path}: the classes corrupted the result file ({type(error).__name__}); expected classes that write "
            "only to files that they have opened"
        ) from error
    if result.error is None and not result.reports:
        names = ", ".join(result.class_names[:10])
        defined = f"its classes are {names}" if names else "it defines no classes"
        result.error = f"{path.name} defines neither {' nor '.join(CLASSES.values())}; {defined}"
    return result


def _inspect(path: Path, timeout: float, memory_limit_gb: float, result: CheckResult) -> None:
    """Check all models in child processes, and add the reports to the result.

    If a model ends its process, the remaining models are checked in a new process.
    """
    reports: dict[str, NetReport] = {}
    remaining = list(CLASSES)
    while remaining and result.error is None:
        state: dict[str, Any] = {"doing": "starting the child process"}
        with tempfile.TemporaryDirectory(prefix="chromabox-check-", ignore_cleanup_errors=True) as temporary:
            folder, state_file = Path(temporary) / "work", Path(temporary) / "result.jsonl"
            folder.mkdir()
            state_file.touch()
            request = {"file": str(path), "nets": remaining, "folder": str(folder), "result": str(state_file)}
            exit_reason = _run_child({**request, "seconds": timeout, "gigabytes": memory_limit_gb}, timeout)
            lines = state_file.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # a crash may truncate the last line
                state = json.loads(line)
        reports |= {values["model"]: parse_report(values) for values in state.get("reports", [])}
        result.class_names, result.notes = state.get("classes", []), state.get("notes", [])
        result.error = state.get("failed")
        if "done" in state or result.error is not None:
            break
        # The child process ended early, so the action in progress has failed.
        message = f"{state['doing']}: {exit_reason}"
        if "net" in state:
            reports[state["net"]].add(state["check"], False, message)
            remaining = remaining[remaining.index(state["net"]) + 1 :]
        else:
            result.error = message
    result.reports += [reports[model] for model in CLASSES if model in reports]


def parse_report(values: dict[str, Any]) -> NetReport:
    """Return a report written by the child process. Raise KeyError or TypeError if it is invalid."""

    def parse_op(op: dict[str, Any] | None) -> Op | None:
        return None if op is None else Op(**{**op, "shape": tuple(op["shape"]), "sources": tuple(op["sources"])})

    diff = [
        DiffLine(**{**line, "expected": parse_op(line["expected"]), "actual": parse_op(line["actual"])})
        for line in values["diff"]
    ]
    return NetReport(**{**values, "checks": [CheckItem(**check) for check in values["checks"]], "diff": diff})


def _run_child(request: dict[str, Any], timeout: float) -> str:
    """Run one child process until it ends or exceeds the time limit, and describe how it ended.

    When this function returns, the processes that the child process has started have ended, too. If this process is
    killed, its end of a pipe is closed, which the child process notices.
    """
    has_groups = sys.platform != "win32"
    pipe, own_end = os.pipe()
    request = {**request, "pipe": pipe if has_groups else None}
    command = [sys.executable, "-P", "-m", "chromabox.assignment.check.worker", json.dumps(request)]
    environment = {**os.environ, **CHILD_ENV, "TMPDIR": request["folder"], "TEMP": request["folder"]}
    null = subprocess.DEVNULL
    child = None
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            pass_fds=[pipe] if has_groups else [],
            stdin=null,
            stdout=null,
            stderr=null,
        )
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        return f"did not finish within {timeout:g} s"
    finally:
        if child is not None:
            child.kill()
            # Other processes in the group can still run if the child process has ended.
            if sys.platform != "win32":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        os.close(pipe)
        os.close(own_end)
    if code >= 0:
        return f"the process ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"the process ended with {name}" + (f" ({EXIT_REASONS[name]})" if name in EXIT_REASONS else "")


STATUS_MARKS = {True: "✓", False: "✗", None: "·"}


def report_check(
    path: Path, *, timeout: float = 60.0, memory_limit_gb: float = 4.0, output: Path | None = None
) -> CheckResult:
    """Check the classes of a file and print the result. Write it as JSON if ``output`` is given.

    Raise the errors of :func:`check_file`, and ChromaboxError if the file ``output`` cannot be written.
    """
    with Console(stderr=True).status(printable(f"running the classes of {path.name} (at most {timeout:g} s)")):
        result = check_file(path, timeout=timeout, memory_limit_gb=memory_limit_gb)
    print_check(result)
    if output is not None:
        models = [{"matches": report.matches, **asdict(report)} for report in result.reports]
        values = {"file": result.file, "matches": result.matches, "failed": result.error, "notes": result.notes}
        save_results(output, {**values, "nets": models})
    return result


def print_check(result: CheckResult) -> None:
    """Print the checks, operations and hints of every model, then a one-line summary."""
    console = make_console()
    for note in result.notes:
        console.print(printable(f"note: {note}"))
    for report in result.reports:
        console.print(Text("\n"), Text(report.class_name, "bold"), sep="")
        table = Table.grid(padding=(0, 1))
        for check in report.checks:
            table.add_row(_status_text(check.passed), printable(check.name), printable(check.message))
        console.print(table)
        if report.diff:
            sizes = ("output", "parameters")
            columns = ["", "location", "figure 1", *sizes, "your layer", "module", *sizes, "difference"]
            rows: list[list[str | Text]] = []
            for line in report.diff:
                passed = None if line.message == NOT_REACHED else line.status == "equal"
                layer, _, shape, count = _op_cells(line.expected)
                cells = [layer, shape, count, *_op_cells(line.actual)]
                message = "consequence of a difference above" if line.is_consequence else line.message
                rows.append([_status_text(passed), line.location, *cells, message])
            print_grid(f"{report.class_name}, layer by layer", columns, rows)
        for hint in report.hints:
            console.print(printable(f"→ {hint}"))
    console.print(printable(summary_line(result)))


def _status_text(passed: bool | None) -> Text:
    return Text(STATUS_MARKS[passed], style={True: "green", False: "red", None: "yellow"}[passed])


def _op_cells(op: Op | None) -> tuple[str, str, str, str]:
    """Return the layer with its numbers of channels, its module, its output shape, and its number of parameters."""
    if op is None:
        return "", "", "", ""
    channels = f"({op.settings['inputs']}→{op.settings['outputs']})" if "outputs" in op.settings else ""
    shape = " × ".join(map(str, op.shape[1:]))
    return layer_name(op) + channels, op.place, shape, f"{op.num_parameters:,}" if op.num_parameters else ""


def summary_line(result: CheckResult) -> str:
    """Summarise the result in one line."""
    if result.error is not None:
        return f"✗ {result.error}"
    passed = [report.class_name for report in result.reports if report.matches]
    parts = [f"{', '.join(passed)}: as in figure 1"] if passed else []
    for report in result.reports:
        if not report.matches:
            count = sum(check.passed is False for check in report.checks)
            parts.append(f"{report.class_name}: {count} of {len(report.checks)} checks failed")
    return "; ".join(parts)
