"""HTTP downloads through `fetch`, against a real server on this machine that breaks off, lies and floods."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromabox.errors import ChromaboxError
from chromabox.io.fetch import Archive, TarUrl, Url, fetch
from chromabox.io.http import PinnedFile, StderrProgress

BODY = bytes(range(256)) * 4000
OTHER = bytes(reversed(BODY))
PIN = PinnedFile("data.bin", hashlib.sha256(BODY).hexdigest(), len(BODY))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_broken_connection_is_resumed_where_it_broke(server: Any, tmp_path: Path, told: Any) -> None:
    server.bodies["data.bin"], server.break_after = BODY, [300_000, 200_000]
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert told.transfers == [(len(BODY), 0), (len(BODY), 300_000), (len(BODY), 500_000)]


def test_a_later_call_goes_on_from_the_part_file(server: Any, tmp_path: Path, told: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(BODY[:1000])
    server.bodies["data.bin"] = BODY
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert path.read_bytes() == BODY
    assert server.asked == [("/data.bin", "bytes=1000-")]


def test_a_whole_part_file_is_verified_without_asking(server: Any, tmp_path: Path, told: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(BODY)
    fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert left_in(tmp_path) == ["data.bin"]
    assert server.asked == []


def test_without_range_it_starts_again(server: Any, tmp_path: Path, told: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(OTHER[:1000])
    server.bodies["data.bin"], server.ranges = BODY, False
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert path.read_bytes() == BODY


def test_a_remote_file_that_changed_is_fetched_once_from_the_start(server: Any, tmp_path: Path, told: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(OTHER[:1000])
    server.bodies["data.bin"] = BODY
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.asked] == ["bytes=1000-", None]
    assert "starting again from the first byte" in told.warnings[0]


def test_nothing_of_a_refused_file_stays(server: Any, tmp_path: Path, told: Any) -> None:
    server.bodies["data.bin"] = OTHER
    with pytest.raises(ChromaboxError, match=r"data\.bin is refused"):
        fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("says_length", [True, False])
def test_a_flood_is_cut_off(server: Any, tmp_path: Path, says_length: bool, told: Any) -> None:
    server.bodies["data.bin"], server.says_length = BODY * 20, says_length
    said = "offers 20480000 bytes where 1024000 are right" if says_length else "sends more than the 1024000 bytes"
    with pytest.raises(ChromaboxError, match=said):
        fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert left_in(tmp_path) == []


def test_a_connection_that_brings_nothing_more_ends_the_tries(server: Any, tmp_path: Path, told: Any) -> None:
    server.bodies["data.bin"], server.break_after = BODY, [1000, 0, 0, 0]
    with pytest.raises(ChromaboxError, match="broke off after 1000 of 1024000 bytes"):
        fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, told)
    assert len(server.asked) == 2
    assert left_in(tmp_path) == ["data.bin.part"]


def test_an_archive_is_resumed_and_only_members_stay(
    server: Any, tmp_path: Path, told: Any, tar_of: Callable[..., Path]
) -> None:
    packed = tar_of(tmp_path, {"x/data.bin": BODY}).read_bytes()
    server.bodies["all.tar.gz"], server.break_after = packed, [len(packed) // 2]
    source = TarUrl(f"{server.address}/all.tar.gz", Archive("all.tar.gz", 1 << 20, 1 << 22))
    [path] = fetch([PIN], [source], tmp_path / "cache", told)
    assert path.read_bytes() == BODY
    assert [asked for _, asked in server.asked] == [None, f"bytes={len(packed) // 2}-"]
    assert left_in(tmp_path / "cache") == ["data.bin"]


def test_plain_lines_where_stderr_is_no_terminal(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.bodies["data.bin"] = BODY
    fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, StderrProgress())
    captured = capsys.readouterr()
    assert captured.err == "fetching data.bin from 127.0.0.1 …\nverified data.bin\n"
    assert captured.out == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with StderrProgress().transfer("fetching x from host", 2000, 500) as advance:
        advance(1500)
    assert "fetching x from host" in shown.getvalue()
    assert "2.0/2.0 kB" in shown.getvalue()
