"""One file known by its bytes: what is pinned, how it is verified, and how it takes its name.

Nothing but a verified file ever gets the name it is pinned under; until then it lies aside as ``….part``.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from chromabox.errors import ChromaboxError

CHUNK_BYTES = 1 << 18


class Absent(ChromaboxError):
    """The source can be reached and does not hold the file."""


class Refused(ChromaboxError):
    """The source gave other bytes than the pinned ones."""


@runtime_checkable
class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Pinned:
    """One file: its plain name, the SHA-256 of its bytes (64 hex digits), and its size in bytes."""

    name: str
    sha256: str
    size: int


def fault(path: Path, pin: Pinned) -> str | None:
    """What is wrong with the file at `path`, with the expected and the found SHA-256; None if nothing is."""
    if not path.is_file():
        return "it is missing"
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found == pin.sha256:
        return None
    return f"expected SHA-256 {pin.sha256} and {pin.size} bytes, found {found} and {path.stat().st_size} bytes"


def keep(stream: Readable, pin: Pinned, folder: Path) -> None:
    """Copies a stream aside, verifies it and gives it its name; reads at most one byte more than pinned."""
    aside = folder / f"{pin.name}.{os.getpid()}.part"
    try:
        with aside.open("wb") as out:
            left = pin.size + 1
            while left and (chunk := stream.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                out.write(chunk)
        accept(aside, pin, folder)
    finally:
        aside.unlink(missing_ok=True)


def accept(part: Path, pin: Pinned, folder: Path) -> None:
    """Gives a part file its name if its bytes are the pinned ones, else raises with both hashes."""
    if wrong := fault(part, pin):
        raise Refused(f"{pin.name} is refused: {wrong}")
    os.replace(part, folder / pin.name)
