"""What a picture file says beside its pixels: EXIF, colour profile, resolution, orientation.

Cameras and programs write metadata that breaks every rule. A picture without it is worth more than no picture, so
nothing here raises for a file's content: what cannot be understood is left out.
"""

from typing import Any

from PIL import Image, TiffImagePlugin

_ORIENTATION = 0x0112
EXIF_DIRECTORY, GPS_DIRECTORY = 0x8769, 0x8825
# What describes the photograph; a TIFF's other tags describe its own strips and are wrong in any other file.
# Image description, make, model, software, date, artist, copyright.
_DESCRIPTIVE_TAGS = (270, 271, 272, 305, 306, 315, 33432)
_JPEG_EXIF_LIMIT = 65_533


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where it is missing or means nothing."""
    try:
        # A TIFF may say it a second time in XMP, which Pillow would mix in; the tag is what its readers go by.
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else image.getexif()
        value = tags.get(_ORIENTATION)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_exif(image: Image.Image) -> bytes | None:
    """The EXIF block without its orientation; None if there is none, or none that Pillow can write again."""
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
    """Only what describes the photograph: descriptive tags, the EXIF directory and the place."""
    kept = Image.Exif()
    kept.update({tag: exif[tag] for tag in _DESCRIPTIVE_TAGS if tag in exif})
    for directory in (EXIF_DIRECTORY, GPS_DIRECTORY):
        if inner := exif.get_ifd(directory):
            kept.get_ifd(directory).update(inner)
    return kept


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """A resolution that can be written again: two finite numbers above 0, else None."""
    try:
        across, down = (float(side) for side in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def save_options(
    image_format: str, exif: bytes | None, icc: bytes | None, dpi: tuple[float, float] | None
) -> dict[str, Any]:
    """Of the metadata what the format `kind` and red, green and blue pixels allow, in the words of `Image.save`."""
    options: dict[str, Any] = {}
    if icc is not None and _is_rgb_profile(icc) and image_format not in ("BMP", "PPM"):
        options["icc_profile"] = icc
    if (
        exif is not None
        and image_format not in ("BMP", "PPM")
        and (image_format != "JPEG" or len(exif) <= _JPEG_EXIF_LIMIT)
    ):
        options["exif"] = exif
    if dpi is not None and image_format not in ("WEBP", "PPM"):
        options["dpi"] = dpi
    return options


def _is_rgb_profile(icc: bytes) -> bool:
    """Whether this is a profile (ICC.1:2022, 7.2: signature at byte 36) of RGB data (at 16).

    What is written is always RGB: a grey or CMYK profile would make viewers misread it or refuse the file.
    """
    return len(icc) > 128 and icc[36:40] == b"acsp" and icc[16:20] == b"RGB "
