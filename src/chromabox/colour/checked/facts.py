"""What was seen of a student's class, and what can be read from it; :mod:`chromabox.colour.checked.verdicts` judges."""

from dataclasses import dataclass, field
from typing import Any

from chromabox.colour.checked.call import USUAL
from chromabox.colour.checked.likeness import Line
from chromabox.colour.checked.steps import Step
from chromabox.colour.checked.trials import OTHER_SIZES, SIDE
from chromabox.colour.nets import NETS, count_parameters

#: Up to here two scores are the same number.
SAME = 1e-4
#: Said of the figure's layers behind the place where a forward fails.
NOT_REACHED = "not reached"


@dataclass
class Facts:
    """What a child process has told of one class: see :mod:`chromabox.colour.checked.student`."""

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
