"""Unusual images are read exactly, corrupt ones raise a one-line error, and no input file is modified.

The files are built from known values, which are the expected results; JPEG, which is lossy, contains flat areas.
"""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.images import check_not_input, find_images, read_image, write_image

RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (12, 20, 3), np.uint8)
PIXELS16 = RNG.integers(0, 65536, (12, 20, 3)).astype(np.uint16)
FLAT = np.zeros((32, 48, 3), np.uint8)
FLAT[:16, :16], FLAT[:16, 16:], FLAT[16:, :16], FLAT[16:, 16:] = (200, 40, 40), (40, 200, 40), (40, 40, 200), 90
GREY, ALPHA = RNG.integers(0, 256, (2, 12, 20), np.uint8)
FRAMES = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def chunk(chunk_type: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + chunk_type + body + struct.pack(">I", zlib.crc32(chunk_type + body))


def encode(pixels: np.ndarray, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def png_with_chunk(chunk_type: bytes, body: bytes) -> bytes:
    """Return the pixels as PNG with an additional chunk after the header."""
    content = encode(PIXELS, "PNG")
    return content[:33] + chunk(chunk_type, body) + content[33:]


def png_header(width: int, height: int) -> bytes:
    """Return a PNG with the given size in its header and almost no data."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def encode_frames(image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    FRAMES[0].save(buffer, image_format, save_all=True, append_images=FRAMES[1:], **options)
    return buffer.getvalue()


def exif_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def upright(orientation: int) -> np.ndarray:
    """Return the flat areas with an orientation applied by Pillow's exif_transpose."""
    content = encode(FLAT, "PNG", exif=exif_orientation(orientation))
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))))


def repeat_grey(values: np.ndarray) -> np.ndarray:
    return values[..., None].repeat(3, axis=2)


PALETTE = Image.fromarray(PIXELS).quantize(16)
PALETTE_COLOURS = np.asarray(PALETTE.convert("RGB"))
TRANSPARENT_INDEX = int(PALETTE.getpixel((0, 0)))
PALETTE_ALPHA = np.where(np.asarray(PALETTE) == TRANSPARENT_INDEX, 0, 255)
WIDE_STRIP, TALL_STRIP = PIXELS[:1].repeat(1000, axis=1), PIXELS[:10, :1].repeat(2000, axis=0)
BITS = ALPHA > 127
FLOATS = RNG.random((12, 20)).astype(np.float32)
FLOATS16 = np.rint(FLOATS.astype(np.float64) * 65535)


def palette(**options: object) -> bytes:
    buffer = BytesIO()
    PALETTE.save(buffer, "PNG", **options)
    return buffer.getvalue()


SHARP = {"quality": 95, "subsampling": 0}
LOSSLESS = {"lossless": True, "exact": True}


@dataclass
class ValidImage:
    """Name and content of a file, and the expected result; `tolerance` is for lossy formats."""

    name: str
    content: bytes
    pixels: np.ndarray
    alpha: np.ndarray | None = None
    frames: int = 1
    tolerance: int = 0


def jpeg(**options: object) -> ValidImage:
    return ValidImage("a.jpg", encode(FLAT, "JPEG", **SHARP, **options), FLAT, tolerance=3)


def cmyk_jpeg(stored_as: str) -> ValidImage:
    """Return a CMYK JPEG without black, inverted as in Adobe's programs: the inks are equal to RGB."""
    red = FLAT[:16, :16]
    inks = np.dstack([red, np.full(red.shape[:2], 255, np.uint8)])
    content = imagecodecs.jpeg8_encode(inks, 95, colorspace="CMYK", outcolorspace=stored_as)
    return ValidImage("a.jpg", content, red, tolerance=3)


def image_with_orientation(image_format: str, orientation: int) -> ValidImage:
    options = {"JPEG": SHARP, "WEBP": LOSSLESS}.get(image_format, {})
    content = encode(FLAT, image_format, exif=exif_orientation(orientation), **options)
    return ValidImage(
        "a." + image_format.lower(), content, upright(orientation), tolerance=3 if image_format == "JPEG" else 0
    )


WITH_ALPHA = np.dstack([PIXELS, ALPHA])
GREY16 = PIXELS16[..., 0].copy()
VALID_IMAGES = {
    "PNG with the suffix of JPEG": ValidImage("a.jpg", encode(PIXELS, "PNG"), PIXELS),
    "JPEG with the suffix of PNG": replace(jpeg(), name="a.png"),
    "no suffix": ValidImage("image", encode(PIXELS, "PNG"), PIXELS),
    "CMYK JPEG": cmyk_jpeg("CMYK"),
    "YCCK JPEG": cmyk_jpeg("YCCK"),
    "palette": ValidImage("a.png", palette(), PALETTE_COLOURS),
    "palette with a transparent colour": ValidImage(
        "a.png", palette(transparency=TRANSPARENT_INDEX), PALETTE_COLOURS, PALETTE_ALPHA
    ),
    "1 bit": ValidImage("a.png", encode(BITS, "PNG"), repeat_grey(BITS * 255)),
    "grey and alpha": ValidImage("a.png", encode(np.dstack([GREY, ALPHA]), "PNG"), repeat_grey(GREY), ALPHA),
    "one pixel": ValidImage("a.png", encode(PIXELS[:1, :1], "PNG"), PIXELS[:1, :1]),
    "one pixel of JPEG": ValidImage("a.jpg", encode(FLAT[:1, :1], "JPEG", quality=95), FLAT[:1, :1], tolerance=3),
    "20,000 wide": ValidImage("a.png", encode(WIDE_STRIP, "PNG"), WIDE_STRIP),
    "20,000 high": ValidImage("a.tif", encode(TALL_STRIP, "TIFF", compression="tiff_lzw"), TALL_STRIP),
    "16 bit grey PNG": ValidImage("a.png", imagecodecs.png_encode(GREY16), repeat_grey(GREY16)),
    "16 bit colour PNG": ValidImage("a.png", imagecodecs.png_encode(PIXELS16), PIXELS16),
    "16 bit grey TIFF": ValidImage("a.tif", tiff(GREY16, byteorder=">"), repeat_grey(GREY16)),
    "16 bit colour TIFF": ValidImage("a.tif", tiff(PIXELS16, photometric="rgb", compression="lzw"), PIXELS16),
    "float TIFF": ValidImage("a.tif", tiff(FLOATS), repeat_grey(FLOATS16), tolerance=1),
    "animated GIF": ValidImage("a.gif", encode_frames("GIF"), RED, frames=3),
    "animated WebP": ValidImage("a.webp", encode_frames("WEBP", lossless=True), RED, frames=3),
    "animated PNG": ValidImage("a.png", encode_frames("PNG"), RED, frames=3),
    "multi-page TIFF": ValidImage("a.tif", encode_frames("TIFF"), RED, frames=3),
    "alpha PNG": ValidImage("a.png", encode(WITH_ALPHA, "PNG"), PIXELS, ALPHA),
    "alpha WebP": ValidImage("a.webp", encode(WITH_ALPHA, "WEBP", **LOSSLESS), PIXELS, ALPHA),
    "alpha TIFF": ValidImage("a.tif", encode(WITH_ALPHA, "TIFF"), PIXELS, ALPHA),
    "invalid EXIF": jpeg(exif=b"Exif\0\0no EXIF"),
    "truncated EXIF": jpeg(exif=exif_orientation(1)[:20]),
    "invalid EXIF chunk": ValidImage("a.png", png_with_chunk(b"eXIf", b"no EXIF at all"), PIXELS),
    "orientation 9": ValidImage("a.png", encode(PIXELS, "PNG", exif=exif_orientation(9)), PIXELS),
    "invalid profile": jpeg(icc_profile=b"none"),
    "profile with invalid compression": ValidImage("a.png", png_with_chunk(b"iCCP", b"x\0\0not deflated"), PIXELS),
    **{
        f"{image_format} with orientation {orientation}": image_with_orientation(image_format, orientation)
        for image_format in ("JPEG", "PNG", "TIFF", "WEBP")
        for orientation in range(1, 9)
    },
}


@pytest.mark.parametrize("case", VALID_IMAGES)
def test_unusual_images_are_read_exactly(tmp_path: Path, case: str) -> None:
    expected = VALID_IMAGES[case]
    path = tmp_path / expected.name
    path.write_bytes(expected.content)
    image = read_image(path)
    assert path.read_bytes() == expected.content
    assert image.pixels.shape == expected.pixels.shape
    np.testing.assert_allclose(image.pixels.astype(np.int64), expected.pixels, rtol=0, atol=expected.tolerance)
    assert (image.alpha is None) == (expected.alpha is None)
    if expected.alpha is not None:
        np.testing.assert_array_equal(image.alpha, expected.alpha)
    assert image.num_frames == expected.frames
    # The image can be written and read again without a second rotation.
    write_image(tmp_path / "again.png", image)
    again = read_image(tmp_path / "again.png")
    np.testing.assert_array_equal(again.pixels, image.pixels)
    with Image.open(tmp_path / "again.png") as opened:
        assert opened.getexif().get(0x0112, 1) == 1
        assert "icc_profile" not in opened.info


def bytes_at(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def encode_half(pixels: np.ndarray, image_format: str, **options: object) -> bytes:
    content = encode(pixels, image_format, **options)
    return content[: len(content) // 2]


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


def sub_folder(folder: Path) -> Path:
    (folder / "a.png").mkdir()
    return folder / "a.png"


def loop(folder: Path) -> Path:
    (folder / "a.png").symlink_to("b.png")
    (folder / "b.png").symlink_to("a.png")
    return folder / "a.png"


def webp_header(width: int, height: int) -> bytes:
    """Return an animated WebP whose header (WebP container specification, "VP8X") has the given size."""
    content = encode_frames("WEBP", lossless=True)
    position = content.index(b"VP8X") + 12
    size = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    return content[:position] + size + content[position + 6 :]


FLOAT_COLOURS = PIXELS16 / np.float32(65535)
FLOAT_RANGE = ": unsupported values from "
TOO_FEW_BYTES = "cannot be decoded: the file is truncated or corrupt ("
GREY_RANGE = "; expected 0 to 1"
TRUNCATED = "cannot be decoded: the file is truncated or corrupt"
UNKNOWN = "is not an image, or its kind is unknown"
INVALID_IMAGES = {
    "truncated JPEG": (bytes_at("a.jpg", encode_half(FLAT, "JPEG")), TRUNCATED),
    "JPEG without its last bytes": (bytes_at("a.jpg", encode(PIXELS, "JPEG")[:-60]), TRUNCATED),
    "truncated PNG": (bytes_at("a.png", encode_half(PIXELS, "PNG")), TRUNCATED),
    "truncated 16 bit PNG": (bytes_at("a.png", imagecodecs.png_encode(PIXELS16)[:700]), TRUNCATED),
    "truncated TIFF": (bytes_at("a.tif", encode_half(PIXELS, "TIFF")), TRUNCATED),
    "truncated compressed TIFF": (
        bytes_at("a.tif", tiff(PIXELS, photometric="rgb", compression="lzw")[:-200]),
        TRUNCATED,
    ),
    "truncated 16 bit TIFF": (bytes_at("a.tif", tiff(PIXELS16, photometric="rgb")[:-200]), TRUNCATED),
    "truncated 16 bit compressed TIFF": (
        bytes_at("a.tif", tiff(PIXELS16, photometric="rgb", compression="deflate")[:-200]),
        TRUNCATED,
    ),
    "truncated WebP": (bytes_at("a.webp", encode_half(PIXELS, "WEBP")), TRUNCATED),
    "truncated GIF": (
        bytes_at("a.gif", encode_half(PIXELS, "GIF")),
        "is damaged: the header of the GIF image is corrupt",
    ),
    "changed byte": (bytes_at("a.png", encode(PIXELS, "PNG").replace(b"IDAT", b"IDAT\xff", 1)), TRUNCATED),
    "empty file": (bytes_at("a.png", b""), "is empty: expected an image file"),
    "text file": (bytes_at("a.jpg", b"This is a text file."), UNKNOWN),
    "decompression bomb": (
        bytes_at("a.png", png_header(100_000, 100_000)),
        "is too large: its header states far more pixels",
    ),
    "float TIFF out of range": (bytes_at("a.tif", tiff(FLOATS * 255)), GREY_RANGE),
    "float TIFF below 0": (bytes_at("a.tif", tiff(FLOATS - 1)), GREY_RANGE),
    "float colour TIFF out of range": (bytes_at("a.tif", tiff(FLOAT_COLOURS * 2, photometric="rgb")), FLOAT_RANGE),
    "float colour TIFF with NaN": (
        bytes_at("a.tif", tiff(np.where(FLOAT_COLOURS > 0.9, np.nan, FLOAT_COLOURS), photometric="rgb")),
        ": unsupported values that include NaN; expected 0 to 1",
    ),
    "PNG with far too little data": (bytes_at("a.png", png_header(10_000, 10_000)), TOO_FEW_BYTES),
    "BMP with far too little data": (
        bytes_at("a.bmp", encode(PIXELS, "BMP").replace(struct.pack("<2i", 20, 12), struct.pack("<2i", 10_000, 9_000))),
        TOO_FEW_BYTES,
    ),
    "WebP with far too little data": (bytes_at("a.webp", webp_header(16_000, 9_000)), TOO_FEW_BYTES),
    "folder": (sub_folder, "is a folder: expected an image file"),
    "pipe": (pipe, "is a pipe or a device: expected an image file"),
    "device": (lambda folder: Path(os.devnull), "is a pipe or a device: expected an image file"),
    "missing file": (lambda folder: folder / "a.png", "does not exist: expected an image file"),
    "file in place of the folder": (
        lambda folder: bytes_at("a.png", b"x")(folder) / "b.png",
        "does not exist: expected an image file",
    ),
    "symbolic link loop": (loop, "cannot be opened (Too many levels of symbolic links): expected an image file"),
    "too long name": (lambda folder: folder / ("a" * 300), "cannot be opened (File name too long)"),
}


@pytest.mark.parametrize("case", INVALID_IMAGES)
def test_invalid_images_raise_a_one_line_error(tmp_path: Path, case: str) -> None:
    make, message = INVALID_IMAGES[case]
    path = make(tmp_path)
    before = {item: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()}
    with pytest.raises(ChromaboxError) as caught:
        read_image(path)
    error_message = str(caught.value)
    start = f"{path}{message}" if message.startswith(":") else f"{path} {message}"
    assert error_message.startswith(f"{path}: unsupported values" if message == GREY_RANGE else start)
    assert ("bytes are too few for" in error_message) == (message == TOO_FEW_BYTES)
    assert message in error_message
    assert "\n" not in error_message
    assert {item: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()} == before


JPEG_OPTIONS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 100, "subsampling": 0}]


@pytest.mark.parametrize("options", JPEG_OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_that_lacks_only_its_end_marker_is_read(tmp_path: Path, mode: str, options: dict[str, object]) -> None:
    smooth = Image.fromarray(PIXELS).resize((90, 70), Image.Resampling.BICUBIC).convert(mode)
    buffer = BytesIO()
    smooth.save(buffer, "JPEG", **options)
    content = buffer.getvalue()
    expected = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    path = tmp_path / "a.jpg"
    note = ("the end marker of the JPEG file is missing, but the image is complete",)
    ends = (content[:-2], content[:-1], content[:-2] + bytes(40))
    for end in ends:
        path.write_bytes(end)
        image = read_image(path)
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.notes == note
    # At every other position, image data are missing: an error, except where only padding bits or zeros are missing.
    num_read = 0
    for length in [*range(len(content) - 20, len(content) - 2), *range(len(content) // 3, len(content) - 20, 211)]:
        path.write_bytes(content[:length])
        try:
            image = read_image(path)
        except ChromaboxError as error:
            assert TRUNCATED in str(error)  # noqa: PT017
        else:
            num_read += 1
            np.testing.assert_array_equal(image.pixels, expected)
    assert num_read <= 3


def test_progressive_jpeg_that_ends_after_a_scan_is_rejected(tmp_path: Path) -> None:
    content = encode(FLAT, "JPEG", progressive=True)
    scans = [start for start in range(len(content)) if content[start : start + 2] == b"\xff\xda"]
    path = tmp_path / "a.jpg"
    for start in scans[1:]:
        path.write_bytes(content[: content.rindex(b"\xff\xc4", 0, start)])  # Before the Huffman table of the scan.
        with pytest.raises(ChromaboxError, match=TRUNCATED):
            read_image(path)


@pytest.mark.parametrize("trailer", [b"trailer", bytes(500), b"\xff\xda\0\x08\xff", RNG.bytes(4000)], ids=range(4))
def test_data_after_the_end_marker_of_a_jpeg_are_ignored(tmp_path: Path, trailer: bytes) -> None:
    content = encode(FLAT, "JPEG", exif=exif_orientation(1))
    (tmp_path / "a.jpg").write_bytes(content + trailer)
    image = read_image(tmp_path / "a.jpg")
    assert image.notes == ()
    np.testing.assert_array_equal(image.pixels, np.asarray(Image.open(BytesIO(content))))


def test_truncated_jpeg_that_is_padded_with_zeros_is_rejected(tmp_path: Path) -> None:
    content = encode(PIXELS, "JPEG")
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 9 // 10] + bytes(5000))
    with pytest.raises(ChromaboxError, match=TRUNCATED):
        read_image(tmp_path / "a.jpg")


def inside_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"mine")
    return folder / "file" / "a.png"


INVALID_OUTPUTS = {
    "file in place of the folder": (inside_a_file, ChromaboxError, " cannot be written as PNG: its parent is a file"),
    "folder": (sub_folder, ChromaboxError, " cannot be written as PNG: Is a directory"),
    "too long name": (lambda folder: folder / ("a" * 300 + ".png"), ChromaboxError, " cannot be written as PNG"),
    "unknown suffix": (lambda folder: folder / "a.xcf", UsageError, ": images cannot be written with this suffix"),
    "no suffix": (lambda folder: folder / "a", UsageError, ": images cannot be written with this suffix"),
}


@pytest.mark.parametrize("case", INVALID_OUTPUTS)
@pytest.mark.parametrize("pixels", [PIXELS, PIXELS16], ids=["8", "16"])
def test_invalid_outputs_raise_a_one_line_error(tmp_path: Path, case: str, pixels: np.ndarray) -> None:
    make, error_type, message = INVALID_OUTPUTS[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error_type) as caught:
        write_image(path, pixels)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a.png", "soft.png", "hard.png", "deep/../a.png"])
def test_output_that_is_the_input_is_rejected(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.png", PIXELS)
    (tmp_path / "soft.png").symlink_to(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "deep").mkdir()
    with pytest.raises(UsageError, match=r"is the same file as the input .*: use a different output path"):
        check_not_input([tmp_path / "a.png"], tmp_path / name)


def test_folder_without_images_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ChromaboxError, match="contains no images"):
        find_images([tmp_path])
