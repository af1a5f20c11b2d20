"""A document as plain data for a template: prose in spans, code in coloured lines, tables and figures counted."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from chromabox.report.written.document import Block, Cell, Code, Document, Figure, Formula, Missing, Number, Table, Text
from chromabox.report.written.formulas import mathml, typst_math, unbreakable
from chromabox.report.written.highlight import coloured_lines
from chromabox.report.written.spans import Span, clean, plain, spans, with_links

#: What a block became: ``kind`` says which it is, the rest is its own.
Laid = dict[str, Any]


def lay_out(document: Document) -> Laid:
    """``title``, ``abstract``, ``sections``, ``references``, ``about`` and ``figures`` (all of them, as they come)."""
    count = {Table: itertools.count(1), Figure: itertools.count(1)}
    figures: list[Figure] = []

    def lay_all(blocks: Sequence[Block]) -> list[Laid]:
        figures.extend(block for block in blocks if isinstance(block, Figure))
        return [_lay(block, lambda: next(count[type(block)])) for block in blocks]  # noqa: B023 - called at once

    return {
        "title": clean(document.title),
        "abstract": lay_all(document.abstract),
        "sections": [
            {
                "anchor": anchor,
                "key": clean(section.key),
                "title": clean(section.title),
                "question": spans(section.question),
                "blocks": lay_all(section.blocks),
            }
            for section, anchor in zip(document.sections, _anchors(document), strict=True)
        ],
        "references": [with_links(reference) for reference in document.references],
        "about": [(spans(name), spans(value)) for name, value in document.about.items()],
        "figures": figures,
    }


def _lay(block: Block, number: Callable[[], int]) -> Laid:
    match block:
        case Text():
            return {"kind": "text", "spans": spans(block)}
        case Formula():
            typst = typst_math(block.expression)
            page = {"mathml": mathml(block.expression)}
            paper = {"typst": typst, "pieces": unbreakable(typst)}
            return {"kind": "formula", "name": spans(block.name), **page, **paper}
        case Table():
            return {"kind": "table", "number": number(), **_table(block)}
        case Figure():
            caption = spans(block.caption)
            return {"kind": "figure", "number": number(), "caption": caption, "alt": plain(caption)}
        case Code():
            return {"kind": "code", "lines": coloured_lines(block), "language": clean(block.language)}
        case Missing():
            return {"kind": "missing", "what": spans(block.what), "command": clean(block.command)}


def _table(table: Table) -> Laid:
    """``numeric`` says of each column whether a number stands in it; every row has as many cells as columns."""
    columns = list(zip(table.columns, zip(*table.rows, strict=True), strict=True)) if table.rows else []
    return {
        "caption": spans(table.caption),
        "columns": [spans(column) for column in table.columns],
        "numeric": [any(isinstance(cell, Number) for cell in cells) for _, cells in columns]
        or [False] * len(table.columns),
        "rows": [[_cell(cell) for cell in row] for row in table.rows],
    }


def _cell(cell: Cell) -> list[Span]:
    return [Span(str(cell), number=cell)] if isinstance(cell, Number) else spans(cell)


def _anchors(document: Document) -> list[str]:
    """What addresses may end in: the key, and behind a key that is there twice its place."""
    keys = [re.sub(r"[^\w.]+", "-", clean(section.key)).strip("-") or "section" for section in document.sections]
    return [key if keys.count(key) == 1 else f"{key}--{index}" for index, key in enumerate(keys)]
