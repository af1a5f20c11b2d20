"""16-bit images: input files are built from chunks or by tifffile; output files are read by libpng and tifffile."""

import itertools
import struct
import zlib
from io import BytesIO
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, ImageOps

from chromabox.errors import ChromaboxError
from chromabox.io.exif import FileMetadata
from chromabox.io.images import ImageData, image_size, read_image, read_pages, write_image

RNG = np.random.default_rng(16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


FLOAT_FORMATS = {
    "16 bits": (np.float16, {}),
    "32 bits, big-endian": (np.float32, {"byteorder": ">"}),
    "32 bits, predictor": (np.float32, {"compression": "deflate", "predictor": 3}),
    "32 bits, planes": (np.float32, {"planarconfig": "separate"}),
    "64 bits, tiles": (np.float64, {"tile": (16, 16), "compression": "lzw"}),
    "64 bits, BigTIFF": (np.float64, {"bigtiff": True}),
}


@pytest.mark.parametrize("case", FLOAT_FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_float_tiff_is_read_at_16_bits(tmp_path: Path, case: str, channels: int) -> None:
    """The file is written by tifffile, with values that exceed 1 by rounding errors."""
    dtype, options = FLOAT_FORMATS[case]
    values = np.linspace(-0.0009, 1.0009, 12 * 10 * channels).reshape(12, 10, channels).astype(dtype)
    if channels == 1:
        options = {name: value for name, value in options.items() if name != "planarconfig"}
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in options else np.squeeze(values)
    kind = "minisblack" if channels == 1 else "rgb"
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric=kind, resolution=(300, 200), resolutionunit=2, **options, **extra)
    image = read_image(path)
    expected = np.clip(values.astype(np.float64), 0, 1) * 65535
    np.testing.assert_allclose(image.pixels, expected[..., :3].repeat(3 // min(channels, 3), 2), atol=0.51)
    assert (image.metadata.dpi, image.is_grey) == ((300, 200), channels == 1)
    if channels == 4:
        np.testing.assert_allclose(image.alpha, expected[..., 3], atol=0.51)
    assert image_size(path) == (12, 10)


GRADIENT = np.linspace(0, 65535, 12 * 10 * 3).reshape(12, 10, 3).astype(np.uint16)
#: Encoded by libtiff's, OpenJPEG's and libavif's counterparts in tifffile and imagecodecs, with the bits that the line
#: must name. The values are GRADIENT, rounded.
PRECISIONS = {
    "cmyk.tif": "values with 16 bits per channel were read with 8 bits",
    "float.tif": "floating-point values were read with 16 bits",
    "half.tif": "floating-point values were read with 16 bits",
    "a16.jp2": None,
    "a12.j2k": None,
    "grey12.j2k": None,
    "a8.jp2": None,
    "a10.avif": "values with 10 bits per channel were read with 8 bits",
    "a12.avif": "values with 12 bits per channel were read with 8 bits",
    "a8.avif": None,
    "a16.ppm": "values with 16 bits per channel were read with 8 bits",
    "a10.ppm": "values with 10 bits per channel were read with 8 bits",
    "a8.ppm": None,
    "rgb16.tif": None,
    "rgb16.png": None,
    "grey16.jp2": None,
}


def encode_gradient(name: str) -> bytes:
    stem, suffix = name.split(".")
    bits = int("".join(char for char in stem if char.isdigit()) or 16)
    values = GRADIENT[..., 0] if stem.startswith("grey") else GRADIENT
    values = values >> (16 - bits) if bits > 8 else (values >> 8).astype(np.uint8)
    if suffix in ("jp2", "j2k"):
        return imagecodecs.jpeg2k_encode(values, level=0, codecformat=suffix, bitspersample=bits)
    if suffix == "avif":
        return imagecodecs.avif_encode(values, level=98, bitspersample=bits)
    if suffix == "ppm":
        return b"P6 10 12 %d\n" % ((1 << bits) - 1) + values.astype(">u2" if bits > 8 else "u1").tobytes()
    if suffix == "png":
        return imagecodecs.png_encode(values)
    kinds = {"cmyk": np.dstack([65535 - values, values[..., :1] * 0]), "float": (values / 65535).astype(np.float32)}
    kinds["half"] = kinds["float"].astype(np.float16)
    file = BytesIO()
    tifffile.imwrite(file, kinds.get(stem, values), photometric="separated" if stem == "cmyk" else "rgb")
    return file.getvalue()


@pytest.mark.parametrize("name", PRECISIONS)
def test_reduced_precision_is_stated(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encode_gradient(name))
    image = read_image(path)
    stated = [change for change in image.changes if " were read with " in change]
    assert stated == ([] if PRECISIONS[name] is None else [PRECISIONS[name]])
    expected = GRADIENT[..., :1] if name.startswith("grey") else GRADIENT
    np.testing.assert_allclose(
        image.pixels / np.iinfo(image.pixels.dtype).max, expected / 65535 + 0 * image.pixels, atol=0.02
    )


def test_other_channels_of_a_tiff_are_named(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for count, extra, is_named in (
        (4, ["unassalpha"], False),
        (4, ["unspecified"], True),
        (5, ["unspecified", "unspecified"], True),
    ):
        tifffile.imwrite(tmp_path / "a.tif", np.dstack([grey] * count), photometric="rgb", extrasamples=extra)
        image = read_image(tmp_path / "a.tif")
        assert ("channels of a TIFF other than colours and alpha" in image.metadata.omitted) == is_named
        np.testing.assert_array_equal(image.pixels[..., 1], grey)


@pytest.mark.parametrize(("kind", "bits"), [("cielab", 16), ("logluv", 16), ("ycbcr", 16)])
def test_intact_tiff_of_another_kind_is_not_called_damaged(tmp_path: Path, kind: str, bits: int) -> None:
    """TIFF 6.0, sections 21 and 23, and SGI LogLuv: kinds of pixels that are valid and not supported."""
    tifffile.imwrite(tmp_path / "a.tif", GRADIENT, photometric=kind)
    message = rf"a\.tif: this kind of TIFF is not supported \({kind.upper()}, 3 × {bits} bits, compression NONE\)"
    with pytest.raises(ChromaboxError, match=message):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [1.0015, -0.0015, 255])
def test_float_tiff_out_of_range_is_rejected(tmp_path: Path, dtype: type, value: float) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[[0.5, 0.5, 0.5]], [[value, 0, 0.25]]], dtype), photometric="rgb")
    with pytest.raises(ChromaboxError, match=r"a\.tif: unsupported values from .* to .*; expected 0 to 1") as caught:
        read_image(tmp_path / "a.tif")
    assert f"{float(dtype(value)):g}" in str(caught.value)


def random_values(channels: int, height: int = 6, width: int = 9) -> np.ndarray:
    return RNG.integers(0, 65536, (height, width, channels)).astype(np.uint16)


def chunk(chunk_type: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + chunk_type + body + struct.pack(">I", zlib.crc32(chunk_type + body))


def png(stored: np.ndarray, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return a 16-bit PNG without row filters, with additional chunks before and after the pixels."""
    height, width, channels = stored.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + pixels + after + chunk(b"IEND", b"")


def exif_block(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def oriented(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Apply Pillow's exif_transpose to the upper and the lower eight bits."""

    def transpose(bits: np.ndarray) -> np.ndarray:
        buffer = BytesIO()
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(bits.astype(np.uint8)).save(buffer, "PNG", exif=exif)
        return np.asarray(ImageOps.exif_transpose(Image.open(buffer))).astype(np.uint16)

    return transpose(stored >> 8) * 256 + transpose(stored & 255)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_with_any_channels_is_read_exactly(tmp_path: Path, channels: int) -> None:
    stored = random_values(channels)
    (tmp_path / "a.png").write_bytes(png(stored))
    image = read_image(tmp_path / "a.png")
    assert (image.bit_depth, image.is_grey) == (16, channels <= 2)
    np.testing.assert_array_equal(image.pixels, stored[..., :3] if channels > 2 else stored[..., [0, 0, 0]])
    if channels in (2, 4):
        np.testing.assert_array_equal(image.alpha, stored[..., -1])
    else:
        assert image.alpha is None


def test_transparent_colour_becomes_alpha(tmp_path: Path) -> None:
    stored = random_values(3)
    (tmp_path / "a.png").write_bytes(png(stored, before=chunk(b"tRNS", stored[2, 3].astype(">u2").tobytes())))
    expected = np.full(stored.shape[:2], 65535)
    expected[2, 3] = 0
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").alpha, expected)


TIFF_LAYOUTS = list(
    itertools.product((3, 4), "<>", ("contig", "separate"), (None, "lzw", "deflate", "zstd"), (None, 16))
)


@pytest.mark.parametrize(("channels", "byte_order", "planes", "compression", "tile"), TIFF_LAYOUTS)
def test_tiff_with_any_layout_is_read_exactly(
    tmp_path: Path, channels: int, byte_order: str, planes: str, compression: str | None, tile: int | None
) -> None:
    stored = random_values(channels, 21, 34)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored if planes == "contig" else stored.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig=planes,
        byteorder=byte_order,
        compression=compression,
        predictor=compression is not None,
        tile=None if tile is None else (tile, tile),
        rowsperstrip=None if tile else 5,
        extrasamples=["unassalpha"] if channels == 4 else None,
        bigtiff=byte_order == "<" and tile is None,  # Pillow reads BigTIFF in this byte order only.
    )
    image = read_image(tmp_path / "a.tif")
    assert (image.bit_depth, image.format, image.is_grey) == (16, "TIFF", False)
    np.testing.assert_array_equal(image.pixels, stored[..., :3])
    if channels == 4:
        np.testing.assert_array_equal(image.alpha, stored[..., 3])
    else:
        assert image.alpha is None


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiff_with_either_photometric_interpretation(tmp_path: Path, photometric: str) -> None:
    stored = random_values(1)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric)
    image = read_image(tmp_path / "a.tif")
    assert image.is_grey
    expected = stored if photometric == "minisblack" else 65535 - stored
    np.testing.assert_array_equal(image.pixels, expected[..., None].repeat(3, 2))


def test_fourth_channel_of_tiff_is_interpreted(tmp_path: Path) -> None:
    stored = random_values(4)
    stored[0, 0] = [0, 0, 0, 0]
    stored[1, 1] = [500, 300, 1, 400]  # A colour larger than the alpha.
    for extra_sample in ("assocalpha", "unspecified"):
        tifffile.imwrite(tmp_path / f"{extra_sample}.tif", stored, photometric="rgb", extrasamples=[extra_sample])
    unspecified, associated = (read_image(tmp_path / f"{name}.tif") for name in ("unspecified", "assocalpha"))
    assert unspecified.alpha is None
    np.testing.assert_array_equal(unspecified.pixels, stored[..., :3])
    np.testing.assert_array_equal(associated.alpha, stored[..., 3])
    exact = stored[..., :3] / np.maximum(stored[..., 3:], 1).astype(np.float64) * 65535
    np.testing.assert_allclose(associated.pixels, exact.clip(max=65535), atol=0.5001)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(3, 4)).flatmap(lambda shape: arrays(np.uint16, shape))
)
def test_written_files_are_read_by_other_libraries(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, stored: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("round") / f"a{suffix}"
    alpha = stored[..., 3].copy() if stored.shape[2] == 4 else None
    write_image(path, ImageData(stored[..., :3], alpha))
    decoded = imagecodecs.png_decode(path.read_bytes()) if suffix == ".png" else tifffile.imread(path)
    np.testing.assert_array_equal(decoded.reshape(stored.shape), stored)
    with Image.open(path) as opened:
        # Pillow reads the upper eight bits.
        np.testing.assert_array_equal(np.asarray(opened), stored >> 8)
    again = read_image(path)
    np.testing.assert_array_equal(again.pixels, stored[..., :3])


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".jpg", ".ppm"])
def test_8_bit_formats_are_rounded_to_the_nearest_value(tmp_path: Path, suffix: str) -> None:
    flat = np.full((16, 16, 3), 51_450, np.uint16)  # 200.195 of 255; the upper eight bits are 200 too
    flat[:, 8:] = 51_600  # 200.78 of 255; the upper eight bits are 201
    write_image(tmp_path / f"a{suffix}", flat)
    result = read_image(tmp_path / f"a{suffix}")
    assert result.bit_depth == 8
    exact = np.rint(flat / 257)
    assert np.abs(result.pixels - exact).max() <= (1 if suffix in (".jpg", ".webp") else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("variant", ["png", "png, after the pixels", "tif"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, variant: str) -> None:
    stored = random_values(3, 4, 7)
    path = tmp_path / f"a.{variant[:3]}"
    if variant == "tif":
        tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        block = chunk(b"eXIf", exif_block(orientation).removeprefix(b"Exif\0\0"))
        path.write_bytes(png(stored, after=block) if "after" in variant else png(stored, before=block))
    image = read_image(path)
    np.testing.assert_array_equal(image.pixels, oriented(stored, orientation))
    for suffix in ("png", "tif"):
        write_image(tmp_path / f"again.{suffix}", image)
        np.testing.assert_array_equal(read_image(tmp_path / f"again.{suffix}").pixels, image.pixels)
        with Image.open(tmp_path / f"again.{suffix}") as opened:
            assert opened.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_metadata_are_preserved(tmp_path: Path, suffix: str) -> None:
    image = ImageData(random_values(3), metadata=FileMetadata(exif=exif_block(), icc=SRGB, dpi=(300.0, 240.0)))
    write_image(tmp_path / f"a{suffix}", image)
    write_image(tmp_path / f"b{suffix}", read_image(tmp_path / f"a{suffix}"))
    with Image.open(tmp_path / f"b{suffix}") as written:
        written.load()
        exif = written.getexif()
        assert exif[0x010F] == "Maker"
        assert exif.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
        assert exif.get_ifd(0x8825)[1] == "N"
        assert written.info["icc_profile"] == SRGB
        assert written.info["dpi"] == pytest.approx((300, 240), abs=0.02)
    again = read_image(tmp_path / f"b{suffix}")
    assert (again.bit_depth, again.metadata.icc) == (16, SRGB)


def test_further_pages_are_counted_and_not_read(tmp_path: Path) -> None:
    first, second = random_values(3), random_values(3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(first, photometric="rgb")
        file.write(second, photometric="rgb")
    image = read_image(tmp_path / "a.tif")
    assert image.num_frames == 2
    np.testing.assert_array_equal(image.pixels, first)


def test_all_pages_of_a_float_tiff_are_read(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    pages = [page.pixels for page in read_pages(tmp_path / "a.tif")]
    np.testing.assert_allclose(pages, values * 65535.0, atol=0.51)
