"""PNG and TIFF of 16 bits for each channel, which Pillow reads and writes at 8.

Pillow still opens the file, tells its size and reads its metadata; tifffile and imagecodecs give the pixels. They are
imported where they are used, because they take a third of a second that most pictures need not wait for.
"""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from PIL import Image, PngImagePlugin, TiffImagePlugin

from chromabox.io.exif import EXIF_DIRECTORY, GPS_DIRECTORY, keep_descriptive

# Its complaints about odd tags would reach the terminal; what matters raises.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# The fastest of zlib's levels: of sixteen bits the lower eight are mostly noise, which no level makes smaller.
_PNG_LEVEL = 1
_BITS_PER_SAMPLE, _PHOTOMETRIC, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 258, 262, 338, 339
_WHITE_IS_ZERO, _RGB = 0, 2
_EXTRA_UNSPECIFIED, _EXTRA_ASSOCIATED_ALPHA = 0, 1

PixelValues16 = UInt16[np.ndarray, "height width channels"]


def read_16bit(path: Path, image: Image.Image) -> PixelValues16 | None:
    """The values of a PNG or TIFF of 16 bits, as stored and not yet turned; None if `image`, opened, is of other kinds.

    Channels: 1 grey, 2 grey and alpha, 3 red, green and blue, 4 these and alpha. Raises whatever the decoders raise
    for damaged files.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        return _read_png(path)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_16bit_tiff(image):
        return _read_tiff(path, image)
    return None


def write_16bit_png(
    path: Path,
    values: PixelValues16,
    *,
    exif: bytes | None = None,
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Writes RGB or RGBA, with the metadata in chunks before the pixels (PNG, third edition, 11.3)."""
    import imagecodecs

    encoded = imagecodecs.png_encode(np.ascontiguousarray(values), level=_PNG_LEVEL)
    header = 33  # The signature and the first chunk, IHDR, of 13 bytes.
    with path.open("wb") as file:
        file.write(encoded[:header])
        if icc_profile is not None:
            file.write(_png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
        if dpi is not None:
            per_metre = (round(side / 0.0254) for side in dpi)
            file.write(_png_chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1)))
        if exif is not None:
            file.write(_png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
        file.write(memoryview(encoded)[header:])


def write_16bit_tiff(
    path: Path,
    values: PixelValues16,
    *,
    exif: bytes | None = None,
    icc_profile: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Writes RGB or RGBA in one strip, not compressed, as Pillow does at 8 bits (TIFF 6.0, section 6)."""
    height, width, channels = values.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if exif is not None:
        whole = Image.Exif()
        whole.load(exif)
        described = keep_descriptive(whole)
        for tag in described:
            directory[tag] = described[tag]
        for tag in (EXIF_DIRECTORY, GPS_DIRECTORY):
            if inner := described.get_ifd(tag):
                directory[tag] = inner
    directory[256], directory[257] = width, height
    directory[_BITS_PER_SAMPLE] = (16,) * channels
    directory[259] = 1  # Not compressed.
    directory[_PHOTOMETRIC] = _RGB
    directory[277], directory[284] = channels, 1  # Samples for each pixel, side by side.
    if channels == 4:
        directory[_EXTRA_SAMPLES] = 2  # Alpha that the colours are not multiplied by.
    directory[278] = height
    directory.tagtype[279] = directory.tagtype[273] = 4  # Sizes and places in 32 bits.
    directory[279] = (values.nbytes,)
    directory[273] = (0,)  # Counted from the directory's end; `save` adds where that is.
    if icc_profile is not None:
        directory[34675] = icc_profile
    if dpi is not None:
        directory[296] = 2  # The next two are for each inch.
        directory[282], directory[283] = dpi
    with path.open("wb") as file:
        directory.save(file)
        file.write(np.ascontiguousarray(values, "<u2").data)


def _read_png(path: Path) -> PixelValues16 | None:
    encoded = path.read_bytes()
    if encoded[12:16] != b"IHDR" or encoded[24] != 16:
        return None
    import imagecodecs

    values = imagecodecs.png_decode(encoded)  # A transparent colour comes as alpha.
    return values[..., None] if values.ndim == 2 else values


def _is_16bit_tiff(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether its channels are unsigned integers of 16 bits, grey or RGB."""
    tags = image.tag_v2
    is_wide = set(tags.get(_BITS_PER_SAMPLE, (1,))) == {16} and set(tags.get(_SAMPLE_FORMAT, (1,))) == {1}
    return is_wide and tags.get(_PHOTOMETRIC) in (_WHITE_IS_ZERO, 1, _RGB)


def _read_tiff(path: Path, image: TiffImagePlugin.TiffImageFile) -> PixelValues16:
    from tifffile import TiffFile

    with TiffFile(path) as file:
        planes = file.pages.first.asarray(squeeze=False)  # [planes, depth, height, width, channels side by side]
    values = planes[:, 0].transpose(1, 2, 0, 3).reshape(*planes.shape[2:4], -1)
    photometric = image.tag_v2[_PHOTOMETRIC]
    if photometric == _WHITE_IS_ZERO:
        values = 65535 - values
    extra = image.tag_v2.get(_EXTRA_SAMPLES, ())
    colours = 3 if photometric == _RGB else 1
    has_alpha = values.shape[2] > colours and (not extra or extra[0] != _EXTRA_UNSPECIFIED)
    values = values[..., : colours + has_alpha]
    if has_alpha and extra and extra[0] == _EXTRA_ASSOCIATED_ALPHA:
        _unpremultiply_alpha(values)
    return values


def _unpremultiply_alpha(values: PixelValues16) -> None:
    """Undoes, in place, the multiplication of the colours by their alpha; where that is 0, they stay."""
    for row in values:
        alpha = row[:, -1:].astype(np.uint32)
        full = (row[:, :-1].astype(np.uint32) * 65535 + alpha // 2) // np.maximum(alpha, 1)
        row[:, :-1] = np.where(alpha > 0, full.clip(max=65535), row[:, :-1])


def _png_chunk(chunk_type: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(chunk_type + data))
