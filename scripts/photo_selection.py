"""Selection of photographs in colour, and their encoding as training data. ``build_photos.py`` lists the criteria."""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageOps

from chromabox.colour.chroma.lab import rgb_to_lab

#: Size from which on a file is omitted.
MAX_FILE_BYTES = 4 << 20
STORED_SIDE, MAX_ASPECT = 256, 2.2
#: Size of the thumbnail for the tests of colours, and their thresholds.
THUMBNAIL_SIDE, MIN_CHROMA, MIN_CHROMA_DEVIATION = 48, 5, 3
WHITE, MAX_WHITE_FRACTION, BLACK, MAX_BLACK_FRACTION, MAX_FLAT_FRACTION = 245, 0.3, 10, 0.6, 0.75
#: JPEG qualities. Chroma is the target of the model, and lightness only its input.
LUMA_QUALITY, CHROMA_QUALITY = 60, 90
#: Maximum size of a JPEG file that is stored as it is, because it needs no change.
MAX_COPIED_BYTES = 32 << 10
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Photo:
    """A photograph as it is stored, with the difference hashes of the image and its mirror image."""

    data: bytes
    size: tuple[int, int]
    original_size: tuple[int, int]
    hash: int
    mirrored_hash: int


def prepare(data: bytes | None, min_side: int) -> Photo | str:
    """Return a photograph as it is stored, or the reason why it is omitted."""
    if data is None or len(data) >= MAX_FILE_BYTES:
        return "missing"
    try:
        image, original_size, is_unchanged = decode(data)
    except Exception:  # A damaged file can raise nearly any error.
        return "damaged"
    if image is None:
        return "mode"
    if min(original_size) < min_side:
        return "small"
    if max(original_size) > MAX_ASPECT * min(original_size):
        return "aspect"
    scale = STORED_SIDE / min(image.size)
    if scale < 1:
        width, height = (max(STORED_SIDE, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if reason := find_unsuitable(image):
        return reason
    stored = strip_metadata(data) if is_unchanged and image.size == original_size else None
    if stored is None or len(stored) > MAX_COPIED_BYTES:
        stored = encode(image)
    return Photo(stored, image.size, original_size, *difference_hashes(image))


def decode(data: bytes) -> tuple[Image.Image | None, tuple[int, int], bool]:
    """Return an upright image in sRGB, the size of the original, and whether the data are a JPEG with these pixels.

    The image is None if it is not an opaque RGB image. A large JPEG is decoded at a reduced size.
    """
    image: Image.Image = Image.open(io.BytesIO(data))
    size, is_jpeg = image.size, image.format == "JPEG"
    if image.mode in ("RGBA", "P", "PA", "RGBX"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            return None, size, False
        image = image.convert("RGB")
    elif image.mode != "RGB":
        return None, size, False
    elif is_jpeg and min(size) >= 4 * STORED_SIDE:
        image.draft("RGB", (size[0] * 2 * STORED_SIDE // min(size), size[1] * 2 * STORED_SIDE // min(size)))
    icc = image.info.get("icc_profile")
    image.load()
    is_turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    if is_turned:
        image = ImageOps.exif_transpose(image)
    is_srgb = not icc or b"sRGB" in icc or "sRGB".encode("utf-16-be") in icc
    if not is_srgb:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # The values of an image with a damaged profile are taken as sRGB.
    return image, size, is_jpeg and is_srgb and not is_turned


def find_unsuitable(image: Image.Image) -> str:
    """Return the reason why the content of an image is not a photograph in colour, or an empty string."""
    thumbnail = np.asarray(image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX))
    chroma = rgb_to_lab(thumbnail)[..., 1:].reshape(-1, 2)
    if np.hypot(*chroma.T).mean() < MIN_CHROMA or np.sqrt(chroma.var(axis=0).sum()) < MIN_CHROMA_DEVIATION:
        return "grey"
    if (thumbnail.min(axis=-1) >= WHITE).mean() > MAX_WHITE_FRACTION:
        return "white"
    if (thumbnail.max(axis=-1) <= BLACK).mean() > MAX_BLACK_FRACTION:
        return "black"
    pixels = np.asarray(image)
    return "flat" if (pixels[:, 1:] == pixels[:, :-1]).all(axis=-1).mean() > MAX_FLAT_FRACTION else ""


def strip_metadata(jpeg: bytes) -> bytes | None:
    """Return a JPEG without comments and application segments, except JFIF and Adobe. Return None if it is damaged."""
    parts, position = [jpeg[:2]], 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF:
        marker, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4])
        if marker == 0xDA:  # start of scan
            end = jpeg.rfind(b"\xff\xd9")
            return None if end < 0 else b"".join([*parts, jpeg[position : end + 2]])
        if marker == 0xFF or length < 2:
            return None
        if marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            parts.append(jpeg[position : position + 2 + length])
        position += 2 + length
    return None


def encode(image: Image.Image) -> bytes:
    """Return an image as JPEG without chroma subsampling, with a higher quality for chroma than for luma."""
    data = io.BytesIO()
    image.save(data, "JPEG", qtables=quantization_tables(), subsampling="4:4:4", optimize=True)
    return data.getvalue()


@cache
def quantization_tables() -> list[list[int]]:
    """Return the table for luma of one JPEG quality and the table for chroma of another."""
    tables = []
    for index, quality in enumerate((LUMA_QUALITY, CHROMA_QUALITY)):
        data = io.BytesIO()
        Image.new("RGB", (8, 8)).save(data, "JPEG", quality=quality)
        tables.append(list(Image.open(data).quantization[index]))
    return tables


def difference_hashes(image: Image.Image) -> tuple[int, int]:
    """Return the 64-bit difference hash of an image and of its mirror image.

    A bit is set if one of 8 × 8 grey values is below that of its right neighbour. Source: Krawetz 2013, “Kind of like
    that”.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    bits = (np.packbits(values[:, 1:] > values[:, :-1]).tobytes() for values in (grey, grey[:, ::-1]))
    first, mirrored = map(int.from_bytes, bits)
    return first, mirrored
