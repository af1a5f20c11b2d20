"""Source code as lines of coloured words, by Pygments; the page and the paper give the kinds their colours."""

from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Name, Operator, String, _TokenType, is_token_subtype
from pygments.token import Number as NumberToken
from pygments.util import ClassNotFound

from chromabox.report.written.document import Code
from chromabox.report.written.spans import clean

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
