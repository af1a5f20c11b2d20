"""Safe reading and writing of pictures.

* Reading: JPEG, PNG, TIFF, WebP, BMP, GIF and PPM, of several frames the first; the size is judged by the header before
  a pixel is decoded; the EXIF orientation is applied exactly once; 8 and 16 bits, palettes, transparency, CMYK.
* Writing: format by suffix, whole or not at all; alpha, EXIF, colour profile and resolution are kept where the format
  can, 16 bits in PNG and TIFF.
* Values are the file's own integers; no colour profile is applied, the profile itself is kept beside them.

What a picture's header says without a pixel being decoded: its upright size.
"""

import logging
import os
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.atomic import atomic_write
from chromabox.io.exif import read_dpi, read_exif, read_orientation, save_options
from chromabox.io.sixteen_bit import read_16bit, write_16bit_png, write_16bit_tiff


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the picture at `path` once it is turned upright, as `read_picture` would give it.

    Raises ChromaboxError for what is missing or has no picture's header. The pixels behind a good header may still be
    cut short: only decoding tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_READ_FORMATS) as image:
                width, height = image.size
                # Pillow gives the size of a turned TIFF upright already.
                turned = image.format != "TIFF" and read_orientation(image) >= 5
    except FileNotFoundError:
        raise ChromaboxError(f"{path} does not exist: a picture file is needed") from None
    except Exception as error:  # Pillow raises nearly every kind on damaged bytes; each means the same to the user.
        raise ChromaboxError(f"{path} is not a picture, or its beginning is damaged: a whole file is needed") from error
    return (width, height) if turned else (height, width)


# Its complaints about odd headers would reach the terminal; what matters raises.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Only these decoders are ever tried: Pillow has others that run outside programs (EPS).
_READ_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM")
_WRITE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".ppm": "PPM",
}
IMAGE_SUFFIXES: frozenset[str] = frozenset({*_WRITE_FORMATS, ".gif", ".pgm", ".pbm", ".pnm"})
"""The suffixes by which pictures in a folder are known, in lower case."""
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_GREY_MODES = ("1", "L", "LA")
_HIGH_BIT_GREY_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")

# JPEG with full chroma: the colours are what this package is about. PNG in half the time of Pillow's own level, for an
# eighth more bytes. TIFF has no entry: Pillow's compressing writer fails on an EXIF block, its plain one does not.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"subsampling": 0}, "PNG": {"compress_level": 3}}
_QUALITY_FORMATS = ("JPEG", "WEBP")
_ALPHA_FORMATS = ("PNG", "TIFF", "WEBP")
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
"""Red, green, blue: 0 to 255 where a file has 8 bits for each channel, 0 to 65535 where it has 16."""
Alpha = UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]
PixelValues = UInt8[np.ndarray, "height width channels"] | UInt16[np.ndarray, "height width channels"]
OrientedValues = UInt8[np.ndarray, "rows columns channels"] | UInt16[np.ndarray, "rows columns channels"]
_UINT16_TO_UINT8 = ((np.arange(1 << 16) + 128) // 257).astype(np.uint8)
"""The 8 bit value nearest to each 16 bit one: 65535 = 257 · 255."""


@dataclass(frozen=True)
class ImageData:
    """A picture as read from a file, upright.

    `pixels` are red, green, blue as encoded in the file, at its own depth: sRGB unless `icc` says otherwise. `alpha`
    has the same depth, its greatest value opaque. `was_grey`: the file's kind holds no colours. `format`: Pillow's
    name of the file format. `exif` says no rotation any more. `dpi`: pixels in an inch, across and down. `frames`: how
    many pictures the file holds; the first of them is this one.
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
            raise ValueError(f"alpha is {self.alpha.dtype} and pixels are {self.pixels.dtype}: one depth is right")

    @property
    def bit_depth(self) -> Literal[8, 16]:
        """Bits for each channel."""
        return 8 if self.pixels.dtype == np.uint8 else 16

    @property
    def float_pixels(self) -> Float32[np.ndarray, "height width 3"]:
        """The pixels in [0, 1], a new array at every call."""
        return np.divide(self.pixels, np.iinfo(self.pixels.dtype).max, dtype=np.float32)


def to_uint8(pixels: UInt8[np.ndarray, "*shape"] | UInt16[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values of 16 bits rounded to the nearest of 8; those of 8 bits as they are, not copied."""
    return pixels if pixels.dtype == np.uint8 else _UINT16_TO_UINT8[pixels]


def from_float(
    values: Float[np.ndarray, "*shape"], bit_depth: Literal[8, 16]
) -> UInt8[np.ndarray, "*shape"] | UInt16[np.ndarray, "*shape"]:
    """Values in [0, 1] as integers of that depth: clipped, then rounded to the nearest. None may be not-a-number."""
    kind = np.uint8 if bit_depth == 8 else np.uint16
    return np.rint(np.clip(values, 0, 1) * np.iinfo(kind).max).astype(kind)


def read_image(path: Path, *, max_pixels: int = 200_000_000) -> ImageData:
    """The picture in the file at `path`, upright.

    Refuses, with one sentence as ChromaboxError: a missing or empty file, a folder, pipe or device, what is no picture
    of a known format, a picture cut short or damaged, one of no pixels or of more than `max_pixels` (or than the 179
    million from which Pillow itself refuses), and modes without a defined range. Metadata that cannot be understood is
    left out. PNG and TIFF of 16 bits keep them, grey in [0, 1] as floating-point numbers gets them; CMYK and PPM
    colours of 16 bits are read at 8.
    """
    _check_file(path)
    try:
        # Pillow warns of odd metadata and of sizes; sizes are judged here, and the metadata does not change pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_READ_FORMATS) as image:
                _check_size(path, image.size, max_pixels)
                _check_mode(path, image.mode)
                return _decode(path, image)
    except ChromaboxError:
        raise
    except Image.DecompressionBombError as error:
        allowed = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
        raise ChromaboxError(_too_large_message(path, "far more pixels", allowed)) from error
    except UnidentifiedImageError as error:
        kinds = "JPEG, PNG, TIFF, WebP, BMP, GIF or PPM of 8 or 16 bits"
        raise ChromaboxError(f"{path} is not a picture, or its beginning is damaged: {kinds} is right") from error
    except PermissionError as error:
        raise ChromaboxError(f"{path} may not be read: give yourself the right to read it") from error
    except Exception as error:
        # Pillow's decoders raise nearly every kind of exception on damaged bytes; each means the same to the user.
        remedy = "a whole, undamaged file is needed"
        raise ChromaboxError(f"{path} is cut short or damaged and cannot be decoded ({error}): {remedy}") from error


def write_image(path: Path, image: ImageData | Pixels, *, quality: int = 95) -> None:
    """Writes a picture (or bare pixels) in the format that the suffix names: 16 bits as PNG or TIFF, else 8.

    JPEG, WebP, BMP and PPM have 8 bits for each channel: values of 16 are rounded to the nearest. JPEG, BMP and PPM
    have no alpha: there the picture is laid on white. `quality` (1 to 100) is for JPEG and WebP. A missing parent
    folder is made. Raises UsageError for an unknown suffix or quality, ChromaboxError if the file cannot be written or
    the format's sides end before the picture's; then none is left.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not between 1 and 100")
    kind = _WRITE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} has no suffix of a format that can be written: right are {', '.join(_WRITE_FORMATS)}")
    image = image if isinstance(image, ImageData) else ImageData(image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            _save(aside, kind, image, quality)
    except FileExistsError as error:
        raise ChromaboxError(f"{path} cannot be written as {kind}: its folder is a file") from error
    except (OSError, ValueError, OverflowError, struct.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path} cannot be written as {kind}: {reason}") from error


def find_images(paths: Sequence[Path], *, recursive: bool = True) -> list[tuple[Path, Path]]:
    """The pictures among `paths`: (path, its place in the folder given, or its bare name), for mirroring a tree.

    Files are taken as given, whatever their suffix. In folders, files of a known suffix are taken in sorted order,
    hidden files and folders skipped, links to folders not followed. Raises UsageError for a path that does not
    exist and for a folder without pictures.
    """
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_list_images(path, recursive))
            if not inside:
                raise UsageError(
                    f"the folder {path} holds no pictures: {', '.join(sorted(IMAGE_SUFFIXES))} are looked for"
                )
            found += [(path / place, place) for place in inside]
        elif path.exists():
            found.append((path, Path(path.name)))
        else:
            raise UsageError(f"{path} does not exist: a picture or a folder of pictures is needed")
    return found


def check_not_input(inputs: Sequence[Path], output: Path) -> None:
    """Raises UsageError if `output` is one of `inputs`, by whatever name or link."""
    for path in inputs:
        same = output.exists() and path.exists() and os.path.samefile(path, output)
        if same or path.resolve() == output.resolve():
            raise UsageError(f"{output} is the input {path} itself: choose another output, inputs are never changed")


def make_grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]], *, gap: int = 2, scale: int = 1
) -> UInt8[np.ndarray, "height width 3"]:
    """A sheet of equal tiles on white: each enlarged `scale` times (nearest neighbour), `gap` pixels around each.

    A row shorter than the longest leaves white at its end. Raises ChromaboxError for no tiles or unequal ones.
    """
    shapes = {tile.shape for row in rows for tile in row}
    if len(shapes) != 1 or gap < 0 or scale < 1:
        sizes = ", ".join(f"{width} × {height}" for height, width, _ in sorted(shapes)) or "no tiles"
        problem = f"{sizes}, gap {gap}, scale {scale}"
        raise ChromaboxError(f"a sheet needs tiles of one size, a gap from 0 and a scale from 1, not {problem}")
    height, width, _ = (side * scale for side in next(iter(shapes)))
    columns = max(len(row) for row in rows)
    size = (len(rows) * (height + gap) + gap, columns * (width + gap) + gap, 3)
    sheet = np.full(size, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            top, left = gap + i * (height + gap), gap + j * (width + gap)
            sheet[top : top + height, left : left + width] = tile.repeat(scale, 0).repeat(scale, 1)
    return sheet


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ChromaboxError(f"{path} does not exist: a picture file is needed") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChromaboxError(f"{path} cannot be opened ({reason}): a picture file is needed") from error
    if stat.S_ISDIR(status.st_mode):
        raise ChromaboxError(f"{path} is a folder: a picture file is needed")
    # Opening a pipe would wait for someone to write to it.
    if not stat.S_ISREG(status.st_mode):
        raise ChromaboxError(f"{path} is a pipe or a device: a picture file is needed")
    if status.st_size == 0:
        raise ChromaboxError(f"{path} is empty: a picture file is needed")


def _check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ChromaboxError(f"{path} has no pixels ({width} × {height}): at least 1 × 1 is needed")
    if width * height > max_pixels:
        raise ChromaboxError(_too_large_message(path, f"{width} × {height} pixels", max_pixels))


def _too_large_message(path: Path, claimed_size: str, max_pixels: int) -> str:
    return f"{path} is too large: its header claims {claimed_size}, and at most {max_pixels:,} are read; make it smaller first"


def _check_mode(path: Path, mode: str) -> None:
    if mode not in (*_COLOUR_MODES, *_GREY_MODES, *_HIGH_BIT_GREY_MODES):
        raise ChromaboxError(f"{path} stores its pixels as {mode}, which is not supported: save it as RGB or grey")


def _decode(path: Path, image: Image.Image) -> ImageData:
    """The opened picture, decoded and turned upright."""
    values = _apply_orientation(*_load_values(path, image))
    pixels, alpha = _split_alpha(values)
    was_grey = values.shape[2] <= 2
    if image.mode in ("P", "PA"):
        was_grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    # Of a JPEG with several pictures (MPO) the others are previews, depths and gains, not frames.
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    return ImageData(
        pixels=pixels,
        alpha=alpha,
        is_grey=was_grey,
        format=kind,
        exif=read_exif(image),
        icc=image.info.get("icc_profile") or None,
        dpi=read_dpi(image),
        num_frames=1 if kind == "JPEG" else getattr(image, "n_frames", 1),
    )


def _load_values(path: Path, image: Image.Image) -> tuple[PixelValues, int]:
    """The decoded values and the orientation that they still have."""
    wide = read_16bit(path, image)
    if wide is not None:
        if image.format == "PNG":
            image.load()  # Its metadata may stand behind its pixels.
        return wide, read_orientation(image)
    image.load()
    values = _load_high_bit_grey(path, image) if image.mode in _HIGH_BIT_GREY_MODES else _load_8bit(image)
    # Pillow turns a TIFF while decoding it.
    return values, 1 if image.format == "TIFF" else read_orientation(image)


def _load_8bit(image: Image.Image) -> UInt8[np.ndarray, "height width channels"]:
    """The channels of a picture of 8 bits or fewer in each: 1 grey, 2 with alpha, 3 colour, 4 with alpha."""
    grey = image.mode in _GREY_MODES
    wanted = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    values = np.asarray(image if image.mode == wanted else image.convert(wanted))
    return values[..., None] if values.ndim == 2 else values


def _load_high_bit_grey(path: Path, image: Image.Image) -> UInt16[np.ndarray, "height width 1"]:
    """The values of a grey picture of 32 bit integers up to 65535, or of floating-point values in [0, 1]."""
    values = np.asarray(image)
    top = 1 if image.mode == "F" else 65535
    # Written so that not-a-number, which no comparison holds for, is refused too.
    if not (values.min() >= 0 and values.max() <= top):
        found = f"{values.min()} to {values.max()}"
        raise ChromaboxError(f"{path} holds grey values from {found}, of unknown meaning: 0 to {top} is right")
    grey = from_float(values, 16) if image.mode == "F" else values.astype(np.uint16)
    return grey[..., None]


def _apply_orientation(values: PixelValues, orientation: int) -> OrientedValues:
    """Stored values made upright (EXIF 2.32, 4.6.4 A, tag 0x0112: where row 0 and column 0 are); a view."""
    if orientation >= 5:  # Rows were stored as columns.
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


def _split_alpha(values: PixelValues) -> tuple[Pixels, Alpha | None]:
    """Three colours, and alpha if there is one, of 1 to 4 channels, each in an array of its own without gaps."""
    channels = values.shape[2]
    colours = values[..., :1].repeat(3, axis=2) if channels <= 2 else values[..., :3]
    alpha = np.ascontiguousarray(values[..., -1]) if channels in (2, 4) else None
    return np.ascontiguousarray(colours), alpha


def _save(path: Path, image_format: str, image_data: ImageData, quality: int) -> None:
    pixels, alpha = image_data.pixels, image_data.alpha
    side, longest = max(pixels.shape), _MAX_SIDE.get(image_format)
    if longest is not None and side > longest:
        raise ValueError(f"a side of {side:,} pixels is more than its {longest:,}; PNG and TIFF hold it")
    options = save_options(image_format, image_data.exif, image_data.icc, image_data.dpi)
    if image_data.bit_depth == 16 and image_format in ("PNG", "TIFF"):
        write = write_16bit_png if image_format == "PNG" else write_16bit_tiff
        write(path, pixels if alpha is None else np.dstack([pixels, alpha]), **options)
        return
    options |= _SAVE_OPTIONS.get(image_format, {})
    if image_format in _QUALITY_FORMATS:
        options["quality"] = quality
    image = Image.fromarray(to_uint8(pixels))
    if alpha is not None:
        opacity = Image.fromarray(to_uint8(alpha))
        if image_format in _ALPHA_FORMATS:
            image.putalpha(opacity)
        else:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), opacity)
    image.save(path, format=image_format, **options)


def _list_images(folder: Path, recursive: bool) -> Iterator[Path]:
    """The places, inside `folder`, of its pictures, in no order."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield (Path(top) / name).relative_to(folder)
