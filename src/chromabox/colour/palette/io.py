"""Palette files (JSON, .npy, GIMP's .gpl), the bundled palettes, and parsing of colours from the command line.

Palette files are not trusted. Nothing is unpickled, and sizes are limited. Every error is one sentence that names the
file. Heavy modules are not imported here, because the command line imports this module at every start.
"""

import io
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from chromabox.colour.palette.palette import Palette, validate_colours
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write, parse_json, read_bytes

MAX_FILE_BYTES = 1 << 20  # 256 colours take a few thousand bytes.
COLOUR_UNIT = "RGB/256"
#: Red, green and blue of sRGB, 0 to 255 each.
Colour = tuple[int, int, int]
#: The colours in a palette file, and the name of the palette or None.
ParsedPalette = tuple[Float64[np.ndarray, "..."], str | None]


def load_palette(path_or_name: str | Path) -> Palette:
    """Load a bundled palette by its name ("horse24", "cifar24") or a palette from a file.

    * `.npy`: an array of shape [colours, 3], uint8 or floats (RGB values divided by 256), without pickled objects.
    * `.json`: a file written by :func:`save_palette`, or a list of "#rrggbb" strings or [r, g, b] lists. If all numbers
      are integers, without a decimal point, they are 8-bit values. Otherwise, they are RGB values divided by 256.
    * `.gpl`: GIMP's format.

    Raise UsageError for an unknown name and a missing file, and ChromaboxError for an invalid file.
    """
    assets = resources.files("chromabox").joinpath("assets").iterdir()
    bundled = {match[1]: file for file in assets if (match := re.fullmatch(r"palette-(.+)\.json", file.name))}
    if str(path_or_name) in bundled:
        colours, name = _parse_json(bundled[str(path_or_name)].read_bytes())
        return Palette(colours.astype(np.float32), name or str(path_or_name))
    path = Path(path_or_name)
    if path.suffix.lower() not in PALETTE_READERS:
        expected = f"expected one of {', '.join(sorted(bundled))} or a file with suffix {', '.join(PALETTE_READERS)}"
        raise (ChromaboxError if path.exists() else UsageError)(f"{path}: unknown palette; {expected}")
    if not path.exists():
        raise UsageError(f"{path}: does not exist; expected a palette file")
    content = read_bytes(path, "a palette file", MAX_FILE_BYTES)
    try:
        colours, name = PALETTE_READERS[path.suffix.lower()](content)
    except ValueError as error:
        raise ChromaboxError(f"{path}: {error}") from error
    issue = validate_colours(colours)
    if issue:
        raise ChromaboxError(f"{path}: {issue}")
    return Palette(colours.astype(np.float32), name or path.stem)


def save_palette(path: str | Path, palette: Palette) -> None:
    """Write a palette atomically as `.npy`, `.json` or `.gpl`, in the format that :func:`load_palette` reads.

    A `.npy` file does not contain the name. A `.gpl` file contains 8-bit values, to which the colours are rounded.
    Raise UsageError for another suffix, and ChromaboxError if the file cannot be written.
    """
    path = Path(path)
    check_palette_suffix(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        stream = io.BytesIO()
        np.save(stream, palette.colours)
        content = stream.getvalue()
    elif suffix == ".json":
        # Write one colour per line, and every float32 value with the fewest digits that restore it.
        head = {"name": palette.name, "k": len(palette), "unit": COLOUR_UNIT, "made": {}}
        rows = ",\n".join("    [" + ", ".join(map(str, row)) + "]" for row in palette.colours)
        start = json.dumps(head, indent=2, ensure_ascii=False)[:-2]
        content = f'{start},\n  "colours": [\n{rows}\n  ]\n}}\n'.encode()
    else:
        lines = [f"{r:3d} {g:3d} {b:3d}\tcolour {index}" for index, (r, g, b) in enumerate(palette.rgb.tolist())]
        name = " ".join(palette.name.split())  # A line break would begin a new entry.
        content = "\n".join(["GIMP Palette", f"Name: {name}", "Columns: 8", "#", *lines, ""]).encode()
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def check_palette_suffix(path: Path) -> None:
    """Raise UsageError if no palette format has this suffix."""
    if path.suffix.lower() not in PALETTE_READERS:
        raise UsageError(f"{path}: unsupported suffix; expected one of {', '.join(PALETTE_READERS)}")


def _parse_npy(content: bytes) -> ParsedPalette:
    """Parse a .npy file. All parsers raise ValueError, whose message is shown after the file name."""
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # A damaged header raises many types of errors, such as TokenError and RecursionError.
        if "allow_pickle" in str(error):
            raise ValueError(
                "contains a pickled object array, which can run code when it is loaded; if you trust the source, run "
                "np.save('plain.npy', np.load(file, allow_pickle=True, encoding='bytes')[0].astype('float32'))"
            ) from error
        raise ValueError("not a complete .npy file; expected a file written by np.save") from error
    if array.dtype == np.uint8:
        return array / 256, None
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"unsupported dtype {array.dtype}; expected uint8, or floats (RGB values divided by 256)")
    return array.astype(np.float64), None


def _parse_json(content: bytes) -> ParsedPalette:
    try:
        parsed = parse_json(content)
    except ValueError as error:
        raise ValueError(f"invalid JSON ({error}); expected a palette written by save_palette") from error
    name, scale = None, 1
    if isinstance(parsed, dict):
        name = parsed.get("name")
        if parsed.get("unit") != COLOUR_UNIT or not isinstance(name, str | None) or "colours" not in parsed:
            raise ValueError(f'expected "colours" and "unit": "{COLOUR_UNIT}", and optionally a string as "name"')
        parsed = parsed["colours"]
    elif isinstance(parsed, list):
        values = [value for row in parsed if isinstance(row, list) for value in row]
        scale = 256 if all(isinstance(value, int) for value in values) else 1
    if not isinstance(parsed, list):
        raise ValueError('no list of colours; expected [[r, g, b], …] or ["#rrggbb", …]')
    return np.array([_parse_row(row, scale) for row in parsed], np.float64).reshape(-1, 3), name


def _parse_row(row: Any, scale: int) -> list[float]:
    """Return RGB values divided by 256, from "#rrggbb" or from three numbers, which are divided by `scale`."""
    if isinstance(row, str) and re.fullmatch("#[0-9a-fA-F]{6}", row):
        return [value / 256 for value in bytes.fromhex(row[1:])]
    # JSON's true and NaN are not valid values. The type excludes true. The comparison is false for NaN.
    is_valid = isinstance(row, list) and len(row) == 3 and all(type(value) in (int, float) for value in row)
    if is_valid and all(0 <= value <= max(1, scale - 1) for value in row):
        return [value / scale for value in row]
    expected = "8-bit values from 0 to 255" if scale == 256 else "RGB values divided by 256, in [0, 1]"
    raise ValueError(f'invalid colour {json.dumps(row)[:40]}; expected "#rrggbb" or [r, g, b] with {expected}')


def _parse_gpl(content: bytes) -> ParsedPalette:
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    if not lines or lines[0].strip() != "GIMP Palette":
        raise ValueError('not a GIMP palette; expected "GIMP Palette" as the first line')
    rows, name = [], None
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("Name:"):
            name = line.removeprefix("Name:").strip() or None
        elif line.strip() and not line.startswith(("#", "Columns:")):
            values = line.split()[:3]
            if len(values) < 3 or not all(re.fullmatch("[0-9]{1,3}", value) and int(value) < 256 for value in values):
                raise ValueError(f'line {number} is "{line.strip()[:40]}"; expected three values from 0 to 255')
            rows.append([int(value) / 256 for value in values])
    return np.array(rows, np.float64).reshape(-1, 3), name


PALETTE_READERS = {".npy": _parse_npy, ".json": _parse_json, ".gpl": _parse_gpl}


def parse_colour(value: Any, option: str = "colour") -> Colour:
    """Parse a colour: "#rrggbb", "#rgb", a CSS colour name, or three integers from 0 to 255.

    The # is optional, because shells treat it as the start of a comment. `option` is the name of the option in the
    error message. Raise UsageError for any other text or sequence, and TypeError for a value of another type.
    """
    from PIL import ImageColor

    if isinstance(value, str):
        lowered = value.strip().lower()
        digits = re.fullmatch("#?([0-9a-f]{3}|[0-9a-f]{6})", lowered)
        if digits or lowered in ImageColor.colormap:
            red, green, blue = ImageColor.getrgb(f"#{digits[1]}" if digits else lowered)[:3]
            return red, green, blue
    elif len(value) == 3 and all(isinstance(channel, int | np.integer) and 0 <= channel <= 255 for channel in value):
        return int(value[0]), int(value[1]), int(value[2])
    expected = "'#rrggbb', '#rgb', a CSS name such as teal, or three integers from 0 to 255"
    raise UsageError(f"{option} {repr(value)[:60]}: invalid colour; expected {expected}")


def parse_replacement(value: Any, option: str = "replace") -> tuple[Colour, Colour]:
    """Parse a pair of colours (A, B) or a string "A=B". Colour A is replaced by B.

    Raise UsageError for any other text, and TypeError or ValueError for a value that is not a pair.
    """
    colours = value.split("=") if isinstance(value, str) else value
    if isinstance(value, str) and len(colours) != 2:
        raise UsageError(f"{option} {value[:40]!r}: expected two colours A=B, such as red=teal or '#f00=#088'")
    first, second = (parse_colour(colour, option) for colour in colours)
    return first, second


def to_hex(colour: Colour) -> str:
    """Format a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
