"""Files with several pages or frames: written by tifffile and Pillow from known values, and read back by them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from chromabox.errors import ChromaboxError
from chromabox.io.exif import FileMetadata
from chromabox.io.images import ImageData, Pages, can_hold_pages, image_size, read_image, read_pages, write_pages

RNG = np.random.default_rng(8)
FULL = RNG.integers(0, 256, (30, 40, 3), np.uint8)
OTHER = RNG.integers(0, 256, (24, 16, 3), np.uint8)
SMALL = FULL[::4, ::4]
MASK = RNG.integers(0, 2, (30, 40)).astype(bool)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def write_tiff(path: Path, pages: Sequence[tuple[np.ndarray, dict[str, object]]]) -> None:
    with tifffile.TiffWriter(path) as file:
        for values, options in pages:
            photometric = "rgb" if values.ndim == 3 else "minisblack"
            file.write(values, photometric=photometric, metadata=None, **options)


LAYOUTS = {
    "full, reduced": [(FULL, {}), (SMALL, {"subfiletype": 1})],
    "reduced, full": [(SMALL, {"subfiletype": 1}), (FULL, {})],
    "reduced of 16 bits, full": [(SMALL.astype(np.uint16), {"subfiletype": 1}), (FULL, {})],
    "two reduced, full": [(SMALL, {"subfiletype": 1}), (SMALL[::2], {"subfiletype": 1}), (FULL, {})],
    "full, mask": [(FULL, {}), (MASK, {"subfiletype": 4})],
    "reduced, mask, full": [(SMALL, {"subfiletype": 1}), (MASK, {"subfiletype": 4}), (FULL, {})],
    "reduced, full of several": [(SMALL, {"subfiletype": 1}), (FULL, {"subfiletype": 2}), (OTHER, {"subfiletype": 2})],
    "old tag": [(SMALL, {"extratags": [(255, "H", 1, 2, True)]}), (FULL, {"extratags": [(255, "H", 1, 1, True)]})],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_full_page_is_read_instead_of_a_reduced_copy_or_a_mask(tmp_path: Path, layout: str) -> None:
    write_tiff(tmp_path / "a.tif", LAYOUTS[layout])
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, FULL)
    assert image.num_frames == (2 if "several" in layout else 1)
    assert image.metadata.omitted[-1:] == ("reduced copies and masks of a TIFF",)
    assert image_size(tmp_path / "a.tif") == FULL.shape[:2]
    assert len(list(read_pages(tmp_path / "a.tif"))) == image.num_frames


def test_reduced_copies_alone_are_pages(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [(SMALL, {"subfiletype": 1}), (OTHER, {"subfiletype": 1})])
    assert [page.pixels.shape for page in read_pages(tmp_path / "a.tif")] == [SMALL.shape, OTHER.shape]


def test_pages_of_any_kind_keep_their_own_information(tmp_path: Path) -> None:
    grey16 = RNG.integers(0, 65536, (9, 7)).astype(np.uint16)
    rotated = {"extratags": [(274, "H", 1, 6, True)], "compression": "deflate"}
    pages = [(FULL, {"iccprofile": SRGB, "resolution": (300, 300)}), (grey16, {}), (OTHER, rotated)]
    write_tiff(tmp_path / "a.tif", pages)
    first, second, third = read_pages(tmp_path / "a.tif")
    np.testing.assert_array_equal(first.pixels, FULL)
    assert (first.metadata.icc, first.metadata.dpi) == (SRGB, (300, 300))
    np.testing.assert_array_equal(second.pixels, grey16[..., None].repeat(3, 2))
    assert (second.metadata.icc, second.metadata.dpi in (None, (1, 1)), second.bit_depth) == (None, True, 16)
    np.testing.assert_array_equal(third.pixels, np.rot90(OTHER, -1))
    assert third.num_frames == 3


@pytest.mark.parametrize(("pages", "expected"), [("all", [0, 1, 2]), ("first", [0]), (1, [0]), (3, [2])])
@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_selected_frames_are_read(tmp_path: Path, suffix: str, pages: Pages, expected: list[int]) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (8, 6), colour) for colour in colours]
    options: dict[str, object] = {} if suffix == ".tif" else {"duration": [40, 50, 60], "loop": 3}
    options |= {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    images = list(read_pages(tmp_path / f"a{suffix}", pages))
    assert [tuple(image.pixels[3, 4].tolist()) for image in images] == [colours[index] for index in expected]
    assert {image.num_frames for image in images} == {3}
    if suffix != ".tif":
        assert [image.duration for image in images] == [(40, 50, 60)[index] for index in expected]
        assert images[0].loop == 3
    with pytest.raises(ChromaboxError, match=r"has no page 4: expected a number from 1 to 3"):
        list(read_pages(tmp_path / f"a{suffix}", 4))


def test_large_animation_is_rejected_and_large_tiff_is_not(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for suffix in (".gif", ".tif"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ChromaboxError, match="its 2 frames have 96 pixels; expected at most 60 pixels, or a single pa"):
        list(read_pages(tmp_path / "a.gif", max_pixels=60))
    assert len(list(read_pages(tmp_path / "a.gif", "first", max_pixels=60))) == 1
    assert len(list(read_pages(tmp_path / "a.tif", max_pixels=60))) == 2


def test_damaged_page_is_reported(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", [(FULL, {}), (OTHER, {})])
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-300])
    pages = read_pages(tmp_path / "a.tif")
    np.testing.assert_array_equal(next(pages).pixels, FULL)
    with pytest.raises(ChromaboxError, match="truncated or corrupt"):
        next(pages)


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "A maker with a long name"
    exif.get_ifd(0x8769)[0x9003] = "2001:02:03 04:05:06"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 1.5)
    return exif.tobytes()


def test_tiff_with_pages_is_read_by_other_libraries(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (11, 13, 3)).astype(np.uint16)
    alpha = RNG.integers(0, 256, FULL.shape[:2], np.uint8)
    pages = [
        ImageData(FULL, alpha, metadata=FileMetadata(exif=exif_block(), icc=SRGB, dpi=(300.0, 240.0))),
        ImageData(deep, metadata=FileMetadata(exif=exif_block())),
        ImageData(OTHER),
    ]
    write_pages(tmp_path / "a.tif", iter(pages))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        values = [page.asarray() for page in file.pages]
        tags = [{tag.name: tag.value for tag in page.tags} for page in file.pages]
    np.testing.assert_array_equal(values[0], np.dstack([FULL, alpha]))
    np.testing.assert_array_equal(values[1], deep)
    np.testing.assert_array_equal(values[2], OTHER)
    assert [page.get("Make") for page in tags] == ["A maker with a long name"] * 2 + [None]
    assert [page["ExifTag"]["DateTimeOriginal"] for page in tags[:2]] == ["2001:02:03 04:05:06"] * 2
    assert [page["GPSTag"]["GPSLatitude"] for page in tags[:2]] == [(52, 1, 30, 1, 3, 2)] * 2
    with Image.open(tmp_path / "a.tif") as opened:
        assert opened.n_frames == 3
        assert opened.info["icc_profile"] == SRGB
        assert opened.info["dpi"] == (300, 240)
        opened.seek(2)
        np.testing.assert_array_equal(np.asarray(opened), OTHER)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("transparent", [False, True])
def test_animations_keep_frames_durations_and_repetitions(tmp_path: Path, suffix: str, transparent: bool) -> None:
    frames = [ImageData(np.full((16, 16, 3), value, np.uint8), duration=value, loop=0) for value in (40, 90, 200)]
    if transparent:
        frames[1] = ImageData(frames[1].pixels, np.full((16, 16), 100, np.uint8), duration=90, loop=0)
    write_pages(tmp_path / f"a{suffix}", frames)
    with Image.open(tmp_path / f"a{suffix}") as opened:
        assert (opened.n_frames, opened.info["loop"]) == (3, 0)
        for index, frame in enumerate(frames):
            opened.seek(index)
            opened.load()
            assert opened.info["duration"] == frame.duration
            assert abs(int(np.asarray(opened.convert("RGB"))[8, 8, 0]) - frame.pixels[8, 8, 0]) <= 2
            if transparent:
                assert np.asarray(opened)[8, 8, 3] == (100 if index == 1 else 255)


def test_pages_that_a_format_cannot_hold_are_rejected(tmp_path: Path) -> None:
    pages = [ImageData(FULL), ImageData(OTHER)]
    with pytest.raises(ChromaboxError, match=r"a\.jpg can hold only one of several pages: expected \.tif, \.png or"):
        write_pages(tmp_path / "a.jpg", pages)
    with pytest.raises(ChromaboxError, match=r"a\.png cannot be written as PNG: the pages have different sizes; expec"):
        write_pages(tmp_path / "a.png", pages)
    assert list(tmp_path.iterdir()) == []
    write_pages(tmp_path / "a.jpg", pages[:1])
    assert read_image(tmp_path / "a.jpg").num_frames == 1
    assert [can_hold_pages(Path(name)) for name in ("a.TIF", "a.webp", "a.bmp", "a")] == [True, True, False, False]


def test_failure_of_a_later_page_writes_nothing(tmp_path: Path) -> None:
    def pages() -> object:
        yield ImageData(FULL)
        yield ImageData(OTHER)
        raise ChromaboxError("page 3 is damaged")

    with pytest.raises(ChromaboxError, match="page 3 is damaged"):
        write_pages(tmp_path / "a.tif", pages())
    assert list(tmp_path.iterdir()) == []


def test_multi_picture_jpeg_is_one_image(tmp_path: Path) -> None:
    Image.fromarray(FULL).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(SMALL)])
    image = read_image(tmp_path / "a.jpg")
    assert (image.num_frames, image.format) == (1, "JPEG")
    assert image.metadata.omitted == ("further pictures of a multi-picture file",)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_impossible_position_of_the_next_page_is_an_error(tmp_path: Path, offset: int) -> None:
    """BigTIFF: 8 bytes after the entries of 20 bytes of a directory state the position of the next one."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint16), bigtiff=True, photometric="rgb")
    with tifffile.TiffFile(path) as file:
        position = file.pages.first.offset + 8 + 20 * len(file.pages.first.tags)
    content = bytearray(path.read_bytes())
    assert content[position : position + 8] == bytes(8)
    content[position : position + 8] = offset.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(ChromaboxError, match=r"a\.tif cannot be decoded: the file is truncated or corrupt"):
        read_image(path)
