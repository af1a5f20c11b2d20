"""Colours from the command line; the values of CSS names are those of CSS Color Module Level 4, section 6.1."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromabox.colour.palette.io import parse_colour, parse_replacement, to_hex
from chromabox.errors import UsageError


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("teal", (0, 128, 128)),
        (" RebeccaPurple ", (102, 51, 153)),
        ("grey", (128, 128, 128)),
        ("#f80", (255, 136, 0)),
        ("F80", (255, 136, 0)),
        ("#0a1B2c", (10, 27, 44)),
    ],
)
def test_names_and_hexadecimals(text: str, colour: tuple[int, int, int]) -> None:
    assert parse_colour(text) == colour


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_what_is_written_is_read_again(colour: tuple[int, int, int]) -> None:
    assert parse_colour(to_hex(colour)) == colour


@pytest.mark.parametrize(
    "text", ["", "#", "#ff", "#ff00", "#ff00aa80", "rgb(1,2,3)", "hsl(0,100%,50%)", "blurple", "#ggg"]
)
def test_anything_else_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"^ban .*is no colour"):
        parse_colour(text, "ban")


@given(st.text(string.printable))
def test_no_text_is_a_surprise(text: str) -> None:
    try:
        colour = parse_colour(text)
    except UsageError:
        return
    assert all(0 <= value <= 255 for value in colour)


def test_replacements() -> None:
    assert parse_replacement("red=#088") == ((255, 0, 0), (0, 136, 136))


@pytest.mark.parametrize("text", ["red", "red=blue=green", "=", "red=", "red:blue"])
def test_half_replacements_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^replace "):
        parse_replacement(text)
