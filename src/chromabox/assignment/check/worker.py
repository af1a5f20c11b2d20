"""What runs in the child process of ``chromabox check``: a student's classes, tried out, what was seen written down.

``python -m chromabox.assignment.check.worker REQUEST`` reads a JSON file ``{file, nets, folder, result, gigabytes,
seconds}`` and appends JSON lines to the file ``result``: first what is about to be done, then what came of it, so that
whoever reads them after a crash knows where it was. Nothing is judged here: that is
:mod:`chromabox.assignment.check.checks`'.
"""

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

from chromabox.assignment.check.experiments import (
    IMAGE_SIZE,
    batch_dependence,
    missing_gradients,
    one_step,
    output_difference,
    outputs_at_other_sizes,
    parameter_sizes,
)
from chromabox.assignment.check.source import (
    DEFAULT_SIZES,
    Constructor,
    ParsedSource,
    bind_constructor,
    describe_error,
    exec_required,
    read_source,
)
from chromabox.assignment.check.trace import trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters

#: The figure's nets by the names of the command line, and the names of their classes.
CLASSES = {"pool-upsample": "PoolUpsampleNet", "conv-transpose": "ConvTransposeNet", "unet": "UNet"}


class EventWriter:
    """Writes one JSON line after another, each at once."""

    def __init__(self, file: io.TextIOBase, filenames: Sequence[str] = ()) -> None:
        self.file, self.filenames = file, filenames

    def write(self, **event: Any) -> None:
        """One line."""
        self.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.file.flush()

    def attempt(self, model_name: str, key: str, action: str, function: Callable[[], Any]) -> Any:
        """Say what is done, do it, and tell the fact that comes of it or what was raised; None in that case."""
        self.write(net=model_name, fact=key, doing=action)
        try:
            value = function()
            self.write(net=model_name, fact=key, value=value.signature if isinstance(value, Constructor) else value)
        except BaseException as error:  # a class under test may raise anything, SystemExit too
            self.write(net=model_name, fact=key, failed=f"{action} {self.describe_error(error)}")
            return None
        return value

    def describe_error(self, error: BaseException) -> str:
        """What was raised, in words."""
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return "needs more memory than the limit"
        return describe_error(error, self.filenames)


def inspect_file(request: dict[str, Any], writer: EventWriter) -> None:
    """Load the file, and try out each of its nets that are asked for."""
    path = Path(request["file"])
    writer.write(doing=f"reading {path.name}")
    try:
        source = read_source(path)
    except BaseException as error:  # the parser's own limits end in RecursionError and MemoryError
        reason = str(error) if isinstance(error, (SyntaxError, ValueError)) else describe_error(error)
        writer.write(failed=f"{path.name} cannot be read as Python: {' '.join(reason.split())}")
        return
    names = {net: name for net, name in _match_class_names(source).items() if net in request["nets"]}
    writer.write(nets=names, others=source.class_names())
    writer.filenames = sorted({piece.filename for piece in source.statements})
    writer.write(doing=f"loading the classes of {path.name}")
    module, complaints = exec_required(source, names.values(), path)
    writer.write(notes=source.warnings + complaints)
    for net, name in names.items():
        inspect_model(net, name, getattr(module, name, None), writer)


def _match_class_names(source: ParsedSource) -> dict[str, str]:
    """Which name of the file stands for which net: exact, else but for case and underscores."""
    bound = source.bound_names()
    alike = {name.replace("_", "").casefold(): name for name in sorted(bound)}
    pairs = {net: name if name in bound else alike.get(name.casefold()) for net, name in CLASSES.items()}
    return {net: name for net, name in pairs.items() if name is not None}


def inspect_model(model_name: str, name: str, model_class: Any, writer: EventWriter) -> None:
    """All facts about one class; what a failed one is needed for is left out."""
    expected = num_trainable_parameters(MODELS[model_name](**DEFAULT_SIZES))
    call = writer.attempt(model_name, "call", f"making {name}", lambda: _bind_checked(model_class, name, expected))
    if call is None:
        return
    made = writer.attempt(
        model_name, "missing", f"making {name}", lambda: (call.build(DEFAULT_SIZES), list(call.missing_roles))[1]
    )
    if made is None:
        return
    writer.attempt(
        model_name, "parameters", f"counting {name}'s parameters", lambda: parameter_sizes(call.build(DEFAULT_SIZES))
    )
    seen = writer.attempt(model_name, "steps", f"{name}'s forward", lambda: trace_model(call, writer))
    if seen is None or seen["output"] != [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]:
        return
    writer.attempt(model_name, "sizes", f"{name} in other sizes", lambda: outputs_at_other_sizes(call))
    writer.attempt(model_name, "function", f"{name} with our weights", lambda: output_difference(call, model_name))
    writer.attempt(model_name, "batch", f"{name} in evaluation", lambda: batch_dependence(call))
    writer.attempt(model_name, "gradient", f"{name}'s backward pass", lambda: missing_gradients(call))
    writer.attempt(model_name, "loss", f"{name}'s step of training", lambda: one_step(call))


def _bind_checked(model_class: Any, name: str, num_parameters: int) -> Constructor:
    if model_class is None:
        raise NameError(f"{name} could not be defined")
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise TypeError(f"{name} is no subclass of nn.Module")
    torch.manual_seed(0)
    return bind_constructor(model_class, name, num_parameters)


def trace_model(constructor: Constructor, writer: EventWriter) -> dict[str, Any]:
    """What the net does to two grey pictures of the usual size, in training mode, and what it returns."""
    torch.manual_seed(0)
    trace = trace_ops(constructor.build(DEFAULT_SIZES).train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))
    output = trace.output
    return {
        "steps": [asdict(step) for step in trace.ops],
        "last": trace.last_op,
        "unused": trace.unused_modules,
        "output": list(output.shape) if isinstance(output, Tensor) else type(output).__name__,
        "failed": None if trace.error is None else writer.describe_error(trace.error),
    }


def set_resource_limits(memory_limit_gb: float, cpu_seconds: float) -> None:
    """Limit memory, processor time and the size of files, and leave no core dumps, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    memory = int(memory_limit_gb * (1 << 30))
    limits = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_CPU: int(cpu_seconds) + 10,
        resource.RLIMIT_FSIZE: 1 << 26,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, hard))
        except (OSError, ValueError):
            continue  # macOS knows the names and refuses some values


def main() -> None:
    """Serve one request; the process ends at once after it, whatever threads a student's file has left."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.chdir(request["folder"])
    set_resource_limits(request["gigabytes"], request["seconds"])
    torch.set_num_threads(1)
    with open(request["result"], "a", encoding="utf-8", errors="replace") as file:
        teller = EventWriter(file)
        inspect_file(request, teller)
        teller.write(done=True)
    os._exit(0)


if __name__ == "__main__":
    main()
