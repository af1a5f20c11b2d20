"""Alignment of the operations of two models: equal, different, missing, extra and moved operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, TypeAlias

from chromabox.assignment.check.trace import INPUT, Op

#: Largest distance between two operations that are matched as moved: about one block of figure 1.
MAX_MOVE = 4

Status: TypeAlias = Literal["equal", "different", "moved", "missing", "extra"]


@dataclass(frozen=True)
class Match:
    """Indices of an expected operation and of the actual one that matches it; None if there is none."""

    expected: int | None
    actual: int | None
    is_moved: bool = False
    """Whether both exist, but in a different order."""


@dataclass(frozen=True)
class DiffLine:
    """One line of the layer-by-layer comparison."""

    status: Status
    expected: Op | None
    actual: Op | None
    location: str
    """Position in figure 1, for example ``block 2``."""
    message: str = ""
    """Description of the difference; empty if there is none."""
    is_consequence: bool = False
    """Whether only the shape differs, as a consequence of an earlier difference."""


def align(expected: Sequence[Op], actual: Sequence[Op]) -> list[Match]:
    """Match operations by kind and output shape, then by kind alone, then out of order.

    Matches are in the order of ``actual``; a missing operation precedes the actual operation at its position.
    """
    matches: list[Match] = []
    for tag, a, b, c, d in _opcodes([(op.kind, op.shape) for op in expected], [(op.kind, op.shape) for op in actual]):
        if tag == "equal":
            matches += [Match(i, j) for i, j in zip(range(a, b), range(c, d), strict=True)]
            continue
        for tag2, e, f, g, h in _opcodes([op.kind for op in expected[a:b]], [op.kind for op in actual[c:d]]):
            if tag2 == "equal":
                matches += [Match(a + i, c + j) for i, j in zip(range(e, f), range(g, h), strict=True)]
            else:
                matches += [Match(a + i, None) for i in range(e, f)] + [Match(None, c + j) for j in range(g, h)]
    columns = [[match_.expected for match_ in matches], [match_.actual for match_ in matches]]
    _prefer_convolution_starts(columns[1], columns[0], actual)
    _prefer_convolution_starts(columns[0], columns[1], expected)
    return _match_moved([Match(*indices) for indices in zip(*columns, strict=True)], expected, actual)


def _prefer_convolution_starts(indices: list[int | None], other_indices: list[int | None], ops: Sequence[Op]) -> None:
    """Move each run of unmatched operations towards the end, past repetitions, until it starts with a convolution.

    ``other_indices`` is modified in place. Example: in Conv BN **ReLU Conv BN** ReLU the unmatched block becomes
    Conv BN ReLU **Conv BN ReLU**.
    """
    for first, index in enumerate(indices):
        if (
            index is None
            or other_indices[first] is not None
            or (first and indices[first - 1] is not None and other_indices[first - 1] is None)
        ):
            continue
        end = first
        while end < len(indices) and indices[end] is not None and other_indices[end] is None:
            end += 1
        shifted, start = list(other_indices), first
        while not ops[indices[start] or 0].kind.startswith("Conv") and _is_repeated(indices, shifted, ops, start, end):
            shifted[start], shifted[end] = shifted[end], None
            start, end = start + 1, end + 1
        if ops[indices[start] or 0].kind.startswith("Conv"):
            other_indices[:] = shifted


def _is_repeated(
    indices: list[int | None], other_indices: list[int | None], ops: Sequence[Op], start: int, end: int
) -> bool:
    """Return whether the matched operation at ``end`` is equivalent to the one at ``start``."""
    if end >= len(indices) or indices[end] is None or other_indices[end] is None:
        return False
    first, second = ops[indices[start] or 0], ops[indices[end] or 0]
    return (first.kind, first.shape) == (second.kind, second.shape)


def _opcodes(expected: Sequence[Any], actual: Sequence[Any]) -> list[tuple[str, int, int, int, int]]:
    return list(SequenceMatcher(None, expected, actual, autojunk=False).get_opcodes())


def _match_moved(matches: list[Match], expected: Sequence[Op], actual: Sequence[Op]) -> list[Match]:
    """Match each missing operation with a nearby extra one of the same kind."""
    joined = list(matches)
    for missing in [match_ for match_ in matches if match_.actual is None]:
        position = joined.index(missing)
        for extra in sorted(
            (match_ for match_ in joined if match_.expected is None),
            key=lambda match_: abs(joined.index(match_) - position),
        ):
            assert missing.expected is not None
            assert extra.actual is not None
            first, second = expected[missing.expected], actual[extra.actual]
            if first.kind == second.kind and abs(joined.index(extra) - position) <= MAX_MOVE:
                joined[joined.index(extra)] = Match(missing.expected, extra.actual, is_moved=True)
                joined.remove(missing)
                break
    return joined


def block_name(op: Op) -> str:
    """Return ``block 2`` for module ``block2.0``, ``last layer`` for the last one, and "" for functional calls."""
    name = op.module.split(".")[0]
    return f"block {name.removeprefix('block')}" if name.startswith("block") else "last layer" if name else ""


def describe(ops: Sequence[Op], index: int) -> str:
    """Describe the output of an operation of a reference model by its position in figure 1."""
    if index == INPUT:
        return "the greyscale input"
    op = ops[index]
    block = block_name(op)
    if not block:
        return "a concatenation"
    is_last = index + 1 == len(ops) or block_name(ops[index + 1]) != block
    return f"the output of {block}" if is_last else f"the output of {block}'s {op.kind}"


def diff_ops(expected: Sequence[Op], actual: Sequence[Op]) -> list[DiffLine]:
    """Return the comparison of all operations of two models; ``expected`` belongs to a reference model."""
    matches = align(expected, actual)
    matched = {match_.actual: match_ for match_ in matches if match_.expected is not None and match_.actual is not None}
    lines: list[DiffLine] = []
    location = "block 1"
    for match_ in matches:
        if match_.expected is not None:
            location = _block_location(expected, match_.expected)
        lines.append(_make_line(match_, expected, actual, matched, location))
    return lines


def _block_location(ops: Sequence[Op], index: int) -> str:
    """Return the block of an operation; for a concatenation, which is in no block, the block that receives it."""
    return block_name(ops[index]) or f"input of {block_name(ops[index + 1])}"


def _make_line(
    match_: Match, expected: Sequence[Op], actual: Sequence[Op], matched: dict[int, Match], location: str
) -> DiffLine:
    if match_.actual is None:
        assert match_.expected is not None
        return DiffLine("missing", expected[match_.expected], None, location, "missing")
    if match_.expected is None:
        return DiffLine("extra", None, actual[match_.actual], location, "not in figure 1")
    first, second = expected[match_.expected], actual[match_.actual]
    setting_messages = setting_differences(first, second)
    wiring_messages = _wiring_messages(match_, expected, actual, matched)
    if match_.is_moved:
        order_message = _order_message(match_, expected, actual, matched)
        return DiffLine("moved", first, second, location, "; ".join([order_message, *setting_messages]))
    if setting_messages or wiring_messages:
        return DiffLine("different", first, second, location, "; ".join([*wiring_messages, *setting_messages]))
    if first.shape != second.shape:
        message = f"output shape {list(second.shape)} instead of {list(first.shape)}"
        return DiffLine("different", first, second, location, message, is_consequence=True)
    return DiffLine("equal", first, second, location)


def setting_differences(expected: Op, actual: Op) -> list[str]:
    """Describe the differences in the settings of two operations, for example ``padding 0 instead of 1``."""
    messages = []
    for name, value in expected.settings.items():
        actual_value = actual.settings.get(name)
        if value is True and not actual_value:
            messages.append(f"no {name}")
        elif actual_value != value and not (
            isinstance(value, float) and isinstance(actual_value, float) and abs(actual_value - value) < 1e-9
        ):
            messages.append(f"{name} {actual_value} instead of {value}")
    return messages


def _order_message(match_: Match, expected: Sequence[Op], actual: Sequence[Op], matched: dict[int, Match]) -> str:
    """Describe the position of a moved operation in figure 1 by the operation before it."""
    assert match_.expected is not None
    if match_.expected == 0:
        return "out of order: it is the first layer in figure 1"
    previous = expected[match_.expected - 1]
    location = _block_location(expected, match_.expected - 1)
    return f"out of order: in figure 1 it directly follows the {previous.kind} of {location}"


def _wiring_messages(
    match_: Match, expected: Sequence[Op], actual: Sequence[Op], matched: dict[int, Match]
) -> list[str]:
    """Describe wrong inputs of a matched operation.

    Missing, extra and moved neighbours are reported on separate lines. Therefore only operations whose inputs are all
    matched are checked here, and concatenations in any case.
    """
    assert match_.expected is not None
    assert match_.actual is not None
    first, second = expected[match_.expected], actual[match_.actual]
    sources = [_matched_source(matched, source) for source in second.sources]
    if set(sources) == set(first.sources) and len(sources) == len(first.sources):
        return []
    settled = {source.expected for source in matched.values() if not source.is_moved} | {INPUT}
    if first.kind != "cat" and not {*sources, *first.sources} <= settled:
        return []
    actual_inputs = " and ".join(
        "an operation that is not in figure 1" if source is None else describe(expected, source) for source in sources
    )
    expected_inputs = " and ".join(describe(expected, source) for source in first.sources)
    return [f"receives {actual_inputs} instead of {expected_inputs}"]


def _matched_source(matched: dict[int, Match], source: int) -> int | None:
    return INPUT if source == INPUT else matched[source].expected if source in matched else None
