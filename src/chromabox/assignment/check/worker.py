"""Child process of ``chromabox check``: runs a student's classes and writes observations as JSON lines.

``python -m chromabox.assignment.check.worker REQUEST`` reads a JSON file ``{file, nets, folder, result, gigabytes,
seconds}`` and appends JSON lines to the file ``result``: first the action, then its result, so that after a crash the
last line identifies the action that failed. :mod:`chromabox.assignment.check.checks` evaluates the observations.
"""

import ast
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chromabox.assignment.check import experiments
from chromabox.assignment.check.experiments import IMAGE_SIZE, OUTPUT_SHAPE
from chromabox.assignment.check.source import (
    DEFAULT_SIZES,
    Constructor,
    bind_constructor,
    describe_error,
    exec_required,
    read_source,
)
from chromabox.assignment.check.trace import trace_ops

#: Class names of the models of figure 1, by their names on the command line.
CLASSES = {"pool-upsample": "PoolUpsampleNet", "conv-transpose": "ConvTransposeNet", "unet": "UNet"}


class EventWriter:
    """Writer of JSON lines that flushes after every line."""

    def __init__(self, file: io.TextIOBase, filenames: Sequence[str] = ()) -> None:
        self.file, self.filenames = file, filenames

    def write(self, **event: Any) -> None:
        """Write one line."""
        self.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.file.flush()

    def attempt(self, model_name: str, key: str, action: str, function: Callable[[], Any]) -> Any:
        """Write the action, call the function, and write its result or error. Return the result, or None on error."""
        self.write(net=model_name, fact=key, doing=action)
        try:
            value = function()
            self.write(net=model_name, fact=key, value=value)
        except BaseException as error:  # code under test may raise any error, including SystemExit
            self.write(net=model_name, fact=key, failed=f"{action}: {describe_error(error, self.filenames)}")
            return None
        return value


def inspect_file(request: dict[str, Any], writer: EventWriter) -> None:
    """Load the file and inspect each of its requested models."""
    path = Path(request["file"])
    writer.write(doing=f"reading {path.name}")
    try:
        statements, notes = read_source(path)
    except BaseException as error:  # the parser raises RecursionError and MemoryError at its limits
        reason = str(error) if isinstance(error, (SyntaxError, ValueError)) else describe_error(error)
        writer.write(failed=f"{path.name} cannot be read as Python: {' '.join(reason.split())}")
        return
    # A class may have the exact name or one that differs only in case and underscores.
    bound = sorted(set().union(*(statement.binds for statement in statements)))
    normalised = {name.replace("_", "").casefold(): name for name in bound}
    names = {
        model: name if name in bound else normalised[name.casefold()]
        for model, name in CLASSES.items()
        if model in request["nets"] and name.casefold() in normalised
    }
    classes = [statement.node.name for statement in statements if isinstance(statement.node, ast.ClassDef)]
    writer.write(nets=names, others=classes)
    writer.filenames = sorted({statement.filename for statement in statements})
    writer.write(doing=f"loading the classes of {path.name}")
    module, warnings = exec_required(statements, names.values(), path)
    writer.write(notes=notes + warnings)
    for model_name, name in names.items():
        inspect_model(model_name, name, getattr(module, name, None), writer)


def inspect_model(model_name: str, name: str, model_class: Any, writer: EventWriter) -> None:
    """Write all observations of one class; those that depend on a failed one are omitted."""
    constructor: Any = None
    sizes = DEFAULT_SIZES

    def construct() -> dict[str, Any]:
        nonlocal constructor
        if model_class is None:
            raise NameError(f"{name} could not be defined")
        if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
            raise TypeError(f"{name} is not a subclass of nn.Module")
        constructor = bind_constructor(model_class, name)
        constructor.build(sizes)
        return {"call": constructor.signature, "missing": constructor.missing_roles}

    count_parameters = experiments.count_parameters
    observations: list[tuple[str, str, Callable[[], Any]]] = [
        ("call", f"constructing {name}", construct),
        ("parameters", f"counting the parameters of {name}", lambda: count_parameters(constructor.build(sizes))),
        ("steps", f"forward pass of {name}", lambda: trace_model(constructor, writer)),
        ("sizes", f"{name} with other sizes", lambda: experiments.size_mismatches(constructor, model_name)),
        ("function", f"{name} with reference weights", lambda: experiments.output_difference(constructor, model_name)),
        ("batch", f"{name} in evaluation mode", lambda: experiments.batch_dependence(constructor)),
        ("gradient", f"backward pass of {name}", lambda: experiments.missing_gradients(constructor)),
        ("loss", f"training step of {name}", lambda: experiments.one_step(constructor)),
    ]
    for key, action, function in observations:
        value = writer.attempt(model_name, key, action, function)
        if (value is None and key in ("call", "steps")) or (key == "steps" and value["output"] != OUTPUT_SHAPE):
            return


def trace_model(constructor: Constructor, writer: EventWriter) -> dict[str, Any]:
    """Return the trace and the output shape for two greyscale images of the default size, in training mode."""
    torch.manual_seed(0)
    trace = trace_ops(constructor.build(DEFAULT_SIZES).train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))
    output = trace.output
    return {
        "steps": [asdict(op) for op in trace.ops],
        "last": trace.last_op,
        "unused": trace.unused_modules,
        "output": list(output.shape) if isinstance(output, Tensor) else type(output).__name__,
        "failed": None if trace.error is None else describe_error(trace.error, writer.filenames),
    }


def set_resource_limits(memory_limit_gb: float, cpu_seconds: float) -> None:
    """Limit memory, processor time and file sizes and disable core dumps, where the system supports it."""
    if sys.platform == "win32":
        return
    import resource

    limits = (
        (resource.RLIMIT_DATA, int(memory_limit_gb * (1 << 30))),
        (resource.RLIMIT_CPU, int(cpu_seconds) + 10),
        (resource.RLIMIT_FSIZE, 1 << 26),
        (resource.RLIMIT_CORE, 0),
    )
    for kind, value in limits:
        _, hard = resource.getrlimit(kind)
        # macOS defines these limits but rejects some values.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    """Process one request, then exit immediately, even if the student's file has started threads."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.chdir(request["folder"])
    set_resource_limits(request["gigabytes"], request["seconds"])
    torch.set_num_threads(1)
    with open(request["result"], "a", encoding="utf-8", errors="replace") as file:
        writer = EventWriter(file)
        inspect_file(request, writer)
        writer.write(done=True)
    os._exit(0)


if __name__ == "__main__":
    main()
