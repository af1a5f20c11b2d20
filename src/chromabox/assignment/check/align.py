"""How one net's steps match another's: which are the same, differ, are missing, are too many, or stand elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, TypeAlias

from chromabox.assignment.check.trace import INPUT, Op

#: How far apart two steps of a kind may stand to be one step out of order: about a block of the figure.
MAX_MOVE = 4

Status: TypeAlias = Literal["equal", "different", "moved", "missing", "extra"]


@dataclass(frozen=True)
class Match:
    """A wanted step and the found one that stands for it, by their indices; None where there is none."""

    expected: int | None
    actual: int | None
    is_moved: bool = False
    """Both are there, at different places among their neighbours."""


@dataclass(frozen=True)
class DiffLine:
    """One line of the comparison, layer by layer."""

    status: Status
    expected: Op | None
    actual: Op | None
    location: str
    """Where in the figure the step belongs or turned up: ``block 2``."""
    message: str = ""
    """What differs, in words; empty where nothing does."""
    is_consequence: bool = False
    """Only the shape differs, which an earlier difference explains."""


def align(expected: Sequence[Op], actual: Sequence[Op]) -> list[Match]:
    """Pair the steps by kind and output shape, then by kind where shapes differ, then out of order.

    In the order of `found`, missing steps before the found step in whose stead they were looked for.
    """
    pairs: list[Match] = []
    for tag, a, b, c, d in _opcodes(
        [(one.kind, one.shape) for one in expected], [(one.kind, one.shape) for one in actual]
    ):
        if tag == "equal":
            pairs += [Match(i, j) for i, j in zip(range(a, b), range(c, d), strict=True)]
            continue
        for tag2, e, f, g, h in _opcodes([one.kind for one in expected[a:b]], [one.kind for one in actual[c:d]]):
            if tag2 == "equal":
                pairs += [Match(a + i, c + j) for i, j in zip(range(e, f), range(g, h), strict=True)]
            else:
                pairs += [Match(a + i, None) for i in range(e, f)] + [Match(None, c + j) for j in range(g, h)]
    columns = [[pair.expected for pair in pairs], [pair.actual for pair in pairs]]
    _prefer_convolution_starts(columns[1], columns[0], actual)
    _prefer_convolution_starts(columns[0], columns[1], expected)
    return _match_moved([Match(*pair) for pair in zip(*columns, strict=True)], expected, actual)


def _prefer_convolution_starts(indices: list[int | None], other_indices: list[int | None], ops: Sequence[Op]) -> None:
    """Slide what only one net has down over what repeats behind it, if it can start with a convolution then.

    In place. Of Conv BN **ReLU Conv BN** ReLU it is rather Conv BN ReLU **Conv BN ReLU** that is a block too many.
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
        slid, start = list(other_indices), first
        while not ops[indices[start] or 0].kind.startswith("Conv") and _is_repeated(indices, slid, ops, start, end):
            slid[start], slid[end] = slid[end], None
            start, end = start + 1, end + 1
        if ops[indices[start] or 0].kind.startswith("Conv"):
            other_indices[:] = slid


def _is_repeated(
    indices: list[int | None], other_indices: list[int | None], ops: Sequence[Op], start: int, end: int
) -> bool:
    """Whether the step at `end`, which both nets have, could as well be the one at `start`."""
    if end >= len(indices) or indices[end] is None or other_indices[end] is None:
        return False
    first, second = ops[indices[start] or 0], ops[indices[end] or 0]
    return (first.kind, first.shape) == (second.kind, second.shape)


def _opcodes(expected: Sequence[Any], actual: Sequence[Any]) -> list[tuple[str, int, int, int, int]]:
    return list(SequenceMatcher(None, expected, actual, autojunk=False).get_opcodes())


def _match_moved(matches: list[Match], expected: Sequence[Op], actual: Sequence[Op]) -> list[Match]:
    """Join each missing step with an extra one of its kind and parameters nearby."""
    joined = list(matches)
    for missing in [pair for pair in matches if pair.actual is None]:
        here = joined.index(missing)
        for extra in sorted(
            (one for one in joined if one.expected is None), key=lambda one: abs(joined.index(one) - here)
        ):
            assert missing.expected is not None
            assert extra.actual is not None
            first, second = expected[missing.expected], actual[extra.actual]
            if first.kind == second.kind and abs(joined.index(extra) - here) <= MAX_MOVE:
                joined[joined.index(extra)] = Match(missing.expected, extra.actual, is_moved=True)
                joined.remove(missing)
                break
    return joined


def block_name(op: Op) -> str:
    """``block 2`` for our nets' ``block2.0``; the last layer's; nothing for what is in neither."""
    name = op.module.split(".")[0]
    return f"block {name.removeprefix('block')}" if name.startswith("block") else "last layer" if name else ""


def describe(ops: Sequence[Op], index: int) -> str:
    """A step of our nets by the place it has in the figure."""
    if index == INPUT:
        return "the grey input"
    step = ops[index]
    place = block_name(step)
    if not place:
        return "a concatenation"
    ends = index + 1 == len(ops) or block_name(ops[index + 1]) != place
    return f"{place}'s output" if ends else f"what {place}'s {step.kind} makes"


def diff_ops(expected: Sequence[Op], actual: Sequence[Op]) -> list[DiffLine]:
    """Every step of both nets, and what differs; `wanted` are the steps of one of our nets."""
    pairs = align(expected, actual)
    known = {pair.actual: pair for pair in pairs if pair.expected is not None and pair.actual is not None}
    lines: list[DiffLine] = []
    place = "block 1"
    for pair in pairs:
        if pair.expected is not None:
            place = _block_location(expected, pair.expected)
        lines.append(_make_line(pair, expected, actual, known, place))
    return lines


def _block_location(ops: Sequence[Op], index: int) -> str:
    """The step's block; of a concatenation, which is in none, the block that takes it."""
    return block_name(ops[index]) or f"into {block_name(ops[index + 1])}"


def _make_line(
    match_: Match, expected: Sequence[Op], actual: Sequence[Op], matched: dict[int, Match], location: str
) -> DiffLine:
    if match_.actual is None:
        assert match_.expected is not None
        return DiffLine("missing", expected[match_.expected], None, location, "missing")
    if match_.expected is None:
        return DiffLine("extra", None, actual[match_.actual], location, "not in the figure")
    first, second = expected[match_.expected], actual[match_.actual]
    said = setting_differences(first, second)
    wiring = _wiring_messages(match_, expected, actual, matched)
    if match_.is_moved:
        return DiffLine(
            "moved", first, second, location, "; ".join([_order_message(match_, expected, actual, matched), *said])
        )
    if said or wiring:
        return DiffLine("different", first, second, location, "; ".join([*wiring, *said]))
    if first.shape != second.shape:
        text = f"makes {list(second.shape)} instead of {list(first.shape)}"
        return DiffLine("different", first, second, location, text, is_consequence=True)
    return DiffLine("equal", first, second, location)


def setting_differences(expected: Op, actual: Op) -> list[str]:
    """What differs in the settings of two steps of a kind: ``padding 0 instead of 1``."""
    said = []
    for name, value in expected.settings.items():
        own = actual.settings.get(name)
        if value is True and not own:
            said.append(f"no {name}")
        elif own != value and not (isinstance(value, float) and isinstance(own, float) and abs(own - value) < 1e-9):
            said.append(f"{name} {own} instead of {value}")
    return said


def _order_message(match_: Match, expected: Sequence[Op], actual: Sequence[Op], matched: dict[int, Match]) -> str:
    """Where the figure has a step that is out of order, by the step before it there."""
    assert match_.expected is not None
    if match_.expected == 0:
        return "out of order: the figure has it first"
    before = expected[match_.expected - 1]
    return f"out of order: in the figure it comes right after {_block_location(expected, match_.expected - 1)}'s {before.kind}"


def _wiring_messages(
    match_: Match, expected: Sequence[Op], actual: Sequence[Op], matched: dict[int, Match]
) -> list[str]:
    """What a step takes that it should not.

    Where a neighbour is missing, added or moved that line says so; here only steps between known ones are judged. What
    is put together is judged in any case.
    """
    assert match_.expected is not None
    assert match_.actual is not None
    first, second = expected[match_.expected], actual[match_.actual]
    sources = [_matched_source(matched, source) for source in second.sources]
    if set(sources) == set(first.sources) and len(sources) == len(first.sources):
        return []
    settled = {one.expected for one in matched.values() if not one.is_moved} | {INPUT}
    if first.kind != "cat" and not {*sources, *first.sources} <= settled:
        return []
    taken = " and ".join(
        "a step that is not in the figure" if one is None else describe(expected, one) for one in sources
    )
    return [f"takes {taken} instead of {' and '.join(describe(expected, one) for one in first.sources)}"]


def _matched_source(matched: dict[int, Match], source: int) -> int | None:
    return INPUT if source == INPUT else matched[source].expected if source in matched else None
