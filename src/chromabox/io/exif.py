"""Metadata of image files: EXIF, XMP, IPTC, comments, colour profile, resolution and orientation.

Some cameras and programs write invalid metadata. Because an image without metadata is more useful than an error,
invalid entries are omitted, and the functions of this module raise no errors for the content of a file.

Metadata describe the upright sRGB image that `read_image` returns: the orientation is removed, sizes in pixels and
entries for the colour space are updated, and previews, which show the image as it was, are omitted. What is omitted is
named, so that users can be told.
"""

import contextlib
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from chromabox.io.xmp import (
    EXIF_EX_NS,
    EXIF_NS,
    PHOTOSHOP_NS,
    TIFF_NS,
    XMP_NOTE_NS,
    XMP_NS,
    Property,
    edit_xmp,
    read_xmp,
)

ORIENTATION_TAG = 0x0112
EXIF_DIRECTORY, GPS_DIRECTORY, INTEROP_DIRECTORY = 0x8769, 0x8825, 0xA005
_PIXEL_X, _PIXEL_Y = 0xA002, 0xA003
# EXIF 2.32, 4.6.5: colour space and gamma. Interoperability index (DCF 2.0, 3.3.2): Adobe RGB, which Pillow returns as
# text or as bytes.
_COLOUR_SPACE, _SRGB, _GAMMA, _ADOBE_RGB_INDEX = 0xA001, 1, 0xA500, ("R03", "R03\0", b"R03\0")
# Tags of the EXIF, GPS and interoperability directories whose type is UNDEFINED (EXIF 2.32, 4.6.5 to 4.6.8).
_UNDEFINED_TAGS = {
    EXIF_DIRECTORY: (0x8828, 0x9000, 0x9101, 0x927C, 0x9286, 0xA000, 0xA20C, 0xA300, 0xA301, 0xA302, 0xA40B),
    GPS_DIRECTORY: (0x1B, 0x1C),
    INTEROP_DIRECTORY: (0x2,),
}
# Tags that describe the storage of the pixels (TIFF 6.0; TIFF/EP; TIFF technical notes) or that are handled elsewhere
# (XMP, IPTC, Photoshop, profile). They would be invalid in another file. All other tags describe the photograph.
_STORAGE_TAGS = frozenset(
    {*range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294), 301, *range(317, 329), 330}
    | {332, 333, 334, 336, *range(338, 348), 351, 433, 434, 435, *range(512, 522), *range(529, 533), 559, 700, 33421}
    | {33422, 33723, 34377, 34675, 37724, 50706, 50707, 65537}
)
# Storage tags whose content is lost with them.
_LOST_TAGS = {301: "transfer function", 318: "white point", 319: "primary chromaticities", 330: "sub-images"}
_LOST_TAGS |= {37724: "Photoshop layers"}
_XMP_TAG, _IPTC_TAG, _PHOTOSHOP_TAG = 700, 33723, 34377
# Photoshop image resources (Adobe Photoshop File Formats Specification): IPTC, and copies of what is handled elsewhere
# (thumbnails, profile, EXIF, XMP).
_IPTC_RESOURCE, _STALE_RESOURCES = 0x0404, (0x0409, 0x040C, 0x040F, 0x0422, 0x0423, 0x0424)
_PHOTOSHOP_HEADER, _EXTENDED_XMP_HEADER = b"Photoshop 3.0\0", b"http://ns.adobe.com/xmp/extension/\0"
_JPEG_SEGMENT_LIMIT = 65_533
JPEG_XMP_LIMIT = _JPEG_SEGMENT_LIMIT - 29
# PNG chunks that describe the storage of the pixels or the colour space, or that are handled elsewhere.
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PNG_STORAGE = frozenset(b"IHDR PLTE IDAT IEND tRNS sBIT hIST bKGD pHYs eXIf iCCP gAMA cHRM sRGB cICP acTL".split())
_PNG_STORAGE |= {b"fcTL", b"fdAT"}
_MAX_PNG_CHUNK = 16 << 20


@dataclass(frozen=True, kw_only=True)
class FileMetadata:
    """Metadata of a file, which describe the upright sRGB image, and the encoding of the file."""

    exif: bytes | None = None
    """EXIF block. It contains no orientation."""
    icc: bytes | None = None
    """Profile for sRGB if the file has a colour profile."""
    dpi: tuple[float, float] | None = None
    """Resolution in pixels per inch (horizontal, vertical)."""
    xmp: bytes | None = None
    """XMP packet."""
    iptc: bytes | None = None
    """Records of the IPTC Information Interchange Model."""
    photoshop: bytes = b""
    """Other Photoshop image resources."""
    comments: tuple[bytes, ...] = ()
    """Comments of a JPEG or GIF."""
    extended_xmp: tuple[bytes, ...] = ()
    """Segments of a JPEG that continue its XMP packet."""
    png_text: tuple[tuple[bytes, bytes], ...] = ()
    """Types and contents of the text chunks of a PNG."""
    encoding: Mapping[str, Any] = field(default_factory=dict)
    """How the file is encoded: ``compression`` (with a name) of a TIFF, ``lossless`` WebP, ``progressive`` JPEG."""
    omitted: tuple[str, ...] = ()
    """Names of what the file contains and a copy of it cannot contain in any format."""


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8. Return 1 (upright) if the orientation is missing or invalid."""
    try:
        # A TIFF can contain a second orientation in XMP, which `getexif` would return. Other readers use the TIFF tag.
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else image.getexif()
        value = tags.get(ORIENTATION_TAG)
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


def upright_info(image: Image.Image, size: tuple[int, int]) -> dict[str, Any]:
    """Return the ``info`` of a Pillow image, in which EXIF and XMP describe the upright sRGB image.

    ``size`` is the width and height of the upright image. An XMP packet that is not valid is omitted.
    """
    info = {str(name): value for name, value in image.info.items() if name not in ("exif", "Raw profile type exif")}
    for name in {"xmp", "XML:com.adobe.xmp"} & info.keys():
        packet = info.pop(name)
        with contextlib.suppress(ValueError):
            updated = _update_xmp(packet.encode() if isinstance(packet, str) else packet, size, [])
            info[name] = updated.decode() if isinstance(packet, str) else updated
    exif = read_exif(image, size)
    return info if exif is None else {**info, "exif": exif}


def read_exif(image: Image.Image, size: tuple[int, int] | None = None) -> bytes | None:
    """Return the EXIF block of the upright sRGB image. Return None if there is no EXIF or Pillow cannot write it.

    ``size`` is the width and height of the upright image. The pixel sizes in the block are updated to it.
    """
    try:
        exif = keep_descriptive(image.getexif())
        exif.pop(ORIENTATION_TAG, None)
        # `get_ifd` creates missing directories.
        details = exif.get_ifd(EXIF_DIRECTORY) if image.getexif().get_ifd(EXIF_DIRECTORY) else {}
        current = {_COLOUR_SPACE: _SRGB}
        if size is not None:
            current |= {_PIXEL_X: size[0], _PIXEL_Y: size[1]}
        details.update({tag: value for tag, value in current.items() if tag in details})
        details.pop(_GAMMA, None)
        interoperability = details.get(INTEROP_DIRECTORY, {})
        if interoperability.get(1) in _ADOBE_RGB_INDEX:
            details[INTEROP_DIRECTORY] = {**interoperability, 1: "R98"}
        block = b"Exif\0\0" + restore_types(exif.tobytes().removeprefix(b"Exif\0\0"))
        written = Image.Exif()
        written.load(block)
        return block if len(written) > 0 else None
    except Exception:
        return None


def load_directories(image: Image.Image) -> None:
    """Read the EXIF directories of a TIFF before its pixels, because Pillow may close the file after the pixels."""
    if image.format == "TIFF":
        with contextlib.suppress(Exception):
            for directory in (EXIF_DIRECTORY, GPS_DIRECTORY, INTEROP_DIRECTORY):
                image.getexif().get_ifd(directory)


def keep_descriptive(exif: Image.Exif) -> Image.Exif:
    """Return a copy without the tags that describe the storage of the pixels, and without the thumbnail."""
    descriptive = Image.Exif()
    descriptive.endian = exif.endian
    directories = (EXIF_DIRECTORY, GPS_DIRECTORY)
    elsewhere = _STORAGE_TAGS | {*directories, INTEROP_DIRECTORY}
    descriptive.update({tag: _keep_bytes(exif[tag]) for tag in exif if tag not in elsewhere})
    for directory in directories:
        entries = {tag: _keep_bytes(value) for tag, value in exif.get_ifd(directory).items()}
        if isinstance(entries.get(INTEROP_DIRECTORY), int):  # The offset of a directory, instead of its content.
            del entries[INTEROP_DIRECTORY]
            entries[INTEROP_DIRECTORY] = exif.get_ifd(INTEROP_DIRECTORY)
        if entries:
            descriptive.get_ifd(directory).update(entries)
    return descriptive


def restore_types(tiff: bytes) -> bytes:
    """Return directories written by Pillow with the type UNDEFINED where Pillow has written the type BYTE instead.

    ``tiff`` begins with the header of a TIFF.
    """
    result = bytearray(tiff)
    order = "<" if tiff[:2] == b"II" else ">"
    directories = [(0, *struct.unpack_from(f"{order}I", tiff, 4))]
    for directory, start in directories:
        for entry in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", tiff, start)[0], 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag in _UNDEFINED_TAGS:
                directories.append((tag, *struct.unpack_from(f"{order}I", tiff, entry + 8)))
            elif kind == 1 and tag in _UNDEFINED_TAGS.get(directory, ()):
                struct.pack_into(f"{order}H", result, entry + 2, 7)
    return bytes(result)


def _keep_bytes(value: Any) -> Any:
    """Return text outside ASCII as the bytes of the file, which Pillow decodes as Latin-1 and would write as "?"."""
    return value.encode("latin-1", "replace") if isinstance(value, str) and not value.isascii() else value


def read_metadata(path: Path, image: Image.Image, size: tuple[int, int], icc: bytes | None) -> FileMetadata:
    """Return the metadata of the file. ``image`` is the open file, after its pixels were decoded.

    ``size`` is the width and height of the upright image. The pixel sizes in EXIF and XMP are updated to it. ``icc`` is
    the profile of the pixels after their conversion to sRGB.
    """
    exif = read_exif(image, size)
    found: dict[str, Any] = {"exif": exif, "icc": icc, "dpi": read_dpi(image), "xmp": None, "omitted": []}
    try:
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            _read_jpeg(image, found)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            _read_tiff(image, found)
        elif image.format == "PNG":
            _read_png(path, image, found)
        elif image.format == "WEBP":
            found |= {"xmp": image.info.get("xmp"), "encoding": {"lossless": True} if _is_lossless(path) else {}}
        elif image.format in ("AVIF", "HEIF"):
            found["xmp"] = image.info.get("xmp")
        elif isinstance(comment := image.info.get("comment"), bytes):
            found["comments"] = (comment,)
        if exif is None and set(image.getexif()) - _STORAGE_TAGS - {ORIENTATION_TAG}:
            found["omitted"].append("damaged EXIF")
        if image.format != "TIFF" and image.getexif().get_ifd(ExifTags.IFD.IFD1):
            found["omitted"].append("EXIF thumbnail")
    except Exception:
        found["omitted"].append("damaged metadata")
    if isinstance(found["xmp"], str):
        found["xmp"] = found["xmp"].encode()
    if found["xmp"]:
        try:
            found["xmp"] = _update_xmp(found["xmp"], size, found["omitted"])
        except ValueError:
            found |= {"xmp": None, "omitted": [*found["omitted"], "damaged XMP"]}
    return FileMetadata(**{**found, "omitted": tuple(dict.fromkeys(found["omitted"]))})


def _update_xmp(packet: bytes, size: tuple[int, int], omitted: list[str]) -> bytes:
    """Return the packet with the properties of an upright sRGB image. Append the names of other removed properties."""
    width, height = (str(side) for side in size)
    current: dict[Property, str | None] = {(TIFF_NS, "Orientation"): None, (XMP_NS, "Thumbnails"): None}
    for names, value in ((("PixelXDimension", "ImageWidth"), width), (("PixelYDimension", "ImageLength"), height)):
        current |= {(EXIF_NS, names[0]): value, (TIFF_NS, names[1]): value}
    # The file itself states how its pixels are stored. These copies would describe a greyscale image (Photoshop: 3 is
    # RGB).
    stored = ("PhotometricInterpretation", "SamplesPerPixel", "BitsPerSample", "Compression", "PlanarConfiguration")
    current |= {(TIFF_NS, name): None for name in stored}
    current |= {(PHOTOSHOP_NS, "ColorMode"): "3", (PHOTOSHOP_NS, "ICCProfile"): None}
    current |= {(TIFF_NS, name): None for name in ("WhitePoint", "PrimaryChromaticities", "TransferFunction")}
    current |= {(EXIF_NS, "ColorSpace"): str(_SRGB), (EXIF_EX_NS, "Gamma"): None}
    current |= {(EXIF_EX_NS, "InteroperabilityIndex"): "R98"}
    properties = read_xmp(packet)
    if (XMP_NS, "Thumbnails") in properties:
        omitted.append("XMP thumbnail")
    changes = {name: value for name, value in current.items() if name in properties}
    return edit_xmp(packet, changes) if changes else packet


def _read_jpeg(image: JpegImagePlugin.JpegImageFile, found: dict[str, Any]) -> None:
    """Read the segments of a JPEG (ISO/IEC 10918-1, B.2.4; ISO 16684-3, 1.1.3)."""
    resources = b""
    comments, extended, omitted = [], [], found["omitted"]
    for name, data in image.applist:
        if name == "COM":
            comments.append(data)
        elif data.startswith(_PHOTOSHOP_HEADER):
            resources += data.removeprefix(_PHOTOSHOP_HEADER)
        elif data.startswith(_EXTENDED_XMP_HEADER):
            extended.append(data)
        elif data.startswith(b"MPF\0"):
            omitted.append("further pictures of a multi-picture file")
        elif name == "APP11" and data.startswith(b"JP"):
            omitted.append("C2PA manifest (JUMBF)")
        elif data.startswith(b"JFXX"):
            omitted.append("JFIF thumbnail")
        elif not data.startswith((b"JFIF", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"Adobe")):
            omitted.append(f"JPEG segment {name}")
    found["xmp"] = image.info.get("xmp")
    found["iptc"], found["photoshop"] = _split_resources(resources)
    found["comments"], found["extended_xmp"] = tuple(comments), tuple(extended)
    found["encoding"] = {"progressive": True} if image.info.get("progressive") else {}


def _split_resources(resources: bytes) -> tuple[bytes | None, bytes]:
    """Return the IPTC records and the other Photoshop image resources, except copies of other metadata."""
    iptc, others, start = None, b"", 0
    while resources[start : start + 4] == b"8BIM" and len(resources) >= start + 12:
        (resource,) = struct.unpack_from(">H", resources, start + 4)
        # The name is preceded by its length. Name and content are padded to an even length.
        content = start + 6 + (resources[start + 6] // 2 + 1) * 2 + 4
        size = int.from_bytes(resources[content - 4 : content], "big")
        end = content + size + size % 2
        if resource == _IPTC_RESOURCE:
            iptc = resources[content : content + size]
        elif resource not in _STALE_RESOURCES:
            others += resources[start:end].ljust(end - start, b"\0") if end - len(resources) <= 1 else b""
        start = end
    return iptc, others


def _read_tiff(image: TiffImagePlugin.TiffImageFile, found: dict[str, Any]) -> None:
    """Read tags of a TIFF (TIFF 6.0; Adobe Photoshop TIFF Technical Notes; ISO 16684-3, 1.1.9)."""
    content: Mapping[int, bytes] = image.tag.tagdata
    iptc, found["photoshop"] = _split_resources(content.get(_PHOTOSHOP_TAG, b""))
    records = content.get(_IPTC_TAG, b"")
    if records[:1] != b"\x1c" and records[3:4] == b"\x1c":  # Stored as 32-bit integers with the other byte order.
        records = np.frombuffer(records[: len(records) // 4 * 4], ">u4").astype("<u4").tobytes()
    found["iptc"] = records.rstrip(b"\0") or iptc  # Integers are padded with zeros.
    found["xmp"] = content.get(_XMP_TAG) or None
    code = image.tag_v2.get(259, 1)
    found["encoding"] = {"compression": code, "compression_name": TiffImagePlugin.COMPRESSION_INFO.get(code, code)}
    found["omitted"] += [f"TIFF {name}" for tag, name in _LOST_TAGS.items() if tag in content]


def _read_png(path: Path, image: Image.Image, found: dict[str, Any]) -> None:
    """Read the text chunks of a PNG (PNG, 3rd edition, 11.3.3). Texts that contain XMP, EXIF or IPTC are parsed."""
    texts, omitted = [], found["omitted"]
    for kind, data in _png_chunks(path):
        keyword = data.partition(b"\0")[0]
        if kind not in _PNG_TEXT:
            name = kind.decode() if kind.isalpha() else "of an invalid type"
            omitted.append("PNG modification time" if kind == b"tIME" else f"PNG chunk {name}")
        elif keyword == b"XML:com.adobe.xmp":
            found["xmp"] = image.info.get("xmp")
        elif profile := re.fullmatch(rb"Raw profile type (exif|APP1|xmp|iptc|8bim|icc|icm)", keyword):
            _read_raw_profile(profile[1], str(image.info.get(keyword.decode(), "")), found)
        else:
            texts.append((kind, data))
    found["png_text"] = tuple(texts)
    if image.info.get("interlace"):
        omitted.append("PNG interlacing")


def _read_raw_profile(kind: bytes, text: str, found: dict[str, Any]) -> None:
    """Parse metadata that ImageMagick and ExifTool store as text: a name, a length and hexadecimal digits, in lines."""
    content = bytes.fromhex("".join(text.split("\n")[3:]))
    if kind == b"xmp" or (kind == b"APP1" and content.startswith(b"http://ns.adobe.com/xap/1.0/\0")):
        found["xmp"] = found["xmp"] or content.removeprefix(b"http://ns.adobe.com/xap/1.0/\0")
    elif kind == b"APP1":
        found["omitted"].append("PNG text with EXIF")
    elif kind in (b"icc", b"icm"):
        found["omitted"].append("PNG text with a colour profile")
    elif kind in (b"iptc", b"8bim"):  # Both may contain image resources.
        iptc, found["photoshop"] = _split_resources(content)
        found["iptc"] = iptc or (content if content[:1] == b"\x1c" else None)


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield the types and contents of the chunks that do not describe the storage of the pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            size, kind = int.from_bytes(header[:4], "big"), header[4:]
            if kind in _PNG_STORAGE:
                file.seek(size + 4, 1)
            elif size > _MAX_PNG_CHUNK:
                raise ValueError(f"a chunk has {size:,} bytes")
            else:
                data = file.read(size + 4)[:-4]
                yield kind, data


def _is_lossless(path: Path) -> bool:
    """Return whether a WebP is lossless: whether its first image chunk is ``VP8L`` (WebP Container Specification)."""
    with path.open("rb") as file:
        start = file.read(12)
        while start and len(header := file.read(8)) == 8:
            kind, size = header[:4], int.from_bytes(header[4:], "little")
            if kind in (b"VP8L", b"VP8 "):
                return kind == b"VP8L"
            # The data of a frame begin with 16 bytes of parameters, followed by chunks.
            file.seek(16 if kind == b"ANMF" else size + size % 2, 1)
    return False


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Return the resolution (horizontal, vertical) in dots per inch, or None unless both values are in (0, 10⁶).

    Return None if the file states no resolution or only the aspect ratio of the pixels, for which Pillow returns 1 dpi.
    """
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile) and 282 not in image.tag_v2:
            return None
        if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit") and image.getexif().get(296) == 1:
            return None
        horizontal, vertical = (float(value) for value in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (horizontal, vertical) if 0 < horizontal < 1e6 and 0 < vertical < 1e6 else None


def save_options(image_format: str, metadata: FileMetadata) -> dict[str, Any]:
    """Return the keyword arguments of `Image.save` for the metadata that the format supports with RGB pixels.

    For TIFF, ``tags`` contains tags to add to the directory. For PNG, ``chunks`` contains text chunks.
    """
    options: dict[str, Any] = {}
    exif, icc, dpi = metadata.exif, metadata.icc, metadata.dpi
    if image_format not in ("BMP", "PPM"):
        # ICC.1:2022, 7.2: signature at byte 36, colour space of the data at byte 16. Images are always written as RGB.
        # With a grey or CMYK profile, viewers would show wrong colours or reject the file.
        if icc is not None and len(icc) > 128 and icc[36:40] == b"acsp" and icc[16:20] == b"RGB ":
            options["icc_profile"] = icc
        if exif is not None and (image_format != "JPEG" or len(exif) <= _JPEG_SEGMENT_LIMIT):
            options["exif"] = exif
    if dpi is not None and image_format not in ("WEBP", "PPM"):
        options["dpi"] = dpi
    return options | _format_options(image_format, metadata)


def _format_options(image_format: str, metadata: FileMetadata) -> dict[str, Any]:
    xmp, iptc = metadata.xmp, metadata.iptc
    if xmp is not None and metadata.extended_xmp and image_format != "JPEG":
        xmp = edit_xmp(xmp, {(XMP_NOTE_NS, "HasExtendedXMP"): None})
    if image_format == "JPEG":
        resources = metadata.photoshop
        if iptc is not None:
            resources += b"8BIM\x04\x04\0\0" + struct.pack(">I", len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
        limit = _JPEG_SEGMENT_LIMIT - len(_PHOTOSHOP_HEADER)
        parts = [resources[start : start + limit] for start in range(0, len(resources), limit)]
        segments = [(0xE1, data) for data in metadata.extended_xmp]
        segments += [(0xED, _PHOTOSHOP_HEADER + part) for part in parts]
        segments += [(0xFE, comment) for comment in metadata.comments]
        extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)
        options: dict[str, Any] = {"extra": extra} if extra else {}
        return options | ({"xmp": xmp} if xmp is not None and len(xmp) <= JPEG_XMP_LIMIT else {})
    if image_format == "WEBP":
        return {} if xmp is None else {"xmp": xmp}
    if image_format == "TIFF":
        all_tags = {_XMP_TAG: xmp, _IPTC_TAG: iptc, _PHOTOSHOP_TAG: metadata.photoshop}
        tags = {tag: data for tag, data in all_tags.items() if data}
        return {"tags": tags} if tags else {}
    if image_format == "PNG":
        chunks = list(metadata.png_text)
        if xmp is not None:
            chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
        if iptc is not None:  # PNG has no chunk for IPTC. This is the convention of ImageMagick and ExifTool.
            chunks.append((b"tEXt", b"Raw profile type iptc\0\niptc\n%8d\n%s\n" % (len(iptc), iptc.hex().encode())))
        chunks += [(b"iTXt", b"Comment\0\0\0\0\0" + _to_utf8(comment)) for comment in metadata.comments]
        return {"chunks": chunks} if chunks else {}
    return {}


def _to_utf8(text: bytes) -> bytes:
    """Return text of an unknown encoding as UTF-8. Text that is not UTF-8 is taken as Latin-1."""
    try:
        text.decode()
        return text
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()


def list_omitted(image_format: str, metadata: FileMetadata) -> list[str]:
    """Return the names of the metadata that a file in this format does not contain (see `save_options`)."""
    options = save_options(image_format, metadata)
    has_xmp = "xmp" in options or image_format in ("PNG", "TIFF")
    lost = {
        "EXIF": metadata.exif is not None and "exif" not in options,
        "colour profile": metadata.icc is not None and "icc_profile" not in options,
        "resolution": metadata.dpi is not None and "dpi" not in options,
        "XMP": metadata.xmp is not None and not has_xmp,
        "extended XMP": bool(metadata.extended_xmp) and image_format != "JPEG",
        "IPTC": metadata.iptc is not None and image_format not in ("JPEG", "TIFF", "PNG"),
        "Photoshop resources": bool(metadata.photoshop) and image_format not in ("JPEG", "TIFF"),
        "comments": bool(metadata.comments) and image_format not in ("JPEG", "PNG"),
        "PNG text": bool(metadata.png_text) and image_format != "PNG",
    }
    return [*metadata.omitted, *(name for name, is_lost in lost.items() if is_lost)]
