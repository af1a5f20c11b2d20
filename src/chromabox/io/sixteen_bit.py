"""PNG and TIFF with 16 bits per channel, which Pillow reads and writes at 8 bits, and floating-point TIFF.

Pillow opens the file and reads the size and the metadata; tifffile and imagecodecs decode the pixels. These two
packages are imported where they are used, because their import takes a third of a second and most images do not
require them.
"""

import logging
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image, PngImagePlugin, TiffImagePlugin

from chromabox.errors import ChromaboxError
from chromabox.io.exif import EXIF_DIRECTORY, GPS_DIRECTORY, keep_descriptive

# tifffile's warnings about unusual tags are not shown on the terminal. Errors are raised.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# This is the fastest zlib level. The lower 8 of 16 bits are mostly noise, which no level can compress.
_PNG_LEVEL = 1
_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_EXTRA_UNSPECIFIED, _EXTRA_ASSOCIATED_ALPHA = 0, 1

PixelValues16 = UInt16[np.ndarray, "height width channels"]
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


def read_16bit(path: Path, image: Image.Image) -> UInt16[np.ndarray, "..."] | None:
    """Return the values of a 16-bit PNG or TIFF in the stored orientation.

    Return None for any other format or bit depth. `image` is the open file. The shape is [height, width] or [height,
    width, channels]. The channels are grey (1), grey and alpha (2), RGB (3) or RGBA (4). Exceptions that the
    decoders raise for corrupt files are passed on.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        encoded = path.read_bytes()
        if encoded[12:16] != b"IHDR" or encoded[24] != 16:
            return None
        import imagecodecs

        return imagecodecs.png_decode(encoded)  # A transparent colour is returned as alpha.
    return _read_tiff(path, image) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def _read_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> PixelValues16 | None:
    """Return the values of a greyscale or RGB TIFF with unsigned 16-bit integers, or None for any other TIFF.

    Floating-point values, for which `float_tiff_as_integers` has changed the header in `image`, are scaled to 16 bits.
    """
    tags = image.tag_v2
    photometric = tags.get(_PHOTOMETRIC)
    is_uint16 = set(tags.get(_BITS_PER_SAMPLE, (1,))) == {16} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    if not is_uint16 or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return None
    from tifffile import TiffFile

    with TiffFile(path) as file:
        planes = file.pages.first.asarray(squeeze=False)  # [planes, depth, height, width, interleaved channels]
    if planes.dtype.kind == "f":
        if (found := range_issue(planes, 1)) is not None:
            raise ChromaboxError(f"{path}: unsupported values {found}; expected 0 to 1")
        planes = np.rint(planes.clip(0, 1) * np.float64(65535)).astype(np.uint16)
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


def float_tiff_as_integers(path: Path) -> bytes | None:
    """Return a floating-point TIFF with a header for 16-bit integers, or None for any other file.

    Pillow cannot open floating-point RGB and 16-bit floating-point TIFF. It can read the size and the metadata from the
    changed header.
    """
    with path.open("rb") as file:
        if file.read(2) not in (b"II", b"MM"):
            return None
    from tifffile import TiffFile

    content = bytearray(path.read_bytes())
    with TiffFile(path) as tiff:
        found = [tiff.pages.first.tags.get(code) for code in (_BITS_PER_SAMPLE, _SAMPLE_FORMAT)]
        tags = [tag for tag in found if tag is not None]
        if len(tags) < 2 or set(np.ravel(tags[1].value)) != {3}:  # 3: IEEE floating point.
            return None
        for tag, value in zip(tags, (16, 1), strict=True):
            struct.pack_into(f"{tiff.byteorder}{tag.count}H", content, tag.valueoffset, *[value] * tag.count)
    return bytes(content)


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
    with path.open("wb") as file:
        file.write(encoded[:header_bytes])
        for chunk_type, data in chunks:
            file.write(struct.pack(">I", len(data)) + chunk_type + data)
            file.write(struct.pack(">I", zlib.crc32(chunk_type + data)))
        file.write(memoryview(encoded)[header_bytes:])


def write_16bit_tiff(path: Path, values: PixelValues16, metadata: Mapping[str, Any]) -> None:
    """Write RGB or RGBA values in one uncompressed strip, and metadata from `save_options` (TIFF 6.0, section 6)."""
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
    directory[256], directory[257] = width, height
    directory[_BITS_PER_SAMPLE] = (16,) * channels
    directory[259] = 1  # No compression.
    directory[_PHOTOMETRIC] = _RGB
    directory[277], directory[284] = channels, 1  # Samples per pixel, interleaved.
    if channels == 4:
        directory[_EXTRA_SAMPLES] = 2  # Unassociated alpha: colours are not premultiplied.
    directory[278] = height
    directory.tagtype[279] = directory.tagtype[273] = 4  # Strip sizes and offsets are 32-bit.
    directory[279] = (values.nbytes,)
    directory[273] = (0,)  # Relative to the end of the directory; `save` adds its offset.
    if "icc_profile" in metadata:
        directory[34675] = metadata["icc_profile"]
    if "dpi" in metadata:
        directory[296] = 2  # The next two values are per inch.
        directory[282], directory[283] = metadata["dpi"]
    with path.open("wb") as file:
        directory.save(file)
        file.write(np.ascontiguousarray(values, "<u2").data)
