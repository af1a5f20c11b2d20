"""Reading of files of limited size, parsing of JSON, and atomic writing of files."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chromabox.errors import ChromaboxError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path. The file at this path replaces `path` if the block succeeds, and is deleted otherwise.

    The temporary file is hidden. It is in the same folder as `path`, because a rename is atomic only within a file
    system. It has the same suffix, from which some libraries infer the format. An existing file at `path` is unchanged
    until it is replaced. A symbolic link is replaced, not followed. The folder must exist. OSErrors are passed on to
    the caller.
    """
    temp_path = path.with_name(f".{path.stem[:50]}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temp_path
        os.replace(temp_path, path)
    finally:
        temp_path.unlink(missing_ok=True)


def read_bytes(path: Path, expected: str, max_bytes: int | None = None) -> bytes:
    """Return the content of a file. ``expected`` describes the expected file in error messages.

    Raise ChromaboxError if the file cannot be read or has more than ``max_bytes`` bytes.
    """
    try:
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise ChromaboxError(f"{path}: has {size:,} bytes; expected {expected} of at most {max_bytes:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ChromaboxError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raise ValueError for invalid JSON, including lists that are nested too deeply for the parser."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the values are nested too deeply") from None
