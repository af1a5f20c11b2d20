"""Kinds of files. The files are written by Pillow, or begin with the signatures of the format specifications."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chromabox.errors import ChromaboxError
from chromabox.io.images import IMAGE_SUFFIXES, find_images, read_image
from chromabox.io.kinds import identify, list_folder
from chromabox.io.paths import map_outputs, select_inputs

GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
OTHERS = {
    b"%PDF-1.7": "PDF document",
    b"name".ljust(257, b"\0") + b"ustar\0": "archive",  # POSIX.1, pax interchange format
    b"8BPS\0\1": "Photoshop image",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC image",
    b"\0\0\0\x18ftypisom\0\0\0\0isom": "MP4 or QuickTime video",
    b"\x1a\x45\xdf\xa3\x01": "Matroska or WebM video",
    b"RIFF\0\0\0\0AVI LIST": "AVI video",
    b"\0\0\x01\xba": "MPEG video",
    b"hello": "",
}


@pytest.mark.parametrize("image_format", FORMATS)
def test_images_are_recognised_and_read_whatever_their_suffix(tmp_path: Path, image_format: str) -> None:
    GREY.convert("RGB").save(tmp_path / "a", format=image_format)
    (tmp_path / "a").rename(tmp_path / "a.dat")
    assert identify(tmp_path / "a.dat").format == image_format
    assert [relative for _, relative in find_images([tmp_path])] == [Path("a.dat")]
    assert np.abs(read_image(tmp_path / "a.dat").pixels[..., 1].astype(int) - np.asarray(GREY)).mean() < 6
    assert map_outputs([tmp_path], tmp_path / "out")[0][1] == tmp_path / "out" / "a.dat.png"


def test_tga_is_recognised_by_its_suffix(tmp_path: Path) -> None:
    GREY.save(tmp_path / "a.tga")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tga").pixels[..., 0], np.asarray(GREY))


@pytest.mark.parametrize("start", OTHERS)
def test_other_files_are_named(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(start)
    assert identify(path).description == OTHERS[start]
    with pytest.raises(ChromaboxError, match=OTHERS[start] or "its kind is unknown"):
        read_image(path)


def test_damaged_header_is_another_message_than_unknown_kind(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    GREY.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:12])
    with pytest.raises(ChromaboxError, match=r"a\.png is damaged: the header of the PNG image is corrupt"):
        read_image(tmp_path / "a.png")


def test_every_file_of_a_folder_is_counted_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.jfif", "deep/c.jpe", "deep/d.jp2", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        GREY.save(tmp_path / name, format="JPEG2000" if name.endswith("2") else "PNG")
    for name, content in {"x.pdf": b"%PDF-1", "y.pdf": b"%PDF-1", "notes.txt": b"text", "bad.jpg": b""}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    content = list_folder(tmp_path, IMAGE_SUFFIXES)
    assert {path.name for path in content.images} == {"a.png", "b.jfif", "c.jpe", "d.jp2", "bad.jpg"}
    assert {reason: len(paths) for reason, paths in content.skipped.items()} == {
        "PDF document (not supported)": 2,
        "hidden": 1,
        "not a regular file": 2,
        "unknown kind": 1,
    }
    assert select_inputs([tmp_path, tmp_path / "a.png"]).images == select_inputs([tmp_path]).images
    assert len(select_inputs([tmp_path / "*.pn?"]).images) == 1
