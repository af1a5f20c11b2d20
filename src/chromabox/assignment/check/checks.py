"""Evaluation of the observations of a student's class: checks, a comparison of layers, and hints."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from chromabox.assignment.check.align import DiffLine, diff_ops
from chromabox.assignment.check.experiments import IMAGE_SIZE, OTHER_SIZES
from chromabox.assignment.check.source import DEFAULT_SIZES
from chromabox.assignment.check.trace import Op, trace_ops
from chromabox.colour.models import MODELS, num_trainable_parameters

#: Largest difference of two logits that count as equal.
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


@dataclass(frozen=True)
class CheckContext:
    """Input of the checks and hints."""

    model_name: str
    class_name: str
    values: dict[str, Any]
    """The observations by name."""
    diff_lines: list[DiffLine]
    ops: list[Op]

    @property
    def is_complete(self) -> bool:
        """Whether the forward pass did not fail."""
        return self.values["steps"]["failed"] is None


def layer_name(op: Op) -> str:
    """Return the printable name of the layer of an operation."""
    return "concatenation" if op.kind == "cat" else op.kind


def ops_after_last_conv(context: CheckContext) -> list[str] | None:
    """Return the operations after the last convolution; None if that convolution is missing."""
    last = max(index for index, line in enumerate(context.diff_lines) if line.expected is not None)
    if context.diff_lines[last].actual is None:
        return None
    return [line.actual.kind for line in context.diff_lines[last + 1 :] if line.actual is not None]


@dataclass(frozen=True)
class CheckItem:
    """Result of one check."""

    name: str
    passed: bool | None
    """None: reported only, because the assignment does not require it."""
    message: str


@dataclass(frozen=True)
class NetReport:
    """Comparison of one class with its model of figure 1."""

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


def run_checks(model_name: str, observations: Observations) -> NetReport:
    """Compare the observations of a class with the reference model of that name.

    Raise KeyError, TypeError, ValueError or AttributeError for observations that the worker cannot have written.
    """
    values, class_name = observations.values, observations.class_name
    ops, lines = list[Op](), list[DiffLine]()
    if "steps" in values:
        for step in values["steps"]["steps"]:
            # A class may set any setting to infinity, which JSON cannot represent.
            settings = {
                name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in step["settings"].items()
            }
            lists = {"shape": tuple(step["shape"]), "sources": tuple(step["sources"])}
            ops.append(Op(**{**step, **lists, "settings": settings}))
        lines = diff_ops(reference_ops(model_name), ops)
        if values["steps"]["failed"] is not None:
            reached = max((index for index, line in enumerate(lines) if line.actual is not None), default=-1)
            lines[reached + 1 :] = [replace(line, message=NOT_REACHED) for line in lines[reached + 1 :]]
    context = CheckContext(model_name, class_name, values, lines, ops)
    checks: dict[str, CheckItem] = {}
    for key, name, check in CHECKS:
        outcome: CheckOutcome = None
        if key in observations.failures:
            outcome = False, str(observations.failures[key])
        elif key in values:
            outcome = check(context)
        if outcome is not None:
            # One failure may affect several checks; it is reported once.
            checks.setdefault(outcome[1], CheckItem(name, *outcome))
    return NetReport(model_name, class_name, list(checks.values()), lines, make_hints(context))


CheckOutcome = tuple[bool | None, str] | None


def _check_constructor(context: CheckContext) -> CheckOutcome:
    call, missing = str(context.values["call"]), context.values["missing"]
    message = f"{call}: {', '.join(missing)} cannot be set; all four sizes of figure 1 are parameters"
    return (False, message) if missing else (True, call)


def _check_output_shape(context: CheckContext) -> CheckOutcome:
    trace, expected = context.values["steps"], [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
    if not context.is_complete:
        return False, f"forward pass of {context.class_name}: {trace['failed']}"
    if trace["output"] != expected:
        return False, f"input [2, 1, {IMAGE_SIZE}, {IMAGE_SIZE}], output {trace['output']} instead of {expected}"
    return True, f"input [2, 1, {IMAGE_SIZE}, {IMAGE_SIZE}], output {expected}"


def _check_layers(context: CheckContext) -> CheckOutcome:
    differences = [line for line in context.diff_lines if line.status != "equal"]
    if not differences:
        return True, f"all {len(context.diff_lines)} operations are those of figure 1, in the same order"
    causes = [line for line in differences if not line.is_consequence and line.message != NOT_REACHED]
    if not causes:
        return False, f"the first {len(context.ops)} operations are those of figure 1, then the forward pass fails"
    shown = "; ".join(f"{line.location}: {layer_name(line.op)} {line.message}" for line in causes[:3])
    return False, shown + (f"; and {len(causes) - 3} more" if len(causes) > 3 else "")


def _instead_of(expected: int, actual: int) -> str:
    return "" if actual == expected else f" instead of {expected:,}"


def _check_batch_norms(context: CheckContext) -> CheckOutcome:
    if not context.is_complete:
        return None
    expected = sum(op.kind == "BatchNorm2d" for op in reference_ops(context.model_name))
    actual = sum(op.kind == "BatchNorm2d" for op in context.ops)
    return actual == expected, f"{actual} BatchNorm2d layers{_instead_of(expected, actual)}"


def _check_skips(context: CheckContext) -> CheckOutcome:
    if context.model_name != "unet" or not context.is_complete:
        return None
    differences = [
        f"{line.location}: concatenation {line.message}"
        for line in context.diff_lines
        if line.op.kind == "cat" and line.status != "equal"
    ]
    skips = "block 4 also receives the output of block 1, and the last convolution the greyscale input"
    return not differences, "; ".join(differences) or skips


def _check_parameters(context: CheckContext) -> CheckOutcome:
    expected = num_trainable_parameters(MODELS[context.model_name](**DEFAULT_SIZES))
    actual = context.values["parameters"]
    return actual == expected, f"{actual:,}{_instead_of(expected, actual)}"


def _check_logits(context: CheckContext) -> CheckOutcome:
    if not context.is_complete:
        return None
    following = ops_after_last_conv(context)
    if following is None:
        last = context.ops[-1].kind if context.ops else "no operation"
        return False, f"the model ends with {last} instead of a convolution"
    if following:
        return False, f"the last convolution is followed by {', then '.join(following)}; figure 1 ends with it"
    return True, "the output is that of the last convolution"


def _check_sizes(context: CheckContext) -> CheckOutcome:
    labels: dict[str, list[str]] = {}
    passed: bool | None = True
    for label, message, is_wrong_shape in context.values["sizes"]:
        labels.setdefault(message, []).append(label)
        # For strided models, the assignment sets padding 1, for kernel 3.
        is_allowed = context.model_name != "pool-upsample" and is_wrong_shape and label.startswith("kernel")
        passed = None if is_allowed and passed is not False else False
    messages = [f"{', '.join(group)}: {message}" for message, group in labels.items()]
    return passed, "; ".join(messages) or ", ".join(OTHER_SIZES)


def _check_function(context: CheckContext, mode: str) -> CheckOutcome:
    observed = context.values["function"]
    if observed["copied"] < observed["total"]:
        fitting = f"{observed['copied']} of the {observed['total']} reference tensors fit the model"
        return False, f"only {fitting}; its function differs"
    difference = float(observed[mode])
    if difference <= TOLERANCE:
        return True, f"same logits in {mode} mode with the reference weights (largest difference {difference:.1e})"
    return False, f"the logits in {mode} mode differ by up to {difference:.2g} with the reference weights"


def _check_batch_independence(context: CheckContext) -> CheckOutcome:
    difference = float(context.values["batch"])
    if difference <= TOLERANCE:
        return True, "in evaluation mode, the logits of an image do not depend on the rest of its batch"
    return False, f"in evaluation mode, the logits of an image change by up to {difference:.2g} with its batch"


def _check_gradients(context: CheckContext) -> CheckOutcome:
    names = [str(name) for name in context.values["gradient"]]
    if not names:
        return True, "all parameters receive a gradient"
    return False, f"no gradient for {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _check_training_step(context: CheckContext) -> CheckOutcome:
    before, after = (float(loss) for loss in context.values["loss"])
    return after < before, f"cross-entropy {before:.3f} → {after:.3f} on the same batch"


#: Name of the observation, name of the check, and its function.
CHECKS: tuple[tuple[str, str, Callable[[CheckContext], CheckOutcome]], ...] = (
    ("call", "constructor", lambda context: None),
    ("missing", "constructor", _check_constructor),
    ("steps", "shapes", _check_output_shape),
    ("steps", "layers", _check_layers),
    ("steps", "BatchNorm", _check_batch_norms),
    ("steps", "skip connections", _check_skips),
    ("steps", "logits", _check_logits),
    ("parameters", "parameters", _check_parameters),
    ("sizes", "other sizes", _check_sizes),
    ("function", "same function (eval)", lambda context: _check_function(context, "evaluation")),
    ("function", "same function (train)", lambda context: _check_function(context, "training")),
    ("batch", "batch independence", _check_batch_independence),
    ("gradient", "gradient", _check_gradients),
    ("loss", "training step", _check_training_step),
)

#: Largest number of hints on layers; later differences are usually consequences of the first ones.
MAX_HINTS = 6

SAME_FUNCTION_HINT = (
    "It computes the function of figure 1 with other layers; the assignment requires the layers of figure 1."
)

#: Effects of a last operation on logits that are passed to cross-entropy.
FINAL_OP_HINTS = {
    "softmax": "cross-entropy expects logits and applies log-softmax itself; a softmax before it impairs training",
    "log_softmax": "cross-entropy expects logits and applies log-softmax itself",
    "ReLU": "it sets negative logits to 0, and their gradient is 0",
}


def make_hints(context: CheckContext) -> list[str]:
    """Return hints on how to fix the differences, without repetitions."""
    hints = []
    for line in context.diff_lines:
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
    if "steps" in context.values:
        hints += _usage_hints(context)
    if "sizes" in context.values:
        hints += _size_hints(context)
    function = context.values.get("function")
    if function is not None and any(line.status != "equal" for line in context.diff_lines):
        is_same = max(function["evaluation"], function["training"]) <= TOLERANCE
        if is_same and function["copied"] == function["total"]:
            hints.append(SAME_FUNCTION_HINT)
    return list(dict.fromkeys(hints))


def _usage_hints(context: CheckContext) -> list[str]:
    """Return hints on unused and shared layers, and on operations after the last convolution."""
    trace, ops, hints = context.values["steps"], context.ops, []
    if context.is_complete:
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
    last_kinds = [kind for kind in ops_after_last_conv(context) or [] if kind in FINAL_OP_HINTS]
    return hints + [f"No {kind} at the end: {FINAL_OP_HINTS[kind]}." for kind in last_kinds]


def _size_hints(context: CheckContext) -> list[str]:
    mismatches = context.values["sizes"]
    kernels = [label for label, _, is_wrong_shape in mismatches if is_wrong_shape and label.startswith("kernel")]
    hints, labels = [], " and ".join(kernels)
    if kernels and context.model_name == "pool-upsample":
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
