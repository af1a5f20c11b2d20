"""What was seen of a student's class, judged: one verdict a question, a line a layer, hints in plain words.

What was seen of a student's class, and what can be read from it; :mod:`chromabox.assignment.check.checks` judges.

What to do about what differs, in plain words.
"""

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

#: Up to here two scores are the same number.
TOLERANCE = 1e-4

#: Said of the figure's layers behind the place where a forward fails.
NOT_REACHED = "not reached"


@dataclass
class Observations:
    """What a child process has told of one class: see :mod:`chromabox.assignment.check.worker`."""

    class_name: str
    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Sentences for facts that could not be had."""


@dataclass(frozen=True)
class CheckContext:
    """All that a verdict is reached from."""

    model_name: str
    observations: Observations
    diff_lines: list[DiffLine]
    ops: list[Op]

    def get(self, name: str) -> Any:
        """What was told under that name; None where it could not be had."""
        return self.observations.values.get(name)


def layer_name(line: DiffLine) -> str:
    """The layer that a line is about."""
    step = line.expected or line.actual
    assert step is not None
    return "concatenation" if step.kind == "cat" else step.kind


def ops_after_last_conv(context: CheckContext) -> list[str] | None:
    """What is done to the last convolution's scores; None without that convolution."""
    ours = max(index for index, line in enumerate(context.diff_lines) if line.expected is not None)
    if context.diff_lines[ours].actual is None:
        return None
    return [line.actual.kind for line in context.diff_lines[ours + 1 :] if line.actual is not None]


@dataclass(frozen=True)
class SizeMismatch:
    """Sizes at which a class is not the figure's."""

    label: str
    message: str
    wrong_shape: bool
    """Whether the shapes go wrong, or only the number of parameters."""

    def is_required(self, model_name: str) -> bool:
        """Whether the assignment asks for it: of the strided nets it sets the padding, to 1, for kernel 3 only."""
        return model_name == "pool-upsample" or not (self.wrong_shape and self.label.startswith("kernel"))


def find_size_mismatches(context: CheckContext) -> list[SizeMismatch]:
    """The sizes at which the class gives other shapes or counts than ours, and what came instead.

    Where the count is wrong at the usual sizes already, it is only asked to change with the others.
    """
    wrong = []
    usual = sum(context.get("parameters").values())
    right = usual == num_trainable_parameters(MODELS[context.model_name](**DEFAULT_SIZES))
    for label, seen in context.get("sizes").items():
        sizes = {**DEFAULT_SIZES, **OTHER_SIZES[label]}
        shape, count = (
            [2, sizes["num_colours"], IMAGE_SIZE, IMAGE_SIZE],
            num_trainable_parameters(MODELS[context.model_name](**sizes)),
        )
        if "failed" in seen:
            wrong.append(SizeMismatch(label, str(seen["failed"]), True))
        elif seen["output"] != shape:
            wrong.append(SizeMismatch(label, f"gives {seen['output']} instead of {shape}", True))
        elif right and seen["parameters"] != count:
            wrong.append(SizeMismatch(label, f"{seen['parameters']:,} parameters instead of {count:,}", False))
        elif seen["parameters"] == usual:
            wrong.append(SizeMismatch(label, f"{usual:,} parameters, as without it", False))
    return wrong


@dataclass(frozen=True)
class CheckItem:
    """One question and its answer."""

    name: str
    passed: bool | None
    """None: not asked for by the assignment, and only told."""
    message: str


@dataclass(frozen=True)
class NetReport:
    """One class beside its net of figure 1."""

    model: str
    class_name: str
    checks: list[CheckItem]
    diff: list[DiffLine]
    hints: list[str]

    @property
    def matches(self) -> bool:
        """Whether nothing that the assignment asks for differs."""
        return all(check.passed is not False for check in self.checks)


def reference_ops(model_name: str) -> list[Op]:
    """The steps of the figure's net at the usual sizes, two pictures of 32 × 32."""
    trace = trace_ops(
        MODELS[model_name](**DEFAULT_SIZES).train(),
        torch.rand(2, DEFAULT_SIZES["num_in_channels"], IMAGE_SIZE, IMAGE_SIZE),
    )
    if trace.error is not None:
        raise trace.error
    return trace.ops


def run_checks(model_name: str, observations: Observations) -> NetReport:
    """Hold what was seen of a class beside our net of that name.

    Raises KeyError, TypeError, ValueError or AttributeError for facts that no child of ours tells.
    """
    seen = observations.values.get("steps")
    found, lines = [], []
    if seen is not None:
        found = [_op_from_json(one) for one in seen["steps"]]
        lines = _mark_not_reached(diff_ops(reference_ops(model_name), found), seen["failed"] is not None)
    case = CheckContext(model_name, observations, lines, found)
    checks = []
    for fact, name, verdict in CHECKS:
        if fact in observations.failures:
            checks.append(CheckItem(name, False, str(observations.failures[fact])))
        elif fact in observations.values:
            checks += [CheckItem(name, *answer)] if (answer := verdict(case)) is not None else []
    # One failure may stand behind several questions; it is told once.
    checks = [one for index, one in enumerate(checks) if one.message not in {other.message for other in checks[:index]}]
    return NetReport(model_name, observations.class_name, checks, lines, make_hints(case))


def _op_from_json(values: Mapping[str, Any]) -> Op:
    settings = {name: _json_safe(value) for name, value in values["settings"].items()}
    return Op(**{**values, "settings": settings, "shape": tuple(values["shape"]), "sources": tuple(values["sources"])})


def _json_safe(value: Any) -> Any:
    """JSON has no infinity, and a class may set anything to it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _mark_not_reached(lines: list[DiffLine], failed: bool) -> list[DiffLine]:
    """What a forward that failed did not come to is not missing."""
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
            f"{context.get('call')}: {', '.join(missing)} cannot be set; the figure leaves all four sizes open",
        )
    return True, str(context.get("call"))


def _check_output_shape(context: CheckContext) -> CheckOutcome:
    seen, wanted = context.get("steps"), [2, DEFAULT_SIZES["num_colours"], IMAGE_SIZE, IMAGE_SIZE]
    if seen["failed"] is not None:
        return False, f"{context.observations.class_name}'s forward {seen['failed']}"
    if seen["output"] != wanted:
        return False, f"[2, 1, {IMAGE_SIZE}, {IMAGE_SIZE}] in gives {seen['output']} out; the figure gives {wanted}"
    return True, f"[2, 1, {IMAGE_SIZE}, {IMAGE_SIZE}] in, {wanted} out"


def _check_layers(context: CheckContext) -> CheckOutcome:
    wrong = [line for line in context.diff_lines if line.status != "equal"]
    if not wrong:
        return True, f"all {len(context.diff_lines)} steps are the figure's, in its order"
    causes = [line for line in wrong if not line.is_consequence and line.message != NOT_REACHED]
    if not causes:
        return False, f"the first {len(context.ops)} steps are the figure's, then forward fails"
    shown = "; ".join(f"{line.location}: {layer_name(line)} {line.message}" for line in causes[:3])
    more = f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    return False, f"{shown}{more}"


def _check_batch_norms(context: CheckContext) -> CheckOutcome:
    if context.get("steps")["failed"] is not None:
        return None
    wanted = sum(step.kind == "BatchNorm2d" for step in reference_ops(context.model_name))
    own = sum(step.kind == "BatchNorm2d" for step in context.ops)
    return own == wanted, f"{own} BatchNorm2d layers at work" + ("" if own == wanted else f" instead of {wanted}")


def _check_skips(context: CheckContext) -> CheckOutcome:
    joins = [line for line in context.diff_lines if (line.expected or line.actual).kind == "cat"]  # type: ignore[union-attr]
    if context.model_name != "unet" or context.get("steps")["failed"] is not None:
        return None
    wrong = [line for line in joins if line.status != "equal"]
    if wrong:
        return False, "; ".join(f"{line.location}: concatenation {line.message}" for line in wrong)
    return True, "block 4 is also given block 1's output, the last convolution the grey input"


def _check_parameters(context: CheckContext) -> CheckOutcome:
    wanted, own = (
        num_trainable_parameters(MODELS[context.model_name](**DEFAULT_SIZES)),
        sum(context.get("parameters").values()),
    )
    return own == wanted, f"{own:,}" if own == wanted else f"{own:,} instead of {wanted:,}"


def _check_logits(context: CheckContext) -> CheckOutcome:
    if context.get("steps")["failed"] is not None:
        return None
    after = ops_after_last_conv(context)
    if after is None:
        return False, f"the net ends with {context.ops[-1].kind if context.ops else 'nothing'}, not with a convolution"
    if after:
        return False, f"behind the last convolution comes {', then '.join(after)}; the figure ends with the convolution"
    return True, "the last convolution's scores come out as they are"


def _check_sizes(context: CheckContext) -> CheckOutcome:
    wrong = find_size_mismatches(context)
    if not wrong:
        return True, ", ".join(OTHER_SIZES)
    asked = [one for one in wrong if one.is_required(context.model_name)]
    labels: dict[str, list[str]] = {}
    for one in wrong:
        labels.setdefault(one.message, []).append(one.label)
    return (False if asked else None), "; ".join(f"{', '.join(alike)}: {reason}" for reason, alike in labels.items())


def _check_function(mode: str) -> Callable[[CheckContext], CheckOutcome]:
    def answer(case: CheckContext) -> CheckOutcome:
        seen = case.get("function")
        if seen["copied"] < seen["total"]:
            return (
                False,
                f"only {seen['copied']} of our {seen['total']} tensors have a place in it, so it computes another",
            )
        gap = float(seen[mode])
        if gap <= TOLERANCE:
            return True, f"with our weights the same scores in {mode} (greatest difference {gap:.1e})"
        return False, f"with our weights the scores in {mode} differ by up to {gap:.2g}"

    return answer


def _check_batch_independence(context: CheckContext) -> CheckOutcome:
    gap = float(context.get("batch"))
    if gap <= TOLERANCE:
        return True, "in evaluation a picture's scores do not depend on the others of its batch"
    return False, f"in evaluation a picture's scores change by up to {gap:.2g} with the others of its batch"


def _check_gradients(context: CheckContext) -> CheckOutcome:
    names = [str(name) for name in context.get("gradient")]
    if not names:
        return True, "reaches every parameter"
    return False, f"does not reach {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _check_training_step(context: CheckContext) -> CheckOutcome:
    before, after = (float(one) for one in context.get("loss"))
    return after < before, f"cross-entropy {before:.3f} → {after:.3f} on the same batch"


#: The fact that a question is about, its name, and how it is answered.
CHECKS: tuple[tuple[str, str, Callable[[CheckContext], CheckOutcome]], ...] = (
    ("call", "constructor", lambda case: None),
    ("missing", "constructor", _check_constructor),
    ("steps", "shapes", _check_output_shape),
    ("steps", "layers", _check_layers),
    ("steps", "BatchNorm", _check_batch_norms),
    ("steps", "skip connections", _check_skips),
    ("steps", "raw scores", _check_logits),
    ("parameters", "parameters", _check_parameters),
    ("sizes", "other sizes", _check_sizes),
    ("function", "same function (eval)", _check_function("evaluation")),
    ("function", "same function (train)", _check_function("training")),
    ("batch", "batch independence", _check_batch_independence),
    ("gradient", "gradient", _check_gradients),
    ("loss", "one step of training", _check_training_step),
)

#: Layers that hints are given for; mostly the later ones follow from the first.
MAX_HINTS = 6

#: What a last step does to scores that cross-entropy is to be taken of.
FINAL_OP_HINTS = {
    "softmax": "cross-entropy takes raw scores and applies log-softmax itself; with a softmax before it learns badly",
    "log_softmax": "cross-entropy takes raw scores and applies log-softmax itself",
    "ReLU": "it cuts every negative score to 0, and where it does no gradient comes through",
}


def make_hints(context: CheckContext) -> list[str]:
    """What to do about it, once each."""
    hints = [_line_hint(line) for line in context.diff_lines if line.status != "equal" and not line.is_consequence]
    hints = [hint for hint in hints if hint]
    if len(hints) > MAX_HINTS:
        hints[MAX_HINTS:] = [f"… and {len(hints) - MAX_HINTS} more lines of the table; begin with the first."]
    seen = context.get("steps")
    if seen is not None:
        if seen["failed"] is None:
            hints += [f"self.{name} is made in __init__ and takes no part in forward." for name in seen["unused"]]
        hints += _unused_op_hints(context.ops, seen["last"]) + _reuse_hints(context.ops)
        hints += [
            f"No {kind} at the end: {FINAL_OP_HINTS[kind]}."
            for kind in ops_after_last_conv(context) or []
            if kind in FINAL_OP_HINTS
        ]
    if context.get("sizes") is not None:
        hints += _size_hints(context)
    function = context.get("function")
    if function is not None and any(line.status != "equal" for line in context.diff_lines):
        same = (
            function["copied"] == function["total"] and max(function["evaluation"], function["training"]) <= TOLERANCE
        )
        other = "It computes the figure's function by other means; the assignment asks for its layers by name."
        hints += [other] if same else []
    return list(dict.fromkeys(hints))


def _line_hint(line: DiffLine) -> str:
    if line.message == NOT_REACHED:
        return ""
    name, step = layer_name(line), line.actual
    where = (
        f" (self.{step.module})" if step is not None and step.module else " (in forward)" if step is not None else ""
    )
    if line.status == "missing":
        assert line.expected is not None
        return f"{line.location}: add the {name} that makes {list(line.expected.shape)}."
    if line.status == "extra":
        return f"{line.location}: leave out the {name}{where}; the figure has none there."
    return f"{line.location}: {name}{where} {line.message}."


def _unused_op_hints(ops: list[Op], last_op: int | None) -> list[str]:
    """Layers whose work does not come to the output."""
    if last_op is None:
        return []
    reached, left = set[int](), [last_op]
    while left:
        index = left.pop()
        if index >= 0 and index not in reached:
            reached.add(index)
            left += ops[index].sources
    lost = [step for index, step in enumerate(ops) if index not in reached]
    said = ", ".join(f"{step.kind} ({f'self.{step.module}' if step.module else 'in forward'})" for step in lost)
    return [f"Computed and then not used: {said}."] if lost else []


def _reuse_hints(ops: list[Op]) -> list[str]:
    """Layers with weights that are used more than once."""
    names = [step.module for step in ops if step.num_parameters and step.module]
    shared = list(dict.fromkeys(f"self.{name}" for name in names if names.count(name) > 1))
    said = f"{', '.join(shared[:4])}{' and others' if len(shared) > 4 else ''}"
    return [f"Used more than once: {said}; the figure has a layer of its own each time."] if shared else []


def _size_hints(context: CheckContext) -> list[str]:
    hints, wrong = [], find_size_mismatches(context)
    kernels = [one for one in wrong if one.wrong_shape and one.label.startswith("kernel")]
    said = " and ".join(one.label for one in kernels)
    if kernels and kernels[0].is_required(context.model_name):
        hints.append(f"With {said} the shapes must stay: padding=kernel // 2 keeps them for odd kernels.")
    elif kernels:
        hints.append(
            f"With {said} the shapes change: the assignment sets padding 1 for kernel 3; padding=(kernel - 1) // 2 and "
            "output_padding=kernel % 2 keep them for every kernel (question B.4)."
        )
    for one in wrong:
        if one not in kernels:
            hints.append(
                f"With {one.label}: is a number typed into the class where {one.label.split()[0]} should stand?"
            )
    return hints
