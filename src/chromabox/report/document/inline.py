"""Prose cut into spans: what is plain, what is code, what is a number and what is a link."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from string import Formatter

from chromabox.report.document.model import Number, Text

#: Control characters, halves of surrogate pairs and non-characters: no web page and no font may hold them.
UNPRINTABLE_CHARS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]|[\U0001fffe-\U0001ffff]"
)
#: The space between a number and its sign, where no line may end.
UNIT_SPACE = re.compile(r"^ (?=[%×°])")
URL = re.compile(r"https?://[^\s<>\"]*[^\s<>\".,;:!?)\]]")


@dataclass(frozen=True)
class Inline:
    """A few words that are set in one way."""

    text: str
    code: bool = False
    number: Number | None = None
    link: str = ""


def strip_control_chars(text: str) -> str:
    """The text with line ends as "\\n" and "�" for every character that cannot be shown."""
    return UNPRINTABLE_CHARS.sub("�", text.replace("\r\n", "\n").replace("\r", "\n"))


def parse_inline(text: Text | str) -> list[Inline]:
    """A paragraph's spans: backticks set code apart (one without its twin stands for itself), line ends are spaces."""
    pieces = _split_template(text) if isinstance(text, Text) else [(text, None)]
    ticks = sum(literal.count("`") for literal, _ in pieces)
    lonely = ticks if ticks % 2 else 0
    found: list[Inline] = []
    code, seen = False, 0
    for literal, number in pieces:
        words = strip_control_chars(literal).replace("\n", " ")
        if found and found[-1].number:
            words = UNIT_SPACE.sub("\u00a0", words)
        for index, part in enumerate(words.split("`")):
            seen += index > 0
            if index and seen == lonely:
                part = f"`{part}"
            elif index:
                code = not code
            if part:
                found.append(Inline(part, code))
        if number is not None:
            found.append(Inline(str(number), code, number))
    return found


def parse_links(text: str) -> list[Inline]:
    """The same for a reference, whose addresses become links."""
    return [piece for span in parse_inline(text) for piece in (_split_links(span.text) if not span.code else [span])]


def to_text(inlines: list[Inline]) -> str:
    """The words alone."""
    return "".join(span.text for span in inlines)


def _split_template(text: Text) -> list[tuple[str, Number | None]]:
    """Words, and the number behind them (behind the last there is none); doubled braces are single ones here."""
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
    for address in URL.finditer(text):
        if address.start() > start:
            yield Inline(text[start : address.start()])
        yield Inline(address[0], link=address[0])
        start = address.end()
    if start < len(text):
        yield Inline(text[start:])
