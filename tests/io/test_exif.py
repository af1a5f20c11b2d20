"""Metadata: entries that are kept, entries that are omitted, and invalid entries, which must not raise."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from chromabox.io.exif import FileMetadata, keep_descriptive, read_dpi, read_exif, read_orientation, save_options

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def save_and_open(image_format: str = "PNG", **options: object) -> Image.Image:
    buffer = BytesIO()
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(buffer, image_format, **options)
    return Image.open(buffer)


def exif_with(tags: dict[int, object]) -> Image.Exif:
    exif = Image.Exif()
    exif.update(tags)
    return exif


@pytest.mark.parametrize(("value", "expected"), [(None, 1), (1, 1), (6, 6), (8, 8), (0, 1), (9, 1), (65535, 1)])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_invalid_orientations_are_upright(image_format: str, value: int | None, expected: int) -> None:
    options = {} if value is None else {"exif": exif_with({0x0112: value})}
    image = save_and_open(image_format, **options)
    assert read_orientation(image) == expected


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as read_image does
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nothing"])
def test_invalid_exif_is_omitted(block: bytes) -> None:
    image = save_and_open("JPEG", exif=block)
    assert read_orientation(image) == 1
    assert read_exif(image) is None


def test_exif_is_read_without_orientation() -> None:
    assert read_exif(save_and_open(exif=exif_with({0x0112: 6}))) is None
    exif = Image.Exif()
    exif.load(read_exif(save_and_open(exif=exif_with({0x0112: 6, 0x010F: "Maker"}))))
    assert dict(exif) == {0x010F: "Maker"}


def test_only_descriptive_tags_are_kept() -> None:
    exif = exif_with({0x010F: "Maker", 0x0100: 640, 0x0111: 8})  # maker, width, strip offsets
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    descriptive = keep_descriptive(exif)
    assert dict(descriptive) == {0x010F: "Maker"}
    assert descriptive.get_ifd(0x8769) == {0x9003: "2001:02:03 04:05:06"}
    assert not descriptive.get_ifd(0x8825)


@pytest.mark.parametrize(
    ("dpi", "expected"),
    [
        ((300, 150), (300.0, 150.0)),
        ((0, 300), None),
        ((300, -1), None),
        ((300, float("nan")), None),
        ((float("inf"), 300), None),
        ((300,), None),
        ("ab", None),
        (None, None),
    ],
)
def test_only_valid_resolutions_are_read(dpi: object, expected: tuple[float, float] | None) -> None:
    image = Image.new("RGB", (1, 1))
    image.info["dpi"] = dpi
    assert read_dpi(image) == expected
    assert read_dpi(Image.new("RGB", (1, 1))) is None


FORMATS = {
    "PNG": {"exif", "icc_profile", "dpi"},
    "JPEG": {"exif", "icc_profile", "dpi"},
    "TIFF": {"exif", "icc_profile", "dpi"},
    "WEBP": {"exif", "icc_profile"},
    "BMP": {"dpi"},
    "PPM": set(),
}


@pytest.mark.parametrize("image_format", FORMATS)
def test_save_options_match_the_format(image_format: str) -> None:
    assert (
        set(save_options(image_format, FileMetadata(exif=b"Exif", icc=SRGB, dpi=(72.0, 72.0)))) == FORMATS[image_format]
    )
    assert save_options(image_format, FileMetadata()) == {}


@pytest.mark.parametrize(
    "icc",
    [b"", b"none", SRGB[:100], SRGB[:16] + b"GRAY" + SRGB[20:], SRGB[:16] + b"CMYK" + SRGB[20:], bytes(500)],
    ids=["empty", "text", "truncated", "grey", "cmyk", "zeros"],
)
def test_profile_for_other_than_rgb_is_omitted(icc: bytes) -> None:
    assert save_options("PNG", FileMetadata(icc=icc)) == {}


def test_exif_longer_than_a_jpeg_segment_is_omitted_only_in_jpeg() -> None:
    assert save_options("JPEG", FileMetadata(exif=bytes(65_534))) == {}
    assert save_options("PNG", FileMetadata(exif=bytes(65_534))) == {"exif": bytes(65_534)}
