"""Child process of ``chromabox check``: run a student's classes and write observations as JSON lines.

``python -m chromabox.assignment.check.worker REQUEST`` appends JSON lines to a file: first the action, then its result,
so that after a crash the last line identifies the action that failed. The request is a JSON object ``{file, nets,
folder, result, gigabytes, seconds}``. :mod:`chromabox.assignment.check.checks` evaluates the observations.
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
from torch.nn import functional as F

from chromabox.assignment.check.align import align
from chromabox.assignment.check.source import (
    DEFAULT_SIZES,
    Builder,
    bind_constructor,
    describe_error,
    exec_required,
    read_source,
)
from chromabox.assignment.check.trace import INPUT, OpTrace, trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters

#: Class names of the models of figure 1, by their names on the command line.
CLASSES = {"pool-upsample": "PoolUpsampleNet", "conv-transpose": "ConvTransposeNet", "unet": "UNet"}
#: Other sizes to try, by name; each differs from the default sizes in one value.
OTHER_SIZES = {
    f"{role} {size}": {**DEFAULT_SIZES, role: size}
    for role, size in [("kernel", 1), ("kernel", 5), ("num_filters", 8), ("num_colours", 10), ("num_in_channels", 3)]
}
IMAGE_SIZE = 32
#: Shape of the logits of two images at the default sizes.
OUTPUT_SHAPE = [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
#: Learning rate of the training step; small enough for all three models and any initialisation.
LEARNING_RATE = 0.05


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
    # A class may have the exact name or, failing that, one that differs in case and underscores.
    bound = set().union(*(statement.binds for statement in statements))
    candidates = [*sorted(bound), *bound.intersection(CLASSES.values())]
    normalised = {name.replace("_", "").casefold(): name for name in candidates}
    names = {
        model: normalised[name.casefold()]
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

    def construct() -> dict[str, Any]:
        if model_class is None:
            raise NameError(f"{name} could not be defined")
        if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
            raise TypeError(f"{name} is not a subclass of nn.Module")
        constructor = bind_constructor(model_class, name)
        constructor.build(DEFAULT_SIZES)
        return {"call": constructor.signature, "missing": constructor.missing_roles}

    def count_parameters() -> int:
        return num_trainable_parameters(build(DEFAULT_SIZES))

    if writer.attempt(model_name, "call", f"constructing {name}", construct) is None:
        return
    build = bind_constructor(model_class, name).build
    writer.attempt(model_name, "parameters", f"counting the parameters of {name}", count_parameters)
    steps = writer.attempt(model_name, "steps", f"forward pass of {name}", lambda: trace_model(build, writer.filenames))
    if steps is None or steps["output"] != OUTPUT_SHAPE:
        return
    experiments: list[tuple[str, str, Callable[[], Any]]] = [
        ("sizes", f"{name} with other sizes", lambda: size_mismatches(build, model_name)),
        ("function", f"{name} with reference weights", lambda: output_difference(build, model_name)),
        ("batch", f"{name} in evaluation mode", lambda: batch_dependence(build)),
        ("gradient", f"backward pass of {name}", lambda: missing_gradients(build)),
        ("loss", f"training step of {name}", lambda: one_step(build)),
    ]
    for key, action, function in experiments:
        writer.attempt(model_name, key, action, function)


def trace_model(build: Builder, filenames: Sequence[str]) -> dict[str, Any]:
    """Return the trace and the output shape for two greyscale images of the default size, in training mode."""
    torch.manual_seed(0)
    trace = trace_ops(build(DEFAULT_SIZES).train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))
    output = trace.output
    return {
        "steps": [asdict(op) for op in trace.ops],
        "last": trace.last_op,
        "unused": trace.unused_modules,
        "output": list(output.shape) if isinstance(output, Tensor) else type(output).__name__,
        "failed": None if trace.error is None else describe_error(trace.error, filenames),
    }


def size_mismatches(build: Builder, name: str) -> list[tuple[str, str, bool]]:
    """Return the sizes at which the output shape or the number of parameters differs, with a message for each.

    The third value is whether the shapes differ, rather than only the number of parameters. If the number of parameters
    is already wrong at the default sizes, it only has to change with the sizes.
    """
    mismatches = []
    default_count = num_trainable_parameters(build(DEFAULT_SIZES))
    is_default_correct = default_count == num_trainable_parameters(MODELS[name](**DEFAULT_SIZES))
    for label, sizes in OTHER_SIZES.items():
        expected_shape = [2, sizes["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
        expected_count = num_trainable_parameters(MODELS[name](**sizes))
        try:
            model = build(sizes).eval()
            with torch.no_grad():
                shape = list(model(torch.rand(2, sizes["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE)).shape)
            count = num_trainable_parameters(model)
        except (Exception, SystemExit) as error:
            mismatches.append((label, describe_error(error), True))
            continue
        if shape != expected_shape:
            mismatches.append((label, f"output shape {shape} instead of {expected_shape}", True))
        elif is_default_correct and count != expected_count:
            mismatches.append((label, f"{count:,} parameters instead of {expected_count:,}", False))
        elif count == default_count:
            mismatches.append((label, f"{default_count:,} parameters, as with the default", False))
    return mismatches


def batch_dependence(build: Builder) -> float:
    """Return the largest absolute change in an image's logits in evaluation mode caused by the rest of its batch."""
    model, grey = build(DEFAULT_SIZES).eval(), _random_batch()
    with torch.no_grad():
        return float((model(grey) - torch.cat([model(image[None]) for image in grey])).abs().max())


def _random_batch() -> Tensor:
    return torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE)


def _loss(model: nn.Module, grey: Tensor) -> Tensor:
    return F.cross_entropy(model(grey), (grey[:, 0] * DEFAULT_SIZES["num_colours"]).long())


def missing_gradients(build: Builder) -> list[str]:
    """Return the names of parameters without a finite gradient, and of weights with a gradient of 0.

    The gradient of a bias may be 0; before BatchNorm it always is.
    """
    model = build(DEFAULT_SIZES).train()
    _loss(model, _random_batch()).backward()
    return [
        name
        for name, parameter in model.named_parameters()
        if (gradient := parameter.grad) is None
        or not gradient.isfinite().all()
        or (parameter.dim() > 1 and not gradient.any())
    ]


def one_step(build: Builder) -> list[float]:
    """Return the cross-entropy of one batch before and after one gradient descent step on it.

    The step is implemented by hand, because PyTorch's optimizers import its compiler, which would double the run time.
    """
    torch.manual_seed(0)
    model, grey = build(DEFAULT_SIZES).train(), _random_batch()
    before = _loss(model, grey)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=LEARNING_RATE)
    return [float(before.detach()), float(_loss(model, grey).detach())]


def output_difference(build: Builder, name: str) -> dict[str, Any]:
    """Return the largest difference from the logits of the reference model with the same weights, in both modes.

    Weights and BatchNorm parameters are random, because initial values of 0 and 1 could hide differences. They have
    both signs, because BatchNorm and max pooling commute if the scale is positive.
    """
    torch.manual_seed(0)
    reference, candidate = MODELS[name](**DEFAULT_SIZES), build(DEFAULT_SIZES)
    grey = _random_batch()
    for key, tensor in reference.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in key else tensor.uniform_(-1.5, 1.5)
    own_ids = {id(tensor) for tensor in (*candidate.parameters(), *candidate.buffers())}
    copied, total = copy_weights(trace_ops(reference.eval(), grey), trace_ops(candidate.eval(), grey), own_ids)
    results: dict[str, Any] = {"copied": copied, "total": total}
    with torch.no_grad():
        for mode in ("evaluation", "training"):
            first, second = (model.train(mode == "training")(grey) for model in (candidate, reference))
            results[mode] = float((first - second).abs().max())
    return results


def copy_weights(reference: OpTrace, candidate: OpTrace, candidate_ids: set[int]) -> tuple[int, int]:
    """Copy the reference model's tensors to the matching operations; return the copied and total numbers of tensors.

    Only tensors whose ids are in ``candidate_ids`` are set, and only if the shapes agree. If the candidate concatenates
    channels in a different order, the weights that read them are reordered accordingly.
    """
    matches = align(reference.ops, candidate.ops)
    matched = {one.actual: one.expected for one in matches if one.actual is not None and one.expected is not None}
    # Element 0 is the input, whose index is -1.
    widths = [DEFAULT_SIZES["num_in_channels"], *(op.shape[1] for op in reference.ops)]
    copied = 0
    for actual, expected in matched.items():
        parts = _concatenated(reference, expected)
        other_parts = [INPUT if part == INPUT else matched.get(part) for part in _concatenated(candidate, actual)]
        for key, tensor in reference.tensors[expected].items():
            if key == "weight" and parts and set(parts) == set(other_parts):
                dimension = 0 if "Transpose" in reference.ops[expected].kind else 1
                pieces = dict(zip(parts, tensor.split([widths[part + 1] for part in parts], dimension), strict=True))
                tensor = torch.cat([pieces[part] for part in other_parts if part is not None], dimension)
            target = candidate.tensors[actual].get(key)
            if target is not None and id(target) in candidate_ids and target.shape == tensor.shape:
                with torch.no_grad():
                    target.copy_(tensor)
                copied += 1
    return copied, sum(len(tensors) for tensors in reference.tensors)


def _concatenated(trace: OpTrace, index: int) -> tuple[int, ...]:
    """Return the sources of the concatenation that is the only input of an operation; empty if there is none."""
    sources = trace.ops[index].sources
    is_concatenated = len(sources) == 1 and sources[0] != INPUT and trace.ops[sources[0]].kind == "cat"
    return trace.ops[sources[0]].sources if is_concatenated else ()


def set_resource_limits(memory_limit_gb: float, cpu_seconds: float) -> None:
    """Limit memory, processor time and file sizes and disable core dumps, where the system supports it."""
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


def main() -> None:
    """Process one request, then exit immediately, even if the student's file has started threads."""
    request = json.loads(sys.argv[1])
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
