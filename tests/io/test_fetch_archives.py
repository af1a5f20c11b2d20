"""Tarballs that are right, wrong, cut short, too big, or lead outside."""

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


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_archive_members_cannot_lead_outside(tmp_path: Path, tar_of: Callable[..., Path]) -> None:
    inside = tmp_path / "a" / "cache"
    inside.mkdir(parents=True)
    packed = tar_of(
        tmp_path,
        {
            "../evil": b"evil",
            "/tmp/evil": b"evil",
            "link": link("x/data.bin", "/etc/passwd"),
            "hard": link("y/data.bin", "/etc/passwd", tarfile.LNKTYPE),
            "../../data.bin": BODY,
        },
    )
    extract_members(packed, Archive("all.tar.gz", 1 << 20, 1 << 22), [PIN], inside)
    assert left_in(inside) == ["data.bin"]
    assert (inside / "data.bin").read_bytes() == BODY
    assert not (inside / "data.bin").is_symlink()
    assert left_in(tmp_path / "a") == ["cache"]
    assert left_in(tmp_path) == ["a", "all.tar.gz"]


WRONG_ARCHIVES = [
    ({"data.bin": OTHER}, "data.bin is refused: expected SHA-256"),
    ({"data.bin": BODY + b"!"}, "data.bin is refused: expected SHA-256"),
    ({"data.bin": BODY[:-1]}, "data.bin is refused: expected SHA-256"),
    ({"data.bin.exe": BODY}, "does not hold data.bin as a regular file"),
    ({"l": link("data.bin", "/etc/passwd")}, "does not hold data.bin as a regular file"),
    ({"zeros": bytes(30_000_000), "data.bin": BODY}, "unpacks to far more bytes"),
]


@pytest.mark.parametrize(("members", "sentence"), WRONG_ARCHIVES)
def test_wrong_archives_are_refused(tmp_path: Path, members: dict, sentence: str, tar_of: Callable[..., Path]) -> None:
    (tmp_path / "cache").mkdir()
    packed = tar_of(tmp_path, members)
    with pytest.raises(ChromaboxError, match=sentence):
        extract_members(packed, Archive("all.tar.gz", 1 << 20, 1 << 22), [PIN], tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_an_archive_cut_short_or_of_another_kind_is_refused(
    tmp_path: Path, cut: int, tar_of: Callable[..., Path]
) -> None:
    packed = tar_of(tmp_path, {"data.bin": BODY})
    packed.write_bytes(packed.read_bytes()[:cut] if cut else b"<html>sorry</html>")
    with pytest.raises(ChromaboxError, match=r"all\.tar\.gz is not a whole \.tar\.gz archive"):
        extract_members(packed, Archive("all.tar.gz", 1 << 20, 1 << 22), [PIN], tmp_path)
    assert left_in(tmp_path) == ["all.tar.gz"]
