"""Safe reading and writing of image files.

* Formats for reading: JPEG, PNG, TIFF, WebP, BMP, GIF and PPM with 8 or 16 bits, including palettes, transparency and
  CMYK. Of several frames, only the first is read. The size in the header is checked before the pixels are decoded. The
  EXIF orientation is applied exactly once.
* Writing is atomic, and the suffix determines the format. Alpha, EXIF, colour profile and resolution are kept where the
  format supports them. 16-bit values are kept in PNG and TIFF.
* Values are the integers in the file. No colour profile is applied. The profile is returned with the pixels.
"""

import contextlib
import logging
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image, ImageFile, ImageFont, UnidentifiedImageError

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write
from chromabox.io.exif import apply_orientation, read_dpi, read_exif, read_orientation, save_options
from chromabox.io.sixteen_bit import (
    float_tiff_as_integers,
    range_issue,
    read_16bit,
    write_16bit_png,
    write_16bit_tiff,
)

# Pillow's warnings about unusual headers are not shown on the terminal. Errors are raised.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Only these decoders are used, because some other decoders of Pillow run external programs, for example for EPS.
_READ_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
_WRITE_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_WRITE_FORMATS |= {".webp": "WEBP", ".bmp": "BMP", ".ppm": "PPM"}
IMAGE_SUFFIXES: frozenset[str] = frozenset({*_WRITE_FORMATS, ".gif", ".pgm", ".pbm", ".pnm"})
"""Suffixes by which image files in folders are recognised, in lower case."""
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_GREY_MODES = ("1", "L", "LA")
_HIGH_BIT_GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

# JPEG is written without chroma subsampling, which would reduce the resolution of the colours. PNG compression at this
# level takes half the time of Pillow's default level, and the files are an eighth larger. TIFF is not compressed,
# because Pillow's writer for compressed TIFF fails if there is an EXIF block.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"subsampling": 0}, "PNG": {"compress_level": 3}}
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
#: Images up to this size are decoded even if the file appears too small for the pixels.
_SMALL_IMAGE_PIXELS = 1 << 24
Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
"""RGB values, from 0 to 255 with 8 bits per channel and from 0 to 65535 with 16 bits per channel."""
Alpha = UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]
PixelValues = UInt8[np.ndarray, "_ _ channels"] | UInt16[np.ndarray, "_ _ channels"]
_UINT16_TO_UINT8 = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)
"""The nearest 8-bit value for every 16-bit value, which is divided by 257 = 65535 / 255."""


@dataclass(frozen=True)
class ImageData:
    """An upright image, as read from a file.

    `pixels` are the RGB values with the bit depth of the file. They are sRGB unless `icc` is another profile. `alpha`
    has the same bit depth, and its maximum value means opaque. `is_grey` is true if the file contains a greyscale
    image. `format` is Pillow's name of the file format. `exif` contains no orientation. `dpi` is the resolution in
    pixels per inch (horizontal, vertical). `num_frames` is the number of images in the file, of which
    this is the first.
    """

    pixels: Pixels
    alpha: Alpha | None = None
    is_grey: bool = False
    format: str = "PNG"
    exif: bytes | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    num_frames: int = 1

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
    """Read the image in the file at `path` and return it upright.

    16-bit PNG and TIFF and floating-point TIFF in [0, 1] are read at 16 bits. Floating-point values may exceed the
    range by 0.001, and are clipped. 16-bit CMYK and colour PPM are read
    at 8 bits. Invalid metadata is omitted. Raise ChromaboxError for a missing or empty file, a folder, pipe or device,
    an unknown format, a truncated or corrupt image, an image without pixels, with more than `max_pixels` pixels or
    with more pixels than Pillow allows (179 million), and a pixel mode without a defined range of values.
    """
    with _open_image(path) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ChromaboxError(f"{path} has no pixels ({width} × {height}): expected at least 1 × 1")
        if width * height > max_pixels:
            raise ChromaboxError(
                f"{path} is too large: its header states {width} × {height} pixels; "
                f"expected at most {max_pixels:,} pixels"
            )
        _check_file_size(path, image)
        if image.mode not in (*_COLOUR_MODES, *_GREY_MODES, *_HIGH_BIT_GREY_MODES):
            raise ChromaboxError(f"{path}: unsupported pixel mode {image.mode}; save the image as RGB or greyscale")
        return _decode(path, image)


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
    elif image.mode == "1":
        return  # CCITT compression of an empty page has no useful bound.
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
        width, height = image.size
        # Pillow already returns the upright size of a rotated TIFF.
        return (width, height) if image.format != "TIFF" and read_orientation(image) >= 5 else (height, width)


@contextlib.contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding the pixels. Convert errors in the context to ChromaboxError."""
    check_file(path, "an image file")
    try:
        # Pillow warns about invalid metadata, which does not affect the pixels, and about large images.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _identify(path) as image:
                yield image
    except ChromaboxError:
        raise
    except Image.DecompressionBombError as error:
        message = f"{path} is too large: its header states far more pixels than allowed ({error}); use a smaller image"
        raise ChromaboxError(message) from error
    except UnidentifiedImageError as error:
        formats = "JPEG, PNG, TIFF, WebP, BMP, GIF or PPM with 8 or 16 bits"
        raise ChromaboxError(f"{path} is not an image or its header is corrupt: expected {formats}") from error
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


def _identify(path: Path) -> Image.Image:
    """Open an image with Pillow, and a floating-point TIFF that Pillow does not support with a changed header."""
    try:
        return Image.open(path, formats=_READ_FORMATS)
    except UnidentifiedImageError:
        if (content := float_tiff_as_integers(path)) is None:
            raise
        return Image.open(BytesIO(content), formats=("TIFF",))


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


def write_image(path: Path, image: ImageData | Pixels, *, quality: int = 95) -> None:
    """Write an image or an array of pixels in the format that the suffix determines.

    16-bit values are kept in PNG and TIFF, and rounded to 8 bits in JPEG, WebP, BMP and PPM. For JPEG, BMP and PPM,
    which have no alpha, the image is composited on white. `quality` (1 to 100) applies to JPEG and WebP. A missing
    parent folder is created. Raise UsageError for an unknown suffix or an invalid quality. Raise ChromaboxError if the
    file cannot be written or the image is larger than the format allows. In these cases, no file is written.
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
            _save_image(temp_path, image_format, image, quality)
    except FileExistsError as error:
        raise ChromaboxError(
            f"{path} cannot be written as {image_format}: its parent is a file, not a folder"
        ) from error
    except (OSError, ValueError, OverflowError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path} cannot be written as {image_format}: {reason}") from error


def find_images(paths: Sequence[Path], *, recursive: bool = True) -> list[tuple[Path, Path]]:
    """Return the path of every image in `paths`, together with its relative path.

    A file in `paths` is included whatever its suffix; its relative path is its name. In a folder, files with a suffix
    in `IMAGE_SUFFIXES` are included in sorted order; their paths are relative to the folder. Hidden files and folders
    are skipped, and links to folders are not followed. Raise UsageError for a path that does not exist, and
    ChromaboxError for a folder without images.
    """
    images: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            found: list[Path] = []
            for parent, folders, names in os.walk(path):
                folders[:] = [name for name in folders if recursive and not name.startswith(".")]
                visible = (Path(parent, name) for name in names if not name.startswith("."))
                found += [file for file in visible if file.suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                raise ChromaboxError(f"{path} contains no images: expected {', '.join(sorted(IMAGE_SUFFIXES))} files")
            images += sorted((file, file.relative_to(path)) for file in found)
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


def _decode(path: Path, image: Image.Image) -> ImageData:
    """Return the pixels and metadata of the open image, after applying the orientation."""
    orientation = 1
    values: np.ndarray | None = read_16bit(path, image)
    if values is None or image.format == "PNG":
        image.load()  # The metadata of a PNG may follow the pixels.
    # Pillow applies the orientation of a TIFF while decoding.
    if values is not None or image.format != "TIFF":
        orientation = read_orientation(image)
    if values is None:
        if image.mode in _HIGH_BIT_GREY_MODES:
            values = np.asarray(image)
            max_value = 1 if image.mode == "F" else 65535
            if (found := range_issue(values, max_value)) is not None:
                raise ChromaboxError(f"{path}: unsupported grey values {found}; expected 0 to {max_value}")
            values = from_float(values, 16) if image.mode == "F" else values.astype(np.uint16)
        else:
            mode = ("L" if image.mode in _GREY_MODES else "RGB") + ("A" if image.has_transparency_data else "")
            values = np.asarray(image if image.mode == mode else image.convert(mode))
    values = values[..., None] if values.ndim == 2 else values
    upright: PixelValues = apply_orientation(values, orientation)
    channels = upright.shape[2]
    is_grey = channels <= 2
    pixels = np.ascontiguousarray(upright[..., :1].repeat(3, axis=2) if is_grey else upright[..., :3])
    if image.mode in ("P", "PA"):
        is_grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    # The other images in a multi-picture JPEG (MPO) are previews, depth maps and gain maps, not frames.
    image_format = "JPEG" if image.format == "MPO" else str(image.format)
    return ImageData(
        pixels=pixels,
        alpha=np.ascontiguousarray(upright[..., -1]) if channels in (2, 4) else None,
        is_grey=is_grey,
        format=image_format,
        exif=read_exif(image),
        icc=image.info.get("icc_profile") or None,
        dpi=read_dpi(image),
        num_frames=1 if image_format == "JPEG" else getattr(image, "n_frames", 1),
    )


def _save_image(path: Path, image_format: str, image_data: ImageData, quality: int) -> None:
    pixels, alpha = image_data.pixels, image_data.alpha
    side, max_side = max(pixels.shape), _MAX_SIDE.get(image_format)
    if max_side is not None and side > max_side:
        raise ValueError(
            f"the image has a side of {side:,} pixels; expected at most {max_side:,}; use PNG or TIFF for larger images"
        )
    options = save_options(image_format, image_data.exif, image_data.icc, image_data.dpi)
    if image_data.bit_depth == 16 and image_format in ("PNG", "TIFF"):
        write = write_16bit_png if image_format == "PNG" else write_16bit_tiff
        write(path, pixels if alpha is None else np.dstack([pixels, alpha]), options)
        return
    options |= _SAVE_OPTIONS.get(image_format, {})
    if image_format in ("JPEG", "WEBP"):
        options["quality"] = quality
    image = Image.fromarray(to_uint8(pixels))
    if alpha is not None:
        opacity = Image.fromarray(to_uint8(alpha))
        if image_format in ("PNG", "TIFF", "WEBP"):
            image.putalpha(opacity)
        else:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
    image.save(path, format=image_format, **options)


@lru_cache(maxsize=8)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the bundled font DejaVu Sans (Latin, Greek, Cyrillic and Arabic letters). ``size`` is in pixels."""
    font = resources.files("chromabox.assets") / "fonts" / "DejaVuSans.ttf"
    return ImageFont.truetype(BytesIO(font.read_bytes()), size)
