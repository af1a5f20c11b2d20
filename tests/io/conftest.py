"""Local HTTP server that can drop connections, misreport lengths and change files; recorder of progress reports."""

import functools
import io
import socketserver
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chromabox.io.http import Progress


@dataclass
class ProgressRecorder:
    """Progress that records all lines and transfers."""

    infos: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    transfers: list[tuple[int | None, int]] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        is_warning = line.startswith("warning: ")
        (self.warnings if is_warning else self.infos).append(line.removeprefix("warning: "))

    def transfer_bar(
        self, progress: Progress, description: str, total: int | None, completed: int
    ) -> AbstractContextManager:
        self.transfers.append((total, completed))
        return nullcontext(lambda count: None)


@dataclass
class Server:
    """Files of the server and its faults; `requests` are the (path, Range) of all requests."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # for each request: bytes sent before the connection is closed
    sends_length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, state: Server, *args: object) -> None:
        self.state = state
        super().__init__(*args)

    def do_GET(self) -> None:
        requested_range = self.headers.get("Range")
        self.state.requests.append((self.path, requested_range))
        body = self.state.bodies.get(self.path.lstrip("/"))
        start = 0
        if requested_range and self.state.ranges:
            start = int(requested_range.removeprefix("bytes=").removesuffix("-"))
        if body is None or start >= len(body):
            self.send_error(404 if body is None else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.state.sends_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = self.state.break_after.pop(0) if self.state.break_after else len(body)
        self.wfile.write(body[start : start + stop])

    def log_message(self, *args: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Ignore clients that close the connection, which some tests expect."""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    with QuietServer(("127.0.0.1", 0), functools.partial(Handler, state)) as http_server:
        assert isinstance(http_server, socketserver.TCPServer)
        state.address = f"http://127.0.0.1:{http_server.server_address[1]}"
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        http_server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> ProgressRecorder:
    recorder = ProgressRecorder()
    monkeypatch.setattr("chromabox.io.http.transfer_bar", recorder.transfer_bar)
    return recorder


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    """Return a function that packs members (bytes, or a TarInfo without content) into a .tar.gz in a folder."""

    def pack(folder: Path, members: dict[str, bytes | tarfile.TarInfo], name: str = "all.tar.gz") -> Path:
        with tarfile.open(folder / name, "w:gz") as tar:
            for member, body in members.items():
                if isinstance(body, tarfile.TarInfo):
                    tar.addfile(body)
                    continue
                info = tarfile.TarInfo(member)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
        return folder / name

    return pack
