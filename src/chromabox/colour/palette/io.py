"""Palettes in files: our JSON, plain .npy, GIMP's .gpl, and the shipped ones by name.

A stranger's palette is only data: nothing is unpickled, sizes are bounded, and whatever is wrong is said in one
sentence that names the file.

Colours as people write them on the command line; nothing heavy is imported.
"""

import io
import json
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from chromabox.colour.palette.palette import Palette, validate_colours
from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write

MAX_FILE_BYTES = 1 << 20  # bytes; 256 colours take a few thousand
COLOUR_UNIT = "RGB/256"


def load_palette(path_or_name: str | Path) -> Palette:
    """A shipped palette by its name ("horse24", "cifar24"), or one from a file.

    `.npy`: [colours, 3], floats in RGB/256 or uint8; nothing pickled. `.json`: what save_palette writes, or
    a bare list of "#rrggbb" or of [r, g, b], in which whole numbers (no decimal point anywhere) are 8-bit values
    and others RGB/256. `.gpl`: GIMP's. Raises ChromaboxError, naming the file, for all that is not a palette.
    """
    shipped = _bundled_palettes()
    if str(path_or_name) in shipped:
        text = shipped[str(path_or_name)].read_text(encoding="utf-8")
        colours, name = _parse_json(text)
        return Palette(colours.astype(np.float32), name or str(path_or_name))
    path = Path(path_or_name)
    if path.suffix.lower() not in PALETTE_READERS:
        known = f"a palette is one of {', '.join(sorted(shipped))} or a file in {', '.join(PALETTE_READERS)}"
        raise ChromaboxError(f"{path}: not a known palette; {known}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ChromaboxError(f"{path}: is larger than {MAX_FILE_BYTES >> 20} MB; no palette of 256 colours is")
        colours, name = PALETTE_READERS[path.suffix.lower()](path.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ChromaboxError(f"{path}: cannot be read as a palette: {reason}") from error
    except ValueError as error:
        raise ChromaboxError(f"{path}: {error}") from error
    fault = validate_colours(colours)
    if fault:
        raise ChromaboxError(f"{path}: {fault}")
    return Palette(colours.astype(np.float32), name or path.stem)


def save_palette(path: str | Path, palette: Palette, provenance: Mapping[str, object] | None = None) -> None:
    """Write a palette that load_palette reads, as `.npy`, `.json` or `.gpl`, whole or not at all.

    made: how the palette came about, for people; only .json keeps it, and .npy does not keep the name either.
    .gpl (GIMP) holds 8-bit values: the colours are rounded. Raises ChromaboxError for another suffix or where
    the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npy":
        stream = io.BytesIO()
        np.save(stream, palette.colours)
        content = stream.getvalue()
    elif suffix == ".json":
        content = _to_json(palette, provenance or {}).encode()
    elif suffix == ".gpl":
        rows = [f"{r:3d} {g:3d} {b:3d}\tcolour {index}" for index, (r, g, b) in enumerate(palette.rgb.tolist())]
        name = " ".join(palette.name.split())  # a line break would start a line of its own
        content = "\n".join(["GIMP Palette", f"Name: {name}", "Columns: 8", "#", *rows, ""]).encode()
    else:
        raise ChromaboxError(
            f"{path}: a palette is written as one of {', '.join(PALETTE_READERS)}, by the file's suffix"
        )
    try:
        with atomic_write(path) as aside:
            aside.write_bytes(content)
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _bundled_palettes() -> dict[str, Traversable]:
    """The palettes of the package's assets by name."""
    files = resources.files("chromabox").joinpath("assets").iterdir()
    found = {file.name: file for file in files if file.name.startswith("palette-") and file.name.endswith(".json")}
    return {name.removeprefix("palette-").removesuffix(".json"): file for name, file in found.items()}


def _parse_npy(content: bytes) -> tuple[Float64[np.ndarray, "..."], str | None]:
    """Colours of a .npy file; ValueError says what is wrong, to follow the file's name."""
    try:
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                "holds a pickled object array, which can run code when opened and is refused; if you trust its source, "
                "write its colours as plain floats: np.save('plain.npy', np.load(file, allow_pickle=True, "
                "encoding='bytes')[0].astype('float32'))"
            ) from error
        raise ValueError("is not a whole .npy file; np.save writes one") from error
    if array.dtype == np.uint8:
        return array / 256, None
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"holds {array.dtype}; a palette is floats in RGB/256, or uint8")
    return array.astype(np.float64), None


def _parse_json(content: str | bytes) -> tuple[Float64[np.ndarray, "..."], str | None]:
    """Colours and name of a .json file; ValueError says what is wrong, to follow the file's name."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error}); see save_palette for one that is") from error
    name, scale = None, 1
    if isinstance(found, dict):
        name = found.get("name")
        if found.get("unit") != COLOUR_UNIT or not isinstance(name, str | None) or "colours" not in found:
            raise ValueError(f'needs "colours", "unit": "{COLOUR_UNIT}" and, if any, a "name" in letters')
        found = found["colours"]
    elif isinstance(found, list):
        values = [value for row in found if isinstance(row, list) for value in row]
        scale = 256 if all(isinstance(value, int) for value in values) else 1
    if not isinstance(found, list):
        raise ValueError('holds no list of colours; one is [[r, g, b], …] or ["#rrggbb", …]')
    rows = [_parse_hex(row) if isinstance(row, str) else _parse_rgb(row, scale) for row in found]
    return np.array(rows, np.float64).reshape(-1, 3), name


def _parse_hex(text: str) -> list[float]:
    """Unit RGB of "#rrggbb"."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError(f'holds the colour "{text[:20]}"; one is written "#rrggbb"')
    return [value / 256 for value in bytes.fromhex(text[1:])]


def _parse_rgb(row: object, scale: int) -> list[float]:
    """Unit RGB of three numbers, divided by `scale`."""
    shown = json.dumps(row)[:40]
    if not (isinstance(row, list) and len(row) == 3 and all(type(value) in (int, float) for value in row)):
        raise ValueError(f"holds the colour {shown}; one is [r, g, b]")
    if not all(0 <= value <= max(1, scale - 1) for value in row):  # NaN fails, too
        unit = "an 8-bit value is 0 to 255" if scale == 256 else "values in RGB/256 lie in [0, 1]"
        raise ValueError(f"holds the colour {shown}; {unit}")
    return [value / scale for value in row]


def _parse_gpl(content: bytes) -> tuple[Float64[np.ndarray, "..."], str | None]:
    """Colours and name of a GIMP palette; ValueError says what is wrong, to follow the file's name."""
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    if not lines or lines[0].strip() != "GIMP Palette":
        raise ValueError('is no GIMP palette; the first line of one is "GIMP Palette"')
    rows, name = [], None
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("Name:"):
            name = line.removeprefix("Name:").strip() or None
        elif line.strip() and not line.startswith(("#", "Columns:")):
            values = line.split()[:3]
            if len(values) < 3 or not all(re.fullmatch("[0-9]{1,3}", value) and int(value) < 256 for value in values):
                raise ValueError(f'line {number} is "{line.strip()[:40]}"; a colour is three values of 0 to 255')
            rows.append([int(value) / 256 for value in values])
    return np.array(rows, np.float64).reshape(-1, 3), name


PALETTE_READERS = {".npy": _parse_npy, ".json": _parse_json, ".gpl": _parse_gpl}


def _to_json(palette: Palette, provenance: Mapping[str, object]) -> str:
    """The palette as JSON with one colour a line; every float32 in the fewest digits that give it back."""
    head = {"name": palette.name, "k": len(palette), "unit": COLOUR_UNIT, "made": dict(provenance)}
    rows = ",\n".join("    [" + ", ".join(map(str, row)) + "]" for row in palette.colours)
    return json.dumps(head, indent=2, ensure_ascii=False)[:-2] + f',\n  "colours": [\n{rows}\n  ]\n}}\n'


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


def to_hex(colour: Colour) -> str:
    """The colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
