"""Safe reading and writing of image files.

* Formats for reading: JPEG, PNG, TIFF, WebP, AVIF, JPEG 2000, BMP, GIF, TGA and PPM with 8 or 16 bits, including
  palettes, transparency and CMYK, with several pages or frames, and HEIC if pillow-heif is installed. The content
  determines the format. Reduced copies and masks in a TIFF are not pages. The size in the header is checked before the
  pixels are decoded. The EXIF orientation is applied exactly once.
* Writing is atomic, and the suffix determines the format. Alpha, resolution and metadata are kept where the format
  supports them; what is not kept is named. 16-bit values are kept in PNG and TIFF.
* Pixels are sRGB. Values in another colour space are converted (colour_space.py).
"""

import contextlib
import itertools
import logging
import os
import re
import stat
import struct
import tempfile
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, ImageFile, ImageFont, TiffImagePlugin, UnidentifiedImageError, features
from PIL.PngImagePlugin import PngInfo

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write
from chromabox.io.colour_space import convert_to_srgb, declared_profile, image_to_srgb
from chromabox.io.exif import (
    JPEG_XMP_LIMIT,
    ORIENTATION_TAG,
    FileMetadata,
    apply_orientation,
    list_omitted,
    load_directories,
    read_metadata,
    read_orientation,
    save_options,
)
from chromabox.io.kinds import READ_FORMATS, READABLE_IMAGES, UNKNOWN, VIDEO, Kind, count_skipped, identify, list_folder
from chromabox.io.sixteen_bit import (
    TIFF_COMPRESSIONS,
    describe_tiff,
    float_tiff_as_integers,
    join_tiffs,
    read_16bit,
    stated_precision,
    to_uint16,
    write_16bit_png,
    write_tiff,
)

# Pillow's warnings about unusual headers are not shown on the terminal. Errors are raised.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_WRITE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG"}
_WRITE_FORMATS |= {".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_WRITE_FORMATS |= {".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM"}
IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {*_WRITE_FORMATS, ".gif", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".tga"}
)
"""Suffixes of image files that can be read, in lower case."""
LOSSY_SUFFIXES: frozenset[str] = frozenset(
    suffix for suffix, image_format in _WRITE_FORMATS.items() if image_format in ("JPEG", "WEBP")
)
"""Suffixes of the formats for which a quality can be given."""
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_GREY_MODES = ("1", "L", "LA")
_HIGH_BIT_GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

# JPEG is written without chroma subsampling, which would reduce the resolution of the colours. PNG compression at this
# level takes half the time of Pillow's default level, and the files are an eighth larger.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"subsampling": 0}, "PNG": {"compress_level": 3}}
_JPEG_END = b"\xff\xd9"
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
#: Images up to this size are decoded even if the file appears too small for the pixels.
_SMALL_IMAGE_PIXELS = 1 << 24
Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
"""RGB values, from 0 to 255 with 8 bits per channel and from 0 to 65535 with 16 bits per channel."""
Alpha = UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]
PixelValues = UInt8[np.ndarray, "_ _ channels"] | UInt16[np.ndarray, "_ _ channels"]
Pages = Literal["all", "first"] | int
"""Selection of pages or frames. An integer is the number of one page, from 1."""
_UINT16_TO_UINT8 = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)
"""The nearest 8-bit value for every 16-bit value, which is divided by 257 = 65535 / 255."""


@dataclass(frozen=True)
class ImageData:
    """An upright image, as read from a file.

    `pixels` are sRGB values with the bit depth of the file. `alpha` has the same bit depth, and its maximum value means
    opaque. `is_grey` is true if the file contains a greyscale image. `format` is Pillow's name of the file format.
    `metadata` is everything else that the file states, such as EXIF and resolution, and how it is compressed.
    `num_frames` is the number of pages or frames in the file, of which this is one. `duration` is how long a frame of
    an animation is shown, in milliseconds. `loop` is how often the animation is shown (0: without end). `changes` are
    lines about what was changed by reading, such as a conversion to sRGB. `notes` are lines about problems of the file
    that were solved or ignored.
    """

    pixels: Pixels
    alpha: Alpha | None = None
    is_grey: bool = False
    format: str = "PNG"
    num_frames: int = 1
    metadata: FileMetadata = field(default_factory=FileMetadata)
    duration: int | None = None
    loop: int | None = None
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.alpha is not None and self.alpha.dtype != self.pixels.dtype:
            raise ValueError(f"alpha is {self.alpha.dtype} and pixels are {self.pixels.dtype}: expected the same dtype")

    @property
    def bit_depth(self) -> Literal[8, 16]:
        """Bits per channel."""
        return 8 if self.pixels.dtype == np.uint8 else 16


def to_uint8(pixels: UInt8[np.ndarray, "*shape"] | UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Scale 16-bit values to 8 bits and round them. Return 8-bit values unchanged, without a copy."""
    return pixels if pixels.dtype == np.uint8 else _UINT16_TO_UINT8[pixels]


def from_float(
    values: Float[np.ndarray, "*shape"], bit_depth: Literal[8, 16]
) -> UInt8[np.ndarray, "*shape"] | UInt16[np.ndarray, "*shape"]:
    """Clip values to [0, 1], scale them to the given bit depth and round them to integers. NaN is not allowed."""
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    return np.rint(np.clip(values, 0, 1) * np.iinfo(dtype).max).astype(dtype)


def read_image(path: Path, *, max_pixels: int = 200_000_000) -> ImageData:
    """Read the image in the file at `path`, or its first page or frame, and return it upright.

    PNG, TIFF and JPEG 2000 with 16 bits and floating-point TIFF in [0, 1] are read at 16 bits. Floating-point values
    may exceed the range by 0.001, and are clipped. CMYK and colour images of other formats are read at 8 bits, which
    `changes` state. Values in another colour space are converted to sRGB. Invalid metadata is omitted. Raise
    ChromaboxError for a missing or empty file, a folder, pipe or device, an unknown format, a truncated or corrupt
    image, an image without pixels, with more than `max_pixels` pixels or with more pixels than Pillow allows (179
    million), an HDR image, and a pixel mode without a defined range of values. A JPEG that lacks only its end marker is
    read.
    """
    with _open_image(path) as image:
        return _read_page(path, image, _find_pages(image), 0, max_pixels)


def read_pages(path: Path, pages: Pages = "all", *, max_pixels: int = 200_000_000) -> Iterator[ImageData]:
    """Yield all pages or frames of the file at `path`, only the first, or only the one with the given number (from 1).

    The pages of a TIFF are read one by one. An animation is read at once, because each frame depends on the previous
    ones. Raise the errors of `read_image`, and ChromaboxError for a number above the number of pages and for an
    animation with more than `max_pixels` pixels in all frames.
    """
    with _open_image(path) as image:
        frames = _find_pages(image)
        count = len(frames.pages)
        selected = range(count) if pages == "all" else [0 if pages == "first" else pages - 1]
        if selected[-1] >= count:
            raise ChromaboxError(f"{path} has no page {selected[-1] + 1}: expected a number from 1 to {count}")
        total = image.width * image.height * len(selected)
        if image.format != "TIFF" and len(selected) > 1 and total > max_pixels:
            raise ChromaboxError(
                f"{path} is too large: its {len(selected)} frames have {total:,} pixels; expected at most "
                f"{max_pixels:,} pixels, or a single page"
            )
        batches = [[index] for index in selected] if image.format == "TIFF" else [list(selected)]
    for batch in batches:
        with _open_image(path) as image:
            images = [_read_page(path, image, frames, index, max_pixels) for index in batch]
        yield from images


def _check_file_size(path: Path, image: Image.Image) -> None:
    """Raise ChromaboxError if a file is too small for the pixels of a large image that its header states.

    The pixels of a corrupt file would otherwise take gigabytes before the decoder reaches the end of the data.
    """
    pixels, num_bytes = image.width * image.height, path.stat().st_size
    codecs = {tile.codec_name for tile in image.tile} if isinstance(image, ImageFile.ImageFile) else set()
    if codecs == {"raw"}:
        pixels_per_byte = 8
    elif image.format == "PNG":
        pixels_per_byte = 8 * 1032  # 1032 is the maximum compression ratio of deflate (zlib technical details).
    elif image.mode == "1" or image.format in ("AVIF", "HEIF", "JPEG2000"):
        return  # The compression of an empty page by CCITT or by these formats has no useful bound.
    else:
        pixels_per_byte = 1500  # Less compressible pixels are an image of a single colour.
    if pixels > _SMALL_IMAGE_PIXELS and pixels > pixels_per_byte * num_bytes:
        raise ChromaboxError(
            f"{path} cannot be decoded: the file is truncated or corrupt ({num_bytes:,} bytes are too few for "
            f"{image.width} × {image.height} pixels); use another copy"
        )


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width in pixels of the image that `read_image` returns. Only the header is read.

    Raise ChromaboxError if the file does not exist or has no image header. A truncated image with a valid header is not
    detected.
    """
    with _open_image(path) as image:
        _go_to_frame(image, _find_pages(image).pages[0])
        width, height = image.size
        # Pillow already returns the upright size of a rotated TIFF.
        return (width, height) if image.format != "TIFF" and read_orientation(image) >= 5 else (height, width)


def image_orientation(path: Path) -> int:
    """Return the EXIF orientation, 1 to 8, of an image file. Only the header is read.

    Raise ChromaboxError if the file does not exist or has no image header.
    """
    with _open_image(path) as image:
        return read_orientation(image)


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding the pixels. Convert errors in the context to ChromaboxError."""
    check_file(path, "an image file")
    try:
        # Pillow warns about invalid metadata, which does not affect the pixels, and about large images.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Given a path, Pillow 11 and later map an uncompressed TIFF into memory and scramble it if its orientation
            # exchanges rows and columns.
            kind = identify(path)
            with path.open("rb") as file, _open_as(_decoder(path, kind), path, file) as image:
                yield image
    except ChromaboxError:
        raise
    except Image.DecompressionBombError as error:
        message = f"{path} is too large: its header states far more pixels than allowed ({error}); use a smaller image"
        raise ChromaboxError(message) from error
    except UnidentifiedImageError as error:
        if kind.format == "TIFF" and (found := describe_tiff(path)) is not None:
            raise ChromaboxError(
                f"{path}: this kind of TIFF is not supported ({found}); save the image as RGB or greyscale"
            ) from error
        raise ChromaboxError(
            f"{path} is damaged: the header of the {kind.description} is corrupt; use another copy"
        ) from error
    except PermissionError as error:
        raise ChromaboxError(f"{path}: permission denied; change the permissions of the file") from error
    except MemoryError as error:
        message = f"{path} cannot be decoded: out of memory; the image is too large, or its header is corrupt"
        raise ChromaboxError(message) from error
    except Exception as error:
        # Pillow's decoders raise many types of exceptions for corrupt files.
        raise ChromaboxError(
            f"{path} cannot be decoded: the file is truncated or corrupt ({error}); use another copy"
        ) from error


def _decoder(path: Path, kind: Kind) -> str:
    """Return Pillow's name of the format. Raise ChromaboxError if the file is not an image that can be read."""
    if kind.format == "HEIF" and not kind.missing_extra:
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif kind.missing_extra and kind.format != VIDEO:
        raise ChromaboxError(
            f"{path}: reading a {kind.description} requires pillow-heif; install it with "
            f"pip install 'chromabox[{kind.extra}]'"
        )
    elif kind == UNKNOWN:
        raise ChromaboxError(f"{path} is not an image, or its kind is unknown: expected {READABLE_IMAGES}")
    elif kind.format not in READ_FORMATS:
        raise ChromaboxError(
            f"{path} is not an image that can be read ({kind.description}): expected {READABLE_IMAGES}"
        )
    return kind.format


def _open_as(image_format: str, path: Path, file: BinaryIO) -> Image.Image:
    """Open an image with Pillow, and a floating-point TIFF that Pillow does not support with a changed header."""
    try:
        return Image.open(file, formats=[image_format])
    except UnidentifiedImageError:
        content = None
        if image_format == "TIFF":
            with contextlib.suppress(Exception):  # tifffile raises many types of exceptions for corrupt files.
                content = float_tiff_as_integers(path)
        if content is None:
            raise
        return Image.open(BytesIO(content), formats=["TIFF"])


def check_file(path: Path, expected: str) -> None:
    """Raise ChromaboxError unless the path is a regular file that is not empty.

    ``expected`` describes the expected file in the message. Raise UsageError for a URL.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        check_not_url(path)
        raise ChromaboxError(f"{path} does not exist: expected {expected}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path} cannot be opened ({reason}): expected {expected}") from error
    problem = "is empty" if status.st_size == 0 else None
    if stat.S_ISDIR(status.st_mode):
        problem = "is a folder"
    elif not stat.S_ISREG(status.st_mode):
        problem = "is a pipe or a device"  # Opening a pipe would block until data are written to it.
    if problem is not None:
        raise ChromaboxError(f"{path} {problem}: expected {expected}")


def write_image(path: Path, image: ImageData | Pixels, *, quality: int = 95, keep_lossless: bool = True) -> list[str]:
    """Write an image or an array of pixels in the format that the suffix determines.

    Return the names of the metadata and properties of the image that the written file does not have.

    16-bit values are kept in PNG and TIFF, and rounded to 8 bits in JPEG, WebP, BMP and PPM. For JPEG, BMP and PPM,
    which have no alpha, the image is composited on white. `quality` (1 to 100) applies to JPEG and WebP. If
    `keep_lossless` is true, an image from a lossless WebP is written as a lossless WebP. An image from a TIFF is
    written as a TIFF with the same compression, or with Deflate if that compression is lossy or not for colours. Other
    TIFF files are not compressed. A missing parent folder is created.

    Raise UsageError for an unknown suffix or an invalid quality. Raise ChromaboxError if the file cannot be written or
    the image is larger than the format allows. In these cases, no file is written.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"invalid quality {quality}: expected 1 to 100")
    image_format = _WRITE_FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise UsageError(f"{path}: images cannot be written with this suffix; expected {', '.join(_WRITE_FORMATS)}")
    image = image if isinstance(image, ImageData) else ImageData(image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp_path:
            return _save_image(temp_path, image_format, image, quality, keep_lossless)
    except FileExistsError as error:
        raise ChromaboxError(
            f"{path} cannot be written as {image_format}: its parent is a file, not a folder"
        ) from error
    except (OSError, ValueError, OverflowError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path} cannot be written as {image_format}: {reason}") from error


def can_hold_pages(path: Path) -> bool:
    """Return whether the suffix is that of a format with several pages or frames: TIFF, PNG and WebP."""
    return _WRITE_FORMATS.get(path.suffix.lower()) in ("TIFF", "PNG", "WEBP")


def can_hold_xmp(path: Path, packet: bytes | None) -> bool:
    """Return whether the XMP packet is not too long for the format of the suffix. Only JPEG has a limit."""
    return packet is None or _WRITE_FORMATS.get(path.suffix.lower()) != "JPEG" or len(packet) <= JPEG_XMP_LIMIT


def write_pages(path: Path, pages: Iterable[ImageData], *, quality: int = 95, keep_lossless: bool = True) -> list[str]:
    """Write a file with one or more pages. A TIFF can hold pages of any size and bit depth.

    PNG and WebP can hold an animation of frames of equal size, with 8 bits. `duration` and `loop` of the frames are
    kept. One page is written as by `write_image`. Return the names of what the file does not contain. Raise the errors
    of `write_image`, and ChromaboxError for several pages in another format and for frames of different sizes.
    """
    iterator = iter(pages)
    first = next(iterator)
    second = next(iterator, None)
    if second is None:
        return write_image(path, first, quality=quality, keep_lossless=keep_lossless)
    if not can_hold_pages(path):
        raise ChromaboxError(f"{path} can hold only one of several pages: expected .tif, .png or .webp, or one page")
    image_format, remaining = _WRITE_FORMATS[path.suffix.lower()], itertools.chain([first, second], iterator)
    omitted: list[str] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temp_path:
            if image_format == "TIFF":
                join_tiffs(temp_path, (_encode_tiff(page, omitted) for page in remaining))
            else:
                omitted += _save_animation(temp_path, image_format, list(remaining), quality, keep_lossless)
    except (OSError, ValueError, OverflowError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path} cannot be written as {image_format}: {reason}") from error
    return list(dict.fromkeys(omitted))


def _encode_tiff(page: ImageData, omitted: list[str]) -> bytes:
    """Return a TIFF with one page. Append the names of what it does not contain."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.tif")
        omitted += _save_image(path, "TIFF", page)
        return path.read_bytes()


def _save_animation(
    path: Path, image_format: str, frames: Sequence[ImageData], quality: int, keep_lossless: bool
) -> list[str]:
    """Write an animated PNG or WebP with the metadata of the first frame. Return the names of what it omits."""
    first = frames[0]
    if len({frame.pixels.shape for frame in frames}) > 1:
        raise ValueError("the pages have different sizes; expected equal sizes, or a .tif file")
    images = [Image.fromarray(to_uint8(frame.pixels)) for frame in frames]
    if any(frame.alpha is not None for frame in frames):
        for image, frame in zip(images, frames, strict=True):
            image.putalpha(255 if frame.alpha is None else Image.fromarray(to_uint8(frame.alpha)))
    options, omitted = _pillow_options(image_format, first, quality, keep_lossless)
    if any(frame.bit_depth == 16 for frame in frames):
        omitted.append("16 bits per channel")
    if any(frame.metadata != first.metadata for frame in frames):
        omitted.append("metadata of the pages after the first")
    if image_format == "PNG":  # Each frame replaces the previous one, and is not blended with it.
        options |= {"disposal": 0, "blend": 0}
    durations = [1000 if frame.duration is None else frame.duration for frame in frames]
    options |= {"duration": durations, "loop": 1 if first.loop is None else first.loop}
    images[0].save(path, image_format, save_all=True, append_images=images[1:], **options)
    return omitted


def find_images(paths: Sequence[Path], *, recursive: bool = True) -> list[tuple[Path, Path]]:
    """Return the path of every image in `paths`, together with its relative path.

    A file in `paths` is included whatever it is; its relative path is its name. In a folder, the images are included
    in sorted order, as in :func:`list_folder`; their paths are relative to the folder. Raise UsageError for a path that
    does not exist, and ChromaboxError for a folder without images.
    """
    images: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            content = list_folder(path, IMAGE_SUFFIXES, recursive=recursive)
            if not content.images:
                rest = "; ".join(["", *count_skipped(content.skipped), *content.unreadable])
                raise ChromaboxError(f"{path} contains no images: expected {READABLE_IMAGES}{rest}")
            images += [(file, file.relative_to(path)) for file in content.images]
        elif path.exists():
            images.append((path, Path(path.name)))
        else:
            check_not_url(path)
            raise UsageError(f"{path} does not exist: expected an image or a folder of images")
    return images


def check_not_url(path: Path | str) -> None:
    """Raise UsageError if a path is a URL. In a ``Path``, the two slashes of a URL have been replaced by one."""
    if match := re.match(r"([a-z][a-z0-9+.-]+):/+", str(path), re.IGNORECASE):
        address = f"{match[1]}://{str(path)[match.end() :]}"
        raise UsageError(f"{address} is a URL, and URLs are not supported: expected a path of a file or folder")


def check_not_input(inputs: Sequence[Path], *outputs: Path) -> None:
    """Raise UsageError if an output is the same file as an input, even under another name or through a link."""

    def file_id(path: Path) -> tuple[int, int] | Path:
        resolved = path.resolve()
        status = resolved.stat() if resolved.exists() else None
        return resolved if status is None else (status.st_dev, status.st_ino)

    input_ids = {file_id(path): path for path in inputs}
    for output in outputs:
        if (same := input_ids.get(file_id(output))) is not None:
            raise UsageError(f"{output} is the same file as the input {same}: use a different output path")


def make_grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]], *, gap: int = 2, scale: int = 1
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image of tiles in a grid on a white background.

    The tiles are enlarged `scale` times (nearest neighbour) and separated by `gap` pixels. The gap also surrounds the
    grid. Shorter rows are padded with white. Raise ChromaboxError if there are no tiles, the tiles differ in size, the
    gap is negative or the scale is below 1.
    """
    shapes = {tile.shape for row in rows for tile in row}
    if len(shapes) != 1 or gap < 0 or scale < 1:
        sizes = ", ".join(f"{width} × {height}" for height, width, _ in sorted(shapes)) or "no tiles"
        raise ChromaboxError(
            f"invalid grid ({sizes}, gap {gap}, scale {scale}): expected tiles of one size, gap ≥ 0 and scale ≥ 1"
        )
    height, width, _ = (side * scale for side in next(iter(shapes)))
    columns = max(len(row) for row in rows)
    size = (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3)
    grid = np.full(size, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            grid[top : top + height, left : left + width] = tile.repeat(scale, 0).repeat(scale, 1)
    return grid


class _Frames(NamedTuple):
    """Indices of the frames of a file that are pages, and the number of frames."""

    pages: list[int]
    total: int


def _find_pages(image: Image.Image) -> _Frames:
    """Return the frames that are pages: in a TIFF, those that are neither reduced copies nor masks.

    TIFF 6.0, section 8: bits 0 and 2 of NewSubfileType (tag 254) state a reduced copy and a mask, and the value 2 of
    the older SubfileType (tag 255) a reduced copy. If all frames are reduced copies, they are pages. The images after
    the first in a multi-picture JPEG (MPO) are previews, depth maps and gain maps.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        count = getattr(image, "n_frames", 1)
        return _Frames([0] if image.format == "MPO" else list(range(count)), count)
    pages = []
    for frame in itertools.count():
        try:
            image.seek(frame)
        except EOFError:
            break
        except (SyntaxError, KeyError, TypeError, ValueError):
            if image.tell() != frame:  # The position of the page is invalid, so there is no next page either.
                raise
            # Pillow cannot read this page. Its tags have been read. If it is a page, `_read_page` raises the error.
        kind, old_kind = image.tag_v2.get(254, 0), image.tag_v2.get(255, 1)
        if not (isinstance(kind, int) and kind & 0b101) and old_kind != 2:
            pages.append(frame)
    _go_to_frame(image, 0)
    return _Frames(pages or list(range(frame)), frame)


def _go_to_frame(image: Image.Image, frame: int) -> None:
    """Select a frame. For a TIFF, information that the page does not contain is removed."""
    if frame != image.tell():
        if image.format == "TIFF":
            image.info.clear()
        image.seek(frame)


def _read_page(path: Path, image: Image.Image, frames: _Frames, index: int, max_pixels: int) -> ImageData:
    """Return the page or frame with the given index (from 0) of an open image, after checking its size."""
    _go_to_frame(image, frames.pages[index])
    width, height = image.size
    if width < 1 or height < 1:
        raise ChromaboxError(f"{path} has no pixels ({width} × {height}): expected at least 1 × 1")
    if width * height > max_pixels:
        raise ChromaboxError(
            f"{path} is too large: its header states {width} × {height} pixels; expected at most {max_pixels:,} pixels"
        )
    _check_file_size(path, image)
    if image.mode not in (*_COLOUR_MODES, *_GREY_MODES, *_HIGH_BIT_GREY_MODES):
        raise ChromaboxError(f"{path}: unsupported pixel mode {image.mode}; save the image as RGB or greyscale")
    data = _decode(path, image)
    metadata, changes = data.metadata, data.changes
    if image.format == "PNG" and frames.total > 1 and path.read_bytes()[24] == 16:  # The bit depth in the header.
        changes += ("an animated PNG with 16 bits per channel was read with 8 bits",)
    if image.format == "TIFF" and len(frames.pages) < frames.total:
        metadata = replace(metadata, omitted=(*metadata.omitted, "reduced copies and masks of a TIFF"))
    used = max(len(image.getbands()), 1 + 2 * (not data.is_grey) + (data.alpha is not None))
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(277, 1) > used:  # Samples per pixel.
        metadata = replace(metadata, omitted=(*metadata.omitted, "channels of a TIFF other than colours and alpha"))
    return replace(data, num_frames=len(frames.pages), metadata=metadata, changes=changes)


def _decode(path: Path, image: Image.Image) -> ImageData:
    """Return the pixels and metadata of the open image, after applying the orientation."""
    orientation = 1
    load_directories(image)
    values = read_16bit(path, image)
    if image.format == "TIFF":
        orientation = read_orientation(image)
        # While decoding, Pillow applies this orientation, otherwise that of XMP if the tag is missing.
        image.getexif()[ORIENTATION_TAG] = orientation
    profile = declared_profile(image, str(path))
    bits, description = stated_precision(path, image)
    notes: tuple[str, ...] = ()
    if values is None or image.format == "PNG":  # The metadata of a PNG may follow the pixels.
        if image.format in ("JPEG", "MPO") and (completed := _complete_jpeg(path)) is not None:
            image, notes = completed, ("the end marker of the JPEG file is missing, but the image is complete",)
        image.load()
        orientation = 1 if image.format == "TIFF" else read_orientation(image)
    elif image.format == "JPEG2000":
        orientation = read_orientation(image)
    if values is None and image.mode in _HIGH_BIT_GREY_MODES:
        values = to_uint16(path, np.asarray(image))
    if values is None:
        srgb = image_to_srgb(image, profile)
    else:
        values = values[..., None] if values.ndim == 2 else values
        srgb = convert_to_srgb(values, "grey" if values.shape[2] <= 2 else "rgb", profile)
    upright: PixelValues = apply_orientation(srgb.values, orientation)
    channels = upright.shape[2]
    is_grey = channels <= 2
    pixels = np.ascontiguousarray(upright[..., :1].repeat(3, axis=2) if is_grey else upright[..., :3])
    if image.mode in ("P", "PA"):
        is_grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    size, depth = (pixels.shape[1], pixels.shape[0]), 8 * pixels.itemsize
    reduced = (f"{description} were read with {depth} bits",) if bits > depth else ()
    image_format = "JPEG" if image.format == "MPO" else str(image.format)
    return ImageData(
        pixels=pixels,
        alpha=np.ascontiguousarray(upright[..., -1]) if channels in (2, 4) else None,
        is_grey=is_grey,
        format=image_format,
        metadata=read_metadata(path, image, size, srgb.icc),
        duration=None if "duration" not in image.info else round(image.info["duration"]),
        loop=image.info.get("loop"),
        changes=reduced + srgb.changes,
        notes=notes + srgb.notes,
    )


def _complete_jpeg(path: Path) -> Image.Image | None:
    """Return the image of a JPEG file that lacks only its end marker, or None if the file has an end marker.

    Raise OSError if image data are missing, too. The decoder ignores what follows the last block of pixels. Therefore,
    the data are complete if the pixels do not depend on the bits that are appended, and if the scans contain all
    coefficients.
    """
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        if file.read() == _JPEG_END:
            return None
    content = path.read_bytes()
    has_end, has_all_scans = _walk_jpeg(content)
    if has_end:
        return None
    content = content.rstrip(b"\0\xff")
    restarts = b"".join(bytes([0xFF, 0xD0 + number]) + b"\xaa" * 64 for number in range(8))
    images = [
        Image.open(BytesIO(content + bits + _JPEG_END), formats=("JPEG",)) for bits in (b"", b"\xaa" * 64, restarts)
    ]
    if not has_all_scans or len({image.tobytes() for image in images}) > 1:
        raise OSError("image data are missing at the end")
    return images[0]


def _walk_jpeg(jpeg: bytes) -> tuple[bool, bool]:
    """Return whether a JPEG has an end marker, and whether its scans contain every bit of every coefficient.

    ITU-T T.81, B.2: the marker codes of frame headers are C0 to CF without C4, C8 and CC. The marker code of scan
    headers is DA, and that of the end marker is D9.
    """
    missing: dict[int, set[int]] = {}
    position = jpeg.find(b"\xff", 2)
    while 0 <= position < len(jpeg) - 1 and jpeg[position + 1] != 0xD9:
        code, length = jpeg[position + 1], int.from_bytes(jpeg[position + 2 : position + 4], "big")
        if code in (0x00, 0x01, 0xFF) or 0xD0 <= code <= 0xD7:  # Not followed by a segment.
            length = -1
        segment = jpeg[position + 4 : position + 2 + length]
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            missing = {component: set(range(64)) for component in segment[6::3]}
        elif code == 0xDA and len(segment) >= 4 and segment[-1] & 15 == 0:  # The lowest bits of the coefficients.
            for component in segment[1:-3:2]:
                missing.get(component, set()).difference_update(range(segment[-3], segment[-2] + 1))
        position = jpeg.find(b"\xff", position + 2 + length)
    return 0 <= position < len(jpeg) - 1, bool(missing) and not any(missing.values())


def _save_image(
    path: Path, image_format: str, image_data: ImageData, quality: int = 95, keep_lossless: bool = True
) -> list[str]:
    """Write the image. Return the names of what the file does not contain."""
    pixels, alpha = image_data.pixels, image_data.alpha
    side, max_side = max(pixels.shape), _MAX_SIDE.get(image_format)
    if max_side is not None and side > max_side:
        raise ValueError(
            f"the image has a side of {side:,} pixels; expected at most {max_side:,}; use PNG or TIFF for larger images"
        )
    if image_format == "TIFF" or (image_data.bit_depth == 16 and image_format == "PNG"):
        metadata = image_data.metadata
        options, omitted = save_options(image_format, metadata), list_omitted(image_format, metadata)
        values = pixels if alpha is None else np.dstack([pixels, alpha])
        if image_format == "PNG":
            write_16bit_png(path, values, options)
            return omitted
        encoding = metadata.encoding if image_data.format == "TIFF" else {}
        compression = TIFF_COMPRESSIONS.get(encoding.get("compression", 1))
        if compression is None:
            omitted.append(f"TIFF compression {encoding['compression_name']} (Deflate is used instead)")
        write_tiff(path, values, options, 8 if compression is None else compression)
        return omitted
    options, omitted = _pillow_options(image_format, image_data, quality, keep_lossless)
    image = Image.fromarray(to_uint8(pixels))
    if alpha is not None:
        opacity = Image.fromarray(to_uint8(alpha))
        if image_format in ("PNG", "WEBP"):
            image.putalpha(opacity)
        else:
            omitted.append("transparency")
            image = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
    if image_data.bit_depth == 16:
        omitted.append("16 bits per channel")
    image.save(path, format=image_format, **options)
    return omitted


def _pillow_options(
    image_format: str, image_data: ImageData, quality: int, keep_lossless: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the keyword arguments of `Image.save`, and the names of the metadata that the file does not contain."""
    metadata = image_data.metadata
    options = save_options(image_format, metadata) | _SAVE_OPTIONS.get(image_format, {})
    encoding = metadata.encoding if image_data.format == image_format else {}
    if image_format in ("JPEG", "WEBP"):
        options["quality"] = quality
    if image_format == "JPEG":
        options |= encoding
    if image_format == "WEBP" and keep_lossless and encoding:
        options |= {"lossless": True, "exact": True, "quality": 75}  # For lossless files, the effort of compression.
    if "chunks" in options:
        options["pnginfo"] = PngInfo()
        for kind, data in options.pop("chunks"):
            options["pnginfo"].add(kind, data)
    return options, list_omitted(image_format, metadata)


@lru_cache(maxsize=8)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the bundled font DejaVu Sans (Latin, Greek, Cyrillic and Arabic letters). ``size`` is in pixels."""
    return ImageFont.truetype(BytesIO(_font_file()), size)


@lru_cache(maxsize=1)
def _font_file() -> bytes:
    return (resources.files("chromabox.assets") / "fonts" / "DejaVuSans.ttf").read_bytes()


@lru_cache(maxsize=4096)
def can_draw(character: str) -> bool:
    """Return whether the bundled font, which is also matplotlib's default font, has a glyph for a character.

    Control characters and line breaks have none. Letters that are written from right to left also require Raqm, a
    library in Pillow's packages, because their order and shape would be wrong without it.
    """
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return False
    if unicodedata.bidirectional(character) in ("R", "AL") and not features.check_feature("raqm"):
        return False
    # Characters without a glyph are drawn as the glyph of a code point that Unicode never assigns.
    font = ImageFont.truetype(BytesIO(_font_file()), 32, layout_engine=ImageFont.Layout.BASIC)
    glyph, missing = (font.getmask(text) for text in (character, "\uffff"))
    return (glyph.size, bytes(glyph)) != (missing.size, bytes(missing))
