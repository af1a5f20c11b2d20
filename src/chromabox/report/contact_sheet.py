"""A contact sheet: every picture before and after, side by side, with its file name below."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import check_not_input, read_image, to_uint8, write_image

SHEET_SUFFIXES = (".jpg", ".jpeg", ".png")
MAX_PAIRS_PER_SHEET = 200
GAP = 8
WHITE, TEXT_COLOUR, PLACEHOLDER_COLOUR = (255, 255, 255), (40, 40, 40), (225, 225, 225)


def draw_contact_sheets(
    pairs: Sequence[tuple[Path, Path]],
    output: Path,
    *,
    tile_size: int = 160,
    pairs_per_sheet: int = MAX_PAIRS_PER_SHEET,
) -> list[Path]:
    """Draw pairs of files, before and after, and return where the sheets are.

    Args:
        pairs: files, read one after another; what cannot be read has a blank tile that says so.
        output: .jpg or .png; of several sheets the first is ``NAME-1.jpg``, and so on.
        tile: side in pixels, 32 to 1024, of the square into which each picture is fitted.
        pairs_on_a_sheet: at least 1; more pairs go onto further sheets.

    Memory holds one sheet and one picture. Names are the sources' places below the folder that they share. Raises
    UsageError for another suffix, numbers out of range, no pairs, and a sheet that would replace one of the pictures;
    ChromaboxError if a sheet cannot be written.
    """
    if output.suffix.lower() not in SHEET_SUFFIXES:
        raise UsageError(f"{output}: a contact sheet is written as {', '.join(SHEET_SUFFIXES)}; give one of these")
    if not 32 <= tile_size <= 1024 or pairs_per_sheet < 1:
        raise UsageError(
            f"tile {tile_size}, {pairs_per_sheet} pairs on a sheet: give 32 to 1024 pixels and at least 1 pair"
        )
    if not pairs:
        raise UsageError(f"{output}: no pictures to show; give at least one")
    names = _relative_names([source for source, _ in pairs])
    starts = range(0, len(pairs), pairs_per_sheet)
    sheets = [output] if len(starts) == 1 else [output.with_stem(f"{output.stem}-{n + 1}") for n in range(len(starts))]
    for sheet in sheets:
        check_not_input([path for pair in pairs for path in pair], sheet)
    for sheet, start in zip(sheets, starts, strict=True):
        part = slice(start, start + pairs_per_sheet)
        write_image(sheet, np.array(_draw_sheet(pairs[part], names[part], tile_size)), quality=90)
    return sheets


def _relative_names(sources: Sequence[Path]) -> list[str]:
    """The sources' places below the folder that they share; what cannot be drawn (line ends, odd bytes) as "?"."""
    places = [Path(os.path.abspath(source)) for source in sources]
    try:
        shared = Path(os.path.commonpath([place.parent for place in places]))
    except ValueError:  # On several drives nothing is shared.
        shared = Path()
    names = [(place.relative_to(shared) if shared.parts else place).as_posix() for place in places]
    return ["".join(letter if letter.isprintable() else "?" for letter in name) for name in names]


def _draw_sheet(pairs: Sequence[tuple[Path, Path]], names: Sequence[str], tile_size: int) -> Image.Image:
    """One sheet, about as wide as it is high and a third."""
    font = _load_font(max(10, tile_size // 12))
    line = math.ceil(font.size * 1.4)
    width, height = 2 * tile_size + 3 * GAP, tile_size + line + GAP
    columns = min(len(pairs), max(1, round(math.sqrt(len(pairs) * 4 / 3 * height / width))))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pairs) / columns) * height + GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, ((before, after), name) in enumerate(zip(pairs, names, strict=True)):
        left, top = index % columns * width + GAP, index // columns * height + GAP
        for path, corner in ((before, left), (after, left + tile_size + GAP)):
            picture = _load_tile(path, tile_size, font)
            sheet.paste(picture, (corner + (tile_size - picture.width) // 2, top + (tile_size - picture.height) // 2))
        draw.text((left, top + tile_size + 1), _ellipsize(name, font, 2 * tile_size + GAP), TEXT_COLOUR, font)
    return sheet


def _load_tile(path: Path, tile_size: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One picture, on white where it is transparent, whose longer side is the tile's; a blank if it cannot be read."""
    try:
        picture = read_image(path)
    except (ChromaboxError, OSError, MemoryError):
        blank = Image.new("RGB", (tile_size, tile_size), PLACEHOLDER_COLOUR)
        ImageDraw.Draw(blank).text(
            (tile_size / 2, tile_size / 2),
            _ellipsize("cannot be read", font, tile_size),
            TEXT_COLOUR,
            font,
            anchor="mm",
        )
        return blank
    height, width = picture.pixels.shape[:2]
    size = (
        max(1, round(width * tile_size / max(width, height))),
        max(1, round(height * tile_size / max(width, height))),
    )
    small = Image.fromarray(to_uint8(picture.pixels)).resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    if picture.alpha is None:
        return small
    mask = Image.fromarray(to_uint8(picture.alpha)).resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    return Image.composite(small, Image.new("RGB", size, WHITE), mask)


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek, Cyrillic and Arabic letters."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _ellipsize(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its middle left out as far as it takes to fit into so many pixels."""
    if font.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
        if font.getlength(short) <= width:
            return short
    return "…"
