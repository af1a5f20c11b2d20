"""Prose parsed into inline elements: plain text, code, numbers and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter

from chromabox.report.document.model import Number, Text

#: Control characters, surrogates and non-characters, which neither HTML nor fonts support.
UNPRINTABLE_CHARS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|[\U0001fffe-\U0001ffff]"
)
#: The space between a number and its unit, where a line must not break.
UNIT_SPACE = re.compile(r"^ (?=[%×°])")
URL = re.compile(r"https?://[^\s<>\"]*[^\s<>\".,;:!?)\]]")


@dataclass(frozen=True)
class Inline:
    """A piece of text with one format."""

    text: str
    code: bool = False
    number: Number | None = None
    link: str = ""


def strip_control_chars(text: str) -> str:
    """Return the text with "\\n" as line ends and "�" for every unsupported character."""
    return UNPRINTABLE_CHARS.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))


def parse_inline(text: Text | str) -> list[Inline]:
    """Parse a paragraph: backticks delimit code (an unpaired backtick is plain text), line ends become spaces."""
    pieces = _split_template(text) if isinstance(text, Text) else [(text, None)]
    num_backticks = sum(literal.count("`") for literal, _ in pieces)
    unpaired = num_backticks if num_backticks % 2 else 0
    inlines: list[Inline] = []
    code, seen = False, 0
    for literal, number in pieces:
        words = strip_control_chars(literal).replace("\n", " ")
        if inlines and inlines[-1].number:
            words = UNIT_SPACE.sub("\u00a0", words)
        for index, part in enumerate(words.split("`")):
            seen += index > 0
            if index and seen == unpaired:
                part = f"`{part}"
            elif index:
                code = not code
            if part:
                inlines.append(Inline(part, code))
        if number is not None:
            inlines.append(Inline(str(number), code, number))
    return inlines


def parse_links(text: str) -> list[Inline]:
    """Parse a reference like a paragraph, with URLs as links."""
    return [
        piece for inline in parse_inline(text) for piece in (_split_links(inline.text) if not inline.code else [inline])
    ]


def to_text(inlines: list[Inline]) -> str:
    """Return the plain text."""
    return "".join(inline.text for inline in inlines)


def _split_template(text: Text) -> list[tuple[str, Number | None]]:
    """Split into pairs of text and the number that follows (None at the end); doubled braces become single ones."""
    pieces: list[tuple[str, Number | None]] = []
    words = ""
    for literal, name, *_ in Formatter().parse(text.template):
        words += literal
        if name is not None:
            pieces.append((words, text.numbers[name]))
            words = ""
    return [*pieces, (words, None)]


def _split_links(text: str) -> Iterator[Inline]:
    start = 0
    for url in URL.finditer(text):
        if url.start() > start:
            yield Inline(text[start : url.start()])
        yield Inline(url[0], link=url[0])
        start = url.end()
    if start < len(text):
        yield Inline(text[start:])
