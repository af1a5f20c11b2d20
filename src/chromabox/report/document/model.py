"""A write-up as data: sections of blocks, which are turned into a web page, a typeset paper and a list of numbers.

No number is typed into a text: it is a :class:`Number`, which knows the file or the computation it comes from.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from typing import TypeAlias

from sympy import Expr


@dataclass(frozen=True)
class Number:
    """A number, how it is printed, and where it comes from."""

    value: float
    source: str
    """A file and what of it (``runs/unet/summary.json: test_accuracy``), or the computation's name."""
    spec: str = ",.4g"
    """As of :func:`format`; thousands may be set apart by commas."""
    std: float | None = None
    """Printed behind "±" where it is known."""

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return {math.inf: "∞", -math.inf: "−∞"}.get(self.value, "–")
        printed = [format(one, self.spec) for one in (self.value, self.std) if one is not None]
        return " ± ".join(printed).replace("-", "−")


Cell: TypeAlias = str | Number


@dataclass(frozen=True)
class Text:
    """A paragraph; ``{name}`` stands for a number, and what is between backticks is code."""

    template: str
    numbers: Mapping[str, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}
        if named != self.numbers.keys():
            raise ValueError(f"the text names {sorted(named)}, but {sorted(self.numbers)} are given")

    def __str__(self) -> str:
        return self.template.format(**{name: str(number) for name, number in self.numbers.items()})


@dataclass(frozen=True)
class Formula:
    """``name`` = ``expression``, set as mathematics."""

    name: str
    expression: Expr


@dataclass(frozen=True)
class Table:
    """A table with a caption above; names stand to the left, numbers to the right."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A PNG file with a caption below."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Code:
    """Source code as it stands."""

    source: str
    language: str = "python"


@dataclass(frozen=True)
class MissingRun:
    """What is not there, and the command that makes it."""

    description: str
    command: str


Block: TypeAlias = Text | Formula | Table | Figure | Code | MissingRun


@dataclass(frozen=True)
class Section:
    """The answer to one question."""

    key: str
    """The handout's own: ``A.3``."""
    title: str
    question: str
    """What is asked, in our words; empty where nothing is."""
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """All of a write-up."""

    title: str
    abstract: Sequence[Block]
    sections: Sequence[Section]
    references: Sequence[str]
    metadata: Mapping[str, str]
    """How it was made: versions, machine, date."""

    def numbers(self) -> Iterator[tuple[str, str, Number]]:
        """Every number with its section's key (empty in the abstract) and what it stands for there."""
        for key, blocks in (("", self.abstract), *((one.key, one.blocks) for one in self.sections)):
            for block in blocks:
                for name, number in _numbers(block):
                    yield key, name, number


def _numbers(block: Block) -> Iterator[tuple[str, Number]]:
    if isinstance(block, Text):
        yield from block.numbers.items()
    elif isinstance(block, Table):
        for row in block.rows:
            for column, cell in zip(block.columns, row, strict=True):
                if isinstance(cell, Number):
                    yield f"{block.caption}: {row[0]}, {column}", cell
