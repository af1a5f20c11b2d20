"""Order of sources, verification, mirrors and error messages of `fetch`."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromabox.errors import ChromaboxError
from chromabox.io.fetch import Archive, NpmPackage, TarUrl, Url, cache_folder, fetch
from chromabox.io.http import PinnedFile

BODY = bytes(range(256)) * 4000
OTHER = bytes(reversed(BODY))


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def make_pin(name: str, body: bytes = BODY) -> PinnedFile:
    return PinnedFile(name, hashlib.sha256(body).hexdigest(), len(body))


PIN = make_pin("data.bin")


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("CHROMABOX_CACHE", "")
    assert cache_folder().name == "chromabox"


def test_file_is_downloaded_once(server: Any, tmp_path: Path, progress: Any) -> None:
    server.bodies["x/data.bin"] = BODY
    [path] = fetch([PIN], [Url(f"{server.address}/x/data.bin")], tmp_path / "new", progress)
    assert path == tmp_path / "new" / "data.bin"
    assert path.read_bytes() == BODY
    assert list_files(path.parent) == ["data.bin"]
    fetch([PIN], [Url(f"{server.address}/x/data.bin")], path.parent, progress)
    assert len(server.requests) == 1


def test_valid_files_cause_no_output(tmp_path: Path, progress: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.bin").write_bytes(BODY)
    fetch([PIN], [], tmp_path, progress)
    assert (progress.infos, progress.warnings, progress.transfers) == ([], [], [])
    fetch([PIN], [], tmp_path)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / ".lock").exists()


def test_tampered_file_is_reported_with_both_hashes_and_the_next_source_is_tried(
    server: Any, tmp_path: Path, progress: Any
) -> None:
    server.bodies |= {"bad/data.bin": OTHER, "good/data.bin": BODY}
    chain = [Url(f"{server.address}/{folder}/data.bin") for folder in ("bad", "good")]
    [path] = fetch([PIN], chain, tmp_path, progress)
    assert path.read_bytes() == BODY
    [warning] = progress.warnings
    assert "data.bin failed verification" in warning
    assert PIN.sha256 in warning
    assert sha(OTHER) in warning


def test_error_lists_all_attempts_and_a_remedy(server: Any, tmp_path: Path, progress: Any) -> None:
    chain = [Url(f"{server.address}/data.bin"), Url("http://127.0.0.1:9/data.bin?key=hidden")]
    with pytest.raises(ChromaboxError) as caught:
        fetch([PIN], chain, tmp_path, progress)
    message = str(caught.value)
    assert f"cannot fetch data.bin: tried {server.address}/data.bin (HTTP 404 " in message
    assert "http://127.0.0.1:9/data.bin (cannot connect: " in message
    assert f"set CHROMABOX_MIRROR to a folder or URL that contains it, or copy the file to {tmp_path}" in message
    assert "hidden" not in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", [BODY[:-1], OTHER, b""])
def test_corrupt_file_is_reported_and_downloaded_again(
    server: Any, tmp_path: Path, damage: bytes, progress: Any
) -> None:
    server.bodies["data.bin"] = BODY
    (tmp_path / "data.bin").write_bytes(damage)
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert path.read_bytes() == BODY
    [warning] = progress.warnings
    assert all(part in warning for part in ("data.bin is corrupt", PIN.sha256, sha(damage)))


@pytest.mark.parametrize("scheme", ["folder", "file", "http"])
def test_mirror_is_tried_first(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, progress: Any
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "data.bin").write_bytes(BODY)
    server.bodies["m/data.bin"] = BODY
    locations = {
        "folder": str(tmp_path / "mirror"),
        "file": (tmp_path / "mirror").as_uri(),
        "http": server.address + "/m",
    }
    monkeypatch.setenv("CHROMABOX_MIRROR", locations[scheme])
    [path] = fetch([PIN], [Url("http://127.0.0.1:9/data.bin")], tmp_path / "cache", progress)
    assert path.read_bytes() == BODY
    assert (tmp_path / "mirror" / "data.bin").read_bytes() == BODY


@pytest.mark.parametrize("over_http", [False, True])
def test_mirror_can_contain_the_archive(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    over_http: bool,
    progress: Any,
    make_tar: Callable[..., Path],
) -> None:
    (tmp_path / "mirror").mkdir()
    packed = make_tar(tmp_path / "mirror", {"deep/data.bin": BODY, "deep/b.bin": OTHER})
    server.bodies["all.tar.gz"] = packed.read_bytes()
    monkeypatch.setenv("CHROMABOX_MIRROR", server.address if over_http else str(tmp_path / "mirror"))
    source = TarUrl("http://127.0.0.1:9/all.tar.gz", Archive("all.tar.gz", 1 << 20, 1 << 22))
    paths = fetch([PIN, make_pin("b.bin", OTHER)], [source], tmp_path / "cache", progress)
    assert [path.read_bytes() for path in paths] == [BODY, OTHER]
    assert list_files(tmp_path / "cache") == ["b.bin", "data.bin"]


@pytest.mark.parametrize(
    ("location", "reason"),
    [("/nowhere/at/all", "the folder does not exist"), ("ftp://host/x", "unsupported location: expected a folder")],
)
def test_invalid_mirror_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, reason: str, progress: Any
) -> None:
    monkeypatch.setenv("CHROMABOX_MIRROR", location)
    with pytest.raises(ChromaboxError, match=f"CHROMABOX_MIRROR {location} \\({reason}"):
        fetch([PIN], [], tmp_path, progress)


def test_tampered_file_in_mirror_is_reported_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "data.bin").write_bytes(OTHER)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(ChromaboxError, match=f"expected SHA-256 {PIN.sha256}.*found {sha(OTHER)}"):
        fetch([PIN], [], tmp_path / "cache", progress)
    assert list_files(tmp_path / "cache") == []


# (files in the mirror, subfolder of the file that is used, error message)
SUBFOLDERS = [
    ({"b/data.bin": OTHER, "a/data.bin": BODY}, "a", None),
    ({"data.bin": BODY, "a/data.bin": OTHER}, "", None),
    ({"a/data.bin/x": OTHER, "b/data.bin": BODY}, "b", None),
    ({"a/other.bin": OTHER, "z/data.bin": BODY}, "z", None),
    ({"a/deep/data.bin": BODY}, None, "data.bin: missing or not readable"),
    ({"a/data.bin": OTHER, "b/data.bin": BODY}, None, "data.bin failed verification"),
]


@pytest.mark.parametrize(("files", "expected_folder", "message"), SUBFOLDERS)
def test_mirror_folder_is_searched_one_level_deep(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    progress: Any,
    files: dict[str, bytes],
    expected_folder: str | None,
    message: str | None,
) -> None:
    mirror = tmp_path / "mirror"
    for name, body in files.items():
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_bytes(body)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(mirror))
    if message is not None:
        with pytest.raises(ChromaboxError, match=message):
            fetch([PIN], [], tmp_path / "cache", progress)
        return
    [path] = fetch([PIN], [], tmp_path / "cache", progress)
    assert path.read_bytes() == BODY
    assert progress.infos == [f"copied and verified data.bin from {mirror / expected_folder}"]


def install_fake_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a fake npm on the path, instead of the real one, which may have no network access."""
    (folder / "bin").mkdir()
    (folder / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_npm_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any, make_tar: Callable[..., Path]
) -> None:
    packed = make_tar(tmp_path, {"package/data.bin": BODY}, "some-thing-1.2.3.tgz")
    digest = sha(packed.read_bytes())
    install_fake_npm(tmp_path, monkeypatch, f'[ "$1 $2" = "pack @some/thing@1.2.3" ] && cp {packed} .')
    source = NpmPackage("@some/thing", "1.2.3", digest, packed.stat().st_size, 1 << 22)
    [path] = fetch([PIN], [source], tmp_path / "cache", progress)
    assert path.read_bytes() == BODY
    assert list_files(path.parent) == ["data.bin"]
    wrong_pin = NpmPackage("@some/thing", "1.2.3", PIN.sha256, packed.stat().st_size, 1 << 22)
    with pytest.raises(ChromaboxError, match=f"thing-1.2.3.tgz failed verification: expected.*{PIN.sha256}.*{digest}"):
        fetch([PIN], [wrong_pin], tmp_path / "other", progress)
    assert list_files(tmp_path / "other") == []


def test_npm_error_and_missing_npm_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: Any) -> None:
    source = NpmPackage("thing", "1.2.3", PIN.sha256, 5, 5)
    install_fake_npm(tmp_path, monkeypatch, "echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(ChromaboxError, match=r"npm package thing@1.2.3 \(npm pack failed: npm error code E404\)"):
        fetch([PIN], [source], tmp_path / "cache", progress)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChromaboxError, match="npm is not installed"):
        fetch([PIN], [source], tmp_path / "cache", progress)


def test_cache_folder_that_cannot_be_created_is_reported(tmp_path: Path, progress: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match=r"cannot store files in .*CHROMABOX_CACHE"):
        fetch([PIN], [], tmp_path / "file" / "cache", progress)


def test_concurrent_fetches_download_once(server: Any, tmp_path: Path, progress: Any) -> None:
    server.bodies["data.bin"] = BODY
    recorders = [type(progress)() for _ in range(4)]
    threads = [
        threading.Thread(target=fetch, args=([PIN], [Url(f"{server.address}/data.bin")], tmp_path, recorder))
        for recorder in recorders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "data.bin").read_bytes() == BODY
    assert len(server.requests) == 1
    assert [recorder.warnings for recorder in recorders] == [[]] * 4
