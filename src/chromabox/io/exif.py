"""Metadata of image files: EXIF, colour profile, resolution and orientation.

Some cameras and programs write invalid metadata. Because an image without metadata is more useful than an error,
invalid entries are omitted, and the functions of this module raise no errors for the content of a file.
"""

import re
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(
    rb"""tiff:Orientation\s*=\s*("[^"]*"|'[^']*')|<tiff:Orientation>[^<]*</tiff:Orientation>"""
)
EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
# Tags that describe the photograph: image description, make, model, software, date, artist and copyright. The other
# tags of a TIFF describe its strips and would be invalid in another file.
_DESCRIPTIVE_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_JPEG_EXIF_LIMIT = 65_533


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. Return 1 (upright) if the orientation is missing or invalid."""
    try:
        # A TIFF can contain a second orientation in XMP, which `getexif` would return. Other readers use the TIFF tag.
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else image.getexif()
        value = tags.get(_ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def apply_orientation(values: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of values [height, width, ...] in which the EXIF orientation (1 to 8) has been applied."""
    # EXIF 2.32, 4.6.4 A, tag 0x0112: positions of row 0 and column 0.
    upright = values.swapaxes(0, 1) if orientation >= 5 else values
    if orientation in (3, 4, 7, 8):
        upright = upright[::-1]
    return upright[:, ::-1] if orientation in (2, 3, 6, 7) else upright


def upright_info(image: Image.Image) -> dict[str, Any]:
    """Return the ``info`` of a Pillow image with its EXIF block, without the orientation in EXIF and XMP."""
    info = {str(name): value for name, value in image.info.items() if name not in ("exif", "Raw profile type exif")}
    for name in ("xmp", "XML:com.adobe.xmp"):
        value = info.get(name)
        if isinstance(value, bytes):
            info[name] = _XMP_ORIENTATION.sub(b"", value)
        elif isinstance(value, str):
            info[name] = _XMP_ORIENTATION.sub(b"", value.encode(errors="surrogateescape")).decode(errors="replace")
    exif = read_exif(image)
    return info if exif is None else {**info, "exif": exif}


def read_exif(image: Image.Image) -> bytes | None:
    """Return the EXIF block without the orientation. Return None if there is no EXIF or Pillow cannot write it."""
    try:
        exif = image.getexif()
        if image.format == "TIFF":
            exif = keep_descriptive(exif)
        exif.pop(_ORIENTATION, None)
        has_content = len(exif) > 0 or bool(exif.get_ifd(EXIF_DIRECTORY)) or bool(exif.get_ifd(GPS_DIRECTORY))
        return exif.tobytes() if has_content else None
    except Exception:
        return None


def keep_descriptive(exif: Image.Exif) -> Image.Exif:
    """Return a copy that contains only the descriptive tags, the EXIF directory and the GPS directory."""
    descriptive = Image.Exif()
    descriptive.update({tag: exif[tag] for tag in _DESCRIPTIVE_TAGS if tag in exif})
    for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if entries := exif.get_ifd(directory):
            descriptive.get_ifd(directory).update(entries)
    return descriptive


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution (horizontal, vertical) in dots per inch, or None unless both values are in (0, 10⁶)."""
    try:
        horizontal, vertical = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e6 and 0 < vertical < 1e6 else None


def save_options(
    image_format: str, exif: bytes | None, icc: bytes | None, dpi: tuple[float, float] | None
) -> dict[str, Any]:
    """Return the keyword arguments of `Image.save` for the metadata that the format supports with RGB pixels."""
    options: dict[str, Any] = {}
    if image_format not in ("BMP", "PPM"):
        # ICC.1:2022, 7.2: signature at byte 36, colour space of the data at byte 16. Images are always written as RGB.
        # With a grey or CMYK profile, viewers would show wrong colours or reject the file.
        if icc is not None and len(icc) > 128 and icc[36:40] == b"acsp" and icc[16:20] == b"RGB ":
            options["icc_profile"] = icc
        if exif is not None and (image_format != "JPEG" or len(exif) <= _JPEG_EXIF_LIMIT):
            options["exif"] = exif
    if dpi is not None and image_format not in ("WEBP", "PPM"):
        options["dpi"] = dpi
    return options
