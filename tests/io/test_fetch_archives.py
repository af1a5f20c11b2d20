"""Valid, wrong, truncated and oversized tarballs, and members with paths outside the folder."""

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chromabox.errors import ChromaboxError
from chromabox.io.fetch import Archive, extract_members
from chromabox.io.http import PinnedFile

BODY = bytes(range(256)) * 4000
OTHER = bytes(reversed(BODY))
PIN = PinnedFile("data.bin", hashlib.sha256(BODY).hexdigest(), len(BODY))


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def link(name: str, target: str, link_type: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = link_type, target
    return info


def test_archive_members_are_extracted_inside_the_folder(tmp_path: Path, make_tar: Callable[..., Path]) -> None:
    folder = tmp_path / "a" / "cache"
    folder.mkdir(parents=True)
    packed = make_tar(
        tmp_path,
        {
            "../evil": b"evil",
            "/tmp/evil": b"evil",
            "link": link("x/data.bin", "/etc/passwd"),
            "hard": link("y/data.bin", "/etc/passwd", tarfile.LNKTYPE),
            "../../data.bin": BODY,
        },
    )
    extract_members(packed, Archive("all.tar.gz", 1 << 20, 1 << 22), [PIN], folder)
    assert list_files(folder) == ["data.bin"]
    assert (folder / "data.bin").read_bytes() == BODY
    assert not (folder / "data.bin").is_symlink()
    assert list_files(tmp_path / "a") == ["cache"]
    assert list_files(tmp_path) == ["a", "all.tar.gz"]


WRONG_ARCHIVES = [
    ({"data.bin": OTHER}, "data.bin failed verification: expected SHA-256"),
    ({"data.bin": BODY + b"!"}, "data.bin failed verification: expected SHA-256"),
    ({"data.bin": BODY[:-1]}, "data.bin failed verification: expected SHA-256"),
    ({"data.bin.exe": BODY}, "contains no regular file named data.bin"),
    ({"l": link("data.bin", "/etc/passwd")}, "contains no regular file named data.bin"),
    ({"zeros": bytes(30_000_000), "data.bin": BODY}, "unpacks to more bytes than expected"),
]


@pytest.mark.parametrize(("members", "message"), WRONG_ARCHIVES)
def test_wrong_archives_are_rejected(
    tmp_path: Path, members: dict, message: str, make_tar: Callable[..., Path]
) -> None:
    (tmp_path / "cache").mkdir()
    packed = make_tar(tmp_path, members)
    with pytest.raises(ChromaboxError, match=message):
        extract_members(packed, Archive("all.tar.gz", 1 << 20, 1 << 22), [PIN], tmp_path / "cache")
    assert list_files(tmp_path / "cache") == []


@pytest.mark.parametrize("size", [0, 10, 400])
def test_truncated_or_other_archive_is_rejected(tmp_path: Path, size: int, make_tar: Callable[..., Path]) -> None:
    packed = make_tar(tmp_path, {"data.bin": BODY})
    packed.write_bytes(packed.read_bytes()[:size] if size else b"<html>sorry</html>")
    with pytest.raises(ChromaboxError, match=r"all\.tar\.gz is not a valid \.tar\.gz archive"):
        extract_members(packed, Archive("all.tar.gz", 1 << 20, 1 << 22), [PIN], tmp_path)
    assert list_files(tmp_path) == ["all.tar.gz"]
