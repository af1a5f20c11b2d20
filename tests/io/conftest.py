"""A server on this machine that breaks off, lies, floods or has changed its files, and ears for what is told."""

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


@dataclass
class ProgressRecorder:
    """Progress that remembers what it was told."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    transfers: list[tuple[int | None, int]] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def transfer(self, description: str, total: int | None, done: int) -> AbstractContextManager:
        self.transfers.append((total, done))
        return nullcontext(lambda count: None)


@dataclass
class Server:
    """What the server holds and how it misbehaves; `asked` are the (path, Range) of all requests."""

    bodies: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after: list[int] = field(default_factory=list)  # for each request in turn: bytes, then the connection ends
    sends_length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    address: str = ""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, told: Server, *args: object) -> None:
        self.told = told
        super().__init__(*args)

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.told.requests.append((self.path, wanted))
        body = self.told.bodies.get(self.path.lstrip("/"))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.told.ranges else 0
        if body is None or start >= len(body):
            self.send_error(404 if body is None else 416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.told.sends_length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = self.told.break_after.pop(0) if self.told.break_after else len(body)
        self.wfile.write(body[start : start + stop])

    def log_message(self, *args: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """A client that hangs up on a flood is what some tests want."""


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()
    with QuietServer(("127.0.0.1", 0), functools.partial(Handler, told)) as running:
        assert isinstance(running, socketserver.TCPServer)
        told.address = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield told
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMABOX_MIRROR", raising=False)


@pytest.fixture
def told() -> ProgressRecorder:
    return ProgressRecorder()


@pytest.fixture
def tar_of() -> Callable[..., Path]:
    """Packs members (bytes, or a TarInfo alone) into a .tar.gz in a folder."""

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
