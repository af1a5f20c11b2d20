"""How one net's steps match another's: which are the same, differ, are missing, are too many, or stand elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, TypeAlias

from chromabox.assignment.check.trace import INPUT, Step

#: How far apart two steps of a kind may stand to be one step out of order: about a block of the figure.
REACH = 4

Status: TypeAlias = Literal["equal", "different", "moved", "missing", "extra"]


@dataclass(frozen=True)
class Pair:
    """A wanted step and the found one that stands for it, by their indices; None where there is none."""

    wanted: int | None
    found: int | None
    moved: bool = False
    """Both are there, at different places among their neighbours."""


@dataclass(frozen=True)
class Line:
    """One line of the comparison, layer by layer."""

    status: Status
    wanted: Step | None
    found: Step | None
    place: str
    """Where in the figure the step belongs or turned up: ``block 2``."""
    said: str = ""
    """What differs, in words; empty where nothing does."""
    follows: bool = False
    """Only the shape differs, which an earlier difference explains."""


def align(wanted: Sequence[Step], found: Sequence[Step]) -> list[Pair]:
    """Pair the steps by kind and output shape, then by kind where shapes differ, then out of order.

    In the order of `found`, missing steps before the found step in whose stead they were looked for.
    """
    pairs: list[Pair] = []
    for tag, a, b, c, d in _opcodes(
        [(one.kind, one.shape) for one in wanted], [(one.kind, one.shape) for one in found]
    ):
        if tag == "equal":
            pairs += [Pair(i, j) for i, j in zip(range(a, b), range(c, d), strict=True)]
            continue
        for tag2, e, f, g, h in _opcodes([one.kind for one in wanted[a:b]], [one.kind for one in found[c:d]]):
            if tag2 == "equal":
                pairs += [Pair(a + i, c + j) for i, j in zip(range(e, f), range(g, h), strict=True)]
            else:
                pairs += [Pair(a + i, None) for i in range(e, f)] + [Pair(None, c + j) for j in range(g, h)]
    columns = [[pair.wanted for pair in pairs], [pair.found for pair in pairs]]
    _start_at_convolutions(columns[1], columns[0], found)
    _start_at_convolutions(columns[0], columns[1], wanted)
    return _with_moves([Pair(*pair) for pair in zip(*columns, strict=True)], wanted, found)


def _start_at_convolutions(own: list[int | None], other: list[int | None], steps: Sequence[Step]) -> None:
    """Slide what only one net has down over what repeats behind it, if it can start with a convolution then.

    In place. Of Conv BN **ReLU Conv BN** ReLU it is rather Conv BN ReLU **Conv BN ReLU** that is a block too many.
    """
    for first, index in enumerate(own):
        if (
            index is None
            or other[first] is not None
            or (first and own[first - 1] is not None and other[first - 1] is None)
        ):
            continue
        end = first
        while end < len(own) and own[end] is not None and other[end] is None:
            end += 1
        slid, start = list(other), first
        while not steps[own[start] or 0].kind.startswith("Conv") and _repeats(own, slid, steps, start, end):
            slid[start], slid[end] = slid[end], None
            start, end = start + 1, end + 1
        if steps[own[start] or 0].kind.startswith("Conv"):
            other[:] = slid


def _repeats(own: list[int | None], other: list[int | None], steps: Sequence[Step], start: int, end: int) -> bool:
    """Whether the step at `end`, which both nets have, could as well be the one at `start`."""
    if end >= len(own) or own[end] is None or other[end] is None:
        return False
    first, second = steps[own[start] or 0], steps[own[end] or 0]
    return (first.kind, first.shape) == (second.kind, second.shape)


def _opcodes(wanted: Sequence[Any], found: Sequence[Any]) -> list[tuple[str, int, int, int, int]]:
    return list(SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes())


def _with_moves(pairs: list[Pair], wanted: Sequence[Step], found: Sequence[Step]) -> list[Pair]:
    """Join each missing step with an extra one of its kind and parameters nearby."""
    joined = list(pairs)
    for missing in [pair for pair in pairs if pair.found is None]:
        here = joined.index(missing)
        for extra in sorted(
            (one for one in joined if one.wanted is None), key=lambda one: abs(joined.index(one) - here)
        ):
            assert missing.wanted is not None
            assert extra.found is not None
            first, second = wanted[missing.wanted], found[extra.found]
            if first.kind == second.kind and abs(joined.index(extra) - here) <= REACH:
                joined[joined.index(extra)] = Pair(missing.wanted, extra.found, moved=True)
                joined.remove(missing)
                break
    return joined


def place_of(step: Step) -> str:
    """``block 2`` for our nets' ``block2.0``; the last layer's; nothing for what is in neither."""
    name = step.module.split(".")[0]
    return f"block {name.removeprefix('block')}" if name.startswith("block") else "last layer" if name else ""


def describe(steps: Sequence[Step], index: int) -> str:
    """A step of our nets by the place it has in the figure."""
    if index == INPUT:
        return "the grey input"
    step = steps[index]
    place = place_of(step)
    if not place:
        return "a concatenation"
    ends = index + 1 == len(steps) or place_of(steps[index + 1]) != place
    return f"{place}'s output" if ends else f"what {place}'s {step.kind} makes"


def compare(wanted: Sequence[Step], found: Sequence[Step]) -> list[Line]:
    """Every step of both nets, and what differs; `wanted` are the steps of one of our nets."""
    pairs = align(wanted, found)
    known = {pair.found: pair for pair in pairs if pair.wanted is not None and pair.found is not None}
    lines: list[Line] = []
    place = "block 1"
    for pair in pairs:
        if pair.wanted is not None:
            place = _place(wanted, pair.wanted)
        lines.append(_line(pair, wanted, found, known, place))
    return lines


def _place(steps: Sequence[Step], index: int) -> str:
    """The step's block; of a concatenation, which is in none, the block that takes it."""
    return place_of(steps[index]) or f"into {place_of(steps[index + 1])}"


def _line(pair: Pair, wanted: Sequence[Step], found: Sequence[Step], known: dict[int, Pair], place: str) -> Line:
    if pair.found is None:
        assert pair.wanted is not None
        return Line("missing", wanted[pair.wanted], None, place, "missing")
    if pair.wanted is None:
        return Line("extra", None, found[pair.found], place, "not in the figure")
    first, second = wanted[pair.wanted], found[pair.found]
    said = differences(first, second)
    wiring = _wiring(pair, wanted, found, known)
    if pair.moved:
        return Line("moved", first, second, place, "; ".join([_order(pair, wanted, found, known), *said]))
    if said or wiring:
        return Line("different", first, second, place, "; ".join([*wiring, *said]))
    if first.shape != second.shape:
        text = f"makes {list(second.shape)} instead of {list(first.shape)}"
        return Line("different", first, second, place, text, follows=True)
    return Line("equal", first, second, place)


def differences(wanted: Step, found: Step) -> list[str]:
    """What differs in the settings of two steps of a kind: ``padding 0 instead of 1``."""
    said = []
    for name, value in wanted.settings.items():
        own = found.settings.get(name)
        if value is True and not own:
            said.append(f"no {name}")
        elif own != value and not (isinstance(value, float) and isinstance(own, float) and abs(own - value) < 1e-9):
            said.append(f"{name} {own} instead of {value}")
    return said


def _order(pair: Pair, wanted: Sequence[Step], found: Sequence[Step], known: dict[int, Pair]) -> str:
    """Where the figure has a step that is out of order, by the step before it there."""
    assert pair.wanted is not None
    if pair.wanted == 0:
        return "out of order: the figure has it first"
    before = wanted[pair.wanted - 1]
    return f"out of order: in the figure it comes right after {_place(wanted, pair.wanted - 1)}'s {before.kind}"


def _wiring(pair: Pair, wanted: Sequence[Step], found: Sequence[Step], known: dict[int, Pair]) -> list[str]:
    """What a step takes that it should not.

    Where a neighbour is missing, added or moved that line says so; here only steps between known ones are judged. What
    is put together is judged in any case.
    """
    assert pair.wanted is not None
    assert pair.found is not None
    first, second = wanted[pair.wanted], found[pair.found]
    sources = [_known_source(known, source) for source in second.sources]
    if set(sources) == set(first.sources) and len(sources) == len(first.sources):
        return []
    settled = {one.wanted for one in known.values() if not one.moved} | {INPUT}
    if first.kind != "cat" and not {*sources, *first.sources} <= settled:
        return []
    taken = " and ".join(
        "a step that is not in the figure" if one is None else describe(wanted, one) for one in sources
    )
    return [f"takes {taken} instead of {' and '.join(describe(wanted, one) for one in first.sources)}"]


def _known_source(known: dict[int, Pair], source: int) -> int | None:
    return INPUT if source == INPUT else known[source].wanted if source in known else None
