"""HTTP downloads by `fetch` from a local server that drops connections, misreports lengths and sends too much."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chromabox.errors import ChromaboxError
from chromabox.io.fetch import Archive, TarUrl, Url, fetch
from chromabox.io.http import PinnedFile, StderrProgress, transfer_bar

BODY = bytes(range(256)) * 4000
OTHER = bytes(reversed(BODY))
PIN = PinnedFile("data.bin", hashlib.sha256(BODY).hexdigest(), len(BODY))


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_lost_connection_is_resumed(server: Any, tmp_path: Path, progress: Any) -> None:
    server.bodies["data.bin"], server.break_after = BODY, [300_000, 200_000]
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert path.read_bytes() == BODY
    assert [requested for _, requested in server.requests] == [None, "bytes=300000-", "bytes=500000-"]
    assert progress.transfers == [(len(BODY), 0), (len(BODY), 300_000), (len(BODY), 500_000)]


def test_later_call_resumes_from_the_partial_file(server: Any, tmp_path: Path, progress: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(BODY[:1000])
    server.bodies["data.bin"] = BODY
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert path.read_bytes() == BODY
    assert server.requests == [("/data.bin", "bytes=1000-")]


def test_complete_partial_file_is_verified_without_a_request(server: Any, tmp_path: Path, progress: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(BODY)
    fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert list_files(tmp_path) == ["data.bin"]
    assert server.requests == []


def test_server_without_ranges_restarts_the_download(server: Any, tmp_path: Path, progress: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(OTHER[:1000])
    server.bodies["data.bin"], server.ranges = BODY, False
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert path.read_bytes() == BODY


def test_changed_remote_file_is_downloaded_again_from_the_start(server: Any, tmp_path: Path, progress: Any) -> None:
    (tmp_path / "data.bin.part").write_bytes(OTHER[:1000])
    server.bodies["data.bin"] = BODY
    [path] = fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert path.read_bytes() == BODY
    assert [requested for _, requested in server.requests] == ["bytes=1000-", None]
    assert "restarting from the first byte" in progress.warnings[0]


def test_rejected_file_is_deleted(server: Any, tmp_path: Path, progress: Any) -> None:
    server.bodies["data.bin"] = OTHER
    with pytest.raises(ChromaboxError, match=r"data\.bin failed verification"):
        fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert list_files(tmp_path) == []


@pytest.mark.parametrize("sends_length", [True, False])
def test_oversized_response_is_stopped(server: Any, tmp_path: Path, sends_length: bool, progress: Any) -> None:
    server.bodies["data.bin"], server.sends_length = BODY * 20, sends_length
    message = "offers 20480000 bytes; expected 1024000" if sends_length else "sent more than 1024000 bytes"
    with pytest.raises(ChromaboxError, match=message):
        fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert list_files(tmp_path) == []


def test_attempts_end_when_no_more_bytes_are_received(server: Any, tmp_path: Path, progress: Any) -> None:
    server.bodies["data.bin"], server.break_after = BODY, [1000, 0, 0, 0]
    with pytest.raises(ChromaboxError, match="was lost after 1000 of 1024000 bytes"):
        fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, progress)
    assert len(server.requests) == 2
    assert list_files(tmp_path) == ["data.bin.part"]


def test_archive_is_resumed_and_deleted_after_extraction(
    server: Any, tmp_path: Path, progress: Any, make_tar: Callable[..., Path]
) -> None:
    packed = make_tar(tmp_path, {"x/data.bin": BODY}).read_bytes()
    server.bodies["all.tar.gz"], server.break_after = packed, [len(packed) // 2]
    source = TarUrl(f"{server.address}/all.tar.gz", Archive("all.tar.gz", 1 << 20, 1 << 22))
    [path] = fetch([PIN], [source], tmp_path / "cache", progress)
    assert path.read_bytes() == BODY
    assert [requested for _, requested in server.requests] == [None, f"bytes={len(packed) // 2}-"]
    assert list_files(tmp_path / "cache") == ["data.bin"]


def test_plain_lines_without_a_terminal(server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.bodies["data.bin"] = BODY
    fetch([PIN], [Url(f"{server.address}/data.bin")], tmp_path, StderrProgress())
    captured = capsys.readouterr()
    assert captured.err == "downloading data.bin from 127.0.0.1 …\nverified data.bin\n"
    assert captured.out == ""


def test_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    with transfer_bar(StderrProgress(), "downloading x from host", 2000, 500) as advance:
        advance(1500)
    assert "downloading x from host" in shown.getvalue()
    assert "2.0/2.0 kB" in shown.getvalue()
