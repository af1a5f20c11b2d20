"""Metadata: what is kept, what is left out, and that nothing a file says can raise."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from chromabox.io.exif import keep_descriptive, read_dpi, read_exif, read_orientation, save_options

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def opened(kind: str = "PNG", **options: object) -> Image.Image:
    held = BytesIO()
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(held, kind, **options)
    return Image.open(held)


def exif_with(tags: dict[int, object]) -> Image.Exif:
    exif = Image.Exif()
    exif.update(tags)
    return exif


@pytest.mark.parametrize(("said", "found"), [(None, 1), (1, 1), (6, 6), (8, 8), (0, 1), (9, 1), (65535, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_orientations_that_mean_nothing_are_upright(kind: str, said: int | None, found: int) -> None:
    image = opened(kind) if said is None else opened(kind, exif=exif_with({0x0112: said}))
    assert read_orientation(image) == found


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # as read_picture does
@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"nothing"])
def test_broken_exif_is_left_out(block: bytes) -> None:
    image = opened("JPEG", exif=block)
    assert read_orientation(image) == 1
    assert read_exif(image) is None


def test_exif_without_its_orientation() -> None:
    assert read_exif(opened(exif=exif_with({0x0112: 6}))) is None
    kept = Image.Exif()
    kept.load(read_exif(opened(exif=exif_with({0x0112: 6, 0x010F: "Maker"}))))
    assert dict(kept) == {0x010F: "Maker"}


def test_only_what_describes_the_photograph() -> None:
    exif = exif_with({0x010F: "Maker", 0x0100: 640, 0x0111: 8})  # maker, width, where the strips are
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    kept = keep_descriptive(exif)
    assert dict(kept) == {0x010F: "Maker"}
    assert kept.get_ifd(0x8769) == {0x9003: "2001:02:03 04:05:06"}
    assert not kept.get_ifd(0x8825)


@pytest.mark.parametrize(
    ("said", "found"),
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
def test_resolutions_that_can_be_written(said: object, found: tuple[float, float] | None) -> None:
    image = Image.new("RGB", (1, 1))
    image.info["dpi"] = said
    assert read_dpi(image) == found
    assert read_dpi(Image.new("RGB", (1, 1))) is None


FORMATS = {
    "PNG": {"exif", "icc_profile", "dpi"},
    "JPEG": {"exif", "icc_profile", "dpi"},
    "TIFF": {"exif", "icc_profile", "dpi"},
    "WEBP": {"exif", "icc_profile"},
    "BMP": {"dpi"},
    "PPM": set(),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_told_what_it_can_keep(kind: str) -> None:
    assert set(save_options(kind, b"Exif", SRGB, (72.0, 72.0))) == FORMATS[kind]
    assert save_options(kind, None, None, None) == {}


@pytest.mark.parametrize(
    "icc", [b"", b"none", SRGB[:100], SRGB[:16] + b"GRAY" + SRGB[20:], SRGB[:16] + b"CMYK" + SRGB[20:], bytes(500)]
)
def test_a_profile_that_cannot_describe_rgb_is_left_out(icc: bytes) -> None:
    assert save_options("PNG", None, icc, None) == {}


def test_exif_longer_than_a_jpeg_segment_is_left_out_there_only() -> None:
    assert save_options("JPEG", bytes(65_534), None, None) == {}
    assert save_options("PNG", bytes(65_534), None, None) == {"exif": bytes(65_534)}
