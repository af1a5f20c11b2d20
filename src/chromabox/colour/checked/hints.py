"""What to do about what differs, in plain words."""

from chromabox.colour.checked.facts import NOT_REACHED, SAME, Case, after_last, name_of, wrong_sizes
from chromabox.colour.checked.likeness import Line
from chromabox.colour.checked.steps import Step

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
