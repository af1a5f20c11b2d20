"""Report documents as data: sections of blocks, converted to HTML, PDF and JSON.

Numbers in texts are :class:`Number` objects, which record the file or the computation that they come from.
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
    """A number, its format and its source."""

    value: float
    source: str
    """A file and a key (``runs/unet/summary.json: test_accuracy``), or the name of the computation."""
    spec: str = ",.4g"
    """Format specification of :func:`format`, for example with thousands separators."""
    std: float | None = None
    """Standard deviation, printed after "±" unless None."""

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return {math.inf: "∞", -math.inf: "−∞"}.get(self.value, "–")
        printed = [format(value, self.spec) for value in (self.value, self.std) if value is not None]
        return " ± ".join(printed).replace("-", "−")


Cell: TypeAlias = str | Number


@dataclass(frozen=True)
class Text:
    """A paragraph; ``{name}`` is replaced by a number, and text between backticks is code."""

    template: str
    numbers: Mapping[str, Number] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}
        if names != self.numbers.keys():
            raise ValueError(f"the template uses {sorted(names)}, but numbers are {sorted(self.numbers)}")

    def __str__(self) -> str:
        return self.template.format(**{name: str(number) for name, number in self.numbers.items()})


@dataclass(frozen=True)
class Formula:
    """The equation ``name`` = ``expression``."""

    name: str
    expression: Expr


@dataclass(frozen=True)
class Table:
    """A table with a caption above; text is left-aligned, columns with numbers are right-aligned."""

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
    """Source code, shown verbatim."""

    source: str
    language: str = "python"


@dataclass(frozen=True)
class MissingRun:
    """A missing result and the command that creates it."""

    description: str
    command: str


Block: TypeAlias = Text | Formula | Table | Figure | Code | MissingRun


@dataclass(frozen=True)
class Section:
    """The answer to one question."""

    key: str
    """The assignment's number of the question, for example ``A.3``."""
    title: str
    question: str
    """The question in our words; empty if there is none."""
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A complete report."""

    title: str
    abstract: Sequence[Block]
    sections: Sequence[Section]
    references: Sequence[str]
    metadata: Mapping[str, str]
    """Provenance: versions, machine, date."""

    def numbers(self) -> Iterator[tuple[str, str, Number]]:
        """Yield every number with its section's key (empty in the abstract) and its name."""
        for key, blocks in (("", self.abstract), *((section.key, section.blocks) for section in self.sections)):
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
