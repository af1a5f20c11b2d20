"""What was seen of a student's class, judged: one verdict a question, a line a layer, hints in plain words."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from chromabox.colour.checked.call import USUAL
from chromabox.colour.checked.facts import NOT_REACHED, SAME, Case, Facts, after_last, name_of, wrong_sizes
from chromabox.colour.checked.hints import hints_for
from chromabox.colour.checked.likeness import Line, compare
from chromabox.colour.checked.steps import Step, record
from chromabox.colour.checked.trials import OTHER_SIZES, SIDE
from chromabox.colour.nets import NETS, count_parameters


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
