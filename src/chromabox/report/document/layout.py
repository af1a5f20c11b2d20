"""A document as plain data for a template: prose in spans, code in coloured lines, tables and figures counted.

Source code as lines of coloured words, by Pygments; the page and the paper give the kinds their colours.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Operator, String, _TokenType, is_token_subtype
from pygments.token import Number as NumberToken
from pygments.util import ClassNotFound

from chromabox.report.document.inline import Span, clean, plain, spans, with_links
from chromabox.report.document.math import mathml, typst_math, unbreakable
from chromabox.report.document.model import Block, Cell, Code, Document, Figure, Formula, Missing, Number, Table, Text

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


#: The first that holds a token names its kind; all others are plain.
KINDS = (
    (Comment, "comment"),
    (String, "string"),
    (NumberToken, "number"),
    (Keyword, "keyword"),
    (Operator.Word, "keyword"),
    (Name.Function, "name"),
    (Name.Class, "name"),
    (Name.Decorator, "decorator"),
    (Name.Builtin, "builtin"),
)
Line = list[tuple[str, str]]


def coloured_lines(code: Code) -> list[Line]:
    """Lines of (kind, text); the kind is empty for plain text, and all of it for a language that nobody knows."""
    try:
        lexer = get_lexer_by_name(code.language, stripnl=False, ensurenl=False, tabsize=4)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False, ensurenl=False, tabsize=4)
    lines: list[Line] = [[]]
    for token, text in lex(clean(code.source).strip("\n"), lexer):
        first, *others = text.split("\n")
        _add(lines[-1], _kind(token), first)
        for other in others:
            lines.append([])
            _add(lines[-1], _kind(token), other)
    return lines


def _kind(token: _TokenType) -> str:
    return next((kind for family, kind in KINDS if is_token_subtype(token, family)), "")


def _add(line: Line, kind: str, text: str) -> None:
    """Words of one kind that touch are one."""
    if text and line and line[-1][0] == kind:
        line[-1] = (kind, line[-1][1] + text)
    elif text:
        line.append((kind, text))
