"""Resumable HTTP downloads with progress, and verification of pinned files.

A pinned file has a name, a SHA-256 and a size. The name of a file ends in `.part` until the file has been verified.
"""

import contextlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from chromabox.errors import ChromaboxError
from chromabox.io.manifest import sha256_file

TIMEOUT_SECONDS = 20.0
MAX_ATTEMPTS = 5
CHUNK_BYTES = 1 << 18

#: Called with one line of text for each event. Lines about problems begin with "warning: ".
Progress = Callable[[str], None]


class StderrProgress:
    """Progress callback that prints each event as a line on stderr.

    On a terminal, `fetch` also shows a progress bar with the rate and the remaining time.
    """

    def __call__(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def quiet(line: str) -> None:
    """Discard a progress message. This is the progress callback for optional files."""


class NotAvailableError(ChromaboxError):
    """Raised if a source is available but does not have the file."""


class ContentMismatchError(NotAvailableError):
    """Raised if the content differs from the pinned file."""


@dataclass(frozen=True)
class PinnedFile:
    """Name (without folder), SHA-256 (64 hexadecimal digits) and size in bytes of a file."""

    name: str
    sha256: str
    size: int


@contextlib.contextmanager
def transfer_bar(
    progress: Progress, description: str, total: int | None, completed: int
) -> Iterator[Callable[[int], None]]:
    """Report a transfer, and yield a function that is called with the number of bytes of each new chunk.

    `total` is the number of bytes (None if unknown), of which `completed` bytes have already been received.
    """
    if not (isinstance(progress, StderrProgress) and sys.stderr.isatty()):
        progress(f"{description} …")
        yield lambda count: None
        return
    # These imports take 60 ms and are needed only on a terminal.
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn())
    rates = (bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    with bars.Progress(*columns, *rates, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda count: bar.advance(task, count)


def download(
    url: str, part_path: Path, commit: Callable[[], None], max_bytes: int, *, is_exact: bool, progress: Progress
) -> None:
    """Download `url` to `part_path`, and then call `commit`, which verifies the content.

    The download of an existing partial file is continued. If `is_exact` is true, the file must have exactly `max_bytes`
    bytes. After a lost connection, the download is resumed if the previous attempt received any bytes. If the parts
    from several requests do not match the pinned file, the remote file must have changed. The parts are then deleted,
    and the file is downloaded once more from the start. Raise ChromaboxError if the download fails, and
    ContentMismatchError if the content is not as expected.
    """
    resumed = _file_size(part_path) > 0
    for _ in range(MAX_ATTEMPTS):
        before = _file_size(part_path)
        try:
            is_complete = is_exact and 0 < before == max_bytes
            problem = None if is_complete else _receive(url, part_path, max_bytes, is_exact, progress)
            if problem is None:
                return commit()
        except ContentMismatchError as error:
            part_path.unlink(missing_ok=True)
            if not resumed:
                raise
            resumed = False
            progress(f"warning: {error}; restarting from the first byte")
            continue
        if _file_size(part_path) <= before:
            raise ChromaboxError(problem)
        resumed = True
        progress(f"warning: {problem}; resuming from byte {_file_size(part_path)}")
    raise ChromaboxError(f"the connection to {redact_url(url)} was lost {MAX_ATTEMPTS} times")


def _receive(url: str, part_path: Path, max_bytes: int, is_exact: bool, progress: Progress) -> str | None:
    """Send one request. Append to `part_path` if the server returns the requested range, otherwise replace the file.

    Return a message if the connection was lost, and None otherwise. The bytes received so far remain in the file.
    """
    received = _file_size(part_path)
    headers = {"User-Agent": "chromabox", **({"Range": f"bytes={received}-"} if received else {})}
    lost = f"the connection to {redact_url(url)} was lost"
    with _open_response(urllib.request.Request(url, headers=headers), received) as response:
        content_range = response.headers.get("Content-Range", "")
        is_partial = response.status == 206 and content_range.startswith(f"bytes {received}-")
        if response.status != 200 and not is_partial:
            raise ContentMismatchError(f"the server sent HTTP {response.status} without the requested range")
        received = received if is_partial else 0
        length = response.headers.get("Content-Length", "")
        total = received + int(length) if length.isdecimal() else max_bytes if is_exact else None
        if total is not None and (total > max_bytes or (is_exact and total < max_bytes)):
            expected = f"{'' if is_exact else 'at most '}{max_bytes}"
            raise ContentMismatchError(f"the server offers {total} bytes; expected {expected} bytes")
        description = f"downloading {part_path.name.removesuffix('.part')} from {urlsplit(url).hostname}"
        with (
            part_path.open("ab" if is_partial else "wb") as out,
            transfer_bar(progress, description, total, received) as advance,
        ):
            while True:
                try:
                    chunk = response.read1(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    return f"{lost} ({error})"
                if not chunk:
                    break
                received += len(chunk)
                if received > max_bytes:
                    raise ContentMismatchError(f"the server sent more than {max_bytes} bytes")
                out.write(chunk)
                advance(len(chunk))
    return None if total is None or received >= total else f"{lost} after {received} of {total} bytes"


def _open_response(request: urllib.request.Request, received: int) -> http.client.HTTPResponse:
    """Send the request. Raise ChromaboxError with a short reason if the request fails."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise ContentMismatchError(
                f"the remote file is not larger than the {received} bytes already downloaded"
            ) from error
        # Some servers return 403 for missing files.
        error_type = NotAvailableError if error.code in (403, 404, 410) else ChromaboxError
        raise error_type(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ChromaboxError(f"cannot connect: {getattr(error, 'reason', None) or error}") from error


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def redact_url(url: str) -> str:
    """Return the URL without the user name, the password and the query, for use in messages."""
    parts = urlsplit(url)
    if not parts.hostname:
        return url
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"


def verification_error(path: Path, pin: PinnedFile) -> str | None:
    """Return a message with both SHA-256 values if the file at `path` is not the pinned file, and None if it is."""
    if not path.is_file():
        return "the file does not exist"
    digest = sha256_file(path)
    if digest == pin.sha256:
        return None
    return f"expected SHA-256 {pin.sha256} and {pin.size} bytes, found {digest} and {path.stat().st_size} bytes"


def verify(path: Path, pin: PinnedFile) -> None:
    """Raise ContentMismatchError if the file at `path` is not the pinned file."""
    if problem := verification_error(path, pin):
        raise ContentMismatchError(f"{pin.name} failed verification: {problem}")


def copy_verified(read: Callable[[int], bytes], pin: PinnedFile, folder: Path) -> None:
    """Copy the data from `read` to a temporary file, verify the file and rename it. Read at most one extra byte."""
    temp_path = folder / f"{pin.name}.{os.getpid()}.part"
    try:
        with temp_path.open("wb") as out:
            remaining = pin.size + 1
            while remaining and (chunk := read(min(CHUNK_BYTES, remaining))):
                remaining -= len(chunk)
                out.write(chunk)
        commit(temp_path, pin, folder)
    finally:
        temp_path.unlink(missing_ok=True)


def commit(part_path: Path, pin: PinnedFile, folder: Path) -> None:
    """Verify a partial file and rename it to its final name. Raise ContentMismatchError if verification fails."""
    verify(part_path, pin)
    os.replace(part_path, folder / pin.name)
