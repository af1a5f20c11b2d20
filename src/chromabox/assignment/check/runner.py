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

from chromabox.assignment.check.checks import NOT_REACHED, Check, Facts, NetCheck, judge
from chromabox.assignment.check.trace import Step
from chromabox.assignment.check.worker import CLASSES
from chromabox.engine.checkpoint import write_json
from chromabox.errors import ChromaboxError, UsageError
from chromabox.report.dataset import plain

#: The most bytes of a child's report that are read.
MOST = 1 << 24

#: For the child alone: nothing is drawn, compiled, cached beside the student's file, or done on a graphics card.
SURROUNDINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
DEATHS = {
    "SIGSEGV": "it reached for memory that is not its own",
    "SIGKILL": "it was killed, mostly for want of memory",
    "SIGXCPU": "it used up its processor time",
    "SIGABRT": "it gave up",
}


@dataclass(frozen=True)
class SelfCheck:
    """What came of a file."""

    file: str
    nets: list[NetCheck]
    notes: list[str] = field(default_factory=list)
    """What of the file was left out, and why."""
    failed: str | None = None
    """Why no net could be looked at, in a sentence."""

    @property
    def matches(self) -> bool:
        """Whether there is a net, and every one is the figure's."""
        return self.failed is None and bool(self.nets) and all(one.matches for one in self.nets)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        nets = [{"matches": one.matches, **asdict(one)} for one in self.nets]
        return {"file": self.file, "matches": self.matches, "failed": self.failed, "notes": self.notes, "nets": nets}


@dataclass
class _Heard:
    """What the children have said so far."""

    nets: dict[str, Facts] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    failed: str | None = None
    done: bool = False
    doing: dict[str, Any] | None = None
    """The last thing that was begun and not ended."""

    def take(self, event: Mapping[str, Any]) -> None:
        """One line of a child's."""
        if "nets" in event:
            for net, name in event["nets"].items():
                self.nets.setdefault(net, Facts(str(name)))
            self.others = [str(name) for name in event["others"]]
        elif "notes" in event:
            self.notes = [str(note) for note in event["notes"]]
        elif "net" in event and "doing" not in event:
            facts = self.nets[event["net"]]
            (facts.failures if "failed" in event else facts.values)[event["fact"]] = event.get(
                "failed", event.get("value")
            )
        elif "failed" in event:
            self.failed = str(event["failed"])
        self.doing = dict(event) if "doing" in event else None
        self.done = self.done or "done" in event

    def end(self, death: str) -> None:
        """The child ended before it was done; what it did last bears the blame."""
        doing = self.doing or {"doing": "starting a process for the file"}
        sentence = f"{doing['doing']} {death}"
        if "net" in doing:
            self.nets[doing["net"]].failures[doing["fact"]] = sentence
        else:
            self.failed = sentence


def self_check(
    path: Path, *, nets: Sequence[str] = tuple(CLASSES), seconds: float = 60.0, gigabytes: float = 4.0
) -> SelfCheck:
    """Hold the classes of a .py file or notebook beside figure 1. The file is executed, in a child process.

    Args:
        nets: which of the figure's nets to look for.
        seconds: the longest that a child may take, PyTorch's import included. A class that ends its child is left, and
            the classes after it get a child of their own.
        gigabytes: the most memory a child may take, where the system can limit it.

    Raises UsageError for a file that is none, or neither Python nor a notebook, or for limits that are none;
    ChromaboxError if no child can be started or it wrote what no child of ours writes.
    """
    _check_usage(path, seconds, gigabytes)
    try:
        heard = _listen(path.resolve(), nets, seconds, gigabytes)
        checks = [judge(net, heard.nets[net]) for net in CLASSES if net in heard.nets]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ChromaboxError(
            f"{path}: what its classes did left no readable report ({type(error).__name__}); it must not write into "
            "files that it finds open"
        ) from error
    failed = heard.failed
    if failed is None and not checks:
        wanted = " nor ".join(CLASSES[net] for net in nets)
        there = f"its classes are {', '.join(heard.others[:10])}" if heard.others else "there is no class in it"
        failed = (
            f"{path.name} defines neither {wanted}; {there}"
            if len(nets) > 1
            else f"{path.name} has no {wanted}; {there}"
        )
    return SelfCheck(str(path), checks, heard.notes, failed)


def _check_usage(path: Path, seconds: float, gigabytes: float) -> None:
    if path.is_dir():
        raise UsageError(
            f"{path}: is a folder; check takes your own .py or .ipynb file with the classes (labelled sets for the "
            f"detector are looked over by chromabox data check {path})"
        )
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give your own .py or .ipynb file")
    if path.suffix.lower() not in (".py", ".ipynb"):
        raise UsageError(f"{path}: neither a .py file nor a notebook (.ipynb); save your classes as one of these")
    if not 1 <= seconds <= 3600:
        raise UsageError(f"time is {seconds:g}: give 1 to 3600 seconds")
    if not 1 <= gigabytes <= 1024:
        raise UsageError(f"memory is {gigabytes:g}: give 1 to 1024 GB, PyTorch alone takes some hundred MB")


def _listen(path: Path, nets: Sequence[str], seconds: float, gigabytes: float) -> _Heard:
    """Start children until every net has been tried or stands as the end of one."""
    heard, left = _Heard(), list(nets)
    while left:
        heard.done, heard.doing = False, None
        with tempfile.TemporaryDirectory(prefix="chromabox-check-", ignore_cleanup_errors=True) as place:
            folder = Path(place) / "work"
            folder.mkdir()
            request = {"file": str(path), "nets": left, "folder": str(folder), "seconds": seconds}
            request |= {"gigabytes": gigabytes, "result": str(Path(place) / "result.jsonl")}
            (Path(place) / "request.json").write_text(json.dumps(request), encoding="utf-8")
            death = _run(Path(place) / "request.json", folder, seconds)
            for event in _events(Path(place) / "result.jsonl"):
                heard.take(event)
        if not heard.done:
            heard.end(death)
        if heard.done or heard.failed is not None:
            break
        tried = [net for net in left if net in heard.nets and (heard.nets[net].values or heard.nets[net].failures)]
        left = left[left.index(tried[-1]) + 1 :] if tried else []
    return heard


def _run(request: Path, folder: Path, seconds: float) -> str:
    """Run one child to its end or its time's; how it ended, to be read behind what it was doing."""
    command = [sys.executable, "-P", "-m", "chromabox.assignment.check.worker", str(request)]
    null = subprocess.DEVNULL
    surroundings = {**os.environ, **SURROUNDINGS, "TMPDIR": str(folder), "TEMP": str(folder)}
    try:
        child = subprocess.Popen(
            command, env=surroundings, start_new_session=True, stdin=null, stdout=null, stderr=null
        )
    except OSError as error:
        raise ChromaboxError(f"{sys.executable}: cannot be started ({error.strerror}); is Python whole?") from error
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"did not end within {seconds:g} s"
    finally:
        _end(child)
    if code >= 0:
        return f"ended the process with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"ended the process with {name}" + (f" ({DEATHS[name]})" if name in DEATHS else "")


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child that still runs, and the processes it has started as far as they are in its group."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()
    else:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _events(result: Path) -> Iterator[dict[str, Any]]:
    """The lines that a child wrote; what is no line of ours is passed over, as the last one of a crash may be."""
    if not result.is_file():
        return
    with result.open("rb") as file:
        content = file.read(MOST)
    for line in content.decode("utf-8", errors="replace").split("\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


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
