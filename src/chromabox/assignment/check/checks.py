"""Evaluation of the observations of a student's class: checks, a comparison of layers, and hints."""

import math
from collections.abc import Callable, Mapping
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
    """Input of the checks."""

    model_name: str
    observations: Observations
    diff_lines: list[DiffLine]
    ops: list[Op]

    def get(self, name: str) -> Any:
        """Return the observation of that name, or None if it is not available."""
        return self.observations.values.get(name)


def layer_name(line: DiffLine) -> str:
    """Return the name of the layer of a line."""
    op = line.expected or line.actual
    assert op is not None
    return "concatenation" if op.kind == "cat" else op.kind


def ops_after_last_conv(context: CheckContext) -> list[str] | None:
    """Return the operations after the last convolution; None if that convolution is missing."""
    last = max(index for index, line in enumerate(context.diff_lines) if line.expected is not None)
    if context.diff_lines[last].actual is None:
        return None
    return [line.actual.kind for line in context.diff_lines[last + 1 :] if line.actual is not None]


@dataclass(frozen=True)
class SizeMismatch:
    """Sizes at which a class differs from figure 1."""

    label: str
    message: str
    wrong_shape: bool
    """Whether the shapes differ, or only the number of parameters."""

    def is_required(self, model_name: str) -> bool:
        """Return whether the assignment requires these sizes: for strided models it sets padding 1, for kernel 3."""
        return model_name == "pool-upsample" or not (self.wrong_shape and self.label.startswith("kernel"))


def find_size_mismatches(context: CheckContext) -> list[SizeMismatch]:
    """Return the sizes at which the output shape or the number of parameters differs from the reference model.

    If the number of parameters is wrong at the default sizes already, it only has to change with the sizes.
    """
    mismatches = []
    default_count = sum(context.get("parameters").values())
    is_default_correct = default_count == num_trainable_parameters(MODELS[context.model_name](**DEFAULT_SIZES))
    for label, observed in context.get("sizes").items():
        sizes = {**DEFAULT_SIZES, **OTHER_SIZES[label]}
        shape, count = (
            [2, sizes["num_colours"], IMAGE_SIZE, IMAGE_SIZE],
            num_trainable_parameters(MODELS[context.model_name](**sizes)),
        )
        if "failed" in observed:
            mismatches.append(SizeMismatch(label, str(observed["failed"]), True))
        elif observed["output"] != shape:
            mismatches.append(SizeMismatch(label, f"output shape {observed['output']} instead of {shape}", True))
        elif is_default_correct and observed["parameters"] != count:
            mismatches.append(SizeMismatch(label, f"{observed['parameters']:,} parameters instead of {count:,}", False))
        elif observed["parameters"] == default_count:
            mismatches.append(SizeMismatch(label, f"{default_count:,} parameters, as with the default", False))
    return mismatches


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
    trace = observations.values.get("steps")
    ops, lines = [], []
    if trace is not None:
        ops = [_op_from_json(values) for values in trace["steps"]]
        lines = _mark_not_reached(diff_ops(reference_ops(model_name), ops), trace["failed"] is not None)
    context = CheckContext(model_name, observations, lines, ops)
    checks = []
    for key, name, check in CHECKS:
        if key in observations.failures:
            checks.append(CheckItem(name, False, str(observations.failures[key])))
        elif key in observations.values:
            checks += [CheckItem(name, *outcome)] if (outcome := check(context)) is not None else []
    # One failure may affect several checks; it is reported once.
    checks = [
        item for index, item in enumerate(checks) if item.message not in {other.message for other in checks[:index]}
    ]
    return NetReport(model_name, observations.class_name, checks, lines, make_hints(context))


def _op_from_json(values: Mapping[str, Any]) -> Op:
    settings = {name: _json_safe(value) for name, value in values["settings"].items()}
    return Op(**{**values, "settings": settings, "shape": tuple(values["shape"]), "sources": tuple(values["sources"])})


def _json_safe(value: Any) -> Any:
    """Convert non-finite numbers to strings: JSON has none, and a class may set any setting to infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _mark_not_reached(lines: list[DiffLine], failed: bool) -> list[DiffLine]:
    """Mark the layers after the failure of a forward pass as not reached, instead of missing."""
    reached = max((index for index, line in enumerate(lines) if line.actual is not None), default=-1)
    return [
        replace(line, message=NOT_REACHED) if failed and index > reached else line for index, line in enumerate(lines)
    ]


CheckOutcome = tuple[bool | None, str] | None


def _check_constructor(context: CheckContext) -> CheckOutcome:
    missing = context.get("missing") or []
    if missing:
        return (
            False,
            f"{context.get('call')}: {', '.join(missing)} cannot be set; all four sizes of figure 1 are parameters",
        )
    return True, str(context.get("call"))


def _check_output_shape(context: CheckContext) -> CheckOutcome:
    trace, expected = context.get("steps"), [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
    if trace["failed"] is not None:
        return False, f"forward pass of {context.observations.class_name}: {trace['failed']}"
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
    shown = "; ".join(f"{line.location}: {layer_name(line)} {line.message}" for line in causes[:3])
    more = f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    return False, f"{shown}{more}"


def _check_batch_norms(context: CheckContext) -> CheckOutcome:
    if context.get("steps")["failed"] is not None:
        return None
    expected = sum(op.kind == "BatchNorm2d" for op in reference_ops(context.model_name))
    actual = sum(op.kind == "BatchNorm2d" for op in context.ops)
    return actual == expected, f"{actual} BatchNorm2d layers" + (
        "" if actual == expected else f" instead of {expected}"
    )


def _check_skips(context: CheckContext) -> CheckOutcome:
    concatenations = [line for line in context.diff_lines if (line.expected or line.actual).kind == "cat"]  # type: ignore[union-attr]
    if context.model_name != "unet" or context.get("steps")["failed"] is not None:
        return None
    differences = [line for line in concatenations if line.status != "equal"]
    if differences:
        return False, "; ".join(f"{line.location}: concatenation {line.message}" for line in differences)
    return True, "block 4 also receives the output of block 1, and the last convolution the greyscale input"


def _check_parameters(context: CheckContext) -> CheckOutcome:
    expected, actual = (
        num_trainable_parameters(MODELS[context.model_name](**DEFAULT_SIZES)),
        sum(context.get("parameters").values()),
    )
    return actual == expected, f"{actual:,}" if actual == expected else f"{actual:,} instead of {expected:,}"


def _check_logits(context: CheckContext) -> CheckOutcome:
    if context.get("steps")["failed"] is not None:
        return None
    following = ops_after_last_conv(context)
    if following is None:
        last = context.ops[-1].kind if context.ops else "no operation"
        return False, f"the model ends with {last} instead of a convolution"
    if following:
        return False, f"the last convolution is followed by {', then '.join(following)}; figure 1 ends with it"
    return True, "the output is that of the last convolution"


def _check_sizes(context: CheckContext) -> CheckOutcome:
    mismatches = find_size_mismatches(context)
    if not mismatches:
        return True, ", ".join(OTHER_SIZES)
    required = [mismatch for mismatch in mismatches if mismatch.is_required(context.model_name)]
    labels: dict[str, list[str]] = {}
    for mismatch in mismatches:
        labels.setdefault(mismatch.message, []).append(mismatch.label)
    return (False if required else None), "; ".join(
        f"{', '.join(group)}: {message}" for message, group in labels.items()
    )


def _check_function(mode: str) -> Callable[[CheckContext], CheckOutcome]:
    def check(context: CheckContext) -> CheckOutcome:
        observed = context.get("function")
        if observed["copied"] < observed["total"]:
            return (
                False,
                f"only {observed['copied']} of the {observed['total']} reference tensors fit the model; its function "
                "differs",
            )
        difference = float(observed[mode])
        if difference <= TOLERANCE:
            return True, f"same logits in {mode} mode with the reference weights (largest difference {difference:.1e})"
        return False, f"the logits in {mode} mode differ by up to {difference:.2g} with the reference weights"

    return check


def _check_batch_independence(context: CheckContext) -> CheckOutcome:
    difference = float(context.get("batch"))
    if difference <= TOLERANCE:
        return True, "in evaluation mode, the logits of an image do not depend on the rest of its batch"
    return False, f"in evaluation mode, the logits of an image change by up to {difference:.2g} with its batch"


def _check_gradients(context: CheckContext) -> CheckOutcome:
    names = [str(name) for name in context.get("gradient")]
    if not names:
        return True, "all parameters receive a gradient"
    return False, f"no gradient for {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _check_training_step(context: CheckContext) -> CheckOutcome:
    before, after = (float(loss) for loss in context.get("loss"))
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
    ("function", "same function (eval)", _check_function("evaluation")),
    ("function", "same function (train)", _check_function("training")),
    ("batch", "batch independence", _check_batch_independence),
    ("gradient", "gradient", _check_gradients),
    ("loss", "training step", _check_training_step),
)

#: Largest number of hints on layers; later differences are usually consequences of the first ones.
MAX_HINTS = 6

#: Effects of a last operation on logits that are passed to cross-entropy.
FINAL_OP_HINTS = {
    "softmax": "cross-entropy expects logits and applies log-softmax itself; a softmax before it impairs training",
    "log_softmax": "cross-entropy expects logits and applies log-softmax itself",
    "ReLU": "it sets negative logits to 0, and their gradient is 0",
}


def make_hints(context: CheckContext) -> list[str]:
    """Return hints on how to fix the differences, without repetitions."""
    hints = [_line_hint(line) for line in context.diff_lines if line.status != "equal" and not line.is_consequence]
    hints = [hint for hint in hints if hint]
    if len(hints) > MAX_HINTS:
        hints[MAX_HINTS:] = [f"… and {len(hints) - MAX_HINTS} more lines of the table; start with the first ones."]
    trace = context.get("steps")
    if trace is not None:
        if trace["failed"] is None:
            hints += [f"self.{name} is created in __init__ but not used in forward." for name in trace["unused"]]
        hints += _unused_op_hints(context.ops, trace["last"]) + _reuse_hints(context.ops)
        hints += [
            f"No {kind} at the end: {FINAL_OP_HINTS[kind]}."
            for kind in ops_after_last_conv(context) or []
            if kind in FINAL_OP_HINTS
        ]
    if context.get("sizes") is not None:
        hints += _size_hints(context)
    function = context.get("function")
    if function is not None and any(line.status != "equal" for line in context.diff_lines):
        is_same = (
            function["copied"] == function["total"] and max(function["evaluation"], function["training"]) <= TOLERANCE
        )
        hint = "It computes the function of figure 1 with other layers; the assignment requires the layers of figure 1."
        hints += [hint] if is_same else []
    return list(dict.fromkeys(hints))


def _line_hint(line: DiffLine) -> str:
    if line.message == NOT_REACHED:
        return ""
    name, op = layer_name(line), line.actual
    where = f" (self.{op.module})" if op is not None and op.module else " (in forward)" if op is not None else ""
    if line.status == "missing":
        assert line.expected is not None
        return f"{line.location}: add the {name} with output shape {list(line.expected.shape)}."
    if line.status == "extra":
        return f"{line.location}: remove the {name}{where}; figure 1 has none there."
    return f"{line.location}: {name}{where} {line.message}."


def _unused_op_hints(ops: list[Op], last_op: int | None) -> list[str]:
    """Return a hint on layers whose output does not affect the output of the model."""
    if last_op is None:
        return []
    used, pending = set[int](), [last_op]
    while pending:
        index = pending.pop()
        if index >= 0 and index not in used:
            used.add(index)
            pending += ops[index].sources
    unused = [op for index, op in enumerate(ops) if index not in used]
    names = ", ".join(f"{op.kind} ({f'self.{op.module}' if op.module else 'in forward'})" for op in unused)
    return [f"Computed but not used: {names}."] if unused else []


def _reuse_hints(ops: list[Op]) -> list[str]:
    """Return a hint on layers with weights that are used more than once."""
    names = [op.module for op in ops if op.num_parameters and op.module]
    shared = list(dict.fromkeys(f"self.{name}" for name in names if names.count(name) > 1))
    listed = f"{', '.join(shared[:4])}{' and others' if len(shared) > 4 else ''}"
    return [f"Used more than once: {listed}; figure 1 has a separate layer each time."] if shared else []


def _size_hints(context: CheckContext) -> list[str]:
    hints, mismatches = [], find_size_mismatches(context)
    kernels = [mismatch for mismatch in mismatches if mismatch.wrong_shape and mismatch.label.startswith("kernel")]
    labels = " and ".join(mismatch.label for mismatch in kernels)
    if kernels and kernels[0].is_required(context.model_name):
        hints.append(f"With {labels}, the shapes must not change: padding=kernel // 2 keeps them for odd kernels.")
    elif kernels:
        hints.append(
            f"With {labels}, the shapes change: the assignment sets padding 1 for kernel 3; padding=(kernel - 1) // 2 "
            "and output_padding=kernel % 2 keep them for every kernel (question B.4)."
        )
    for mismatch in mismatches:
        if mismatch not in kernels:
            hints.append(
                f"With {mismatch.label}: the class may contain a constant instead of {mismatch.label.split()[0]}."
            )
    return hints
