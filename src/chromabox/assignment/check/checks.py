"""Evaluation of the observations of a student's class: checks, a comparison of layers, and hints."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from chromabox.assignment.check.align import DiffLine, diff_ops
from chromabox.assignment.check.source import DEFAULT_SIZES
from chromabox.assignment.check.trace import Op, trace_ops
from chromabox.assignment.check.worker import IMAGE_SIZE, OTHER_SIZES, OUTPUT_SHAPE
from chromabox.colour.models import MODELS, num_trainable_parameters

#: Maximum difference between two logits that are considered equal.
TOLERANCE = 1e-4

#: Message for the layers of figure 1 after the point where a forward pass fails.
NOT_REACHED = "not reached"


@dataclass
class Observations:
    """Observations of one class, written by a child process: see :mod:`chromabox.assignment.check.worker`."""

    class_name: str
    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Error messages of the observations that failed, by name."""
    model_name: str = ""
    """The reference model. This field and the following ones are set by :func:`run_checks`."""
    ops: list[Op] = field(default_factory=list)
    diff: list[DiffLine] = field(default_factory=list)


def layer_name(op: Op) -> str:
    """Return the printable name of the layer of an operation."""
    return "concatenation" if op.kind == "cat" else op.kind


def ops_after_last_conv(observed: Observations) -> list[str] | None:
    """Return the operations after the last convolution; None if that convolution is missing."""
    last = max(index for index, line in enumerate(observed.diff) if line.expected is not None)
    if observed.diff[last].actual is None:
        return None
    return [line.actual.kind for line in observed.diff[last + 1 :] if line.actual is not None]


@dataclass(frozen=True)
class CheckItem:
    """Result of one check."""

    name: str
    passed: bool | None
    """None: reported only, because the assignment does not require it."""
    message: str


@dataclass(frozen=True)
class NetReport:
    """Comparison of one class with the corresponding model in figure 1."""

    model: str
    class_name: str
    checks: list[CheckItem]
    diff: list[DiffLine]
    hints: list[str]

    @property
    def matches(self) -> bool:
        """Whether everything that the assignment requires matches."""
        return all(check.passed is not False for check in self.checks)


def reference_ops(model_name: str) -> list[Op]:
    """Return the operations of the reference model at the default sizes, for two images of 32 × 32 pixels."""
    trace = trace_ops(
        MODELS[model_name](**DEFAULT_SIZES).train(),
        torch.rand(2, DEFAULT_SIZES["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE),
    )
    if trace.error is not None:
        raise trace.error
    return trace.ops


def run_checks(model_name: str, observed: Observations) -> NetReport:
    """Compare the observations of a class with the reference model of that name.

    Raise KeyError, TypeError, ValueError or AttributeError for observations that the worker cannot have written.
    """
    observed.model_name = model_name
    if "steps" in observed.values:
        for step in observed.values["steps"]["steps"]:
            # A class may set any setting to infinity, which JSON cannot represent.
            settings = {
                name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in step["settings"].items()
            }
            lists = {"shape": tuple(step["shape"]), "sources": tuple(step["sources"])}
            observed.ops.append(Op(**{**step, **lists, "settings": settings}))
        observed.diff = lines = diff_ops(reference_ops(model_name), observed.ops)
        if observed.values["steps"]["failed"] is not None:
            reached = max((index for index, line in enumerate(lines) if line.actual is not None), default=-1)
            lines[reached + 1 :] = [replace(line, message=NOT_REACHED) for line in lines[reached + 1 :]]
    checks: dict[str, CheckItem] = {}
    for key, (name, check) in CHECKS.items():
        items: Iterable[CheckItem] = ()
        if key in observed.failures:
            items = [CheckItem(name, False, str(observed.failures[key]))]
        elif key in observed.values:
            items = check(observed, observed.values[key])
        for item in items:
            # One failure may affect several checks; it is reported once.
            checks.setdefault(item.message, item)
    return NetReport(model_name, observed.class_name, list(checks.values()), observed.diff, make_hints(observed))


def _check_constructor(_: Observations, value: dict[str, Any]) -> Iterator[CheckItem]:
    message = str(value["call"])
    if value["missing"]:
        message += f": {', '.join(value['missing'])} cannot be set; all four sizes of figure 1 are parameters"
    yield CheckItem("constructor", not value["missing"], message)


def _check_steps(observed: Observations, trace: dict[str, Any]) -> Iterator[CheckItem]:
    if trace["failed"] is not None:
        message = f"forward pass of {observed.class_name}: {trace['failed']}"
    else:
        shape = [2, DEFAULT_SIZES["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE]
        message = f"input {shape}, output {trace['output']}"
        message += "" if trace["output"] == OUTPUT_SHAPE else f" instead of {OUTPUT_SHAPE}"
    yield CheckItem("shapes", trace["failed"] is None and trace["output"] == OUTPUT_SHAPE, message)

    differences = [line for line in observed.diff if line.status != "equal"]
    causes = [line for line in differences if not line.is_consequence and line.message != NOT_REACHED]
    if causes:
        message = "; ".join(f"{line.location}: {layer_name(line.op)} {line.message}" for line in causes[:3])
        message += f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    elif differences:
        message = f"the first {len(observed.ops)} operations are those of figure 1, then the forward pass fails"
    else:
        message = f"all {len(observed.diff)} operations are those of figure 1, in the same order"
    yield CheckItem("layers", not differences, message)
    if trace["failed"] is not None:
        return

    expected, actual = (
        sum(op.kind == "BatchNorm2d" for op in ops) for ops in (reference_ops(observed.model_name), observed.ops)
    )
    message = f"{actual} BatchNorm2d layers" + ("" if actual == expected else f" instead of {expected}")
    yield CheckItem("BatchNorm", actual == expected, message)

    if observed.model_name == "unet":
        messages = [f"{line.location}: concatenation {line.message}" for line in differences if line.op.kind == "cat"]
        skips = "block 4 also receives the output of block 1, and the last convolution the greyscale input"
        yield CheckItem("skip connections", not messages, "; ".join(messages) or skips)

    following = ops_after_last_conv(observed)
    message = "the output is that of the last convolution"
    if following is None:
        last = observed.ops[-1].kind if observed.ops else "no operation"
        message = f"the model ends with {last} instead of a convolution"
    elif following:
        message = f"the last convolution is followed by {', then '.join(following)}; figure 1 ends with it"
    yield CheckItem("logits", following == [], message)


def _check_parameters(observed: Observations, count: int) -> Iterator[CheckItem]:
    expected = num_trainable_parameters(MODELS[observed.model_name](**DEFAULT_SIZES))
    message = f"{count:,}" if count == expected else f"{count:,} instead of {expected:,}"
    yield CheckItem("parameters", count == expected, message)


def _check_sizes(observed: Observations, mismatches: list[list[Any]]) -> Iterator[CheckItem]:
    labels: dict[str, list[str]] = {}
    passed: bool | None = True
    for label, message, is_wrong_shape in mismatches:
        labels.setdefault(message, []).append(label)
        # For strided models, the assignment specifies padding 1, which is meant for kernel 3.
        is_allowed = observed.model_name != "pool-upsample" and is_wrong_shape and label.startswith("kernel")
        passed = None if is_allowed and passed is not False else False
    messages = [f"{', '.join(group)}: {message}" for message, group in labels.items()]
    yield CheckItem("other sizes", passed, "; ".join(messages) or ", ".join(OTHER_SIZES))


def _check_function(_: Observations, function: dict[str, Any]) -> Iterator[CheckItem]:
    for name, mode in (("same function (eval)", "evaluation"), ("same function (train)", "training")):
        difference, copied, total = float(function[mode]), function["copied"], function["total"]
        passed = copied == total and difference <= TOLERANCE
        message = f"the logits in {mode} mode differ by up to {difference:.2g} with the reference weights"
        if copied < total:
            message = f"only {copied} of the {total} reference tensors fit the model; its function differs"
        elif passed:
            message = f"same logits in {mode} mode with the reference weights (largest difference {difference:.1e})"
        yield CheckItem(name, passed, message)


def _check_batch(_: Observations, difference: float) -> Iterator[CheckItem]:
    message = f"in evaluation mode, the logits of an image change by up to {difference:.2g} with its batch"
    if difference <= TOLERANCE:
        message = "in evaluation mode, the logits of an image do not depend on the rest of its batch"
    yield CheckItem("batch independence", difference <= TOLERANCE, message)


def _check_gradients(_: Observations, names: list[str]) -> Iterator[CheckItem]:
    message = f"no gradient for {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    yield CheckItem("gradient", not names, message if names else "all parameters receive a gradient")


def _check_training_step(_: Observations, losses: list[float]) -> Iterator[CheckItem]:
    before, after = losses
    yield CheckItem("training step", after < before, f"cross-entropy {before:.3f} → {after:.3f} on the same batch")


#: For each observation, the name of the check that fails if it is missing, and a function that evaluates it.
CHECKS: dict[str, tuple[str, Callable[[Observations, Any], Iterable[CheckItem]]]] = {
    "call": ("constructor", _check_constructor),
    "steps": ("shapes", _check_steps),
    "parameters": ("parameters", _check_parameters),
    "sizes": ("other sizes", _check_sizes),
    "function": ("same function (eval)", _check_function),
    "batch": ("batch independence", _check_batch),
    "gradient": ("gradient", _check_gradients),
    "loss": ("training step", _check_training_step),
}

#: Maximum number of hints on layers; later differences are usually consequences of the first ones.
MAX_HINTS = 6

SAME_FUNCTION_HINT = (
    "It computes the function of figure 1 with other layers; the assignment requires the layers of figure 1."
)

#: Effects of a final operation on logits that are passed to cross-entropy.
FINAL_OP_HINTS = {
    "softmax": "cross-entropy expects logits and applies log-softmax itself; a softmax before it impairs training",
    "log_softmax": "cross-entropy expects logits and applies log-softmax itself",
    "ReLU": "it sets negative logits to 0, and their gradient is 0",
}


def make_hints(observed: Observations) -> list[str]:
    """Return hints on how to fix the differences, without duplicates."""
    hints = []
    for line in observed.diff:
        if line.status == "equal" or line.is_consequence or line.message == NOT_REACHED:
            continue
        op, name = line.actual, layer_name(line.op)
        where = "" if op is None else f" (self.{op.module})" if op.module else " (in forward)"
        if line.status == "missing":
            hints.append(f"{line.location}: add the {name} with output shape {list(line.op.shape)}.")
        elif line.status == "extra":
            hints.append(f"{line.location}: remove the {name}{where}; figure 1 has none there.")
        else:
            hints.append(f"{line.location}: {name}{where} {line.message}.")
    if len(hints) > MAX_HINTS:
        hints[MAX_HINTS:] = [f"… and {len(hints) - MAX_HINTS} more lines of the table; start with the first ones."]
    if "steps" in observed.values:
        hints += _usage_hints(observed)
    if "sizes" in observed.values:
        hints += _size_hints(observed)
    function = observed.values.get("function")
    if function is not None and any(line.status != "equal" for line in observed.diff):
        is_same = max(function["evaluation"], function["training"]) <= TOLERANCE
        if is_same and function["copied"] == function["total"]:
            hints.append(SAME_FUNCTION_HINT)
    return list(dict.fromkeys(hints))


def _usage_hints(observed: Observations) -> list[str]:
    """Return hints on unused and shared layers, and on operations after the last convolution."""
    trace, ops, hints = observed.values["steps"], observed.ops, []
    if trace["failed"] is None:
        hints += [f"self.{name} is created in __init__ but not used in forward." for name in trace["unused"]]
    if trace["last"] is not None:
        used, pending = set[int](), [trace["last"]]
        while pending:
            index = pending.pop()
            if index >= 0 and index not in used:
                used.add(index)
                pending += ops[index].sources
        names = [
            f"{op.kind} ({f'self.{op.module}' if op.module else 'in forward'})"
            for index, op in enumerate(ops)
            if index not in used
        ]
        hints += [f"Computed but not used: {', '.join(names)}."] if names else []
    counts = Counter(f"self.{op.module}" for op in ops if op.num_parameters and op.module)
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        listed = f"{', '.join(shared[:4])}{' and others' if len(shared) > 4 else ''}"
        hints.append(f"Used more than once: {listed}; figure 1 has a separate layer each time.")
    last_kinds = [kind for kind in ops_after_last_conv(observed) or [] if kind in FINAL_OP_HINTS]
    return hints + [f"No {kind} at the end: {FINAL_OP_HINTS[kind]}." for kind in last_kinds]


def _size_hints(observed: Observations) -> list[str]:
    mismatches = observed.values["sizes"]
    kernels = [label for label, _, is_wrong_shape in mismatches if is_wrong_shape and label.startswith("kernel")]
    hints, labels = [], " and ".join(kernels)
    if kernels and observed.model_name == "pool-upsample":
        hints.append(f"With {labels}, the shapes must not change: padding=kernel // 2 keeps them for odd kernels.")
    elif kernels:
        hints.append(
            f"With {labels}, the shapes change: the assignment sets padding 1 for kernel 3; padding=(kernel - 1) // 2 "
            "and output_padding=kernel % 2 keep them for every kernel (question B.4)."
        )
    others = [label for label, _, _ in mismatches if label not in kernels]
    return hints + [
        f"With {label}: the class may contain a constant instead of {label.split()[0]}." for label in others
    ]
