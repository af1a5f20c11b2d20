"""Alignment of the operations of two models, to find different, missing, extra and moved operations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

from chromabox.assignment.check.trace import INPUT, Op

#: Maximum number of positions by which a moved operation can be displaced: about one block of figure 1.
MAX_MOVE = 4
Status: TypeAlias = Literal["equal", "different", "moved", "missing", "extra"]


@dataclass(frozen=True)
class Match:
    """Indices of an expected operation and of the matching actual operation. None stands for a missing operation."""

    expected: int | None
    actual: int | None
    is_moved: bool = False
    """Whether the operation has another place in the order of the actual operations."""


@dataclass(frozen=True)
class DiffLine:
    """One line of the layer-by-layer comparison."""

    status: Status
    expected: Op | None
    actual: Op | None
    location: str
    """Position in figure 1, for example ``block 2``."""
    message: str = ""
    """Description of the difference, or "" if there is none."""
    is_consequence: bool = False
    """Whether only the output shape differs, as a consequence of an earlier difference."""

    @property
    def op(self) -> Op:
        """The expected operation, or the actual one if there is none."""
        op = self.expected or self.actual
        assert op is not None
        return op


def align(expected: Sequence[Op], actual: Sequence[Op]) -> list[Match]:
    """Match operations of the same kind, preferably with the same shape and settings.

    The best alignment that preserves the order is determined first. The remaining operations are then matched out of
    order. The matches are in the order of ``actual``, and a missing operation precedes the actual operation at its
    position.
    """
    # Score of the best alignment of expected[i:] and actual[j:], and the numbers of operations that its first step
    # takes from the two lists. The third element of the key is True if the previous step was a match. After a match,
    # an unmatched convolution receives a bonus of 1, because missing and extra blocks start with a convolution.
    best: dict[tuple[int, int, bool], tuple[int, int, int]] = {}
    for i, j in product(range(len(expected), -1, -1), range(len(actual), -1, -1)):
        for is_start in (True, False):
            options = [(0, 0, 0)]
            if i < len(expected):
                is_block = is_start and expected[i].kind.startswith("Conv")
                options.append((best[i + 1, j, False][0] + is_block, 1, 0))
            if j < len(actual):
                is_block = is_start and actual[j].kind.startswith("Conv")
                options.append((best[i, j + 1, False][0] + is_block, 0, 1))
            if i < len(expected) and j < len(actual) and expected[i].kind == actual[j].kind:
                score = 10 + 20 * (expected[i].shape == actual[j].shape)
                settings = actual[j].settings
                score += 2 * sum(settings.get(name) == value for name, value in expected[i].settings.items())
                options.append((best[i + 1, j + 1, True][0] + score, 1, 1))
            best[i, j, is_start] = max(options)
    matches, i, j, is_match = list[Match](), 0, 0, True
    while i < len(expected) or j < len(actual):
        _, first, second = best[i, j, is_match]
        matches.append(Match(i if first else None, j if second else None))
        i, j, is_match = i + first, j + second, first == second
    for missing in [match_ for match_ in matches if match_.actual is None]:
        assert missing.expected is not None
        kind, position = expected[missing.expected].kind, matches.index(missing)
        distances = [
            (abs(index - position), index)
            for index, extra in enumerate(matches)
            if extra.expected is None and extra.actual is not None and actual[extra.actual].kind == kind
        ]
        distance, index = min(distances, default=(MAX_MOVE + 1, 0))
        if distance <= MAX_MOVE:
            matches[index] = Match(missing.expected, matches[index].actual, is_moved=True)
            matches.remove(missing)
    return matches


def block_name(op: Op) -> str:
    """Return ``block 2`` for module ``block2.0``, ``last layer`` for module ``last``, and "" for functional calls."""
    name = op.module.split(".")[0]
    return name.replace("block", "block ") if name.startswith("block") else "last layer" if name else ""


def describe(ops: Sequence[Op], index: int | None) -> str:
    """Describe the output of operation ``index`` of a reference model. None stands for an operation not in figure 1."""
    if index is None:
        return "an operation that is not in figure 1"
    if index == INPUT:
        return "the greyscale input"
    op = ops[index]
    block = block_name(op)
    if not block:
        return "a concatenation"
    is_last = index + 1 == len(ops) or block_name(ops[index + 1]) != block
    return f"the output of {block}" if is_last else f"the output of {block}'s {op.kind}"


def diff_ops(expected: Sequence[Op], actual: Sequence[Op]) -> list[DiffLine]:
    """Compare all operations of a reference model (``expected``) with those of another model (``actual``)."""
    matches = align(expected, actual)
    matched: dict[int | None, int | None] = {INPUT: INPUT}
    matched |= {match_.actual: match_.expected for match_ in matches if match_.actual is not None}
    settled = set(matched.values()) - {None} - {match_.expected for match_ in matches if match_.is_moved}
    lines, location = list[DiffLine](), "block 1"
    for match_ in matches:
        second = None if match_.actual is None else actual[match_.actual]
        if match_.expected is None:
            lines.append(DiffLine("extra", None, second, location, "not in figure 1"))
            continue
        index, first = match_.expected, expected[match_.expected]
        location = _location(expected, index)
        if second is None:
            lines.append(DiffLine("missing", first, None, location, "missing"))
            continue
        messages = setting_differences(first, second)
        sources = [matched.get(source) for source in second.sources]
        # Missing, extra and moved operations have their own lines. The inputs of an operation are therefore compared
        # only if they come from matched operations. The inputs of concatenations are always compared.
        are_inputs_checked = first.kind == "cat" or settled.issuperset([*sources, *first.sources])
        if match_.is_moved:
            place = f"directly follows the {expected[index - 1].kind} of {_location(expected, index - 1)}"
            messages.insert(0, f"out of order: in figure 1 it {place if index else 'is the first layer'}")
        elif are_inputs_checked and Counter(first.sources) != Counter(sources):
            receives = " and ".join(describe(expected, source) for source in sources)
            should = " and ".join(describe(expected, source) for source in first.sources)
            messages.insert(0, f"receives {receives} instead of {should}")
        is_consequence = not messages and not match_.is_moved and first.shape != second.shape
        if is_consequence:
            messages = [f"output shape {list(second.shape)} instead of {list(first.shape)}"]
        status: Status = "moved" if match_.is_moved else "different" if messages else "equal"
        lines.append(DiffLine(status, first, second, location, "; ".join(messages), is_consequence))
    return lines


def _location(ops: Sequence[Op], index: int) -> str:
    """Return the block of an operation, or ``input of block n`` for a concatenation that precedes block n."""
    return block_name(ops[index]) or f"input of {block_name(ops[index + 1])}"


def setting_differences(expected: Op, actual: Op) -> list[str]:
    """Describe the differences in the settings of two operations, for example ``padding 0 instead of 1``."""
    messages = []
    for name, value in expected.settings.items():
        actual_value = actual.settings.get(name)
        if value is True and not actual_value:
            messages.append(f"no {name}")
        elif actual_value != value:
            messages.append(f"{name} {actual_value} instead of {value}")
    return messages
