"""TIFF files with every orientation, pixel mode, compression and layout, written by tifffile from known values.

The expected values are the stored values, moved to the positions that TIFF 6.0, section 8, "Orientation", states.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from chromabox.io.arrays import to_pixels
from chromabox.io.images import image_size, read_image

RNG = np.random.default_rng(13)
HEIGHT, WIDTH = 21, 34  # Neither is a multiple of the tile size.
COLOURMAP = (RNG.integers(0, 256, (3, 256)) * 257).astype(np.uint16)

#: For each orientation: where the first row and the first column of the stored image are in the upright image.
SIDES = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left"}
SIDES |= {5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom"}


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    row_side, column_side = SIDES[orientation].split()
    rows, columns = np.indices(stored.shape[:2])
    from_row_side = rows if row_side in ("top", "left") else len(stored) - 1 - rows
    from_column_side = columns if column_side in ("top", "left") else stored.shape[1] - 1 - columns
    swapped = row_side in ("left", "right")
    result = np.empty((stored.shape[1], stored.shape[0]) if swapped else stored.shape[:2], stored.dtype)
    result = np.repeat(result[..., None], stored.shape[2], axis=2)
    y, x = (from_column_side, from_row_side) if swapped else (from_row_side, from_column_side)
    result[y, x] = stored
    return result


def stored_and_colours(mode: str) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
    """Return the stored values, the RGB values that they mean, and the options for tifffile."""
    channels = {"LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3 if "RGB" in mode or mode == "YCbCr" else 1)
    is_16bit = mode.endswith("16")
    values = RNG.integers(0, 65536 if is_16bit else 256, (HEIGHT, WIDTH, channels))
    values = values.astype(np.uint16 if is_16bit else np.uint8)
    photometric = {"L": "minisblack", "white": "miniswhite", "LA": "minisblack", "P": "palette", "CMYK": "separated"}
    options: dict[str, object] = {"photometric": photometric.get(mode, "rgb" if "RGB" in mode else "minisblack")}
    if mode == "1":
        values = values > 127
        colours = values * 255
    elif mode == "white":
        colours = 255 - values
    elif mode == "P":
        options["colormap"] = COLOURMAP
        colours = (COLOURMAP // 257).T[values[..., 0]]
    elif mode == "CMYK":
        values[..., 3] = 0
        colours = 255 - values[..., :3]
    elif mode == "YCbCr":
        options["photometric"] = "ycbcr"
        colours = np.asarray(Image.frombytes("YCbCr", (WIDTH, HEIGHT), values.tobytes()).convert("RGB"))
    elif mode == "float":
        values = (values.astype(np.float32) / 255).astype(np.float32)
        colours = np.rint(values.astype(np.float64) * 65535)
    else:
        colours = values
    if mode in ("LA", "RGBA"):
        options["extrasamples"] = ["unassalpha"]
        colours = values[..., :-1]
    stored = values[..., 0] if channels == 1 else values
    return stored, colours.repeat(3, axis=2) if colours.shape[2] == 1 else colours, options


MODES = ("L", "white", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "float", "L16", "RGB16")
MODES_AND_COMPRESSIONS = [*itertools.product(MODES, (None, "packbits", "lzw", "deflate", "zstd")), ("1", None)]


@pytest.mark.parametrize(("mode", "compression"), MODES_AND_COMPRESSIONS)
def test_every_orientation_mode_and_compression(tmp_path: Path, mode: str, compression: str | None) -> None:
    stored, colours, options = stored_and_colours(mode)
    layouts: list[dict[str, object]] = [{}, {"rowsperstrip": 5}]
    if mode != "1":
        layouts += [{"tile": (16, 16)}, {"byteorder": ">"}]
    path = tmp_path / "a.tif"
    cases = list(itertools.product(range(1, 9), layouts))
    if compression is not None:  # One layout for each orientation, to save time.
        cases = [(orientation, layouts[orientation % len(layouts)]) for orientation in range(1, 9)]
    for orientation, layout in cases:
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, stored, compression=compression, extratags=tag, metadata=None, **options, **layout)
        image = read_image(path)
        expected = upright(colours, orientation)
        assert image_size(path) == image.pixels.shape[:2] == expected.shape[:2]
        tolerance = 1 if mode == "YCbCr" else 0  # libtiff and Pillow round differently.
        np.testing.assert_allclose(image.pixels, expected, rtol=0, atol=tolerance, err_msg=f"{orientation}, {layout}")
        if mode in ("LA", "RGBA"):
            np.testing.assert_array_equal(image.alpha, upright(stored[..., -1:], orientation)[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_compression_by_jpeg(tmp_path: Path, orientation: int) -> None:
    flat = np.zeros((32, 48, 3), np.uint8)
    flat[:16, :16], flat[:16, 16:], flat[16:, :16] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    tag = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", flat, photometric="rgb", compression="jpeg", extratags=tag)
    # The middles of the flat areas, because the subsampled chroma is interpolated at their edges.
    middles = (slice(8, None, 16), slice(8, None, 16))
    pixels = read_image(tmp_path / "a.tif").pixels.astype(int)
    assert np.abs(pixels[middles] - upright(flat, orientation)[middles]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["group4", "group3", "tiff_lzw"])
def test_compressions_of_1_bit(tmp_path: Path, compression: str, orientation: int) -> None:
    stored, colours, _ = stored_and_colours("1")
    Image.fromarray(stored).save(tmp_path / "a.tif", compression=compression, tiffinfo={274: orientation})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, upright(colours, orientation))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_images_opened_by_path(tmp_path: Path, mode: str, orientation: int) -> None:
    stored, colours, options = stored_and_colours(mode)
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=[(274, "H", 1, orientation, True)], **options)
    with Image.open(tmp_path / "a.tif") as image:
        pixels, _, _ = to_pixels(image)
        assert image.filename == str(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, upright(colours, orientation))


@pytest.mark.parametrize("tag", [None, 1, 3])
def test_tag_has_precedence_over_xmp(tmp_path: Path, tag: int | None) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    extra = [(700, "B", len(xmp), xmp, True)] + ([] if tag is None else [(274, "H", 1, tag, True)])
    stored, colours, options = stored_and_colours("RGB")
    tifffile.imwrite(tmp_path / "a.tif", stored, extratags=extra, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, upright(colours, tag or 1))
    assert image_size(tmp_path / "a.tif") == (HEIGHT, WIDTH)
