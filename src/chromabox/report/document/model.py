"""Report documents as data: sections that consist of blocks. They are converted to HTML, PDF and JSON.

Numbers are :class:`Number` objects, which record the file or the computation that they come from.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, TypeAlias

from sympy import Expr


@dataclass(frozen=True)
class Number:
    """A number, its format and its source."""

    value: float
    source: str
    """A file and a key (``runs/unet/summary.json: test_accuracy``), or the name of the computation."""
    spec: str = ",.4g"
    """Format specification for :func:`format`, for example with thousands separators."""
    std: float | None = None
    """Standard deviation, printed after "±" unless None."""

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return {math.inf: "∞", -math.inf: "−∞"}.get(self.value, "–")
        printed = [format(value, self.spec) for value in (self.value, self.std) if value is not None]
        return " ± ".join(printed).replace("-", "−")


Cell: TypeAlias = str | Number


@dataclass(frozen=True)
class Source:
    """Values that templates address by dotted paths, with the file or the computation that they come from."""

    values: Any
    """Nested mappings, sequences and objects with numbers, strings and None (a missing value)."""
    name: str
    """The source of a number is this text, followed by its keys; for example ``runs/unet/summary.json: ``."""

    def get(self, *keys: str | int) -> Any:
        """Return the value at ``keys``."""
        value = self.values
        for key in keys:
            if isinstance(value, Mapping):
                value = value[key]
            else:
                value = value[int(key)] if isinstance(value, Sequence) else getattr(value, str(key))
        return value

    def number(self, *keys: str | int, spec: str = ",.4g") -> Number:
        """Return the number at ``keys``, in percent if ``spec`` ends in "%"; return NaN for None."""
        value = self.get(*keys)
        scale, spec = (100.0, f"{spec[:-1]}f") if spec.endswith("%") else (1.0, spec)
        value = math.nan if value is None else scale * float(value)
        return Number(value, self.name + " > ".join(map(str, keys)), spec)


class Text:
    """A paragraph; text between backticks is code.

    ``{name}`` in the template is replaced by a :class:`Number` or a string. ``{name.key.key:spec}`` is replaced by a
    value from a :class:`Source` or from nested mappings of numbers and strings. The specification is as for
    :func:`format`. If it ends in "%", the number is printed in percent, with a space before the unit.
    """

    pieces: list[tuple[str, Number | None]]
    """Strings, each with the number that follows it; the last string is followed by None."""
    numbers: dict[str, Number]
    """Numbers, keyed by their fields in the template."""

    def __init__(self, template: str, values: Mapping[str, Any] | None = None, /, **named_values: Any) -> None:
        values = {**(values or {}), **named_values}
        fields = list(Formatter().parse(template))
        names = {path.split(".")[0] for _, path, *_ in fields if path is not None}
        if names != values.keys():
            raise ValueError(f"the template uses {sorted(names)}, but values were given for {sorted(values)}")
        self.pieces, self.numbers, words = [], {}, ""
        for literal, path, spec, _ in fields:
            words += literal
            if path is None:
                continue
            name, *keys = path.split(".")
            source = values[name] if isinstance(values[name], Source) else Source(values[name], "")
            value = source.get(*keys)
            if isinstance(value, str):
                words += value
                continue
            number = value if isinstance(value, Number) else source.number(*keys, spec=spec or Number.spec)
            if self.numbers.setdefault(path, number).spec != number.spec:
                raise ValueError(f"{path} is used with two formats; expected the same format everywhere")
            self.pieces.append((words, number))
            words = " %" if spec and spec.endswith("%") else ""
        self.pieces.append((words, None))

    def __str__(self) -> str:
        return "".join(f"{words}{'' if number is None else number}" for words, number in self.pieces)


@dataclass(frozen=True)
class Formula:
    """The equation ``name`` = ``expression``."""

    name: str
    expression: Expr


@dataclass(frozen=True)
class Table:
    """A table with a caption above it. Columns with numbers are right-aligned; other columns are left-aligned."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A PNG file with a caption below it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Code:
    """Source code, shown verbatim."""

    source: str
    language: str = "python"


@dataclass(frozen=True)
class MissingRun:
    """A result that does not exist, and the command that creates it."""

    description: str
    command: str


Block: TypeAlias = Text | Formula | Table | Figure | Code | MissingRun


@dataclass(frozen=True)
class Section:
    """The answer to one question."""

    key: str
    """Number of the question in the assignment, for example ``A.3``."""
    title: str
    question: str
    """Paraphrase of the question; empty if there is no question."""
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

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """Yield every block, preceded by the key of its section (empty in the abstract)."""
        yield from (("", block) for block in self.abstract)
        yield from ((section.key, block) for section in self.sections for block in section.blocks)

    def numbers(self) -> Iterator[tuple[str, str, Number]]:
        """Yield every number, preceded by the key of its section (empty in the abstract) and its name."""
        for key, block in self.blocks():
            if isinstance(block, Text):
                yield from ((key, name, number) for name, number in block.numbers.items())
            elif isinstance(block, Table):
                for row in block.rows:
                    for column, cell in zip(block.columns, row, strict=True):
                        if isinstance(cell, Number):
                            yield key, f"{block.caption}: {row[0]}, {column}", cell
