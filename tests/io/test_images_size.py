"""Image sizes from headers, equal to the sizes of the images as read, in all orientations; invalid files."""

from pathlib import Path

import pytest
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.images import image_size, read_image


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_size_equals_the_size_of_the_read_image(tmp_path: Path, extension: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    Image.new("RGB", (20, 12)).save(path, exif=exif)
    assert image_size(path) == read_image(path).pixels.shape[:2]


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"\x89PNG\r\n", "is not an image")])
def test_file_without_header_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ChromaboxError, match=message):
        image_size(path)


def test_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="does not exist"):
        image_size(tmp_path / "a.png")
