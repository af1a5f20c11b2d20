"""Evaluation of the observations of a student's class: checks, a comparison of layers, and hints."""

import math
from collections import Counter
from collections.abc import Iterator
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

    @property
    def differences(self) -> list[DiffLine]:
        """All lines that are not equal."""
        return [line for line in self.diff if line.status != "equal"]

    @property
    def causes(self) -> list[DiffLine]:
        """The differences that are not consequences of others."""
        return [line for line in self.differences if not line.is_consequence and line.message != NOT_REACHED]

    @property
    def ops_after_last_conv(self) -> list[str] | None:
        """The operations after the last convolution; None if that convolution is missing."""
        last = max(index for index, line in enumerate(self.diff) if line.expected is not None)
        if self.diff[last].actual is None:
            return None
        return [line.actual.kind for line in self.diff[last + 1 :] if line.actual is not None]


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


def layer_name(op: Op) -> str:
    """Return the printable name of the layer of an operation."""
    return "concatenation" if op.kind == "cat" else op.kind


def reference_ops(model_name: str) -> list[Op]:
    """Return the operations of the reference model at the default sizes, for two images of 32 × 32 pixels."""
    trace = trace_ops(MODELS[model_name](**DEFAULT_SIZES).train(), torch.rand(2, 1, IMAGE_SIZE, IMAGE_SIZE))
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
    for item in (*_check_trace(observed), *_check_experiments(observed)):
        # One failure may affect several checks; it is reported once.
        checks.setdefault(item.message, item)
    for key, message in observed.failures.items():
        checks.setdefault(str(message), CheckItem(CHECK_NAMES[key], False, str(message)))
    return NetReport(model_name, observed.class_name, list(checks.values()), observed.diff, make_hints(observed))


#: For each observation, the name of the check that fails if it is missing.
CHECK_NAMES = {
    "call": "constructor",
    "steps": "shapes",
    "parameters": "parameters",
    "sizes": "other sizes",
    "function": "same function (eval)",
    "batch": "batch independence",
    "gradient": "gradient",
    "loss": "training step",
}


def _check_trace(observed: Observations) -> Iterator[CheckItem]:
    """Check the constructor and the operations of the forward pass."""
    if "call" in observed.values:
        message, missing = str(observed.values["call"]["call"]), observed.values["call"]["missing"]
        message += f": {', '.join(missing)} cannot be set; all four sizes of figure 1 are parameters" if missing else ""
        yield CheckItem("constructor", not missing, message)
    if "steps" not in observed.values:
        return
    trace = observed.values["steps"]
    message = f"forward pass of {observed.class_name}: {trace['failed']}"
    if trace["failed"] is None:
        message = f"input {[2, 1, IMAGE_SIZE, IMAGE_SIZE]}, output {trace['output']}"
        message += "" if trace["output"] == OUTPUT_SHAPE else f" instead of {OUTPUT_SHAPE}"
    yield CheckItem("shapes", trace["failed"] is None and trace["output"] == OUTPUT_SHAPE, message)

    causes, differences = observed.causes, observed.differences
    message = f"all {len(observed.diff)} operations are those of figure 1, in the same order"
    if causes:
        message = "; ".join(f"{line.location}: {layer_name(line.op)} {line.message}" for line in causes[:3])
        message += f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    elif differences:
        message = f"the first {len(observed.ops)} operations are those of figure 1, then the forward pass fails"
    yield CheckItem("layers", not differences, message)
    if trace["failed"] is not None:
        return

    expected = sum(line.expected is not None and line.expected.kind == "BatchNorm2d" for line in observed.diff)
    actual = sum(op.kind == "BatchNorm2d" for op in observed.ops)
    message = f"{actual} BatchNorm2d layers" + ("" if actual == expected else f" instead of {expected}")
    yield CheckItem("BatchNorm", actual == expected, message)

    if observed.model_name == "unet":
        messages = [f"{line.location}: concatenation {line.message}" for line in differences if line.op.kind == "cat"]
        skips = "block 4 also receives the output of block 1, and the last convolution the greyscale input"
        yield CheckItem("skip connections", not messages, "; ".join(messages) or skips)

    following = observed.ops_after_last_conv
    message = "the output is that of the last convolution"
    if following is None:
        last = observed.ops[-1].kind if observed.ops else "no operation"
        message = f"the model ends with {last} instead of a convolution"
    elif following:
        message = f"the last convolution is followed by {', then '.join(following)}; figure 1 ends with it"
    yield CheckItem("logits", following == [], message)


def _check_experiments(observed: Observations) -> Iterator[CheckItem]:
    """Check the number of parameters and the results of the experiments."""
    values = observed.values
    if "parameters" in values:
        count, expected = values["parameters"], num_trainable_parameters(MODELS[observed.model_name](**DEFAULT_SIZES))
        message = f"{count:,}" if count == expected else f"{count:,} instead of {expected:,}"
        yield CheckItem("parameters", count == expected, message)
    if "sizes" in values:
        labels: dict[str, list[str]] = {}
        for label, message, _ in values["sizes"]:
            labels.setdefault(message, []).append(label)
        # For strided models, the assignment specifies padding 1, which is meant for kernel 3.
        only_kernels = len(_kernel_labels(values["sizes"])) == len(values["sizes"])
        passed = not labels or (None if only_kernels and observed.model_name != "pool-upsample" else False)
        message = "; ".join(f"{', '.join(group)}: {message}" for message, group in labels.items())
        yield CheckItem("other sizes", passed, message or ", ".join(OTHER_SIZES))
    if "function" in values:
        copied, total = values["function"]["copied"], values["function"]["total"]
        for name, mode in (("same function (eval)", "evaluation"), ("same function (train)", "training")):
            difference = float(values["function"][mode])
            passed = copied == total and difference <= TOLERANCE
            message = f"the logits in {mode} mode differ by up to {difference:.2g} with the reference weights"
            if copied < total:
                message = f"only {copied} of the {total} reference tensors fit the model; its function differs"
            elif passed:
                message = f"same logits in {mode} mode with the reference weights (largest difference {difference:.1e})"
            yield CheckItem(name, passed, message)
    if "batch" in values:
        passed = values["batch"] <= TOLERANCE
        message = f"change by up to {values['batch']:.2g} with its batch"
        message = "do not depend on the rest of its batch" if passed else message
        yield CheckItem("batch independence", passed, f"in evaluation mode, the logits of an image {message}")
    if "gradient" in values:
        names = values["gradient"]
        message = f"no gradient for {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if names[6:] else "")
        yield CheckItem("gradient", not names, message if names else "all parameters receive a gradient")
    if "loss" in values:
        before, after = values["loss"]
        yield CheckItem("training step", after < before, f"cross-entropy {before:.3f} → {after:.3f} on the same batch")


def _kernel_labels(mismatches: list[list[Any]]) -> list[str]:
    """Return the kernel sizes at which the shapes differ."""
    return [label for label, _, is_wrong_shape in mismatches if is_wrong_shape and label.startswith("kernel")]


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
    for line in observed.causes:
        name, op = layer_name(line.op), line.actual
        where = "" if op is None else f" {_place(op)}"
        if line.status == "missing":
            hints.append(f"{line.location}: add the {name} with output shape {list(line.op.shape)}.")
        elif line.status == "extra":
            hints.append(f"{line.location}: remove the {name}{where}; figure 1 has none there.")
        else:
            hints.append(f"{line.location}: {name}{where} {line.message}.")
    if len(hints) > MAX_HINTS:
        hints[MAX_HINTS:] = [f"… and {len(hints) - MAX_HINTS} more lines of the table; start with the first ones."]
    if "steps" in observed.values:
        hints += _usage_hints(observed.values["steps"], observed.ops)
        last_kinds = [kind for kind in observed.ops_after_last_conv or [] if kind in FINAL_OP_HINTS]
        hints += [f"No {kind} at the end: {FINAL_OP_HINTS[kind]}." for kind in last_kinds]
    mismatches = observed.values.get("sizes", [])
    kernels = _kernel_labels(mismatches)
    if kernels and observed.model_name == "pool-upsample":
        advice = "the shapes must not change: padding=kernel // 2 keeps them for odd kernels"
        hints.append(f"With {' and '.join(kernels)}, {advice}.")
    elif kernels:
        hints.append(
            f"With {' and '.join(kernels)}, the shapes change: the assignment sets padding 1 for kernel 3; "
            "padding=(kernel - 1) // 2 and output_padding=kernel % 2 keep them for every kernel (question B.4)."
        )
    others = [label for label, *_ in mismatches if label not in kernels]
    hints += [f"With {label}: the class may contain a constant instead of {label.split()[0]}." for label in others]
    function = observed.values.get("function")
    if function is not None and observed.differences and function["copied"] == function["total"]:
        hints += [SAME_FUNCTION_HINT] if max(function["evaluation"], function["training"]) <= TOLERANCE else []
    return list(dict.fromkeys(hints))


def _place(op: Op) -> str:
    return f"(self.{op.module})" if op.module else "(in forward)"


def _usage_hints(trace: dict[str, Any], ops: list[Op]) -> list[str]:
    """Return hints on unused and shared layers."""
    hints = []
    if trace["failed"] is None:
        hints += [f"self.{name} is created in __init__ but not used in forward." for name in trace["unused"]]
    if trace["last"] is not None:
        used = {trace["last"]}
        # Sources precede the operations that use them.
        for index in range(len(ops) - 1, -1, -1):
            used.update(ops[index].sources if index in used else ())
        unused = ", ".join(f"{op.kind} {_place(op)}" for index, op in enumerate(ops) if index not in used)
        hints += [f"Computed but not used: {unused}."] if unused else []
    counts = Counter(f"self.{op.module}" for op in ops if op.num_parameters and op.module)
    shared = ", ".join(name for name, count in counts.items() if count > 1)
    return hints + ([f"Used more than once: {shared}; figure 1 has a separate layer each time."] if shared else [])
