"""HTTP downloads that are taken up again where they broke off, and what they tell while they run.

A download knows a part file, how many bytes are right, and a function that accepts the result; what the bytes mean is
the caller's business.

One file known by its bytes: what is pinned, how it is verified, and how it takes its name.

Nothing but a verified file ever gets the name it is pinned under; until then it lies aside as ``….part``.
"""

import contextlib
import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import urlsplit

from chromabox.errors import ChromaboxError

TIMEOUT_SECONDS = 20.0
MAX_ATTEMPTS = 5


class ConnectionLostError(ChromaboxError):
    """The connection broke off; what came so far stays in the part file."""


@runtime_checkable
class Progress(Protocol):
    """What `fetch` tells while it works."""

    def info(self, line: str) -> None:
        """One line of news."""

    def warning(self, line: str) -> None:
        """One line the user should know of: damage, a broken connection, a source that failed."""

    def transfer(
        self, description: str, total: int | None, completed: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a transfer of `total` bytes (None: unknown), `done` of them there; yields advance(bytes)."""


class StderrProgress:
    """Progress on stderr: a bar with rate and time left on a terminal, one plain line for each event elsewhere."""

    def info(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def warning(self, line: str) -> None:
        print(f"warning: {line}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def transfer(self, description: str, total: int | None, completed: int) -> Iterator[Callable[[int], None]]:
        if not sys.stderr.isatty():
            self.info(f"{description} …")
            yield lambda count: None
            return
        # rich.progress takes 60 ms to import: only a terminal pays for it.
        from rich import progress as bars
        from rich.console import Console

        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn())
        rates = (bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
        with bars.Progress(*columns, *rates, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, completed=completed)
            yield lambda count: bar.advance(task, count)


class QuietProgress:
    """Says nothing: for a file that is welcome but not needed."""

    def info(self, line: str) -> None:
        pass

    def warning(self, line: str) -> None:
        pass

    @contextlib.contextmanager
    def transfer(self, description: str, total: int | None, completed: int) -> Iterator[Callable[[int], None]]:
        yield lambda count: None


def download(
    url: str,
    part_path: Path,
    commit: Callable[[], None],
    *,
    expected_bytes: int | None,
    max_bytes: int,
    progress: Progress,
) -> None:
    """Downloads into `part`, going on from what it holds, and has it accepted.

    A broken connection is taken up again while every try brings bytes. Pieces of different times that do not make
    up the right file are dropped, and the whole is fetched once from the start: the remote file has changed.
    """
    joined = _file_size(part_path) > 0
    for _ in range(MAX_ATTEMPTS):
        before = _file_size(part_path)
        try:
            if before == 0 or before != expected_bytes:
                _receive(url, part_path, expected_bytes, max_bytes, progress)
            return commit()
        except ConnectionLostError as error:
            if _file_size(part_path) <= before:
                raise
            joined = True
            progress.warning(f"{error}; going on from byte {_file_size(part_path)}")
        except ContentMismatchError as error:
            part_path.unlink(missing_ok=True)
            if not joined:
                raise
            joined = False
            progress.warning(f"{error}; starting again from the first byte")
    raise ChromaboxError(f"the connection to {redact_url(url)} broke off {MAX_ATTEMPTS} times")


def _receive(url: str, part_path: Path, expected_bytes: int | None, max_bytes: int, progress: Progress) -> None:
    """One request: appends to `part` if the server grants the range asked for, else writes it from the start."""
    done = _file_size(part_path)
    headers = {"User-Agent": "chromabox", **({"Range": f"bytes={done}-"} if done else {})}
    with _open_response(urllib.request.Request(url, headers=headers), part_path) as response:
        granted = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if response.status != 200 and not granted:
            raise ContentMismatchError(f"it answered {response.status} without the bytes asked for")
        done = done if granted else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else expected_bytes
        if total is not None and (total > max_bytes or (expected_bytes is not None and total != expected_bytes)):
            right = f"{expected_bytes} are right" if expected_bytes is not None else f"at most {max_bytes} are right"
            raise ContentMismatchError(f"it offers {total} bytes where {right}")
        description = f"fetching {part_path.name.removesuffix('.part')} from {urlsplit(url).hostname}"
        with part_path.open("ab" if granted else "wb") as out, progress.transfer(description, total, done) as advance:
            for chunk in _iter_chunks(response, url):
                done += len(chunk)
                if done > max_bytes:
                    raise ContentMismatchError(f"it sends more than the {max_bytes} bytes that are right")
                out.write(chunk)
                advance(len(chunk))
    if total is not None and done < total:
        raise ConnectionLostError(f"the connection to {redact_url(url)} broke off after {done} of {total} bytes")


@contextlib.contextmanager
def _open_response(request: urllib.request.Request, part_path: Path) -> Iterator[http.client.HTTPResponse]:
    """The open answer; every way in which asking can fail becomes one short reason."""
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise ContentMismatchError(
                f"it holds no bytes beyond the {_file_size(part_path)} that came before"
            ) from error
        # Some stores answer 403 for what they do not hold.
        kind = NotAvailableError if error.code in (403, 404, 410) else ChromaboxError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ChromaboxError(f"cannot connect: {getattr(error, 'reason', None) or error}") from error
    with response:
        yield response


def _iter_chunks(response: http.client.HTTPResponse, url: str) -> Iterator[bytes]:
    """The body as it comes; a connection that breaks is told apart from a disk that is full."""
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionLostError(f"the connection to {redact_url(url)} broke off ({error})") from error
        if not chunk:
            return
        yield chunk


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def redact_url(url: str) -> str:
    """An address as messages may show it: without user name, password or query."""
    parts = urlsplit(url)
    if not parts.hostname:
        return url
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


CHUNK_BYTES = 1 << 18


class NotAvailableError(ChromaboxError):
    """The source can be reached and does not hold the file."""


class ContentMismatchError(ChromaboxError):
    """The source gave other bytes than the pinned ones."""


@runtime_checkable
class SupportsRead(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class PinnedFile:
    """One file: its plain name, the SHA-256 of its bytes (64 hex digits), and its size in bytes."""

    name: str
    sha256: str
    size: int


def verification_error(path: Path, pin: PinnedFile) -> str | None:
    """What is wrong with the file at `path`, with the expected and the found SHA-256; None if nothing is."""
    if not path.is_file():
        return "it is missing"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == pin.sha256:
        return None
    return f"expected SHA-256 {pin.sha256} and {pin.size} bytes, found {found} and {path.stat().st_size} bytes"


def copy_verified(stream: SupportsRead, pin: PinnedFile, folder: Path) -> None:
    """Copies a stream aside, verifies it and gives it its name; reads at most one byte more than pinned."""
    aside = folder / f"{pin.name}.{os.getpid()}.part"
    try:
        with aside.open("wb") as out:
            left = pin.size + 1
            while left and (chunk := stream.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                out.write(chunk)
        commit(aside, pin, folder)
    finally:
        aside.unlink(missing_ok=True)


def commit(part_path: Path, pin: PinnedFile, folder: Path) -> None:
    """Gives a part file its name if its bytes are the pinned ones, else raises with both hashes."""
    if wrong := verification_error(part_path, pin):
        raise ContentMismatchError(f"{pin.name} is refused: {wrong}")
    os.replace(part_path, folder / pin.name)
