"""The size in a header is the size of the picture that is read, however it is turned; damage gives one sentence."""

from pathlib import Path

import pytest
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.images import image_size, read_image


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_size_is_that_of_the_read_picture(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (20, 12)).save(path, exif=exif)
    assert image_size(path) == read_image(path).pixels.shape[:2]


@pytest.mark.parametrize(("content", "sentence"), [(b"", "is not a picture"), (b"\x89PNG\r\n", "is not a picture")])
def test_no_header_gives_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ChromaboxError, match=sentence):
        image_size(path)


def test_no_file_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ChromaboxError, match="does not exist"):
        image_size(tmp_path / "a.png")
