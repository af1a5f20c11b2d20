"""Strange pictures give the exact right result, damaged ones one clear sentence, and no file is ever touched.

What is right is known because the files are built from known values; JPEG, which is lossy, holds flat areas.
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
SCENE = RNG.integers(0, 256, (12, 20, 3), np.uint8)
WIDE = RNG.integers(0, 65536, (12, 20, 3)).astype(np.uint16)
FLAT = np.zeros((32, 48, 3), np.uint8)
FLAT[:16, :16], FLAT[:16, 16:], FLAT[16:, :16], FLAT[16:, 16:] = (200, 40, 40), (40, 200, 40), (40, 40, 200), 90
GREY, ALPHA = RNG.integers(0, 256, (2, 12, 20), np.uint8)
FRAMES = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    held = BytesIO()
    Image.fromarray(pixels).save(held, kind, **options)
    return held.getvalue()


def with_chunk(kind: bytes, body: bytes) -> bytes:
    """The scene as PNG with one more chunk after its header."""
    whole = encoded(SCENE, "PNG")
    return whole[:33] + chunk(kind, body) + whole[33:]


def claims(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels are next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, **options: object) -> bytes:
    held = BytesIO()
    tifffile.imwrite(held, values, **options)
    return held.getvalue()


def moving(kind: str, **options: object) -> bytes:
    held = BytesIO()
    FRAMES[0].save(held, kind, save_all=True, append_images=FRAMES[1:], **options)
    return held.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def upright(orientation: int) -> np.ndarray:
    """Pillow's own idea of what the flat areas are when they carry an orientation."""
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(encoded(FLAT, "PNG", exif=turned(orientation))))))


def grey_of(values: np.ndarray) -> np.ndarray:
    return values[..., None].repeat(3, axis=2)


PALETTE = Image.fromarray(SCENE).quantize(16)
PALETTE_COLOURS = np.asarray(PALETTE.convert("RGB"))
CLEAR = int(PALETTE.getpixel((0, 0)))
NOT_CLEAR = np.where(np.asarray(PALETTE) == CLEAR, 0, 255)
WIDEST, HIGHEST = SCENE[:1].repeat(1000, axis=1), SCENE[:10, :1].repeat(2000, axis=0)
BITS = ALPHA > 127
FLOATS = RNG.random((12, 20)).astype(np.float32)
IN_16_BITS = np.rint(FLOATS.astype(np.float64) * 65535)


def palette(**options: object) -> bytes:
    held = BytesIO()
    PALETTE.save(held, "PNG", **options)
    return held.getvalue()


SHARP = {"quality": 95, "subsampling": 0}
LOSSLESS = {"lossless": True, "exact": True}


@dataclass
class Right:
    """What a file is called, what it holds, and what must come out; lossy values may be off by the tolerance."""

    name: str
    content: bytes
    pixels: np.ndarray
    alpha: np.ndarray | None = None
    frames: int = 1
    tolerance: int = 0


def jpeg(**options: object) -> Right:
    return Right("a.jpg", encoded(FLAT, "JPEG", **SHARP, **options), FLAT, tolerance=3)


def cmyk_jpeg(stored_as: str) -> Right:
    """No black, and all inverted as Adobe's programs store it: the inks are red, green and blue themselves."""
    red = FLAT[:16, :16]
    inks = np.dstack([red, np.full(red.shape[:2], 255, np.uint8)])
    content = imagecodecs.jpeg8_encode(inks, 95, colorspace="CMYK", outcolorspace=stored_as)
    return Right("a.jpg", content, red, tolerance=3)


def turned_picture(kind: str, orientation: int) -> Right:
    options = {"JPEG": SHARP, "WEBP": LOSSLESS}.get(kind, {})
    content = encoded(FLAT, kind, exif=turned(orientation), **options)
    return Right("a." + kind.lower(), content, upright(orientation), tolerance=3 if kind == "JPEG" else 0)


WITH_ALPHA = np.dstack([SCENE, ALPHA])
WIDE_GREY = WIDE[..., 0].copy()
RIGHT = {
    "a PNG by the name of JPEG": Right("a.jpg", encoded(SCENE, "PNG"), SCENE),
    "a JPEG by the name of PNG": replace(jpeg(), name="a.png"),
    "no suffix": Right("picture", encoded(SCENE, "PNG"), SCENE),
    "CMYK JPEG": cmyk_jpeg("CMYK"),
    "YCCK JPEG": cmyk_jpeg("YCCK"),
    "palette": Right("a.png", palette(), PALETTE_COLOURS),
    "palette with a clear colour": Right("a.png", palette(transparency=CLEAR), PALETTE_COLOURS, NOT_CLEAR),
    "1 bit": Right("a.png", encoded(BITS, "PNG"), grey_of(BITS * 255)),
    "grey and alpha": Right("a.png", encoded(np.dstack([GREY, ALPHA]), "PNG"), grey_of(GREY), ALPHA),
    "one pixel": Right("a.png", encoded(SCENE[:1, :1], "PNG"), SCENE[:1, :1]),
    "one pixel of JPEG": Right("a.jpg", encoded(FLAT[:1, :1], "JPEG", quality=95), FLAT[:1, :1], tolerance=3),
    "20,000 wide": Right("a.png", encoded(WIDEST, "PNG"), WIDEST),
    "20,000 high": Right("a.tif", encoded(HIGHEST, "TIFF", compression="tiff_lzw"), HIGHEST),
    "16 bit grey PNG": Right("a.png", imagecodecs.png_encode(WIDE_GREY), grey_of(WIDE_GREY)),
    "16 bit colour PNG": Right("a.png", imagecodecs.png_encode(WIDE), WIDE),
    "16 bit grey TIFF": Right("a.tif", tiff(WIDE_GREY, byteorder=">"), grey_of(WIDE_GREY)),
    "16 bit colour TIFF": Right("a.tif", tiff(WIDE, photometric="rgb", compression="lzw"), WIDE),
    "float TIFF": Right("a.tif", tiff(FLOATS), grey_of(IN_16_BITS), tolerance=1),
    "moving GIF": Right("a.gif", moving("GIF"), RED, frames=3),
    "moving WebP": Right("a.webp", moving("WEBP", lossless=True), RED, frames=3),
    "moving PNG": Right("a.png", moving("PNG"), RED, frames=3),
    "many pages": Right("a.tif", moving("TIFF"), RED, frames=3),
    "alpha PNG": Right("a.png", encoded(WITH_ALPHA, "PNG"), SCENE, ALPHA),
    "alpha WebP": Right("a.webp", encoded(WITH_ALPHA, "WEBP", **LOSSLESS), SCENE, ALPHA),
    "alpha TIFF": Right("a.tif", encoded(WITH_ALPHA, "TIFF"), SCENE, ALPHA),
    "EXIF that is none": jpeg(exif=b"Exif\0\0no EXIF"),
    "EXIF cut short": jpeg(exif=turned(1)[:20]),
    "EXIF chunk that is none": Right("a.png", with_chunk(b"eXIf", b"no EXIF at all"), SCENE),
    "orientation 9": Right("a.png", encoded(SCENE, "PNG", exif=turned(9)), SCENE),
    "profile that is none": jpeg(icc_profile=b"none"),
    "profile that cannot be unpacked": Right("a.png", with_chunk(b"iCCP", b"x\0\0not deflated"), SCENE),
    **{
        f"{kind} of orientation {orientation}": turned_picture(kind, orientation)
        for kind in ("JPEG", "PNG", "TIFF", "WEBP")
        for orientation in range(1, 9)
    },
}


@pytest.mark.parametrize("case", RIGHT)
def test_strange_pictures_give_the_right_result(tmp_path: Path, case: str) -> None:
    right = RIGHT[case]
    path = tmp_path / right.name
    path.write_bytes(right.content)
    picture = read_image(path)
    assert path.read_bytes() == right.content
    assert picture.pixels.shape == right.pixels.shape
    np.testing.assert_allclose(picture.pixels.astype(np.int64), right.pixels, rtol=0, atol=right.tolerance)
    assert (picture.alpha is None) == (right.alpha is None)
    if right.alpha is not None:
        np.testing.assert_array_equal(picture.alpha, right.alpha)
    assert picture.num_frames == right.frames
    # What was read can be written and is read again the same, the turning not done twice.
    write_image(tmp_path / "again.png", picture)
    again = read_image(tmp_path / "again.png")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    with Image.open(tmp_path / "again.png") as opened:
        assert opened.getexif().get(0x0112, 1) == 1
        assert "icc_profile" not in opened.info


def bytes_at(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def half(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    whole = encoded(pixels, kind, **options)
    return whole[: len(whole) // 2]


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


DAMAGED = "is cut short or damaged and cannot be decoded"
UNKNOWN = "is not a picture, or its beginning is damaged"
BAD = {
    "JPEG cut short": (bytes_at("a.jpg", half(FLAT, "JPEG")), DAMAGED),
    "JPEG without its end": (bytes_at("a.jpg", encoded(SCENE, "JPEG")[:-60]), DAMAGED),
    "PNG cut short": (bytes_at("a.png", half(SCENE, "PNG")), DAMAGED),
    "16 bit PNG cut short": (bytes_at("a.png", imagecodecs.png_encode(WIDE)[:700]), DAMAGED),
    "TIFF cut short": (bytes_at("a.tif", half(SCENE, "TIFF")), DAMAGED),
    "compressed TIFF cut short": (bytes_at("a.tif", tiff(SCENE, photometric="rgb", compression="lzw")[:-200]), DAMAGED),
    "16 bit TIFF cut short": (bytes_at("a.tif", tiff(WIDE, photometric="rgb")[:-200]), DAMAGED),
    "16 bit compressed TIFF cut short": (
        bytes_at("a.tif", tiff(WIDE, photometric="rgb", compression="deflate")[:-200]),
        DAMAGED,
    ),
    "WebP cut short": (bytes_at("a.webp", half(SCENE, "WEBP")), DAMAGED),
    "GIF cut short": (bytes_at("a.gif", half(SCENE, "GIF")), UNKNOWN),
    "a changed byte": (bytes_at("a.png", encoded(SCENE, "PNG").replace(b"IDAT", b"IDAT\xff", 1)), DAMAGED),
    "no bytes": (bytes_at("a.png", b""), "is empty: a picture file is needed"),
    "text": (bytes_at("a.jpg", b"Dear Sir, enclosed is no picture."), UNKNOWN),
    "bomb": (bytes_at("a.png", claims(100_000, 100_000)), "is too large: its header claims far more pixels"),
    "float TIFF out of range": (bytes_at("a.tif", tiff(FLOATS * 255)), "of unknown meaning: 0 to 1 is right"),
    "float TIFF below 0": (bytes_at("a.tif", tiff(FLOATS - 1)), "of unknown meaning: 0 to 1 is right"),
    "float colour TIFF": (bytes_at("a.tif", tiff(WIDE / np.float32(65535), photometric="rgb")), UNKNOWN),
    "a folder": (sub_folder, "is a folder: a picture file is needed"),
    "a pipe": (pipe, "is a pipe or a device: a picture file is needed"),
    "a device": (lambda folder: Path(os.devnull), "is a pipe or a device: a picture file is needed"),
    "nothing": (lambda folder: folder / "a.png", "does not exist: a picture file is needed"),
    "inside a file": (
        lambda folder: bytes_at("a.png", b"x")(folder) / "b.png",
        "does not exist: a picture file is needed",
    ),
    "a link to itself": (loop, "cannot be opened (Too many levels of symbolic links): a picture file is needed"),
    "a name too long": (lambda folder: folder / ("a" * 300), "cannot be opened (File name too long)"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_pictures_give_one_sentence(tmp_path: Path, case: str) -> None:
    make, sentence = BAD[case]
    path = make(tmp_path)
    before = {item: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()}
    with pytest.raises(ChromaboxError) as caught:
        read_image(path)
    said = str(caught.value)
    assert said.startswith(f"{path} {sentence}" if "of unknown" not in sentence else f"{path} holds")
    assert sentence in said
    assert "\n" not in said
    assert {item: item.read_bytes() for item in tmp_path.iterdir() if item.is_file()} == before


def into_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"mine")
    return folder / "file" / "a.png"


BAD_OUTPUTS = {
    "inside a file": (into_a_file, ChromaboxError, "cannot be written as PNG: its folder is a file"),
    "a folder": (sub_folder, ChromaboxError, "cannot be written as PNG: Is a directory"),
    "a name too long": (lambda folder: folder / ("a" * 300 + ".png"), ChromaboxError, "cannot be written as PNG"),
    "unknown suffix": (lambda folder: folder / "a.xcf", UsageError, "has no suffix of a format that can be written"),
    "no suffix": (lambda folder: folder / "a", UsageError, "has no suffix of a format that can be written"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
@pytest.mark.parametrize("pixels", [SCENE, WIDE], ids=["8", "16"])
def test_outputs_that_cannot_be_written_give_one_sentence(tmp_path: Path, case: str, pixels: np.ndarray) -> None:
    make, kind, sentence = BAD_OUTPUTS[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind) as caught:
        write_image(path, pixels)
    assert str(caught.value).startswith(f"{path} {sentence}")
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a.png", "soft.png", "hard.png", "deep/../a.png"])
def test_an_output_that_is_the_input_gives_one_sentence(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.png", SCENE)
    (tmp_path / "soft.png").symlink_to(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "deep").mkdir()
    with pytest.raises(UsageError, match=r"is the input .*: choose another output, inputs are never changed"):
        check_not_input([tmp_path / "a.png"], tmp_path / name)


def test_a_folder_of_nothing_known_gives_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match="holds no pictures"):
        find_images([tmp_path])
