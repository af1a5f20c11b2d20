"""Contact sheets: every image before and after colourisation, side by side, with its file name below."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chromabox.errors import ChromaboxError, UsageError, escape_unprintable
from chromabox.io.images import check_not_input, load_font, read_image, to_uint8, write_image

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
    """Draw pairs of image files side by side and return the paths of the sheets.

    Args:
        pairs: files before and after colourisation, at least one pair. They are read one at a time. A file that cannot
            be read is shown as a labelled placeholder.
        output: path of a .jpg or .png file; several sheets are named ``NAME-1.jpg`` and so on.
        tile_size: side length in pixels of the square tile into which each image is fitted.
        pairs_per_sheet: maximum number of pairs on a sheet; further pairs are drawn on further sheets.

    The name below a pair is the path of its first file relative to the common folder of all first files. Raise
    UsageError for an unsupported suffix or a sheet that would replace one of the images, and ChromaboxError if a sheet
    cannot be written.
    """
    names = _relative_names([source for source, _ in pairs])
    starts = range(0, len(pairs), pairs_per_sheet)
    sheets = contact_sheet_paths(output, len(pairs), pairs_per_sheet)
    for sheet in sheets:
        check_not_input([path for pair in pairs for path in pair], sheet)
    for sheet, start in zip(sheets, starts, strict=True):
        part = slice(start, start + pairs_per_sheet)
        write_image(sheet, np.array(_draw_sheet(pairs[part], names[part], tile_size)), quality=90)
    return sheets


def contact_sheet_paths(output: Path, num_pairs: int, pairs_per_sheet: int = MAX_PAIRS_PER_SHEET) -> list[Path]:
    """Return the paths of the sheets for this number of pairs. Raise UsageError for an unsupported suffix."""
    if output.suffix.lower() not in SHEET_SUFFIXES:
        raise UsageError(f"{output}: unsupported contact sheet format; expected {', '.join(SHEET_SUFFIXES)}")
    count = math.ceil(num_pairs / pairs_per_sheet)
    return [output] if count <= 1 else [output.with_stem(f"{output.stem}-{number + 1}") for number in range(count)]


def _relative_names(sources: Sequence[Path]) -> list[str]:
    """Return the paths relative to the common folder, with escapes for unprintable characters."""
    paths = [Path(os.path.abspath(source)) for source in sources]
    try:
        common = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(common).as_posix() for path in paths]
    except ValueError:  # Paths on different drives have no common folder.
        names = [path.as_posix() for path in paths]
    return [escape_unprintable(name) for name in names]


def _draw_sheet(pairs: Sequence[tuple[Path, Path]], names: Sequence[str], tile_size: int) -> Image.Image:
    """Draw one sheet with an aspect ratio of about 4:3."""
    font = load_font(max(10, tile_size // 12))
    line_height = math.ceil(font.size * 1.4)
    width, height = 2 * tile_size + 3 * GAP, tile_size + line_height + GAP
    columns = min(len(pairs), max(1, round(math.sqrt(len(pairs) * 4 / 3 * height / width))))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pairs) / columns) * height + GAP), WHITE)
    draw = ImageDraw.Draw(sheet)
    for index, ((before, after), name) in enumerate(zip(pairs, names, strict=True)):
        left, top = index % columns * width + GAP, index // columns * height + GAP
        for path, corner in ((before, left), (after, left + tile_size + GAP)):
            tile = _load_tile(path, tile_size, font)
            position = (corner + (tile_size - tile.width) // 2, top + (tile_size - tile.height) // 2)
            sheet.paste(tile, position, tile if tile.mode == "RGBA" else None)
        draw.text((left, top + tile_size + 1), _ellipsize(name, font, 2 * tile_size + GAP), TEXT_COLOUR, font)
    return sheet


def _load_tile(path: Path, tile_size: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return the image, resized to a long side of ``tile_size``, or a placeholder if the file cannot be read."""
    try:
        image = read_image(path)
    except (ChromaboxError, OSError, MemoryError):
        placeholder = Image.new("RGB", (tile_size, tile_size), PLACEHOLDER_COLOUR)
        middle = (tile_size / 2, tile_size / 2)
        ImageDraw.Draw(placeholder).text(middle, "cannot be read", TEXT_COLOUR, font, anchor="mm")
        return placeholder
    tile = Image.fromarray(to_uint8(image.pixels))
    if image.alpha is not None:
        tile.putalpha(Image.fromarray(to_uint8(image.alpha)))
    width, height = (max(1, round(side * tile_size / max(tile.size))) for side in tile.size)
    return tile.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)


def _ellipsize(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the text, with as much of its middle replaced by "…" as necessary to fit into ``width`` pixels."""
    shortened, length = text, len(text)
    while font.getlength(shortened) > width and length > 0:
        length -= 1
        shortened = text[: length // 2] + "…" + text[len(text) - (length - length // 2) :]
    return shortened
