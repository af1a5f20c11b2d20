"""Embedded images, decoded from their data URIs by Pillow."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from chromabox.errors import ChromaboxError
from chromabox.report.document.images import EmbeddedImage, fit_to_budget, read_png


def open_embedded(embedded: EmbeddedImage) -> Image.Image:
    header, _, body = embedded.uri.partition(",")
    assert header == "data:image/png;base64"
    assert len(body) == embedded.encoded_length
    return Image.open(io.BytesIO(base64.b64decode(body)), formats=["PNG"])


def make_photo(folder: Path) -> EmbeddedImage:
    Image.fromarray(data.astronaut()[:500, :500]).save(folder / "photo.png", compress_level=1)
    return read_png(folder / "photo.png")


def test_images_within_budget_are_unchanged(tmp_path: Path) -> None:
    embedded = make_photo(tmp_path)
    assert fit_to_budget([embedded], embedded.encoded_length) == [embedded]
    assert embedded.content == (tmp_path / "photo.png").read_bytes()
    assert (embedded.width, embedded.height, embedded.note) == (500, 500, "")


def test_recompression_is_lossless_and_adds_no_note(tmp_path: Path) -> None:
    pixels = np.zeros((300, 400, 4), np.uint8)
    pixels[:100, :, :] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "uncompressed.png", compress_level=0)
    [embedded] = fit_to_budget([read_png(tmp_path / "uncompressed.png")], 5000)
    assert embedded.note == ""
    expected = np.where(pixels[..., 3:] > 0, pixels[..., :3], 255)  # Transparent pixels are blended with white.
    np.testing.assert_array_equal(np.asarray(open_embedded(embedded)), expected)


def test_largest_image_is_reduced_first_and_colours_before_pixels(tmp_path: Path) -> None:
    large = make_photo(tmp_path)
    Image.fromarray(data.chelsea()[:60, :60]).save(tmp_path / "small.png")
    small = read_png(tmp_path / "small.png")
    sizes = []
    for budget, note, width in (
        (200_000, "shown in 256 colours", 500),
        (130_000, "shown in 256 colours, 400 of 500 pixels wide", 400),
        (60_000, "shown in 256 colours, 240 of 500 pixels wide", 240),
    ):
        reduced, other = fit_to_budget([large, small], budget)
        assert reduced.encoded_length + other.encoded_length <= budget
        assert (reduced.note, open_embedded(reduced).width, reduced.width) == (note, width, 500)
        assert other == small
        after, before = (
            np.asarray(open_embedded(image).convert("RGB").resize((100, 100)), float) for image in (reduced, large)
        )
        assert np.abs(after - before).mean() < 4
        sizes.append(reduced.encoded_length)
    assert sizes == sorted(sizes, reverse=True)


def test_impossible_budget_gives_the_smallest_version(tmp_path: Path) -> None:
    [embedded] = fit_to_budget([make_photo(tmp_path)], 10)
    assert open_embedded(embedded).width == 240


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", None, "jpeg", "truncated"])
def test_incomplete_png_is_rejected_by_name(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "figure.png"
    if content == "jpeg":
        Image.fromarray(data.chelsea()).save(path, format="JPEG")
    elif content == "truncated":
        Image.fromarray(data.chelsea()).save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ChromaboxError, match=r"figure\.png: ") as caught:
        read_png(path)
    assert "\n" not in str(caught.value)
