"""Pictures in a page, read back from their addresses by Pillow."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.errors import ChromaboxError
from chromabox.report.document.images import EmbeddedImage, fit_to_budget, read_png


def opened(picture: EmbeddedImage) -> Image.Image:
    head, _, body = picture.uri.partition(",")
    assert head == "data:image/png;base64"
    assert len(body) == picture.encoded_length
    return Image.open(io.BytesIO(base64.b64decode(body)), formats=["PNG"])


def photograph(folder: Path) -> EmbeddedImage:
    Image.fromarray(data.astronaut()[:500, :500]).save(folder / "photo.png", compress_level=1)
    return read_png(folder / "photo.png")


def test_what_fits_stays_as_it_is(tmp_path: Path) -> None:
    picture = photograph(tmp_path)
    assert fit_to_budget([picture], picture.encoded_length) == [picture]
    assert picture.content == (tmp_path / "photo.png").read_bytes()
    assert (picture.width, picture.height, picture.note) == (500, 500, "")


def test_a_picture_that_is_only_written_loosely_loses_nothing_and_says_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((300, 400, 4), np.uint8)
    pixels[:100, :, :] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "loose.png", compress_level=0)
    [picture] = fit_to_budget([read_png(tmp_path / "loose.png")], 5000)
    assert picture.note == ""
    expected = np.where(pixels[..., 3:] > 0, pixels[..., :3], 255)  # On white, where it was transparent.
    np.testing.assert_array_equal(np.asarray(opened(picture)), expected)


def test_colours_go_before_pixels_and_the_longest_picture_first(tmp_path: Path) -> None:
    large = photograph(tmp_path)
    Image.fromarray(data.chelsea()[:60, :60]).save(tmp_path / "small.png")
    small = read_png(tmp_path / "small.png")
    sizes = []
    for budget, note, width in (
        (200_000, "shown in 256 colours", 500),
        (130_000, "shown in 256 colours and 400 of its 500 pixels’ width", 400),
        (60_000, "shown in 256 colours and 240 of its 500 pixels’ width", 240),
    ):
        flat, other = fit_to_budget([large, small], budget)
        assert flat.encoded_length + other.encoded_length <= budget
        assert (flat.note, opened(flat).width, flat.width) == (note, width, 500)
        assert other == small
        shown, drawn = (np.asarray(opened(one).convert("RGB").resize((100, 100)), float) for one in (flat, large))
        assert np.abs(shown - drawn).mean() < 4
        sizes.append(flat.encoded_length)
    assert sizes == sorted(sizes, reverse=True)


def test_no_room_at_all_ends_with_the_smallest(tmp_path: Path) -> None:
    [picture] = fit_to_budget([photograph(tmp_path)], 10)
    assert opened(picture).width == 240


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", None, "jpeg", "cut"])
def test_what_is_no_whole_png_is_refused_by_name(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "figure.png"
    if content == "jpeg":
        Image.fromarray(data.chelsea()).save(path, format="JPEG")
    elif content == "cut":
        Image.fromarray(data.chelsea()).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ChromaboxError, match=r"figure\.png: ") as caught:
        read_png(path)
    assert "\n" not in str(caught.value)
