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
    SIDE,
    batch_gap,
    function_gap,
    one_step,
    parameters_of,
    sizes_of,
    unreached,
)
from chromabox.assignment.check.source import USUAL, Call, Source, find_call, read_source, run_needed, told
from chromabox.assignment.check.trace import record
from chromabox.colour.models import NETS, count_parameters

#: The figure's nets by the names of the command line, and the names of their classes.
CLASSES = {"pool-upsample": "PoolUpsampleNet", "conv-transpose": "ConvTransposeNet", "unet": "UNet"}


class Teller:
    """Writes one JSON line after another, each at once."""

    def __init__(self, file: io.TextIOBase, places: Sequence[str] = ()) -> None:
        self.file, self.places = file, places

    def tell(self, **event: Any) -> None:
        """One line."""
        self.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self.file.flush()

    def attempt(self, net: str, fact: str, doing: str, work: Callable[[], Any]) -> Any:
        """Say what is done, do it, and tell the fact that comes of it or what was raised; None in that case."""
        self.tell(net=net, fact=fact, doing=doing)
        try:
            value = work()
            self.tell(net=net, fact=fact, value=value.text if isinstance(value, Call) else value)
        except BaseException as error:  # a class under test may raise anything, SystemExit too
            self.tell(net=net, fact=fact, failed=f"{doing} {self.said(error)}")
            return None
        return value

    def said(self, error: BaseException) -> str:
        """What was raised, in words."""
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return "needs more memory than the limit"
        return told(error, self.places)


def observe(request: dict[str, Any], teller: Teller) -> None:
    """Load the file, and try out each of its nets that are asked for."""
    path = Path(request["file"])
    teller.tell(doing=f"reading {path.name}")
    try:
        source = read_source(path)
    except BaseException as error:  # the parser's own limits end in RecursionError and MemoryError
        reason = str(error) if isinstance(error, (SyntaxError, ValueError)) else told(error)
        teller.tell(failed=f"{path.name} cannot be read as Python: {' '.join(reason.split())}")
        return
    names = {net: name for net, name in _classes(source).items() if net in request["nets"]}
    teller.tell(nets=names, others=source.classes())
    teller.places = sorted({piece.place for piece in source.pieces})
    teller.tell(doing=f"loading the classes of {path.name}")
    module, complaints = run_needed(source, names.values(), path)
    teller.tell(notes=source.complaints + complaints)
    for net, name in names.items():
        observe_net(net, name, getattr(module, name, None), teller)


def _classes(source: Source) -> dict[str, str]:
    """Which name of the file stands for which net: exact, else but for case and underscores."""
    bound = source.bound()
    alike = {name.replace("_", "").casefold(): name for name in sorted(bound)}
    pairs = {net: name if name in bound else alike.get(name.casefold()) for net, name in CLASSES.items()}
    return {net: name for net, name in pairs.items() if name is not None}


def observe_net(net: str, name: str, found: Any, teller: Teller) -> None:
    """All facts about one class; what a failed one is needed for is left out."""
    expected = count_parameters(NETS[net](**USUAL))
    call = teller.attempt(net, "call", f"making {name}", lambda: _checked_call(found, name, expected))
    if call is None:
        return
    made = teller.attempt(net, "missing", f"making {name}", lambda: (call.make(USUAL), list(call.missing))[1])
    if made is None:
        return
    teller.attempt(net, "parameters", f"counting {name}'s parameters", lambda: parameters_of(call.make(USUAL)))
    seen = teller.attempt(net, "steps", f"{name}'s forward", lambda: steps_of(call, teller))
    if seen is None or seen["output"] != [2, USUAL["num_colours"], SIDE, SIDE]:
        return
    teller.attempt(net, "sizes", f"{name} in other sizes", lambda: sizes_of(call))
    teller.attempt(net, "function", f"{name} with our weights", lambda: function_gap(call, net))
    teller.attempt(net, "batch", f"{name} in evaluation", lambda: batch_gap(call))
    teller.attempt(net, "gradient", f"{name}'s backward pass", lambda: unreached(call))
    teller.attempt(net, "loss", f"{name}'s step of training", lambda: one_step(call))


def _checked_call(found: Any, name: str, expected: int) -> Call:
    if found is None:
        raise NameError(f"{name} could not be defined")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise TypeError(f"{name} is no subclass of nn.Module")
    torch.manual_seed(0)
    return find_call(found, name, expected)


def steps_of(call: Call, teller: Teller) -> dict[str, Any]:
    """What the net does to two grey pictures of the usual size, in training mode, and what it returns."""
    torch.manual_seed(0)
    trace = record(call.make(USUAL).train(), torch.rand(2, 1, SIDE, SIDE))
    output = trace.output
    return {
        "steps": [asdict(step) for step in trace.steps],
        "last": trace.last,
        "unused": trace.unused,
        "output": list(output.shape) if isinstance(output, Tensor) else type(output).__name__,
        "failed": None if trace.error is None else teller.said(trace.error),
    }


def limit(gigabytes: float, seconds: float) -> None:
    """Limit memory, processor time and the size of files, and leave no core dumps, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    memory = int(gigabytes * (1 << 30))
    limits = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_CPU: int(seconds) + 10,
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
    limit(request["gigabytes"], request["seconds"])
    torch.set_num_threads(1)
    with open(request["result"], "a", encoding="utf-8", errors="replace") as file:
        teller = Teller(file)
        observe(request, teller)
        teller.tell(done=True)
    os._exit(0)


if __name__ == "__main__":
    main()
