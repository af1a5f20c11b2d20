"""Which source is asked for what, in which order, and what is said when none has it."""

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


def pinned(name: str, body: bytes = BODY) -> PinnedFile:
    return PinnedFile(name, hashlib.sha256(body).hexdigest(), len(body))


PIN = pinned("data.bin")


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHROMABOX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("CHROMABOX_CACHE", "")
    assert cache_folder().name == "chromabox"


def test_plain_download_and_then_kept(server: Any, tmp_path: Path, told: Any) -> None:
    server.bodies["x/data.bin"] = BODY
    [path] = fetch([PIN], [Url(f"{server.address}/x/data.bin")], tmp_path / "new", told)
    assert path == tmp_path / "new" / "data.bin"
    assert path.read_bytes() == BODY
    assert left_in(path.parent) == ["data.bin"]
    fetch([PIN], [Url(f"{server.address}/x/data.bin")], path.parent, told)
    assert len(server.asked) == 1


def test_nothing_is_said_of_files_that_are_there_and_right(
    tmp_path: Path, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.bin").write_bytes(BODY)
    fetch([PIN], [], tmp_path, told)
    assert (told.notes, told.warnings, told.transfers) == ([], [], [])
    fetch([PIN], [], tmp_path)
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / ".lock").exists()


def test_a_tampered_file_is_refused_with_both_hashes_and_the_next_source_asked(
    server: Any, tmp_path: Path, told: Any
) -> None:
    server.bodies |= {"bad/data.bin": OTHER, "good/data.bin": BODY}
    chain = [Url(f"{server.address}/{place}/data.bin") for place in ("bad", "good")]
    [path] = fetch([PIN], chain, tmp_path, told)
    assert path.read_bytes() == BODY
    [warning] = told.warnings
    assert "data.bin is refused" in warning
    assert PIN.sha256 in warning
    assert sha(OTHER) in warning


def test_when_all_fail_one_sentence_says_what_was_tried_and_what_to_do(server: Any, tmp_path: Path, told: Any) -> None:
    chain = [Url(f"{server.address}/data.bin"), Url("http://127.0.0.1:9/data.bin?key=hidden")]
    with pytest.raises(ChromaboxError) as caught:
        fetch([PIN], chain, tmp_path, told)
    sentence = str(caught.value)
    assert f"cannot fetch data.bin: tried {server.address}/data.bin (HTTP 404 " in sentence
    assert "http://127.0.0.1:9/data.bin (cannot connect: " in sentence
    assert f"set CHROMABOX_MIRROR to a folder or URL that holds it, or put the right file into {tmp_path}" in sentence
    assert "hidden" not in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("damage", [BODY[:-1], OTHER, b""])
def test_a_damaged_file_is_reported_removed_and_fetched_anew(
    server: Any, tmp_path: Path, damage: bytes, told: Any
) -> None:
    server.bodies["data.bin"] = BODY
    (tmp_path / "data.bin").write_bytes(damage)
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert path.read_bytes() == BODY
    [warning] = told.warnings
    assert all(part in warning for part in ("data.bin is damaged", PIN.sha256, sha(damage)))


@pytest.mark.parametrize("scheme", ["folder", "file", "http"])
def test_mirror_comes_first(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, told: Any
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "data.bin").write_bytes(BODY)
    server.bodies["m/data.bin"] = BODY
    places = {"folder": str(tmp_path / "mirror"), "file": (tmp_path / "mirror").as_uri(), "http": server.address + "/m"}
    monkeypatch.setenv("CHROMABOX_MIRROR", places[scheme])
    [path] = fetch([PIN], [Url("http://127.0.0.1:9/data.bin")], tmp_path / "cache", told)
    assert path.read_bytes() == BODY
    assert (tmp_path / "mirror" / "data.bin").read_bytes() == BODY


@pytest.mark.parametrize("over_http", [False, True])
def test_mirror_may_hold_the_archive(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    over_http: bool,
    told: Any,
    tar_of: Callable[..., Path],
) -> None:
    (tmp_path / "mirror").mkdir()
    packed = tar_of(tmp_path / "mirror", {"deep/data.bin": BODY, "deep/b.bin": OTHER})
    server.bodies["all.tar.gz"] = packed.read_bytes()
    monkeypatch.setenv("CHROMABOX_MIRROR", server.address if over_http else str(tmp_path / "mirror"))
    source = TarUrl("http://127.0.0.1:9/all.tar.gz", Archive("all.tar.gz", 1 << 20, 1 << 22))
    paths = fetch([PIN, pinned("b.bin", OTHER)], [source], tmp_path / "cache", told)
    assert [path.read_bytes() for path in paths] == [BODY, OTHER]
    assert left_in(tmp_path / "cache") == ["b.bin", "data.bin"]


@pytest.mark.parametrize(
    ("location", "reason"),
    [("/nowhere/at/all", "there is no such folder"), ("ftp://host/x", "only a folder, a file:// URL or an http")],
)
def test_a_wrong_mirror_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, reason: str, told: Any
) -> None:
    monkeypatch.setenv("CHROMABOX_MIRROR", location)
    with pytest.raises(ChromaboxError, match=f"CHROMABOX_MIRROR {location} \\({reason}"):
        fetch([PIN], [], tmp_path, told)


def test_a_tampered_mirror_is_refused_with_both_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "data.bin").write_bytes(OTHER)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(ChromaboxError, match=f"expected SHA-256 {PIN.sha256}.*found {sha(OTHER)}"):
        fetch([PIN], [], tmp_path / "cache", told)
    assert left_in(tmp_path / "cache") == []


# (what lies in the mirror, which of it is taken, else what is said)
SUBFOLDERS = [
    ({"b/data.bin": OTHER, "a/data.bin": BODY}, "a", None),
    ({"data.bin": BODY, "a/data.bin": OTHER}, "", None),
    ({"a/data.bin/x": OTHER, "b/data.bin": BODY}, "b", None),
    ({"a/other.bin": OTHER, "z/data.bin": BODY}, "z", None),
    ({"a/deep/data.bin": BODY}, None, "data.bin: not there, or not to be read"),
    ({"a/data.bin": OTHER, "b/data.bin": BODY}, None, "data.bin is refused"),
]


@pytest.mark.parametrize(("files", "taken", "sentence"), SUBFOLDERS)
def test_a_mirror_folder_is_searched_one_folder_deep(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: Any,
    files: dict[str, bytes],
    taken: str | None,
    sentence: str | None,
) -> None:
    mirror = tmp_path / "mirror"
    for name, body in files.items():
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).write_bytes(body)
    monkeypatch.setenv("CHROMABOX_MIRROR", str(mirror))
    if sentence is not None:
        with pytest.raises(ChromaboxError, match=sentence):
            fetch([PIN], [], tmp_path / "cache", told)
        return
    [path] = fetch([PIN], [], tmp_path / "cache", told)
    assert path.read_bytes() == BODY
    assert told.notes == [f"copied and verified data.bin from {mirror / taken}"]


def npm_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Puts a stand-in for the npm program, which the network may not reach, alone on the path."""
    (folder / "bin").mkdir()
    (folder / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_npm_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, tar_of: Callable[..., Path]) -> None:
    packed = tar_of(tmp_path, {"package/data.bin": BODY}, "some-thing-1.2.3.tgz")
    right = sha(packed.read_bytes())
    npm_in(tmp_path, monkeypatch, f'[ "$1 $2" = "pack @some/thing@1.2.3" ] && cp {packed} .')
    source = NpmPackage("@some/thing", "1.2.3", right, packed.stat().st_size, 1 << 22)
    [path] = fetch([PIN], [source], tmp_path / "cache", told)
    assert path.read_bytes() == BODY
    assert left_in(path.parent) == ["data.bin"]
    wrong = NpmPackage("@some/thing", "1.2.3", PIN.sha256, packed.stat().st_size, 1 << 22)
    with pytest.raises(ChromaboxError, match=f"some-thing-1.2.3.tgz is refused: expected.*{PIN.sha256}.*{right}"):
        fetch([PIN], [wrong], tmp_path / "other", told)
    assert left_in(tmp_path / "other") == []


def test_npm_that_fails_or_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    source = NpmPackage("thing", "1.2.3", PIN.sha256, 5, 5)
    npm_in(tmp_path, monkeypatch, "echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(ChromaboxError, match=r"npm package thing@1.2.3 \(npm pack failed: npm error code E404\)"):
        fetch([PIN], [source], tmp_path / "cache", told)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChromaboxError, match="the npm program is not installed"):
        fetch([PIN], [source], tmp_path / "cache", told)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, told: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ChromaboxError, match=r"cannot keep files in .*CHROMABOX_CACHE"):
        fetch([PIN], [], tmp_path / "file" / "cache", told)


def test_two_fetches_at_once_do_not_disturb_each_other(server: Any, tmp_path: Path, told: Any) -> None:
    server.bodies["data.bin"] = BODY
    ears = [type(told)() for _ in range(4)]
    jobs = [
        threading.Thread(target=fetch, args=([PIN], [Url(f"{server.address}/data.bin")], tmp_path, each))
        for each in ears
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (tmp_path / "data.bin").read_bytes() == BODY
    assert len(server.asked) == 1
    assert [each.warnings for each in ears] == [[]] * 4
