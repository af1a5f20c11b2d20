"""Child process of ``chromabox check``, which runs a student's classes.

``python -m chromabox.assignment.check.worker REQUEST`` writes its complete state as a JSON line to a file before and
after every action, so that after a crash the last line identifies the action that failed. The request is a JSON object
``{file, nets, folder, result, gigabytes, seconds, pipe}``. ``pipe`` is the file descriptor of a pipe whose other end is
closed when the parent process ends, or null.
"""

import ast
import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from chromabox.assignment.check.checks import ModelChecks, NetReport
from chromabox.assignment.check.source import describe_error, exec_required, read_source

#: Class names of the models of figure 1, keyed by the model names on the command line.
CLASSES = {"pool-upsample": "PoolUpsampleNet", "conv-transpose": "ConvTransposeNet", "unet": "UNet"}


def inspect_file(request: dict[str, Any], file: io.TextIOBase) -> None:
    """Load the file and check every requested model that it defines."""
    path, state = Path(request["file"]), dict[str, Any]()

    def write_state(**changes: Any) -> None:
        state.update(changes)
        print(json.dumps(state, default=asdict, ensure_ascii=False), file=file, flush=True)

    write_state(doing=f"reading {path.name}")
    try:
        statements, notes = read_source(path)
    except BaseException as error:  # the parser raises RecursionError and MemoryError at its limits
        reason = str(error) if isinstance(error, (SyntaxError, ValueError)) else describe_error(error)
        write_state(failed=f"{path.name} cannot be read as Python: {' '.join(reason.split())}")
        return
    # A class with the exact name is preferred to one whose name differs in case or underscores.
    bound = set().union(*(statement.binds for statement in statements))
    candidates = [*sorted(bound), *bound.intersection(CLASSES.values())]
    normalised = {name.replace("_", "").casefold(): name for name in candidates}
    reports = [
        NetReport(model, normalised[name.casefold()])
        for model, name in CLASSES.items()
        if model in request["nets"] and name.casefold() in normalised
    ]
    classes = [statement.node.name for statement in statements if isinstance(statement.node, ast.ClassDef)]
    write_state(doing=f"loading the classes of {path.name}", reports=reports, classes=classes)
    module, warnings = exec_required(statements, [report.class_name for report in reports], path)
    write_state(notes=notes + warnings)
    filenames = sorted({statement.filename for statement in statements})
    for report in reports:
        checks = ModelChecks(report, getattr(module, report.class_name, None), filenames)
        inspect_model(checks, write_state, filenames)
    write_state(done=True)


def inspect_model(checks: ModelChecks, write_state: Callable[..., None], filenames: Sequence[str]) -> None:
    """Run the checks of one class. Stop after a failed check on which the remaining checks depend."""
    report, name = checks.report, checks.report.class_name
    actions = (
        ("constructor", f"constructing {name}", checks.check_constructor),
        ("parameters", f"counting the parameters of {name}", checks.check_parameters),
        ("shapes", f"forward pass of {name}", checks.check_trace),
        ("other sizes", f"{name} with other sizes", checks.check_sizes),
        ("same function (eval)", f"{name} with reference weights", checks.check_function),
        ("batch independence", f"{name} in evaluation mode", checks.check_batch),
        ("gradient", f"training step of {name}", checks.check_training),
    )
    for check, action, function in actions:
        write_state(net=report.model, check=check, doing=action)
        try:
            function()
        except BaseException as error:  # code under test may raise any error, including SystemExit
            report.add(check, False, f"{action}: {describe_error(error, filenames)}")
        if not checks.can_continue:
            return


def set_resource_limits(memory_limit_gb: float, cpu_seconds: float) -> None:
    """Limit memory, processor time, file sizes and core dumps, as far as the operating system supports it."""
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_DATA: int(memory_limit_gb * (1 << 30)),
        resource.RLIMIT_CPU: int(cpu_seconds) + 10,
        resource.RLIMIT_FSIZE: 1 << 26,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        # macOS defines these limits but rejects some values.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def end_with_parent(pipe: int) -> None:
    """Kill this process and the processes that it has started as soon as the other end of a pipe is closed."""
    os.set_inheritable(pipe, False)

    def wait() -> None:
        os.read(pipe, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Process one request, then exit, even if the student's file has started threads."""
    request = json.loads(sys.argv[1])
    if request["pipe"] is not None:
        end_with_parent(request["pipe"])
    os.chdir(request["folder"])
    set_resource_limits(request["gigabytes"], request["seconds"])
    torch.set_num_threads(1)
    with open(request["result"], "a", encoding="utf-8", errors="replace") as file:
        inspect_file(request, file)
    os._exit(0)


if __name__ == "__main__":
    main()
