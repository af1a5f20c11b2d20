"""Images with 16 bits per channel, which Pillow reads and writes at 8 bits, and TIFF with other bit depths.

TIFF files with 8 bits are written here too, because Pillow cannot write both compressed pixels and an EXIF directory.
Floating-point TIFF files and greyscale TIFF files with 32 or 64 bits are read here, because Pillow does not support
them or reads some of them wrongly.

Pillow opens the file and reads the size and the metadata; tifffile and imagecodecs decode the pixels. These two
packages are imported where they are used, because their import takes a third of a second and most images do not
require them.
"""

import itertools
import logging
import struct
import zlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, PngImagePlugin, PpmImagePlugin, TiffImagePlugin

from chromabox.errors import ChromaboxError
from chromabox.io.exif import EXIF_DIRECTORY, GPS_DIRECTORY, INTEROP_DIRECTORY, keep_descriptive, restore_types

# tifffile's warnings about unusual tags are not shown on the terminal. Errors are raised.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# This is the fastest zlib level. The lower 8 of 16 bits are mostly noise, which no level can compress.
_PNG_LEVEL = 1
_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 338, 339
_STRIP_OFFSETS = 273
# TIFF 6.0, section 2: bytes of a value of each type. Values of the other types have one byte.
_TYPE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_EXTRA_UNSPECIFIED, _EXTRA_ASSOCIATED_ALPHA = 0, 1

# Values of the tag Compression. The horizontal predictor, which makes files smaller, is used with some of them.
_COMPRESSION, _NO_COMPRESSION, _LZW, _DEFLATE, _PACKBITS, _ZSTD = 259, 1, 5, 8, 32773, 50000
_PREDICTED = (_LZW, _DEFLATE, _ZSTD)
#: Compressions of a TIFF that can be read, and the lossless compressions with which RGB values are written.
TIFF_COMPRESSIONS = {code: code for code in (_NO_COMPRESSION, _LZW, _DEFLATE, _PACKBITS, _ZSTD)} | {32946: _DEFLATE}
_STRIP_BYTES, _TIFF_LEVEL = 1 << 18, 6

PixelValues16 = UInt16[np.ndarray, "height width channels"]
PixelValues = PixelValues16 | UInt8[np.ndarray, "height width channels"]
#: The headers of JPEG 2000 and AVIF lie in these first bytes, except after an exceptionally long profile or EXIF.
_HEADER_BYTES = 1 << 20
#: Floating-point values may exceed the range by this much, because resizing and rounding leave small overshoots.
FLOAT_TOLERANCE = 1e-3


def range_issue(values: np.ndarray, upper: int) -> str | None:
    """Return a description of the range of ``values`` unless it is within 0 and ``upper``, otherwise None.

    Floating-point values may be outside the range by `FLOAT_TOLERANCE`.
    """
    low, high = float(values.min()), float(values.max())
    if np.isnan(low):
        return "that include NaN"
    tolerance = FLOAT_TOLERANCE if values.dtype.kind == "f" else 0
    # float16 and float32 round the bound. The comparison allows for half of the difference to the next number.
    is_valid = -tolerance * 1.001 <= low and high <= upper + tolerance * 1.001
    return None if is_valid else f"from {low:g} to {high:g}"


def to_uint16(path: Path, values: np.ndarray) -> UInt16[np.ndarray, "..."]:
    """Return integers from 0 to 65535, or floating-point values from 0 to 1, as 16-bit values.

    Raise ChromaboxError, which names the file, for values outside this range (see `range_issue`).
    """
    upper = 1 if values.dtype.kind == "f" else 65535
    if (found := range_issue(values, upper)) is not None:
        raise ChromaboxError(f"{path}: unsupported values {found}; expected 0 to {upper}")
    if values.dtype.kind == "f":
        values = np.rint(values.clip(0, 1) * np.float64(65535))
    return values.astype(np.uint16)


def read_16bit(path: Path, image: Image.Image) -> UInt16[np.ndarray, "..."] | None:
    """Return the values of a 16-bit PNG, TIFF or JPEG 2000, or of a TIFF with more bits, in the stored orientation.

    Floating-point, signed and 32-bit values are converted to 16 bits (see `to_uint16`). Pillow reads them wrongly if
    they are compressed and big-endian. Return None for any other format or bit depth. `image` is the open file. The
    shape is [height, width] or [height, width, channels]. The channels are grey (1), grey and alpha (2), RGB (3) or
    RGBA (4). Exceptions that the decoders raise for corrupt files are passed on.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        if image.is_animated:  # Only Pillow decodes the frames, at 8 bits.
            return None
        encoded = path.read_bytes()
        if encoded[12:16] != b"IHDR" or encoded[24] != 16:
            return None
        import imagecodecs

        return imagecodecs.png_decode(encoded)  # A transparent colour is returned as alpha.
    if image.format == "JPEG2000" and image.mode != "CMYK":
        return _read_jpeg2000(path, stated_precision(path, image)[0])
    return _read_tiff(path, image) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def _read_jpeg2000(path: Path, bits: int) -> UInt16[np.ndarray, "..."] | None:
    """Return the values of a JPEG 2000 file with 9 to 16 bits, scaled to 16 bits, and None for other precisions.

    Pillow reads colours at 8 bits, and white as black, because its rounding exceeds 255.
    """
    if not 8 < bits <= 16:
        return None
    import imagecodecs

    values = imagecodecs.jpeg2k_decode(path.read_bytes())
    if values.dtype != np.uint16:  # Signed values, which are rare.
        return None
    maximum = (1 << bits) - 1
    return ((values.astype(np.uint32) * 65535 + maximum // 2) // maximum).astype(np.uint16)


def _read_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> UInt16[np.ndarray, "..."] | None:
    """Return the values of a TIFF with unsigned 16-bit integers, or of a greyscale TIFF that Pillow reads as I or F.

    For other TIFF files with floating-point values, `float_tiff_as_integers` has changed the header in `image`.
    """
    tags = image.tag_v2
    photometric = tags.get(_PHOTOMETRIC)
    is_uint16 = set(tags.get(_BITS_PER_SAMPLE, (1,))) == {16} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    is_other_grey = image.mode in ("I", "F")
    if not (is_uint16 or is_other_grey) or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return None
    from tifffile import TiffFile

    with TiffFile(path) as file:
        planes = file.pages[image.tell()].asarray(squeeze=False)  # [planes, depth, height, width, interleaved channels]
    if planes.dtype != np.uint16:
        planes = to_uint16(path, planes)
    values = planes[:, 0].transpose(1, 2, 0, 3).reshape(*planes.shape[2:4], -1)
    if photometric == _WHITE_IS_ZERO:
        values = 65535 - values
    extra = tags.get(_EXTRA_SAMPLES, ())
    colours = 3 if photometric == _RGB else 1
    has_alpha = values.shape[2] > colours and (not extra or extra[0] != _EXTRA_UNSPECIFIED)
    values = values[..., : colours + has_alpha]
    if has_alpha and extra and extra[0] == _EXTRA_ASSOCIATED_ALPHA:
        # The colours are premultiplied. They are divided by alpha, except where alpha is 0.
        for row in values:
            alpha = row[:, -1:].astype(np.uint32)
            straight = (row[:, :-1].astype(np.uint32) * 65535 + alpha // 2) // np.maximum(alpha, 1)
            row[:, :-1] = np.where(alpha > 0, straight.clip(max=65535), row[:, :-1])
    return values


def stated_precision(path: Path, image: Image.Image) -> tuple[int, str]:
    """Return the bits per channel that the header of an open file states, and a description of its values.

    Only formats that are read with fewer bits are examined. The result for the others is 8.
    """
    bits, header = 8, b""
    if image.format in ("JPEG2000", "AVIF"):
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    if image.mode == "F" or isinstance(getattr(image, "fp", None), BytesIO):  # From `float_tiff_as_integers`.
        return 32, "floating-point values"
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode != "I":  # 32-bit values are at most 65535.
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    elif isinstance(image, PpmImagePlugin.PpmImageFile) and isinstance(image.tile[0].args, tuple):
        bits = int(image.tile[0].args[1]).bit_length()
    elif (start := header.find(b"\xff\x4f\xff\x51")) >= 0:  # ISO/IEC 15444-1, A.5.1: Ssiz of the first component.
        bits = (header[start + 42] & 0x7F) + 1 if len(header) > start + 42 else 8
    elif (start := header.find(b"av1C")) >= 0:  # AV1 in ISOBMFF, 2.3.3: high_bitdepth and twelve_bit.
        bits = {0x40: 10, 0x60: 12}.get(header[start + 6] & 0x60, 8) if len(header) > start + 6 else 8
    elif image.format == "HEIF":
        bits = image.info.get("bit_depth", 8)
    return bits, f"values with {bits} bits per channel"


def describe_tiff(path: Path) -> str | None:
    """Return a description of the first page of a TIFF, or None if its header cannot be read."""
    from tifffile import TiffFile

    try:
        with TiffFile(path) as file:
            page = file.pages.first
            kind, compression = (getattr(code, "name", code) for code in (page.photometric, page.compression))
            return f"{kind}, {page.samplesperpixel} × {page.bitspersample} bits, compression {compression}"
    except Exception:  # tifffile raises many types of exceptions for corrupt files.
        return None


def float_tiff_as_integers(path: Path) -> bytes | None:
    """Return a TIFF whose floating-point pages have headers for 16-bit integers, or None if there are no such pages.

    Pillow cannot open floating-point RGB and 16-bit floating-point TIFF. It can read the size and the metadata from the
    changed header.
    """
    from tifffile import TiffFile

    content, is_changed = bytearray(path.read_bytes()), False
    with TiffFile(path) as tiff:
        for number in range(len(tiff.pages)):
            all_tags = tiff.pages[number].aspage().tags
            tags = [
                tag for tag in (all_tags.get(code) for code in (_BITS_PER_SAMPLE, _SAMPLE_FORMAT)) if tag is not None
            ]
            if len(tags) < 2 or set(np.ravel(tags[1].value)) != {3}:  # 3: IEEE floating point.
                continue
            is_changed = True
            for tag, value in zip(tags, (16, 1), strict=True):
                struct.pack_into(f"{tiff.byteorder}{tag.count}H", content, tag.valueoffset, *[value] * tag.count)
    return bytes(content) if is_changed else None


def write_16bit_png(path: Path, values: PixelValues16, metadata: Mapping[str, Any]) -> None:
    """Write RGB or RGBA values, preceded by metadata from `save_options` (PNG, 3rd edition, 11.3)."""
    import imagecodecs

    encoded = imagecodecs.png_encode(np.ascontiguousarray(values), level=_PNG_LEVEL)
    header_bytes = 33  # The signature (8 bytes) and the IHDR chunk (25 bytes, 13 of them data).
    chunks = []
    if "icc_profile" in metadata:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata["icc_profile"])))
    if "dpi" in metadata:
        per_metre = (round(value / 0.0254) for value in metadata["dpi"])
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if "exif" in metadata:
        chunks.append((b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0")))
    chunks += metadata.get("chunks", ())
    with path.open("wb") as file:
        file.write(encoded[:header_bytes])
        for chunk_type, data in chunks:
            file.write(struct.pack(">I", len(data)) + chunk_type + data)
            file.write(struct.pack(">I", zlib.crc32(chunk_type + data)))
        file.write(memoryview(encoded)[header_bytes:])


def write_tiff(
    path: Path, values: PixelValues, metadata: Mapping[str, Any], compression: int = _NO_COMPRESSION
) -> None:
    """Write RGB or RGBA values with 8 or 16 bits, and metadata from `save_options` (TIFF 6.0, section 6).

    ``compression`` is a value of the tag Compression in `TIFF_COMPRESSIONS`. Compressed values are written in strips.
    """
    height, width, channels = values.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if "exif" in metadata:
        all_tags = Image.Exif()
        all_tags.load(metadata["exif"])
        descriptive = keep_descriptive(all_tags)
        for tag in descriptive:
            directory[tag] = descriptive[tag]
        for tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
            if entries := descriptive.get_ifd(tag):
                directory[tag] = entries
    for tag, data in metadata.get("tags", {}).items():
        directory.tagtype[tag] = 1  # Bytes.
        directory[tag] = data
    rows = height if compression == _NO_COMPRESSION else max(1, _STRIP_BYTES // values[0].nbytes)
    strips = [_compress(values[top : top + rows], compression) for top in range(0, height, rows)]
    sizes = [len(strip) for strip in strips]
    directory[256], directory[257] = width, height
    directory[_BITS_PER_SAMPLE] = (8 * values.itemsize,) * channels
    directory[_COMPRESSION] = compression
    directory[_PHOTOMETRIC] = _RGB
    directory[277], directory[284] = channels, 1  # Samples per pixel, interleaved.
    if compression in _PREDICTED:
        directory[317] = 2  # Horizontal differences.
    if channels == 4:
        directory[_EXTRA_SAMPLES] = 2  # Unassociated alpha: colours are not premultiplied.
    directory[278] = rows
    directory.tagtype[279] = directory.tagtype[_STRIP_OFFSETS] = 4  # Strip sizes and offsets are 32-bit.
    directory[279] = tuple(sizes)
    # Relative to the end of the directory; `save` adds its offset.
    directory[_STRIP_OFFSETS] = tuple(itertools.accumulate(sizes[:-1], initial=0))
    if "icc_profile" in metadata:
        directory[34675] = metadata["icc_profile"]
    if "dpi" in metadata:
        directory[296] = 2  # The next two values are per inch.
        directory[282], directory[283] = metadata["dpi"]
    header = BytesIO()
    directory.save(header)
    with path.open("wb") as file:
        file.write(restore_types(header.getvalue()))
        for strip in strips:
            file.write(strip)


def _compress(rows: PixelValues, compression: int) -> bytes | memoryview:
    """Return one strip in little-endian byte order (TIFF 6.0, sections 9, 13 and 14).

    The predictor replaces values by differences to the pixel on the left, modulo the range of the dtype.
    """
    values = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    if compression == _NO_COMPRESSION:
        return values.data.cast("B")
    if compression in _PREDICTED:
        values = np.concatenate([values[:, :1], np.diff(values, axis=1)], axis=1)
    if compression == _DEFLATE:
        return zlib.compress(values.tobytes(), _TIFF_LEVEL)
    import imagecodecs

    if compression == _PACKBITS:
        return b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in values)
    encode = imagecodecs.lzw_encode if compression == _LZW else imagecodecs.zstd_encode
    return bytes(encode(values.tobytes()))


def join_tiffs(path: Path, pages: Iterable[bytes]) -> None:
    """Write a TIFF with the pages of several little-endian TIFF files, each of which has one page.

    All offsets in a page, including those in its EXIF and GPS directories, are increased by its position (TIFF 6.0,
    section 2). Raise struct.error if the file would be larger than 4 GiB.
    """
    with path.open("wb") as file:
        next_offset = 0
        for page in pages:
            start = file.tell()
            content = bytearray(page)
            first = struct.unpack_from("<I", content, 4)[0]
            end = _move_directory(content, first, start)
            file.write(content + bytes(len(content) % 2))  # Directories begin at an even offset.
            if next_offset:
                file.seek(next_offset)
                file.write(struct.pack("<I", start + first))
                file.seek(0, 2)
            next_offset = start + end


def _move_directory(content: bytearray, directory: int, distance: int) -> int:
    """Increase all offsets in a directory, and return the position of the offset of the next directory."""
    count = struct.unpack_from("<H", content, directory)[0]
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length, position = struct.unpack_from("<HHII", content, entry)
        if length * _TYPE_BYTES.get(kind, 1) > 4:
            struct.pack_into("<I", content, entry + 8, position + distance)
        else:
            position = entry + 8
        if tag in (_STRIP_OFFSETS, EXIF_DIRECTORY, GPS_DIRECTORY, INTEROP_DIRECTORY):
            offsets = struct.unpack_from(f"<{length}I", content, position)  # The writers use 32 bits.
            if tag != _STRIP_OFFSETS:
                _move_directory(content, offsets[0], distance)
            struct.pack_into(f"<{length}I", content, position, *(offset + distance for offset in offsets))
    return directory + 2 + 12 * count
