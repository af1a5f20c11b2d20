"""Tests of colours from the command line; expected values of CSS names from CSS Color Module Level 4, section 6.1."""

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
def test_parse_colour_of_names_and_hexadecimal_values(text: str, colour: tuple[int, int, int]) -> None:
    assert parse_colour(text) == colour


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_hexadecimal_round_trip(colour: tuple[int, int, int]) -> None:
    assert parse_colour(to_hex(colour)) == colour


@pytest.mark.parametrize(
    "text", ["", "#", "#ff", "#ff00", "#ff00aa80", "rgb(1,2,3)", "hsl(0,100%,50%)", "blurple", "#ggg"]
)
def test_invalid_colour_is_rejected_with_the_name_of_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^ban .*invalid colour"):
        parse_colour(text, "ban")


@given(st.text(string.printable))
def test_any_text_gives_a_colour_or_a_usage_error(text: str) -> None:
    try:
        colour = parse_colour(text)
    except UsageError:
        return
    assert all(0 <= value <= 255 for value in colour)


def test_parse_replacement() -> None:
    assert parse_replacement("red=#088") == ((255, 0, 0), (0, 136, 136))


@pytest.mark.parametrize("text", ["red", "red=blue=green", "=", "red=", "red:blue"])
def test_invalid_replacement_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match=r"^replace "):
        parse_replacement(text)
