"""Reading and writing of images; expected values from Pillow's exif_transpose and from manual calculation."""

import dataclasses
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, ImageFile, ImageOps

from chromabox.errors import ChromaboxError, UsageError
from chromabox.io.exif import FileMetadata
from chromabox.io.images import (
    ImageData,
    check_not_input,
    find_images,
    from_float,
    make_grid,
    read_image,
    to_uint8,
    write_image,
)


def random_pixels(height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def profile(space: bytes) -> bytes:
    """Return an sRGB profile with the given data colour space in its header."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb[:16] + space + srgb[20:]


def png_header(width: int, height: int) -> bytes:
    """Return a PNG with the given size in its header and almost no data."""

    def chunk(chunk_type: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + chunk_type + body + struct.pack(">I", zlib.crc32(chunk_type + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda hw: arrays(np.uint8, (*hw, 3))))
def test_png_round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("round") / "a.png"
    write_image(path, values)
    assert np.array_equal(read_image(path).pixels, values)
    assert np.array_equal(np.asarray(Image.open(path)), values)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".ppm"])
def test_lossless_formats_preserve_values(tmp_path: Path, suffix: str) -> None:
    write_image(tmp_path / f"a{suffix}", random_pixels())
    assert np.array_equal(read_image(tmp_path / f"a{suffix}").pixels, random_pixels())


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_formats_have_small_errors(tmp_path: Path, suffix: str) -> None:
    smooth = np.linspace(50, 200, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    write_image(tmp_path / f"a{suffix}", smooth)
    assert np.abs(read_image(tmp_path / f"a{suffix}").pixels - smooth.astype(int)).max() < 8


@pytest.mark.parametrize("depth", [8, 16])
def test_floats_are_clipped_and_rounded(depth: int) -> None:
    peak = 2**depth - 1
    values = from_float(np.array([-1, 0.4 / peak, 0.6 / peak, 1 - 0.6 / peak, 1 - 0.4 / peak, 2]), depth)
    assert values.tolist() == [0, 0, 1, peak - 1, peak, peak]
    image = ImageData(np.full((1, 1, 3), peak // 3, values.dtype))
    assert image.bit_depth == depth


def test_16_bit_values_are_rounded_to_8_bits() -> None:
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_uint8(values), np.rint(values / 257))
    assert to_uint8(GREY) is GREY


def test_alpha_with_another_bit_depth_is_rejected() -> None:
    with pytest.raises(ValueError, match="expected the same dtype"):
        ImageData(random_pixels(2, 2), GREY.astype(np.uint16))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, extension: str) -> None:
    path, again = tmp_path / f"a.{extension}", tmp_path / "again.png"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    source = Image.fromarray(random_pixels(24, 16))
    source.save(path, exif=exif)
    image = read_image(path)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(image.pixels, expected)
    assert image.pixels.shape[:2] == ((24, 16) if orientation < 5 else (16, 24))
    write_image(again, image)
    assert np.array_equal(read_image(again).pixels, image.pixels)
    with Image.open(again) as opened:
        assert opened.getexif().get(0x0112, 1) == 1
        assert opened.getexif()[0x010F] == "Maker"


GREY = np.array([[0, 51], [102, 255]], np.uint8)
GREY_MODES = [
    ("L", Image.fromarray(GREY), "png", GREY / 255, 8),
    ("1", Image.fromarray(GREY > 60), "png", GREY > 60, 8),
    ("I;16", Image.fromarray(GREY.astype(np.uint16) * 257), "png", GREY / 255, 16),
    ("I;16", Image.fromarray(GREY.astype(np.uint16) * 257), "tif", GREY / 255, 16),
    ("I;16B", Image.frombytes("I;16B", (2, 2), (GREY.astype(">u2") * 257).tobytes()), "tif", GREY / 255, 16),
    ("I", Image.fromarray(GREY.astype(np.int32) * 257), "tif", GREY / 255, 16),
    ("F", Image.fromarray(GREY.astype(np.float32) / 255), "tif", GREY / 255, 16),
    ("PGM", Image.fromarray(GREY), "ppm", GREY / 255, 8),
    ("grey palette", Image.fromarray(GREY).convert("P"), "gif", GREY / 255, 8),
]


@pytest.mark.parametrize(("pil_image", "suffix", "expected", "depth"), [case[1:] for case in GREY_MODES])
def test_grey_modes(tmp_path: Path, pil_image: Image.Image, suffix: str, expected: np.ndarray, depth: int) -> None:
    pil_image.save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.is_grey
    assert image.bit_depth == depth
    assert image.alpha is None
    assert np.array_equal(image.pixels, np.repeat(expected[..., None], 3, 2) * (2**depth - 1))


def test_16_bit_grey_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1, 40_000]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").pixels[0, :, 0].tolist() == [1, 40_000]


def test_alpha_is_read_in_every_mode(tmp_path: Path) -> None:
    rgba = np.dstack([random_pixels(2, 2), GREY])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([GREY, GREY])).save(tmp_path / "la.png")
    palette = Image.fromarray(GREY).convert("P")
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, 1]))
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "grey16.png", transparency=51 * 257)
    expected_alpha = np.array([[1, 0], [1, 1]])
    assert np.array_equal(read_image(tmp_path / "rgba.png").alpha, GREY)
    assert not read_image(tmp_path / "rgba.png").is_grey
    assert np.array_equal(read_image(tmp_path / "la.png").alpha, GREY)
    assert read_image(tmp_path / "la.png").is_grey
    assert read_image(tmp_path / "p.png").alpha.tolist() == (expected_alpha * 255).tolist()
    assert read_image(tmp_path / "grey16.png").alpha.tolist() == (expected_alpha * 65535).tolist()


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif")])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    flat.convert(mode).save(tmp_path / f"a.{suffix}")
    assert np.abs(read_image(tmp_path / f"a.{suffix}").pixels.astype(int) - (200, 100, 50)).max() < 4


def test_first_frame_of_an_animated_gif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".ppm"])
def test_formats_without_alpha_are_composited_on_white(tmp_path: Path, suffix: str) -> None:
    black, alpha = np.zeros((16, 16, 3), np.uint8), np.full((16, 16), 51, np.uint8)
    write_image(tmp_path / f"a{suffix}", ImageData(black, alpha))
    written = read_image(tmp_path / f"a{suffix}")
    assert written.alpha is None
    assert np.abs(written.pixels.astype(int) - 204).max() < 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_metadata_are_preserved(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    icc = profile(b"RGB ")
    alpha = None if suffix == ".jpg" else GREY
    image = ImageData(
        random_pixels(2, 2), alpha, metadata=FileMetadata(exif=exif.tobytes(), icc=icc, dpi=(300.0, 300.0))
    )
    write_image(tmp_path / f"a{suffix}", image)
    # Written twice, to test that the metadata that were read can be written.
    write_image(tmp_path / f"b{suffix}", read_image(tmp_path / f"a{suffix}"))
    result = read_image(tmp_path / f"b{suffix}")
    assert result.metadata.icc == icc
    assert result.metadata.exif is not None
    written_exif = Image.Exif()
    written_exif.load(result.metadata.exif)
    assert written_exif[0x010F] == "Maker"
    assert written_exif.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
    assert suffix == ".webp" or result.metadata.dpi == pytest.approx((300, 300), abs=0.01)
    assert (result.alpha is None) == (alpha is None)


def test_tiff_strip_tags_are_not_copied_to_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    Image.fromarray(random_pixels()).save(tmp_path / "a.tif", exif=exif)
    write_image(tmp_path / "a.jpg", read_image(tmp_path / "a.tif"))
    with Image.open(tmp_path / "a.jpg") as opened:
        assert set(opened.getexif()) == {0x010F}


@pytest.mark.parametrize("space", [b"GRAY", b"CMYK"])
def test_profile_of_another_colour_space_is_omitted(tmp_path: Path, space: bytes) -> None:
    write_image(tmp_path / "a.png", ImageData(random_pixels(), metadata=FileMetadata(icc=profile(space))))
    assert read_image(tmp_path / "a.png").metadata.icc is None


def make_bad(folder: Path, name: str) -> Path:
    path = folder / name
    buffer = BytesIO()
    image_format = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".gif": "GIF", ".webp": "WEBP"}.get(
        path.suffix, "PNG"
    )
    Image.fromarray(random_pixels(40, 40)).save(buffer, image_format)
    if name.startswith("cut"):
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    elif name == "folder.png":
        path.mkdir()
    elif name == "empty.png":
        path.touch()
    elif name == "text.png":
        path.write_text("not an image")
    elif name == "bomb.png":
        path.write_bytes(png_header(60_000, 60_000))
    elif name == "none.png":
        path.write_bytes(png_header(0, 5))
    elif name == "large.png":
        path.write_bytes(png_header(14_000, 8_000))
    elif name == "lab.tif":
        Image.new("LAB", (3, 3)).save(path)
    elif name == "float.tif":
        Image.fromarray(np.array([[0, 300]], np.float32)).save(path)
    elif name == "nan.tif":
        Image.fromarray(np.array([[0, np.nan]], np.float32)).save(path)
    elif name == "negative.tif":
        Image.fromarray(np.array([[0, -3]], np.int32)).save(path)
    return path


BAD_INPUTS = [
    ("missing.png", "does not exist: expected an image file"),
    ("folder.png", "is a folder: expected an image file"),
    ("empty.png", "is empty: expected an image file"),
    ("text.png", "is not an image, or its kind is unknown"),
    ("cut.png", "is truncated or corrupt"),
    ("cut.jpg", "is truncated or corrupt"),
    ("cut.tif", "corrupt"),
    ("cut.gif", "is truncated or corrupt"),
    ("cut.webp", "corrupt"),
    ("bomb.png", "is too large: its header states"),
    ("large.png", "is too large: its header states 14000 × 8000 pixels; expected at most 100,000,000 pixels"),
    ("none.png", "is"),
    ("lab.tif", "unsupported pixel mode LAB; save the image as RGB or greyscale"),
    ("float.tif", "unsupported values from 0 to 300; expected 0 to 1"),
    ("nan.tif", "unsupported values that include NaN; expected 0 to 1"),
    ("negative.tif", "unsupported values from -3 to 0; expected 0 to 65535"),
]


@pytest.mark.parametrize(("name", "message"), BAD_INPUTS)
def test_invalid_inputs_raise_a_one_line_error(tmp_path: Path, name: str, message: str) -> None:
    path = make_bad(tmp_path, name)
    with pytest.raises(ChromaboxError) as caught:
        read_image(path, max_pixels=100_000_000)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_above_pillows_warning_are_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    write_image(tmp_path / "a.png", random_pixels())
    assert read_image(tmp_path / "a.png").pixels.shape == (5, 7, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ChromaboxError, match="exceeds limit of 20 pixels"):
        read_image(tmp_path / "a.png")


def test_pillow_does_not_load_truncated_images() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif"])
def test_unknown_suffix_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"expected \.jpg, \.jpeg, \.jpe, \.jfif, \.png"):
        write_image(tmp_path / name, random_pixels())


def test_failed_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.webp", random_pixels())
    before = (tmp_path / "a.webp").read_bytes()
    with pytest.raises(ChromaboxError, match=r"a\.webp cannot be written as WEBP"):
        write_image(tmp_path / "a.webp", np.zeros((1, 16_384, 3), np.uint8))  # the limit of WebP is 16,383
    with pytest.raises(ChromaboxError, match=r"a\.jpg cannot be written as JPEG: .* a side of 65,501 pixels"):
        write_image(tmp_path / "a.jpg", np.zeros((65_501, 1, 3), np.uint8))
    with pytest.raises(UsageError, match="invalid quality 101: expected 1 to 100"):
        write_image(tmp_path / "a.webp", random_pixels(), quality=101)
    assert (tmp_path / "a.webp").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.webp"]


def test_parent_folders_are_created_and_a_file_in_their_place_is_reported(tmp_path: Path) -> None:
    write_image(tmp_path / "new" / "deep" / "a.png", random_pixels())
    assert (tmp_path / "new" / "deep" / "a.png").is_file()
    with pytest.raises(ChromaboxError, match=r"b\.png cannot be written"):
        write_image(tmp_path / "new" / "deep" / "a.png" / "b.png", random_pixels())


def test_image_with_replaced_pixels_keeps_its_metadata(tmp_path: Path) -> None:
    image = ImageData(random_pixels(), metadata=FileMetadata(dpi=(72.0, 72.0)))
    write_image(tmp_path / "a.png", dataclasses.replace(image, pixels=255 - image.pixels))
    assert read_image(tmp_path / "a.png").metadata.dpi == pytest.approx((72, 72), abs=0.01)


def test_find_images_returns_sorted_relative_paths(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.tif", ".hidden.png", ".cache/x.png", "notes.txt", "b/c/3.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    relative_paths = [Path(name) for name in ("a.tif", "b/1.png", "b/2.JPG", "b/c/3.gif")]
    assert find_images([tmp_path]) == [(tmp_path / path, path) for path in relative_paths]
    assert find_images([tmp_path], recursive=False) == [(tmp_path / "a.tif", Path("a.tif"))]
    notes = tmp_path / "notes.txt"
    assert find_images([notes, tmp_path / "b" / "c"]) == [
        (notes, Path("notes.txt")),
        (tmp_path / "b" / "c" / "3.gif", Path("3.gif")),
    ]


def test_find_images_rejects_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="contains no images") as caught:
        find_images([tmp_path])
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="does not exist"):
        find_images([tmp_path / "nowhere"])


def test_overwriting_an_input_is_rejected_for_any_name(tmp_path: Path) -> None:
    source, other = tmp_path / "a.png", tmp_path / "b.png"
    write_image(source, random_pixels())
    (tmp_path / "soft.png").symlink_to(source)
    os.link(source, tmp_path / "hard.png")
    check_not_input([source], other)
    for name in ("a.png", "soft.png", "hard.png", "x/../a.png"):
        with pytest.raises(UsageError, match="use a different output path"):
            check_not_input([other, source], tmp_path / name)


def test_grid_layout() -> None:
    black = np.zeros((1, 2, 3), np.uint8)
    grid = make_grid([[black, black + 7], [black + 9]], gap=1, scale=2)
    assert grid.shape == (2 * 2 + 3, 2 * 4 + 3, 3)
    assert grid[1:3, 1:5].tolist() == np.zeros((2, 4, 3)).tolist()
    assert (grid[1:3, 6:10] == 7).all()
    assert (grid[4:6, 1:5] == 9).all()
    assert (grid[4:6, 6:10] == 255).all()
    assert (grid[[0, 3, 6]] == 255).all()


def test_grid_rejects_unequal_and_missing_tiles() -> None:
    with pytest.raises(ChromaboxError, match="tiles of one size"):
        make_grid([[np.zeros((1, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)]])
    with pytest.raises(ChromaboxError, match="no tiles"):
        make_grid([])
