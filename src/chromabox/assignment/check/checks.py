"""What was seen of a student's class, judged: one verdict a question, a line a layer, hints in plain words.

What was seen of a student's class, and what can be read from it; :mod:`chromabox.assignment.check.checks` judges.

What to do about what differs, in plain words.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from chromabox.assignment.check.align import Line, compare
from chromabox.assignment.check.experiments import OTHER_SIZES, SIDE
from chromabox.assignment.check.source import USUAL
from chromabox.assignment.check.trace import Step, record
from chromabox.colour.models import NETS, count_parameters

#: Up to here two scores are the same number.
SAME = 1e-4

#: Said of the figure's layers behind the place where a forward fails.
NOT_REACHED = "not reached"


@dataclass
class Facts:
    """What a child process has told of one class: see :mod:`chromabox.assignment.check.worker`."""

    class_name: str
    values: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Sentences for facts that could not be had."""


@dataclass(frozen=True)
class Case:
    """All that a verdict is reached from."""

    net: str
    facts: Facts
    lines: list[Line]
    found: list[Step]

    def value(self, fact: str) -> Any:
        """What was told under that name; None where it could not be had."""
        return self.facts.values.get(fact)


def name_of(line: Line) -> str:
    """The layer that a line is about."""
    step = line.wanted or line.found
    assert step is not None
    return "concatenation" if step.kind == "cat" else step.kind


def after_last(case: Case) -> list[str] | None:
    """What is done to the last convolution's scores; None without that convolution."""
    ours = max(index for index, line in enumerate(case.lines) if line.wanted is not None)
    if case.lines[ours].found is None:
        return None
    return [line.found.kind for line in case.lines[ours + 1 :] if line.found is not None]


@dataclass(frozen=True)
class WrongSize:
    """Sizes at which a class is not the figure's."""

    label: str
    said: str
    shapes: bool
    """Whether the shapes go wrong, or only the number of parameters."""

    def is_asked(self, net: str) -> bool:
        """Whether the assignment asks for it: of the strided nets it sets the padding, to 1, for kernel 3 only."""
        return net == "pool-upsample" or not (self.shapes and self.label.startswith("kernel"))


def wrong_sizes(case: Case) -> list[WrongSize]:
    """The sizes at which the class gives other shapes or counts than ours, and what came instead.

    Where the count is wrong at the usual sizes already, it is only asked to change with the others.
    """
    wrong = []
    usual = sum(case.value("parameters").values())
    right = usual == count_parameters(NETS[case.net](**USUAL))
    for label, seen in case.value("sizes").items():
        sizes = {**USUAL, **OTHER_SIZES[label]}
        shape, count = [2, sizes["num_colours"], SIDE, SIDE], count_parameters(NETS[case.net](**sizes))
        if "failed" in seen:
            wrong.append(WrongSize(label, str(seen["failed"]), True))
        elif seen["output"] != shape:
            wrong.append(WrongSize(label, f"gives {seen['output']} instead of {shape}", True))
        elif right and seen["parameters"] != count:
            wrong.append(WrongSize(label, f"{seen['parameters']:,} parameters instead of {count:,}", False))
        elif seen["parameters"] == usual:
            wrong.append(WrongSize(label, f"{usual:,} parameters, as without it", False))
    return wrong


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool | None
    """None: not asked for by the assignment, and only told."""
    said: str


@dataclass(frozen=True)
class NetCheck:
    """One class beside its net of figure 1."""

    net: str
    class_name: str
    checks: list[Check]
    lines: list[Line]
    hints: list[str]

    @property
    def matches(self) -> bool:
        """Whether nothing that the assignment asks for differs."""
        return all(check.passed is not False for check in self.checks)


def our_steps(net: str) -> list[Step]:
    """The steps of the figure's net at the usual sizes, two pictures of 32 × 32."""
    trace = record(NETS[net](**USUAL).train(), torch.rand(2, USUAL["num_in_channels"], SIDE, SIDE))
    if trace.error is not None:
        raise trace.error
    return trace.steps


def judge(net: str, facts: Facts) -> NetCheck:
    """Hold what was seen of a class beside our net of that name.

    Raises KeyError, TypeError, ValueError or AttributeError for facts that no child of ours tells.
    """
    seen = facts.values.get("steps")
    found, lines = [], []
    if seen is not None:
        found = [_step(one) for one in seen["steps"]]
        lines = _until_the_end(compare(our_steps(net), found), seen["failed"] is not None)
    case = Case(net, facts, lines, found)
    checks = []
    for fact, name, verdict in QUESTIONS:
        if fact in facts.failures:
            checks.append(Check(name, False, str(facts.failures[fact])))
        elif fact in facts.values:
            checks += [Check(name, *answer)] if (answer := verdict(case)) is not None else []
    # One failure may stand behind several questions; it is told once.
    checks = [one for index, one in enumerate(checks) if one.said not in {other.said for other in checks[:index]}]
    return NetCheck(net, facts.class_name, checks, lines, hints_for(case))


def _step(told: Mapping[str, Any]) -> Step:
    settings = {name: _json(value) for name, value in told["settings"].items()}
    return Step(**{**told, "settings": settings, "shape": tuple(told["shape"]), "sources": tuple(told["sources"])})


def _json(value: Any) -> Any:
    """JSON has no infinity, and a class may set anything to it."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _until_the_end(lines: list[Line], failed: bool) -> list[Line]:
    """What a forward that failed did not come to is not missing."""
    reached = max((index for index, line in enumerate(lines) if line.found is not None), default=-1)
    return [replace(line, said=NOT_REACHED) if failed and index > reached else line for index, line in enumerate(lines)]


Answer = tuple[bool | None, str] | None


def _call(case: Case) -> Answer:
    missing = case.value("missing") or []
    if missing:
        return False, f"{case.value('call')}: {', '.join(missing)} cannot be set; the figure leaves all four sizes open"
    return True, str(case.value("call"))


def _output(case: Case) -> Answer:
    seen, wanted = case.value("steps"), [2, USUAL["num_colours"], SIDE, SIDE]
    if seen["failed"] is not None:
        return False, f"{case.facts.class_name}'s forward {seen['failed']}"
    if seen["output"] != wanted:
        return False, f"[2, 1, {SIDE}, {SIDE}] in gives {seen['output']} out; the figure gives {wanted}"
    return True, f"[2, 1, {SIDE}, {SIDE}] in, {wanted} out"


def _layers(case: Case) -> Answer:
    wrong = [line for line in case.lines if line.status != "equal"]
    if not wrong:
        return True, f"all {len(case.lines)} steps are the figure's, in its order"
    causes = [line for line in wrong if not line.follows and line.said != NOT_REACHED]
    if not causes:
        return False, f"the first {len(case.found)} steps are the figure's, then forward fails"
    shown = "; ".join(f"{line.place}: {name_of(line)} {line.said}" for line in causes[:3])
    more = f"; and {len(causes) - 3} more" if len(causes) > 3 else ""
    return False, f"{shown}{more}"


def _norms(case: Case) -> Answer:
    if case.value("steps")["failed"] is not None:
        return None
    wanted = sum(step.kind == "BatchNorm2d" for step in our_steps(case.net))
    own = sum(step.kind == "BatchNorm2d" for step in case.found)
    return own == wanted, f"{own} BatchNorm2d layers at work" + ("" if own == wanted else f" instead of {wanted}")


def _skips(case: Case) -> Answer:
    joins = [line for line in case.lines if (line.wanted or line.found).kind == "cat"]  # type: ignore[union-attr]
    if case.net != "unet" or case.value("steps")["failed"] is not None:
        return None
    wrong = [line for line in joins if line.status != "equal"]
    if wrong:
        return False, "; ".join(f"{line.place}: concatenation {line.said}" for line in wrong)
    return True, "block 4 is also given block 1's output, the last convolution the grey input"


def _parameters(case: Case) -> Answer:
    wanted, own = count_parameters(NETS[case.net](**USUAL)), sum(case.value("parameters").values())
    return own == wanted, f"{own:,}" if own == wanted else f"{own:,} instead of {wanted:,}"


def _logits(case: Case) -> Answer:
    if case.value("steps")["failed"] is not None:
        return None
    after = after_last(case)
    if after is None:
        return False, f"the net ends with {case.found[-1].kind if case.found else 'nothing'}, not with a convolution"
    if after:
        return False, f"behind the last convolution comes {', then '.join(after)}; the figure ends with the convolution"
    return True, "the last convolution's scores come out as they are"


def _sizes(case: Case) -> Answer:
    wrong = wrong_sizes(case)
    if not wrong:
        return True, ", ".join(OTHER_SIZES)
    asked = [one for one in wrong if one.is_asked(case.net)]
    labels: dict[str, list[str]] = {}
    for one in wrong:
        labels.setdefault(one.said, []).append(one.label)
    return (False if asked else None), "; ".join(f"{', '.join(alike)}: {reason}" for reason, alike in labels.items())


def _function(mode: str) -> Callable[[Case], Answer]:
    def answer(case: Case) -> Answer:
        seen = case.value("function")
        if seen["copied"] < seen["total"]:
            return (
                False,
                f"only {seen['copied']} of our {seen['total']} tensors have a place in it, so it computes another",
            )
        gap = float(seen[mode])
        if gap <= SAME:
            return True, f"with our weights the same scores in {mode} (greatest difference {gap:.1e})"
        return False, f"with our weights the scores in {mode} differ by up to {gap:.2g}"

    return answer


def _batch(case: Case) -> Answer:
    gap = float(case.value("batch"))
    if gap <= SAME:
        return True, "in evaluation a picture's scores do not depend on the others of its batch"
    return False, f"in evaluation a picture's scores change by up to {gap:.2g} with the others of its batch"


def _gradient(case: Case) -> Answer:
    names = [str(name) for name in case.value("gradient")]
    if not names:
        return True, "reaches every parameter"
    return False, f"does not reach {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _loss(case: Case) -> Answer:
    before, after = (float(one) for one in case.value("loss"))
    return after < before, f"cross-entropy {before:.3f} → {after:.3f} on the same batch"


#: The fact that a question is about, its name, and how it is answered.
QUESTIONS: tuple[tuple[str, str, Callable[[Case], Answer]], ...] = (
    ("call", "constructor", lambda case: None),
    ("missing", "constructor", _call),
    ("steps", "shapes", _output),
    ("steps", "layers", _layers),
    ("steps", "BatchNorm", _norms),
    ("steps", "skip connections", _skips),
    ("steps", "raw scores", _logits),
    ("parameters", "parameters", _parameters),
    ("sizes", "other sizes", _sizes),
    ("function", "same function (eval)", _function("evaluation")),
    ("function", "same function (train)", _function("training")),
    ("batch", "batch independence", _batch),
    ("gradient", "gradient", _gradient),
    ("loss", "one step of training", _loss),
)

#: Layers that hints are given for; mostly the later ones follow from the first.
MOST_HINTS = 6

#: What a last step does to scores that cross-entropy is to be taken of.
ENDINGS = {
    "softmax": "cross-entropy takes raw scores and applies log-softmax itself; with a softmax before it learns badly",
    "log_softmax": "cross-entropy takes raw scores and applies log-softmax itself",
    "ReLU": "it cuts every negative score to 0, and where it does no gradient comes through",
}


def hints_for(case: Case) -> list[str]:
    """What to do about it, once each."""
    hints = [_line_hint(line) for line in case.lines if line.status != "equal" and not line.follows]
    hints = [hint for hint in hints if hint]
    if len(hints) > MOST_HINTS:
        hints[MOST_HINTS:] = [f"… and {len(hints) - MOST_HINTS} more lines of the table; begin with the first."]
    seen = case.value("steps")
    if seen is not None:
        if seen["failed"] is None:
            hints += [f"self.{name} is made in __init__ and takes no part in forward." for name in seen["unused"]]
        hints += _wasted(case.found, seen["last"]) + _shared(case.found)
        hints += [f"No {kind} at the end: {ENDINGS[kind]}." for kind in after_last(case) or [] if kind in ENDINGS]
    if case.value("sizes") is not None:
        hints += _size_hints(case)
    function = case.value("function")
    if function is not None and any(line.status != "equal" for line in case.lines):
        same = function["copied"] == function["total"] and max(function["evaluation"], function["training"]) <= SAME
        other = "It computes the figure's function by other means; the assignment asks for its layers by name."
        hints += [other] if same else []
    return list(dict.fromkeys(hints))


def _line_hint(line: Line) -> str:
    if line.said == NOT_REACHED:
        return ""
    name, step = name_of(line), line.found
    where = (
        f" (self.{step.module})" if step is not None and step.module else " (in forward)" if step is not None else ""
    )
    if line.status == "missing":
        assert line.wanted is not None
        return f"{line.place}: add the {name} that makes {list(line.wanted.shape)}."
    if line.status == "extra":
        return f"{line.place}: leave out the {name}{where}; the figure has none there."
    return f"{line.place}: {name}{where} {line.said}."


def _wasted(found: list[Step], last: int | None) -> list[str]:
    """Layers whose work does not come to the output."""
    if last is None:
        return []
    reached, left = set[int](), [last]
    while left:
        index = left.pop()
        if index >= 0 and index not in reached:
            reached.add(index)
            left += found[index].sources
    lost = [step for index, step in enumerate(found) if index not in reached]
    said = ", ".join(f"{step.kind} ({f'self.{step.module}' if step.module else 'in forward'})" for step in lost)
    return [f"Computed and then not used: {said}."] if lost else []


def _shared(found: list[Step]) -> list[str]:
    """Layers with weights that are used more than once."""
    names = [step.module for step in found if step.parameters and step.module]
    shared = list(dict.fromkeys(f"self.{name}" for name in names if names.count(name) > 1))
    said = f"{', '.join(shared[:4])}{' and others' if len(shared) > 4 else ''}"
    return [f"Used more than once: {said}; the figure has a layer of its own each time."] if shared else []


def _size_hints(case: Case) -> list[str]:
    hints, wrong = [], wrong_sizes(case)
    kernels = [one for one in wrong if one.shapes and one.label.startswith("kernel")]
    said = " and ".join(one.label for one in kernels)
    if kernels and kernels[0].is_asked(case.net):
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
