"""Colours as people write them on the command line; nothing heavy is imported."""

import re

from chromabox.errors import UsageError

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each, sRGB."""


def parse_colour(text: str, option: str = "colour") -> Colour:
    """A colour written as #rrggbb, #rgb (the # may be left out: shells take it for a comment) or by its CSS name.

    Args:
        text: as written by the user.
        option: what the message calls it.

    Raises UsageError for anything else.
    """
    from PIL import ImageColor

    word = text.strip().lower()
    digits = re.fullmatch("#?([0-9a-f]{3}|[0-9a-f]{6})", word)
    if digits is None and word not in ImageColor.colormap:
        raise UsageError(f"{option} {text[:40]!r}: is no colour; write '#rrggbb', '#rgb' or a CSS name such as teal")
    red, green, blue = ImageColor.getrgb(f"#{digits[1]}" if digits else word)[:3]
    return red, green, blue


def parse_replacement(text: str, option: str = "replace") -> tuple[Colour, Colour]:
    """Two colours written as A=B: what would be A becomes B. Raises UsageError for anything else."""
    colours = text.split("=")
    if len(colours) != 2:
        raise UsageError(f"{option} {text[:40]!r}: is no pair of colours; write A=B, such as red=teal or '#f00=#088'")
    first, second = (parse_colour(colour, option) for colour in colours)
    return first, second


def written(colour: Colour) -> str:
    """The colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
