"""Parsing of prose into inline elements; the text is preserved."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromabox.report.document.layout import Inline, parse_inline, strip_control_chars, to_text
from chromabox.report.document.model import Number, Text

TWO = Number(2.0, "a.json: two", ".1f", 0.5)


def test_numbers_code_and_text_are_separated() -> None:
    inlines = parse_inline(Text("Of `{n}` and `a{{b}}` it is {n}.", {"n": TWO}))
    assert inlines == [
        Inline("Of "),
        Inline("2.0 ± 0.5", code=True, number=TWO),
        Inline(" and "),
        Inline("a{b}", code=True),
        Inline(" it is "),
        Inline("2.0 ± 0.5", number=TWO),
        Inline("."),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a ` b", [Inline("a "), Inline("` b")]),
        ("`a` ` b", [Inline("a", code=True), Inline(" "), Inline("` b")]),
        ("``", []),
        ("", []),
        ("two\nlines", [Inline("two lines")]),
        ("{no} number", [Inline("{no} number")]),
    ],
)
def test_parse_inline_edge_cases(text: str, expected: list[Inline]) -> None:
    assert parse_inline(text) == expected


def test_space_before_percent_sign_is_non_breaking() -> None:
    assert to_text(parse_inline(Text("{n} % of {n} px", {"n": TWO}))) == "2.0 ± 0.5\u00a0% of 2.0 ± 0.5 px"


def test_urls_become_links_without_trailing_punctuation() -> None:
    inlines = parse_inline("A. Author. Title (https://a.b/c_d). See http://x.y/z?q=1, too: `https://code`.")
    assert [inline.link for inline in inlines if inline.link] == ["https://a.b/c_d", "http://x.y/z?q=1"]
    assert to_text(inlines) == "A. Author. Title (https://a.b/c_d). See http://x.y/z?q=1, too: https://code."


@given(st.text(st.characters(exclude_characters="`\n\r", exclude_categories=["Cc", "Cs", "Cn"])))
def test_text_is_preserved(text: str) -> None:
    assert to_text(parse_inline(text)) == text


@given(st.text(st.characters(exclude_categories=[])))
def test_strip_control_chars_gives_valid_text(text: str) -> None:
    cleaned = strip_control_chars(text)
    cleaned.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", cleaned)
    assert strip_control_chars(cleaned) == cleaned
    assert len(cleaned) == len(text.replace("\r\n", "\n"))
