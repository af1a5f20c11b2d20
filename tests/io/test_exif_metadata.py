"""Metadata besides EXIF: what each format carries over, and the names of what it cannot.

Files are written with Pillow, tifffile and by hand. Results are read by Pillow (`getxmp`, IptcImagePlugin), tifffile,
and by ExifTool where it is installed.
"""

import json
import shutil
import struct
import subprocess
import zlib
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, IptcImagePlugin
from PIL.PngImagePlugin import PngInfo

from chromabox.io.images import read_image, write_image

PIXELS = np.add.outer(np.arange(12), np.arange(20)).astype(np.uint8) * 8  # 20 × 12 pixels
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
    'tiff:Orientation="6" exif:PixelXDimension="20" exif:PixelYDimension="12" photoshop:ColorMode="1" '
    'dc:source="album 7"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()
IPTC = b"\x1c\x02\x78\x00\x05Gr\xc3\xbc\xc3" + b"\x1c\x02\x19\x00\x06family"  # caption, keyword
RESOURCES = b"8BIM\x04\x0b\0\0\0\0\0\x08http://x"  # URL
THUMBNAIL_RESOURCE = b"8BIM\x04\x0c\0\0\0\0\0\x03abc\0"
IPTC_RESOURCE = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
COMMENTS = [b"scanned by me", "Größe".encode()]


def make_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif.update({0x0112: orientation, 0x010E: "Größe 1932".encode(), 0x013B: "Anna", 0x010D: "Album 7"})
    exif.get_ifd(0x8769).update({0x9003: "1932:05:01 12:00:00", 0xA002: 20, 0xA003: 12, 0x9286: b"ASCII\0\0\0note"})
    return exif


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def write_source(path: Path, xmp: bytes = XMP) -> Path:
    image = Image.fromarray(PIXELS)
    match path.suffix:
        case ".jpg":
            extra = segment(0xED, b"Photoshop 3.0\0" + RESOURCES + THUMBNAIL_RESOURCE + IPTC_RESOURCE)
            extra += b"".join(segment(0xFE, comment) for comment in COMMENTS)
            image.save(path, exif=make_exif(), xmp=xmp, extra=extra, progressive=True, quality=95)
        case ".png":
            text = PngInfo()
            text.add_text("Title", "Größe", zip=True)
            text.add_itxt("Description", "Grüße", "de", "Beschreibung")
            text.add_itxt("XML:com.adobe.xmp", xmp.decode())
            image.save(path, exif=make_exif(), pnginfo=text)
        case ".webp":
            image.save(path, exif=make_exif(), xmp=xmp, lossless=True)
        case ".tif":
            tags = [(700, 1, len(xmp), xmp, True), (33723, 7, len(IPTC), IPTC, True)]
            tags += [(34377, 1, len(RESOURCES), RESOURCES, True), (274, 3, 1, 1, True), (33432, 2, 0, "Anna", True)]
            tags += [(33550, 12, 3, (1.5, 2.5, 0.0), True)]  # pixel scale of GeoTIFF
            tifffile.imwrite(path, PIXELS, compression="lzw", description="Album 7", extratags=tags)
    return path


def described(path: Path) -> dict[str, str]:
    """Return the attributes of the XMP description, read by Pillow."""
    with Image.open(path) as image:
        image.load()
        description = image.getxmp()["xmpmeta"]["RDF"]["Description"]
        entries = description if isinstance(description, list) else [description]
        return {name: value for entry in entries for name, value in entry.items()}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_xmp_and_exif_are_carried_over_and_describe_the_upright_image(tmp_path: Path, suffix: str) -> None:
    image = read_image(write_source(tmp_path / f"a{suffix}"))
    height, width, _ = image.pixels.shape
    assert (width, height) == ((20, 12) if suffix == ".tif" else (12, 20))
    for out_suffix in (".jpg", ".png", ".webp", ".tif"):
        target = tmp_path / f"out{out_suffix}"
        write_image(target, image)
        xmp = described(target)
        assert xmp["source"] == "album 7"
        assert "Orientation" not in xmp
        assert (xmp["PixelXDimension"], xmp["PixelYDimension"], xmp["ColorMode"]) == (str(width), str(height), "3")
        with Image.open(target) as written:
            exif = written.getexif()
            assert 0x0112 not in exif
            if suffix == ".tif":
                assert (exif[0x010E], exif[33432], exif[33550]) == ("Album 7", "Anna", (1.5, 2.5, 0.0))
                continue
            assert exif[0x010E].encode("latin-1").decode() == "Größe 1932"
            assert (exif[0x013B], exif[0x010D]) == ("Anna", "Album 7")
            details = exif.get_ifd(0x8769)
            assert (details[0xA002], details[0xA003]) == (width, height)
            assert details[0x9003] == "1932:05:01 12:00:00"
            assert details[0x9286] == b"ASCII\0\0\0note"


def iptc_of(path: Path) -> dict[tuple[int, int], bytes | list[bytes]]:
    with Image.open(path) as image:
        return IptcImagePlugin.getiptcinfo(image) or {}


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_iptc_is_carried_between_jpeg_and_tiff(tmp_path: Path, suffix: str) -> None:
    source = write_source(tmp_path / f"a{suffix}")
    expected = {(2, 120): b"Gr\xc3\xbc\xc3", (2, 25): b"family"}
    assert iptc_of(source) == expected
    for out_suffix in (".jpg", ".tif"):
        omitted = write_image(tmp_path / f"out{out_suffix}", read_image(source))
        assert iptc_of(tmp_path / f"out{out_suffix}") == expected
        assert omitted == (["comments"] if (suffix, out_suffix) == (".jpg", ".tif") else [])
        content = (tmp_path / f"out{out_suffix}").read_bytes()
        assert RESOURCES in content
        assert THUMBNAIL_RESOURCE not in content


def test_iptc_is_written_to_png_as_imagemagick_does_and_read_back(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", read_image(write_source(tmp_path / "a.jpg")))
    with Image.open(tmp_path / "a.png") as image:
        name, length, *digits = image.text["Raw profile type iptc"].strip().split("\n")
    assert (name, int(length), bytes.fromhex("".join(digits))) == ("iptc", len(IPTC), IPTC)
    write_image(tmp_path / "b.jpg", read_image(tmp_path / "a.png"))
    assert iptc_of(tmp_path / "b.jpg") == {(2, 120): b"Gr\xc3\xbc\xc3", (2, 25): b"family"}


def test_all_comments_of_a_jpeg_are_kept(tmp_path: Path) -> None:
    image = read_image(write_source(tmp_path / "a.jpg"))
    write_image(tmp_path / "b.jpg", image)
    with Image.open(tmp_path / "b.jpg") as written:
        assert [data for name, data in written.applist if name == "COM"] == COMMENTS
        assert written.info["progressive"]
    write_image(tmp_path / "b.png", image)
    with Image.open(tmp_path / "b.png") as written:
        assert written.text["Comment"] == "Größe"


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_text_of_a_png_is_kept(tmp_path: Path, bit_depth: int) -> None:
    image = read_image(write_source(tmp_path / "a.png"))
    if bit_depth == 16:
        image = type(image)(image.pixels.astype(np.uint16) * 257, metadata=image.metadata)
    assert write_image(tmp_path / "b.png", image) == []
    with Image.open(tmp_path / "b.png") as written:
        written.load()
        assert written.text["Title"] == "Größe"
        description = written.text["Description"]
        assert (str(description), description.lang, description.tkey) == ("Grüße", "de", "Beschreibung")
        assert described(tmp_path / "b.png")["source"] == "album 7"


def test_gif_comment_is_kept(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.gif", comment=b"Oma")
    write_image(tmp_path / "a.png", read_image(tmp_path / "a.gif"))
    with Image.open(tmp_path / "a.png") as written:
        assert written.text["Comment"] == "Oma"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("compression", [None, "lzw", "adobe_deflate", "packbits", "zstd"])
def test_tiff_compression_is_kept(tmp_path: Path, compression: str | None, channels: int, dtype: type) -> None:
    rng = np.random.default_rng(channels)
    # More than one strip; the differences to neighbours exceed the range of the dtype.
    pixels = rng.integers(0, np.iinfo(dtype).max + 1, (130, 701, channels), dtype)
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression=compression, **extra)
    assert write_image(tmp_path / "b.tif", read_image(tmp_path / "a.tif")) == []
    with tifffile.TiffFile(tmp_path / "a.tif") as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        assert after.pages.first.compression == before.pages.first.compression
        np.testing.assert_array_equal(after.asarray(), pixels)
    if dtype == np.uint8:
        with Image.open(tmp_path / "b.tif") as image:  # libtiff
            np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(("mode", "compression", "name"), [("L", "jpeg", "jpeg"), ("1", "group4", "group4")])
def test_compression_that_cannot_hold_colours_without_loss_is_replaced_and_named(
    tmp_path: Path, mode: str, compression: str, name: str
) -> None:
    Image.fromarray(PIXELS).convert(mode).save(tmp_path / "a.tif", compression=compression)
    omitted = write_image(tmp_path / "b.tif", read_image(tmp_path / "a.tif"))
    assert omitted == [f"TIFF compression {name} (Deflate is used instead)"]
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages.first.compression == tifffile.COMPRESSION.ADOBE_DEFLATE


@pytest.mark.parametrize("animated", [False, True])
def test_lossless_webp_remains_lossless(tmp_path: Path, animated: bool) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (9, 7, 4), np.uint8)
    frames = [Image.fromarray(colours ^ 255)] if animated else []
    image = Image.fromarray(colours)
    image.save(tmp_path / "a.webp", lossless=True, exact=True, save_all=animated, append_images=frames)
    image.save(tmp_path / "lossy.webp", quality=90)
    expected = np.asarray(Image.open(tmp_path / "a.webp").convert("RGBA"))
    write_image(tmp_path / "b.webp", read_image(tmp_path / "a.webp"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.webp")), expected)
    write_image(tmp_path / "c.webp", read_image(tmp_path / "a.webp"), quality=50, keep_lossless=False)
    write_image(tmp_path / "d.webp", read_image(tmp_path / "lossy.webp"))
    assert b"VP8L" not in (tmp_path / "c.webp").read_bytes()
    assert b"VP8L" not in (tmp_path / "d.webp").read_bytes()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_with(extra: bytes = b"", **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG", extra=extra, **options)
    return buffer.getvalue()


def exif_with_thumbnail() -> bytes:
    """Return EXIF with one tag, and a second directory with a thumbnail of four bytes (EXIF 2.32, 4.5.1)."""
    first = struct.pack("<HHHI4sI", 1, 0x013B, 2, 4, b"Eva\0", 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, 4, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + b"\xff\xd8\xff\xd9"


@pytest.mark.parametrize(
    ("name", "content", "target", "omitted"),
    [
        ("a.jpg", jpeg_with(segment(0xEB, b"JP\0\1c2pa")), "b.jpg", ["C2PA manifest (JUMBF)"]),
        ("a.jpg", jpeg_with(segment(0xE2, b"MPF\0data")), "b.jpg", ["further pictures of a multi-picture file"]),
        ("a.jpg", jpeg_with(segment(0xEC, b"Ducky\0")), "b.jpg", ["JPEG segment APP12"]),
        ("a.jpg", jpeg_with(exif=exif_with_thumbnail()), "b.jpg", ["EXIF thumbnail"]),
        ("a.jpg", jpeg_with(xmp=b"<broken"), "b.jpg", ["damaged XMP"]),
        ("a.jpg", jpeg_with(dpi=(300, 300)), "b.webp", ["resolution"]),
        ("a.jpg", jpeg_with(xmp=XMP, exif=make_exif(1)), "b.bmp", ["EXIF", "XMP"]),
        ("a.jpg", jpeg_with(segment(0xFE, b"hello")), "b.tif", ["comments"]),
    ],
    ids=["c2pa", "mpo", "app12", "thumbnail", "damaged-xmp", "resolution", "bmp", "comment"],
)
def test_what_is_not_carried_is_named(
    tmp_path: Path, name: str, content: bytes, target: str, omitted: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert write_image(tmp_path / target, read_image(tmp_path / name)) == omitted


def test_chunks_of_a_png_are_named(tmp_path: Path) -> None:
    write_source(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    chunks = png_chunk(b"tIME", bytes(7)) + png_chunk(b"oFFs", bytes(9))
    (tmp_path / "b.png").write_bytes(content[:33] + chunks + content[33:])
    image = read_image(tmp_path / "b.png")
    named = ["PNG modification time", "PNG chunk oFFs"]
    assert write_image(tmp_path / "c.png", image) == named
    assert write_image(tmp_path / "c.jpg", image) == [*named, "PNG text"]


def test_alpha_and_bit_depth_that_a_format_lacks_are_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5, 4), np.uint16), photometric="rgb", extrasamples=["unassalpha"])
    assert write_image(tmp_path / "a.jpg", read_image(tmp_path / "a.tif")) == ["transparency", "16 bits per channel"]


def test_extended_xmp_is_kept_in_jpeg_and_removed_from_the_packet_elsewhere(tmp_path: Path) -> None:
    note = b'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="AB" dc:source='
    extension = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"AB" * 16 + bytes(8) + b"<x/>")
    (tmp_path / "a.jpg").write_bytes(jpeg_with(extension, xmp=XMP.replace(b"dc:source=", note)))
    image = read_image(tmp_path / "a.jpg")
    assert write_image(tmp_path / "b.jpg", image) == []
    assert extension in (tmp_path / "b.jpg").read_bytes()
    assert described(tmp_path / "b.jpg")["HasExtendedXMP"] == "AB"
    assert write_image(tmp_path / "b.webp", image) == ["extended XMP"]
    assert "HasExtendedXMP" not in described(tmp_path / "b.webp")


def test_exiftool_reads_the_same_values(tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("ExifTool is not installed")
    suffixes = (".jpg", ".png", ".webp", ".tif")
    sources = [write_source(tmp_path / f"a{suffix}") for suffix in suffixes]
    targets = [tmp_path / f"b{suffix}" for suffix in suffixes]
    for source, target in zip(sources, targets, strict=True):
        write_image(target, read_image(source))
    command = ["exiftool", "-j", "-n", "-G1", "-s", "-EXIF:all", "-XMP:all", "-IPTC:all", "-PNG:all", "-Comment"]
    results = json.loads(subprocess.run([*command, *sources, *targets], capture_output=True, check=True).stdout)
    # What describes the storage of the pixels, and what is updated.
    storage = "Source Size Strip Image PixelX PixelY ColorMode ColorType Orientation Photometric Samples Bits Rows"
    storage += " Compression Predictor SampleFormat Resolution Subfile Software"
    for before, after in zip(results[:4], results[4:], strict=True):
        names = {name for name in before if not any(word in name for word in storage.split())}
        assert len(names) > 3
        assert {name: after.get(name) for name in names} == {name: before[name] for name in names}
        assert "Orientation" not in str(after)


@pytest.mark.parametrize("has_profile", [False, True])
def test_colour_space_entries_agree_with_the_converted_pixels(tmp_path: Path, has_profile: bool) -> None:
    """EXIF 2.32, 4.6.5: colour space 1 is sRGB, 2 is Adobe RGB in practice. DCF 2.0, 3.3.2: index R98 is sRGB."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 2, 0xA500: 2.2, 0xA005: {1: "R03", 2: b"0100"}})
    xmp = XMP.replace(b'tiff:Orientation="6"', b'exif:ColorSpace="65535" photoshop:ICCProfile="Adobe RGB (1998)"')
    options = {"icc_profile": bytes(imagecodecs.cms_profile("adobergb"))} if has_profile else {}
    green = Image.new("RGB", (8, 8), (100, 200, 100))
    green.save(tmp_path / "a.jpg", exif=exif, xmp=xmp, quality=95, **options)
    image = read_image(tmp_path / "a.jpg")
    [change] = image.changes
    assert "Adobe RGB" in change
    assert image.pixels[0, 0, 0] < 60  # Less red than 100, because the green of Adobe RGB is more saturated.
    write_image(tmp_path / "b.jpg", image)
    with Image.open(tmp_path / "b.jpg") as written:
        details, interoperability = (written.getexif().get_ifd(directory) for directory in (0x8769, 0xA005))
        assert (details[0xA001], 0xA500 in details, interoperability[1]) == (1, False, "R98")
        assert "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(written.info["icc_profile"])))
    properties = described(tmp_path / "b.jpg")
    assert properties["ColorSpace"] == "1"
    assert "ICCProfile" not in properties
    assert read_image(tmp_path / "b.jpg").changes == ()
